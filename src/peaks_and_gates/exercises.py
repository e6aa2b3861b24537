"""Coding exercises: one notebook each, of which a student's and a solved version are made; and their checks.

    exercises.write("exercises")               # the students' versions, into a folder of your own
    exercises.check("exercises/rand-index")    # runs one and says what holds

A cell tagged `exercise` has its solution between two comment lines, BEGIN SOLUTION and END SOLUTION; a student's
version leaves it out. A cell tagged `check` begins with a comment that says what it checks, and asserts it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from .book.runner import kernel
from .errors import BadParameter, MissingFile, UnknownName
from .freshness import root

SOLUTION = re.compile(r"^( *)# BEGIN SOLUTION\n.*?^ *# END SOLUTION$", re.DOTALL | re.MULTILINE)
LONGEST = 120  # seconds of one cell


@dataclass(frozen=True)
class Check:
    """One check of an exercise.  says: what was to hold.  failed: why it does not; empty if it does."""

    says: str
    failed: str


def names() -> list[str]:
    """The exercises there are, in the order of the book."""
    folder = root() / "notebooks" / "exercises"
    known = {path.stem for path in folder.glob("*.ipynb")}
    order = (folder / "order.txt").read_text().split()
    if set(order) != known:
        raise MissingFile(f"{folder}/order.txt and the notebooks differ in {', '.join(sorted(set(order) ^ known))}.")
    return order


def source(name: str) -> NotebookNode:
    """An exercise with its solution.  Raises UnknownName."""
    if name not in names():
        raise UnknownName("exercise", name, names())
    return nbformat.read(root() / "notebooks" / "exercises" / f"{name}.ipynb", as_version=4)


def student(notebook: NotebookNode) -> NotebookNode:
    """The notebook without its solutions, each replaced by a place to write one.

    Raises BadParameter for an exercise without a solution, or a solution outside an exercise.
    """
    for cell in notebook.cells:
        tagged = "exercise" in cell.metadata.get("tags", [])
        cell.source, found = SOLUTION.subn(
            r'\1# Your code here.\n\1raise NotImplementedError("not written yet")', cell.source
        )
        if tagged != bool(found) or "END SOLUTION" in cell.source:
            raise BadParameter(f"A cell tagged `exercise` has one solution, others have none: {cell.source[:60]!r}.")
    return notebook


def solved(notebook: NotebookNode) -> NotebookNode:
    """The notebook with its solutions, without the lines that mark them."""
    for cell in notebook.cells:
        cell.source = re.sub(r"^ *# (BEGIN|END) SOLUTION\n?", "", cell.source, flags=re.MULTILINE).rstrip()
    return notebook


def write(folder: str | Path, chosen: Sequence[str] = (), solutions: bool = False) -> list[Path]:
    """Write exercises into a folder, all of them if none is named; what is already there is left as it is.

    solutions: the solved versions, into a folder `solutions` inside.  Returns what was written.  Raises UnknownName.
    """
    target, made = Path(folder) / "solutions" if solutions else Path(folder), []
    for name in chosen or names():
        notebook, path = source(name), target / f"{name}.ipynb"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(solved(notebook) if solutions else student(notebook), path)
            made.append(path)
    return made


def check(path: str | Path) -> list[Check]:
    """Run a notebook from its first cell on and say of every check whether it holds.

    An error in another cell is the reason why the checks behind it fail; they are still tried, since a later exercise
    of the same notebook may be right.  Raises MissingFile, BadParameter (no notebook, or one without checks).
    """
    path = Path(path)
    path = path.with_suffix(".ipynb") if path.name else path
    if not path.is_file():
        raise MissingFile(f"There is no exercise {path}. `pg exercises` writes the exercises into a folder.")
    try:
        notebook = nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise BadParameter(f"{path} is no notebook: {str(error)[:100]}. Write it anew with `pg exercises`.") from None
    settings = {"timeout": LONGEST, "allow_errors": True, "kernel_name": "python3"}
    try:
        with kernel() as config:
            where = {"metadata": {"path": str(path.parent)}}
            NotebookClient(notebook, config=config, resources=where, **settings).execute()
    except (CellTimeoutError, DeadKernelError) as error:
        raise BadParameter(f"{path}: a cell took more than {LONGEST} seconds, or ended Python: {error}") from None
    found = [judged(cell) for cell in notebook.cells if "check" in cell.metadata.get("tags", [])]
    if not found:
        raise BadParameter(f"{path} has no cells tagged `check`. Write it anew with `pg exercises`.")
    return found


def judged(cell: NotebookNode) -> Check:
    """What a check's cell says, and its error if it has one."""
    says = cell.source.splitlines()[0].lstrip("# ")
    errors = [output for output in cell.outputs if output.output_type == "error"]
    if not errors and cell.execution_count is None:
        return Check(says, "it was not run")
    if not errors:
        return Check(says, "")
    error = errors[0]
    return Check(says, error.evalue if error.ename == "AssertionError" else f"{error.ename}: {error.evalue}")


def report(found: Sequence[Check]) -> str:
    """The checks line by line, and how many hold."""
    lines = [
        f"  ok      {each.says}" if not each.failed else f"  failed  {each.says}\n          {each.failed}"
        for each in found
    ]
    right = sum(not each.failed for each in found)
    return "\n".join([*lines, f"{right} of {len(found)} checks hold."])
