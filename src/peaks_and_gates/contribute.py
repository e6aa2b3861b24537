"""Runs of readers: packed to be sent, looked at before they are taken in, shown under their own name.

    contribute.pack("_build/results/laptop-1a2b3c4d", "qwen-at-home")     # -> qwen-at-home.zip
    contribute.problems("qwen-at-home.zip")                              # reasons not to take it in
    contribute.keep("qwen-at-home.zip")                                  # into results/contributed/qwen-at-home

A packed run holds the tables, what each was made from, and the pages' manifests. It never holds hidden states or text
that a model wrote, and nothing in it is run.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd

from . import claims, record, store
from .book.runner import models_of
from .errors import BadParameter, MissingFile
from .freshness import root

NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,39}")
MEMBER = re.compile(r"(about|[a-z0-9_]{1,80})\.json|[a-z0-9_]{1,80}\.parquet")
MOST_BYTES, MOST_FILES = 64 * 2**20, 1000
NUMBERS = {"value", "low", "high", "null", "null_high", "n", "layer", "depth"}
# Tables of what a page shows besides numbers, and of what is known beforehand: nobody asks for them of a run.
LEFT_OUT = ("map", "mini_sights", "mini_losses", "steering_examples", "stream_said", "known_")
ABOUT = {
    "type": "object",
    "required": ["name", "size", "models", "exported", "package", "pages"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": rf"^{NAME.pattern}\Z"},
        "size": {"type": "string", "maxLength": 60},
        "models": {"type": "array", "items": {"type": "string", "maxLength": 200}, "maxItems": 40},
        "exported": {"type": "string", "maxLength": 40},
        "package": {"type": "string", "maxLength": 40},
        "pages": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "type": "object",
                "required": ["run_key", "parameters", "created", "environment", "dtype"],
            },
        },
    },
}


@dataclass(frozen=True)
class Run:
    """A contributed run.  about: who and what, see ABOUT.  verdicts: on its own tables."""

    about: dict[str, Any]
    verdicts: list[claims.Verdict]


def pack(folder: str | Path, name: str, into: str | Path = ".") -> Path:
    """Pack the tables of a run, with what they were made from, into NAME.zip.  Returns its path.

    folder: where `pg run` says that the record is.  Raises BadParameter for a name, MissingFile without a record,
    HashMismatch if a file of it is damaged, StorageFull.
    """
    folder = Path(folder)
    if not NAME.fullmatch(name):
        raise BadParameter(f"'{name}' is no name for a run: take 2 to 40 small letters, digits and hyphens.")
    manifests = {path.stem: store.read_json(path) for path in sorted(folder.glob("notebooks/*.json"))}
    tables = [path for path in sorted(folder.glob("*.parquet")) if not path.stem.startswith(LEFT_OUT)]
    if not manifests or not tables:
        raise MissingFile(f"{folder} is no record: give the folder that `pg run` names at its end.")
    kept = ("run_key", "parameters", "created", "environment", "dtype")
    pages = {page: {key: manifest[key] for key in kept} for page, manifest in manifests.items()}
    about = {
        "name": name,
        "size": next(iter(manifests.values()))["preset"],
        "models": sorted({str(model) for page in pages.values() for model in models_of(page["parameters"])}),
        "exported": datetime.now(UTC).date().isoformat(),
        "package": version("peaks-and-gates"),
        "pages": pages,
    }
    target = Path(into) / f"{name}.zip"

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("about.json", sealed_text(about))
            for table in tables:
                described = record.checked(table)
                packed.write(table, table.name)
                packed.writestr(f"{table.stem}.json", sealed_text(described))

    store.write_atomically(target, write)
    return target


def sealed_text(value: dict[str, Any]) -> str:
    """Data as they go into a packed run."""
    return json.dumps(store.sealed(without_places(value)), indent=1, sort_keys=True)


def without_places(value: Any) -> Any:
    """The same data, with paths of the sender's machine cut to their last part."""
    if isinstance(value, dict):
        return {key: without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_places(each) for each in value]
    if isinstance(value, str) and value.startswith(("/", "./", "../", "~")):
        return Path(value).name
    return value


def problems(path: str | Path) -> list[str]:
    """Why a packed run cannot be taken in; empty if it can."""
    try:
        files = contents(Path(path))
    except Exception as error:  # a broken or hostile file: whatever the reader stumbles over
        return [f"{path} cannot be read: {error}"]
    found = about_problems(files)
    names = {name.removesuffix(".parquet") for name in files if name.endswith(".parquet")}
    described = {name.removesuffix(".json") for name in files if name.endswith(".json")} - {"about"}
    found += [f"{name}: a table without its description, or the reverse" for name in sorted(names ^ described)]
    for name in sorted(names & described):
        found += table_problems(name, files[f"{name}.parquet"], files[f"{name}.json"])
    return found or ([] if names else ["it holds no table"])


def contents(path: Path) -> dict[str, bytes]:
    """The files of a packed run, read with a limit whatever its headers say.  Raises BadParameter."""
    files, left = {}, MOST_BYTES
    with zipfile.ZipFile(path) as packed:
        members = packed.infolist()
        if len(members) > MOST_FILES:
            raise BadParameter(f"{len(members)} files, more than {MOST_FILES}")
        for member in members:
            if not MEMBER.fullmatch(member.filename) or member.filename in files:
                raise BadParameter(f"a file called {member.filename[:80]!r}, or twice: only tables belong into it")
            with packed.open(member) as file:
                files[member.filename] = file.read(left + 1)
            left -= len(files[member.filename])
            if left < 0:
                raise BadParameter(f"more than {MOST_BYTES // 2**20} MiB, unpacked")
    return files


def about_problems(files: dict[str, bytes]) -> list[str]:
    """What is wrong with a run's about.json."""
    try:
        about = json.loads(files["about.json"])
    except KeyError:
        return ["it has no about.json: pack it with `pg export-results`"]
    except (ValueError, RecursionError) as error:
        return [f"about.json is no JSON: {error}"]
    plain = {key: value for key, value in about.items() if key != "seal"} if isinstance(about, dict) else about
    errors = jsonschema.Draft202012Validator(ABOUT).iter_errors(plain)
    found = [f"about.json, {'/'.join(map(str, error.path)) or 'at its top'}: {error.message[:200]}" for error in errors]
    if not found and store.sealed(plain) != about:
        found.append("about.json was changed after it was packed, or is damaged")
    return found


def table_problems(name: str, data: bytes, described: bytes) -> list[str]:
    """What is wrong with one table."""
    try:
        if store.unsealed(described)["sha256"] != sha256(data).hexdigest():
            return [f"{name}: not the table that its description was written for"]
        table = pd.read_parquet(io.BytesIO(data))
    except Exception as error:  # a broken or hostile file: whatever the readers stumble over
        return [f"{name}: cannot be read ({type(error).__name__}: {str(error)[:100]})"]
    found = []
    for column in NUMBERS & set(table):
        if not pd.api.types.is_numeric_dtype(table[column].dropna().infer_objects()) and table[column].notna().any():
            found.append(f"{name}: the column {column} holds no numbers")
    if found or not {"value", "low", "high"} <= set(table):
        return found
    if np.isinf(table["value"]).any():
        found.append(f"{name}: values that are infinite")
    outside = (table["low"] > table["value"] + 1e-9) | (table["high"] < table["value"] - 1e-9)
    if outside.any():
        found.append(f"{name}: {int(outside.sum())} intervals that do not hold their value")
    if "n" in table and (table["n"].dropna() < 0).any():
        found.append(f"{name}: numbers of questions below 0")
    return found


def keep(path: str | Path) -> Path:
    """Take a packed run in, under results/contributed.  Returns its folder.

    Raises BadParameter with all reasons not to, or if the name is taken.
    """
    if found := problems(path):
        raise BadParameter(f"{path} is not taken in:\n" + "\n".join(f"  - {reason}" for reason in found))
    files = contents(Path(path))
    folder = root() / "results" / "contributed" / json.loads(files["about.json"])["name"]
    if folder.exists():
        raise BadParameter(f"There is a run called {folder.name} already: choose another name, or remove {folder}.")
    for name, data in files.items():
        store.write_atomically(folder / name, lambda temporary, data=data: temporary.write_bytes(data))
    return folder


def contributed() -> list[Run]:
    """The runs taken in, by name, judged on their own tables.  Raises MissingFile, HashMismatch if one is damaged."""
    folders = sorted((root() / "results" / "contributed").glob("*/about.json"))
    return [Run(store.read_json(path), claims.judge_all(path.parent)) for path in folders]
