"""What keys of a run, each right by itself, must be together."""

import importlib.util
import sys
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from nepa_jax.base.sections import nearest_divisor
from nepa_jax.config.keys import LOGGERS
from nepa_jax.config.resolution import length_problems, peak_lr
from nepa_jax.models.sizes import MODEL_RULES

Check = Callable[[ConfigDict], list[str]]


def _data_path(config: ConfigDict) -> list[str]:
    if config.data.path:
        return []
    return [
        "data.path is not set: no images to train on; try --config.data.path=DIR, a folder that `nepa-jax data prepare` wrote"
    ]


def _accumulation(config: ConfigDict) -> list[str]:
    images, parts = config.data.batch_size, config.optim.accum_steps
    if images < 1 or images % parts == 0:
        return []
    return [
        f"optim.accum_steps = {parts}: does not divide data.batch_size = {images}; try {nearest_divisor(images, parts)}"
    ]


def _learning_rate(config: ConfigDict) -> list[str]:
    optim, final = config.optim, config.schedule.final_lr
    if (optim.lr is None) == (optim.base_lr is None):
        return [
            f"optim.lr = {optim.lr}, optim.base_lr = {optim.base_lr}: give exactly one; try "
            + ("optim.base_lr=1.5e-4" if optim.lr is None else "optim.base_lr=none")
        ]
    if config.data.batch_size > 0 and final > peak_lr(config):
        return [f"schedule.final_lr = {final}: is above the peak, {peak_lr(config):.3g}; try 0.0"]
    return []


def _layer_decay(config: ConfigDict) -> list[str]:
    optim = config.optim
    if optim.layer_decay is None:
        given = {"layer_decay_end": optim.layer_decay_end, "layer_warmup": optim.layer_warmup}
        return [
            f"optim.{key} = {value}: changes the decay from layer to layer, and there is none; try "
            "optim.layer_decay=0.65"
            for key, value in given.items()
            if value
        ]
    if optim.layer_warmup and optim.layer_decay_end is not None:
        return [
            f"optim.layer_warmup = True: goes by a layer's decay, which optim.layer_decay_end = "
            f"{optim.layer_decay_end} changes; try optim.layer_warmup=false"
        ]
    return []


def _profile(config: ConfigDict) -> list[str]:
    steps = config.log.profile_steps
    if len(steps) == 2 and steps[0] <= steps[1]:
        return []
    return [
        f"log.profile_steps = {steps}: must be (first, one after the last); "
        "try (10, 15), or (0, 0) for none"
    ]


def chosen_loggers(config: ConfigDict) -> list[str]:
    """The names in ``log.loggers``, each once."""
    names = (name.strip() for name in config.log.loggers.split(","))
    return list(dict.fromkeys(name for name in names if name))


def _loggers(config: ConfigDict) -> list[str]:
    chosen, line = chosen_loggers(config), f"log.loggers = {config.log.loggers}: "
    unknown = ", ".join(name for name in chosen if name not in LOGGERS)
    if unknown:
        return [f"{line}there is no logger {unknown}; try some of {', '.join(LOGGERS)}"]
    lacking = [name for name in chosen if not exists(LOGGERS[name])]
    if not lacking:
        return []
    packages = " and ".join(LOGGERS[name] for name in lacking)
    return [
        f"{line}{packages} cannot be found; try pip install 'nepa-jax[{','.join(lacking)}]', or leave "
        f"{', '.join(lacking)} out"
    ]


def _online_layers(config: ConfigDict) -> list[str]:
    depth = config.model.depth
    if all(1 <= abs(layer) <= depth for layer in config.evals.layers):
        return []
    return [
        f"evals.layers = {config.evals.layers}: heads stand on layers 1 … {depth}, or -1 for the last; "
        f"try ({depth},), or () for a choice"
    ]


def _online_split(config: ConfigDict) -> list[str]:
    if not config.evals.online or config.evals.test_split != config.data.split:
        return []
    return [
        f"evals.test_split = {config.evals.test_split}: these images are trained on (data.split); try "
        "another, or --config.evals.online=false"
    ]


# A rule is asked only if its keys are right by themselves.
RULES: dict[Check, tuple[str, ...]] = {
    **MODEL_RULES,
    _data_path: ("data.path",),
    _accumulation: ("data.batch_size", "optim.accum_steps"),
    _learning_rate: ("optim.lr", "optim.base_lr", "schedule.final_lr", "data.batch_size"),
    _layer_decay: ("optim.layer_decay", "optim.layer_decay_end", "optim.layer_warmup"),
    _profile: ("log.profile_steps",),
    _loggers: ("log.loggers",),
    _online_layers: ("evals.layers", "model.depth"),
    _online_split: ("evals.online", "evals.test_split", "data.split"),
}


def broken_rules(config: ConfigDict, wrong: Mapping[str, str], prefix: str = "") -> list[str]:
    problems = []
    for rule, keys in RULES.items():
        if all(key.startswith(prefix) and key not in wrong for key in keys):
            problems += rule(config)
    lengths = ("schedule.", "log.", "checkpoint.", "evals.", "data.")
    if not prefix and not any(key.startswith(lengths) for key in wrong):
        problems += length_problems(config, None)
    return problems


def exists(module: str) -> bool:
    """Whether it can be found; what fails in a package around it is told when it is imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as error:
        return not f"{module}.".startswith(f"{error.name}.")
    except Exception:  # of the package's own code
        return module in sys.modules or "." in module
