"""The mistakes of `make mutants` can still be made, and the tests that must see them are there."""

import ast

import mutants
import pytest
from mutants import MUTANTS, PROJECT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_still_applies_and_is_still_looked_for(mutant):
    ast.parse(mutants.applied(mutant, PROJECT))
    for test in mutant.seen_by:
        file, _, name = test.partition("[")[0].partition("::")
        functions = ast.walk(ast.parse((PROJECT / file).read_text()))
        assert name in {node.name for node in functions if isinstance(node, ast.FunctionDef)}, test


def test_a_mistake_that_a_test_does_not_see_is_told():
    mutant = Mutant("", "", "", "", ("a.py::test_one", "a.py::test_two[x]"))
    failed = {"a.py::test_one[y]": "AssertionError", "a.py::test_two[z]": ""}
    assert mutants.blind(mutant, failed) == ["a.py::test_two[x]"]
    with pytest.raises(ValueError, match="times"):
        mutants.applied(Mutant("", "__init__.py", "nepa_jax", "", ()), PROJECT)
