"""Configs: load a recipe, apply overrides, list every mistake at once, resolve units, save."""

from nepa_jax.config.keys import flat_keys, refuse
from nepa_jax.config.loading import load_config
from nepa_jax.config.overrides import apply_overrides
from nepa_jax.config.recipes import (
    CONFIGS,
    base_config,
    parse_arg,
    parse_choice,
    recipe_files,
    recipe_module,
)
from nepa_jax.config.resolution import evaluation_data, loader_config, resolve
from nepa_jax.config.saved import from_json, to_json
from nepa_jax.config.validation import (
    has_own_mesh,
    model_problems,
    require_labels,
    validate,
)

__all__ = [
    "CONFIGS",
    "apply_overrides",
    "base_config",
    "evaluation_data",
    "flat_keys",
    "from_json",
    "has_own_mesh",
    "load_config",
    "loader_config",
    "model_problems",
    "parse_arg",
    "parse_choice",
    "recipe_files",
    "recipe_module",
    "refuse",
    "require_labels",
    "resolve",
    "to_json",
    "validate",
]
