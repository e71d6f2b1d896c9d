"""An export next to files of others: it replaces what it wrote itself, and touches nothing else."""

import json

import pytest
import small
from flax import nnx

from nepa_jax.base.errors import UserError
from nepa_jax.checkpoint.meta import Provenance
from nepa_jax.checkpoint.weights import save_weights
from nepa_jax.export.folder import export
from nepa_jax.export.own_files import FILES
from nepa_jax.formats.sources import PROVENANCE
from nepa_jax.objectives.base import load_objective


def save_run(folder, **more) -> str:
    """Weights of a small NEPA, as a run would leave them."""
    config = small.resolved("nepa", **more)
    model = load_objective(config.objective.name).init_model(config, nnx.Rngs(0))
    save_weights(str(folder), 0, model, Provenance.of(config, "none"))
    return str(folder)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> str:
    return save_run(tmp_path_factory.mktemp("run"))


@pytest.mark.trial
def test_a_folder_of_others_is_refused_by_name(workdir, tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        export(workdir, "nepa", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_files_put_beside_an_export_stay(workdir, tmp_path):
    written = export(workdir, "nepa", str(tmp_path)).files
    others = {"thesis.tex": "years", "mae.pth": "weights"}
    for name, words in others.items():
        (tmp_path / name).write_text(words)
    export(workdir, "nepa", str(tmp_path))
    assert {name: (tmp_path / name).read_text() for name in others} == others
    assert {path.name for path in tmp_path.iterdir()} == {*written, *others}


@pytest.mark.trial
@pytest.mark.parametrize("listed", ["../victim", "thesis.tex", "VICTIM"])
def test_a_hostile_list_removes_nothing(workdir, tmp_path, listed):
    out, victim = tmp_path / "out", tmp_path / "victim"
    export(workdir, "nepa", str(out))
    for path in (victim, out / "thesis.tex"):
        path.write_text("years")
    provenance = json.loads((out / PROVENANCE).read_text())
    name = str(victim) if listed == "VICTIM" else listed
    provenance[FILES] = json.dumps({**json.loads(provenance[FILES]), name: ""})
    (out / PROVENANCE).write_text(json.dumps(provenance))
    export(workdir, "nepa", str(out))
    assert victim.read_text() == (out / "thesis.tex").read_text() == "years"


@pytest.mark.trial
def test_an_edited_card_is_refused_by_name(workdir, tmp_path):
    export(workdir, "nepa", str(tmp_path))
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"README\.md was changed"):
        export(workdir, "nepa", str(tmp_path))
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.trial
def test_a_path_of_data_is_no_markup_in_the_card(tmp_path):
    run = save_run(tmp_path / "run", data__path="`x`\n## Install\n<img onerror>")
    export(run, "nepa", str(tmp_path / "out"))
    lines = (tmp_path / "out" / "README.md").read_text().splitlines()
    assert "## Install" not in lines
    (line,) = [line for line in lines if "<img onerror>" in line]
    assert line.startswith("- Data: `` ") and line.endswith(" ``")
