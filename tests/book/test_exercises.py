"""Coding exercises: each solution passes all its checks, and without it every check fails with a reason."""

import ast
import re

import nbformat
import pytest

from conftest import ROOT

SOURCE = ROOT / "notebooks" / "exercises" / "source"
NAMES = sorted(path.name for path in SOURCE.iterdir())
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.DOTALL | re.MULTILINE)


def load(name):
    return nbformat.read(SOURCE / name / f"{name}.ipynb", as_version=4)


def run(cells, namespace):
    """Run code cells one after the other; yields each cell with its error, or None."""
    for cell in cells:
        try:
            exec(compile(cell.source, cell.id, "exec"), namespace)
        except Exception as error:
            yield cell, error
        else:
            yield cell, None


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_each_exercise_is_an_assignment_that_the_course_lists():
    page = (ROOT / "book" / "course" / "coding-exercises.md").read_text()
    assert len(NAMES) >= 10 and sorted(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == NAMES
    levels = {re.search(r"\*\*Level\*\* (\w+) of three", load(name).cells[0].source)[1] for name in NAMES}
    assert levels == {"one", "two", "three"}


@pytest.mark.parametrize("name", NAMES)
def test_the_metadata_are_nbgraders(name):
    cells = [(cell.metadata.nbgrader, cell.source) for cell in code_cells(load(name))]
    ids = [about.grade_id for about, _ in cells]
    assert len(set(ids)) == len(ids)
    for about, source in cells:
        assert about.schema_version == 3 and about.cell_type == "code" and not about.task
        assert about.solution == bool(SOLUTION.search(source)) and about.locked != about.solution
        asserts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]
        assert bool(asserts) == about.grade == (about.get("points", 0) > 0)
        assert all(node.msg is not None for node in asserts), f"an assert of {about.grade_id} has no message"
        assert not about.grade or source.startswith("# ")  # the claim that is tested


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes_every_check(name):
    errors = {cell.id: error for cell, error in run(code_cells(load(name)), {}) if error}
    assert errors == {}


@pytest.mark.parametrize("name", NAMES)
def test_without_the_solution_every_check_fails(name):
    cells = code_cells(load(name))
    for cell in cells:
        cell.source = SOLUTION.sub(r"\1raise NotImplementedError()", cell.source)
    for cell, error in run(cells, {}):
        assert cell.metadata.nbgrader.grade == (error is not None), (cell.id, error)
        assert error is None or isinstance(error, NotImplementedError | NameError)


def test_a_plausible_mistake_is_named():
    """The index without the adjustment: only what both share passes, and a message names what lacks."""
    cells = code_cells(load("rand-index"))
    wrong = "same = lambda x: x[:, None] == x\n    return float((same(labels) == same(groups)).mean())"
    for cell in cells:
        cell.source = SOLUTION.sub(rf"\1{wrong}", cell.source)
    errors = [error for cell, error in run(cells, {}) if cell.metadata.nbgrader.grade]
    assert [error is None for error in errors] == [True, False, False, False]
    assert "is the expected number of pairs taken away?" in str(errors[2])
