"""The smallest models that have every part: 8 px images, 2 px patches, two blocks."""

from ml_collections import ConfigDict

from nepa_jax.config import base_config

OBJECTIVES = {
    "nepa": dict(name="nepa_jax.objectives.nepa", include_cls=True),
    "mae": dict(
        name="nepa_jax.objectives.mae",
        mask_ratio=0.75,
        norm_pix_loss=True,
        decoder_embed_dim=16,
        decoder_depth=1,
        decoder_num_heads=2,
    ),
}


def tiny_config(method: str) -> ConfigDict:
    """A resolved config of "nepa" or "mae"."""
    config = base_config()
    config.objective = OBJECTIVES[method]
    with config.ignore_type():
        config.model.update(image_size=(8, 8), patch_size=2, embed_dim=16, depth=2, num_heads=2)
        config.model.update(posemb="sincos" if method == "mae" else "none")
        config.model.rope_base = None if method == "mae" else 100.0
        config.run.dtype = "float32"
    return config
