"""Build the website from executed notebooks and the record; nothing is computed here.

The pages themselves are made by Sphinx with book/_ext/peaks_book.py.
"""

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from ..errors import BookError
from . import runner
from .keys import root
from .runner import Job

# What pages compute with.  Drawing takes none of it: stand-ins are imported, so that a site needs no torch and no time.
COMPUTING = ["torch", "transformers", "peft", "datasets", "dadapy", "safetensors", "tokenizers"]
# What drawing imports: loaded once, in the process that each page's own is a copy of.
DRAWING = ["IPython", "papermill", "seaborn", "pyarrow.parquet", "sklearn.decomposition", "sphinx.ext.autodoc"]


def build(preset: str) -> Path:
    """Build the site of a preset's record; returns the folder with index.html.

    A page that was run here is shown as it ran; one that is only recorded is drawn from its tables, and one that was
    not run at this size from those of the record that ships; without them it says so.  Raises HashMismatch if a
    recorded table is damaged, BookError if the builder reports a warning or an error.
    """
    jobs = runner.plan(preset)
    if jobs[0].record.parent.is_dir():
        runner.write_scorecard(jobs)
    draw([job for job in runner.shown(preset) if job.state != "missing" and not job.is_drawn])
    print("All pages together, by Sphinx", flush=True)
    target = root() / "_build" / "html"
    shutil.rmtree(target, ignore_errors=True)  # pages that are gone would stay
    builder = Path(sys.executable).with_name("jupyter-book")  # the script of this environment
    command = [builder, "build", root(), "--path-output", root(), "--all", "--warningiserror", "--keep-going"]
    settings = {"cwd": root(), "env": os.environ | {"PG_PRESET": preset, "PYTHONUTF8": "1"}, "encoding": "utf-8"}
    finished = subprocess.run(command, **settings, capture_output=True, check=False)
    log = root() / "_build" / "site.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text(finished.stdout + finished.stderr, "utf-8")
    if finished.returncode != 0:
        lines = [line for line in log.read_text("utf-8").splitlines() if "WARNING" in line or "ERROR" in line]
        raise BookError("\n".join(["The site could not be built:", *lines[:10], f"The log is {log}."]))
    return target


def draw(jobs: Sequence[Job]) -> None:
    """Draw recorded pages from their tables, each in a process of its own, with a line per page."""
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
    if os.name != "nt":
        context.set_forkserver_preload(DRAWING)
    with ProcessPoolExecutor(os.cpu_count(), context, max_tasks_per_child=1) as pool:
        running = {pool.submit(draw_page, job): job for job in jobs}
        for number, done in enumerate(as_completed(running), 1):
            result = f"shown without results: {done.exception()}" if done.exception() else "drawn from its record"
            print(f"[{number}/{len(jobs)}] {running[done].name}: {result}", flush=True)
            if not done.exception():
                runner.stamp(running[done])


def draw_page(job: Job) -> None:
    """Execute a page here, its tables read from its record and what computes left out, and keep the notebook.

    Raises BookError with the page's own message.
    """
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from nbformat.v4 import new_output
    from papermill.iorw import load_notebook_node, write_ipynb
    from papermill.parameterize import parameterize_notebook
    from sphinx.ext.autodoc.mock import mock

    os.environ |= {"PG_PAGE": job.name, "PG_RECORD": str(job.record.parent), "PG_REDRAW": "1", "TQDM_DISABLE": "1"}
    os.chdir(job.source.parent)
    shell, kernel = InteractiveShell.instance(), {"kernel_name": "python3", "language": "python"}
    notebook = parameterize_notebook(load_notebook_node(str(job.source)), job.parameters, **kernel)
    with mock(COMPUTING):
        for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
            with capture_output() as captured:
                run = shell.run_cell(cell.source)
            if error := run.error_before_exec or run.error_in_exec:
                raise BookError(f"{type(error).__name__}: {error}")
            cell.execution_count = number
            cell.outputs = [new_output("display_data", o.data, metadata=o.metadata) for o in captured.outputs]
            if run.result is not None:
                data, about = shell.display_formatter.format(run.result)
                cell.outputs.append(new_output("execute_result", data, metadata=about, execution_count=number))
    job.output.parent.mkdir(parents=True, exist_ok=True)
    write_ipynb(notebook, str(job.output))
