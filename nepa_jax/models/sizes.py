"""The table of model sizes, and what is wrong with a model. Free of jax, so that configs load in no time."""

from collections.abc import Callable

from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.sections import nearest_divisor

# Width, depth, heads and MLP ratio. Ti, S: Touvron et al. 2021 (DeiT), table 1; B, L, H: Dosovitskiy
# et al. 2021 (ViT), table 1; g: Zhai et al. 2022 (Scaling ViT), table 2, whose MLP has 6144 units.
SIZES: dict[str, dict[str, int | float]] = {
    "Ti": dict(embed_dim=192, depth=12, num_heads=3, mlp_ratio=4.0),
    "S": dict(embed_dim=384, depth=12, num_heads=6, mlp_ratio=4.0),
    "B": dict(embed_dim=768, depth=12, num_heads=12, mlp_ratio=4.0),
    "L": dict(embed_dim=1024, depth=24, num_heads=16, mlp_ratio=4.0),
    "H": dict(embed_dim=1280, depth=32, num_heads=16, mlp_ratio=4.0),
    "g": dict(embed_dim=1408, depth=40, num_heads=16, mlp_ratio=6144 / 1408),
}


def parse_variant(variant: str) -> dict[str, int | float]:
    """Reads a size and patch side such as ``"L/14"`` into model fields.

    Returns:
        ``embed_dim``, ``depth``, ``num_heads``, ``mlp_ratio`` and ``patch_size`` (px).

    Raises:
        UserError: the size is not in the table or the patch side is not a positive integer.
    """
    size, _, patch = variant.partition("/")
    if size not in SIZES:
        raise UserError(f"size {size!r} in {variant!r} is unknown; choose from {', '.join(SIZES)}")
    if not patch.isdecimal() or int(patch) < 1:
        raise UserError(f"patch side {patch!r} in {variant!r} is no number; write e.g. {size}/16")
    return {**SIZES[size], "patch_size": int(patch)}


MAX_PARAMETERS = 1e11  # four times the largest ViT there is
MAX_PATCHES = 65_536


def image_size(config: ConfigDict) -> tuple[int, int]:
    """Height and width in px."""
    size = config.model.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def patch_problems(config: ConfigDict) -> list[str]:
    model, size, patch = config.model, image_size(config), config.model.patch_size
    if any(side % patch for side in size):
        near = [max(round(side / patch), 1) * patch for side in size]
        return [
            f"model.patch_size = {patch}: does not divide model.image_size = {model.image_size}; "
            f"try model.image_size={near[0] if near[0] == near[1] else tuple(near)}"
        ]
    patches = size[0] // patch * (size[1] // patch)
    if patches > MAX_PATCHES:
        return [
            f"model.patch_size = {patch}: cuts model.image_size = {model.image_size} into {patches:,} "
            f"patches, of {MAX_PATCHES:,} at most; try a larger one"
        ]
    return []


def head_problems(config: ConfigDict) -> list[str]:
    dim, heads = config.model.embed_dim, config.model.num_heads
    if dim % heads:
        return [
            f"model.num_heads = {heads}: does not divide embed_dim = {dim}; try {nearest_divisor(dim, heads)}"
        ]
    if config.model.rope_base is not None and dim // heads % 4:
        return [
            f"model.num_heads = {heads}: rotary needs a head width that 4 divides, not {dim // heads}; "
            "try another num_heads or rope_base=none"
        ]
    return []


def sincos_problems(config: ConfigDict) -> list[str]:
    dim = config.model.embed_dim
    if config.model.posemb != "sincos" or dim % 4 == 0:
        return []
    return [
        f"model.embed_dim = {dim}: sine-cosine positions need a multiple of 4; try {dim // 4 * 4 + 4}"
    ]


def pixel_problems(config: ConfigDict) -> list[str]:
    model = config.model
    return [
        f"model.{key} = {model[key]}: needs one value per channel; try {(0.5,) * model.in_channels}"
        for key in ("pixel_mean", "pixel_std")
        if len(model[key]) != model.in_channels
    ]


def parameter_problems(config: ConfigDict) -> list[str]:
    model = config.model
    hidden = round(model.embed_dim * model.mlp_ratio)
    matrices = 2 if model.mlp == "gelu" else 3
    count = model.depth * model.embed_dim * (4 * model.embed_dim + matrices * hidden)
    if hidden < 1:
        return [f"model.mlp_ratio = {model.mlp_ratio}: makes an MLP without units; try 4.0"]
    if count > MAX_PARAMETERS:
        return [
            f"model.embed_dim = {model.embed_dim}: {count / 1e9:,.0f} billion parameters at model.depth = "
            f"{model.depth}, of {MAX_PARAMETERS / 1e9:.0f} at most; try a size that `nepa-jax configs` lists"
        ]
    return []


# A rule is asked only if its keys are right by themselves.
MODEL_RULES: dict[Callable[[ConfigDict], list[str]], tuple[str, ...]] = {
    patch_problems: ("model.image_size", "model.patch_size"),
    head_problems: ("model.embed_dim", "model.num_heads", "model.rope_base"),
    sincos_problems: ("model.embed_dim", "model.posemb"),
    pixel_problems: ("model.pixel_mean", "model.pixel_std", "model.in_channels"),
    parameter_problems: ("model.depth", "model.embed_dim", "model.mlp_ratio", "model.mlp"),
}
