"""The table of model sizes. Free of jax, so that configs load in no time."""

from nepa_jax.errors import UserError

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
