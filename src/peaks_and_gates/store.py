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
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
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

from .errors import BookError, HashMismatch, MissingFile, StorageFull

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


def source(module: str) -> Path:
    """The file of a module of this package, such as `store` or `landscape.neighbours`."""
    path = SOURCE / module.replace(".", "/")
    return path / "__init__.py" if (path / "__init__.py").is_file() else path.with_suffix(".py")


@cache
def code_version(*modules: str) -> str:
    """Hash of what the named modules of this package do: their source without comments and docstrings."""
    trees = []
    for name in modules:
        tree = ast.parse(source(name).read_text())
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
        except BaseException:  # an interrupt too
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the many ways in which a library reports a full or closed disk into one message.  Raises StorageFull."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BookError) or not no_room(error):
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


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    """One process at a time, in a folder that is made if need be.  Raises StorageFull."""
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock).acquire()
    with held:
        yield


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; a dictionary with the seal that `read_json` asks for.  Raises StorageFull."""
    value = sealed(value) if isinstance(value, dict) else value
    write_atomically(path, lambda p: p.write_text(json.dumps(value, indent=1, sort_keys=True, default=str)))


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same data as JSON keeps them, with a seal: a hash of all the rest, by which they vouch for themselves."""
    plain = json.loads(json.dumps(value, default=str))
    plain.pop("seal", None)
    return plain | {"seal": digest(plain)}


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote, without its seal.  Raises MissingFile; HashMismatch if it is not what was written."""
    try:
        return unsealed(path.read_bytes())
    except FileNotFoundError:
        raise MissingFile(f"{path} is not there. Restore it, or make anew what it belongs to.") from None
    except (OSError, ValueError) as error:
        raise HashMismatch(
            f"{path} is damaged or was changed by hand ({error}). Restore it, or delete it and make it anew."
        ) from None


def unsealed(text: bytes) -> dict[str, Any]:
    """The data in a sealed JSON text, without the seal.  Raises ValueError if they are not what was sealed."""
    value = json.loads(text)
    if not isinstance(value, dict) or value.pop("seal", None) != sealed(value)["seal"]:
        raise ValueError("its seal is broken")
    return value


def intact(path: Path) -> bool:
    """Whether an artifact is complete: its manifest is as written and its data have the recorded checksum."""
    try:
        return read_json(manifest_path(path)).get("sha256") == file_sha256(path)
    except (OSError, BookError):
        return False


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder and below, by its path in it; hidden files do not count."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def check_files(folder: Path, recorded: Mapping[str, str]) -> None:
    """Raise MissingFile or HashMismatch if a file of a folder is not the one with the recorded checksum."""
    for name, expected in recorded.items():
        if not (folder / name).is_file():
            raise MissingFile(f"{folder / name} is not there. Restore it, or make {folder} anew.")
        if file_sha256(folder / name) != expected:
            raise HashMismatch(f"{folder / name} is damaged or was changed. Restore it, or make {folder} anew.")


def keep_state(path: Path, values: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> None:
    """Write tensors and texts as one file with a checksum in it, whole or not at all.  Raises StorageFull."""
    values = {name: tensor.cpu().contiguous() for name, tensor in values.items()}
    noted = {**about, "checksum": state_checksum(values, about)}
    write_atomically(path, lambda temporary: save_file(values, temporary, metadata=noted))


def kept_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """What `keep_state` wrote; None if there is nothing, or, with a warning, if it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            about = stored.metadata()
            values = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping, a file
        if about.pop("checksum") == state_checksum(values, about):
            return values, about
    except Exception:  # a broken file: whatever the reader stumbles over
        pass
    warnings.warn(f"{path} is damaged and is left out: what it was a part of begins anew.", stacklevel=3)
    return None


def state_checksum(values: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> str:
    """SHA-256 of tensors, with their names, dtypes and shapes, and of texts."""
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode() if about else b"")
    for name, tensor in sorted(values.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def made_once(folder: Path, about: dict[str, Any], save: Callable[[Path], Any]) -> Path:
    """A folder with a model that `save` puts into it, in one process at a time, and again if a file of it is damaged.

    about: written beside the weights with the checksums of all files, last.  Returns the folder.
    A damaged folder is made again, with one warning.  Raises StorageFull.
    """
    if whole(folder):
        return folder
    lock = folder / ".making.lock"
    with locked(lock):
        if whole(folder):
            return folder  # another process made it while we waited
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            warnings.warn(f"{folder} is damaged or was not finished, and is made again.", stacklevel=3)
        with writing(folder):
            clear(folder, lock)
            try:
                save(folder)
                write_json(folder_manifest(folder), {**about, "files": checksums(folder)})
            except BaseException:  # an interrupt too
                clear(folder, lock)
                raise
    return folder


def clear(folder: Path, but: Path) -> None:
    """Remove all that is in a folder, temporary files of a killed process too, but one file."""
    for path in folder.iterdir():
        if path != but:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def folder_manifest(folder: Path) -> Path:
    """The manifest of a folder that `made_once` made."""
    return manifest_path(folder / "model.safetensors")


def whole(folder: Path) -> bool:
    """Whether all that `made_once` put into a folder is there as it was written."""
    try:
        check_files(folder, read_json(folder_manifest(folder))["files"])
    except (OSError, BookError):
        return False
    return True


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
    What is damaged, or lacks its data or manifest, is computed again, with one warning.  Raises StorageFull.
    """
    version = code_version(*sorted(code))
    path = cache_folder() / name / f"{digest([name, inputs, version])}{suffix}"
    if intact(path):
        return read(path)
    with locked(path.with_name(f".{path.stem}.lock")):
        if intact(path):
            return read(path)  # another process made it while we waited
        if path.exists() or manifest_path(path).exists():
            warnings.warn(f"{path} is damaged or was not finished, and is computed again.", stacklevel=3)
        for stale in path.parent.glob(f".{path.name}*.tmp"):
            stale.unlink(missing_ok=True)  # left by a process that was killed while it held this lock
        start = time.perf_counter()
        result = compute()
        seconds = time.perf_counter() - start
        with writing(path):
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
