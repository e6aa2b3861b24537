"""Run the notebooks with papermill, keep their record, and know which of them are done, stale or missing."""

from __future__ import annotations

import ast
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import papermill
from traitlets.config import Config

from .. import claims, models, presets, record, store, vlms
from ..errors import BadParameter, BookError, UnknownName
from ..freshness import page_key, root, run_key

CHAPTERS = {
    "landscape": (
        "cartoon",
        "accuracy",
        "density_peaks",
        "subjects",
        "answers",
        "dendrogram",
        "fine_tuning_dynamics",
        "robustness",
        "probes",
    ),
    "gate": (
        "scenes",
        "minis",
        "modality_gap",
        "cross_attention",
        "class_overlap",
        "knockout_table",
        "progressive_knockout",
        "patching",
        "steering",
        "opening_the_gate",
    ),
    "beyond": ("shots", "hierarchy", "landscape_map", "narrow_gates"),
    "methods": (
        "known_rule",
        "known_stream",
        "known_dimension",
        "known_peaks",
        "known_agreement",
        "known_rank",
        "known_wiring",
    ),
}


@dataclass(frozen=True)
class Job:
    """One notebook to run at one size.

    record: folder of the tables.  output: where the executed notebook goes.  key: changes when the page must be rerun.
    """

    name: str
    preset: str
    source: Path
    output: Path
    record: Path
    parameters: dict[str, Any]
    key: str

    @property
    def manifest_path(self) -> Path:
        """What is known of the last successful run."""
        return self.record / "notebooks" / f"{self.name}.json"

    @property
    def marker(self) -> Path:
        """A file outside the record that says when this notebook was last run on this machine."""
        return self.output.with_suffix(".made-here")

    @property
    def manifest(self) -> dict[str, Any]:
        """The last successful run's manifest; empty if there was none, or if it is damaged."""
        try:
            return store.read_json(self.manifest_path)
        except BookError:
            return {}

    @property
    def damage(self) -> str | None:
        """The first file of the last successful run that is not as it was written; None if all are."""
        if not self.manifest_path.is_file():
            return None
        tables = [self.record / f"{name}.parquet" for name in self.manifest.get("tables", ())]
        broken = [str(path) for path in tables if not record.whole(path)]
        return next(iter(broken), None) if self.manifest else str(self.manifest_path)

    @property
    def runnable(self) -> bool:
        """Whether the size has a model for the page: not every one has a vision-language model."""
        asked = [self.parameters[name] for name in ("native", "adapted", "before") if name in self.parameters]
        return not asked or any(asked)

    @property
    def drawn(self) -> bool:
        """Whether the executed notebook here shows the recorded tables as the code of today draws them."""
        if not self.output.is_file():
            return False
        try:
            executed = nbformat.read(self.output, as_version=4)
            drawn_from, seal = executed.metadata.get("page_key"), executed.metadata.get("seal")
            whole = seal is None or seal == notebook_seal(executed)
        except Exception:  # a broken file: whatever the reader stumbles over
            whole = False
        if not whole:
            warnings.warn(f"{self.output} is damaged, and its page is drawn again.", stacklevel=2)
        return whole and seal is not None and drawn_from == page_key(self)

    @property
    def state(self) -> str:
        """`missing`; `stale`: its code, parameters or the lock changed since the run, or a table is damaged;
        `recorded`: run elsewhere and kept in the repository; `done`: run here."""
        manifest = self.manifest
        if not manifest:
            return "missing"
        if manifest["run_key"] != self.key or self.damage:
            return "stale"
        made_here = self.marker.is_file() and self.marker.read_bytes() == manifest["created"].encode()
        return "done" if made_here else "recorded"


def notebooks() -> dict[str, Path]:
    """The notebooks by name, in reading order."""
    return {
        name: root() / "notebooks" / chapter / f"{name}.ipynb" for chapter, names in CHAPTERS.items() for name in names
    }


def declared(path: Path) -> dict[str, Any]:
    """A notebook's parameters with their defaults, from the cell tagged `parameters`.

    Raises BadParameter if there is no such cell, or the notebook or a default cannot be read.
    """
    try:
        cells = nbformat.read(path, as_version=4).cells
        tagged = next(cell for cell in cells if "parameters" in cell.metadata.get("tags", ()))
        # Not by papermill, which leaves out a line that it cannot take apart.
        lines = [ast.unparse(line).partition(" = ") for line in ast.parse(tagged.source).body]
        defaults = {name.partition(":")[0]: ast.literal_eval(value) for name, _, value in lines}
    except StopIteration:
        defaults = {}
    except Exception as error:  # a broken notebook: whatever the readers stumble over
        raise BadParameter(f"The parameters of {path} cannot be read: {error} Restore or correct it.") from error
    if not defaults:
        raise BadParameter(f"{path} has no parameters: tag the cell that sets them `parameters`.")
    return defaults


def plan(preset: str, only: Iterable[str] = (), changes: dict[str, Any] | None = None) -> list[Job]:
    """The jobs of a run.  only: names; empty for all.  changes: parameters put over the preset's.

    Raises UnknownName (preset, notebook, parameter), BadParameter.
    """
    changes = changes or {}
    values = presets.override(presets.load(preset), changes)
    paths = notebooks()
    for name in only:
        if name not in paths:
            raise UnknownName("notebook", name, paths)
    label = f"{preset}-{store.digest(changes)[:8]}" if changes else preset
    # Only runs at a preset's own size are the book's record; the smoke preset's numbers mean nothing.
    kept = root() / "results" if not changes and preset != "smoke" else root() / "_build" / "results"
    jobs = []
    for name in only or paths:
        source = paths[name]
        wanted = declared(source)
        parameters = {key: value for key, value in values.items() if key in wanted} | {"preset": preset}
        output = root() / "_build" / "notebooks" / label / source.parent.name / source.name
        jobs.append(Job(name, preset, source, output, kept / label, parameters, run_key(source, parameters)))
    return jobs


def run(jobs: list[Job], force: bool = False) -> list[str]:
    """Run what is not done; a notebook that fails does not stop the others.  Returns the failures' messages."""
    failures, executed = [], []
    for number, job in enumerate(jobs, 1):
        title = f"[{number}/{len(jobs)}] {job.name} ({job.preset})"
        if not job.runnable:
            print(f"{title}: left out, this size has no vision-language model (name one with --model)")
            continue
        if job.state == "done" and not force:
            print(f"{title}: done")
            continue
        if job.damage:
            warnings.warn(f"{job.damage} is damaged, and its page is run again.", stacklevel=2)
        last = job.manifest.get("seconds")
        print(f"{title}: running" + (f", {last / 60:.1f} minutes last time" if last else ""), flush=True)
        try:
            perform(job)
        except BookError as error:
            failures.append(f"{job.name}: {error}")
            continue
        executed.append(job)
    finish(jobs, executed)
    return failures


def perform(job: Job) -> None:
    """Run one notebook and write its manifest.  Raises BookError."""
    start, began = time.perf_counter(), time.time()
    execute(job)
    manifest = {
        "notebook": job.name,
        "preset": job.preset,
        "parameters": job.parameters,
        "tables": tables_of(job, began - 1),
        "run_key": job.key,
        "dtype": precision(job.parameters),
        "seconds": round(time.perf_counter() - start, 1),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": store.environment(),
    }
    store.write_json(job.manifest_path, manifest)
    store.write_atomically(job.marker, lambda path: path.write_text(manifest["created"]))


def finish(jobs: Sequence[Job], executed: Iterable[Job]) -> None:
    """Stamp what was run, only now, since a later notebook may have recorded a table anew; write the scorecard."""
    for job in executed:
        stamp(job)
    if jobs and jobs[0].record.is_dir():
        write_scorecard(jobs)


def tables_of(job: Job, since: float) -> list[str]:
    """The tables that a page recorded since a time; other pages may record theirs into the same folder meanwhile."""
    new = [path for path in job.record.glob("*.parquet") if path.stat().st_mtime >= since]
    return sorted(path.stem for path in new if record.checked(path)["page"] == job.name)


def models_of(parameters: dict[str, Any]) -> list[str]:
    """The models a page reads, each once."""
    names = [parameters.get("model"), parameters.get("pretrained")]
    for several in ("fine_tuned", "native", "adapted", "controls", "minis", "before", "after", "wired"):
        names += parameters.get(several, ())
    return list(dict.fromkeys(name for name in names if name))


def precision(parameters: dict[str, Any]) -> str:
    """The dtype that a page's models run in: the hardware's if the page does not say; the book's minis keep float32."""
    minis = [vlms.VLMS.get(name, {}).get("provider") == "mini" for name in models_of(parameters)]
    by_default = "float32" if minis and all(minis) else str(models.best_dtype(models.best_device()))
    return parameters.get("dtype") or by_default.removeprefix("torch.")


def execute(job: Job, redraw: bool = False) -> None:
    """Run one notebook.  redraw: from its recorded tables alone.  Raises BookError with the notebook's own message."""
    temporary = job.output.with_suffix(".running.ipynb")
    settings = {"PG_RUNNER": "1", "PG_PAGE": job.name, "PG_RECORD": str(job.record), "PG_REDRAW": "1" if redraw else ""}
    with store.writing(job.output):
        job.output.parent.mkdir(parents=True, exist_ok=True)
        try:
            with environment(settings), kernel() as config:
                papermill.execute_notebook(
                    str(job.source),
                    str(temporary),
                    job.parameters,
                    kernel_name="python3",
                    progress_bar=False,
                    stderr_file=sys.stderr,
                    config=config,
                    cwd=str(job.source.parent),
                )
        except papermill.PapermillExecutionError as error:
            known = {cls.__name__ for cls in BookError.__subclasses__()}
            if error.ename in known:
                raise BookError(error.evalue) from None
            raise BookError(f"cell {error.exec_count}: {error.ename}: {error.evalue}. See {temporary}.") from None
        temporary.replace(job.output)


@contextmanager
def kernel() -> Iterator[Config]:
    """Settings of a notebook's kernel: it talks over local sockets where there are some, not over open TCP ports.

    The sockets lie in a folder of their own.  By default they are called alike in every process of a folder, and two
    pages that run at once would answer each other's kernels.  After its last cell a kernel has nothing left to do: to
    wait until it has unloaded its libraries costs a second a page.
    """
    settings: dict[str, dict[str, str]] = {"NotebookClient": {"shutdown_kernel": "immediate"}}
    if os.name != "posix":
        yield Config(settings)
        return
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        settings["KernelManager"] = {"transport": "ipc", "ip": f"{folder}/kernel"}
        yield Config(settings)


def stamp(job: Job) -> None:
    """Note in an executed notebook what it was drawn from."""
    executed = nbformat.read(job.output, as_version=4)
    executed.metadata["page_key"] = page_key(job)
    executed.metadata["seal"] = notebook_seal(executed)
    store.write_atomically(job.output, lambda path: nbformat.write(executed, path))


def notebook_seal(notebook: nbformat.NotebookNode) -> str:
    """A hash of all of an executed notebook but the seal itself."""
    content = json.loads(nbformat.writes(notebook))
    content["metadata"].pop("seal", None)
    return store.digest(content)


@contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    """Environment variables for the kernel, put back afterwards."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def write_scorecard(jobs: Sequence[Job]) -> list[claims.Verdict]:
    """Judge every claim on a run's recorded tables and keep the verdicts beside them."""
    job = jobs[0]
    verdicts = claims.judge_all(job.record)
    values = presets.load(job.preset)
    for each in jobs:
        values |= each.parameters
    about = {key: values[key] for key in ("preset", "model", "pretrained", "fine_tuned")}
    # The key of all that is recorded, not of the pages that were run just now: the claims are judged on all of it.
    kept = [replace(job, name=path.stem).manifest for path in sorted(job.manifest_path.parent.glob("*.json"))]
    run_keys = [manifest["run_key"] for manifest in kept if manifest]
    about |= {"seeds": [values["seed"]], "run_key": store.digest(run_keys)}
    store.write_json(job.record / "scorecard.json", claims.scorecard(verdicts, about))
    return verdicts


def model_parameters(name: str) -> dict[str, Any]:
    """The parameters by which the notebooks are given a model: a vision-language model the book knows, or another."""
    if name not in vlms.VLMS:
        return {"model": name}
    roles = {"native": [], "adapted": [], "controls": []}
    return roles | {"native" if vlms.is_native(name) else "adapted": [name]}


def check_parameters(jobs: list[Job], changes: dict[str, Any]) -> None:
    """Refuse a parameter that none of the notebooks about to run declares.  Raises BadParameter."""
    for name in changes:
        if not any(name in job.parameters for job in jobs):
            raise BadParameter(f"None of {', '.join(job.name for job in jobs)} takes the parameter '{name}'.")
