"""What a page's numbers and its looks depend on, as hashes: by these a run is known to be stale."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat

from . import models, store, vlms
from .errors import MissingFile

if TYPE_CHECKING:
    from .book.runner import Job

# Modules that show or steer, and make no number.
SHOWING = {
    "book",
    "claims",
    "cli",
    "compare",
    "contribute",
    "doctor",
    "errors",
    "faults",
    "figures",
    "freshness",
    "known_figures",
    "map_figures",
    "progress",
    "reference",
    "site",
    "trim",
    "verify",
}
SHOWING |= {"gate_figures", "mini_figures", "steering_figures", "study_figures", "table_figures"}
SHOWING |= {"tree_figures"}
# The libraries whose versions a page's numbers depend on.
LIBRARIES = {*store.PACKAGES, "gguf", "pandas", "scipy", "tokenizers"}


def root() -> Path:
    """The checkout.  Raises MissingFile when the package is installed without one."""
    folder = store.project_folder()
    if folder is None:
        raise MissingFile("The notebooks are in the repository: clone it, and install it with `pip install -e .`.")
    return folder


def run_key(source: Path, parameters: dict[str, Any]) -> str:
    """Hash of everything a page's numbers depend on: code, parameters, package, the libraries' versions, weights.

    Of the package the modules count that the notebook imports, and those that they import. The ones that only show
    numbers are left out: a new colour makes no record stale, the page is just redrawn.
    """
    cells = [cell.source for cell in nbformat.read(source, as_version=4).cells if cell.cell_type == "code"]
    used = imported("\n".join(cells)) - SHOWING
    code = store.code_version(*sorted(name for name in used if not name.startswith("book")))
    lock = root() / "requirements.lock"
    lines = lock.read_text().splitlines() if lock.is_file() else []
    versions = [line for line in lines if line.split("==")[0].strip() in LIBRARIES]
    hashes = [sha256_at(path, path.stat().st_mtime_ns) for path in weights(parameters)]
    return store.digest([cells, parameters, code, versions, hashes])


def imported(code: str) -> set[str]:
    """Names of this package's modules that some code imports, and that those import, such as `landscape.neighbours`."""
    found: set[str] = set()
    new = imports(code, __package__)
    while new:
        found |= new
        new = {name for module in new for name in imports(store.source(module).read_text(), package_of(module))} - found
    return found


def package_of(module: str) -> str:
    """The package from which a module's relative imports start."""
    path = store.source(module)
    return ".".join([__package__, *path.relative_to(store.SOURCE).parent.parts])


def imports(code: str, package: str) -> set[str]:
    """Names of this package's modules that some code in a package imports itself."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)} - {__package__}
    known = {__package__: "__init__"} | {f"{__package__}.{name}": name for name in modules()}
    return {known[name] for name in names if name in known}


def weights(parameters: dict[str, Any]) -> list[Path]:
    """The shipped weights that a page reads: an adapter's by its name; a whole folder's, checkpoints included; of a
    folder without weights the cards, or what the benchmarks measured."""
    found = []
    for value in parameters.values():
        for name in value if isinstance(value, list) else [value]:
            known = models.MODELS.get(str(name), {}).get("adapter") or vlms.VLMS.get(str(name), {}).get("folder")
            if known:
                found += (root() / known).glob("*.safetensors")
            elif str(name).startswith(("weights/", "benchmarks/")):
                folder = root() / name
                found += list(folder.rglob("*.safetensors")) or folder.rglob("*.json")
    return sorted(set(found))


@cache
def sha256_at(path: Path, changed: int) -> str:
    """A file's hash, read again only after the file was written to: a plan asks for each page."""
    return store.file_sha256(path)


def page_key(job: Job) -> str:
    """Hash of everything an executed page depends on: the whole notebook, the whole package, the recorded tables."""
    tables = {path.stem: store.file_sha256(path) for path in sorted(job.record.glob("*.parquet"))}
    return store.digest([job.source.read_text(), job.parameters, store.code_version(*sorted(modules())), tables])


def modules() -> set[str]:
    """Names of this package's modules: `figures`, `landscape`, `landscape.neighbours`."""
    paths = [path.relative_to(store.SOURCE).with_suffix("") for path in store.SOURCE.rglob("*.py")]
    return {".".join(path.parts).removesuffix(".__init__") for path in paths} - {"__init__"}
