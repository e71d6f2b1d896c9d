"""Folders of the user's own: made, used again, and refused where others could have been."""

import os
import stat

import pytest

from nepa_jax.base.errors import UserError
from nepa_jax.base.private import open_private, private_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nepa_jax"


def test_a_folder_is_for_its_user_alone(cache):
    folder = private_folder("prepare", "abc")
    assert folder == cache / "prepare" / "abc"
    for each in (cache, cache / "prepare", folder):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700
    (folder / "file").touch()
    assert private_folder("prepare", "abc") == folder and (folder / "file").exists()


def test_the_cache_folder_of_other_programs_parts_is_closed(cache):
    cache.mkdir(parents=True)
    cache.chmod(0o775)
    private_folder("prepare")
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@pytest.mark.trial
@pytest.mark.parametrize("level", ["nepa_jax", "nepa_jax/prepare", "nepa_jax/prepare/abc"])
def test_a_link_is_refused(cache, tmp_path, level):
    (tmp_path / "theirs").mkdir()
    link = tmp_path / "cache" / level
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="is a link, or belongs to another user"):
        private_folder("prepare", "abc")
    assert os.listdir(tmp_path / "theirs") == []


@pytest.mark.trial
def test_the_folder_of_another_user_is_refused(cache, monkeypatch):
    private_folder("prepare")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UserError, match="belongs to another user"):
        private_folder("prepare")


@pytest.mark.trial
def test_a_folder_that_others_can_write_to_is_refused(cache):
    private_folder("prepare").chmod(0o777)
    with pytest.raises(UserError, match="can be written by other users"):
        private_folder("prepare")


@pytest.mark.trial
def test_a_cache_that_cannot_be_made_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        private_folder("prepare")


@pytest.mark.trial
def test_a_planted_link_is_not_opened_and_no_file_is_emptied(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "lock").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic link"):
        open_private(tmp_path / "lock")
    os.close(open_private(precious))
    assert precious.read_text() == "kept"
