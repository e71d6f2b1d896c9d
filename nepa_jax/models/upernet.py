"""Semantic segmentation on a ViT: BEiT's neck of transposed convolutions, UPerNet's head, an auxiliary head.

Xiao et al. 2018 (arXiv 1807.10221) as in mmsegmentation 1.2.2 (UPerHead, FCNHead), on the four maps that
the neck of BEiT's released code makes of one grid (1/4, 1/2, 1 and 2 patches a pixel). Maps are
[B, rows, columns, channels], float32.

Batch norms keep nothing: a call returns the moments of its batch, and gets the running ones to use them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nepa_jax.models.layers import gelu

IGNORED = 255  # in masks: a pixel without a class
POOL_SCALES = (1, 2, 3, 6)
AUX_WEIGHT = 0.4
AUX_LEVEL = 2
NORM_EPS = 1e-5
MOMENTUM = 0.1  # of the newest batch

CONV_INIT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
UPSAMPLE_INIT = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
CLASSIFY_INIT = nnx.initializers.normal(0.01)


class Moments(NamedTuple):
    """Of every channel over the images and pixels of a batch, float32 [C]; the variance is unbiased."""

    mean: jax.Array
    variance: jax.Array


Statistics = Mapping[str, Moments]  # by the name of the norm


class Norms:
    """Where batch norms get their moments: from ``running``, or of the batch, which are then ``seen``."""

    def __init__(self, running: Statistics | None) -> None:
        self.running = running
        self.seen: dict[str, Moments] = {}

    def standardized(self, x: jax.Array, name: str) -> jax.Array:
        """[B, h, w, C] with mean 0 and variance 1."""
        if self.running is not None:
            mean, variance = self.running[name]
        else:
            count = x.size // x.shape[-1]
            mean = jnp.mean(x, axis=(0, 1, 2))
            variance = jnp.mean(jnp.square(x - mean), axis=(0, 1, 2))
            self.seen[name] = Moments(mean, variance * (count / max(count - 1, 1)))
        return (x - mean) * jax.lax.rsqrt(variance + NORM_EPS)


def updated(running: Statistics, seen: Statistics) -> dict[str, Moments]:
    """The running moments after a batch."""
    return {
        name: Moments(*(r + MOMENTUM * (s - r) for r, s in zip(running[name], seen[name], strict=True)))
        for name in running
    }  # fmt: skip


class BatchNorm(nnx.Module):
    """Batch norm with a scale and a bias."""

    def __init__(self, name: str, dim: int) -> None:
        self.name = name
        self.scale = nnx.Param(jnp.ones(dim), axes=("norm",))
        self.bias = nnx.Param(jnp.zeros(dim), axes=("norm",))

    def __call__(self, x: jax.Array, norms: Norms) -> jax.Array:
        return norms.standardized(x, self.name) * self.scale[...] + self.bias[...]

    def initial(self) -> Moments:
        return Moments(jnp.zeros(self.bias.shape), jnp.ones(self.scale.shape))


class ConvNorm(nnx.Module):
    """Convolution of kernel ``side`` without a bias, batch norm, ReLU."""

    def __init__(self, name: str, dims: tuple[int, int], side: int, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(
            *dims, (side, side), use_bias=False, rngs=rngs, kernel_init=CONV_INIT,
            kernel_metadata={"axes": ("row", "column", "channels_in", "channels")},
        )  # fmt: skip
        self.norm = BatchNorm(name, dims[1])

    def __call__(self, x: jax.Array, norms: Norms) -> jax.Array:
        return jax.nn.relu(self.norm(self.conv(x), norms))


class Upsample(nnx.Module):
    """Transposed convolution with kernel 2 and stride 2: every pixel becomes four by a linear map."""

    def __init__(self, dim: int, rngs: nnx.Rngs) -> None:
        kernel = UPSAMPLE_INIT(rngs.params(), (dim, 4 * dim)).reshape(dim, 2, 2, dim)
        self.kernel = nnx.Param(kernel, axes=("channels_in", "row", "column", "channels"))
        self.bias = nnx.Param(jnp.zeros(dim), axes=("channels",))

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, rows, columns, dim = x.shape
        tiles = jnp.einsum("brkc,cijd->brikjd", x, self.kernel[...])
        return tiles.reshape(batch, 2 * rows, 2 * columns, dim) + self.bias[...]


class Neck(nnx.Module):
    """Four maps of one width and grid -> a pyramid of 4, 2, 1 and 1/2 times the grid."""

    def __init__(self, dim: int, rngs: nnx.Rngs) -> None:
        self.first = Upsample(dim, rngs)
        self.norm = BatchNorm("neck", dim)
        self.second = Upsample(dim, rngs)
        self.double = Upsample(dim, rngs)

    def __call__(self, maps: Sequence[jax.Array], norms: Norms) -> list[jax.Array]:
        quadruple = self.second(gelu(self.norm(self.first(maps[0]), norms)))
        # PyTorch's max pool leaves out a last odd row or column.
        half = nnx.max_pool(maps[3], (2, 2), strides=(2, 2))
        return [quadruple, self.double(maps[1]), maps[2], half]


@dataclass(frozen=True)
class UPerNetConfig:
    """Sizes; channels and dropout are those of mmsegmentation's configs for ADE20K."""

    embed_dim: int
    num_classes: int
    channels: int = 512
    aux_channels: int = 256
    dropout: float = 0.1  # of whole channels before the classifiers


class Head(nnx.Module):
    """Pooled context at the top, then down the pyramid, then all levels at the finest together."""

    def __init__(self, config: UPerNetConfig, rngs: nnx.Rngs) -> None:
        dim, width = config.embed_dim, config.channels
        scales, levels = len(POOL_SCALES), 4

        def conv(name: str, dims: tuple[int, int], side: int) -> ConvNorm:
            return ConvNorm(f"head.{name}", dims, side, rngs)

        self.pools = nnx.List([conv(f"pools.{i}", (dim, width), 1) for i in range(scales)])
        self.bottleneck = conv("bottleneck", (dim + scales * width, width), 3)
        self.laterals = nnx.List(
            [conv(f"laterals.{i}", (dim, width), 1) for i in range(levels - 1)]
        )
        self.fpn = nnx.List([conv(f"fpn.{i}", (width, width), 3) for i in range(levels - 1)])
        self.fpn_bottleneck = conv("fpn_bottleneck", (levels * width, width), 3)

    def __call__(self, pyramid: Sequence[jax.Array], norms: Norms) -> jax.Array:
        """-> [B, rows, columns, channels] at the finest level."""
        maps = [
            lateral(level, norms)
            for lateral, level in zip(self.laterals, pyramid[:-1], strict=True)
        ]
        maps.append(self._context(pyramid[-1], norms))
        for level in reversed(range(len(maps) - 1)):
            maps[level] += resized(maps[level + 1], maps[level].shape[1:3])
        outputs = [conv(level, norms) for conv, level in zip(self.fpn, maps[:-1], strict=True)]
        outputs.append(maps[-1])
        finest = [resized(output, outputs[0].shape[1:3]) for output in outputs]
        return self.fpn_bottleneck(jnp.concatenate(finest, axis=-1), norms)

    def _context(self, x: jax.Array, norms: Norms) -> jax.Array:
        pooled = [
            resized(conv(adaptive_mean(x, scale), norms), x.shape[1:3])
            for conv, scale in zip(self.pools, POOL_SCALES, strict=True)
        ]
        return self.bottleneck(jnp.concatenate([x, *pooled], axis=-1), norms)


class Outputs(NamedTuple):
    """Class scores before the loss resizes them, and the batch norms' moments of this batch."""

    logits: jax.Array  # float32 [B, 4 rows, 4 columns, K]
    aux_logits: jax.Array  # float32 [B, rows, columns, K]
    seen: dict[str, Moments]  # empty where the running ones were used


class UPerNet(nnx.Module):
    """Neck, head, auxiliary head; the encoder is another's affair."""

    def __init__(self, config: UPerNetConfig, rngs: nnx.Rngs) -> None:
        self.neck = Neck(config.embed_dim, rngs)
        self.head = Head(config, rngs)
        self.classify = _classifier(config.channels, config.num_classes, rngs)
        dims = config.embed_dim, config.aux_channels
        self.aux = ConvNorm("aux", dims, 3, rngs)
        self.aux_classify = _classifier(config.aux_channels, config.num_classes, rngs)
        self.config = config

    def __call__(
        self,
        maps: Sequence[jax.Array],
        running: Statistics | None = None,
        keys: jax.Array | None = None,
    ) -> Outputs:
        """Class scores from four of an encoder's layers.

        Args:
            maps: patch tokens of four layers, without final norm, each [B, rows, columns, D].
            running: moments for evaluation; None: those of the batch.
            keys: one random key per image [B] for dropout; None: no dropout.
        """
        norms = Norms(running)
        pyramid = self.neck(maps, norms)
        main, aux = self.head(pyramid, norms), self.aux(pyramid[AUX_LEVEL], norms)
        if keys is not None:
            rate = self.config.dropout
            main, aux = (
                drop_channels(x, rate, jax.vmap(jax.random.fold_in, (0, None))(keys, which))
                for which, x in enumerate((main, aux))
            )
        return Outputs(self.classify(main), self.aux_classify(aux), norms.seen)

    def initial_statistics(self) -> dict[str, Moments]:
        """Running moments before the first batch: mean 0, variance 1."""
        norms = [node for _, node in nnx.iter_graph(self) if isinstance(node, BatchNorm)]
        return {norm.name: norm.initial() for norm in norms}


def _classifier(dim: int, num_classes: int, rngs: nnx.Rngs) -> nnx.Conv:
    axes = ("row", "column", "channels_in", "classes")
    return nnx.Conv(
        dim, num_classes, (1, 1), rngs=rngs, kernel_init=CLASSIFY_INIT,
        kernel_metadata={"axes": axes}, bias_metadata={"axes": axes[-1:]},
    )  # fmt: skip


def drop_channels(x: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
    """Drops whole channels of each image [B, h, w, C], scaling up the rest."""
    draw = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[-1:]))
    return x * (draw(keys) / (1.0 - rate))[:, None, None, :]


def resized(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear between the centres of pixels, without a filter: [B, h, w, C] -> [B, *size, C]."""
    if x.shape[1:3] == tuple(size):
        return x
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear", antialias=False)


def adaptive_mean(x: jax.Array, bins: int) -> jax.Array:
    """Means over a grid of bins, which overlap where they do not divide: -> [B, bins, bins, C]."""
    rows, columns = (jnp.asarray(_bin_weights(side, bins)) for side in x.shape[1:3])
    return jnp.einsum("ir,brkc,jk->bijc", rows, x, columns, precision="highest")


def _bin_weights(side: int, bins: int) -> np.ndarray:
    """Bin i of k goes from floor(i n / k) to ceil((i + 1) n / k): float32 [bins, side]."""
    weights = np.zeros((bins, side), np.float32)
    for i in range(bins):
        start, end = i * side // bins, -(-(i + 1) * side // bins)
        weights[i, start:end] = 1 / (end - start)
    return weights


class PixelLoss(NamedTuple):
    """Cross entropy of pixels, float32 scalars."""

    mean_of_all: jax.Array  # over all pixels, those without a class count 0: mmsegmentation's
    mean_of_known: jax.Array  # over those with a class: transformers'


def pixel_loss(logits: jax.Array, mask: jax.Array) -> PixelLoss:
    """Cross entropy at the size of the mask.

    Args:
        logits: float32 [B, h, w, K], resized to the mask first.
        mask: uint8 [B, H, W]; ``IGNORED`` where a pixel has no class.
    """
    logits = resized(logits, mask.shape[1:])
    known = mask != IGNORED
    target = jnp.where(known, mask, 0).astype(jnp.int32)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    losses = -jnp.take_along_axis(log_probs, target[..., None], axis=-1)[..., 0]
    total = jnp.sum(jnp.where(known, losses, 0.0))
    return PixelLoss(total / mask.size, total / jnp.maximum(jnp.sum(known), 1))


def segmentation_loss(outputs: Outputs, mask: jax.Array) -> jax.Array:
    """mmsegmentation's loss: that of the head, and 0.4 times that of the auxiliary head."""
    main, aux = (
        pixel_loss(logits, mask).mean_of_all for logits in (outputs.logits, outputs.aux_logits)
    )
    return main + AUX_WEIGHT * aux
