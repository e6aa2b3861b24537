"""Nothing that came as data is run: the source holds no such call, downloads are pinned, and YAML makes plain data."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from peaks_and_gates.book import presets, runner
from peaks_and_gates.errors import BookError

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("src", "training", "book/_ext") for path in (ROOT / folder).rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
# Calls that run what they are given, or unpickle it; `yaml.safe_load` and `ast.literal_eval` do neither.
RUNS = {"eval", "exec", "compile", "__import__", "system", "popen", "unsafe_load", "full_load", "load_all"}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "shlex"}
LOADERS = {("yaml", "load"), ("torch", "load"), ("torch", "save")}
SETTINGS = {"shell", "trust_remote_code", "allow_pickle"}


def offences(tree):
    """The imports, calls and settings of a syntax tree that run or unpickle data, by line."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.partition(".")[0] for alias in node.names} | {getattr(node, "module", "") or ""}
            lines += [f"{node.lineno}: imports {name}" for name in names & MODULES]
        if not isinstance(node, ast.Call):
            continue
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        # A model's `eval()` takes no argument; `re.compile` compiles no code.
        harmless = (owner, name) == ("re", "compile") or (owner and name == "eval" and not node.args)
        if (name in RUNS and not harmless) or (owner, name) in LOADERS:
            lines.append(f"{node.lineno}: calls {name}")
        off = lambda value: isinstance(value, ast.Constant) and value.value is False
        lines += [f"{node.lineno}: sets {k.arg}" for k in node.keywords if k.arg in SETTINGS and not off(k.value)]
    return lines


def test_no_source_and_no_notebook_runs_data():
    trees = {str(path): ast.parse(path.read_text()) for path in SOURCES}
    for path in NOTEBOOKS:
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        trees[str(path)] = ast.parse("\n".join(cells))  # a magic or a shell line is no Python
    assert {name: lines for name, tree in trees.items() if (lines := offences(tree))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "torch.load(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "builtins.exec(code)",
    ],
)
def test_the_search_sees(line):
    assert offences(ast.parse(line))


def test_every_download_is_pinned_and_every_requirement_exact():
    """Hub repositories by commit (or looked up and recorded, where a gated one names none), requirements by version."""
    texts = [path.read_text() for path in (ROOT / "src" / "peaks_and_gates").glob("*.yml")]
    revisions = re.findall(r"revision: *['\"]?(\w+)", "\n".join(texts))
    assert all(re.fullmatch(r"[0-9a-f]{40}|null", revision) for revision in revisions)
    assert revisions.count("null") < len(revisions)
    requirements = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!+-]+", line) for line in requirements)


@pytest.mark.parametrize(
    "value", ["!!python/object/apply:os.system ['touch out']", "!!python/name:os.system", "&a [*a]", "2020-01-01"]
)
def test_a_yaml_tag_makes_nothing(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BookError, match="no YAML"):
        presets.parse_assignment(f"seed={value}")
    assert not any(tmp_path.iterdir())


def test_a_parameters_cell_is_read_and_not_run(tmp_path, monkeypatch):
    cell = nbformat.v4.new_code_cell("seed = __import__('os').system('touch out')", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "page.ipynb")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BookError):
        runner.declared(tmp_path / "page.ipynb")
    assert [file.name for file in tmp_path.iterdir()] == ["page.ipynb"]


def test_shipped_files_are_safetensors_parquet_json_or_text():
    paths = [path for folder in ("weights", "results", "data") for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert {path.suffix for path in paths} <= {".safetensors", ".parquet", ".json", ".md", ".csv", ".txt", ".yml"}
