"""Coding exercises: each solution passes all its checks, and without it every check fails with a reason."""

import ast
import re

import nbformat
import pytest

from conftest import ROOT

SOURCE = ROOT / "notebooks" / "exercises" / "source"
NAMES = sorted(path.name for path in SOURCE.iterdir())
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.DOTALL | re.MULTILINE)


def run(cells):
    """The error of each code cell, or None."""
    namespace, errors = {}, []
    for cell in cells:
        try:
            exec(compile(cell.source, cell.id, "exec"), namespace)
            errors.append(None)
        except Exception as error:
            errors.append(error)
    return errors


def test_each_exercise_is_an_assignment_that_the_course_lists():
    page = (ROOT / "book" / "course" / "coding-exercises.md").read_text()
    assert len(NAMES) >= 10 and sorted(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes_every_check_and_without_it_each_fails_with_a_reason(name):
    notebook = nbformat.read(SOURCE / name / f"{name}.ipynb", as_version=4)
    assert re.search(r"\*\*Level\*\* (one|two|three) of three", notebook.cells[0].source)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len({cell.metadata.nbgrader.grade_id for cell in cells}) == len(cells)
    for cell in cells:
        about = cell.metadata.nbgrader
        assert about.schema_version == 3 and about.cell_type == "code" and not about.task
        assert about.solution == bool(SOLUTION.search(cell.source)) and about.locked != about.solution
        asserts = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Assert)]
        assert bool(asserts) == about.grade == (about.get("points", 0) > 0)
        assert all(node.msg is not None for node in asserts), f"an assert of {about.grade_id} has no message"
        assert not about.grade or cell.source.startswith("# ")  # the claim that is tested
    assert run(cells) == [None] * len(cells)
    for cell in cells:
        cell.source = SOLUTION.sub(r"\1raise NotImplementedError()", cell.source)
    for cell, error in zip(cells, run(cells), strict=True):
        assert cell.metadata.nbgrader.grade == (error is not None), (cell.id, error)
        assert error is None or isinstance(error, NotImplementedError | NameError)
