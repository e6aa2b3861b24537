"""The house stays small: caps on code lines (no docstring, comment or blank line), imports that run downwards only."""

import ast
import io
import json
import re
import subprocess
import tokenize
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from conftest import ROOT

SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
CAPS = {"src": 3850, "training": 2200, "tests": 5500, "book/_ext": 220}
FILE, PAGE, CELL, CELLS = 220, 160, 40, 20  # code lines of a module, of a page's method, of a cell of it; code cells
ASIDE = {"parameters", "install", "figure"}  # cells that hold no method
# Names that say nothing.
HEADLESS = re.compile("found|said|told|kept|asked|shown|wanted|drawn|held|made|whole|only|each|named")
# What a module may import of the package, besides its own folder.
BELOW = {
    "errors": set(),
    "statistics": {"errors"},
    "cache": {"errors"},
    "record": {"errors", "cache", "statistics"},
    "models": {"errors", "cache"},
    "figures": {"errors", "cache", "statistics"},
    "landscape": {"errors", "cache", "statistics", "models", "record", "figures"},
    "gate": {"errors", "cache", "statistics", "models", "record", "landscape"},
    "book": {"errors", "cache", "statistics", "models", "record", "landscape", "gate", "figures"},
    "__init__": {"figures", "record", "landscape", "gate"},
    "__main__": {"book"},
}


def code_lines(text):
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def python_files(folder):
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.splitlines() if name.endswith(".py") and (ROOT / name).is_file()]


@pytest.mark.parametrize("folder", CAPS)
def test_no_part_grows(folder):
    sizes = {path.relative_to(ROOT).as_posix(): code_lines(path.read_text()) for path in python_files(folder)}
    assert sum(sizes.values()) <= CAPS[folder]
    assert {name: size for name, size in sizes.items() if size > FILE} == {}


def assigned_names(tree):
    """Variables, parameters, functions and classes that some code names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def test_names_say_what_a_thing_is():
    for path in [*python_files("src"), *python_files("training")]:
        headless = {name for name in assigned_names(ast.parse(path.read_text())) if HEADLESS.fullmatch(name)}
        assert not headless, path.name


def test_pages_are_short():
    for path in (ROOT / "notebooks").glob("[!e]*/*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        method = [cell for cell in cells if not ASIDE & {*cell["metadata"].get("tags", [])}]
        sizes = [code_lines("".join(cell["source"])) for cell in method]
        assert len(cells) <= CELLS and max(sizes) <= CELL and sum(sizes) <= PAGE, path.stem


def test_our_scripts_are_short():
    scripts = [path for path in (ROOT / "book" / "_static").glob("*.js")]
    assert sum(len(path.read_text().splitlines()) for path in scripts) <= 400


def imports(path):
    """Names of modules that a file imports, those of the package from its top."""
    package = ["peaks_and_gates", *path.relative_to(ROOT / "src" / "peaks_and_gates").parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*start, *filter(None, [node.module])])
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))


def test_imports_run_downwards_in_no_circle_and_nothing_imports_training():
    modules = {".".join(path.relative_to(ROOT / "src").with_suffix("").parts): path for path in python_files("src")}
    graph = {name: {*imports(path)} & {*modules} for name, path in modules.items() if path.stem != "__init__"}
    TopologicalSorter(graph).prepare()  # raises CycleError
    for path in modules.values():
        place = Path(path).relative_to(ROOT / "src" / "peaks_and_gates").parts[0].removesuffix(".py")
        for name in imports(path):
            assert not name.startswith("training"), path
            top, _, rest = name.partition("peaks_and_gates.")
            target = rest.split(".")[0] if not top and rest else place
            assert target == place or target in BELOW[place], f"{path.name} imports {name}"
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        assert "from training" not in path.read_text() and "import training" not in path.read_text(), path.name
