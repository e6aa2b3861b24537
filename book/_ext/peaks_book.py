"""What the site adds to Sphinx: pages as they were run, links to the glossary, pictures and tables in files.

Nothing is executed.  Pages that were run at the size of PG_PRESET, or laptop, are shown as they ran, the others as the
record that ships has them; `pg site` sets it, after it has drawn the pages that are recorded and were not run here.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import html
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from nbformat import NotebookNode
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config

from peaks_and_gates import record
from peaks_and_gates.book import runner, site
from peaks_and_gates.book.runner import Job

GLOSSARY = "book/glossary"
# Words of the glossary that mean something else in running text as often as not.
ORDINARY = {"control", "core", "eyes", "null", "order", "scale", "Z"}
PICTURE = re.compile(r'(src|srcset)="data:image/svg\+xml;base64,([^"]+)"')
PICTURED = re.compile(r'<figure class="pg-figure">.*?<img[^>]* src="([^"]+)".*?<p class="pg-sources">', re.DOTALL)
GLUED = re.compile(r"\{glue:text\}`[^`]*`")  # what myst-nb puts a text of the page's code in place of
SIZE = re.compile(rb'<svg[^>]* width="([0-9.]+)pt" height="([0-9.]+)pt"')  # as matplotlib writes it


@cache
def jobs(preset: str) -> dict[str, Job]:
    """The book's pages that are notebooks, by their name for Sphinx: `notebooks/landscape/subjects`."""
    return {f"notebooks/{job.source.parent.name}/{job.name}": job for job in runner.shown(preset)}


def folder_of(preset: str) -> Path:
    """Where the record of a size is."""
    return runner.plan(preset)[0].record.parent


def newest(preset: str) -> str:
    """The date of the newest recorded run; empty if there was none."""
    return max((job.manifest["created"][:10] for job in jobs(preset).values() if job.manifest), default="")


def configure(app: Sphinx, config: Config) -> None:
    """Version of the book and date of its results at the foot of every page; docstrings are read without torch."""
    config.autodoc_mock_imports = site.COMPUTING
    date = newest(config.pg_preset)
    results = f", results of {date}" if date else ""
    footer = f'<p class="pg-version">Version {version("peaks-and-gates")}{results}.</p>'
    theme = config.html_theme_options | {"extra_footer": footer}
    buttons = dict.fromkeys(["use_repository_button", "use_edit_page_button", "use_issues_button"], True)
    config.html_theme_options = theme | (buttons if theme["repository_url"] else {"launch_buttons": {}})


# ---- pages


def show_run(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the executed notebook in place of a page's source, which has no outputs."""
    job = jobs(app.config.pg_preset).get(docname)
    if job:
        for path in (job.output, job.record.with_suffix(".json")):
            if path.is_file():
                app.env.note_dependency(str(path))
        source[0] = nbformat.writes(page(job))


def page(job: Job) -> NotebookNode:
    """The notebook as the site shows it: answer and hero figure under the title, parameters as used and folded, no
    console output, how it was run at the foot.  Prose that takes numbers from a run has an ellipsis without one."""
    run = job.state != "missing" and job.is_drawn
    notebook = nbformat.read(job.output if run else job.source, as_version=4)
    # Of the notebook's own parameters and those that papermill put in, the page shows the ones that say more: the
    # first, with their comments, where the values are the same.
    same = runner.declared(job.source) == job.parameters
    hidden = "injected-parameters" if same else "parameters" if run else None
    notebook.cells = [cell for cell in notebook.cells if hidden not in cell.metadata.get("tags", [])]
    for cell, tables in zip(notebook.cells, tables_of(notebook), strict=True):
        if cell.cell_type == "code":
            cell.outputs = [with_sources(o, job, tables) for o in cell.outputs if o.output_type != "stream"]
        elif not run:
            cell.source = GLUED.sub("…", cell.source)
        cell.metadata.pop("papermill", None)
        if not {"parameters", "injected-parameters"}.isdisjoint(cell.metadata.get("tags", [])):
            cell.metadata["tags"].append("hide-input")
    notebook.metadata.pop("papermill", None)
    box = nbformat.v4.new_markdown_cell(run_box(job) if run else not_run(job), id="run-box")
    title, *rest = notebook.cells
    notebook.cells = [title, *first_screen(rest), *rest, box] if run else [title, box, *rest]
    return notebook


def first_screen(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs of the cells tagged `answer` and `hero`, taken from their place; their code stays there."""
    lifted, about = [], {"tags": ["remove-input"]}
    for tag in ("answer", "hero"):
        for cell in [cell for cell in cells if tag in cell.metadata.get("tags", [])]:
            lifted.append(nbformat.v4.new_code_cell("", outputs=cell.outputs, metadata=about, id=tag))
            cell.outputs = []
    return lifted


def tables_of(notebook: NotebookNode) -> Iterator[list[str]]:
    """The recorded tables whose numbers each cell shows: those that its names were made from."""
    origins: dict[str, set[str]] = {}  # the tables behind a variable or function
    for cell in notebook.cells:
        of_cell: set[str] = set()
        is_code = cell.cell_type == "code" and "install" not in cell.metadata.get("tags", [])
        for statement in ast.parse(cell.source).body if is_code else ():
            names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
            tables = set().union(*(origins.get(node.id, ()) for node in names))
            made = [node.id for node in names if isinstance(node.ctx, ast.Store)]
            if isinstance(statement, ast.FunctionDef):
                made = [statement.name]
                tables = {statement.name} if "recorded" in map(ast.unparse, statement.decorator_list) else tables
            origins |= dict.fromkeys(made, tables)
            of_cell |= tables
        yield sorted(of_cell)


def with_sources(output: NotebookNode, job: Job, tables: Sequence[str]) -> NotebookNode:
    """An output with links to the tables behind its figures; `lighten` puts one to the picture in front of them."""
    if '<figure class="pg-figure' in (text := output.get("data", {}).get("text/html", "")):
        links = [f'<a href="../../_static/tables/{job.name}.{name}.csv">{name} (CSV)</a>' for name in tables]
        output.data["text/html"] = text.replace("</figure>", f'<p class="pg-sources">{" ".join(links)}</p></figure>')
    return output


def not_run(job: Job) -> str:
    """What a page without results says instead."""
    on_gpu = f"<code>pg run --preset paper --model chameleon-7b --only {job.name}</code>, on a GPU"
    again = command(job) if job.runnable else on_gpu
    return f'<aside class="pg-run-box"><p>Not run at this size. Run it with {again}.</p></aside>'


def run_box(job: Job) -> str:
    """Size, models, N, seed, date, time and the command that repeats the run, as HTML."""
    manifest, parameters = job.manifest, job.manifest["parameters"]
    machine, models = manifest["environment"], runner.models_of(parameters)
    hardware = machine["gpu"] or f"{machine['cores']} cores, {machine['memory_gib']} GiB"
    pictures = job.source.parent.name == "gate" or not parameters.keys().isdisjoint({"cards", "wired"})
    packages = {"dadapy": "none (the book's own lines)"} | machine["packages"]
    kind = "pictures" if pictures else "questions" if models or "second" in parameters else "points"
    count = "drawn scenes" if pictures else "synthetic"
    count = f"up to {largest_n(job):,}" if models or kind == "questions" else count
    facts = {
        "size": manifest["preset"],
        "models": ", ".join(models),
        kind: count,
        "seed": parameters.get("seed"),
        "run": f"{manifest['created'][:10]}, {hardware}, {manifest['dtype']}",
        "with": f"torch {packages['torch']}, numpy {packages['numpy']}, DADApy: {packages['dadapy']}",
        "took": f"{manifest['seconds'] / 60:.1f} min, without what other pages had stored",
        "repeat": command(job),
        "key": f"<code>{manifest['key']}</code>",
    }
    items = [f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items() if value not in (None, "")]
    stale = "<p><strong>Stale:</strong> the code changed after this run.</p>" if job.state == "stale" else ""
    return f'<aside class="pg-run-box" aria-label="How this page was made"><dl>{"".join(items)}</dl>{stale}</aside>'


def largest_n(job: Job) -> int:
    """The largest number of questions, or pictures, behind a number of a page."""
    tables = record.read(job.record).values() if job.manifest else ()
    return max((int(table["n"].max()) for table in tables if "n" in table and table["n"].notna().any()), default=0)


def page_link(docname: str, job: Job) -> str:
    """A link to a page by its title."""
    title = nbformat.read(job.source, as_version=4).cells[0].source.splitlines()[0].lstrip("# ")
    return f'<a href="../{docname}.html">{html.escape(title)}</a>'


def command(job: Job) -> str:
    """The command that runs a page again."""
    return f"<code>pg run --preset {job.preset} --only {job.name}</code>"


# ---- the glossary


def glossary_terms(text: str) -> dict[str, str]:
    """The glossary's words with what it says of each, longest first.  text: the page, in MyST."""
    entries = re.findall(r"^(\w[^\n]*)\n((?:[ ]+[^\n]+\n)+)", text.partition("```{glossary}")[2], re.M)
    terms = {}
    for name, says in sorted(entries, key=lambda entry: -len(entry[0])):
        says = re.sub(r"\s*\{cite:p\}`[^`]*`|\s*See \[[^\]]*\]\([^)]*\)\.", "", " ".join(says.split()))
        terms[name] = re.sub(r"\{term\}`([^`]*)`|[`*]", r"\1", says)
    return {name: says for name, says in terms.items() if name not in ORDINARY}


def link_terms(app: Sphinx, doctree: nodes.document) -> None:
    """Link each word of the glossary where it first stands in a paragraph of a page, as the role `term` does."""
    docname = app.env.docname
    terms = glossary_terms((Path(app.srcdir) / f"{GLOSSARY}.md").read_text())
    if docname.startswith((GLOSSARY, "book/api/")) or not terms:
        return
    names = [f"(?i:{re.escape(name)})" if name.islower() else re.escape(name) for name in terms]
    pattern, by_name = re.compile(rf"(?<![\w-])({'|'.join(names)})s?(?![\w-])"), {name.lower(): name for name in terms}
    for node in [*doctree.findall(nodes.Text)]:
        if not isinstance(node.parent, nodes.paragraph):
            continue
        text, parts, end = node.astext(), [], 0
        for match in pattern.finditer(text):
            name = by_name.pop(match[1].lower(), None)
            if name:
                word = nodes.abbreviation(match[0], match[0], explanation=terms[name], classes=["pg-term"])
                target = {"refdomain": "std", "reftype": "term", "reftarget": name, "refexplicit": True}
                link = addnodes.pending_xref("", word, refdoc=docname, **target)
                parts += [nodes.Text(text[end : match.start()]), link]
                end = match.end()
        if parts:
            node.parent.replace(node, [*parts, nodes.Text(text[end:])])


# ---- what is written


def lighten(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Write a page's pictures, which its notebook holds, into files that are loaded when they come into sight.

    A page without formulas does without MathJax.
    """

    def picture(match: re.Match[str]) -> str:
        svg = base64.b64decode(match[2])
        name = f"_static/pictures/{hashlib.sha256(svg).hexdigest()[:16]}.svg"
        path = Path(app.outdir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(svg)
        attributes = f'{match[1]}="{context["pathto"](name, 1)}"' + ' loading="lazy"' * (match[1] == "src")
        if size := SIZE.search(svg):  # known beforehand, so that the text does not jump when the picture comes
            width, height = (round(float(points) * 4 / 3) for points in size.groups())
            attributes += f' width="{width}" height="{height}"'
        return attributes

    if 'class="math' not in context.get("body", ""):
        scripts = context["script_files"]
        scripts[:] = [script for script in scripts if "mathjax" not in f"{script.filename}{script.attributes}".lower()]
    if "body" in context:
        body = PICTURE.sub(picture, context["body"])
        body = PICTURED.sub(r'\g<0><a href="\1">picture (SVG)</a> ', body)
        # Of the list of references: one role is deprecated, and a list may not hold the marks that links lead to.
        context["body"] = re.sub(r' role="doc-biblioentry"|(?<=<div) role="list"(?= class="citation-list")', "", body)


def add_data(app: Sphinx, error: Exception | None) -> None:
    """The verdicts as data, for a machine to read, and the tables behind the figures."""
    scorecard = folder_of(record.SHIPPED) / "scorecard.json"
    if error is None and scorecard.is_file():
        shutil.copy2(scorecard, Path(app.outdir) / "scorecard.json")
    folder = Path(app.outdir) / "_static" / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    for job in [job for job in jobs(app.config.pg_preset).values() if job.manifest and error is None]:
        for name, table in record.read(job.record).items():
            table.to_csv(folder / f"{job.name}.{name}.csv", index=False)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all of it with Sphinx."""
    app.add_config_value("pg_preset", lambda config: os.environ.get("PG_PRESET", "laptop"), "env", str)
    app.connect("config-inited", configure)
    app.connect("source-read", show_run)
    app.connect("doctree-read", link_terms)
    app.connect("html-page-context", lighten, priority=900)  # behind MathJax's own
    app.connect("build-finished", add_data)
    return {"version": version("peaks-and-gates"), "parallel_read_safe": True, "parallel_write_safe": True}
