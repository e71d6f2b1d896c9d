"""The tools themselves, those that are installed: a run in two starts, read back as each tool reads it.

The first start does steps 1 to 4; the second one goes on from step 3 and does 4 again, then 5.
"""

import importlib.util
import json
import math
import os
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nepa_jax.run.loggers.opening import open_tool
from nepa_jax.run.loggers.resuming import About
from nepa_jax.run.loggers.tools import Folder, load

CONFIG = {"optim.lr": 0.1, "model.image_size": (16, 16), "data.path": "", "run.init_from": "a|b"}
CONFIG |= {f"many.{number}": number for number in range(150)}
PIXELS = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    """Neither a setting of this machine's nor one that a tool leaves."""
    for name in [name for name in os.environ if name.startswith(("WANDB", "MLFLOW", "TRACKIO"))]:
        monkeypatch.delenv(name)
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        yield


def two_starts(name: str, workdir: Path) -> None:
    load(name, workdir)
    first = open_tool(name, About(workdir, CONFIG, 0))
    for step in (1, 2, 3, 4):
        first.scalars(
            step, {"train/loss": 1 / step, "train/grad_norm": 0.5, "perf/images_per_s": 9.0}
        )
    first.picture(4, PIXELS)
    first.close({"train/loss": 0.25}, True)
    second = open_tool(name, About(workdir, CONFIG | {"optim.lr": 0.2}, 3))
    for step in (4, 5):
        second.scalars(step, {"train/loss": 1 / step, "train/grad_norm": math.nan})
    second.picture(4, PIXELS)  # of a step that is done again, told after a later one
    second.close({"train/loss": 0.2}, True)


def mark(name: str, workdir: Path) -> dict:
    return json.loads((workdir / "loggers" / f"{name}.json").read_text())


LOSSES = [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4, 5)]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    two_starts("tensorboard", tmp_path)
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(each.step, each.value) for each in found.Scalars("train/loss")] == LOSSES
    assert [each.step for each in found.Images("pictures")] == [4]
    config = found.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "| optim.lr | 0.2 |" in config
    assert found.Tensors("summary/text_summary")


def test_mlflow(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("alembic")
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.new").write_bytes(b"of a start that was killed")
    two_starts("mlflow", tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("nepa_jax").experiment_id])
    assert [run.info.run_id for run in runs] == [mark("mlflow", tmp_path)["id"]]
    history = client.get_metric_history(runs[0].info.run_id, "train/loss")
    assert [(each.step, each.value) for each in history] == LOSSES
    params, status = runs[0].data.params, runs[0].info.status
    assert len(params) == len(CONFIG) and params["optim.lr"] == "0.1" and status == "FINISHED"
    files = {path.name: path for path in (tmp_path / "mlflow" / "artifacts").rglob("*.*")}
    assert json.loads(files["config.json"].read_text())["optim.lr"] == 0.2
    assert json.loads(files["summary.json"].read_text()) == {"train/loss": 0.2}
    assert (
        len([name for name in files if name.startswith("pictures") and name.endswith("png")]) == 1
    )


def test_trackio(tmp_path):
    if not importlib.util.find_spec("trackio"):
        pytest.skip("trackio is not installed")
    load("trackio", tmp_path)
    two_starts("trackio", tmp_path)
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute(
            "select run_name, step, metrics from metrics order by id"
        ).fetchall()
        (config,) = connection.execute("select config from configs").fetchone()
    assert {row[0] for row in rows} == {mark("trackio", tmp_path)["id"]}
    values = [(step, json.loads(metrics)) for _, step, metrics in rows]
    losses = [(step, row["train/loss"]) for step, row in values if "train/loss" in row]
    assert losses == LOSSES
    assert [step for step, row in values if "pictures" in row] == [4]
    assert json.loads(config)["optim.lr"] == 0.2


def test_wandb_offline(tmp_path, capfd):
    wandb = pytest.importorskip("wandb")
    two_starts("wandb", tmp_path)
    assert "Steps must be monotonically increasing" not in capfd.readouterr().err
    id = mark("wandb", tmp_path)["id"]
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and all(folder.name.endswith(id) for folder in folders)
    assert wandb.run is None
    rows = [row for folder in folders for row in history(folder / f"run-{id}.wandb")]
    assert [(row["_step"], row["train/loss"]) for row in rows if "train/loss" in row] == LOSSES
    assert [row["_step"] for row in rows if "pictures" in row] == [4]


def history(path: Path) -> Iterator[dict]:
    """The rows of a W&B file: protocol buffers in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    for data in records(path.read_bytes()[7:]):  # after a header of its own
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {each.key or each.nested_key[0]: json.loads(each.value_json) for each in items}


def records(data: bytes) -> Iterator[bytes]:
    """Chunks in blocks of 32 KiB, each after a checksum, its length and its kind: 1 is a whole record."""
    place, record = 0, b""
    while place + 7 <= len(data):
        left = (
            32768 - (place + 7) % 32768
        )  # of the block, whose first begins with the file's header
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # 2 and 3: it goes on
            yield record
            record = b""


def test_pictures_are_files_and_written_again_without_harm(tmp_path):
    from PIL import Image

    for _ in range(2):
        folder = Folder(tmp_path)
        folder.picture(40, PIXELS)
        folder.close({}, True)
    (path,) = (tmp_path / "pictures").iterdir()
    assert path.name == "step_00000040.png"
    np.testing.assert_array_equal(np.asarray(Image.open(path)), PIXELS)
