"""Long work killed at random moments: after a plain second run everything is as if nothing had happened.

What is killed is a forked process, at a moment drawn from the time that the work takes undisturbed.
"""

import os
import random
import shutil
import signal
import time
import warnings

import pandas as pd
import pytest
import storing
import torch
from safetensors.torch import load_file

from conftest import copy_checkout, make_questions, size
from peaks_and_gates import finetune, mini_training, minis, questions, site, store
from peaks_and_gates.book import runner as book
from peaks_and_gates.extraction import hidden_states
from peaks_and_gates.questions import build_prompts
from test_finetune import SETTINGS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")


def leftovers(folder):
    """Temporary files."""
    return [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".running.ipynb"))]


def survives(work, result, folder, kills, seed):
    """Do some work undisturbed, then again and again with a kill, each time in a folder of its own.

    work: called with the folder; the cache is in it.  result: what is compared, read from the folder.
    """
    whole = folder / "whole"
    start = time.perf_counter()
    assert storing.ended(storing.forked(lambda: quietly(work, whole), whole / "cache")) == 0
    seconds, expected = time.perf_counter() - start, result(whole)
    draw = random.Random(seed)
    for number in range(kills):
        delay = draw.uniform(0.02, 0.9) * seconds
        while not killed(work, folder / f"killed-{number}", delay):
            shutil.rmtree(folder / f"killed-{number}")
            delay /= 2  # it was done by then: once more, earlier
        place = folder / f"killed-{number}"
        assert storing.ended(storing.forked(lambda place=place: quietly(work, place), place / "cache")) == 0
        assert alike(result(place), expected), f"kill {number}: another result"
        assert not leftovers(place), leftovers(place)
        shutil.rmtree(place)


def killed(work, place, delay):
    """Begin some work and kill it after a time; whether it was still going on."""
    child = storing.forked(lambda: quietly(work, place), place / "cache")
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return storing.ended(child) == -signal.SIGKILL


def quietly(work, folder):
    """Work in a process of one thread, whose warnings about what was killed are expected."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work(folder)


def alike(found, expected):
    """Bit for bit."""
    assert found.keys() == expected.keys() and found
    return all(torch.equal(found[name], expected[name]) for name in expected)


def tensors_below(folder):
    return {
        f"{path.relative_to(folder)}: {name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def extraction(folder):
    prompts = build_prompts(make_questions(6, 8), n_shots=5, n_orders=2)
    hidden_states("tiny-llama", prompts, dtype="float32")


def fine_tuning(folder):
    finetune.SAVE_EVERY = 2
    questions.load = lambda *given, **more: make_questions(3, 6)
    finetune.train(SETTINGS, folder / "adapter", dtype=torch.float32)


def mini(folder):
    mini_training.SAVE_EVERY = 2
    minis.project_folder = lambda: folder
    mini_training.train("smoke", "native", 1)


@pytest.mark.parametrize(
    ("work", "where", "kills"),
    [(extraction, "cache/states", (16, 2)), (fine_tuning, "adapter", (14, 1)), (mini, "weights", (8, 1))],
    ids=["extraction", "fine-tuning", "a mini"],
)
def test_killed_work_is_done_as_if_nothing_had_happened(work, where, kills, tmp_path, report):
    kills = size(*kills)
    survives(work, lambda folder: tensors_below(folder / where), tmp_path, kills, seed=0)
    report(
        "kills", f"SIGKILL during {work.__name__.replace('_', '-')}", kills, "bit for bit the same, nothing left behind"
    )


PAGES = ("known_agreement", "cartoon")


def checked_out(folder):
    """Work on the checkout in this folder, which is copied whole or not at all: what is to be killed is the work."""
    root = folder / "book"
    if not root.is_dir():
        fresh = folder / "copied"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        copy_checkout(fresh)
        fresh.rename(root)
    store.project_folder = lambda: root


def pages(folder):
    """Run two pages of a checkout in this folder."""
    checked_out(folder)
    jobs = book.plan("smoke", PAGES)
    assert book.run(jobs) == []
    assert [job.state for job in jobs] == ["done"] * len(PAGES)


def recorded(folder):
    """A hash of every row of every table."""
    tables = sorted((folder / "book" / "_build" / "results" / "smoke").glob("*.parquet"))
    hashed = lambda path: pd.util.hash_pandas_object(pd.read_parquet(path)).to_numpy().view("int64").copy()
    return {path.stem: torch.from_numpy(hashed(path)) for path in tables}


def test_killed_pages_are_run_as_if_nothing_had_happened(tmp_path, report):
    kills = size(3, 0)
    if not kills:
        pytest.skip("takes minutes: `make test-faults` kills pages")
    survives(pages, recorded, tmp_path, kills, seed=1)
    report("kills", "SIGKILL while pages run", kills, "the same tables, nothing left behind")


def site_built(folder):
    """Build the site of a checkout in this folder, of pages without results: drawing those takes most of the time."""
    checked_out(folder)
    site.build("smoke")


def pages_of_site(folder):
    """The number of bytes of every page; what a build leaves else may hold times."""
    built = folder / "book" / "_build" / "html"
    return {str(path.relative_to(built)): torch.tensor(path.stat().st_size) for path in built.rglob("*.html")}


def test_a_killed_build_of_the_site_is_done_again(tmp_path, report):
    kills = size(2, 0)
    if not kills:
        pytest.skip("takes minutes: `make test-faults` kills builds")
    survives(site_built, pages_of_site, tmp_path, kills, seed=2)
    report("kills", "SIGKILL while the site is built", kills, "pages of the same sizes, nothing left behind")
