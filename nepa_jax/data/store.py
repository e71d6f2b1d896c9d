"""Where a prepared set goes: a folder of this machine, or one that fsspec reaches (gs://...)."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from nepa_jax.data.manifest import MANIFEST, check_manifest, read_manifest
from nepa_jax.errors import UserError


class Store:
    """The folder `out`. Files come into it whole: by a rename here, by an upload elsewhere.

    Raises UserError if there is no way to reach `out`.
    """

    def __init__(self, out: str) -> None:
        self.out = out
        self._remote = None if "://" not in out else _file_system(out)

    @property
    def name(self) -> str:
        return Path(self.out.rstrip("/")).resolve().name

    def scratch(self, split: str) -> Path:
        """The folder for unfinished work; the same one when the work is taken up again."""
        if self._remote is None:
            return Path(self.out, f".prepare-{split}")
        digest = hashlib.sha256(f"{self.out.rstrip('/')} {split}".encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir(), f"nepa-jax-prepare-{digest}")

    def put(self, file: Path, name: str) -> None:
        """Moves a finished file of the scratch folder to `name`."""
        if self._remote is None:
            os.replace(file, Path(self.out, name))
            return
        try:
            self._remote.put_file(str(file), self._at(name))
        except Exception as error:  # each file system has its own kinds
            raise UserError(f"cannot write {self.out}/{name}: {error}") from error
        file.unlink()

    def size(self, name: str) -> int | None:
        """The size of the file `name` in bytes; None if there is none."""
        if self._remote is None:
            file = Path(self.out, name)
            return file.stat().st_size if file.is_file() else None
        return self._remote.size(self._at(name)) if self._remote.exists(self._at(name)) else None

    def remove(self, name: str) -> None:
        """Removes the file `name`, if it is there."""
        if self._remote is None:
            Path(self.out, name).unlink(missing_ok=True)
        elif self.size(name) is not None:
            self._remote.rm(self._at(name))

    def manifest(self) -> dict[str, Any] | None:
        """The contents of dataset.json; None if there is none. Raises UserError if it is odd."""
        if self.size(MANIFEST) is None:
            return None
        if self._remote is None:
            return read_manifest(self.out)
        data = self._remote.cat_file(self._at(MANIFEST))
        return check_manifest(data, f"{self.out}/{MANIFEST}")

    def put_manifest(self, manifest: dict[str, Any], scratch: Path) -> None:
        """Last of all: a data set with a dataset.json is complete."""
        file = scratch / MANIFEST
        file.write_text(json.dumps(manifest, indent=1) + "\n")
        self.put(file, MANIFEST)

    def _at(self, name: str) -> str:
        return f"{self.out.rstrip('/')}/{name}"


def _file_system(out: str) -> Any:
    import fsspec

    try:
        return fsspec.core.url_to_fs(out)[0]
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot reach --out={out}: {error}") from error
