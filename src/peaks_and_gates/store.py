"""Artifacts by content: computed once, checked on every read, never half-written.

An artifact is one file (safetensors, Parquet or JSON) beside a JSON manifest. Its key is a hash of what it
was made from (inputs, parameters, the source of the code that made it), so a changed input is a new artifact
and an unchanged one is never computed again. The manifest is written last: without it the data do not count.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import psutil
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file

from .errors import StorageFull

T = TypeVar("T")

SOURCE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "peft", "datasets", "dadapy", "numpy", "scikit-learn", "safetensors")


def project_folder() -> Path | None:
    """The checkout this package is installed from in editable mode; None for an ordinary installation."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "_config.yml").is_file() else None


def cache_folder() -> Path:
    """Where artifacts and downloads are kept: $PG_CACHE, else `.cache` in the checkout, else the user's cache."""
    if os.environ.get("PG_CACHE"):
        return Path(os.environ["PG_CACHE"]).expanduser()
    if root := project_folder():
        return root / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "peaks-and-gates"


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a JSON-able value; dictionaries in any order hash alike."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def code_version(*modules: str) -> str:
    """Hash of what the named modules of this package do: their source without comments and docstrings."""
    trees = []
    for name in modules:
        tree = ast.parse((SOURCE / f"{name}.py").read_text())
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        for node in ast.walk(tree):
            if isinstance(node, documented) and ast.get_docstring(node) is not None:
                node.body[0].value.value = ""
        trees.append(ast.unparse(tree))
    return digest(trees)


@cache
def environment() -> dict[str, Any]:
    """Versions and hardware, as they go into every manifest."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "packages": versions,
        "machine": platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": gpu,
    }


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` on a temporary name beside `path`, then rename: a reader sees the old file or the new one.

    Raises StorageFull if there is no room or no permission; nothing is left behind then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            temporary.replace(path)
        except Exception:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the many ways in which a library reports a full or closed disk into one message.  Raises StorageFull."""
    try:
        yield
    except Exception as error:
        if not no_room(error):
            raise
        raise StorageFull(
            f"Could not write {path}: {error}. Free some space, or set PG_CACHE to a folder with room; "
            "what was finished before is kept."
        ) from error


def no_room(error: Exception) -> bool:
    """Whether an error means a full or read-only disk; safetensors reports it only in its text."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
    numbered = isinstance(error, OSError) and error.errno in codes
    return numbered or any(f"os error {code}" in str(error) for code in codes)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_atomically(path, lambda p: p.write_text(json.dumps(value, indent=1, sort_keys=True, default=str)))


def intact(path: Path) -> bool:
    """Whether an artifact is complete: its manifest is readable and its data have the recorded checksum."""
    try:
        return json.loads(manifest_path(path).read_text())["sha256"] == file_sha256(path)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def made_once(folder: Path, about: dict[str, Any], save: Callable[[Path], Any]) -> Path:
    """A folder with a model that `save` puts into it, in one process at a time, and again if its weights are damaged.

    about: written beside the weights with their checksum, last.  Returns the folder.  Raises StorageFull.
    """
    weights = folder / "model.safetensors"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "making.lock"):
            if not intact(weights):
                manifest_path(weights).unlink(missing_ok=True)
                save(folder)
                write_json(manifest_path(weights), about | {"sha256": file_sha256(weights)})
    return folder


def manifest_path(path: Path) -> Path:
    """The manifest that belongs to an artifact's data file."""
    return path.with_name(path.name + ".json")


def artifact(
    name: str,
    inputs: dict[str, Any],
    compute: Callable[[], Any],
    *,
    code: Iterable[str],
    suffix: str,
    write: Callable[[Any, Path], Any],
    read: Callable[[Path], T],
) -> T:
    """Return the stored artifact made from `inputs` by `code`, or compute and store it.

    name: folder under the cache.  inputs: JSON-able, everything the result depends on.  code: modules of this
    package whose change makes the result stale.  Two processes asking for one artifact compute it once.
    A corrupt or truncated file is computed again, with one warning.  Raises StorageFull.
    """
    version = code_version(*sorted(code))
    path = cache_folder() / name / f"{digest([name, inputs, version])}{suffix}"
    if intact(path):
        return read(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.stem}.lock")):
        if intact(path):
            return read(path)  # another process made it while we waited
        if path.exists() and manifest_path(path).exists():
            warnings.warn(f"{path} is damaged and is computed again.", stacklevel=3)
        for stale in path.parent.glob(f".{path.name}*.tmp"):
            stale.unlink(missing_ok=True)  # left by a process that was killed while it held this lock
        start = time.perf_counter()
        result = compute()
        seconds = time.perf_counter() - start
        manifest_path(path).unlink(missing_ok=True)
        write_atomically(path, partial(write, result))
        manifest = {
            "name": name,
            "inputs": inputs,
            "code": version,
            "sha256": file_sha256(path),
            "seconds": round(seconds, 3),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": environment(),
        }
        write_json(manifest_path(path), manifest)
        return read(path)  # what is returned is what was stored


def table(name: str, inputs: dict[str, Any], compute: Callable[[], pd.DataFrame], code: Iterable[str]) -> pd.DataFrame:
    """A tidy table, stored as Parquet."""
    return artifact(
        name,
        inputs,
        compute,
        code=code,
        suffix=".parquet",
        write=lambda frame, path: frame.to_parquet(path, index=False),
        read=pd.read_parquet,
    )


def document(name: str, inputs: dict[str, Any], compute: Callable[[], Any], code: Iterable[str]) -> Any:
    """Plain data, stored as JSON: tuples come back as lists."""
    return artifact(
        name,
        inputs,
        compute,
        code=code,
        suffix=".json",
        write=lambda value, path: path.write_text(json.dumps(value)),
        read=lambda path: json.loads(path.read_text()),
    )


def tensors(
    name: str, inputs: dict[str, Any], compute: Callable[[], dict[str, torch.Tensor]], code: Iterable[str]
) -> Any:
    """Named tensors, stored as safetensors with their dtypes, and returned as an open file (`get_tensor(name)`)."""
    return artifact(
        name,
        inputs,
        compute,
        code=code,
        suffix=".safetensors",
        write=lambda values, path: save_file({k: v.contiguous() for k, v in values.items()}, path),
        read=lambda path: safe_open(path, framework="pt"),
    )
