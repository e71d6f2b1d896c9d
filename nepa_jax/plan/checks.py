"""All that can be wrong with a config for so many devices, told in one round."""

from functools import partial

from ml_collections import ConfigDict

from nepa_jax import config as configs
from nepa_jax.mesh import mesh_problems
from nepa_jax.objectives.base import Objective, load_objective


def check_run(config: ConfigDict, objective: Objective, num_devices: int) -> None:
    """Raises UserError: all mistakes of a config, those of its mesh and its objective too."""
    checks = [partial(mesh_problems, num_devices=num_devices)]
    checks += [objective.problems] if hasattr(objective, "problems") else []
    checks += [] if hasattr(objective, "pictures") else [_draws_nothing]
    configs.validate(config, *checks)


def _draws_nothing(config: ConfigDict) -> list[str]:
    """What is wrong where pictures are wanted of an objective without ``pictures``."""
    wanted = {key: value for key, value in config.log.items() if key.startswith("pictures_every_")}
    return [
        f"log.{key} = {value}: {config.objective.name} draws none; try 0"
        for key, value in wanted.items()
        if value
    ]


def check_step(config: ConfigDict, num_devices: int) -> None:
    """The same of a step alone, which needs no data."""
    objective, checked = load_objective(config.objective.name), ConfigDict(config.to_dict())
    checked.data.path = checked.data.path or "not needed"
    check_run(checked, objective, num_devices)
