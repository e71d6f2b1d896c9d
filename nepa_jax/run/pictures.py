"""What an objective draws of some images while it trains; the run's numbers stay what they are."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from nepa_jax.config import evaluation_data
from nepa_jax.data.batches import BatchMaker, Task
from nepa_jax.data.records import RecordSet
from nepa_jax.mesh import replicated
from nepa_jax.objectives.base import Metrics, Objective
from nepa_jax.objectives.pictured import Pictures
from nepa_jax.run.loggers.background import Background
from nepa_jax.step import TrainState

NUM_IMAGES = 6
Draw = Callable[[nnx.Module], Pictures]


class PicturesHook:
    """Draws every n steps, and hands the pictures on when the metrics of the step are.

    The loop waits for the device meanwhile: where devices are threads of several processes, two
    programs at a time could each wait for the other's sums.
    """

    def __init__(self, every: int, draw: Draw, loggers: Sequence[Background]):
        self._every = every
        self._draw = draw
        self._loggers = loggers
        self._pending: deque[tuple[int, np.ndarray]] = deque()

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        self._hand_on(step - 2)
        if step % self._every == 0:
            jax.block_until_ready(metrics)
            drawn = jax.block_until_ready(self._draw(state.model))
            if self._loggers:
                self._pending.append((step, page(drawn)))

    def close(self, state: TrainState) -> None:
        self._hand_on(int(state.step))

    def _hand_on(self, until: int) -> None:
        while self._pending and self._pending[0][0] <= until:
            for logger in self._loggers:
                logger.picture(*self._pending[0])
            self._pending.popleft()


def fixed_images(config: ConfigDict, records: RecordSet) -> np.ndarray:
    """The same images at every step, from all over the split: uint8 [n, H, W, C], cut as for evaluation."""
    count = min(NUM_IMAGES, len(records))
    numbers = np.linspace(0, len(records) - 1, count).astype(np.int64)
    data = replace(evaluation_data(config), seed=config.run.seed, num_threads=1)
    make = BatchMaker(data, records, substitute=True)
    return make(Task(0, numbers), np.empty((count, *make.image_shape), np.uint8)).batch["image"]


def drawing(objective: Objective, model: nnx.Module, images: np.ndarray, mesh: Mesh) -> Draw:
    """The objective's ``pictures``, compiled for a model laid out as this one; all devices do the same.

    Args:
        objective: has ``pictures``.
        model: shapes and shardings.
        images: uint8 [n, H, W, C], the same on every host.
        mesh: of the run.
    """
    everywhere = replicated(mesh)
    shown = jax.make_array_from_callback(images.shape, everywhere, lambda index: images[index])
    draw = jax.jit(objective.pictures, out_shardings=everywhere).lower(model, shown).compile()
    return lambda model: draw(model, shown)


# The page

LEAST = 120  # px, of a tile's longer side: smaller ones are enlarged by a whole factor
GAP = 6  # px
LINE = 13  # px, of a title


def page(drawn: Pictures) -> np.ndarray:
    """A row for each image, its tiles under their titles: uint8 [H', W', 3]."""
    tiles = np.asarray(jax.device_get(drawn.tiles))
    factor = math.ceil(LEAST / max(tiles.shape[2:4]))
    tiles = tiles.repeat(factor, axis=2).repeat(factor, axis=3)
    rows, columns, height, width, _ = tiles.shape
    top = GAP + LINE * max(title.count("\n") + 1 for title in drawn.titles)
    made = np.full((top + rows * (height + GAP), columns * (width + GAP) - GAP, 3), 255, np.uint8)
    spaced = made[top:, :].reshape(rows, height + GAP, -1, 3)
    for column in range(columns):
        left = column * (width + GAP)
        spaced[:, :height, left : left + width] = tiles[:, column]
    return _titled(made, drawn.titles, width + GAP)


def _titled(page: np.ndarray, titles: Sequence[str], step: int) -> np.ndarray:
    image = Image.fromarray(page)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=LINE - 3)
    for column, title in enumerate(titles):
        pen.multiline_text((column * step + 1, 1), title, fill=(60, 60, 60), font=font, spacing=1)
    return np.asarray(image)
