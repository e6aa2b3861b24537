"""Pages in turn, or as jobs: one submitit job per page, in processes of this machine or on a SLURM cluster.

failures = run(plan("laptop"), executor="slurm", profile="my-cluster.yml")
"""

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import cache
from ..errors import BadParameter
from . import presets
from .runner import Job, last_minutes, perform, write_scorecard

DEAD = ("FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "PREEMPTED")


def run(jobs: Sequence[Job], force: bool = False, executor: str = "here", profile: str | None = None) -> list[str]:
    """Run what is not done, here or as jobs, and judge the claims on the record that there is then.

    Returns the failures' messages; raises BadParameter.
    """
    if profile and executor == "here":
        raise BadParameter("Pages that run here take no --profile: name an executor, too, such as --executor slurm.")
    if executor != "here" and os.name == "nt":
        raise BadParameter("On Windows pages run here, one by one: for --executor call pg in WSL.")
    if left_out := [job.name for job in jobs if not job.runnable]:
        print(f"Left out, as this size has no vision-language model (name one with --model): {', '.join(left_out)}.")
    todo = [job for job in jobs if job.runnable and (force or job.state != "done")]
    print(f"{len(jobs) - len(todo)} of {len(jobs)} pages are done or left out.", flush=True)
    preset, record = jobs[0].preset, jobs[0].record.parent
    failures = in_turn(todo) if executor == "here" else as_jobs(todo, executor, resources(preset, profile), force)
    if record.is_dir():
        print(f"Claims: {write_scorecard(jobs)}. The record is {record}.")
    return failures


def in_turn(jobs: Sequence[Job]) -> list[str]:
    """Run pages one after the other, in this process.  Returns the failures' messages."""
    failures = []
    for number, job in enumerate(jobs):
        left = sum(map(last_minutes, jobs[number:]))
        print(f"[{number + 1}/{len(jobs)}] {job.name} ({job.preset}): running, about {left:.0f} min left", flush=True)
        if message := perform(job):
            failures.append(f"{job.name}: {message}")
            print(f"    failed: {message}", flush=True)
    return failures


def resources(preset: str, profile: str | None) -> dict[str, Any]:
    """What a job may use, in submitit's names: the preset's, with a YAML file's put over them.

    Raises BadParameter.
    """
    given = presets.read_yaml(Path(profile), f"The profile {profile}") if profile else {}
    if not isinstance(given, dict):
        raise BadParameter(f"The profile {profile} sets nothing: write lines such as 'slurm_partition: gpu'.")
    return presets.load(preset)["resources"] | given


def as_jobs(jobs: Sequence[Job], executor: str, settings: dict[str, Any], force: bool = False) -> list[str]:
    """Run each page as a job, the longest first: on a cluster all at once, here one per share of the cores.

    executor: "local" or "slurm".  Returns the failures' messages.  Raises BadParameter.
    """
    waiting = sorted(jobs, key=last_minutes, reverse=True)
    at_once = len(jobs) if executor == "slurm" else max(1, (os.cpu_count() or 1) // settings.get("cpus_per_task", 1))
    running: dict[Job, Any] = {}
    failures = []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                running[job] = submit(job, executor, settings, force)
            time.sleep(1)
            for job in [job for job, handle in running.items() if has_ended(handle, executor)]:
                message = outcome(running.pop(job))
                failures += [f"{job.name}: {message}"] if message else []
                result = f"failed: {message}" if message else "finished"
                left = sum(map(last_minutes, [*waiting, *running])) / at_once
                print(f"{job.name}: {result}; {len(waiting) + len(running)} to go, about {left:.0f} min", flush=True)
    finally:
        for handle in running.values() if executor == "local" else ():
            handle.cancel(check=False)  # a cluster's jobs go on, and the next run waits for them
    return failures


def submit(job: Job, executor: str, settings: dict[str, Any], force: bool) -> Any:
    """Send one page off, as a submitit job.  Raises BadParameter if it is not taken."""
    setup = [f"export OMP_NUM_THREADS={settings.get('cpus_per_task', 1)}", *settings.get("slurm_setup", [])]
    settings = settings | {"name": f"pg-{job.key}", "slurm_setup": setup, "local_setup": setup[:1]}
    if executor == "slurm":
        settings["slurm_dependency"] = "singleton"  # after a job of an earlier run that is still there
    import submitit  # not made for Windows

    try:
        sender = submitit.AutoExecutor(folder=cache.cache_folder() / "jobs" / "%j", cluster=executor)
        sender.update_parameters(**settings)
        return sender.submit(perform, job, force)
    except (ValueError, NameError, TypeError, RuntimeError) as error:
        advice = "A profile sets slurm_partition, slurm_account and what else a cluster wants."
        raise BadParameter(f"The job for {job.name} was not taken with {settings}: {error}. {advice}") from error


def has_ended(handle: Any, executor: str) -> bool:
    """Whether a job has left a result, or died without one; submitit asks sacct, which many clusters do not have."""
    if executor == "local" or handle.paths.result_pickle.is_file():
        return handle.done()
    command = ["squeue", "--me", "-h", "-t", "all", "-o", "%i %T"]
    queue = subprocess.run(command, capture_output=True, text=True, check=False)
    state = dict(line.split(maxsplit=1) for line in queue.stdout.splitlines()).get(handle.job_id, "COMPLETED")
    if queue.returncode == 0 and state == "COMPLETED":
        time.sleep(60)  # a shared filesystem may show the result late
    return queue.returncode == 0 and state in (*DEAD, "COMPLETED")


def outcome(handle: Any) -> str | None:
    """Why a job that ended did not succeed; None if it did."""
    if handle.paths.result_pickle.is_file():
        error = handle.exception()
        return handle.result() if error is None else f"{str(error).strip().splitlines()[-1]} See {handle.paths.stderr}"
    log = handle.paths.stderr.read_text("utf-8", "replace").splitlines()[-1:] if handle.paths.stderr.is_file() else []
    advice = "A profile sets more memory or time; PG_CACHE a folder that all nodes share."
    return f"job {handle.job_id} died without a result, see {handle.paths.stderr}. {' '.join(log)} {advice}"
