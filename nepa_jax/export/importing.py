"""From other libraries' weights to a workdir that fine-tuning and evaluation start from."""

import os
from pathlib import Path
from typing import NamedTuple

from flax import nnx
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError, require_folder
from nepa_jax.checkpoint.meta import Provenance
from nepa_jax.checkpoint.weights import save_weights
from nepa_jax.config import to_json
from nepa_jax.formats.fit import Fit
from nepa_jax.formats.reading import read_model
from nepa_jax.formats.sources import FILES_SAY, Choices, Source, open_source


class ImportReport(NamedTuple):
    """What was imported."""

    names: Fit
    config: ConfigDict


def import_checkpoint(
    path: str,
    name: str,
    workdir: str,
    *,
    choices: Choices = FILES_SAY,
    allow_partial: bool = False,
) -> ImportReport:
    """Writes ``WORKDIR/checkpoints/0`` with the weights of a file or folder, and ``config.json``.

    The checkpoint holds weights alone, without optimizer state or average.

    Args:
        path: a folder with weights and config, or a weight file; also ``FILE#ENTRY``.
        name: the format.
        workdir: must not hold checkpoints yet.
        choices: what holds instead of what the files say.
        allow_partial: give missing parameters fresh values and ignore unexpected ones.

    Raises:
        UserError: the files are damaged, or names or shapes do not fit.
    """
    require_folder(workdir, "--workdir")
    if (Path(workdir) / "checkpoints").exists():
        raise UserError(f"--workdir={workdir}: holds checkpoints already; give a new folder")
    source = open_source(path, name, choices)
    model, names = read_model(source, allow_partial)
    _save(source, model, workdir)
    return ImportReport(names, source.config)


def _save(source: Source, model: nnx.Module, workdir: str) -> None:
    try:
        os.makedirs(workdir, exist_ok=True)
        Path(workdir, "config.json").write_text(to_json(source.config))
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be written ({error.strerror}); give another folder"
        ) from None
    fingerprint = source.metadata.get("nepa_jax.fingerprint", "")
    provenance = Provenance.of(source.config, fingerprint)
    origin = {"imported_from": source.path.name, "imported_format": source.format.name}
    provenance = Provenance(provenance.config, fingerprint, {**provenance.versions, **origin})
    save_weights(workdir, 0, model, provenance)
