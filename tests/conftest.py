"""What several tests share: a cache of their own, small models, hand-made questions.

`make test-faults` (PG_FAULTS=full) plants every fault; `make test` a few of them.
"""

import os
import shutil
from pathlib import Path

import pytest
import torch

from peaks_and_gates import cache, models
from peaks_and_gates.book import site
from peaks_and_gates.landscape.questions import Question, QuestionSet

ROOT = Path(__file__).parents[1]
# Files that take minutes, longest first: they are begun first, so that none is left to one process at the end.
LONG = ("test_minis", "test_paper_size", "test_runner")
WORDS = ["river", "stone", "music", "hammer", "planet", "oxygen", "lawyer", "finch", "engine", "violin", "cotton"]


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


@pytest.fixture(autouse=True)
def one_precision(monkeypatch):
    """Tests run in float32 on every CPU, also on one that multiplies bfloat16 faster."""
    monkeypatch.setattr(models, "gain_of_bfloat16", lambda: 1.0)


@pytest.fixture(scope="session")
def dadapy():
    """The library itself, which Python 3.13 and numpy 2 do not have."""
    return pytest.importorskip("dadapy")


@pytest.fixture(scope="session")
def tiny():
    """A random four-layer Llama in float64, in which equal computations agree to many digits."""
    return models.load("tiny-llama", dtype=torch.float64, device="cpu")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what the repository holds, so that a test run leaves no trace in the reader's own."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("_config.yml", "_toc.yml", "requirements-dev.lock"):
        shutil.copy2(ROOT / name, folder / name)
    for name in ("benchmarks", "book", "data", "notebooks", "results", "src", "weights"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "project_folder", lambda: folder)
        yield folder


@pytest.fixture(scope="module")
def built(checkout):
    """The site as `make site` builds it from what is committed, without a model; or PG_SITE, a site that was built."""
    if os.environ.get("PG_SITE"):
        return Path(os.environ["PG_SITE"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PG_CACHE", str(checkout / "no-cache"))
        patch.setenv("PYTHONPATH", str(checkout / "src"))  # for the processes that draw and build
        target = site.build("laptop")
    assert not list((checkout / "no-cache").rglob("*.safetensors")), "a model was needed to build the site"
    return target
