"""What an objective is, and the few things objectives share."""

import importlib
import re
import reprlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import Partial
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError, in_short
from nepa_jax.base.keys import named_key
from nepa_jax.models.vit import ViT
from nepa_jax.objectives.pictured import Pictures

Batch = dict[str, jax.Array]
# Means over the images of a batch. What is no such mean (a spread, say) is a Partial of a function and
# of the means it needs, called when all microbatches are in: nothing logged depends on accum_steps.
Metrics = dict[str, jax.Array | Partial]


class Aux(NamedTuple):
    """What a loss says beside its value."""

    metrics: Metrics  # to log, each as ``train/NAME``
    carry: Any = None  # for ``after_update``: arrays of floats, means over the images of the batch
    # For linear heads that watch (watch.py): of every layer but the embedding a vector of each image,
    # float32 [depth, B, D], through which no gradient goes; None: there are none.
    pooled: jax.Array | None = None


class Features(NamedTuple):
    """What an encoder says of images; ``layer=None`` puts a layer axis in front of both arrays."""

    patches: jax.Array  # float32 [B, N, D], raster order
    cls: jax.Array | None  # float32 [B, D]
    grid: tuple[int, int]


@dataclass(frozen=True)
class Description:
    """The size and cost of a model under an objective."""

    tokens: int  # through the encoder, per image
    parameters: int
    flops: float  # of one training step, per image: 6 per multiply-add of the forward pass


class Alarm(NamedTuple):
    """Something a user should hear of once: when, given what is logged of a step, and what to do."""

    rings: Callable[[Mapping[str, float]], bool]
    text: str


class Objective(Protocol):
    """A module with these functions, found by its dotted name.

    It must have the first four; what a method does not need of the rest, it leaves out.
    """

    def init_model(self, config: ConfigDict, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the modules; every parameter carries the logical names of its axes."""

    def loss(self, model: Any, extra: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Aux]:
        """Pure. All randomness comes from the key, by :func:`image_keys` or ``named_key``.

        Args:
            model: what the loss is differentiated by.
            extra: the objective's own state, None without ``init_extra``; no gradient goes there.
            batch: ``image`` uint8 [B, H, W, C], ``row`` int32 [B], and ``label`` int32 [B] if known;
                one of ``optim.accum_steps`` parts of the step's batch.
            key: of the step.

        Returns:
            A float32 scalar, a mean over the images, and what is to be logged or carried.
        """

    def encode(self, model: Any, images: jax.Array, layer: int | None = -1) -> Features:
        """Deterministic features: layer 0 is the embedding, -1 the last (normed), None all."""

    def describe(self, config: ConfigDict) -> Description:
        """Counts without building anything."""

    def init_extra(self, config: ConfigDict, model: Any) -> Any:
        """A teacher, a centre, a frozen encoder: what lives beside the model, from that of step 0.

        A tree of arrays and modules, saved and sharded as parameters are: by the names of their axes.
        """

    def after_update(self, extra: Any, model: Any, aux: Aux, step: jax.Array) -> Any:
        """How the teacher follows and the centre moves; pure, of the same shapes.

        A step that is thrown away leaves ``extra`` as it was, and so does one that this makes
        infinite or NaN.

        Args:
            extra: as the loss saw it.
            model: after the update.
            aux: of the whole batch.
            step: int32 [], updates tried before this one.
        """

    def problems(self, config: ConfigDict) -> list[str]:
        """What is wrong with its part of a config: ``objective.key = value: …; try …``, each."""

    def data_problems(self, config: ConfigDict, data: Any) -> list[str]:
        """Why this cannot be learned from an opened data set (``labelled``, ``num_classes``)."""

    def pictures(self, model: Any, images: jax.Array) -> Pictures:
        """What to look at while it trains, of images uint8 [B, H, W, C]; pure and deterministic."""

    CARRIES: str
    """Of one that stands on an encoder: the prefix of the names that it takes of a model which learned
    something else; the rest begins anew."""

    def measure(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
        """Of one that learns labels: what is said of each image of a test split, arrays [B, …];
        deterministic. ``prediction`` and ``loss`` of a classifier are written to a file at the end."""

    def means(self, rows: Mapping[str, Any]) -> dict[str, float]:
        """What is logged of these, all images together, as ``eval/NAME``."""

    def window_scores(self, model: Any, extra: Any, images: jax.Array) -> jax.Array:
        """Of one that learns masks: class scores of images as large as those trained on, float32
        [B, h, w, K] of any h and w; deterministic."""

    alarms: Sequence[Alarm]
    """What a user should hear of while it trains."""

    images_apart: bool
    """Whether the loss of an image depends on no other of the batch. Then, under accumulation, each
    device may sum up its own images' gradients first; left out, it may not."""


REQUIRED = ("init_model", "loss", "encode", "describe")
# What a file may make us import.
OURS = re.compile(r"nepa_jax\.objectives\.[a-z][a-z0-9_]*")


def load_objective(name: str) -> Objective:
    """Imports an objective by the dotted module name in the user's own config.

    Raises:
        UserError: no such module, it cannot be imported, or it lacks a required function.
    """
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise UserError(
            f"objective.name = {reprlib.repr(name)}: is no dotted name of a module; "
            "try nepa_jax.objectives.nepa"
        )
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _cannot_import(name, error) from error
        raise UserError(
            f"objective.name = {name!r}: there is no such module; "
            "name one that can be imported, e.g. nepa_jax.objectives.nepa"
        ) from None
    except Exception as error:  # whatever the code of its author raises
        raise _cannot_import(name, error) from error
    missing = [function for function in REQUIRED if not hasattr(module, function)]
    if missing:
        raise UserError(f"objective.name = {name!r}: the module lacks {', '.join(missing)}")
    return module  # type: ignore[return-value]


def saved_objective(config: ConfigDict, source: str, chosen: str | None = None) -> Objective:
    """The objective that a config out of a file names, or the one that the user chose instead.

    To import a module is to run it, and files come from anyone: a name in one is taken for modules
    of this package, and for those that the user's own code or config has imported before.

    Args:
        config: gets the chosen name, so that nothing reads another one later.
        source: the file, for the error.
        chosen: a module that the user names.

    Raises:
        UserError: the file names another module, or as :func:`load_objective`.
    """
    found = config.get("objective")
    name = found.get("name") if isinstance(found, ConfigDict) else None
    if chosen is None and not (
        isinstance(name, str) and (OURS.fullmatch(name) or name in sys.modules)
    ):
        raise UserError(
            f"{source}: objective.name = {reprlib.repr(name)}: files may only name modules of "
            "nepa_jax.objectives; if you trust this one, name it yourself: "
            "--objective=NAME, or nepa_jax.load(path, objective=NAME)"
        )
    if chosen is not None:
        config.objective = ConfigDict({**(found or {}), "name": chosen})
        return load_objective(chosen)
    try:
        return load_objective(name)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _cannot_import(name: str, error: Exception) -> UserError:
    """With the line of its author's file that raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return UserError(
        f"objective.name = {name!r}: cannot be imported: {in_short(error)} "
        f"({place.filename}, line {place.lineno})"
    )


def image_keys(key: jax.Array, batch: Batch, purpose: str) -> jax.Array:
    """One random key per image [B] for a purpose, from its row in the global batch.

    So an image draws the same numbers on any mesh and in any split into microbatches.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(named_key(key, purpose), batch["row"])


def encode_vit(vit: ViT, images: jax.Array, layer: int | None, *, causal: bool) -> Features:
    """Features from one of a ViT's hidden states, the last one after the final norm if it has one.

    Raises:
        UserError: the layer does not exist.
    """
    states = vit.hidden_states(images, causal=causal)
    depth = states.shape[0] - 1
    if layer is not None and not -depth - 1 <= layer <= depth:
        raise UserError(
            f"layer {layer} does not exist; choose -{depth + 1} … {depth} (0 = embedding)"
        )
    if vit.config.final_norm:
        states = jnp.concatenate([states[:-1], vit.norm(states[-1:])])
    tokens = states if layer is None else states[layer]
    return Features(tokens[..., 1:, :], tokens[..., 0, :], vit.grid(images))


@partial(jax.jit, static_argnames=("objective", "layer", "pool"))
def encode(
    objective: Objective,
    model: nnx.Module,
    images: jax.Array,
    layer: int | None,
    pool: Callable[[Features], Any] = lambda features: features,
) -> Any:
    """The features of a model, compiled: what ``pool`` makes of them."""
    return pool(objective.encode(model, images, layer))


InitModel = Callable[[ConfigDict, nnx.Rngs], nnx.Module]


def abstract_model(init_model: InitModel, config: ConfigDict) -> nnx.Module:
    """The shapes and dtypes of a model, without computing anything."""
    return jax.eval_shape(lambda: init_model(config, nnx.Rngs(0)))


def count_parameters(init_model: InitModel, config: ConfigDict) -> int:
    """Number of trained scalars, from shapes alone."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_model(init_model, config)))
