"""What several tests share: a cache of their own, small models, hand-made questions; of fault tests, their figures.

`make test` runs a few cases of every kind of fault; `make test-faults` (PG_FAULTS=full) all, and keeps the figures.
`make test-oldest` and `make test-newest` (PG_VERSIONS) do what `make test` does at other versions, and keep what came.
"""

import os
import shutil
from collections import defaultdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import allowed
from peaks_and_gates import models, store
from peaks_and_gates.questions import Question, QuestionSet

ROOT = Path(__file__).parents[1]
# Files that take minutes, longest first: they are begun first, so that none is left to one process at the end.
LONG = ("test_soak", "test_book", "test_browser", "test_cluster", "test_minis", "test_gate_study", "test_paper_size")
WORDS = ["river", "stone", "music", "hammer", "planet", "oxygen", "lawyer", "finch", "engine", "violin", "cotton"]

FULL = os.environ.get("PG_FAULTS") == "full"
VERSIONS = os.environ.get("PG_VERSIONS", "lock")
# The same cases at every run; a slow machine is no fault of the case.
settings.register_profile(
    "faults", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("faults")


def size(full: int, reduced: int) -> int:
    """How many cases of a fault to try."""
    return full if FULL else reduced


@pytest.fixture
def report(record_property):
    """Call with a kind, what was tried, how many cases, and what came of it: printed at the end of the run."""

    def add(kind: str, tried: str, cases: int, outcome: str) -> None:
        record_property("fault", {"kind": kind, "tried": tried, "cases": cases, "outcome": outcome})

    return add


def pytest_terminal_summary(terminalreporter):
    """Print how many cases of each kind of fault were tried, and keep the figures of a full run."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    figures = [value for report in reports for name, value in report.user_properties if name == "fault"]
    if not figures:
        return
    by_kind = defaultdict(int)
    for figure in figures:
        by_kind[figure["kind"]] += figure["cases"]
    terminalreporter.section("faults")
    for kind, cases in by_kind.items():
        terminalreporter.write_line(f"{kind}: {cases:,} cases")
    outcomes = {name: len(terminalreporter.getreports(name)) for name in ("passed", "failed", "error", "skipped")}
    if FULL:
        keep("figures", figures, outcomes)
    if VERSIONS != "lock":
        versions = {name: metadata.version(name) for name in (line.partition("==")[0] for line in allowed.oldest())}
        keep(VERSIONS, [one for one in figures if one["kind"] == "versions"], outcomes, requirements=versions)


def keep(name: str, figures: list[dict], outcomes: dict, **more: dict) -> None:
    """Write the figures of a run, which a page of the book shows."""
    about = {"created": datetime.now(UTC).date().isoformat(), "environment": store.environment()}
    store.write_json(ROOT / "tests" / "faults" / f"{name}.json", about | outcomes | {"figures": figures} | more)


def pytest_collection_modifyitems(items):
    """Put the long files first; within a file, and among the others, the order stays."""
    place = lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG)
    items.sort(key=place)


def make_question(subject: str, number: int) -> Question:
    """A question whose length varies with its number."""
    gloss = " ".join(WORDS[(number * 5 + i * 3) % len(WORDS)] for i in range(3 + number % 7))
    options = tuple(WORDS[(number + i) % len(WORDS)] for i in range(4))
    return Question(subject, f'Which word means "{gloss}"?', options, number % 4)


def make_questions(n_subjects: int = 3, n: int = 10) -> QuestionSet:
    """A small question set, the same at every call."""
    names = [f"subject_{i}" for i in range(n_subjects)]
    split = lambda size, start: {
        name: tuple(make_question(name, start + 7 * i + j) for j in range(size)) for i, name in enumerate(names)
    }
    return QuestionSet("made", {}, split(5, 0), split(4, 50), split(4, 90), split(n, 130))


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache folder for one test."""
    monkeypatch.setenv("PG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny():
    """A random four-layer Llama in float64, in which equal computations agree to many digits."""
    return models.load("tiny-llama", dtype=torch.float64, device="cpu")


def copy_checkout(target: Path) -> Path:
    """A copy of what the repository holds, without what is installed or built in it."""
    for name in ("_config.yml", "_toc.yml", "requirements.lock"):
        shutil.copy2(ROOT / name, target / name)
    for name in ("benchmarks", "book", "data", "notebooks", "results", "weights"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return target


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout, so that a test run leaves no trace in the reader's own."""
    folder = copy_checkout(tmp_path_factory.mktemp("checkout"))
    patch = pytest.MonkeyPatch()
    patch.setattr(store, "project_folder", lambda: folder)
    yield folder
    patch.undo()
