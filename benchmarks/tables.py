"""Write what the benchmarks measured, and the estimates, into the tables of book/scale.md.

    python benchmarks/tables.py

A table stands between the lines `<!-- table: NAME, NAME -->` and `<!-- end -->`, where a name is that of a benchmark.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import estimate

HERE = Path(__file__).parent
PAGE = HERE.parent / "book" / "scale.md"
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
    return {"machines": machines, "longest pages": longest, "estimates": estimate.table()}


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
    PAGE.write_text(filled(PAGE.read_text()))
