"""Puts an export in place: whole or not at all, and without touching a file of anyone else's.

An export writes into a new or an empty folder, or over an earlier export. Of that it replaces the
files that its provenance.json lists, as long as they are what was written; all others stay.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nepa_jax.base.errors import UserError, require_folder
from nepa_jax.base.text import read_json
from nepa_jax.formats.sources import PROVENANCE
from nepa_jax.formats.tables import FORMATS

FILES = "nepa_jax.files"  # in provenance.json: digests by name, as JSON text
# The names that an export gives: a list of another folder's files must not make us remove others.
WEIGHTS = re.compile(
    r"model\.safetensors(\.index\.json)?|model\.npz|model-\d{5}-of-\d{5}\.safetensors"
)
BESIDE = frozenset(
    (
        *("README.md", "config.json", "preprocessor_config.json", PROVENANCE),
        *(name for table in FORMATS.values() for name in table.shipped),
    )
)
UNFINISHED = re.compile(r"\..*\.[0-9a-f]{32}\.tmp")  # what a killed export leaves
DIGESTED_BYTES = 1 << 20  # of a file that people edit; "" stands for larger ones
NAMED = 4


def check_place(out: str) -> None:
    """Raises UserError unless an export may write there: see above."""
    require_folder(out, "--out")
    folder = Path(out)
    if not out.strip() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"--out={out}: is no folder; give a new one")
    if not folder.is_dir():
        return
    found = {p.name for p in folder.iterdir() if not UNFINISHED.fullmatch(p.name)}
    own = own_files(folder)
    if not own and found:
        raise UserError(f"--out={out}: holds other files ({_some(found)}); give a new folder")
    others = {name for name in found - own.keys() if _is_ours(name)}
    if others:
        raise UserError(
            f"--out={out}: {_some(others)} would be overwritten, and no export wrote it there; move "
            "it away, or give a new folder"
        )
    changed = {name for name in found & own.keys() if not _is_as_written(folder / name, own[name])}
    if changed:
        raise UserError(
            f"--out={out}: {_some(changed)} was changed since it was exported; move it away, or give "
            "a new folder"
        )


def put(out: str, write: Callable[[Path], None]) -> list[str]:
    """Lets ``write`` fill a folder, and puts what is in it in place; returns the names.

    Raises:
        UserError: it cannot be written.
    """
    place = Path(out).resolve()
    replaced = place.is_dir()
    fresh = (place if replaced else place.parent) / f".{place.name}.{uuid.uuid4().hex}.tmp"
    try:
        fresh.mkdir(parents=True)
        write(fresh)
        names = _list_in_provenance(fresh)
        if replaced:
            _replace(place, fresh, names)
        else:
            fresh.rename(place)
        return names
    except OSError as error:
        raise UserError(
            f"--out={out}: cannot be written ({error.strerror}); give another folder"
        ) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def own_files(folder: Path) -> Mapping[str, str]:
    """The digests of what the export in a folder wrote, by name; {} if there is none."""
    try:
        provenance = read_json(folder / PROVENANCE, dict)
        if "nepa_jax.format" not in provenance:
            return {}
        listed = json.loads(provenance.get(FILES, "null"))
        if listed is None:  # exports of earlier versions have no list
            listed = {path.name: "" for path in folder.iterdir()}
        return {str(name): str(digest) for name, digest in listed.items() if _is_ours(name)}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _is_ours(name: str) -> bool:
    return name in BESIDE or WEIGHTS.fullmatch(name) is not None


def _is_as_written(path: Path, digest: str) -> bool:
    return path.is_file() and (not digest or _digest(path) == digest)


def _digest(path: Path) -> str:
    if path.stat().st_size > DIGESTED_BYTES:
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _list_in_provenance(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir())
    path = folder / PROVENANCE
    digests = {name: _digest(folder / name) for name in names} | {PROVENANCE: ""}
    provenance = {**read_json(path, dict), FILES: json.dumps(digests)}
    path.write_text(json.dumps(provenance, indent=2) + "\n")
    return names


def _replace(place: Path, fresh: Path, names: Sequence[str]) -> None:
    """First the old weights go and last the new ones come: no moment has a mixture that loads.

    The new list comes right after, so that an export cut off here can be given again.
    """
    old = [name for name in own_files(place) if name != PROVENANCE]
    for name in sorted(old, key=lambda name: not WEIGHTS.fullmatch(name)):
        (place / name).unlink(missing_ok=True)
    first = [PROVENANCE, *(name for name in names if not WEIGHTS.fullmatch(name))]
    for name in [*dict.fromkeys(first), *filter(WEIGHTS.fullmatch, names)]:
        os.replace(fresh / name, place / name)


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"
