"""Who may import whom: the table of tests/house.py, read from the source; and what a start loads."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import house
import pytest
from house import PACKAGE, ROOMS, files, import_graph, imported, may_import, room_of

# Libraries that are one room's affair; the package needs nothing of PyTorch's where it is imported.
ONLY_IN = {"grain": "data", "orbax": "checkpoint", "tensorstore": "checkpoint"}
NEVER_AT_THE_TOP = {
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "tensorboardX",
    "wandb",
    "mlflow",
    "trackio",
    "gcsfs",
    "pyarrow",
}
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_MODULES_AT_THE_ROOT = 350, 50, 10


@pytest.mark.parametrize("module", files())
def test_a_module_imports_only_what_its_room_may(module):
    if not module:  # the package itself: what users call, imported when they do
        assert import_graph()[module] == {"base.errors", "base.version", "loading"}
        return
    room = room_of(module)
    assert room, f"{module} stands in no room of the table in tests/house.py"
    for target in import_graph()[module]:
        to = room_of(target)
        allowed = to == room or to in may_import(room)
        assert allowed, f"{module} imports {target or 'the whole package'}"


def test_a_module_that_others_may_have_without_its_room_has_no_more_than_them():
    """``data.settings`` is open to the config; so nothing else of its room may come with it."""
    for name in (name for name in ROOMS if "." in name):
        reached, todo = set(), [name]
        while todo:
            new = import_graph()[todo.pop()] - reached
            reached |= new
            todo += new
        assert {room_of(module) for module in reached} <= may_import(name)


def test_no_import_goes_in_a_circle():
    list(TopologicalSorter(import_graph()).static_order())  # raises CycleError


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_one_rooms_affair(library):
    for module, path in files().items():
        names = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
        assert library not in names or f"{module}.".startswith(f"{ONLY_IN[library]}."), module


def test_what_an_installation_may_lack_is_imported_where_it_is_asked_for():
    for module, path in files().items():
        outside = ast.Module([n for n in ast.parse(path.read_text()).body if not is_code(n)], [])
        assert not {name.split(".")[0] for name in imported(outside)} & NEVER_AT_THE_TOP, module


def is_code(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def test_the_picture_shows_what_is_imported():
    assert house.PICTURE.read_text() == house.drawn(), "draw it anew: python tests/house.py"


# Sizes


def test_a_newcomer_finds_few_modules_at_the_root():
    modules = [path.name for path in PACKAGE.glob("*.py")]
    assert len(modules) <= MOST_MODULES_AT_THE_ROOT, modules


def functions(path: Path) -> dict[str, int]:
    """The number of lines of every function in a file."""
    return {
        f"{path.relative_to(PACKAGE)}: {node.name}": node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_a_file_and_its_functions_are_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES
    long = {k: n for k, n in functions(path).items() if n > MOST_LINES_OF_A_FUNCTION}
    assert not long


# Who knows what


def test_mesh_axes_are_named_in_one_place():
    for module, path in files().items():
        if module != "mesh":
            assert "PartitionSpec" not in path.read_text(), f"{module} places arrays on axes itself"


def test_models_know_of_the_mesh_only_an_activations_axes_and_how_many_images_a_device_has():
    known = {"nepa_jax.mesh.constrain", "nepa_jax.mesh.rows_per_device"}
    for path in (PACKAGE / "models").glob("*.py"):
        names = imported(ast.parse(path.read_text()))
        assert {n for n in names if n.startswith("nepa_jax.mesh.")} <= known


# What a start loads


def loaded(code: str, *arguments: str) -> set[str]:
    """The modules that a fresh Python has loaded after some code."""
    code += "\nprint('loaded', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=PACKAGE.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {*done.stdout.rpartition("loaded ")[2].split()}


VERB = """
import sys
from nepa_jax.cli import main
try:
    main(sys.argv[2:])
except SystemExit as end:
    assert end.code == int(sys.argv[1]), end.code
"""


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (0, ["--help"]),
        (0, ["pretrain", "--help"]),
        (2, ["pretrain", "--config=no/such/file.py", "--workdir=w"]),
        (2, ["pretrain", "--config=configs/nepa.py:XXL", "--workdir=w"]),
        (2, ["pretrain", "--config=configs/nepa.py", "--config.optim.lrr=1", "--workdir=w"]),
        (2, ["pretrain", "--nope"]),
    ],
    ids=str,
)
def test_help_and_mistakes_are_answered_without_jax(code, arguments):
    """A command line that takes seconds to say what is wrong is not used twice."""
    slow = {"jax", "flax", "orbax", "grain", "cv2", "numpy", "rich"}
    assert not loaded(VERB, str(code), *arguments) & slow


def test_training_loads_no_formats_verbs_or_plots():
    found = loaded("import sys, nepa_jax.train")
    assert "jax" in found and not found & {"matplotlib", "skimage", "sklearn", *NEVER_AT_THE_TOP}
    rooms = {room_of(name.removeprefix("nepa_jax.")) for name in found if "nepa_jax." in name}
    assert "checkpoint" in rooms
    assert not rooms & {"formats", "export", "visualize", "demo", "bench", "cli"}
