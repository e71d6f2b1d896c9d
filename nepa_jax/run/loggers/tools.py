"""The tools, each behind the same three calls. What they write lies in the workdir if nothing says other."""

import importlib
import logging
import os
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from nepa_jax.config.keys import LOGGERS
from nepa_jax.run.loggers.background import CLOSE_S, Logger
from nepa_jax.run.loggers.resuming import About
from nepa_jax.run.metrics import Scalars

PROJECT = "nepa_jax"  # what a tool files runs under
PICTURES = "pictures"  # their name in a tool, and their folder in a workdir


class Tool(Logger, Protocol):
    """A logger that knows a run by an id."""

    id: str
    where: str  # it is to be seen, for the user
    rewinds: bool  # whether it forgets steps after the one that it is opened at


def new_id() -> str:
    return uuid.uuid4().hex[:8]


class TensorBoard:
    """Event files in ``WORKDIR/tensorboard``, by the tensorboardX package."""

    rewinds = True

    def __init__(self, run: About, id: str):
        from tensorboardX import SummaryWriter

        folder = run.workdir / "tensorboard"
        self.id, self.where = id or run.name, f"tensorboard --logdir={folder}"
        self._step = run.start
        # Files are named by the second: two starts within one must not write into the same.
        suffix = f".{run.start}"
        self._writer = SummaryWriter(str(folder), purge_step=run.start + 1, filename_suffix=suffix)
        self._table("config", run.config)

    def _table(self, name: str, values: Mapping[str, Any]) -> None:
        """As the Markdown that TensorBoard draws."""
        rows = "\n".join(f"| {key} | {value} |" for key, value in values.items())
        self._writer.add_text(name, f"| key | value |\n| --- | --- |\n{rows}", self._step)

    def scalars(self, step: int, scalars: Scalars) -> None:
        self._step = step
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def picture(self, step: int, pixels: np.ndarray) -> None:
        self._writer.add_image(PICTURES, pixels, step, dataformats="HWC")
        self._writer.flush()

    def close(self, summary: Scalars, ended_well: bool) -> None:
        self._table("summary", summary)
        self._writer.close()


class WandB:
    """Weights & Biases: offline in ``WORKDIR/wandb``, unless WANDB_MODE says ``online``."""

    rewinds = False

    def __init__(self, run: About, id: str):
        import wandb

        self.id = id or new_id()
        quiet = wandb.Settings(
            mode=os.environ["WANDB_MODE"],
            silent=True,
            console="off",
            disable_git=True,
            finish_timeout=CLOSE_S,
        )
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=run.name, id=self.id,
            dir=str(run.workdir), config=dict(run.config), resume="allow", settings=quiet,
            allow_val_change=True,
        )  # fmt: skip
        folder = run.workdir / "wandb"
        self.where = (
            self._run.url
            or f"offline in {folder}; send it with `wandb sync {folder}/offline-run-*`"
        )

    def scalars(self, step: int, scalars: Scalars) -> None:
        self._run.log(dict(scalars), step=step)

    def picture(self, step: int, pixels: np.ndarray) -> None:
        # A later step may have been logged, and it refuses those before.
        self._run.log({PICTURES: self._image(pixels)}, step=max(step, self._run.step))

    def close(self, summary: Scalars, ended_well: bool) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=0 if ended_well else 1)


class MLflow:
    """A database in ``WORKDIR/mlflow``, unless MLFLOW_TRACKING_URI names a server."""

    rewinds = False

    def __init__(self, run: About, id: str):
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        folder, uri = run.workdir.resolve() / "mlflow", os.environ.get("MLFLOW_TRACKING_URI")
        artifacts, self.where = None, uri
        if not uri:
            uri, artifacts = f"sqlite:///{_database(folder)}", f"file://{folder}/artifacts"
            self.where = f"mlflow ui --backend-store-uri={uri}"
        self._metric, self._client = Metric, MlflowClient(uri)
        self.id = id or self._new_run(run, artifacts)
        self._client.update_run(self.id, status="RUNNING")
        self._client.log_dict(self.id, dict(run.config), "config.json")

    def _new_run(self, run: About, artifacts: str | None) -> str:
        """With the config as parameters, which cannot change later."""
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = (
            found.experiment_id if found else self._client.create_experiment(name, artifacts)
        )
        id = self._client.create_run(experiment, run_name=run.name).info.run_id
        params = [Param(key, str(value)) for key, value in run.config.items()]
        for first in range(0, len(params), 100):  # more at a time are refused
            self._client.log_batch(id, params=params[first : first + 100])
        return id

    def scalars(self, step: int, scalars: Scalars) -> None:
        now = round(1000 * time.time())
        metrics = [self._metric(name, value, now, step) for name, value in scalars.items()]
        self._client.log_batch(self.id, metrics=metrics, synchronous=True)

    def picture(self, step: int, pixels: np.ndarray) -> None:
        self._client.log_image(self.id, pixels, key=PICTURES, step=step, synchronous=True)

    def close(self, summary: Scalars, ended_well: bool) -> None:
        self._client.log_dict(self.id, dict(summary), "summary.json")
        self._client.set_terminated(self.id, "FINISHED" if ended_well else "FAILED")


def _database(folder: Path) -> Path:
    """MLflow's own, made under another name first: one that is half made it refuses for good."""
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # tells of each table
    database = folder / "mlflow.db"
    if not database.exists():
        folder.mkdir(exist_ok=True)
        begun = database.with_suffix(".new")
        begun.unlink(missing_ok=True)
        MlflowClient(f"sqlite:///{begun}")
        begun.rename(database)
    return database


class Trackio:
    """A database in ``WORKDIR/trackio``, unless TRACKIO_DIR, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL is set."""

    rewinds = False

    def __init__(self, run: About, id: str):
        import trackio

        self.id = id or f"{run.name}-{new_id()}"
        self._image = trackio.Image
        self._run = trackio.init(
            project=PROJECT, name=self.id, config=dict(run.config), resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        self.where = f"TRACKIO_DIR={os.environ['TRACKIO_DIR']} trackio show"

    def scalars(self, step: int, scalars: Scalars) -> None:
        self._run.log(dict(scalars), step=step)

    def picture(self, step: int, pixels: np.ndarray) -> None:
        self._run.log({PICTURES: self._image(pixels)}, step=step)

    def close(self, summary: Scalars, ended_well: bool) -> None:
        self._run.finish()


class Folder:
    """The pictures as files, ``WORKDIR/pictures/step_00000100.png``."""

    def __init__(self, workdir: Path):
        self._folder = workdir / PICTURES
        self._folder.mkdir(exist_ok=True)

    def scalars(self, step: int, scalars: Scalars) -> None: ...

    def picture(self, step: int, pixels: np.ndarray) -> None:
        path = self._folder / f"step_{step:08}.png"
        replacement = path.with_suffix(".tmp")
        Image.fromarray(pixels).save(replacement, "PNG")
        replacement.replace(path)

    def close(self, summary: Scalars, ended_well: bool) -> None: ...


TOOLS: dict[str, Callable[[About, str], Tool]] = {
    "tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow, "trackio": Trackio,
}  # fmt: skip


def load(name: str, workdir: Path) -> None:
    """Imports a tool's package, with what its settings are where the environment says nothing.

    Raises:
        Exception: whatever a package raises that is broken.
    """
    settings = {
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TRACKIO_DIR": str(workdir.resolve() / "trackio"),
    }
    for key, value in settings.items():
        if key.startswith(name.upper()):
            os.environ.setdefault(key, value)
    importlib.import_module(LOGGERS[name])


def let_go(name: str) -> None:
    """Ends the process of W&B's own, for whose server Python would wait at its end without limit."""
    for stat in Path("/proc").glob("[0-9]*/stat") if name == "wandb" else ():
        with suppress(OSError):
            command, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            if command == "wandb-core" and int(rest.split()[1]) == os.getpid():
                os.kill(int(stat.parent.name), signal.SIGKILL)
