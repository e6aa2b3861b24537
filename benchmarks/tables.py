"""Write what the benchmarks measured, and the estimates, into the tables of book/scale.md and of the page on intervals.

    python benchmarks/tables.py

A table stands between the lines `<!-- table: NAME, NAME -->` and `<!-- end -->`, where a name is that of a benchmark.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import estimate
import pandas as pd

HERE = Path(__file__).parent
PAGES = [HERE.parent / "book" / page for page in ("scale.md", "methods/comparing-partitions.md")]
MIXTURE = ["n", "shape", "spread", "metric", "truth"]
N_PAGES = 5  # the longest pages of the book


def markdown(rows: list[dict[str, str]]) -> str:
    """A Markdown table of rows; a column that no row fills is left out.  Numbers stand on the right."""
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    right = [all(re.match(r"[\d.]|$", row[name]) for row in rows) for name in names]
    rule = ["---:" if numeric and i else "---" for i, numeric in enumerate(right)]
    lines = [names, rule, *([row[name] for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float | None) -> str:
    """Three digits; nothing for what was not measured."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def share_of_limit(row: dict) -> str:
    """Which share of the machine's limit is reached: of a rate from below, of a time from above."""
    if not row.get("limit"):
        return ""
    share = row["ours"] / row["limit"]
    return f"{share if row['unit'].endswith('/s') else 1 / share:.0%}"


def measured(rows: list[dict], benchmarks: list[str]) -> list[dict[str, str]]:
    """The rows of some benchmarks as text."""
    return [
        {
            "setting": f"{row['benchmark']}: " * (len(benchmarks) > 1) + row["setting"].replace("_", " "),
            "unit": row["unit"],
            "the book": number(row["ours"]),
            "plain way": number(row.get("reference")),
            "times better": number(row.get("ratio")),
            "limit": number(row.get("limit")),
            "share of it": share_of_limit(row),
            "agreement": row.get("agreement", ""),
        }
        for benchmark in benchmarks
        for row in rows
        if row["benchmark"] == benchmark
    ]


def tables() -> dict[str, list[dict[str, str]]]:
    """The tables that are not one benchmark's rows: machines, the longest pages, estimates."""
    files = {path.stem: json.loads(path.read_text())["machine"] for path in sorted(HERE.glob("measured/*.json"))}
    machines = [
        {
            "benchmark": f"{name}.py",
            "on": machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads",
            "with": f"torch {machine['packages']['torch']}, numpy {machine['packages']['numpy']}",
            "date": machine["date"],
        }
        for name, machine in files.items()
    ]
    longest = sorted(measured(load(), ["pages, cold"]), key=lambda row: -float(row["the book"]))[:N_PAGES]
    return {"machines": machines, "longest pages": longest, "estimates": estimate.table()} | coverage()


def coverage() -> dict[str, list[dict[str, str]]]:
    """How often intervals of what is counted on peaks hold the truth: way by way, and mixture by mixture."""
    table = pd.read_csv(HERE / "measured" / "coverage.csv")
    level = pd.cut(table["truth"], [-1, 0.1, 0.6, 1], labels=["index near 0", "index near .3", "index near .9"])
    table["number"] = table["metric"].map({"n_peaks": "number of peaks", "core_fraction": "core fraction"})
    table["number"] = table["number"].fillna(level.astype(str))
    table["widths"] = table["median_width"] / table["deviation"]
    percent = lambda shares: f"{shares.mean():.0%} ({shares.min():.0%} to {shares.max():.0%})"
    ways, small = [], table[table["n"] == table["n"].min()]
    for way, of_way in small.groupby("way", sort=False):
        row = {"way": way} | of_way.groupby("number", sort=False)["covered"].agg(percent).to_dict()
        within = of_way["covered"].between(0.93, 0.97).mean()
        ways.append(row | {"within 93 to 97 %": f"{within:.0%}", "width 0": f"{of_way['width_0'].mean():.1%}"})
        ways[-1]["width in deviations"] = f"{of_way['widths'].median():.1f}"
    return {"ways to make an interval": ways, "mixtures": by_mixture(table)}


def by_mixture(table: pd.DataFrame) -> list[dict[str, str]]:
    """The chosen way beside the jackknife, a row per mixture and number."""
    beside = table.pivot_table(["covered", "width_0", "median_width"], MIXTURE, "way", sort=False)
    rows = []
    for (n, shape, spread, metric, truth), row in beside.iterrows():
        about = {"N": f"{n:,}", "mixture": f"{shape}, {spread}", "number": metric, "truth": f"{truth:.3g}"}
        for name, way in (("", "redrawn"), (", jackknife", "parts of 90 %")):
            about[f"covered{name}"] = f"{row['covered', way]:.0%}"
            about[f"width 0{name}"] = f"{row['width_0', way]:.0%}"
            about[f"median width{name}"] = f"{row['median_width', way]:.2g}"
        rows.append(about)
    return rows


def load() -> list[dict]:
    """Every row that the benchmarks left."""
    return [row for path in sorted(HERE.glob("measured/*.json")) for row in json.loads(path.read_text())["rows"]]


def filled(page: str) -> str:
    """The page with every table made anew."""
    rows, made_here = load(), tables()

    def table(match: re.Match) -> str:
        names = match[1].split("; ")
        text = markdown(made_here[names[0]] if names[0] in made_here else measured(rows, names))
        return f"<!-- table: {match[1]} -->\n\n{text}\n\n<!-- end -->"

    return re.sub(r"<!-- table: ([^>]+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
