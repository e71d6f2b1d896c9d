"""What version 0.1.0 wrote before the rooms: its runs resume, load and export as they did then.

The archive in fixtures holds, written by that version on Python 3.11 and jax 0.10.2: records, runs
of NEPA and MAE stopped after two of four steps, an encoder alone (exported, and imported again), and
in ``expected.npz`` the weights and averages after step 4, the features after step 2, and those of the
encoder.
"""

import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import small

import nepa_jax
from nepa_jax.base.trees import named_leaves
from nepa_jax.config import load_config
from nepa_jax.export.folder import export
from nepa_jax.train import pretrain

ARCHIVE = Path(__file__).parent / "fixtures" / "earlier.tar.gz"


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """What is expected; the runs lie in the current folder, as they did when they were written."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    with np.load("expected.npz") as arrays:
        return dict(arrays)


def features(path: str) -> np.ndarray:
    return nepa_jax.load(path).encode(small.images(2, seed=7)).patches


@pytest.mark.parametrize("method", ["nepa", "mae"])
def test_a_run_goes_on_from_its_checkpoint_and_ends_where_it_would_have(earlier, method, capsys):
    pretrain(load_config(method), method)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "resuming" in line)
    # The run's lr is decided; of what it was made from a saved config no longer speaks.
    assert re.match(r"resuming at step 2, with optim.base_lr: \S+ -> null \(from", line), line
    for name, ema in (("model", False), ("ema", True)):
        leaves = named_leaves(nepa_jax.load(method, ema=ema).model)
        wanted = {
            key: value for key, value in earlier.items() if key.startswith(f"{method}/{name}/")
        }
        assert bool(wanted) == (method == "nepa" or not ema)
        for key, value in wanted.items():
            leaf = leaves[key.removeprefix(f"{method}/{name}/")]
            np.testing.assert_allclose(leaf, value, rtol=1e-4, atol=2e-6, err_msg=key)


def test_its_weights_load_and_export(earlier):
    for method in ("nepa", "mae"):
        np.testing.assert_allclose(features(method), earlier[f"{method}/features_2"], atol=2e-5)
    export("nepa", "nepa", "exported")
    np.testing.assert_allclose(features("exported"), earlier["nepa/features_2"], atol=2e-5)


@pytest.mark.parametrize("path", ["encoder", "encoder_export"])
def test_an_encoder_alone_still_says_what_it_is(earlier, path):
    loaded = nepa_jax.load(path)
    assert loaded.config.objective.name == "nepa_jax.objectives.encoder"
    np.testing.assert_allclose(features(path), earlier["encoder/features"], atol=2e-5)
