"""A config in which every choice is made, and the lengths of a run in steps."""

from collections.abc import Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from nepa_jax.config.keys import BOUNDS, MAX_STEPS, UNITS, refuse
from nepa_jax.config.saved import with_later_keys
from nepa_jax.data.settings import DATA, LoaderConfig
from nepa_jax.models.sizes import image_size


def resolve(config: ConfigDict, num_examples: int, platform: str) -> ConfigDict:
    """A frozen copy in which every choice is made: steps for durations, lr, dtype, image size.

    Args:
        num_examples: images in the training split, for durations in epochs.
        platform: ``cpu``, ``gpu`` or ``tpu``.

    Raises:
        UserError: a length is less than a step, or the warm-up as long as the run.
    """
    refuse(length_problems(config, num_examples))
    resolved = with_later_keys(ConfigDict(config.to_dict()))
    with resolved.ignore_type():
        for length in _lengths(config):
            del resolved[length.section][length.key]
            steps = length.steps(config.data.batch_size, num_examples)
            resolved[length.section][f"{length.stem}_steps"] = steps
        resolved.model.image_size = image_size(config)
        resolved.optim.lr = peak_lr(config)
        if config.run.dtype == "auto":
            resolved.run.dtype = "float32" if platform == "cpu" else "bfloat16"
    return resolved


def peak_lr(config: ConfigDict) -> float:
    optim = config.optim
    return optim.base_lr * config.data.batch_size / 256 if optim.lr is None else optim.lr


def loader_config(config: ConfigDict) -> LoaderConfig:
    """What the loader needs to know of a run."""
    return LoaderConfig(
        **{key: config.data[key] for key in DATA},
        image_size=image_size(config),
        channels=config.model.in_channels,
        pixel_mean=tuple(config.model.pixel_mean),
        seed=config.run.seed,
    )


def evaluation_data(config: ConfigDict) -> LoaderConfig:
    """How images are cut for a model outside of training: the centre crop of its own size."""
    return LoaderConfig(
        image_size=image_size(config),
        channels=config.model.in_channels,
        crop="center",
        crop_pct=config.data.crop_pct,
        interpolation=config.data.interpolation,
        flip=False,
    )


class Length(NamedTuple):
    """A length or an interval of a run, such as ``schedule.total_epochs``."""

    section: str
    stem: str
    unit: str
    value: float

    @property
    def key(self) -> str:
        return f"{self.stem}_{self.unit}"

    def __str__(self) -> str:
        return f"{self.section}.{self.key} = {self.value:g}"

    def steps(self, batch_size: int, num_examples: int) -> int:
        """An epoch is num_examples // batch_size steps, as with loaders that drop the last batch."""
        if self.unit == "epochs":
            return round(self.value * (num_examples // batch_size))
        return round(self.value / batch_size if self.unit == "examples" else self.value)


def _lengths(config: ConfigDict) -> Iterator[Length]:
    for section in ("schedule", "checkpoint", "log", "evals"):
        for key, value in config[section].items():
            stem, _, unit = key.rpartition("_")
            if unit in UNITS and stem in BOUNDS[section]:
                yield Length(section, stem, unit, value)


def length_problems(config: ConfigDict, num_examples: int | None) -> list[str]:
    """Lengths below a step or beyond counting, and a warm-up that does not fit the run.

    Without ``num_examples`` lengths in epochs are compared with one another only.
    """
    images, problems = config.data.batch_size, []
    if images < 1:
        return []
    lengths = {f"{length.section}.{length.stem}": length for length in _lengths(config)}
    known = [each for each in lengths.values() if num_examples or each.unit != "epochs"]
    for length in known:
        steps = length.steps(images, num_examples or 0)
        if length.value > 0 and steps < 1:
            shortest = f"{length.section}.{length.stem}_steps=1"
            problems.append(f"{length}: is less than a step of {images} images; try {shortest}")
        elif steps > MAX_STEPS:
            problems.append(f"{length}: is more than {MAX_STEPS:,} steps; try fewer")
    total, warmup = lengths["schedule.total"], lengths["schedule.warmup"]
    if problems:
        return problems
    if total in known and warmup in known:
        steps = total.steps(images, num_examples or 0)
        fits = warmup.steps(images, num_examples or 0) < steps
        fitting = f"warmup_steps={steps // 20}"
    else:  # of the same unit, or not to be compared yet
        fits = warmup.unit != total.unit or warmup.value < total.value
        fitting = f"warmup_epochs={total.value / 20:g}"
    if fits:
        return []
    return [
        f"{warmup}: the warm-up is not shorter than the run of {total}; try "
        f"--config.schedule.{fitting}, 5 % of the run"
    ]
