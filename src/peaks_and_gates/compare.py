"""Two records side by side: which numbers moved, which left the interval they had, which verdicts changed.

moved = compare.records("old/results/laptop", "results/laptop")
compare.report(moved)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from . import record
from .errors import MissingFile

WHERE = ["condition", "model", "layer", "metric", "setting"]  # what tells the rows of a table apart
TOLERANCE = 0.005  # below it, two numbers print alike


@dataclass(frozen=True)
class Difference:
    """What two records do not have in common.

    n: numbers that both have.  moved: rows of both whose values differ by more than the tolerance, with columns table,
    WHERE, before, after, low and high (of the interval before).  missing: tables, or rows of a table, that one lacks.
    verdicts: by claim, before and after.
    """

    n: int
    moved: pd.DataFrame
    missing: list[str]
    verdicts: dict[str, tuple[str, str]]

    @property
    def outside(self) -> pd.DataFrame:
        """The rows whose new value is not in the interval that the old one had."""
        return self.moved[(self.moved["after"] < self.moved["low"]) | (self.moved["after"] > self.moved["high"])]

    @property
    def alike(self) -> bool:
        """Whether a reader would be told the same: no other verdict, nothing outside its interval, nothing missing."""
        return not (self.verdicts or self.missing or len(self.outside))


def records(before: str | Path, after: str | Path, tolerance: float = TOLERANCE) -> Difference:
    """Compare the tables and verdicts of two folders of one preset's results.  Raises MissingFile, HashMismatch."""
    folders = [Path(before), Path(after)]
    for folder in folders:
        if not (folder / "scorecard.json").is_file():
            raise MissingFile(f"{folder} is no record: it has no scorecard.json. Give a folder such as results/laptop.")
    old, new = ({path.stem: path for path in folder.glob("*.parquet")} for folder in folders)
    missing = [f"{name}: only in {folders[name in new]}" for name in sorted(old.keys() ^ new.keys())]
    found, n = [], 0
    for name in sorted(old.keys() & new.keys()):
        tables = [record.read(paths[name]) for paths in (old, new)]
        if not {*WHERE, "value"} <= set(tables[0]):
            continue  # trees, maps and pictures have no numbers with intervals
        both = tables[0].merge(tables[1], how="outer", on=WHERE, suffixes=("_old", "_new"), indicator=True)
        if lacking := int((both["_merge"] != "both").sum()):
            missing.append(f"{name}: {lacking} rows only in one")
        both = both[both["_merge"] == "both"]
        n += len(both)
        far = ~np.isclose(both["value_old"], both["value_new"], rtol=0, atol=tolerance, equal_nan=True)
        names = {"value_old": "before", "value_new": "after", "low_old": "low", "high_old": "high"}
        found.append(both[far].rename(columns=names)[[*WHERE, *names.values()]].assign(table=name))
    verdicts = [
        {claim["id"]: claim["verdict"] for claim in json.loads((f / "scorecard.json").read_text())} for f in folders
    ]
    claims = {
        name: tuple(each.get(name, "none") for each in verdicts) for name in sorted({**verdicts[0], **verdicts[1]})
    }
    moved = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["table", *WHERE, "before", "after"])
    return Difference(n, moved, missing, {name: pair for name, pair in claims.items() if pair[0] != pair[1]})


def report(found: Difference, longest: int = 20) -> str:
    """What `pg compare` prints."""
    lines = [f"{found.n:,} numbers in both; {len(found.moved)} moved, {len(found.outside)} out of their interval."]
    worst = found.outside.assign(by=(found.outside["after"] - found.outside["before"]).abs()).sort_values("by")[::-1]
    for row in worst.head(longest).itertuples():
        where = ", ".join(str(getattr(row, name)) for name in WHERE if str(getattr(row, name)))
        lines.append(f"  {row.table}: {where}: {row.before:.3f} [{row.low:.3f}, {row.high:.3f}] -> {row.after:.3f}")
    if len(worst) > longest:
        lines.append(f"  and {len(worst) - longest} more")
    lines += found.missing
    lines += [f"{claim}: {before} -> {after}" for claim, (before, after) in found.verdicts.items()]
    return "\n".join([*lines, "The same verdicts." if not found.verdicts else "Verdicts changed."])
