"""Read MMLU from the hub, or from a local folder with the same layout.

The paper's test questions were drawn with `np.random.default_rng(42)` in a script that had used it before, so
its choice of 9,181 cannot be drawn again; `questions.load` makes its own seeded choice of as many.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from peaks_and_gates.errors import BadQuestions, MissingFile
from peaks_and_gates.store import file_sha256

REPOSITORY = "cais/mmlu"
REVISION = "c30699e8356da336a370243923dbaf21066bb9fe"
SPLITS = ("dev", "validation", "test")  # it has no train split by subject
COLUMNS = ("question", "subject", "choices", "answer")


def read(source: str | None = None) -> tuple[dict[str, dict[str, list[tuple]]], dict]:
    """({split: {subject: [(question, options, answer), ...]}}, provenance) from a folder or a hub repository.

    Raises MissingFile if there is nothing to read and no network, or the repository is gated or unknown; BadQuestions
    if what there is has another layout.
    """
    folder = os.path.expanduser(source) if source else ""  # unlike Path's, these two take any text
    dataset, origin = _read_folder(Path(folder)) if os.path.isdir(folder) else _read_hub(source or REPOSITORY)
    splits: dict[str, dict[str, list[tuple]]] = {split: defaultdict(list) for split in SPLITS}
    for split in SPLITS:
        for number, row in enumerate(dataset.get(split, ())):
            if not isinstance(row, dict) or not set(COLUMNS) <= set(row) or not isinstance(row["subject"], str):
                raise BadQuestions(
                    f"Row {number} of {split} in {source} is {str(row)[:80]}; expected {', '.join(COLUMNS)}."
                )
            splits[split][row["subject"]].append((row["question"], row["choices"], row["answer"]))
    return splits, origin


def _read_folder(folder: Path) -> tuple[Mapping, dict]:
    """A local copy: Parquet or JSON files named after their split, in the folder or in its `all`."""
    place = folder / "all" if (folder / "all").is_dir() else folder
    files = {
        split: sorted(p for p in place.glob(f"{split}*") if p.suffix in (".parquet", ".json", ".jsonl"))
        for split in SPLITS
    }
    if missing := [split for split, found in files.items() if not found]:
        raise MissingFile(f"{place} has no Parquet or JSON file for {missing}; expected names like 'test*.parquet'.")
    rows = {split: [row for path in found for row in _rows(path)] for split, found in files.items()}
    digests = {path.name: file_sha256(path) for found in files.values() for path in found}
    return rows, {"kind": "folder", "files": digests}


def _rows(path: Path) -> list:
    """The rows of a Parquet file, of a JSON list, or of JSON lines.  Raises BadQuestions.

    Not by `datasets`: its reader of JSON garbles a text with half of a surrogate pair, and dies of a lone `null`.
    """
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                return file.read().to_pylist()
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.split("\n") if line.strip()]  # a line may hold what splitlines splits
    except Exception as error:  # of a damaged file, the readers raise whatever they stumble over
        raise BadQuestions(f"{path} cannot be read: {error}. Write it anew, as Parquet or JSON.") from error


def _read_hub(repository: str) -> tuple[Mapping, dict]:
    """The splits from the hub, at the pinned revision if it is the repository the paper used."""
    import datasets  # slow to import, and not needed for the laptop's questions

    revision = REVISION if repository == REPOSITORY else None
    try:
        dataset = datasets.load_dataset(repository, "all", revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise MissingFile(
            f"The hub does not show '{repository}': {error} "
            "If it is gated, accept its terms and run `hf auth login`; else give a local folder as `source`."
        ) from error
    except (OSError, ValueError) as error:
        raise MissingFile(
            f"'{repository}' is not stored here and the hub could not be read: {error} "
            "Connect to the network, or give a local folder as `source`."
        ) from error
    resolved = revision or _resolved_revision(dataset)
    return dataset, {"kind": "hub", "repository": repository, "revision": resolved}


def _resolved_revision(dataset: Mapping) -> str | None:
    """The commit a hub dataset was read at, as its download addresses name it (`...@<commit>/...`)."""
    addresses = dataset["test"].info.download_checksums or {}
    commits = {address.partition("@")[2].partition("/")[0] for address in addresses if "@" in address}
    return commits.pop() if len(commits) == 1 else None
