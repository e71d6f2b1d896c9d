"""The folder of a run: odd ones are told before anything is lost."""

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from nepa_jax.base.errors import UserError
from nepa_jax.run.goodput import Goodput
from nepa_jax.run.workdir import compiled_programs_kept, lost_checkpoints, writable_folder


@pytest.mark.trial
@pytest.mark.parametrize("name", ["metrics.jsonl", "goodput.json", "config.json", "DONE", "run.lock"])  # fmt: skip
def test_a_folder_in_place_of_a_file_is_told(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a folder; move it away"):
        writable_folder(str(tmp_path))


@pytest.mark.trial
def test_a_file_in_place_of_a_folder_is_told(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UserError, match="checkpoints is a file; move it away"):
        writable_folder(str(tmp_path))


@pytest.mark.trial
def test_trying_to_write_leaves_nothing(tmp_path):
    writable_folder(str(tmp_path / "a" / "b"))
    assert not list((tmp_path / "a" / "b").iterdir())


def test_a_run_killed_before_its_first_checkpoint_may_begin_again(tmp_path):
    account = Goodput(tmp_path / "goodput.json")
    account.begin(0, lambda: 0.0)
    account.write(7)
    assert lost_checkpoints(tmp_path, Goodput(tmp_path / "goodput.json")) == ""


@pytest.mark.trial
def test_one_that_had_a_checkpoint_may_not(tmp_path):
    account = Goodput(tmp_path / "goodput.json")
    account.begin(0, lambda: 0.0)
    account.write(7, saved_step=5)
    account.write(9)
    again = Goodput(tmp_path / "goodput.json")
    again.begin(0, lambda: 0.0)
    again.write(1)  # the sign does not go away
    problem = lost_checkpoints(tmp_path, Goodput(tmp_path / "goodput.json"))
    assert "checkpoints are gone" in problem and "step 5" in problem and "--workdir" in problem


@pytest.mark.trial
def test_one_that_is_done_may_not(tmp_path):
    (tmp_path / "DONE").write_text("9\n")
    assert "DONE is there" in lost_checkpoints(tmp_path, Goodput(tmp_path / "goodput.json"))


@pytest.fixture
def no_cache_yet(monkeypatch, tmp_path):
    """What jax would be told to use as its cache."""
    told: dict[str, str] = {}
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", None, raising=False)
    monkeypatch.setattr(jax.config, "update", lambda name, value: told.update({name: value}))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return told


@pytest.mark.trial
def test_programs_are_kept_for_the_user_not_in_the_workdir(no_cache_yet, tmp_path):
    with compiled_programs_kept():
        (folder,) = no_cache_yet.values()
    assert folder.startswith(str(tmp_path / "cache" / "nepa_jax" / "programs"))
    assert no_cache_yet == {"jax_compilation_cache_dir": None}
    assert (tmp_path / "cache" / "nepa_jax").stat().st_mode & 0o077 == 0


@pytest.mark.trial
def test_programs_of_others_are_not_read(no_cache_yet, tmp_path, monkeypatch, capsys):
    (tmp_path / "cache").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache" / "nepa_jax").symlink_to(tmp_path / "elsewhere")
    with compiled_programs_kept():
        pass
    assert not no_cache_yet and "compiled programs are not kept" in capsys.readouterr().err


def test_the_callers_programs_are_not_kept(tmp_path, monkeypatch):
    """A cache that is in use stays in use after jax has forgotten its folder, unless reset."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = {
        "jax_compilation_cache_dir": None,
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    former = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    reset_cache()
    with compiled_programs_kept():
        jax.jit(lambda x: x + 3)(1.0)
    kept = sorted(tmp_path.rglob("*-cache"))
    jax.jit(lambda x: x + 5)(1.0)
    for name, value in former.items():
        jax.config.update(name, value)
    assert sorted(tmp_path.rglob("*-cache")) == kept != []
