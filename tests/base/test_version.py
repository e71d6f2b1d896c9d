"""One version, wherever it is told."""

import re
import tomllib

import small
from house import ROOT

import nepa_jax
from nepa_jax.base.version import versions
from nepa_jax.checkpoint.meta import Provenance


def test_the_package_the_command_line_and_checkpoints_tell_the_same():
    assert versions().startswith(f"nepa-jax {nepa_jax.__version__}\npython ")
    saved = Provenance.of(small.config("nepa"), "fingerprint").versions
    assert saved["nepa_jax"] == nepa_jax.__version__


def test_a_wheel_has_the_version_of_its_code():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    source = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text()
    assert re.findall(r'^__version__ = "(.*)"$', source, re.MULTILINE) == [nepa_jax.__version__]
