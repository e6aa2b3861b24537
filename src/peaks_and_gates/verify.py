"""Compute recorded pages anew, from nothing, and say how far their numbers are from the record's.

    print(verify.report(verify.pages(book.plan("laptop", ["known_agreement"]))))

The store is an empty one, so nothing that was stored before can stand in for the computation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from . import record
from .book import runner as book
from .book.runner import Job
from .compare import TOLERANCE
from .errors import MissingFile


@dataclass(frozen=True)
class Verified:
    """One recorded table beside the same one computed anew.

    n: numbers compared.  deviation: the largest absolute difference.  otherwise: what else is not the same (columns,
    rows, words), or empty.
    """

    page: str
    table: str
    n: int
    deviation: float
    otherwise: str

    @property
    def holds(self) -> bool:
        """Whether a reader would be shown the same."""
        return not self.otherwise and self.deviation <= TOLERANCE


def pages(jobs: Sequence[Job]) -> Iterator[Verified]:
    """Compute the recorded pages among the jobs anew, one after the other; a result for each of their tables.

    Raises MissingFile if none is recorded, HashMismatch if a recorded table is damaged, BookError if a page fails.
    """
    recorded = [job for job in jobs if job.manifest]
    if not recorded:
        raise MissingFile(f"{jobs[0].record} holds none of these pages: `pg run` records them.")
    with tempfile.TemporaryDirectory(prefix="pg-verify-") as folder, book.environment({"PG_CACHE": f"{folder}/cache"}):
        for job in recorded:  # they share what they store, as in a run
            again = replace(job, record=Path(folder, "record"), output=Path(folder, job.source.name))
            book.execute(again)
            for name in job.manifest["tables"]:
                tables = [record.read(each.record / f"{name}.parquet") for each in (job, again)]
                yield Verified(job.name, name, *compared(*tables))


def compared(before: pd.DataFrame, after: pd.DataFrame) -> tuple[int, float, str]:
    """How many numbers two tables have, by how much they differ at most, and what else is not the same."""
    if list(before) != list(after) or len(before) != len(after):
        shapes = " and ".join(f"{len(table):,} rows of {', '.join(table)}" for table in (before, after))
        return 0, 0.0, f"other rows or columns: {shapes}"
    n, deviation, other = 0, 0.0, []
    for name in before:
        old, new = before[name], after[name]
        if pd.api.types.is_numeric_dtype(old) and pd.api.types.is_numeric_dtype(new):
            old, new = (column.to_numpy(float) for column in (old, new))
            n += len(old)
            far = np.where((old == new) | (np.isnan(old) & np.isnan(new)), 0.0, np.abs(old - new))
            deviation = max(deviation, float(np.nan_to_num(far, nan=np.inf).max(initial=0.0)))
        elif not old.equals(new):
            other.append(name)
    return n, deviation, f"other words in {', '.join(other)}" if other else ""


def report(found: Sequence[Verified]) -> str:
    """What `pg verify` prints: a line a table, and the sum of them."""
    lines = [
        f"{'as recorded' if one.holds else 'DIFFERENT':12} {one.page}: {one.table}, {one.n:,} numbers, "
        f"largest difference {one.deviation:.2g}" + (f"; {one.otherwise}" if one.otherwise else "")
        for one in found
    ]
    held = sum(one.holds for one in found)
    total = sum(one.n for one in found)
    return "\n".join([*lines, f"{held} of {len(found)} tables as recorded, {total:,} numbers, tolerance {TOLERANCE}."])
