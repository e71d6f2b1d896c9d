"""The verbs ``nepa-jax pretrain`` and ``finetune``: one loop, by configs that learn without labels or with.

Loads nothing until a verb runs.
"""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nepa_jax.base.errors import UserError
from nepa_jax.base.verbs import SEVERAL_HOSTS, option, verb

if TYPE_CHECKING:
    from ml_collections import ConfigDict

ConfigOf = Callable[[Namespace], "ConfigDict"]
Train = Callable[["ConfigDict", str], None]
Draw = Callable[[Path], list[str]]  # of what a run found at its end; gives the names of the files

OPTIONS = (
    option(
        "--config", required=True, help="FILE.py[:argument]; --config.KEY=VALUE overrides a key"
    ),
    option("--workdir", help="folder for checkpoints and metrics"),
    option(
        "--print-config", action="store_true", help="print the config, as a file that runs again, and stop"
    ),
    SEVERAL_HOSTS,
)  # fmt: skip


def add_verbs(verbs: Any, config_of: ConfigOf, train: Train, draw: Draw) -> None:
    """Adds both.

    Args:
        verbs: of the command line.
        config_of: its arguments' recipe with overrides.
        train: runs a config in a workdir: the loop stands above this room.
        draw: makes the pictures of what a run predicted at its end.
    """
    verb(
        verbs, "pretrain", "pretrain a model; the same command resumes",
        "--config=configs/nepa.py:S/16 --config.data.path=DIR --workdir=W; `nepa-jax configs` lists the "
        "recipes, and configs/base.py every key",
        *OPTIONS,
    )(partial(pretrain, config_of=config_of, train=train))  # fmt: skip
    verb(
        verbs, "finetune", "train a pretrained encoder on labels; the same command resumes",
        "--config=configs/finetune.py:nepa,B/14 --config.run.init_from=W --config.data.path=DIR "
        "--workdir=W2",
        *OPTIONS,
    )(partial(finetune, config_of=config_of, train=train, draw=draw))  # fmt: skip


def pretrain(args: Namespace, config_of: ConfigOf, train: Train) -> None:
    if trained(args, config_of(args), train):
        from nepa_jax.hosts.agree import say

        say(f"next: nepa-jax export {args.workdir} --format=... --out=DIR")


def finetune(args: Namespace, config_of: ConfigOf, train: Train, draw: Draw) -> None:
    from nepa_jax.config import require_labels

    config = config_of(args)
    require_labels(config)
    if not trained(args, config, train):
        return
    import jax

    from nepa_jax.hosts.agree import say

    if jax.process_index() == 0:
        say(f"      {args.workdir}/eval: {', '.join(draw(Path(args.workdir) / 'eval'))}")
    exported = not config.objective.name.endswith(".segment")  # which no library's format holds
    following = "export {} --format=... --out=DIR" if exported else "report {} --out=report.html"
    say(f"next: nepa-jax {following.format(args.workdir)}")


def trained(args: Namespace, config: "ConfigDict", train: Train) -> bool:
    """Trains; whether that is done, and not just printed or stopped."""
    from nepa_jax.config import has_own_mesh, to_json, validate

    if args.print_config:
        print(to_json(config))
        return False
    if args.workdir is None:
        raise UserError("--workdir is missing; give a folder for checkpoints and metrics")
    if not has_own_mesh(config):  # which is checked with the rest, and that needs jax
        validate(config)
    from nepa_jax.hosts.agree import say
    from nepa_jax.hosts.start import failing_together, start

    start(args.coordinator, args.processes, args.process, args.workdir)
    with failing_together():
        train(config, args.workdir)
    done = (Path(args.workdir) / "DONE").exists()
    if done:
        say(f"done: {args.workdir}/checkpoints, {args.workdir}/metrics.jsonl")
    return done
