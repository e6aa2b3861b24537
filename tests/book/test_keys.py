"""The key of a page: it follows what computes, nothing else, and is the same on every Python."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from peaks_and_gates import cache
from peaks_and_gates.book import keys

ROOT = Path(__file__).parents[2]
PARAMETERS = {"model": "smollm2-135m-fine-tuned-0", "seed": 0}
MODULES = {
    "__init__.py": "",
    "book/cli.py": "from ..landscape import study",
    "figures.py": "RED = 1",
    "models.py": "SIZE = 1",
    "statistics.py": "def mean(x):\n    return sum(x) / len(x)\n",
    "landscape/__init__.py": "",
    "landscape/neighbours.py": "from .. import figures, models\nfrom ..statistics import mean\nTABLE = 'words.csv'\n",
    "landscape/study.py": "from . import neighbours",
    "gate/measures.py": "K = 1",
}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A package, a page and data of a few lines each."""
    for name, text in MODULES.items():
        path = tmp_path / "src/peaks_and_gates" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("data/words.csv", "data/other.csv", "weights/a/a.safetensors", "weights/b/b.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "src/peaks_and_gates/models.yml").write_text("a:\n  adapter: weights/a\nb: {folder: weights/b}\n")
    (tmp_path / "requirements.lock").write_text("torch==2.0\nclick==8.0\n")
    (tmp_path / "_config.yml").write_text("")
    monkeypatch.setattr(cache, "SOURCE", tmp_path / "src/peaks_and_gates")
    write_page(tmp_path)
    return tmp_path


def write_page(folder, compute="table = study.neighbours", draw="figures.show(table)"):
    cells = [nbformat.v4.new_code_cell("seed = 0", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_markdown_cell("Prose."), nbformat.v4.new_code_cell("import peaks_and_gates as pg")]
    cells += [nbformat.v4.new_code_cell(f"study = pg.landscape.study\n{compute}")]
    cells += [nbformat.v4.new_code_cell(draw, metadata={"tags": ["figure", "hide-input"]})]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "page.ipynb")


def edit(name, old, new):
    def change(folder):
        path = folder / name
        path.write_text(path.read_text().replace(old, new))

    return change


CHANGES = {
    "a line of code": edit("src/peaks_and_gates/landscape/neighbours.py", "'words.csv'", "'other.csv'"),
    "a function further down": edit("src/peaks_and_gates/statistics.py", "len(x)", "(len(x) - 1)"),
    "a cell": lambda folder: write_page(folder, "table = study.neighbours + 1"),
    "the data": edit("data/words.csv", "words", "other"),
    "the weights": edit("weights/a/a.safetensors", "a", "b"),
    "a library": edit("requirements.lock", "torch==2.0", "torch==2.1"),
    "what makes states": lambda folder: setattr(cache, "STATES", 2),
}
NO_CHANGES = {
    "a docstring": edit("src/peaks_and_gates/statistics.py", "(x):\n", "(x):\n    '''Mean.'''\n    # of all\n\n"),
    "a colour": edit("src/peaks_and_gates/figures.py", "1", "2"),
    "a better loader": edit("src/peaks_and_gates/models.py", "1", "2"),
    "the other paper": edit("src/peaks_and_gates/gate/measures.py", "1", "2"),
    "the command line": edit("src/peaks_and_gates/book/cli.py", "study", "neighbours"),
    "a drawing cell": lambda folder: write_page(folder, draw="figures.show(table, 'red')"),
    "other data": edit("data/other.csv", "other", "more"),
    "other weights": edit("weights/b/b.safetensors", "b", "c"),
    "another library": edit("requirements.lock", "click==8.0", "click==8.1"),
}


@pytest.mark.parametrize("what", [*CHANGES, *NO_CHANGES])
def test_the_key_changes_with_what_computes_and_with_nothing_else(checkout, monkeypatch, what):
    monkeypatch.setattr(cache, "STATES", 1)
    key = lambda: keys.page_key(checkout / "page.ipynb", {"model": "a", "seed": 0})
    before = key()
    (CHANGES | NO_CHANGES)[what](checkout)
    keys.module_at.cache_clear(), keys.sha256.cache_clear()
    assert (key() != before) == (what in CHANGES)


def test_a_page_follows_the_modules_that_it_reads(checkout):
    read = lambda code: keys.with_imports(set(keys.code_of(code).imports))
    assert read("import peaks_and_gates as pg\npg.landscape.study.run()") >= {"landscape.study", "landscape.neighbours"}
    assert read("from peaks_and_gates.landscape import study") >= {"landscape.neighbours", "statistics"}
    assert read("from peaks_and_gates import statistics as s, figures") == {"statistics"}
    assert read("import numpy, pandas as pd") == set()


def test_every_python_computes_the_same_keys(tmp_path):
    code = (
        "import json, sys; sys.path.insert(0, 'src')\n"
        "from pathlib import Path\n"
        "from peaks_and_gates.book import keys\n"
        f"pages = sorted(Path('notebooks').rglob('*.ipynb'))\n"
        f"print(json.dumps([keys.page_key(page, {PARAMETERS!r}) for page in pages if 'exercises' not in page.parts]))"
    )
    found = sorted(Path.home().glob(".pyenv/versions/3.1[123].*/bin/python"))
    keys_by_python = {
        str(python): json.loads(subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout)
        for python in [Path(sys.executable), *found]
    }
    assert len({tuple(value) for value in keys_by_python.values()}) == 1, keys_by_python
