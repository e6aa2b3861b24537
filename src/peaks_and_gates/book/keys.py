"""What the numbers of a page depend on, as one hash, the same on every Python.

    page_key(root() / "notebooks/landscape/subjects.ipynb", parameters)

It counts the code of the page's cells and of the modules that they import, as syntax trees; the parameters; the
versions of the libraries that compute; the weights and data that the page reads.  Drawing cells, figures, docstrings
and the runner do not count, so a new colour makes no record stale.  What makes hidden states counts by one number,
`cache.STATES`.  Only the standard library is needed.
"""

import ast
import json
import re
import shutil
from dataclasses import dataclass
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from .. import cache as store
from ..errors import MissingFile

PACKAGE = "peaks_and_gates"
DRAWING = {"parameters", "install", "figure", "hide-input"}  # tags of cells without a number of their own
LIBRARIES = {*store.PACKAGES, "gguf", "pandas", "scipy", "tokenizers"}  # whose versions count
# Modules that do not count for the key of a page: they draw or run, or count by STATES.
NO_KEY = {"errors", "figures", "record", "cache", "models", "gate.vlm", "gate.inputs"}
NO_KEY |= {"landscape.extraction", "landscape.prefixes"}
sha256 = cache(store.file_sha256)  # each file is read once
LATER_FIELDS = {"ctx", "kind", "type_comment", "type_ignores", "type_params"}  # of syntax trees, by Python's version


def root() -> Path:
    """The folder of the pages and of what is made of them.

    The checkout, the nearest folder that holds the pages, or what an ordinary installation has of them.
    """
    holds_pages = lambda folder: (folder / "_toc.yml").is_file() and (folder / "book" / "claims.yml").is_file()
    places = () if store.checkout() else (Path.cwd(), *Path.cwd().parents)
    return next(filter(holds_pages, places), store.project_folder())


def copy_pages() -> None:
    """Copy the pages of an ordinary installation into the folder in which `pg` is called, if none are there.

    Raises MissingFile if it holds something else, StorageFull.
    """
    here, project = Path.cwd(), store.project_folder()
    if store.checkout() or root() != project:
        return
    ours = {"src", *(path.name for path in project.iterdir())}
    if others := sorted(path.name for path in here.iterdir() if path.name not in ours and path.name[0] != "."):
        raise MissingFile(f"{here} holds {others[0]}: call pg in an empty folder, to which the pages can be copied.")
    copies = {path: here / "src" / PACKAGE / path.relative_to(store.SOURCE) for path in store.SOURCE.rglob("*.*")}
    copies |= {path: here / path.relative_to(project) for path in project.rglob("*")}
    copied = [path for path, copy in copies.items() if path.is_file() and here / "weights" not in copy.parents]
    with store.writing(here):
        for path in sorted(copied, key=lambda path: path.name == "_toc.yml"):  # at last: whoever sees it sees all
            copies[path].parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copies[path])  # without its mode: the installation may be read-only


def page_key(notebook: Path, parameters: dict[str, Any]) -> str:
    """Hash of everything that the numbers of a page depend on.  Raises SyntaxError if a cell cannot be read."""
    cells = json.loads(notebook.read_bytes())["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code" and not DRAWING & tags(cell)]
    page = code_of("\n".join(codes))
    parts = [page, *(module(name) for name in sorted(with_imports(set(page.imports))))]
    lock = (store.project_folder() / "requirements-dev.lock").read_text("utf-8")
    # Of two versions the first: that of the Pythons which have DADApy.
    locked = dict(reversed(re.findall(r"^([\w-]+)==([^\s;]+)", lock, re.MULTILINE)))
    versions = [f"{name}=={locked[name]}" for name in sorted(LIBRARIES & locked.keys())]
    files = files_read({string for part in parts for string in part.strings}, parameters)
    return store.digest([[part.key for part in parts], store.STATES, parameters, versions, files])


def tags(cell: dict[str, Any]) -> set[str]:
    """The tags of a notebook's cell."""
    return set(cell["metadata"].get("tags", []))


def files_read(strings: set[str], parameters: dict[str, Any]) -> dict[str, str]:
    """Hashes of the weights and data that code and parameters name, by path, and what the book knows of the models.

    A file of data/ or a YAML file of the package counts where a string of the code is its name, a folder of weights/
    where one is its path.
    """
    values = {value for parameter in parameters.values() for value in as_list(parameter) if isinstance(value, str)}
    known = {name: entry for name in values if (entry := model_entry(name))}
    folders = strings | values | set(re.findall(r"weights/[\w./-]+", "\n".join(known.values())))
    project = store.project_folder()
    paths = {path for path in (project / "data").rglob("*") if strings & {path.name, path.stem}}
    known |= {path.name: sha256(path) for path in store.SOURCE.rglob("*.yml") if path.name in strings}
    for name in folders:
        if name.startswith("weights/"):
            folder, card = project / name, project / name / "card.json"
            listed = store.read_json(card)["files"] if card.is_file() else {}  # some may not be installed
            paths |= {*folder.rglob("*.safetensors")} or {*(() if listed else folder.rglob("*.json"))}
            known |= {f"{name}/{file}": digest for file, digest in listed.items() if file.endswith(".safetensors")}
    return known | {path.relative_to(project).as_posix(): sha256(path) for path in paths if path.is_file()}


def as_list(value: Any) -> list[Any]:
    """A parameter's values."""
    return value if isinstance(value, list) else [value]


def model_entry(name: str) -> str:
    """The lines of a model in models.yml, without comments; empty for a model that is not there."""
    text = (store.SOURCE / "models.yml").read_text("utf-8")
    entry = re.search(rf"^( *){re.escape(name)}:.*(?:\n\1 .*)*", text, re.M)
    return re.sub(r"\s+#.*", "", entry[0]) if entry else ""


@dataclass(frozen=True)
class Code:
    """What some code does (`key`, a hash of its syntax tree), imports of this package, and has of strings."""

    key: str
    imports: frozenset[str]
    strings: frozenset[str]


def code_of(text: str, package: str = "") -> Code:
    """Take code apart.  package: the one it stands in, for its relative imports.  Raises SyntaxError."""
    tree = ast.parse(text)
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    strings = frozenset(value for value in constants if isinstance(value, str))
    return Code(store.digest(plain_tree(tree)), frozenset(imports(tree, package)), strings)


@cache
def module(name: str) -> Code:
    """The code of a module of this package, such as `cache` or `landscape.neighbours`."""
    path = source_path(name)
    return code_of(path.read_text("utf-8"), ".".join([PACKAGE, *path.relative_to(store.SOURCE).parent.parts]))


def with_imports(modules: set[str]) -> set[str]:
    """Modules of this package and all modules of it that they import, but for those that do not count for a key."""
    followed: set[str] = set()
    while new := {name for name in modules - followed if name not in NO_KEY and name.partition(".")[0] != "book"}:
        followed |= new
        modules = modules.union(*(module(name).imports for name in new))
    return followed


def imports(tree: ast.AST, package: str = "") -> set[str]:
    """Modules of this package that the import statements of some code name: `cache`, `landscape.neighbours`.

    package: of the code, for its relative imports.  A module reached as an attribute of the package is not seen.
    """
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            names |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    relative = {name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")}
    return {name for name in relative if source_path(name).is_file()}


def source_path(module: str) -> Path:
    """The file of a module of this package, such as `cache` or `landscape.neighbours`."""
    path = store.SOURCE.joinpath(*module.split("."))
    return path / "__init__.py" if (path / "__init__.py").is_file() else path.with_suffix(".py")


def plain_tree(node: Any) -> Any:
    """A syntax tree as nested lists and dictionaries, the same on every Python, without docstrings and positions."""
    if isinstance(node, list):
        return [plain_tree(child) for child in node]
    if isinstance(node, ast.Constant):
        return repr(node.value)
    if not isinstance(node, ast.AST):
        return node
    fields = {name: value for name, value in ast.iter_fields(node) if name not in LATER_FIELDS}
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        fields["body"] = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    return [type(node).__name__, {name: plain_tree(value) for name, value in fields.items()}]
