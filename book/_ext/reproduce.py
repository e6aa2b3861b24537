"""The directive `{reproduce}`: a table of numbers that another run should give again, filled in from the record.

Its content lists them in YAML: what each says, its page, table and row (values of columns), and a tolerance.
"""

from __future__ import annotations

import html
from importlib.metadata import version
from typing import Any

import yaml
from docutils import nodes
from peaks_book import command, jobs, page_link
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from verdicts import card, cards

from peaks_and_gates import record


class Reproduce(SphinxDirective):
    """The table.  A number without a row in the record is "not run"."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """What stands in the directive's place.  Raises KeyError for a page or table that is not there."""
        pages = {job.name: (docname, job) for docname, job in jobs(self.config.pg_preset).items()}
        rows, columns = [], ("Number", "Table and row", "In the record", "Tolerance", "Page")
        for place, number in enumerate(yaml.safe_load("\n".join(self.content)), 1):
            docname, job = pages[number["page"]]
            self.env.note_dependency(str(job.record.with_suffix(".json")))
            where, matches = number["where"], ()
            if job.manifest:
                table = record.read(job.record)[number["table"]]
                matches = table[(table[[*where]] == [*where.values()]).all(axis=1)].itertuples()
            values = [html.escape(f"{column}: {value}") for column, value in where.items()]
            value = ", ".join(f"{row.value:z.4f} (N = {row.n:,.0f})" for row in matches) or "not run"
            page = f"{page_link(docname, job)}<br>{command(job)}"
            look = "<br>".join([f"<code>{number['table']}</code>", *values])
            cells = html.escape(number["says"]), look, value, f"± {number['tolerance']}", page
            rows.append(card(str(place), dict(zip(columns, cells, strict=True))))
        return [nodes.raw("", cards("The numbers", columns, rows), format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register it with Sphinx."""
    app.add_directive("reproduce", Reproduce)
    return {"version": version("peaks-and-gates"), "parallel_read_safe": True, "parallel_write_safe": True}
