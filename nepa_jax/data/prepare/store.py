"""Where a prepared set goes: a folder of this machine, or one that fsspec reaches (gs://...)."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nepa_jax.base.errors import UnavailableError, UserError, fails_again, in_short
from nepa_jax.base.private import private_folder
from nepa_jax.data.manifest import MANIFEST, check_manifest, read_manifest

URL_LIKE = re.compile(r"[A-Za-z0-9+.-]*:/")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.*[^/]/*")

# Errors of storage that the same command would meet again, beside those of the system: by their
# kinds, the numbers of HTTP, and the words that the clients of storages begin theirs with.
_KINDS = (ImportError, ValueError, TypeError, AttributeError, NotImplementedError)
_HTTP = frozenset((400, 401, 403, 404, 405, 409, 412))
_WORDS = ("credential", "auth", "forbidden", "denied", "nosuchbucket", "invalid")


class Store:
    """The folder `out`. Files come into it whole: by a rename here, by an upload elsewhere.

    All that reaches it raises UserError if there is no way to do so, such as for want of a right
    or a bucket, and UnavailableError if it may be possible later.
    """

    def __init__(self, out: str) -> None:
        self.out = out
        self._remote = _file_system(out) if URL_LIKE.match(out) else None

    @property
    def name(self) -> str:
        return Path(self.out.rstrip("/")).resolve().name

    def scratch(self, split: str) -> Path:
        """The folder for unfinished work; the same one when the work is taken up again.

        Raises UserError if others could have put something into it.
        """
        if self._remote is None:
            return Path(self.out, f".prepare-{split}")
        digest = hashlib.sha256(f"{self.out.rstrip('/')} {split}".encode()).hexdigest()[:16]
        return private_folder("prepare", digest)

    def put(self, file: Path, name: str) -> None:
        """Moves a finished file of the scratch folder to `name`."""
        if self._remote is None:
            os.replace(file, Path(self.out, name))
            return
        with self._reaching("write", name):
            self._remote.put_file(str(file), self._at(name))
        file.unlink()

    def size(self, name: str) -> int | None:
        """The size of the file `name` in bytes; None if there is none."""
        if self._remote is None:
            file = Path(self.out, name)
            return file.stat().st_size if file.is_file() else None
        with self._reaching("look at", name):
            at = self._at(name)
            return self._remote.size(at) if self._remote.exists(at) else None

    def remove(self, name: str) -> None:
        """Removes the file `name`, if it is there."""
        if self._remote is None:
            Path(self.out, name).unlink(missing_ok=True)
        elif self.size(name) is not None:
            with self._reaching("remove", name):
                self._remote.rm(self._at(name))

    def manifest(self) -> dict[str, Any] | None:
        """The contents of dataset.json; None if there is none. Raises UserError if it is odd."""
        if self.size(MANIFEST) is None:
            return None
        if self._remote is None:
            return read_manifest(self.out)
        with self._reaching("read", MANIFEST):
            data = self._remote.cat_file(self._at(MANIFEST))
        return check_manifest(data, f"{self.out}/{MANIFEST}")

    def put_manifest(self, manifest: dict[str, Any], scratch: Path) -> None:
        """Last of all: a data set with a dataset.json is complete."""
        file = scratch / MANIFEST
        file.write_text(json.dumps(manifest, indent=1) + "\n")
        self.put(file, MANIFEST)

    def _at(self, name: str) -> str:
        return f"{self.out.rstrip('/')}/{name}"

    @contextmanager
    def _reaching(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each file system has its own kinds
            what = f"cannot {verb} {self._at(name)}: {in_short(error)}"
            if _comes_again(error):
                raise UserError(
                    f"{what}; check the name of the bucket, the sign-in and the rights"
                ) from error
            raise UnavailableError(
                f"{what}; give the same command again, and it goes on from here"
            ) from error


def _comes_again(error: BaseException) -> bool:
    code = getattr(error, "code", getattr(error, "status", None))
    words = f"{type(error).__name__} {str(error)[:40]}".lower()
    return (
        isinstance(error, _KINDS)
        or fails_again(error)
        or isinstance(error, FileNotFoundError | PermissionError | FileExistsError)
        or str(code) in map(str, _HTTP)
        or any(word in words for word in _WORDS)
    )


def _file_system(out: str) -> Any:
    if not URL.fullmatch(out):
        raise UserError(
            f"--out={out} is no URL: give a folder, or a URL such as gs://bucket/folder"
        )
    import fsspec

    try:
        return fsspec.core.url_to_fs(out)[0]
    except ImportError as error:
        gcs = out.startswith(("gs://", "gcs://"))
        how = "pip install 'nepa-jax[gcs]'" if gcs else "install what it names"
        raise UserError(f"cannot reach --out={out}: {in_short(error)}; {how}") from error
    except Exception as error:  # each file system has its own kinds
        raise UserError(
            f"cannot reach --out={out}: {in_short(error)}; give a folder, or a URL such as "
            "gs://bucket/folder, and sign in to its storage"
        ) from error
