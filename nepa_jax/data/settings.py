"""The settings of a loader, and what can be wrong with them."""

from dataclasses import dataclass

from nepa_jax.data.augment import POLICIES
from nepa_jax.data.decode import MODES
from nepa_jax.data.resize import INTERPOLATIONS, RESIZES
from nepa_jax.data.transforms import AUGMENTS


@dataclass(frozen=True)
class LoaderConfig:
    """What a batch is made of, and how.

    batch_size counts all hosts. image_size is (height, width). `augment`, `crop_scale`,
    `crop_pct`, `interpolation`, `flip`, `decode`, `policy` and `erase_prob` are those of
    Transform. num_workers is the number of processes (0: none but this one), each with
    num_threads threads. read_ahead is in batches, and at least as many as are under way at a
    time: one more than there are processes. Neither these three nor the number of hosts change
    a batch. A share of undecodable examples above max_bad_rate is an error.
    """

    path: str
    split: str = "train"
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    batch_size: int = 256
    seed: int = 0
    augment: str = "random_crop"
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    flip: bool = True
    num_workers: int = 0
    num_threads: int = 8
    read_ahead: int = 2
    max_bad_rate: float = 0.001
    shuffle: bool = True
    decode: str = "exact"
    policy: str = "none"
    erase_prob: float = 0.0


CHOICES = {
    "channels": MODES,
    "augment": AUGMENTS,
    "interpolation": INTERPOLATIONS,
    "decode": RESIZES,
    "policy": POLICIES,
}

# These belong to the model in the config of a run.
PLACES = {"image_size": "model.image_size", "channels": "model.in_channels"}


def problems(config: LoaderConfig, num_hosts: int = 1) -> list[str]:
    """One line for each wrong value, as `data.key = value: problem; try ...`."""
    wrong = {
        key: f"not a choice; try {' or '.join(map(str, known))}"
        for key, known in CHOICES.items()
        if getattr(config, key) not in known
    }
    wrong |= {key: text for key, (good, text) in _ranges(config, num_hosts).items() if not good}
    return [
        f"{PLACES.get(key, f'data.{key}')} = {getattr(config, key)}: {text}"
        for key, text in wrong.items()
    ]


def _ranges(config: LoaderConfig, num_hosts: int) -> dict[str, tuple[bool, str]]:
    scale = config.crop_scale
    share = "must be a share of the examples; try 0 to 1"
    return {
        "image_size": (min(config.image_size) > 0, "must be above 0; try 224"),
        "batch_size": (
            config.batch_size > 0 and config.batch_size % num_hosts == 0,
            f"must be positive and a multiple of the {num_hosts} hosts; try {256 * num_hosts}",
        ),
        "crop_scale": (
            len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1,
            "must be (low, high) with 0 < low <= high <= 1; try (0.2, 1.0)",
        ),
        "crop_pct": (0 < config.crop_pct <= 1, "must be above 0 and up to 1; try 0.875"),
        "num_workers": (config.num_workers >= 0, "must not be negative; try 0"),
        "num_threads": (config.num_threads > 0, "must be positive; try one per core"),
        "read_ahead": (config.read_ahead > 0, "must be positive; try 2"),
        "max_bad_rate": (0 <= config.max_bad_rate <= 1, share),
        "erase_prob": (0 <= config.erase_prob <= 1, share),
    }
