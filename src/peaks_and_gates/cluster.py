"""The same pages in other processes: of this machine, or of a SLURM cluster.

    cluster.run(jobs, "slurm", profile="my-cluster.yml")

Two rounds. First the *parts*, what pages share or can share out: the hidden states of one model under one condition for
a share of the subjects, and a gate page for one of its models. Then the pages themselves, which find the parts stored.
On this machine it is one round, and gate pages are not shared out: the pages alone keep its cores busy.
Every part leaves its artifacts in the store and is noted there, so whatever is killed, the next run goes on from there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from . import extraction, peaks, presets, store
from .book import runner as book
from .book.runner import Job
from .errors import BadParameter, BookError, MissingFile, is_whole
from .freshness import root
from .progress import bar

KINDS = ("states", "model", "page")  # of steps; each may ask for other resources
DEAD = ("FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "PREEMPTED")
POLL = 2.0  # seconds between two looks at the jobs
LATE = 60.0  # seconds that a shared filesystem may take to show what a job on another machine wrote


@dataclass(frozen=True)
class Step:
    """One job of the grid.  kind: which of the preset's resources it gets.  key: hash of what it depends on."""

    name: str
    kind: str
    key: str
    call: Callable[[], None]

    @property
    def note(self) -> Path:
        """The file that says that it is done."""
        return store.cache_folder() / "cluster" / "done" / f"{self.key}.json"


def run(jobs: Sequence[Job], executor: str, profile: str | None = None, force: bool = False) -> list[str]:
    """Run the pages that are not done by an executor.  Returns the failures' messages, as `book.run` does.

    profile: a YAML file of settings put over the preset's `resources`.  Raises BadParameter, MissingFile, BookError.
    """
    todo = [job for job in jobs if job.runnable and (force or job.state != "done")]
    print(f"{len(jobs) - len(todo)} of {len(jobs)} pages are done or left out")
    if not todo:
        return []
    resources = resources_of(todo[0].preset, profile)
    wanted = [step for step in parts(todo, resources.pop("shards", 1)) if not step.note.is_file()]
    if executor == "local":
        wanted = [step for step in wanted if step.kind == "states"]
    # The longest first, so that none is left to run alone at the end.
    last = {job.name: job.manifest.get("seconds", 0) / 60 for job in todo}
    todo.sort(key=lambda job: -last[job.name])
    print(f"{len(todo)} pages to run, one after the other {sum(last.values()):.0f} minutes last time")
    pages = [Step(job.name, "page", job.key, partial(book.perform, job)) for job in todo]
    # On a cluster the pages wait for all parts. Here a few may still be at work, and a page waits for those it needs.
    rounds = {"parts and pages": wanted + pages} if executor == "local" else {"parts": wanted, "pages": pages}
    failures = []
    for title, steps in rounds.items():
        failures += submit_all(steps, executor, resources, title)
    failed = {message.partition(":")[0] for message in failures}
    executed = [job for job in todo if job.name not in failed]
    seen(job.manifest_path for job in executed)
    book.finish(jobs, executed)
    return failures


def parts(jobs: Sequence[Job], n_shards: int) -> list[Step]:
    """What the pages can share out: states by model, condition and shard of the subjects; gate pages by model."""
    found: dict[str, Step] = {}
    code = store.code_version(*sorted(extraction.CODE))
    for job in jobs:
        if "shots" in job.parameters:
            for study in studies(job.parameters):
                for shard in range(n_shards):
                    key = store.digest([study, shard, n_shards, code])
                    name = f"{study.model}, {peaks.condition_name(study.shots[0])}, {shard + 1} of {n_shards}"
                    found[key] = Step(name, "states", key, partial(states, study, shard, n_shards))
        if "native" in job.parameters:
            for one in of_one_model(job):
                key = store.digest([job.key, one.parameters])
                found[key] = Step(f"{job.name}, {one.output.stem}", "model", key, partial(book.execute, one))
    return list(found.values())


def studies(parameters: Mapping[str, Any]) -> list[peaks.Study]:
    """A study for every model and condition that the pages on language models read whole."""
    known = {field.name for field in fields(peaks.Study)}
    study = peaks.Study(**{name: value for name, value in parameters.items() if name in known})
    shots = parameters["shots"]
    read = [(parameters["model"], shots), (parameters.get("pretrained"), (shots[0], shots[-1]))]
    read += [(model, (0,)) for model in parameters.get("fine_tuned", ())]
    return [replace(study, model=model, shots=(n,)) for model, conditions in read if model for n in conditions]


def states(study: peaks.Study, shard: int, n_shards: int) -> None:
    """Extract and store the hidden states of every n-th subject, those with number `shard` first."""
    prompts = study.prompts(study.question_set(), study.shots[0])
    subjects = list(dict.fromkeys(prompt.subject for prompt in prompts))[shard::n_shards]
    if subjects:
        study.read([prompt for prompt in prompts if prompt.subject in subjects], peaks.condition_name(study.shots[0]))


def of_one_model(job: Job) -> list[Job]:
    """A gate page for each of its models alone, if it has several; what it draws is thrown away."""
    roles = ("native", "adapted", "controls")
    names = [(role, name) for role in roles for name in job.parameters[role]]
    folder = root() / "_build" / "parts" / job.preset / job.name
    return [
        replace(
            job,
            parameters=job.parameters | {other: [] for other in roles} | {role: [name]},
            output=folder / f"{Path(name).name}.ipynb",
            record=folder / Path(name).name,
        )
        for role, name in names
        if len(names) > 1
    ]


def noted(step: Step) -> str | None:
    """Do a step, in the process it was sent to, and note that it is done.  Returns what was wrong, if anything."""
    try:
        step.call()
    except BookError as error:
        return str(error)
    store.write_json(step.note, {"name": step.name})
    return None


def resources_of(preset: str, profile: str | None) -> dict[str, Any]:
    """What a step may use, by kind, and `shards`: the preset's, with a profile's settings put over them.

    A profile names settings for every step (`slurm_partition: gpu`) or for one kind (`states: {gpus_per_node: 1}`).
    Raises MissingFile, BadParameter.
    """
    resources = presets.load(preset)["resources"]
    if profile is None:
        return resources
    if not Path(profile).is_file():
        raise MissingFile(f"There is no profile {profile}: give a YAML file of settings, such as slurm_partition: gpu.")
    given = presets.read_yaml(Path(profile).read_bytes(), f"The profile {profile}") or {}
    if not isinstance(given, dict) or not all(isinstance(given.get(kind, {}), dict) for kind in KINDS):
        raise BadParameter(f"The profile {profile} must hold settings by name, such as slurm_partition: gpu.")
    common = {name: value for name, value in given.items() if name not in (*KINDS, "shards")}
    if not is_whole(given.get("shards", 1), 1):
        raise BadParameter(f"The profile {profile} has shards={given['shards']!r}: need a whole number >= 1.")
    merged = {kind: resources[kind] | common | given.get(kind, {}) for kind in KINDS}
    return merged | {"shards": given.get("shards", resources["shards"])}


def executor_of(name: str, settings: Mapping[str, Any]) -> submitit.AutoExecutor:
    """An executor whose jobs get these resources.  Raises BadParameter."""
    if name == "slurm" and not shutil.which("sbatch"):
        raise BadParameter("There is no sbatch here: run this on a login node of a SLURM cluster, or --executor local.")
    executor = submitit.AutoExecutor(folder=store.cache_folder() / "cluster" / "logs" / "%j", cluster=name)
    threads = settings.get("cpus_per_task", 1)  # a job that starts a thread for every core of its node disturbs others
    setup = [f"export OMP_NUM_THREADS={threads}", *settings.get("slurm_setup", [])]
    try:
        executor.update_parameters(**settings | {"slurm_setup": setup, "local_setup": setup[:1]})
    except (ValueError, NameError, TypeError) as error:
        raise BadParameter(f"The resources {dict(settings)} are not understood: {error}") from error
    return executor


def submit_all(steps: Sequence[Step], executor: str, resources: Mapping[str, Any], title: str) -> list[str]:
    """Send steps off, as many at once as the executor takes, and wait for them.  Returns the failures' messages."""
    waiting, running, failures = list(steps), {}, []
    with bar(total=len(steps), desc=title, unit="job") as progress, ended_with_us(executor, running):
        while waiting or running:
            while waiting and has_room(executor, running, waiting[0], resources):
                step = waiting.pop(0)
                running[step] = Sent(submitted(step, executor, resources[step.kind]))
            time.sleep(POLL)
            states = states_of_jobs(executor, [sent.job for sent in running.values()])
            for step, sent in list(running.items()):
                state = states.get(sent.job.job_id, "")
                if sent.ended(state):
                    del running[step]
                    failures += outcome(step, sent.job, state)
                    progress.update()
            waits = sorted({state.lower() for state in states.values() if " " in state})
            named = [step.name for step in running] if len(running) < 5 else [f"{len(running)} at once"]
            progress.set_postfix_str("; ".join(named + waits))
    return failures


@contextmanager
def ended_with_us(executor: str, running: Mapping[Step, Sent]) -> Iterator[None]:
    """End this machine's jobs if we are ended; a cluster's go on, and the next run waits for them."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # else we would just be gone
    try:
        yield
    except BaseException:
        for sent in running.values() if executor == "local" else ():
            sent.job.cancel(check=False)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class Sent:
    """A job on its way.  missed: since when it has neither a result nor a place in the queue."""

    job: submitit.Job
    missed: float | None = None

    def ended(self, state: str) -> bool:
        """Whether the job has ended, by its result, by what the cluster says of it, or by being gone for long."""
        if self.job.paths.result_pickle.is_file() or state.partition(" ")[0] in DEAD:
            return True
        if state and state != "COMPLETED":
            self.missed = None
            return False
        # Its result may be on a shared filesystem that shows it late.
        self.missed = self.missed or time.monotonic()
        return time.monotonic() - self.missed > LATE


def has_room(executor: str, running: Mapping[Step, Any], step: Step, resources: Mapping[str, Any]) -> bool:
    """Whether to send a step off now: a cluster queues for itself, this machine has so much of everything.

    Of GPUs one, since every local job takes the first.
    """
    there = {"cpus_per_task": os.cpu_count() or 1, "mem_gb": psutil.virtual_memory().total / 1e9, "gpus_per_node": 1}
    asked = {name: sum(resources[each.kind].get(name, 0) for each in (*running, step)) for name in there}
    return executor == "slurm" or not running or all(asked[name] <= there[name] for name in there)


def submitted(step: Step, executor: str, settings: Mapping[str, Any]) -> submitit.Job:
    """Send one step off.  Raises BookError if it is not taken."""
    settings = dict(settings) | {"name": f"pg-{step.key}"}
    if executor == "slurm":
        # A step that an earlier run sent off and that is still there is waited for, and then found stored.
        settings["slurm_dependency"] = "singleton"
    try:
        return executor_of(executor, settings).submit(noted, step)
    except (FailedJobError, FailedSubmissionError) as error:
        raise BookError(f"SLURM did not take the job '{step.name}': {error}. {offered()}") from error


def offered() -> str:
    """The partitions there are, for a message."""
    found = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, check=False)
    names = ", ".join(sorted(set(found.stdout.split()))) or "none is shown by sinfo"
    return f"Partitions here: {names}. A profile sets slurm_partition, slurm_account and what else a cluster wants."


def states_of_jobs(executor: str, jobs: Iterable[submitit.Job]) -> dict[str, str]:
    """The state of each job, behind "PENDING" the reason for which it waits; no state for a job that is not known.

    From squeue, not from submitit, which asks sacct: where there is no accounting, that never tells of a death.
    """
    if executor == "local":
        return {job.job_id: "FAILED" if job.done() else "RUNNING" for job in jobs}
    asked = subprocess.run(
        ["squeue", "--me", "-h", "-t", "all", "-o", "%i %T %r"], capture_output=True, text=True, check=False
    )
    if asked.returncode:  # a controller that does not answer for a moment says nothing of the jobs
        return {job.job_id: "UNKNOWN" for job in jobs}
    lines = [line.split(maxsplit=2) for line in asked.stdout.splitlines()]
    return {number: f"{state} ({reason})" if state == "PENDING" else state for number, state, reason in lines}


def outcome(step: Step, job: submitit.Job, state: str) -> list[str]:
    """Why a job that ended did not succeed, in a list; an empty one if it did."""
    if job.paths.result_pickle.is_file():
        error = job.exception()
        message = job.result() if error is None else f"{cause(str(error))}. See {job.paths.stderr}"
        return [f"{step.name}: {message}"] if message else []
    log = job.paths.stderr.read_text().strip().splitlines()[-1:] if job.paths.stderr.is_file() else []
    how = f"{state.lower()}, " if state else ""
    last = f"Its last line: {log[0]}" if log else "It left no output"
    advice = "More memory or time is asked for in a profile; a folder that the nodes do not share is set by PG_CACHE."
    return [f"{step.name}: job {job.job_id} died without a result ({how}see {job.paths.stderr}). {last}. {advice}"]


def cause(report: str) -> str:
    """The last line of the traceback in submitit's report of an exception, behind which it names its logs."""
    lines = report.partition("You can check full logs")[0].splitlines()
    return [line.strip() for line in lines if line.strip(" -")][-1]


def seen(paths: Iterable[Path]) -> None:
    """Wait until files that jobs on other machines wrote are to be seen here.  Raises MissingFile."""
    end = time.monotonic() + LATE
    for path in paths:
        while not path.is_file():
            if time.monotonic() > end:
                raise MissingFile(
                    f"A job says that it is done, but its {path} is not to be seen here after {LATE:.0f} s. "
                    "Does the checkout lie on a filesystem that all nodes share?"
                )
            time.sleep(POLL)
