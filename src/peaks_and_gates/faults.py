"""What the fault tests measured, as tables of the book's page on faults."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import store

KINDS = ("kills", "corruption", "concurrency", "disk", "fuzzing", "equalities", "mutations", "versions", "provenance")
KINDS += ("safety", "soak")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], label: str) -> str:
    """A table whose rows have a name each; it scrolls by itself where the page is too narrow."""
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>{"".join(f"<td>{html.escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    whole = f"<table><caption>{html.escape(label)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    whole = re.sub(r"(\de)-(\d)", "\\1\N{NON-BREAKING HYPHEN}\\2", whole)  # 1e-04 stays on one line
    return f'<div class="pg-wide" tabindex="0" role="region" aria-label="{html.escape(label)}">{whole}</div>'


def tried_html(path: Path) -> str:
    """One table of all kinds of fault, and what was tried of each, folded.

    path: what `make test-faults` leaves.  Raises HashMismatch if it is damaged.
    """
    if not path.is_file():
        return "<p>Not measured yet: run <code>make test-faults</code>.</p>"
    measured = store.read_json(path)
    found = {kind: [one for one in measured["figures"] if one["kind"] == kind] for kind in KINDS}
    cases = {kind: f"{sum(one['cases'] for one in ones):,}" for kind, ones in found.items()}
    rows = [(kind, cases[kind], str(len(ones))) for kind, ones in found.items()]
    parts = [
        f"<details><summary>{kind}: {cases[kind]} cases</summary>"
        + table(
            ("Tried", "Cases", "What came of it"),
            [(one["tried"], f"{one['cases']:,}", one["outcome"]) for one in ones],
            kind.capitalize(),
        )
        + "</details>"
        for kind, ones in found.items()
        if ones
    ]
    return table(("Kind", "Cases", "Ways to try it"), rows, came_of(measured)) + "".join(parts)


def versions_html(folder: Path, lock: Path) -> str:
    """The versions of every requirement that the tests were run at, and what came of each run.

    folder: where `make test-oldest` and `make test-newest` leave what came of them.  lock: the pinned versions.
    """
    kept = [folder / "oldest.json", folder / "newest.json"]
    runs = {path.stem: store.read_json(path) for path in kept if path.is_file()}
    if not runs:
        return "<p>Not tested yet: run <code>make test-oldest</code>.</p>"
    pins = dict(line.split("==") for line in lock.read_text().splitlines() if "==" in line)
    pins = {name.lower(): version for name, version in pins.items()}
    names = list(next(iter(runs.values()))["requirements"])
    columns = {name: run["requirements"] for name, run in runs.items()} | {"lock": pins}
    order = [name for name in ("oldest", "lock", "newest") if name in columns]
    rows = [(name, *(columns[column][name].partition("+")[0] for column in order)) for name in names]
    same = [
        (one["tried"], name, one["outcome"])
        for name, run in runs.items()
        for one in run["figures"]
        if one["tried"].startswith("transformers")
    ]
    return (
        "".join(f"<p>At the {name} versions. {html.escape(came_of(run))}</p>" for name, run in runs.items())
        + table(("Requirement", *(f"At the {column}" for column in order)), rows, "Versions of every requirement")
        + table(("Models", "Versions", "What came of it"), same, "Logits of small models, here = at the lock")
    )


def came_of(run: dict[str, Any]) -> str:
    """When and where tests ran, and how many passed."""
    environment = run["environment"]
    where = f"{run['created']}, {environment['cores']} cores, Python {environment['python']}"
    versions = ", ".join(f"{name} {environment['packages'][name]}" for name in ("torch", "transformers"))
    counts = ", ".join(f"{run[outcome]:,} {outcome}" for outcome in ("passed", "failed", "skipped"))
    return f"Run on {where}, {versions}: {counts}."
