"""The loggers of a run: on the first host those that its config asks for, on others none."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict

from nepa_jax.base.errors import writing
from nepa_jax.config import flat_keys
from nepa_jax.config.rules import chosen_loggers
from nepa_jax.hosts.agree import say
from nepa_jax.run.loggers.background import Background, Logger, tell_failed
from nepa_jax.run.loggers.resuming import MARKS, About, Resumed, read_mark
from nepa_jax.run.loggers.tools import PICTURES, TOOLS, Folder, let_go, load
from nepa_jax.run.metrics import METRICS


@contextmanager
def loggers(config: ConfigDict, workdir: Path, start: int) -> Iterator[Sequence[Background]]:
    """Opened, each in its thread; closed at the end.

    To be entered before ``metrics.jsonl`` is opened: where there is none the run is a new one, which
    gets ids of its own.

    Args:
        config: resolved.
        workdir: of the run.
        start: the step that this start goes on from.
    """
    if jax.process_index() != 0:
        yield []
        return
    if not (workdir / METRICS).exists():
        with writing(workdir):
            _forget(workdir)
    about = About(workdir, flat_keys(config), start)
    openings = {name: partial(open_tool, name, about) for name in _loaded(config, workdir)}
    if config.log.pictures_every_steps:
        openings[PICTURES] = partial(Folder, workdir)
    with ExitStack() as stack:
        yield [
            stack.enter_context(Background(name, opened, partial(let_go, name)))
            for name, opened in openings.items()
        ]


def _loaded(config: ConfigDict, workdir: Path) -> Iterator[str]:
    """The tools that can be imported. Not in their threads: Pythons before 3.11.8 parse code in
    several threads at a time with errors (python/cpython issue 106905)."""
    for name in chosen_loggers(config):
        try:
            load(name, workdir)
        except Exception as error:  # whatever its package raises
            tell_failed(name, error)
        else:
            yield name


def _forget(workdir: Path) -> None:
    for mark in (workdir / MARKS).glob("*.json"):
        mark.unlink()


def open_tool(name: str, about: About) -> Logger:
    """A tool that has got all there is of the run so far."""
    path = about.workdir / MARKS / f"{name}.json"
    mark = read_mark(path)
    tool = TOOLS[name](about, mark.id)
    had = min(mark.step, about.start) if tool.rewinds else mark.step
    resumed = Resumed(tool, path, mark._replace(id=tool.id, step=had))
    say(f"{name}: run {tool.id}; {tool.where}")
    resumed.catch_up(about)
    return resumed
