"""Pages as jobs: the same results as in one process, whatever is killed; messages that say what to do."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest

import slurm_here
from conftest import ROOT, copy_checkout
from peaks_and_gates import cluster, questions, store
from peaks_and_gates.book import runner as book
from peaks_and_gates.errors import BadParameter, BookError, MissingFile

PAGES = ("accuracy", "knockout_table")


def job_of(folder, result=None, log=None):
    """What `submitit` returns, as far as it is looked at."""
    paths = SimpleNamespace(result_pickle=folder / "result.pkl", stderr=folder / "log.err")
    if result is not None:
        paths.result_pickle.write_text("")
    if log is not None:
        paths.stderr.write_text(log)
    return SimpleNamespace(job_id="7", paths=paths, exception=lambda: None, result=lambda: result)


def step(name="a part"):
    return cluster.Step(name, "states", "key", lambda: None)


def test_the_shards_of_a_condition_are_all_its_prompts_once(monkeypatch):
    read = []
    monkeypatch.setattr(cluster.peaks.Study, "read", lambda self, prompts, title: read.append(list(prompts)))
    job = book.plan("smoke", ["accuracy"])[0]
    study = cluster.studies(job.parameters)[-1]
    for shard in range(3):
        cluster.states(study, shard, 3)
    whole = study.prompts(questions.load("wordnet", 8, 12), study.shots[0])
    assert Counter(prompt for part in read for prompt in part) == Counter(whole)
    subjects = [{prompt.subject for prompt in part} for part in read]
    assert sum(map(len, subjects)) == len(set.union(*subjects)) == 8  # no subject in two shards


def test_a_condition_that_two_pages_read_is_one_step():
    jobs = book.plan("smoke", ["accuracy", "density_peaks"])
    names = [step.name for step in cluster.parts(jobs, 2)]
    assert len(names) == len(set(names))
    conditions = {name.rpartition(",")[0] for name in names}
    assert conditions == {f"tiny-llama, {n}-shot" for n in (0, 1, 2, 5)} | {
        f"tiny-llama-fine-tuned-{i}, 0-shot" for i in (0, 1)
    }


def test_a_gate_page_is_shared_out_by_model_and_a_page_of_one_model_is_not():
    several = [each for each in cluster.parts(book.plan("smoke", ["knockout_table"]), 1) if each.kind == "model"]
    assert [each.name for each in several] == ["knockout_table, tiny-chameleon", "knockout_table, tiny-llava"]
    alone = book.plan("smoke", ["knockout_table"], {"adapted": []})
    assert cluster.parts(alone, 1) == []


def test_a_profile_is_put_over_the_resources_of_the_preset(tmp_path):
    profile = tmp_path / "profile.yml"
    profile.write_text("slurm_partition: gpu\nshards: 5\nstates: {mem_gb: 99}\n")
    found = cluster.resources_of("smoke", str(profile))
    assert found["shards"] == 5
    assert found["states"]["mem_gb"] == 99 != found["page"]["mem_gb"]
    assert found["states"]["slurm_partition"] == found["page"]["slurm_partition"] == "gpu"
    assert found["page"]["timeout_min"] == cluster.resources_of("smoke", None)["page"]["timeout_min"]


@pytest.mark.parametrize(
    ("text", "says"), [("a: [", "is no YAML"), ("- gpu", "must hold settings by name"), (None, "There is no profile")]
)
def test_a_profile_that_cannot_be_read(tmp_path, text, says):
    profile = tmp_path / "profile.yml"
    if text is not None:
        profile.write_text(text)
    with pytest.raises(BadParameter if text else MissingFile, match=says):
        cluster.resources_of("smoke", str(profile))


@pytest.mark.parametrize(
    ("asked", "at_once"),
    [
        ({"cpus_per_task": 1, "mem_gb": 2}, 4),
        ({"cpus_per_task": 2, "mem_gb": 2}, 2),
        ({"cpus_per_task": 1, "mem_gb": 6}, 2),
        ({"cpus_per_task": 1, "mem_gb": 2, "gpus_per_node": 1}, 1),
        ({"cpus_per_task": 99, "mem_gb": 99}, 1),  # alone it may have whatever there is
    ],
)
def test_this_machine_takes_as_many_jobs_as_it_has_room_for(monkeypatch, asked, at_once):
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(cluster.psutil, "virtual_memory", lambda: SimpleNamespace(total=15.9e9))
    running = {}
    while cluster.has_room("local", running, step(str(len(running))), {"states": asked}) and len(running) < 9:
        running[step(str(len(running)))] = None
    assert len(running) == at_once
    assert cluster.has_room("slurm", running, step(), {"states": asked})


@pytest.mark.parametrize(("executor", "ended"), [("local", ["a", "b"]), ("slurm", [])])
def test_an_interrupted_run_ends_its_own_jobs_and_leaves_a_clusters(executor, ended):
    seen = []
    job = lambda name: SimpleNamespace(cancel=lambda check: seen.append(name))
    running = {step(name): cluster.Sent(job(name)) for name in "ab"}
    with pytest.raises(KeyboardInterrupt), cluster.ended_with_us(executor, running):
        raise KeyboardInterrupt
    with pytest.raises(SystemExit), cluster.ended_with_us(executor, running):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert seen == 2 * ended
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_longest_page_is_sent_off_first(monkeypatch):
    sent = []
    monkeypatch.setattr(
        cluster, "submit_all", lambda steps, *rest: sent.extend(step.name for step in steps) or ["nothing was run"]
    )
    monkeypatch.setattr(book.Job, "state", "missing")
    monkeypatch.setattr(cluster, "parts", lambda *arguments: [])
    monkeypatch.setattr(cluster, "seen", lambda paths: None)
    monkeypatch.setattr(book, "finish", lambda jobs, executed: None)
    jobs = book.plan("laptop", ["scenes", "accuracy", "probes"])
    cluster.run(jobs, "local")
    seconds = {job.name: job.manifest["seconds"] for job in jobs}
    assert sent == sorted(seconds, key=lambda name: -seconds[name]) != list(seconds)


def test_a_setting_that_no_executor_knows(own_cache):
    with pytest.raises(BadParameter, match=r"are not understood.*memory_gb"):
        cluster.executor_of("local", {"memory_gb": 3})


def test_no_slurm(monkeypatch):
    monkeypatch.setattr(cluster.shutil, "which", lambda name: None)
    with pytest.raises(BadParameter, match="login node"):
        cluster.executor_of("slurm", {})


def test_a_job_that_dies_without_output(tmp_path):
    dead = cluster.Sent(job_of(tmp_path))
    assert not dead.ended("PENDING (Resources)") and not dead.ended("RUNNING")
    assert dead.ended("OUT_OF_MEMORY")
    (message,) = cluster.outcome(step(), dead.job, "OUT_OF_MEMORY")
    assert "a part: job 7 died without a result (out_of_memory" in message
    assert "It left no output" in message and "More memory" in message
    (message,) = cluster.outcome(step(), job_of(tmp_path, log="one\nKilled\n"), "FAILED")
    assert "Its last line: Killed" in message


def test_a_result_that_a_shared_filesystem_shows_late(tmp_path, monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(cluster.time, "monotonic", lambda: 100 + now.seconds)
    sent = cluster.Sent(job_of(tmp_path))
    for state in ("COMPLETED", ""):  # done, and forgotten by the queue a little later
        assert not sent.ended(state)
        now.seconds += cluster.LATE / 2
    job_of(tmp_path, result="")
    assert sent.ended("") and cluster.outcome(step(), job_of(tmp_path, result=""), "") == []
    gone = cluster.Sent(job_of(tmp_path / "elsewhere"))
    assert not gone.ended("")
    now.seconds += cluster.LATE + 1
    assert gone.ended("")


def test_a_record_that_is_never_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "LATE", 0.0)
    monkeypatch.setattr(cluster, "POLL", 0.0)
    with pytest.raises(MissingFile, match="all nodes share"):
        cluster.seen([tmp_path / "manifest.json"])


def test_an_exception_in_a_job_is_told_by_its_last_line(tmp_path):
    report = (
        "failed with trace:\n----\nTraceback\n  a line\nValueError: no room\n\n----\nYou can check full logs ...\n - x"
    )
    job = job_of(tmp_path, result="")
    job.exception = lambda: RuntimeError(report)
    assert cluster.outcome(step(), job, "") == [f"a part: ValueError: no room. See {job.paths.stderr}"]


def test_an_error_of_ours_comes_back_as_its_message_and_leaves_no_note(own_cache):
    def call():
        raise BookError("too few questions")

    broken = cluster.Step("a part", "states", "key", call)
    assert cluster.noted(broken) == "too few questions"
    assert not broken.note.exists()
    assert cluster.noted(step()) is None and step().note.exists()


# From here on whole runs, each in a checkout of its own.


class Checkout:
    """A copy of the repository with a cache of its own, and the command line in it."""

    def __init__(self, folder, environment=None):
        (folder / "checkout").mkdir(parents=True)
        self.folder, self.cache = copy_checkout(folder / "checkout"), folder / "cache"
        shutil.copytree(ROOT / "src", self.folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(store.cache_folder() / "downloads", self.cache / "downloads")
        own = {"PYTHONPATH": str(self.folder / "src"), "PG_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"}
        self.environment = (environment or dict(os.environ)) | own

    def start(self, *options):
        pages = [word for page in PAGES for word in ("--only", page)]
        command = [sys.executable, "-m", "peaks_and_gates.cli", "run", "--preset", "smoke", *pages, *options]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, *options):
        """Returns the exit code and all that was printed."""
        process = self.start(*options)
        out, err = process.communicate(timeout=900)
        return process.returncode, out + err

    def tables(self):
        folder = self.folder / "_build" / "results" / "smoke"
        return {path.stem: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}

    def artifacts(self):
        """When each stored artifact was made."""
        made = self.cache.glob("*/*.*.json")
        return {path: path.stat().st_mtime_ns for path in made if path.parent.name not in ("downloads", "cluster")}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The tables of the pages, made in one process."""
    checkout = Checkout(tmp_path_factory.mktemp("here"))
    code, said = checkout.run()
    assert code == 0, said
    return checkout.tables()


def kill(number):
    """SIGKILL the process that does the work of a SLURM job."""
    workers = [p for p in psutil.process_iter(["cmdline"]) if "submitit.core._submit" in (p.info["cmdline"] or [])]
    workers = [p for p in workers if "python" in Path(p.info["cmdline"][0]).name]  # not srun, which started it
    workers = [p for p in workers if p.environ().get("SLURM_JOB_ID") == number]
    assert workers, f"no process of job {number}"
    for process in workers:
        process.kill()


def equal(tables, others):
    assert tables.keys() == others.keys() and tables
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, others[name], check_exact=False, rtol=1e-5, atol=1e-6)


def test_other_processes_find_the_same(here, tmp_path):
    checkout = Checkout(tmp_path)
    code, said = checkout.run("--executor", "local")
    assert code == 0, said
    equal(checkout.tables(), here)
    made = checkout.artifacts()
    code, said = checkout.run("--executor", "local")
    assert code == 0 and "2 of 2 pages are done" in said
    assert checkout.artifacts() == made


@pytest.mark.skipif(slurm_here.missing() is not None, reason=f"no SLURM on this machine: {slurm_here.missing()}")
def test_a_cluster_finds_the_same_though_jobs_are_killed_and_the_node_is_drained(here, tmp_path):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, slurm_here.slurm(Path(folder)) as environment:
        ask = lambda *command: slurm_here.output(environment, *command)
        queued = lambda state: ask("squeue", "-h", "-t", state, "-o", "%i").split()
        checkout = Checkout(tmp_path, environment)

        running = checkout.start("--executor", "slurm")
        slurm_here.wait_for(lambda: len(queued("RUNNING")) == 2, 120, "two jobs at once")
        killed = queued("RUNNING")
        assert len(killed) + len(queued("PENDING")) >= 6  # the grid
        time.sleep(3)  # into their work
        for number in killed:
            kill(number)
        node = environment["SLURMD_NODENAME"]
        ask("scontrol", "update", f"nodename={node}", "state=drain", "reason=a test")
        slurm_here.wait_for(lambda: not queued("RUNNING"), 120, "end of what ran on the drained node")
        assert queued("PENDING")
        time.sleep(5)
        assert not queued("RUNNING")  # nothing begins on a drained node, and nobody gives up
        assert running.poll() is None
        ask("scontrol", "update", f"nodename={node}", "state=resume")
        out, err = running.communicate(timeout=900)
        assert running.returncode == 2
        for number in killed:
            assert re.search(rf"job {number} died without a result \(failed", out + err), out + err
        made = checkout.artifacts()

        code, said = checkout.run("--executor", "slurm")
        assert code == 0, said
        equal(checkout.tables(), here)
        assert made.items() <= checkout.artifacts().items()  # nothing was made again

        profile = tmp_path / "profile.yml"
        profile.write_text("slurm_partition: large\n")
        code, said = checkout.run("--executor", "slurm", "--force", "--profile", str(profile))
        assert code == 2 and f"Partitions here: {slurm_here.PARTITION}" in said and "Traceback" not in said
