"""nepa_jax: self-supervised pretraining of vision transformers in JAX.

    import nepa_jax

    loaded = nepa_jax.load("runs/nepa")          # a workdir, an export, other people's weights
    features = loaded.encode(["a.jpg", "b.png"])  # files, PIL images or uint8 pixels
    features.patches, features.cls, features.grid

To train from Python: ``nepa_jax.train.pretrain(nepa_jax.config.load_config("configs/nepa.py:S/16"),
"runs/nepa")``. What is wrong with an input is raised as :class:`UserError`, in one line. All else is
the command line: ``nepa-jax --help``.
"""

from typing import TYPE_CHECKING

from nepa_jax.base.errors import UserError
from nepa_jax.base.version import __version__

if TYPE_CHECKING:
    from nepa_jax.loading import Loaded

__all__ = ["UserError", "__version__", "load"]


def load(
    path: str, *, ema: bool = False, step: int | None = None, objective: str | None = None
) -> "Loaded":
    """Trained weights, ready to encode: ``load(path).encode(images)``.

    Args:
        path: a workdir, one of its checkpoints ``WORKDIR/checkpoints/STEP``, an exported folder, or
            weights of another library (``FILE.pth:mae`` says their format).
        ema: the averaged weights of a workdir.
        step: which checkpoint of a workdir; None: the newest sound one.
        objective: the dotted name of a module of your own, where the files name one that is none of
            this package.

    Raises:
        UserError: there are no such weights, or they do not fit.
    """
    from nepa_jax.loading import load

    return load(path, ema=ema, step=step, objective=objective)
