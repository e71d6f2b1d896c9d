"""One split's features, computed once and read back from disk after that."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import jax
import numpy as np

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import meter
from nepa_jax.base.version import __version__
from nepa_jax.data.loader import LoaderConfig
from nepa_jax.data.records import RecordSet, open_dataset
from nepa_jax.evals.encoders import attention_of, checked_layers, shapes_of, weights_digest
from nepa_jax.evals.features import POOLS, encoded
from nepa_jax.evals.store import Entry
from nepa_jax.hosts.agree import exchange, say
from nepa_jax.loading import Loaded
from nepa_jax.objectives.base import Features

# Fields of the data's settings that decide the pixels.
TRANSFORM = ("image_size", "channels", "crop", "crop_pct", "interpolation")


@dataclass(frozen=True)
class Frozen:
    """One split's features, in the order of its records: n images."""

    # Pooling -> for each of ``layers`` float32 [n, D], memory-mapped; of ``none`` [n, N, D], all tokens.
    features: Mapping[str, Sequence[np.ndarray]]
    layers: tuple[int, ...]  # 0 is the embedding
    labels: np.ndarray  # int32 [n]; -1 where the set has none
    index: np.ndarray  # int32 [n], the records' numbers
    classes: tuple[str, ...]
    grid: tuple[int, int]  # of the patches
    key: str  # of all that decides the features

    @property
    def tokens(self) -> Sequence[np.ndarray]:
        """Of each layer float32 [n, N, D], where the pooling ``none`` was asked for."""
        return self.features["none"]

    def __len__(self) -> int:
        return len(self.labels)


def freeze(
    loaded: Loaded,
    data: LoaderConfig,
    pools: Sequence[str] = ("mean",),
    layers: Iterable[int] | None = None,
    first: int | None = None,
) -> Frozen:
    """Features of a split by several poolings at several layers, in one pass or none.

    Args:
        loaded: the encoder, with the attention it is to have.
        data: path and split, and how images are cut; ``batch_size`` is only how many go at a time.
        pools: names of :data:`POOLS`.
        layers: 0 is the embedding, -1 the last (normed); None: all.
        first: so many records alone, from the beginning; no other is read.

    Raises:
        UserError: there is no such layer or pooling, the model has no class token, the split is
            not there, or the features are more than may be stored.
    """
    records = open_dataset(data.path, data.split)
    shapes, layers = asked(loaded, data, pools, layers)
    count = min(len(records), first or len(records))
    key = key_of(loaded, data, records, count)
    entry, names = Entry(key), {(p, n): f"{p}-{n:02}" for p in pools for n in layers}
    wanted = _lacking(list(names.values()), entry)
    todo = [pair for pair, name in names.items() if name in wanted]
    what = f"{data.split} ({count:,} images)"
    if todo:
        _compute(loaded, data, todo, entry, count, shapes)
    else:
        say(f"features of {what}: stored ones are used again")
    arrays, rows = entry.read(list(names.values())), entry.rows()
    features = {pool: [arrays[names[pool, layer]] for layer in layers] for pool in pools}
    return Frozen(
        features, layers, rows["labels"], rows["index"], records.classes, shapes.grid, key
    )


def asked(
    loaded: Loaded, data: LoaderConfig, pools: Sequence[str], layers: Iterable[int] | None
) -> tuple[Features, tuple[int, ...]]:
    """Shapes of the features, and the layers counted from 0.

    Raises:
        UserError: the model has no such layer or pooling, or takes no images of this size.
    """
    patch = loaded.config.model.patch_size
    if any(side % patch or not side for side in data.image_size):
        raise UserError(
            f"images of {data.image_size[0]} x {data.image_size[1]} px: the sides must be multiples "
            f"of the patch side, {patch}; try --image-size={max(1, data.image_size[0] // patch) * patch}"
        )
    shapes = shapes_of(loaded, data.image_size)
    for pool in pools:
        if pool not in POOLS:
            raise UserError(f"pool {pool!r} is unknown; choose from {', '.join(POOLS)}")
        if pool == "cls" and shapes.cls is None:
            raise UserError("--pool=cls: this encoder has no class token; try --pool=mean")
    return shapes, checked_layers(layers, shapes.patches.shape[0] - 1)


def key_of(loaded: Loaded, data: LoaderConfig, records: RecordSet, count: int) -> str:
    """Of all that decides the features of a split at any layer by any pooling."""
    facts = {
        "version": __version__,
        "weights": weights_digest(loaded),
        "model": loaded.config.model.to_dict(),
        "dtype": loaded.config.run.dtype,
        "objective": loaded.config.objective.name,
        "attention": attention_of(loaded),
        "data": records.fingerprint,
        "images": count,
        "transform": {name: asdict(data)[name] for name in TRANSFORM},
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _lacking(names: list[str], entry: Entry) -> set[str]:
    """The arrays that some host has not stored: all hosts must compute alike."""
    found = entry.read(names)
    mine = [name for name in names if name not in found]
    if not jax.distributed.is_initialized():
        return set(mine)
    return {name for host in exchange(json.dumps(mine)) for name in json.loads(host)}


def _compute(
    loaded: Loaded,
    data: LoaderConfig,
    todo: Sequence[tuple[str, int]],
    entry: Entry,
    count: int,
    shapes: Features,
) -> None:
    """One pass over the split, which stores what is to do."""
    pools = list(dict.fromkeys(pool for pool, _ in todo))
    layers = sorted({layer for _, layer in todo})
    names = [f"{pool}-{layer:02}" for pool in pools for layer in layers]
    tokens, width = shapes.patches.shape[2:]
    vectors = sum(tokens if pool == "none" else 1 for pool in pools) * len(layers)
    with (
        entry.writing(names, wanted=4 * count * vectors * width) as writer,
        meter(count, f"features of {data.split}") as advance,
    ):
        for rows in encoded(loaded, data, pools, layers, count):
            arrays = {
                f"{pool}-{layer:02}": rows.pooled[pool][place]
                for pool in pools
                for place, layer in enumerate(layers)
            }
            writer.add(rows.labels, rows.index, arrays)
            advance(len(rows.index))
