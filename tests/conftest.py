"""Shared by all tests: eight devices on the CPU, quick compiles, small real records."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).parent

# Before jax is imported, and for the processes that tests start. Unoptimised code compiles in a
# third of the time; the cache serves programs that several tests share. NPROC is the size of XLA's
# pool of threads: with as few as there are devices, collectives that wait for each other can keep
# them all (launch/local.py says how).
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = "32"
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
)
if version("jaxlib").startswith("0.10."):  # later ones know no such flag, and need it less
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(TESTS.parent / ".pytest_cache" / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
sys.path.insert(0, str(TESTS))

# A shell that runs the tests in the background ignores these for all its children; tests send them.
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

import pytest  # noqa: E402
import small  # noqa: E402


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Forty labelled 16 px images as prepared records."""
    return small.write_dataset(tmp_path_factory.mktemp("data") / "set", seed=0)


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """How models with random parameters in every place are made, and their configs."""
    import variants

    return variants


@pytest.fixture(scope="session")
def workdir(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A function from a variant's name to a workdir with such a model."""
    return kit.workdirs(tmp_path_factory)


@pytest.fixture(scope="session")
def torch() -> Iterator[ModuleType]:
    """PyTorch, with torchvision importable where its wheel is the one built for CUDA.

    That one declares operators of libraries that are not there; timm and Transformers import it.
    """
    package = pytest.importorskip("torch")
    library = package.library.Library("torchvision", "FRAGMENT")
    while missing := missing_operator():
        library.define(f"{missing}(Tensor x) -> Tensor")
        for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    yield package


@pytest.fixture(scope="session")
def timm(torch):
    """timm; the tests that compare with it are skipped where it cannot be imported."""
    return pytest.importorskip("timm", exc_type=ImportError)


def missing_operator() -> str | None:
    """The operator that importing torchvision asks for in vain, or None."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return None
    except RuntimeError as error:
        return re.search(r"operator torchvision::(\w+) does not exist", str(error))[1]
