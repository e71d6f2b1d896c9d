"""The weights that a run begins with: of the same model, or an encoder's under a new head."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.trees import named_leaves
from nepa_jax.checkpoint.saving import config_changes
from nepa_jax.config import flat_keys
from nepa_jax.formats.constants import class_and_sincos
from nepa_jax.formats.fold import folded, has_layer_scale
from nepa_jax.hosts.agree import say
from nepa_jax.loading import Leaf, Loaded, placed, read
from nepa_jax.models.posemb import resample
from nepa_jax.models.sizes import image_size
from nepa_jax.objectives.base import Objective

# What makes an encoder another one, though some of it would fit.
ARCHITECTURE = (
    "embed_dim", "depth", "num_heads", "mlp_ratio", "mlp", "patch_size", "in_channels", "qkv_bias",
    "qk_norm", "rope_base",
)  # fmt: skip
POSITIONS = "vit/pos_embed"
# Scales of one do nothing: as where there were none.
NEW_SCALES = ("vit/blocks/attn/q_norm/scale", "vit/blocks/attn/k_norm/scale")


def first_weights(
    path: str, target: nnx.Module, config: ConfigDict, objective: Objective
) -> nnx.Module:
    """The weights at ``path`` for step 0, laid out as the target; a teacher begins with them too.

    An objective that stands on an encoder (``CARRIES``, the prefix of its names) takes that alone of
    a model that learned something else, and begins the rest from the seed.

    Args:
        path: what ``nepa_jax.load`` opens.
        config: resolved.

    Raises:
        UserError: there are none, or they do not fit.
    """
    loaded = read(path, ema=config.run.init_ema)
    known = flat_keys(loaded.config)
    changes = [
        change
        for key, change in config_changes(loaded.config, config).items()
        if key.startswith("model.") or (key == "objective.causal" and key in known)
    ]
    leaves = named_leaves(loaded.model)
    carried = Carried(leaves)
    if hasattr(objective, "CARRIES") and not fits(leaves, named_leaves(target)):
        carried = carry(path, loaded, named_leaves(target), config, objective)
        leaves = carried.leaves | begun(objective, config, carried.begin, target)
    weights, at = "average" if config.run.init_ema else "weights", f" of step {loaded.step}" if loaded.step else ""  # fmt: skip
    with_changes = f", with {'; '.join(changes)}" if changes else ""
    say(f"starting from the {weights}{at} of {path}: step 0, fresh optimizer{with_changes}")
    for line in carried.told:
        say(f"  {line}")
    return placed(leaves, target, path)


def fits(found: Mapping[str, Leaf], wanted: Mapping[str, Leaf]) -> bool:
    """Whether these are the same names in the same shapes."""
    shapes = [{name: tuple(leaf.shape) for name, leaf in each.items()} for each in (found, wanted)]
    return shapes[0] == shapes[1]


@dataclass
class Carried:
    """What a new model takes of another one."""

    leaves: dict[str, Leaf]
    begin: list[str] = field(default_factory=list)  # names that begin from the seed
    told: list[str] = field(default_factory=list)  # lines for the user


def carry(
    path: str, loaded: Loaded, wanted: Mapping[str, Leaf], config: ConfigDict, objective: Objective
) -> Carried:
    """Raises UserError if it is another encoder."""
    require_same_encoder(path, loaded.config, config)
    carried = Carried(dict(named_leaves(loaded.model)))
    if has_layer_scale(carried.leaves) and not has_layer_scale(wanted):
        carried.leaves = folded(carried.leaves)
        carried.told.append(
            "LayerScale is folded into the maps before it: model.layer_scale_init = none"
        )
    _carry_positions(path, loaded, carried, config)
    own = {name for name in wanted if not name.startswith(objective.CARRIES)}
    left_out = [
        name for name in carried.leaves
        if not name.startswith(objective.CARRIES) or (name not in wanted and name.startswith("vit/norm/"))
    ]  # fmt: skip
    for name in left_out:
        if name not in own or carried.leaves[name].shape != wanted[name].shape:
            del carried.leaves[name]
    carried.begin = [
        name
        for name in wanted
        if name not in carried.leaves and (name in own or name in NEW_SCALES)
    ]
    left_out = [name for name in left_out if name not in carried.leaves]
    if left_out:
        carried.told.append(f"left out: {_parts(left_out)}")
    if carried.begin:
        carried.told.append(f"begins from the seed: {_parts(carried.begin)}")
    return carried


def require_same_encoder(path: str, theirs: ConfigDict, ours: ConfigDict) -> None:
    """Raises UserError with the keys that differ, as they are to be given."""
    differing = [key for key in ARCHITECTURE if theirs.model[key] != ours.model[key]]
    if theirs.model.layer_scale_init is None and ours.model.layer_scale_init is not None:
        differing.append("layer_scale_init")  # the other way round it is folded
    if differing:
        shown = ", ".join(f"model.{key} = {ours.model[key]}" for key in differing)
        remedy = " ".join(
            f"--config.model.{key}={str(theirs.model[key]).lower()}" for key in differing
        )
        raise UserError(
            f"run.init_from = {path}: is another encoder than this config's ({shown}); try {remedy}"
        )


def _carry_positions(path: str, loaded: Loaded, carried: Carried, config: ConfigDict) -> None:
    """Brings the position table to this run's grid, by the rule of the library it comes from."""
    theirs, ours = loaded.config.model.posemb, config.model.posemb
    if theirs != ours and (theirs, ours) != ("sincos", "learned"):
        raise UserError(
            f"model.posemb = {ours}: the weights of {path} have {theirs}; try "
            f"--config.model.posemb={theirs}"
        )
    old, new = grid_of(loaded.config), grid_of(config)
    from_to = f"{old[0]} x {old[1]} to {new[0]} x {new[1]}"
    if ours != "learned":
        if old != new and (ours == "sincos" or config.model.rope_base is not None):
            carried.told.append(
                f"positions are computed for {new[0]} x {new[1]} patches, not {from_to.split(' to ')[0]}"
            )
        return
    table = carried.leaves.get(POSITIONS)
    if table is None:
        table = class_and_sincos(old, config.model.embed_dim)
        carried.told.append("the sine-cosine position table is trained from here on")
    if old != new:
        table = np.asarray(table)
        patches = resample(table[1:], old, new, loaded.resampling)
        table = np.concatenate([table[:1], patches])
        carried.told.append(f"position table resized from {from_to} patches ({loaded.resampling})")
    carried.leaves[POSITIONS] = table


def grid_of(config: ConfigDict) -> tuple[int, int]:
    """Patches down and across."""
    height, width = image_size(config)
    return height // config.model.patch_size, width // config.model.patch_size


def begun(
    objective: Objective, config: ConfigDict, names: Iterable[str], target: nnx.Module
) -> dict[str, Leaf]:
    """Some parameters of a fresh model, where ``target`` has them."""
    names = set(names)

    def fresh() -> dict[str, Leaf]:
        leaves = named_leaves(objective.init_model(config, nnx.Rngs(config.run.seed)))
        return {name: leaves[name] for name in names}

    shardings = {
        name: leaf.sharding for name, leaf in named_leaves(target).items() if name in names
    }
    return jax.jit(fresh, out_shardings=shardings)() if names else {}


def _parts(names: Iterable[str]) -> str:
    """Names in short: what stands on the encoder by its first word."""
    words = [name if name.startswith("vit/") else name.partition("/")[0] for name in names]
    words = [word.removesuffix("/scale").removesuffix("/bias") for word in words]
    return ", ".join(dict.fromkeys(words))
