"""The parts of a transformer block, with logical axis names on every parameter.

Numerics: parameters, norms, softmax, rotation and sums are float32; matrix products and the activation
run in ``config.dtype``; between branches the residual stream and its gradient are held in
``config.residual_dtype``; gradients of linear maps are summed in ``config.reduce_dtype``.
The names on the parameters mean something only to mesh.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from nepa_jax.mesh import constrain
from nepa_jax.models.attention import attend
from nepa_jax.models.linear import affine, affine_parts, affine_scaled
from nepa_jax.models.norms import LayerNorm, layer_norm
from nepa_jax.models.rope import RopeTable, normalize_and_rotate, rotate
from nepa_jax.models.side_by_side import attend_apart, images_per_row


@dataclass(frozen=True)
class BlockConfig:
    """What a stack of transformer blocks needs to know."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    mlp: str = "gelu"  # or "swiglu", "geglu"
    qkv_bias: bool = True
    qk_norm: bool = False
    qk_norm_affine: bool = False
    qk_norm_bias: bool = False  # only where the norm is affine
    layer_scale_init: float | None = None
    drop_path_rate: float = 0.0
    norm_eps: float = 1e-6
    init: str = "xavier"  # or "normal"
    dtype: str = "float32"
    residual_dtype: str = "float32"
    reduce_dtype: str = "float32"
    remat: str = "none"

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        return round(self.embed_dim * self.mlp_ratio)

    @property
    def gated(self) -> bool:
        return self.mlp in GATES

    @property
    def has_qk_norm_bias(self) -> bool:
        """PyTorch's LayerNorm has a bias only beside a weight."""
        return self.qk_norm_affine and self.qk_norm_bias


# "xavier": MAE's released code, on matrices as stored there (q, k, v fused). "normal": NEPA's; its
# truncation is at ±2, a hundred standard deviations, so that it is a plain normal.
KERNEL_INITS = {
    "xavier": nnx.initializers.xavier_uniform(),
    "normal": nnx.initializers.normal(0.02),
}
TOKEN_INIT = nnx.initializers.normal(0.02)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU by erf (PyTorch's form; jax.nn.gelu goes through the slower erfc)."""
    return (x * _normal_cdf(x.astype(jnp.float32))).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5))


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    x32 = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * x32 * x32) * (2.0 * jnp.pi) ** -0.5
    return ((grad * (_normal_cdf(x32) + x32 * density)).astype(x.dtype),)


# Keeps the input alone: plain differentiation would store three arrays of the MLP's width.
gelu.defvjp(_gelu_forward, _gelu_backward)


class Linear(nnx.LinearGeneral):
    """A linear map over the last ``len(inputs)`` axes, with named kernel axes and mostly a bias."""

    def __init__(
        self, inputs: tuple[int, ...], outputs: tuple[int, ...], axes: tuple[str, ...],
        config: BlockConfig, rngs: nnx.Rngs, *, bias: bool = True,
    ):  # fmt: skip
        super().__init__(
            inputs, outputs, axis=tuple(range(-len(inputs), 0)), dtype=jnp.dtype(config.dtype),
            use_bias=bias, kernel_init=KERNEL_INITS[config.init], kernel_metadata={"axes": axes},
            bias_metadata={"axes": axes[len(inputs) :]}, rngs=rngs,
        )  # fmt: skip
        self.output_axes = axes[len(inputs) :]
        self.reduce_dtype = config.reduce_dtype

    def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """[B, T, *inputs] -> [B, T, *outputs]; with a ``scale`` [D] times that, in float32."""
        if scale is None:
            y = affine(*self._operands(x), self.reduce_dtype)
        else:
            y = affine_scaled(*self._operands(x), scale, self.reduce_dtype)
        return constrain(y, "batch", None, *self.output_axes)

    def parts(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """[B, T, D] -> an array [B, T, H, head_dim] for each place along the first axis of the outputs."""
        parts = affine_parts(*self._operands(x), self.reduce_dtype)
        return tuple(constrain(part, "batch", None, *self.output_axes[1:]) for part in parts)

    def _operands(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        bias = self.bias[...] if self.use_bias else jnp.zeros(self.out_features)
        return x.astype(self.dtype), self.kernel[...], bias


class Attention(nnx.Module):
    """Multi-head self-attention with optional q/k LayerNorm (over head_dim, before the rotation)."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        dim, heads, head_dim = config.embed_dim, config.num_heads, config.head_dim
        self.qkv = Linear(
            (dim,), (3, heads, head_dim), ("embed", "qkv", "heads", "head_dim"), config, rngs,
            bias=config.qkv_bias,
        )  # fmt: skip
        self.out = Linear((heads, head_dim), (dim,), ("heads", "head_dim", "embed"), config, rngs)
        parts = dict(scale=config.qk_norm_affine, bias=config.has_qk_norm_bias)
        norms = [
            layer_norm(head_dim, config.norm_eps, rngs, **parts) if config.qk_norm else None
            for _ in "qk"
        ]
        self.q_norm, self.k_norm = norms
        self.config = config

    def __call__(
        self, x: jax.Array, rope: RopeTable | None, causal: bool, images: int,
        scale: jax.Array | None,
    ) -> jax.Array:  # fmt: skip
        """[B, T, D] -> [B, T, D], ``images`` a row; with a ``scale`` [D] times that, in float32."""
        with jax.named_scope("qkv"):
            q, k, v = self.qkv.parts(x)
        with jax.named_scope("qk_norm_rope"):
            q, k = (
                self.prepared(y, norm, rope) for y, norm in ((q, self.q_norm), (k, self.k_norm))
            )
        with jax.named_scope("attention"):
            mixed = attend_apart(q, k, v, images) if images > 1 else attend(q, k, v, causal)
        with jax.named_scope("attn_out"):
            return self.out(checkpoint_name(mixed, "attention"), scale)

    def prepared(self, x: jax.Array, norm: LayerNorm | None, rope: RopeTable | None) -> jax.Array:
        """Queries or keys [B, T, H, head_dim], normed and rotated as the model has it."""
        if rope is not None:
            if norm is None:
                return rotate(x, rope).astype(x.dtype)
            return normalize_and_rotate(x, norm.affine, rope, norm.epsilon)
        return x if norm is None else norm(x).astype(x.dtype)


# What the gate of a gated MLP goes through (Shazeer 2020).
GATES: dict[str, Callable[[jax.Array], jax.Array]] = {"swiglu": jax.nn.silu, "geglu": gelu}


class Mlp(nnx.Module):
    """Two linear maps around exact GELU, or three around a gate."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        dim, hidden = config.embed_dim, config.mlp_dim
        self.up = Linear((dim,), (hidden,), ("embed", "mlp"), config, rngs)
        if config.gated:
            self.gate = Linear((dim,), (hidden,), ("embed", "mlp"), config, rngs)
        self.down = Linear((hidden,), (dim,), ("mlp", "embed"), config, rngs)
        self.config = config

    def __call__(self, x: jax.Array, scale: jax.Array | None) -> jax.Array:
        """[B, T, D] -> [B, T, D]; with a ``scale`` [D] times that, in float32."""
        with jax.named_scope("mlp_up"):
            hidden = checkpoint_name(self.up(x), "mlp_up")
            if self.config.gated:
                gate = checkpoint_name(self.gate(x), "mlp_up")
        with jax.named_scope(self.config.mlp):
            hidden = GATES[self.config.mlp](gate) * hidden if self.config.gated else gelu(hidden)
        with jax.named_scope("mlp_down"):
            return self.down(hidden, scale)


def drop_path(branch: jax.Array, rate: jax.Array, keys: jax.Array) -> jax.Array:
    """Drops whole branches [B, T, D] image by image, scaling up the rest (Huang et al. 2016)."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate))(keys)
    scales = (kept / (1.0 - rate))[:, None, None]
    return (branch.reshape(len(keys), -1, branch.shape[2]) * scales).reshape(branch.shape)


def add(stream: jax.Array, branch: jax.Array) -> jax.Array:
    """In float32, rounded once to the dtype of the residual stream."""
    return (stream.astype(jnp.float32) + branch.astype(jnp.float32)).astype(stream.dtype)


class Block(nnx.Module):
    """Pre-norm block: x + scale · attention(norm x), then x + scale · mlp(norm x)."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.norm1 = layer_norm(config.embed_dim, config.norm_eps, rngs)
        self.attn = Attention(config, rngs)
        self.norm2 = layer_norm(config.embed_dim, config.norm_eps, rngs)
        self.mlp = Mlp(config, rngs)
        if config.layer_scale_init is not None:
            scale = jnp.full(config.embed_dim, config.layer_scale_init, jnp.float32)
            self.layer_scale1 = nnx.Param(scale, axes=("norm",))
            self.layer_scale2 = nnx.Param(scale, axes=("norm",))
        self.config = config

    def __call__(
        self,
        x: jax.Array,
        rope: RopeTable | None,
        causal: bool,
        images: int,
        drop: Callable[[jax.Array, int], jax.Array],
    ) -> jax.Array:
        """[B, T, D] in the stream's dtype -> the same; ``drop`` is applied to both branches."""
        scaled = self.config.layer_scale_init is not None
        scales = (self.layer_scale1[...], self.layer_scale2[...]) if scaled else (None, None)
        with jax.named_scope("norm1"):
            normed = self.norm1(x)
        x = add(x, drop(self.attn(normed, rope, causal, images, scales[0]), 0))
        with jax.named_scope("norm2"):
            normed = self.norm2(x)
        return add(x, drop(self.mlp(normed, scales[1]), 1))


# What the backward pass may keep instead of computing it again.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names("product", "norm_stats"),
    "names": jax.checkpoint_policies.save_only_these_names(
        "qkv", "attention", "mlp_up", "norm_stats"
    ),
}


def stack_blocks(config: BlockConfig, rngs: nnx.Rngs) -> Block:
    """``depth`` independently initialised blocks, every parameter with a leading layer axis."""

    @nnx.split_rngs(splits=config.depth)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def create(rngs: nnx.Rngs) -> Block:
        return Block(config, rngs)

    return create(rngs)


def run_blocks(
    blocks: Block, x: jax.Array, rope: RopeTable | None = None, *,
    causal: bool = False, keys: jax.Array | None = None,
    collect: Callable[[jax.Array], jax.Array] | None = None, side_by_side: bool = False,
) -> tuple[jax.Array, jax.Array | None]:  # fmt: skip
    """Runs a stack by scan, so that compile time does not grow with depth.

    Args:
        x: float32 [B, T, D].
        rope: tables for the T tokens, or None.
        causal: token t sees tokens 0 … t only.
        keys: one random key per image [B] to train with drop path; None: no drop path.
        collect: what to give of every block's output [B, T, D], in the stream's dtype; None: nothing.
        side_by_side: let images share rows where that saves a TPU time; without rope or causal.

    Returns:
        The last output [B, T, D], and what ``collect`` gives of every block's, [depth, …]; float32.
    """
    config, shape = blocks.config, x.shape
    images = images_per_row(*shape[:2]) if side_by_side else 1
    dropping = keys is not None and config.drop_path_rate > 0

    def body(
        x: jax.Array, layer: tuple[Block, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array | None]:
        block, rate, index = layer

        def drop(branch: jax.Array, which: int) -> jax.Array:
            if not dropping:
                return branch
            return drop_path(
                branch, rate, jax.vmap(jax.random.fold_in, (0, None))(keys, 2 * index + which)
            )

        x = block(x, rope, causal, images, drop)
        return x, None if collect is None else collect(x.reshape(shape))

    if config.remat != "none":
        body = jax.checkpoint(body, policy=REMAT_POLICIES[config.remat], prevent_cse=False)
    rates = jnp.linspace(0.0, config.drop_path_rate, config.depth)
    x = x.astype(config.residual_dtype).reshape(-1, images * shape[1], shape[2])
    x = constrain(x, "batch", None, None)
    x, collected = jax.lax.scan(body, x, (blocks, rates, jnp.arange(config.depth)))
    x, collected = jax.tree.map(lambda y: y.astype(jnp.float32), (x, collected))
    return x.reshape(shape), collected
