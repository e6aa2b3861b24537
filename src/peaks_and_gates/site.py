"""Build the website from executed notebooks and the record; nothing is computed here."""

from __future__ import annotations

import copy
import html
import json
import re
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode

from . import faults, record, trim
from .book import claims
from .book import runner as book
from .book.keys import root as checkout
from .book.runner import Job
from .errors import BookError
from .reference import modules_markdown as api


def build(preset: str) -> Path:
    """Build the site of a preset's record; returns the folder with index.html.

    A notebook that was run here is shown as it ran; one that is only recorded is redrawn from its tables; one that is
    neither is shown without results, and says so.  Raises HashMismatch if a recorded table is damaged, BookError if the
    builder reports a warning or an error.
    """
    root = checkout()
    source = root / "_build" / "site"
    source.mkdir(parents=True, exist_ok=True)
    jobs = book.plan(preset)
    config = yaml.safe_load((root / "_config.yml").read_text())
    write_if_changed(source / "_config.yml", yaml.safe_dump(settings(config, newest(jobs)), allow_unicode=True))
    shutil.copy2(root / "_toc.yml", source / "_toc.yml")
    shutil.copytree(root / "book", source / "book", dirs_exist_ok=True)
    words = json.dumps(terms((root / "book" / "glossary.md").read_text()), ensure_ascii=False)
    write_if_changed(source / "book" / "_static" / "glossary_terms.js", f"window.PG_TERMS = {words};\n")
    folder = jobs[0].record.parent
    check_record(folder)
    for job in jobs:
        write_if_changed(source / "notebooks" / job.source.parent.name / job.source.name, nbformat.writes(page(job)))
    for path in (source / "book" / "api").glob("*.md"):
        path.write_text(re.sub(r"<!-- api: (.+?) -->", lambda names: api(names[1].split()), path.read_text()))
    verdicts = book.write_scorecard(jobs) if folder.is_dir() else []
    fill(source / "book" / "scorecard.md", "<!-- scorecard -->", scorecard_html(verdicts, preset))
    kept = root / "tests" / "faults"
    fill(source / "book" / "faults.md", "<!-- faults -->", faults.tried_html(kept / "figures.json"))
    fill(source / "book" / "faults.md", "<!-- versions -->", faults.versions_html(kept, root / "requirements.lock"))
    fill(source / "book" / "index.md", "<!-- run-summary -->", summary_html(jobs, verdicts))
    builder = Path(sys.executable).with_name("jupyter-book")  # the script of this environment
    command = [str(builder), "build", str(source), "--path-output", str(root)]
    done = subprocess.run([*command, "--warningiserror", "--keep-going"], capture_output=True, text=True, check=False)
    log = root / "_build" / "site.log"
    log.write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        lines = [line for line in log.read_text().splitlines() if "WARNING" in line or "ERROR" in line]
        raise BookError("The site could not be built: " + "\n".join(lines[:10] or ["see"]) + f"\nThe log is {log}.")
    target = root / "_build" / "html"
    trim.trim(target)
    for job in jobs:  # what a page offers to download: the notebook without outputs, as it is in the repository
        shutil.copy2(job.source, target / "_sources" / "notebooks" / job.source.parent.name / job.source.name)
    if (folder / "scorecard.json").is_file():
        shutil.copy2(folder / "scorecard.json", target / "scorecard.json")
    return target


def settings(config: dict[str, Any], date: str) -> dict[str, Any]:
    """The builder's settings: version and date at the foot of every page; nothing that would lead to a public
    repository (launch, source and edit buttons) if none is named.

    config: as in _config.yml.  date: of the results.
    """
    config = copy.deepcopy(config)
    said = f"Version {version('peaks-and-gates')}" + (f", results of {date}" if date else "")
    config["html"]["extra_footer"] = f'<p class="pg-version">{said}.</p>'
    if not config["repository"]["url"]:
        config["launch_buttons"] = {"thebe": False}
        config["html"] |= dict.fromkeys(("use_edit_page_button", "use_issues_button", "use_repository_button"), False)
    config["sphinx"]["config"]["ogp_site_url"] = config["html"].get("baseurl", "")
    return config


def newest(jobs: list[Job]) -> str:
    """The date of the newest run; empty if there was none."""
    return max((job.manifest["created"][:10] for job in jobs if job.manifest), default="")


# Words of the glossary that mean something else in running text as often as not.
ORDINARY = {"control", "core", "eyes", "null", "order", "scale", "Z"}


def terms(glossary: str) -> list[dict[str, str]]:
    """The words that are explained where they stand on a page, longest first: name, anchor, says.

    glossary: the page, in MyST; a word stands at the beginning of a line, what it means is indented below.
    """
    found = []
    for name, said in re.findall(r"^(\w[^\n]*)\n((?:[ ]+[^\n]+\n)+)", glossary.partition("```{glossary}")[2], re.M):
        said = re.sub(r"\s*\{cite:p\}`[^`]*`|\s*See \[[^\]]*\]\([^)]*\)\.", "", " ".join(said.split()))
        said = re.sub(r"\{term\}`([^`]*)`|[`*]", r"\1", said)
        if name not in ORDINARY:
            found.append({"name": name, "anchor": f"term-{name.replace(' ', '-')}", "says": said})
    return sorted(found, key=lambda term: -len(term["name"]))


def write_if_changed(path: Path, text: str) -> None:
    """Leave an unchanged file alone, so that the builder does not read it again."""
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def fill(path: Path, marker: str, content: str) -> None:
    """Put generated HTML where a page has its marker.  Raises BookError if the page has none."""
    text = path.read_text()
    if marker not in text:
        raise BookError(f"{path.name} has no line '{marker}' for the generated part.")
    path.write_text(text.replace(marker, content))


def page(job: Job) -> NotebookNode:
    """The notebook as the site shows it: run box under the title, parameters as used, no console output."""
    notebook, note = nbformat.read(job.source, as_version=4), not_run(job)
    if job.state != "missing":
        try:
            if not job.drawn:
                book.execute(job)
                book.stamp(job)
            notebook, note = nbformat.read(job.output, as_version=4), run_box(job)
        except BookError as error:
            warnings.warn(f"{job.name} is shown without results: {error}", stacklevel=2)
    # Of the notebook's own parameters cell and the one papermill put in, the page shows the one that says more:
    # the first, with its comments, where the values are the same.
    defaults = book.declared(job.source) == job.parameters
    superfluous = "injected-parameters" if defaults else "parameters"
    cells = []
    for cell in notebook.cells:
        if superfluous in cell.metadata.get("tags", []) and (defaults or job.state != "missing"):
            continue
        if cell.cell_type == "code":
            cell.outputs = [keyed(output, job) for output in cell.outputs if output.output_type != "stream"]
        cell.metadata.pop("papermill", None)
        cells.append(cell)
    cells.insert(1, nbformat.v4.new_markdown_cell(note, id="run-box"))
    notebook.cells = cells
    notebook.metadata.pop("papermill", None)
    return notebook


def keyed(output: NotebookNode, job: Job) -> NotebookNode:
    """A cell's output, every figure of which carries the key of the run that its numbers are from."""
    data = output.get("data", {})
    if "text/html" in data:
        data["text/html"] = data["text/html"].replace("<figure ", f'<figure data-run-key="{job.manifest["key"]}" ')
    return output


def check_record(folder: Path) -> None:
    """Raise MissingFile or HashMismatch, naming the file, if a table or a page's manifest is not what was recorded."""
    for path in record.pages(folder):
        record.manifest(path)


def not_run(job: Job) -> str:
    """What a page without results says instead."""
    command = f"<code>pg run --preset {job.preset} --only {job.name}</code>"
    if not job.runnable:
        command = f"<code>pg run --preset paper --model chameleon-7b --only {job.name}</code>, on a GPU"
    return f'<aside class="pg-run-box"><p>Not run at this size. Run it with {command}.</p></aside>'


def run_box(job: Job) -> str:
    """Size, model, N, seed, date, time and the command that repeats the run, as HTML."""
    manifest, parameters = job.manifest, job.manifest["parameters"]
    environment = manifest["environment"]
    hardware = environment["gpu"] or f"{environment['cores']} cores, {environment['memory_gib']} GiB"
    pictures = job.source.parent.name == "gate" or not parameters.keys().isdisjoint({"cards", "wired"})
    if "measured" in parameters:
        seen, what = "numbers", "what the benchmarks left"
    elif not book.models_of(parameters):
        seen, what = ("pictures", "drawn scenes") if pictures else ("points", "synthetic")
    else:
        seen, what = "pictures" if pictures else "questions", f"up to {recorded_n(job):,}"
    facts = {
        "size": manifest["preset"],
        "models": ", ".join(book.models_of(parameters)),
        seen: what,
        "seed": parameters.get("seed"),
        "run": f"{manifest['created'][:10]}, {hardware}, {manifest.get('dtype', 'unknown precision')}",
        "took": f"{manifest['seconds'] / 60:.1f} min, without what other pages had stored",
        "repeat": f"<code>pg run --preset {manifest['preset']} --only {job.name}</code>",
        "key": f"<code>{manifest['key']}</code>",
    }
    stale = "" if job.state != "stale" else "<p><strong>Stale:</strong> the code changed after this run.</p>"
    facts = {name: value for name, value in facts.items() if value not in (None, "")}
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f'<aside class="pg-run-box" aria-label="How this page was made"><dl>{items}</dl>{stale}</aside>'


def recorded_n(job: Job) -> int:
    """The largest number of questions, or pictures, behind a number of a page."""
    tables = record.read(job.record).values()
    return max((int(table["n"].max()) for table in tables if "n" in table and len(table)), default=0)


def scorecard_html(verdicts: list[claims.Verdict], preset: str) -> str:
    """One table per paper: claim, what the paper found, what was found here, verdict, and where to look."""
    if not verdicts:
        return "<p>Nothing has been run at this size yet.</p>"
    titles = {"landscape": "Part I: the representation landscape", "gate": "Part II: the narrow gate"}
    titles["control"] = "Controls: models whose wiring is known"
    tables = []
    for paper, title in titles.items():
        rows = "".join(scorecard_row(v, preset) for v in verdicts if v.claim["paper"] == paper)
        head = "".join(f'<th scope="col">{name}</th>' for name in ("", "Claim", "The paper", "Here", "Verdict", "Page"))
        table = f"<table><caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        tables.append(f'<div class="pg-scorecard" data-title="{title}">{table}</div>')
    script = '<script src="../_static/scorecard.js" defer></script>'
    board = f'<div class="pg-scorecards"><div class="pg-scorecard-filter"></div>{"".join(tables)}</div>'
    return f"{board}{script}"


def scorecard_row(verdict: claims.Verdict, preset: str) -> str:
    """One claim as a table row, with what it is filtered and sorted by."""
    claim = verdict.claim
    pages = list(book.notebooks())
    found = "<br>".join(
        f"{html.escape(part.says)}: {claims.number(part.found)} ({part.outcome})" for part in verdict.parts
    )
    page, link = len(pages), "planned"
    if claim.get("page"):
        page = pages.index(claim["page"])
        link = f"{page_link(claim['page'])}<br><code>pg run --preset {preset} --only {claim['page']}</code>"
    if sizes := sorted({part.found.n for part in verdict.parts if part.found}):
        n = " to ".join(f"{size:,}" for size in dict.fromkeys([sizes[0], sizes[-1]]))
        found += f'<br><span class="pg-size">{preset}, N = {n}</span>'
    cells = {
        "Claim": html.escape(claim["claim"]),
        "The paper": html.escape(f"{claim['paper_value']} ({claim['figure']})"),
        "Here": found or "not measured yet",
        "Verdict": claims.badge(verdict.verdict),
        "Page": link,
    }
    body = "".join(f'<td data-label="{name}">{value}</td>' for name, value in cells.items())
    about = f'data-verdict="{verdict.verdict}" data-page="{page}"'
    return f'<tr {about}><th scope="row">{claim["id"]}</th>{body}</tr>'


def page_link(name: str) -> str:
    """A link from a page in `book/` to a notebook's page."""
    path = book.notebooks()[name]
    title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].lstrip("# ")
    return f'<a href="../notebooks/{path.parent.name}/{name}.html">{html.escape(title)}</a>'


def summary_html(jobs: list[Job], verdicts: list[claims.Verdict]) -> str:
    """What the record behind this site is, in one paragraph."""
    done: list[dict[str, Any]] = [job.manifest for job in jobs if job.manifest]
    if not done:
        return "<p>No notebook has been run at this size yet.</p>"
    counts = " · ".join(f"{claims.badge(kind)} {sum(v.verdict == kind for v in verdicts)}" for kind in claims.VERDICTS)
    asked = max((recorded_n(job) for job in jobs if job.source.parent.name == "landscape" and job.manifest), default=0)
    first, *others = book.models_of({key: value for manifest in done for key, value in manifest["parameters"].items()})
    models = f"{first} and {len(others)} more models" if others else first
    return (
        f'<p class="pg-summary">The figures on this site are of size <em>{done[0]["preset"]}</em>: {models}, '
        f"{asked:,} questions, last run on {newest(jobs)}. Of {len(verdicts)} claims: {counts}.</p>"
    )
