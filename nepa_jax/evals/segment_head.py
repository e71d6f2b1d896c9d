"""DINOv3's linear segmentation head: batch norm and a linear map on the patch tokens of each layer.

Siméoni et al. 2025 (arXiv 2508.10104), the released config for ADE20K: short side 512 px times 0.5 to 2,
crops of 512 px, flips; dropout of channels, batch norm, linear map; AdamW 1e-3, weight decay 1e-3, batch
16, 40,000 iterations, warm-up over 1,500, then a cosine to 0; tested on windows of 512 px every 341 px,
scores resized to the mask. The release also distorts colours while training, and this does not.

The heads of all layers are trained side by side in one program, on the same crops.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from nepa_jax.base.errors import UserError
from nepa_jax.base.keys import named_key
from nepa_jax.base.progress import meter, warn
from nepa_jax.base.threads import ordered_map
from nepa_jax.data.batches import BadRecord
from nepa_jax.data.decode import DecodeError, decode_pixels
from nepa_jax.data.loader import Loader
from nepa_jax.data.records import RecordError, RecordSet
from nepa_jax.data.resize import resize_exact
from nepa_jax.evals import miou, windows
from nepa_jax.evals.features import at_layers, on_all_devices
from nepa_jax.evals.subject import Subject
from nepa_jax.mesh import put_batch, side_by_side
from nepa_jax.models.upernet import Moments, Norms, drop_channels, pixel_loss, updated
from nepa_jax.objectives.base import Objective

RATE, WEIGHT_DECAY, DROPOUT = 1e-3, 1e-3, 0.1
BATCH, ITERATIONS = 16, 40_000
WARMUP = 1_500 / 40_000  # of the iterations
STRIDE = 341 / 512  # of the side of a window
INIT = nnx.initializers.normal(0.01)
NORM = "head"  # the name of the one batch norm
THREADS = 4  # images that are put together at a time


class Weights(NamedTuple):
    """Of one layer's head, or with an axis of layers in front."""

    scale: jax.Array  # float32 [D], of the batch norm, as the bias
    bias: jax.Array
    kernel: jax.Array  # float32 [D, K]
    offset: jax.Array  # float32 [K]


class Head(NamedTuple):
    """One layer's head while it is trained, or with an axis of layers in front."""

    weights: Weights
    running: dict[str, Moments]
    optimizer: optax.OptState


def protocol(subject: Subject, iterations: int | None, batch_size: int | None) -> dict[str, Any]:
    """All that decides the numbers. Raises UserError if the devices do not divide a batch."""
    side, images = subject.data.image_size[0], batch_size or BATCH
    if images % jax.device_count():
        raise UserError(
            f"--batch-size={images}: {jax.device_count()} devices share it; try "
            f"{-(-images // jax.device_count()) * jax.device_count()}"
        )
    return {
        "preset": "dinov3",
        "head": "dropout, batch norm, linear map",
        "side": side,
        "train_crops": "short side 0.5 to 2 times the side, a window of it, flipped or not",
        "loss": "cross entropy, a mean over all pixels; those without a class count 0",
        "optimizer": "AdamW",
        "lr": RATE,
        "weight_decay": WEIGHT_DECAY,
        "dropout": DROPOUT,
        "schedule": "linear warm-up, then cosine to 0",
        "iterations": iterations or ITERATIONS,
        "warmup": round(WARMUP * (iterations or ITERATIONS)),
        "batch_size": images,
        "test": "short side to the side, windows of it, scores averaged, then resized to the mask",
        "stride": round(STRIDE * side),
        "train_images": len(subject.train_records),
        "test_images": len(subject.test_records),
    }


def probe(subject: Subject, protocol: dict[str, Any]) -> list[miou.Counted]:
    """Trains the heads, and counts the test pixels at every layer."""
    mesh = side_by_side()
    model = on_all_devices(subject.loaded.model, mesh)
    heads = train(subject, protocol, model, mesh)
    counts = test(subject, protocol, model, heads, mesh)
    return [
        miou.Counted(each, {"layer": layer, "iterations": protocol["iterations"]})
        for layer, each in zip(subject.layers, counts, strict=True)
    ]


# Training


def train(subject: Subject, protocol: dict[str, Any], model: nnx.Module, mesh: Mesh) -> Head:
    """The heads of all layers after their last iteration; the encoder stays as it is."""
    data = replace(
        subject.data, crop="scale_jitter", flip=True, masks=True, batch_size=protocol["batch_size"]
    )
    loader, total = Loader(data), protocol["iterations"]
    optimizer = _optimizer(total, protocol["warmup"])
    heads = _fresh(subject, optimizer)
    step = partial(_step, subject.loaded.objective, subject.layers, optimizer)
    try:
        with meter(total, "training the heads") as advance:
            for number in range(total):
                batch = put_batch(loader.batch(number), mesh)
                key = jax.random.fold_in(jax.random.key(data.seed), number)
                heads, losses = step(model, heads, batch, key)
                if number % 8 == 7:  # no more of them than that wait on the devices
                    losses.block_until_ready()
                advance(1)
    finally:
        loader.close()
    return heads


def _optimizer(total: int, warmup: int) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(1e-6 * RATE, RATE, warmup, max(total, warmup + 1))
    return optax.adamw(schedule, b1=0.9, b2=0.999, weight_decay=WEIGHT_DECAY)


def _fresh(subject: Subject, optimizer: optax.GradientTransformation) -> Head:
    """With an axis of layers in front."""
    dim, classes = subject.loaded.config.model.embed_dim, len(subject.train_records.classes)

    def of_layer(key: jax.Array) -> Head:
        kernel = INIT(key, (dim, classes))
        weights = Weights(jnp.ones(dim), jnp.zeros(dim), kernel, jnp.zeros(classes))
        running = {NORM: Moments(jnp.zeros(dim), jnp.ones(dim))}
        return Head(weights, running, optimizer.init(weights))

    key = named_key(jax.random.key(subject.data.seed), "head")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.array(subject.layers))
    return jax.vmap(of_layer)(keys)


@partial(jax.jit, static_argnames=("objective", "layers", "optimizer"), donate_argnames="heads")
def _step(
    objective: Objective,
    layers: tuple[int, ...],
    optimizer: optax.GradientTransformation,
    model: nnx.Module,
    heads: Head,
    batch: dict[str, jax.Array],
    key: jax.Array,
) -> tuple[Head, jax.Array]:
    """One update of every head, and their losses [layers]; one layer at a time, for the memory."""
    tokens = _maps(objective, model, batch["image"], layers)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["row"])

    def loss_of(weights: Weights, x: jax.Array) -> tuple[jax.Array, dict[str, Moments]]:
        norms = Norms(None)
        logits = _scores(weights, drop_channels(x, DROPOUT, keys), norms)
        return pixel_loss(logits, batch["mask"]).mean_of_all, norms.seen

    def update(pair: tuple[Head, jax.Array]) -> tuple[Head, jax.Array]:
        (weights, running, state), x = pair
        (loss, seen), grads = jax.value_and_grad(loss_of, has_aux=True)(weights, x)
        updates, state = optimizer.update(grads, state, weights)
        return Head(optax.apply_updates(weights, updates), updated(running, seen), state), loss

    return jax.lax.map(update, (heads, tokens))


def _maps(
    objective: Objective, model: nnx.Module, images: jax.Array, layers: tuple[int, ...]
) -> jax.Array:
    """Patch tokens of some layers as maps, [layers, B, rows, columns, D]."""
    patches, _, grid = at_layers(objective, model, images, layers)
    return patches.reshape(*patches.shape[:2], *grid, patches.shape[-1])


def _scores(weights: Weights, x: jax.Array, norms: Norms) -> jax.Array:
    """[B, rows, columns, D] -> class scores [B, rows, columns, K]."""
    normed = norms.standardized(x, NORM) * weights.scale + weights.bias
    return normed @ weights.kernel + weights.offset


# Testing


class Example(NamedTuple):
    """A test image at the size of the windows, and its mask at its own."""

    image: np.ndarray  # uint8 [H, W, C]
    mask: np.ndarray  # uint8 [h, w]


def test(
    subject: Subject, protocol: dict[str, Any], model: nnx.Module, heads: Head, mesh: Mesh
) -> list[np.ndarray]:
    """The confusion [K, K] of the test pixels at every layer."""
    side, classes = protocol["side"], len(subject.test_records.classes)
    total = [np.zeros((classes, classes), np.int64) for _ in subject.layers]
    examples = examples_of(subject.test_records, side, subject.data.channels)
    scored = scores_of(subject, examples, protocol, model, heads, mesh)

    def counts(pair: tuple[Example, np.ndarray]) -> list[np.ndarray]:
        example, scores = pair
        found = (predicted(each, example, side, protocol["stride"]) for each in scores)
        return [miou.confusion(example.mask, each, classes) for each in found]

    with meter(len(subject.test_records), f"testing on {subject.test_split}") as advance:
        for found in ordered_map(counts, scored, THREADS):
            for sum_of_layer, each in zip(total, found, strict=True):
                sum_of_layer += each
            advance(1)
    return total


def examples_of(records: RecordSet, side: int, channels: int) -> Iterator[Example]:
    """All that can be read; what cannot is told at the end."""

    def read(index: int) -> Example | BadRecord:
        name = ""
        try:
            record = records[index]
            name = record.name
            pixels = decode_pixels(record.image, channels)
            return Example(_covering(pixels, side), records.mask(record, pixels.shape[:2]))
        except (RecordError, DecodeError) as error:
            return BadRecord(index, name, str(error))

    bad = []
    for found in ordered_map(read, range(len(records)), THREADS):
        if isinstance(found, BadRecord):
            bad.append(found)
        else:
            yield found
    if bad:
        warn(f"{len(bad)} of {len(records)} test images are left out, such as {bad[0]}")


def _covering(pixels: np.ndarray, side: int) -> np.ndarray:
    """With a short side of ``side`` px, in its own shape."""
    height, width = pixels.shape[:2]
    share = side / min(height, width)
    size = max(side, round(width * share)), max(side, round(height * share))
    return resize_exact(pixels, size, "bilinear")


def scores_of(
    subject: Subject,
    examples: Iterator[Example],
    protocol: dict[str, Any],
    model: nnx.Module,
    heads: Head,
    mesh: Mesh,
) -> Iterator[tuple[Example, np.ndarray]]:
    """Each image with the scores of its windows' patches, float32 [layers, windows, rows, columns, K]."""
    window, objective = (protocol["side"],) * 2, subject.loaded.objective
    for example in examples:
        cut = windows.cut(example.image, window, protocol["stride"])
        # Few shapes to compile for, which all devices share.
        size = max(1 << math.ceil(math.log2(len(cut))), jax.device_count())
        size = -(-size // jax.device_count()) * jax.device_count()
        padded = np.pad(cut, ((0, size - len(cut)), (0, 0), (0, 0), (0, 0)))
        batch = put_batch({"image": padded}, mesh)
        scores = _window_scores(objective, subject.layers, model, heads, batch["image"])
        yield example, np.asarray(scores)[:, : len(cut)]


@partial(jax.jit, static_argnames=("objective", "layers"))
def _window_scores(
    objective: Objective, layers: tuple[int, ...], model: nnx.Module, heads: Head, images: jax.Array
) -> jax.Array:
    def of_layer(pair: tuple[Head, jax.Array]) -> jax.Array:
        head, x = pair
        return _scores(head.weights, x, Norms(head.running))

    return jax.lax.map(of_layer, (heads, _maps(objective, model, images, layers)))


def predicted(scores: np.ndarray, example: Example, side: int, stride: int) -> np.ndarray:
    """Classes at the size of the mask, from the scores of one layer [windows, rows, columns, K]."""
    large = np.stack([resized(each, (side, side)) for each in scores])
    whole = windows.joined(large, example.image.shape[:2], stride)
    return resized(whole, example.mask.shape).argmax(axis=-1)


def resized(scores: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Bilinear between the centres of pixels: [h, w, K] -> [*size, K]."""
    found = cv2.resize(scores, tuple(size)[::-1], interpolation=cv2.INTER_LINEAR)
    return found.reshape(*size, scores.shape[-1])
