"""How the heads of a probe are trained, and on what: as its paper does, or as asked for."""

from collections.abc import Mapping
from dataclasses import dataclass

from nepa_jax.base.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """How the heads of a probe are trained, and on what."""

    pool: str  # or "none": all patch tokens
    rates: tuple[float, ...]  # per 256 images of a batch
    epochs: int
    batch_size: int  # or the number of training images, if that is smaller
    warmup: float  # share of the epochs
    augmented: bool  # images are cut at random and go through the encoder; else features are stored


@dataclass(frozen=True)
class Usual:
    """What a probe's paper takes."""

    rates: str  # per 256 images, with commas
    epochs: int
    batch_size: int
    warmup: float  # share of the epochs
    protocol: Mapping[str, str]

    def recipe(
        self, pool: str, epochs: int | None, batch_size: int | None, rates: str | None, augment: str
    ) -> Recipe:
        """With what is asked for in its place; None: as the paper. Raises UserError for rates that are none."""
        return Recipe(
            pool=pool,
            rates=rates_of(rates or self.rates),
            epochs=epochs or self.epochs,
            batch_size=batch_size or self.batch_size,
            warmup=self.warmup,
            augmented=augment == "crop",
        )


def rates_of(text: str) -> tuple[float, ...]:
    """Reads ``--rates=0.05,0.1,0.2``.

    Raises:
        UserError: these are no positive numbers.
    """
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate < 1e6 for rate in rates) or len(set(rates)) < len(rates):
        raise UserError(
            f"--rates={text}: give learning rates per 256 images, different and above 0, such as "
            "--rates=0.05,0.1,0.2"
        )
    return rates
