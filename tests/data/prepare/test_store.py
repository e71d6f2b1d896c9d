"""Sets that go to remote storage: what is on this machine meanwhile, and storage that fails."""

import errno
import hashlib
import os

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from nepa_jax.base.errors import UnavailableError, UserError
from nepa_jax.cli import main
from nepa_jax.data.prepare.split import prepare
from nepa_jax.data.prepare.store import Store


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "cache" / "nepa_jax" / "prepare"


@pytest.fixture
def out(tmp_path):
    return f"memory://{tmp_path.name}/set"


def names(out):
    return sorted(
        path.rsplit("/", 1)[1] for path in fsspec.filesystem("memory").ls(out, detail=False)
    )


def test_nothing_stays_on_this_machine(tree, tmp_path, cache, out):
    prepare(str(tree), out, num_shards=2)
    assert os.listdir(cache) == [] and os.listdir(tmp_path / "tmp") == []


@pytest.mark.trial
def test_what_others_plant_for_it_is_not_touched(tree, tmp_path, out):
    """A folder with a name that others can guess, in a place where they can write."""
    digest = hashlib.sha256(f"{out} train".encode()).hexdigest()[:16]
    planted = tmp_path / "tmp" / f"nepa-jax-prepare-{digest}"
    (planted / "unfinished").mkdir(parents=True)
    (tmp_path / "precious").write_text("kept")
    (planted / "lock").symlink_to(tmp_path / "precious")
    (planted / "unfinished" / "source.tar").symlink_to(tmp_path / "precious")
    (planted / "other.bin.done.json").write_text("{}")
    fsspec.filesystem("memory").pipe_file(f"{out}/other.bin", b"kept")
    prepare(str(tree), out, num_shards=1)
    assert (tmp_path / "precious").read_text() == "kept"
    assert names(out) == ["dataset.json", "other.bin", "train-00000-of-00001.array_record"]


@pytest.mark.trial
@pytest.mark.parametrize("name", ["prepare", "prepare/DIGEST"])
def test_a_link_in_place_of_the_folder_is_refused(tree, tmp_path, cache, out, name):
    digest = hashlib.sha256(f"{out} train".encode()).hexdigest()[:16]
    (tmp_path / "theirs").mkdir()
    link = cache.parent / name.replace("DIGEST", digest)
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="is a link, or belongs to another user"):
        prepare(str(tree), out)
    assert os.listdir(tmp_path / "theirs") == []


@pytest.mark.trial
@pytest.mark.parametrize("where", ["local", "remote"])
def test_a_link_in_place_of_the_lock_is_not_followed(tree, tmp_path, out, where):
    target = str(tmp_path / "out") if where == "local" else out
    scratch = Store(target).scratch("train")
    scratch.mkdir(parents=True, exist_ok=True)
    (tmp_path / "precious").write_text("kept")
    (scratch / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=r"cannot write to .*symbolic link"):
        prepare(str(tree), target)
    assert (tmp_path / "precious").read_text() == "kept"


class HttpError(Exception):
    """As the clients of storages have it, with a number or without."""

    def __init__(self, message, code=None):
        super().__init__(message)
        self.code = code


class NoCredentialsError(Exception):
    """Of a client that is not signed in."""


@pytest.mark.trial
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError("Connection reset by peer"), UnavailableError),
        (ConnectionError("Name or service not known"), UnavailableError),
        (TimeoutError(), UnavailableError),
        (HttpError("backend", 503), UnavailableError),
        (HttpError("slow down", 429), UnavailableError),
        (HttpError("Anonymous caller does not have access", 401), UserError),
        (HttpError("no such bucket", "404"), UserError),
        (OSError("Forbidden: https://storage/bucket"), UserError),
        (NoCredentialsError("Unable to locate credentials"), UserError),
        (FileNotFoundError("The specified bucket does not exist"), UserError),
        (PermissionError("Access Denied"), UserError),
        (OSError(errno.ENOSPC, "No space left on device"), UserError),
        (NotImplementedError(), UserError),
    ],
)
@pytest.mark.parametrize("call", ["exists", "put_file"])
def test_storage_that_fails(tree, out, monkeypatch, error, kind, call):
    """What may be possible later is told from what the same command would meet again."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(MemoryFileSystem, call, fail)
    with pytest.raises(kind, match=r"cannot (look at|write) memory://") as told:
        prepare(str(tree), out, num_shards=1)
    assert str(told.value).isprintable()


@pytest.mark.trial
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nowhere://bucket/set", "cannot reach --out=nowhere"),
        ("://set", "no URL"),
        ("gs:/bucket/set", "no URL"),
        ("gs://", "no URL"),
        ("abfs://container/set", "cannot reach --out=abfs"),
    ],
)
def test_a_target_that_cannot_be_reached(tree, target, words):
    with pytest.raises(UserError, match=words):
        prepare(str(tree), target)


@pytest.mark.trial
@pytest.mark.parametrize("contents", [b"", b"\xff", b"[]", b'{"format": "other"}'])
def test_a_damaged_manifest_is_told(tree, out, contents):
    fsspec.filesystem("memory").pipe_file(f"{out}/dataset.json", contents)
    with pytest.raises(UserError, match=r"set/dataset\.json"):
        prepare(str(tree), out)


@pytest.mark.trial
def test_what_is_named_as_next_works(tree, tmp_path, out, capsys):
    main(["data", "prepare", str(tree), f"--out={out}"])
    assert (
        f"next: mount or copy {out}, then: nepa-jax data inspect FOLDER" in capsys.readouterr().out
    )
    main(["data", "prepare", str(tree), f"--out={tmp_path / 'local'}"])
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"next: nepa-jax data inspect {tmp_path / 'local'}"
    main(said.removeprefix("next: nepa-jax ").split())
