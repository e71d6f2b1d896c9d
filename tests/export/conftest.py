"""Workdirs of models with random parameters in every place."""

from collections.abc import Callable
from types import ModuleType

import pytest
import variants


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """How the models and their configs are made."""
    return variants


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    return variants.workdirs(tmp_path_factory)
