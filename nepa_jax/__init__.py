"""nepa_jax: self-supervised pretraining of vision transformers in JAX."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nepa_jax.loading import Loaded

__version__ = "0.1.0"


def load(path: str, *, ema: bool = False, step: int | None = None) -> "Loaded":
    """Trained weights from a workdir or an exported folder; see :func:`nepa_jax.loading.load`."""
    from nepa_jax.loading import load

    return load(path, ema=ema, step=step)
