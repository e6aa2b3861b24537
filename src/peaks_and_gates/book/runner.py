"""Run the pages with papermill, keep their record, and know which of them are done, stale or missing.

    for job in plan("laptop", ["subjects"], {"n_orders": 1}):
        perform(job)                                              # `jobs.run` does so for many, here or on a cluster

The pages are those of _toc.yml.  A page is one job: its record replaces the old one when it has finished, and a page
that fails does not stop the others.
"""

import ast
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from .. import cache
from ..errors import BadParameter, BookError, UnknownName
from . import presets
from .keys import as_list, page_key, root, tags

# Parameters that hold models, in the order in which a page names them.
MODELS = ("model", "seeds", "raw", "fine_tuned", "fine_tuned_more", "fine_tuned_tree")
MODELS += ("native", "adapted", "controls", "minis", "before", "masked", "unmasked", "wired")


@dataclass(frozen=True, eq=False)
class Job:
    """One page to run at one size.

    record: its Parquet file.  output: where the executed notebook goes.  key: hash of what its numbers depend on.
    """

    name: str
    preset: str
    source: Path
    output: Path
    record: Path
    parameters: dict[str, Any]
    key: str

    @property
    def marker(self) -> Path:
        """A file outside the record that says when this page was last run on this machine."""
        return self.output.with_suffix(".made-here")

    @property
    def manifest(self) -> dict[str, Any]:
        """What is known of the last successful run; empty if there was none, or if its record is damaged."""
        from .. import record

        try:
            return record.manifest(self.record)
        except BookError:
            return {}

    @property
    def runnable(self) -> bool:
        """Whether the size has a model for the page: not every one has a vision-language model."""
        models = [self.parameters[name] for name in ("native", "adapted", "before") if name in self.parameters]
        return not models or any(models)

    @property
    def is_drawn(self) -> bool:
        """Whether the executed notebook here shows the record as the code of today draws it."""
        try:
            return json.loads(self.output.read_bytes())["metadata"]["page_key"] == drawing_key(self)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @property
    def state(self) -> str:
        """`missing`; `stale`: its code or parameters changed since the run, or its record is damaged; `recorded`: run
        elsewhere and kept in the repository; `done`: run here."""
        manifest = self.manifest
        if not manifest:
            return "stale" if self.record.with_suffix(".json").is_file() else "missing"
        if manifest["key"] != self.key:
            return "stale"
        made_here = self.marker.is_file() and self.marker.read_text("utf-8") == manifest["created"]
        return "done" if made_here else "recorded"


def notebooks() -> dict[str, Path]:
    """The pages that are notebooks, by name, in the order of _toc.yml."""
    names = re.findall(r"^ *- file: (notebooks/\S+)$", (root() / "_toc.yml").read_text("utf-8"), re.MULTILINE)
    return {Path(name).name: root() / f"{name}.ipynb" for name in names}


def declared(path: Path) -> dict[str, Any]:
    """A page's parameters with their defaults, from the cell tagged `parameters`.  Raises BadParameter."""
    try:
        cells = json.loads(path.read_bytes())["cells"]
        source = next("".join(cell["source"]) for cell in cells if "parameters" in tags(cell))
        lines = [ast.unparse(line).partition(" = ") for line in ast.parse(source).body]
        return {name.partition(":")[0]: ast.literal_eval(value) for name, _, value in lines}
    except Exception as error:  # a broken notebook, in whatever way
        raise BadParameter(f"{path} needs a cell tagged `parameters` that sets plain values: {error!r}.") from error


def plan(preset: str, names: Iterable[str] = (), changes: dict[str, Any] | None = None) -> list[Job]:
    """The jobs of a run.  names: of pages; empty for all.  changes: parameters put over the preset's.

    Raises UnknownName (preset, page, parameter), BadParameter.
    """
    changes = changes or {}
    values = presets.override(presets.load(preset), changes)
    paths = notebooks()
    if unknown := [name for name in names if name not in paths]:
        raise UnknownName("notebook", unknown[0], paths)
    label = f"{preset}-{cache.digest(changes)[:8]}" if changes else preset
    # Only runs at a preset's own size are the book's record; the smoke preset's numbers mean nothing.
    published = not changes and preset not in ("smoke", "quick")
    results = root() / ("results" if published else "_build/results") / label
    jobs = []
    for name in names or paths:
        source = paths[name]
        parameters = {key: value for key, value in values.items() if key in declared(source)} | {"preset": preset}
        output = root() / "_build" / "notebooks" / label / source.parent.name / source.name
        key = page_key(source, parameters)
        jobs.append(Job(name, preset, source, output, results / f"{name}.parquet", parameters, key))
    for name in changes.keys() - {key for job in jobs for key in job.parameters}:
        raise BadParameter(f"None of {', '.join(job.name for job in jobs)} takes the parameter '{name}'.")
    return jobs


def shown(preset: str) -> list[Job]:
    """The jobs that the site shows at a size; where a page was not run at it, that of the record that ships."""
    from ..record import SHIPPED

    pairs = zip(plan(preset), plan(SHIPPED), strict=True)
    return [job if job.manifest else shipped for job, shipped in pairs]


def last_minutes(job: Job) -> float:
    """How long the last recorded run of a page took; 0 if there was none."""
    return job.manifest.get("seconds", 0) / 60


def perform(job: Job, force: bool = True) -> str | None:
    """Run one page and publish its record; without `force` only if it is not done.  Returns a failure's message."""
    from .. import record

    if not force and job.state == "done":  # by a job of an earlier run
        return None
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="pg-tables-") as tables:
            execute(job, Path(tables))
            environment, now = cache.environment(), datetime.now(UTC).isoformat(timespec="seconds")
            about = {"preset": job.preset, "parameters": job.parameters, "key": job.key, "environment": environment}
            about |= {"dtype": precision(job.parameters)}
            about |= {"seconds": round(time.perf_counter() - start, 1), "created": now}
            record.publish(Path(tables), job.record, about)
        stamp(job)
        cache.write_atomically(job.marker, lambda path: path.write_text(about["created"]))
    except Exception as error:  # a kernel that was killed, for example: the other pages still run
        return str(error) if isinstance(error, BookError) else f"{type(error).__name__}: {error}"
    return None


def models_of(parameters: dict[str, Any]) -> list[str]:
    """The models a page reads, each once."""
    return list(dict.fromkeys(name for key in MODELS for name in as_list(parameters.get(key)) if name))


def precision(parameters: dict[str, Any]) -> str:
    """The dtype that a page's models run in: the hardware's if the page does not say; the book's minis keep float32."""
    from .. import models

    names, best = models_of(parameters), models.best_dtype(models.best_device())
    minis = bool(names) and all(name.startswith("mini-") for name in names)
    return parameters.get("dtype") or ("float32" if minis else str(best).removeprefix("torch."))


def execute(job: Job, tables: Path) -> None:
    """Execute one page.  tables: the folder it records into.

    Raises BookError with the page's own message.
    """
    import papermill
    from traitlets.config import Config

    variables = {"PG_PAGE": job.name, "PG_RECORD": str(tables), "TQDM_DISABLE": "1"}  # bars need a live kernel
    variables |= {"PG_CACHE": str(cache.cache_folder().absolute())}  # a page runs in another folder
    running = job.output.with_suffix(".running.ipynb")
    # A kernel talks over sockets in a folder of its own: two pages that run at once would answer each other's.
    with cache.writing(job.output), tempfile.TemporaryDirectory(prefix="pg-") as sockets:
        settings = {} if os.name == "nt" else {"transport": "ipc", "ip": f"{sockets}/kernel"}
        config = Config({"NotebookClient": {"shutdown_kernel": "immediate"}, "KernelManager": settings})
        how = {"kernel_name": "python3", "language": "python", "progress_bar": False, "stderr_file": sys.stderr}
        how |= {"config": config, "cwd": job.source.parent}
        job.output.parent.mkdir(parents=True, exist_ok=True)
        try:
            with patch.dict(os.environ, variables):
                papermill.execute_notebook(job.source, running, job.parameters, **how)
        except papermill.PapermillExecutionError as error:
            if error.ename in {kind.__name__ for kind in BookError.__subclasses__()}:
                raise BookError(error.evalue) from None
            if error.ename == "ModuleNotFoundError":
                raise BookError(f"{error.evalue}: pip install 'peaks-and-gates[hub]', or what else it is in.") from None
            raise BookError(f"cell {error.exec_count}: {error.ename}: {error.evalue}. See {running}.") from None
        running.replace(job.output)


def stamp(job: Job) -> None:
    """Note in an executed notebook what it was drawn from."""
    executed = json.loads(job.output.read_bytes())
    executed["metadata"]["page_key"] = drawing_key(job)
    cache.write_json(job.output, executed)


def drawing_key(job: Job) -> str:
    """Hash of everything an executed page shows: the whole notebook, the whole package, the claims, the record."""
    package = [path for path in sorted(cache.SOURCE.rglob("*.*")) if path.suffix in (".py", ".yml")]
    files = [path for path in (job.source, job.record, root() / "book" / "claims.yml", *package) if path.is_file()]
    return cache.digest([job.parameters, [cache.file_sha256(path) for path in files]])


def write_scorecard(jobs: Sequence[Job]) -> str:
    """Judge every claim on a run's record and write the verdicts beside it.  Returns how many there are of each."""
    from .. import record
    from . import claims

    folder = jobs[0].record.parent
    verdicts = claims.judge_all(folder)
    values = presets.load(jobs[0].preset) | {name: value for job in jobs for name, value in job.parameters.items()}
    about = {key: values[key] for key in ("preset", "model", "seeds", "fine_tuned", "seed")}
    about["key"] = cache.digest([record.manifest(path)["key"] for path in record.pages(folder)])
    cache.write_json(folder / "scorecard.json", claims.scorecard(verdicts, about))
    return claims.count(verdicts)


def model_parameters(name: str) -> dict[str, Any]:
    """The parameters by which the pages are given a model: a vision-language model the book knows, or another."""
    from ..gate.tokens import FAMILIES
    from ..models import MODELS

    if name not in MODELS and "/" not in name and not Path(name).is_dir():
        raise UnknownName("model or folder", name, MODELS)
    if "family" not in MODELS.get(name, {}):
        return {"model": name}
    family = MODELS[name]["family"]
    return {"native": [], "adapted": [], "controls": []} | {"native" if FAMILIES[family].native else "adapted": [name]}
