"""Shared by tests of evaluation: features and unfinished heads of these tests alone, one small run."""

from collections.abc import Iterator

import pytest
import small


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A file's tests share what they keep, and find nothing of anybody else's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of a small NEPA, as a run would leave them."""
    return small.write_run(tmp_path_factory.mktemp("run"), "nepa")
