"""The smoke book again and again, each half in one process: memory, open files and the store stay as they are.

The pages' cells are run one page after the other, as a kernel would. A kernel of their own for each page would hide
what is not given back.
"""

import gc
import json
import os

import nbformat
import psutil
import pytest
from storing import ended, forked

from conftest import copy_checkout, size
from peaks_and_gates import store
from peaks_and_gates.book import runner as book

# What a library may keep for itself from one round to the next, on average over the second half of the rounds: memory
# that the allocator does not give back, and a share of all objects of Python.
MIB_A_ROUND, OBJECTS_A_ROUND = 2.0, 0.001


def run(job):
    """A page's cells, with its parameters put in."""
    cells = [cell for cell in nbformat.read(job.source, as_version=4).cells if cell.cell_type == "code"]
    names = {"__name__": "__main__"}
    settings = {"PG_RUNNER": "1", "PG_PAGE": job.name, "PG_RECORD": str(job.record), "PG_REDRAW": ""}
    with book.environment(settings):
        for cell in cells:
            exec(cell.source, names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= job.parameters


def state():
    """Memory of this process in MiB, its objects, its open files, and the files and bytes of the store."""
    gc.collect()
    process, objects = psutil.Process(), len(gc.get_objects()) + gc.get_freeze_count()
    stored = [path for path in store.cache_folder().rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in stored)
    return process.memory_info().rss / 2**20, objects, process.num_fds(), len(stored), size


def soaked(jobs, rounds):
    """`state` after each of so many rounds of these pages."""
    states = []
    for number in range(rounds):
        for job in jobs:
            run(job)
        states.append(state())
        if number == 0:
            gc.freeze()  # what is loaded by now stays: looking through it again and again takes a tenth of a round
    return states


def growth(name, states):
    """By how many MiB, and by which share of its objects, a process grew in each round; its open and stored files."""
    memory, objects, open_files, files, size_stored = zip(*states, strict=True)
    settled = len(states) // 2  # what is loaded once is loaded by then
    rounds = len(states) - 1 - settled
    mebibytes, share = (memory[-1] - memory[settled]) / rounds, (objects[-1] / objects[settled] - 1) / rounds
    assert len(set(open_files[settled:])) == 1, (name, open_files)
    assert len(set(files)) == 1 and len(set(size_stored)) == 1, (name, files, size_stored)
    assert share < OBJECTS_A_ROUND, (name, objects)
    assert len(states) < 20 or mebibytes < MIB_A_ROUND, (name, memory)  # a few rounds are too few for it to settle
    return mebibytes, share, open_files[-1], files[-1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here, and their open files counted")
def test_the_smoke_book_twenty_times(tmp_path, monkeypatch, report):
    (tmp_path / "book").mkdir()
    root = copy_checkout(tmp_path / "book")
    monkeypatch.setattr(store, "project_folder", lambda: root)
    monkeypatch.chdir(root / "notebooks" / "landscape")
    os.environ.setdefault("MPLBACKEND", "agg")
    rounds = size(20, 3)
    jobs = [job for job in book.plan("smoke") if job.runnable]
    if rounds < 20:
        jobs = [job for job in jobs if job.name in ("accuracy", "known_agreement")]
    parts = {
        "landscape": [job for job in jobs if job.source.parent.name == "landscape"],
        "others": [job for job in jobs if job.source.parent.name != "landscape"],
    }
    kept = lambda name, of: (tmp_path / f"{name}.json").write_text(json.dumps(soaked(of, rounds)))
    soaks = [forked(lambda n=name, of=of: kept(n, of), tmp_path / name) for name, of in parts.items()]
    assert [ended(soak) for soak in soaks] == [0, 0]
    found = [growth(name, json.loads((tmp_path / f"{name}.json").read_text())) for name in parts]
    mebibytes, share, opened, stored = (max(numbers) for numbers in zip(*found, strict=True))
    said = f"{rounds} rounds of {len(jobs)} pages in two processes; in each round of the second half at most "
    said += f"{mebibytes:+.1f} MiB and {share:+.2%} objects, no more open files ({opened}) or stored files ({stored:,})"
    report("soak", "the smoke book in a row", rounds, said)
