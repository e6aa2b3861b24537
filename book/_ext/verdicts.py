"""The directives that say what became of the claims: `{run-summary}`, `{gallery}` and `{scorecard}`.

Verdicts are those of the record that ships, whatever else the site shows.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import nbformat
from docutils import nodes
from peaks_book import folder_of, jobs, largest_n, newest, page_link
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from peaks_and_gates import record
from peaks_and_gates.book import claims
from peaks_and_gates.book.claims import Verdict
from peaks_and_gates.book.runner import Job

PARTS = {"landscape": "Part I: the representation landscape", "gate": "Part II: the narrow gate"}
PARTS["control"] = "Controls: models whose wiring is known"
# The page whose answer speaks for a paper on the front page, and what must be said with it.
LEADS = {"landscape": ("Part I", "subjects", "One network of 135 million parameters, read from 4-bit weights.")}
LEADS |= {"gate": ("Part II", "knockout_table", "Small models of the paper's architectures, which the book trained.")}


class Verdicts(SphinxDirective):
    """One of the three."""

    def run(self) -> list[nodes.Node]:
        """What stands in the directive's place."""
        preset = self.config.pg_preset
        for job in jobs(preset).values():
            self.env.note_dependency(str(job.record.with_suffix(".json")))
        return [
            nodes.raw("", DIRECTIVES[self.name](preset, claims.judge_all(folder_of(record.SHIPPED))), format="html")
        ]


def output_of(job: Job, tag: str) -> str:
    """The HTML that the cell with a tag left in an executed page; empty without one."""
    cells = nbformat.read(job.output, as_version=4).cells if job.is_drawn else []
    outputs = [output for cell in cells if tag in cell.metadata.get("tags", []) for output in cell.outputs]
    return "".join(output.get("data", {}).get("text/html", "") for output in outputs)


def run_summary(preset: str, verdicts: list[Verdict]) -> str:
    """What became of each paper's claims, in a sentence, and what the record behind this site is."""
    run = {job.name: job for job in jobs(preset).values() if job.manifest}
    if not run:
        return "<p>No notebook has been run yet.</p>"
    sentences = []
    for paper, (part, page, caveat) in LEADS.items():
        kinds = [verdict.verdict for verdict in verdicts if verdict.claim["paper"] == paper]
        counts = " · ".join(f"{claims.badge(kind)} {kinds.count(kind)}" for kind in claims.VERDICTS if kind in kinds)
        answer = re.search(r'<p class="pg-answer">(.*?)(?:<a |</p>)', output_of(run[page], "answer"), re.DOTALL)
        text = f"{answer[1] if answer else ''} <em>{caveat}</em> Of {len(kinds)} claims: {counts}."
        sentences.append(f"<strong>{part}.</strong> {text}")
    controls = [verdict.verdict for verdict in verdicts if verdict.claim["paper"] == "control"]
    n = max((largest_n(job) for job in run.values() if job.source.parent.name == "landscape"), default=0)
    sizes = " and ".join(f"<em>{size}</em>" for size in dict.fromkeys(job.preset for job in run.values()))
    text = f"The figures on this site are of size {sizes}: up to {n:,} questions, last run on {newest(preset)}."
    sentences.append(f"{text} Of the book's own {len(controls)} controls, {controls.count('pass')} pass.")
    return "".join(f'<p class="pg-summary">{sentence}</p>' for sentence in sentences)


def gallery(preset: str, verdicts: list[Verdict]) -> str:
    """A card for each page that a claim is judged on: its figure, ours beside the paper's, and the verdicts."""
    figures = []
    for docname, job in jobs(preset).items():
        chips = [f"{v.claim['id']} {claims.badge(v.verdict)}" for v in verdicts if v.claim["page"] == job.name]
        pictures = re.findall(r"<picture .*?</picture>", output_of(job, "hero"), re.DOTALL)[:2]  # light and dark
        if chips and pictures:
            picture = re.sub("<source [^>]*>", "", "".join(pictures))  # a card is narrow, but its text needs no reading
            figures.append(f"<li>{picture}<p>{page_link(docname, job)} {' '.join(chips)}</p></li>")
    return f'<ul class="pg-gallery">{"".join(figures)}</ul>'


def scorecard(preset: str, verdicts: list[Verdict]) -> str:
    """One table per paper: claim, the paper's value, ours, verdict, what a run of the reader's own gives, its page."""
    own = {}
    if preset != record.SHIPPED and folder_of(preset).is_dir():
        own = {verdict.claim["id"]: verdict for verdict in claims.judge_all(folder_of(preset))}
    columns = ("Claim", "The paper", "Here", "Verdict", *["Your run"] * bool(own), "Page")
    tables = []
    for paper, title in PARTS.items():
        of_paper = [verdict for verdict in verdicts if verdict.claim["paper"] == paper]
        rows = [scorecard_row(verdict, jobs(record.SHIPPED), own.get(verdict.claim["id"])) for verdict in of_paper]
        tables.append(cards(title, columns, rows))
    return f'<div class="pg-scorecards"><div class="pg-scorecard-filter"></div>{"".join(tables)}</div>'


def cards(title: str, columns: Sequence[str], rows: Sequence[str]) -> str:
    """A table whose rows are cards on a phone."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("", *columns))
    table = f"<table><caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="pg-scorecard" data-title="{title}">{table}</div>'


def card(name: str, cells: dict[str, str], attributes: str = "") -> str:
    """One row of such a table.  cells: by the titles of the columns."""
    body = "".join(f'<td data-label="{label}">{value}</td>' for label, value in cells.items())
    return f'<tr id="{name}"{attributes}><th scope="row">{name}</th>{body}</tr>'


def scorecard_row(verdict: Verdict, book: dict[str, Job], own: Verdict | None) -> str:
    """One claim as a table row, with what it is filtered and sorted by.  own: what the reader's run gives."""
    claim = verdict.claim
    place = [job.name for job in book.values()].index(claim["page"])
    docname, job = list(book.items())[place]
    cells = {
        "Claim": html.escape(claim["claim"]),
        "The paper": html.escape(f"{claim['paper_value']} ({claim['figure']})"),
        "Here": numbers(verdict),
        "Verdict": claims.badge(verdict.verdict),
    }
    if own:
        cells["Your run"] = f"{claims.badge(own.verdict)}<br>{numbers(own)}"
    cells["Page"] = page_link(docname, job)
    return card(claim["id"], cells, f' data-verdict="{verdict.verdict}" data-page="{place}"')


def numbers(verdict: Verdict) -> str:
    """What each part of a claim came to, and of how many questions or pictures."""
    lines = [f"{html.escape(part.says)}: {claims.number(part.estimate)} ({part.outcome})" for part in verdict.parts]
    if sizes := [part.estimate.n for part in verdict.parts if part.estimate]:
        n = " to ".join(f"{size:,}" for size in dict.fromkeys([min(sizes), max(sizes)]))
        lines.append(f'<span class="pg-size">N = {n}</span>')
    return "<br>".join(lines) or "not measured yet"


DIRECTIVES = {"run-summary": run_summary, "gallery": gallery, "scorecard": scorecard}


def setup(app: Sphinx) -> dict[str, Any]:
    """Register them with Sphinx."""
    for name in DIRECTIVES:
        app.add_directive(name, Verdicts)
    return {"version": version("peaks-and-gates"), "parallel_read_safe": True, "parallel_write_safe": True}
