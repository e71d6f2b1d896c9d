"""Who may import whom: the design's arrows, read from the source."""

import ast
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
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
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


def test_help_and_mistakes_are_answered_without_jax():
    """A command line that takes seconds to say what is wrong is not used twice."""
    outer = ast.parse((PACKAGE / "cli.py").read_text()).body
    modules = {node.module for node in outer if isinstance(node, ast.ImportFrom)}
    assert modules == {"collections.abc", "pathlib", "typing", "nepa_jax.errors"}
