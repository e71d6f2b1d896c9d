"""Who may import whom: the design's arrows, read from the source."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import nepa_jax

PACKAGE = Path(nepa_jax.__file__).parent

# Package modules that each part must not import, by prefix.
FORBIDDEN = {
    "data": ("models", "objectives", "train", "step", "mesh", "export", "evals"),
    "models": ("data", "objectives", "train", "step", "export", "optim"),
    "objectives": ("data", "mesh", "train", "step", "export", "optim", "checkpoint"),
    "step.py": ("data", "train", "checkpoint", "hooks", "export", "evals"),
    "mesh.py": ("data", "models", "objectives", "step", "train"),
    "optim.py": ("data", "models", "objectives", "step", "train", "mesh"),
    "setup.py": ("export", "evals", "visualize", "scaling", "cli", "train"),
    "train.py": ("export", "evals", "visualize", "scaling", "cli"),
}
ONLY_IN = {
    "grain": ("data",),
    "orbax": ("checkpoint.py", "saved.py"),
    "tensorstore": ("saved_array.py",),
    "torch": ("export/torch_model",),
    "tensorflow": (),
}


def imports(path: Path) -> set[str]:
    """Modules a file imports, at any depth."""
    return imports_of(ast.parse(path.read_text()))


def imports_of(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_it_may(path):
    place = path.relative_to(PACKAGE).as_posix()
    forbidden = next((names for part, names in FORBIDDEN.items() if place.startswith(part)), ())
    for module in imports(path):
        inner = module.removeprefix("nepa_jax.").split(".")[0]
        assert not (module.startswith("nepa_jax.") and inner in forbidden), (
            f"{place} imports {module}"
        )
        top = module.split(".")[0]
        if top in ONLY_IN and not place.startswith(ONLY_IN[top]):
            assert _inside_function(path, top), f"{place} imports {top}"


# Ways out of a room that are meant: they are not followed any further.
OPEN = {("config", "data"), ("models.layers", "mesh"), ("loading", "export")}


def module_of(path: Path) -> str:
    """A file's dotted name below the package; a room's ``__init__`` is the room."""
    dotted = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return dotted.removesuffix(".__init__")


def outer_imports(path: Path) -> set[str]:
    """Modules of the package that are loaded with a file, by their names below it."""
    tree = ast.parse(path.read_text())
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        and not isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    names = {name for name in imports_of(tree) if name.startswith("nepa_jax.")}
    return {name.removeprefix("nepa_jax.") for name in names} & {*map(module_of, FILES)}


@cache
def import_graph() -> dict[str, set[str]]:
    return {module_of(path): outer_imports(path) for path in FILES}


@pytest.mark.parametrize("part", FORBIDDEN)
def test_nothing_that_may_not_be_imported_is_reached_through_others(part):
    graph = import_graph()
    rooms = {name: name.split(".")[0] for name in graph}
    assert all(any(rooms[to] == room for to in graph[name]) for name, room in OPEN)
    todo = [(module_of(path),) for path in FILES if str(path.relative_to(PACKAGE)).startswith(part)]
    seen = {way[0] for way in todo}
    while todo:
        way = todo.pop()
        for name in graph[way[-1]] - seen:
            if (way[-1], rooms[name]) not in OPEN:
                assert rooms[name] not in FORBIDDEN[part], " > ".join((*way, name))
                seen.add(name)
                todo.append((*way, name))


def _inside_function(path: Path, top: str) -> bool:
    """torch may be imported late by a function; nothing else may."""
    outer = ast.parse(path.read_text()).body
    names = {alias.name for node in outer if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in outer if isinstance(node, ast.ImportFrom) and node.module}
    return top == "torch" and not any(name.split(".")[0] == top for name in names)


def test_mesh_axes_are_named_in_one_place():
    for path in FILES:
        if path.name not in ("mesh.py",):
            assert "PartitionSpec" not in path.read_text(), (
                f"{path} places arrays on mesh axes itself"
            )


def test_models_know_of_the_mesh_only_how_to_name_an_activations_axes():
    for path in (PACKAGE / "models").glob("*.py"):
        from_mesh = {name for name in imports(path) if name.startswith("nepa_jax.mesh.")}
        assert from_mesh <= {"nepa_jax.mesh.constrain"}, path


def loaded(code: str, *arguments: str) -> set[str]:
    """The packages that a fresh Python has loaded after some code."""
    code += "\nprint('loaded', *{name.split('.')[0] for name in sys.modules})"
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
    assert not loaded(VERB, str(code), *arguments) & {"jax", "flax", "orbax", "grain", "cv2"}


def test_training_loads_nothing_of_plots_and_of_other_libraries():
    strangers = {
        "matplotlib",
        "skimage",
        "sklearn",
        "torch",
        "transformers",
        "timm",
        "tensorboardX",
    }
    found = loaded("import sys, nepa_jax.train")
    assert "jax" in found and not found & strangers
