"""The page: one HTML file with all that it shows, and nothing from elsewhere."""

import base64
import hashlib
import html
import os
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from nepa_jax.base.text import printable, to_json
from nepa_jax.base.version import __version__
from nepa_jax.report.pictures import MOST_BYTES, Picture, read_pictures
from nepa_jax.report.story import story_of

# In this order; each knows those before it.
SCRIPTS = ("format.js", "series.js", "dom.js", "chart.js", "curves.js", "sections.js", "page.js")
POINTS = 10_000  # buckets of one metric, for all runs of a page
BUCKETS = (100, 1000)  # of a curve: at least, at most
Page = dict[str, Any]


def page_of(workdirs: Mapping[str, Path], source: Callable[[Picture], str]) -> Page:
    """All that a page shows of some runs, as JSON values.

    Args:
        workdirs: by name, see :func:`nepa_jax.report.workdirs.find_workdirs`.
        source: where the page finds a picture.
    """
    now = time.time()
    least, most = BUCKETS
    buckets = min(most, max(least, POINTS // max(len(workdirs), 1)))
    runs, room = [], MOST_BYTES
    for name, workdir in workdirs.items():
        story = story_of(name, workdir, buckets, now)
        pictures = read_pictures(workdir, room, story["notes"])
        room -= sum(len(picture.data) for picture in pictures)
        story["pictures"] = [
            {"name": printable(picture.name), "source": source(picture)} for picture in pictures
        ]
        runs.append(story)
    return {"title": title_of(workdirs), "made": now, "version": __version__, "runs": runs}


def title_of(workdirs: Mapping[str, Path]) -> str:
    """The run's name, or that of the folder that all are in."""
    if len(workdirs) == 1:
        return next(iter(workdirs))
    above = os.path.commonpath([workdir.parent for workdir in workdirs.values()])
    return printable(Path(above).name or above)


def embedded(picture: Picture) -> str:
    """The picture itself, for a page that stands alone."""
    return f"data:image/png;base64,{base64.b64encode(picture.data).decode()}"


def html_of(page: Page, refresh_s: float = 0.0) -> str:
    """The file.

    Nothing in the data can become markup: the script sets text alone, and the browser is told to run
    that script and no other, and to load nothing.

    Args:
        page: see :func:`page_of`.
        refresh_s: how often it asks its server for what is new; 0: it has none.
    """
    style, script = _asset("style.css"), "\n".join(map(_asset, SCRIPTS))
    data = to_json({**page, "refresh_s": refresh_s}).replace("<", "\\u003c")  # ends no script
    return _asset("page.html").format(
        title=html.escape(page["title"]),
        policy=policy(style, script),
        style=style,
        data=data,
        script=script,
    )


def policy(style: str, script: str) -> str:
    """What the browser lets the page do."""
    return (
        f"default-src 'none'; script-src 'sha256-{_digest(script)}'; "
        f"style-src 'sha256-{_digest(style)}'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _asset(name: str) -> str:
    return (files("nepa_jax.report") / "assets" / name).read_text(encoding="utf-8")
