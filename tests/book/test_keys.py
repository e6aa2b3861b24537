"""The key of a page: it follows what computes, nothing else, and is the same on every Python."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from conftest import ROOT
from peaks_and_gates import cache
from peaks_and_gates.book import keys

PARAMETERS = {"model": "a", "others": ["weights/c"], "seed": 0}
SRC = "src/peaks_and_gates"
FILES = {
    "_config.yml": "",
    "requirements-dev.lock": "torch==2.0\nclick==8.0\n",
    "data/words.csv": "words",
    "data/other.csv": "other",
    "weights/a/a.safetensors": "a",
    "weights/b/b.safetensors": "b",
    "weights/c/c.json": "c",
    f"{SRC}/models.yml": "a:\n  adapter: weights/a\n  revision: 1\nb: {folder: weights/b}\n",
    f"{SRC}/__init__.py": "",
    f"{SRC}/book/cli.py": "from ..landscape import study",
    f"{SRC}/figures.py": "RED = 1",
    f"{SRC}/models.py": "SIZE = 1",
    f"{SRC}/statistics.py": "def mean(x):\n    return sum(x) / len(x)\n",
    f"{SRC}/landscape/__init__.py": "",
    f"{SRC}/landscape/neighbours.py": "from .. import figures, models\nfrom ..statistics import *\nT = 'words.csv'\n",
    f"{SRC}/landscape/words.yml": "words",
    f"{SRC}/landscape/study.py": "from . import neighbours\nT = 'words.yml'",
    f"{SRC}/gate/measures.py": "K = 1",
}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A package, a page and data of a few lines each."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cache, "SOURCE", tmp_path / SRC)
    write_page(tmp_path)
    keys.module.cache_clear(), keys.sha256.cache_clear()
    yield tmp_path
    keys.module.cache_clear(), keys.sha256.cache_clear()


def write_page(folder, compute="table = study.neighbours", draw="figures.show(table)"):
    cells = [nbformat.v4.new_code_cell("seed = 0", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_markdown_cell("Prose."), nbformat.v4.new_code_cell("import numpy as np")]
    cells += [nbformat.v4.new_code_cell(f"from peaks_and_gates.landscape import study\n{compute}")]
    cells += [nbformat.v4.new_code_cell(draw, metadata={"tags": ["figure", "hide-input"]})]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "page.ipynb")


def edit(name, old, new):
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


CHANGES = {
    "a line of code": edit(f"{SRC}/landscape/neighbours.py", "'words.csv'", "'other.csv'"),
    "a function further down": edit(f"{SRC}/statistics.py", "len(x)", "(len(x) - 1)"),
    "a cell": lambda folder: write_page(folder, "table = study.neighbours + 1"),
    "the data": edit("data/words.csv", "words", "other"),
    "the data of the package": edit(f"{SRC}/landscape/words.yml", "words", "other"),
    "the weights": edit("weights/a/a.safetensors", "a", "b"),
    "the weights that the page names": edit("weights/c/c.json", "c", "d"),
    "what is known of a model": edit(f"{SRC}/models.yml", "revision: 1", "revision: 2"),
    "a library": edit("requirements-dev.lock", "torch==2.0", "torch==2.1"),
    "what makes states": lambda folder: setattr(cache, "STATES", 2),
    "a parameter": lambda folder: PARAMETERS.update(seed=1),
}
NO_CHANGES = {
    "a docstring": edit(f"{SRC}/statistics.py", "(x):\n", "(x):\n    '''Mean.'''\n    # of all\n\n"),
    "a colour": edit(f"{SRC}/figures.py", "1", "2"),
    "a better loader": edit(f"{SRC}/models.py", "1", "2"),
    "the other paper": edit(f"{SRC}/gate/measures.py", "1", "2"),
    "the command line": edit(f"{SRC}/book/cli.py", "study", "neighbours"),
    "a drawing cell": lambda folder: write_page(folder, draw="figures.show(table, 'red')"),
    "other data": edit("data/other.csv", "other", "more"),
    "other weights": edit("weights/b/b.safetensors", "b", "c"),
    "another library": edit("requirements-dev.lock", "click==8.0", "click==8.1"),
}


@pytest.mark.parametrize("what", [*CHANGES, *NO_CHANGES])
def test_the_key_changes_with_what_computes_and_with_nothing_else(checkout, monkeypatch, what):
    monkeypatch.setattr(cache, "STATES", 1)
    PARAMETERS.update(seed=0)
    key = lambda: keys.page_key(checkout / "page.ipynb", PARAMETERS)
    before = key()
    (CHANGES | NO_CHANGES)[what](checkout)
    keys.module.cache_clear(), keys.sha256.cache_clear()
    assert (key() != before) == (what in CHANGES)


ALL = {"landscape", "landscape.study", "landscape.neighbours", "statistics"}


def test_a_page_follows_the_modules_that_it_imports(checkout):
    read = lambda code: keys.with_imports(set(keys.code_of(code).imports))
    assert read("from peaks_and_gates.landscape import study") == ALL
    assert read("import peaks_and_gates.landscape.study") == ALL
    assert read("from peaks_and_gates import statistics as s, figures") == {"statistics"}
    assert read("import numpy, pandas as pd") == set()


def test_pages_import_the_modules_that_they_use():
    """A module that a page reaches through the package (pg.landscape.study) would not count for its key."""
    for path in (ROOT / "notebooks").glob("*/*.ipynb"):
        assert set(re.findall(r"\bpg\.(\w+)", path.read_text())) <= {"figures"}, path


def test_every_python_computes_the_same_keys():
    code = (
        "import json, sys; sys.path.insert(0, 'src')\n"
        "from pathlib import Path\n"
        "from peaks_and_gates.book import keys\n"
        "print([keys.page_key(page, {'seed': 0}) for page in sorted(Path('notebooks').glob('*/*.ipynb'))])"
    )
    pythons = [sys.executable, *Path.home().glob(".pyenv/versions/3.1[123].*/bin/python")]
    outputs = {subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True).stdout for python in pythons}
    assert len(outputs) == 1 and outputs != {b""}
