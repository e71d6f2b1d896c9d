"""One checkpoint on disk, of which every leaf is proven by its checksum; and the newest sound one."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from nepa_jax.base.errors import UserError, in_short
from nepa_jax.base.lazy import LazyArray
from nepa_jax.checkpoint.arrays import StoredLeaf, onto_devices, open_part
from nepa_jax.checkpoint.meta import Damaged, LeafMeta, Leaves, Meta, described
from nepa_jax.hosts.agree import say

T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """The complete checkpoint in a folder ``…/STEP``, which is only read; all hosts must ask alike."""

    folder: epath.Path

    @property
    def step(self) -> int:
        return int(self.folder.name)

    @property
    def origin(self) -> str:
        """For the user: where it is, and when it was written."""
        written = datetime.fromtimestamp(self.folder.stat().mtime)
        return f"{self.folder}, saved {written:%Y-%m-%d %H:%M}"

    @cached_property
    def meta(self) -> Meta:
        """Raises Damaged, on all hosts alike."""
        file = self.folder / "meta" / "metadata"
        return on_all_hosts("meta", lambda: Meta.from_json(json.loads(file.read_text())))

    def leaves(self, part: str, wanted: Leaves) -> dict[str, jax.Array]:
        """The leaves of a part in the wanted shapes, dtypes and shardings.

        Raises:
            UserError: the checkpoint holds other leaves.
            Damaged: it does not hold what was saved, on all hosts alike.
        """
        saved = self._saved(part, wanted)
        found = on_all_hosts(part, lambda: onto_devices(self._open(part, saved), wanted))
        wrong = [name for name, leaf in described(found).items() if leaf != saved[name]]
        _agree(f"{part}/{wrong[0]} is not what was saved" if wrong else "")
        return found

    def lazy_leaves(self, part: str, wanted: Leaves) -> dict[str, LazyArray]:
        """The leaves of a part, which stay on disk; each is proven when it is read.

        Raises:
            UserError: the checkpoint holds other leaves.
            Damaged: one of them is not there, or another one is; on all hosts alike.
        """
        saved = self._saved(part, wanted)
        stored = on_all_hosts(part, lambda: self._open(part, saved))
        return {name: leaf.lazy() for name, leaf in stored.items()}

    def _open(self, part: str, saved: Mapping[str, LeafMeta]) -> dict[str, StoredLeaf]:
        return open_part(self.folder / "arrays", part, saved)

    def _saved(self, part: str, wanted: Leaves) -> Mapping[str, LeafMeta]:
        """Raises UserError unless these leaves make up the part."""
        saved = self.meta.leaves.get(part, {})
        differing = sorted(
            name
            for name in wanted.keys() | saved.keys()
            if name not in wanted or name not in saved or not saved[name].fits(wanted[name])
        )
        if differing:
            raise UserError(
                f"checkpoint {self.folder} holds other arrays than this config makes: "
                f"{', '.join(differing[:5])}; use the config it was made with, or another --workdir"
            )
        return saved


def on_all_hosts(what: str, read: Callable[[], T]) -> T:
    """What this host reads, once all hosts could; else Damaged on all of them."""
    result, problem = None, ""
    try:
        result = read()
    except Damaged as error:
        problem = str(error)
    except Exception as error:  # storage raises errors of any kind
        problem = f"{what} cannot be read: {in_short(error)}"
    _agree(problem)
    return result


def _agree(problem: str) -> None:
    """Raises Damaged on all hosts with the first problem that one of them has, if one has any."""
    row = np.zeros(256, np.uint8)
    text = np.frombuffer(problem.encode()[: row.size], np.uint8)
    row[: text.size] = text
    rows = np.asarray(multihost_utils.process_allgather(row)).reshape(-1, row.size)
    problems = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]
    if any(problems):
        raise Damaged(next(filter(None, problems)))


def newest_sound(
    candidates: Iterable[Checkpoint], use: Callable[[Checkpoint], T], note: str = ""
) -> T:
    """What ``use`` makes of the newest checkpoint that it does not find damaged.

    Newer ones are told in one line that ends with ``note``. Reading alone proves what is read: so
    ``use`` reads, and what it makes must be nothing until it is whole.

    Raises:
        UserError: there is none.
    """
    damaged: list[str] = []
    ordered = sorted(candidates, key=lambda checkpoint: checkpoint.step, reverse=True)
    for checkpoint in ordered:
        try:
            made = use(checkpoint)
        except Damaged as error:
            damaged.append(f"{checkpoint.folder}: {error}")
            continue
        if damaged:
            lost = ordered[0].step - checkpoint.step
            say(
                f"warning: damaged checkpoint {'; '.join(damaged)}; "
                f"using that of step {checkpoint.step}, {lost:,} steps before{note}"
            )
        return made
    raise UserError(
        f"no checkpoint is sound ({'; '.join(damaged)}); bring one back from a copy, or start again in "
        "another --workdir"
    )


def checkpoints_in(folder: epath.Path) -> list[Checkpoint]:
    """The complete checkpoints of a folder ``WORKDIR/checkpoints``, oldest first."""
    if not folder.is_dir():
        return []
    found = [Checkpoint(path) for path in folder.iterdir() if path.name.isdigit()]
    complete = [one for one in found if ocp.utils.is_checkpoint_finalized(one.folder)]
    return sorted(complete, key=lambda checkpoint: checkpoint.step)


def find_checkpoints(path: str, step: int | None) -> list[Checkpoint]:
    """The checkpoint at ``path``, or those in the workdir there: of one step, or all.

    Raises:
        UserError: there is none.
    """
    folder = epath.Path(path).absolute()
    if is_checkpoint(folder):
        found = [one for one in checkpoints_in(folder.parent) if one.folder == folder]
    else:
        found = checkpoints_in(folder / "checkpoints")
    if not found:
        raise UserError(
            f"{path}: holds no complete checkpoint; give the --workdir of a pretraining run, or "
            "WORKDIR/checkpoints/STEP"
        )
    chosen = [one for one in found if step in (None, one.step)]
    if not chosen:
        steps = ", ".join(str(one.step) for one in found)
        raise UserError(f"{path}: holds no checkpoint of step {step}; choose from {steps}")
    return chosen


def is_checkpoint(folder: epath.Path) -> bool:
    """Whether this is the place of one checkpoint, not a workdir."""
    return folder.parent.name == "checkpoints" and folder.name.isdigit()


def workdir_of(path: str) -> epath.Path:
    """The workdir that a path given to :func:`find_checkpoints` belongs to."""
    folder = epath.Path(path).absolute()
    return folder.parent.parent if is_checkpoint(folder) else folder
