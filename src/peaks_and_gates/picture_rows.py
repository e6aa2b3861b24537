"""Rows with pictures from a Parquet data set: chosen by a seed, streamed once, kept for good.

A data set is walked file by file, and the rows taken from one file are one artifact: a run that was killed goes on at
the file it was in, and a second run needs no network.  Only the chosen rows are kept, with their encoded images.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image, ImageOps

from .errors import BadImage, BadParameter, BadQuestions, BookError, MissingFile, TooFewPoints, UnknownName
from .models import hub_advice
from .store import document, table

# Raise it when what is kept of a row changes. The code is left out of the key: an edit must not cost a download.
FORMAT = 1
TEXTS = ("captions", "question", "answers")  # what a row may be asked to hold, besides image, label and id


@dataclass(frozen=True)
class Source:
    """A data set on the hub, or a local copy of it in `folder`, laid out as on the hub.

    columns: {what: its column}; "answers.answer" is the field `answer` of every entry of the list `answers`.
    """

    name: str
    task: str
    repository: str
    revision: str | None
    config: str
    split: str
    columns: dict[str, str]
    rows: int
    gigabytes: float
    folder: str | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the rows depend on: repository and commit, or the local files.  Raises MissingFile."""
        what = {"config": self.config, "split": self.split, "columns": self.columns, "format": FORMAT}
        if self.folder is None:
            commit = self.revision or self._first_commit()
            return {"repository": self.repository, "revision": commit} | what
        folder = Path(self.folder).expanduser()
        # Names, sizes and times: hashing would read all of a data set that may be 146 GB.
        files = sorted((str(p.relative_to(folder)), p.stat()) for p in folder.rglob("*.parquet"))
        if not files:
            raise MissingFile(f"{folder} holds no Parquet file; expected names like {self._example}.")
        return {"files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files]} | what

    @property
    def _example(self) -> str:
        return f"data/{self.split}-00000-of-00001.parquet"

    def _first_commit(self) -> str:
        """The commit the repository was at when it was first used here."""

        def ask() -> str:
            from huggingface_hub import HfApi  # network code stays out of the way of offline runs

            return HfApi().dataset_info(self.repository).sha

        with reading(self):
            return document("picture-commits", {"repository": self.repository}, ask, ())

    @property
    def place(self) -> dict[str, Any]:
        """Arguments that make `datasets` find it."""
        if self.folder is None:
            return {"path": self.repository, "name": self.config, "revision": self.identity["revision"]}
        return {"path": str(Path(self.folder).expanduser()), "name": self.config}

    @cached_property
    def description(self) -> dict[str, Any]:
        """{"files": number of rows of each, "classes": names or None}, stored, so that it is looked up once.

        Raises UnknownName for a missing column, MissingFile.
        """
        with reading(self):
            return document("picture-sources", self.identity, self._describe, ())

    def _describe(self) -> dict[str, Any]:
        import datasets
        import fsspec
        import pyarrow.parquet as pq

        for wanted in self.columns.values():
            if (column := wanted.partition(".")[0]) not in self.stream.features:
                raise UnknownName(f"column of {self.place['path']}", column, self.stream.features)
        names = None
        if "label" in self.columns:
            feature = self.stream.features[self.columns["label"]]
            if not isinstance(feature, datasets.ClassLabel):
                raise BadQuestions(f"The column '{self.columns['label']}' of {self.place['path']} has no class names.")
            names = feature.names
        files = datasets.load_dataset_builder(**self.place).config.data_files[self.split]
        if len(files) != self.stream.num_shards:
            raise MissingFile(f"{self.place['path']}: {len(files)} files, but a stream of {self.stream.num_shards}.")
        counts = []
        for file in files:
            with fsspec.open(file, "rb") as opened:
                counts.append(pq.read_metadata(opened).num_rows)  # the file's last few kilobytes
        return {"files": counts, "classes": names}

    @cached_property
    def stream(self):
        """The data set as a stream of rows whose images stay encoded."""
        import datasets  # slow to import, and not needed for scenes

        return datasets.load_dataset(**self.place, split=self.split, streaming=True).decode(False)


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turn the many ways in which a data set cannot be read into one message.  Raises MissingFile."""
    try:
        yield
    except BookError:
        raise
    except Exception as error:
        raise MissingFile(advice(source, error)) from error


def advice(source: Source, error: Exception) -> str:
    """What went wrong with a data set, and what to do."""
    said = str(error).partition("\n")[0] or type(error).__name__
    if source.folder is not None:
        return f"{source.folder} could not be read as {source.name}: {said} Expected files like {source._example}."
    if re.search(r"gated|\b40[13]\b", f"{type(error).__name__} {error}", re.IGNORECASE):
        return hub_advice(source.repository, PermissionError(f"Gated: {said}"))
    return (
        f"The data set {source.repository} is not stored here and could not be read: {said} Connect to the network and "
        "run again, what was read is kept; or give a local copy with folder=FOLDER; or take source='scenes'."
    )


def numbered(source: Source, rows: list[int]) -> pd.DataFrame:
    """The rows with these numbers (sorted, from 0, over all files in order), in that order.

    Columns: file, row (within the file), id, image (bytes), label (number or -1), captions, question, answers.
    Raises BadParameter, BadImage, BadQuestions, MissingFile, UnknownName.
    """
    parts, start = [], 0
    for file, count in enumerate(source.description["files"]):
        wanted = [row - start for row in rows if start <= row < start + count]
        start += count
        if wanted:
            last = wanted[-1]
            take = lambda row, example, wanted=frozenset(wanted): row in wanted
            done = lambda row, last=last: row == last
            parts.append(_part(source, file, {"rows": wanted}, take, done))
    if rows and rows[-1] >= start:
        raise BadParameter(f"Row {rows[-1]} of {source.name} was asked for, but it has {start} rows.")
    return pd.concat(parts, ignore_index=True)


def by_class(source: Source, quota: dict[int, int], order: list[int]) -> pd.DataFrame:
    """The first rows of each class, walking the files in the order given until every class has its quota.

    quota: {class number: how many}.  Columns as in `numbered`.  Raises TooFewPoints if the files end before that.
    """
    left, parts, column = dict(quota), [], source.columns["label"]
    for file in order:
        if not any(left.values()):
            break
        open_ = dict(left)

        def take(row: int, example: dict, open_: dict[int, int] = open_) -> bool:
            wanted = open_.get(example[column], 0) > 0
            if wanted:
                open_[example[column]] -= 1
            return wanted

        done = lambda row, open_=open_: not any(open_.values())
        parts.append(_part(source, file, {"left": sorted(left.items())}, take, done))
        for label in parts[-1]["label"]:
            left[label] -= 1
    if missing := {source.description["classes"][c]: quota[c] - n for c, n in left.items() if n}:
        few = "; ".join(f"{name}: {n} short" for name, n in sorted(missing.items())[:5])
        raise TooFewPoints(
            f"{source.name} has too few images of {len(missing)} classes ({few}). Ask for fewer of each class."
        )
    return pd.concat(parts, ignore_index=True)


def _part(source: Source, file: int, choice: dict, take: Callable, done: Callable) -> pd.DataFrame:
    """The chosen rows of one file, from the store or from the stream."""
    inputs = source.identity | {"file": file} | choice
    return table("pictures", inputs, lambda: _walk(source, file, take, done), ())


def _walk(source: Source, file: int, take: Callable, done: Callable) -> pd.DataFrame:
    """Read a file's rows in order: keep those that `take` wants, stop when they are `done`."""
    found = []
    with reading(source):
        print(f"{source.name}: reading file {file + 1} of {source.stream.num_shards}")
        for row, example in enumerate(source.stream.shard(source.stream.num_shards, file)):
            if take(row, example):
                found.append({"file": file, "row": row} | _kept(source, f"file {file}, row {row}", example))
            if done(row):
                break
    return pd.DataFrame(found, columns=["file", "row", "id", "image", "label", *TEXTS])


def _kept(source: Source, where: str, example: dict) -> dict[str, Any]:
    """What is kept of a row.  Raises BadImage, BadQuestions."""
    where = f"{source.name}, {where}"
    kept = {"id": "", "label": -1, "captions": [], "question": "", "answers": []}
    for what, path in source.columns.items():
        column, _, field = path.partition(".")
        kept[what] = [entry[field] for entry in example[column]] if field else example[column]
        if isinstance(kept[what], str) and what in ("captions", "answers"):
            kept[what] = [kept[what]]  # a single one; a string must not be taken apart into letters
    kept["image"] = (kept["image"] or {}).get("bytes")
    kept["id"] = str(kept["id"])
    decoded(kept["image"], where)
    for what in TEXTS:
        if what in source.columns and not kept[what]:
            raise BadQuestions(f"{where}: the column '{source.columns[what]}' is empty. Choose another seed.")
    return kept


def decoded(encoded: bytes | None, where: str) -> Image.Image:
    """An image from its bytes: RGB, upright.  Raises BadImage."""
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise BadImage(f"{where}: the image cannot be read ({error}). Choose another seed.") from error
