"""The smoke book again and again in one process: memory, open files and the store stay as they are.

The pages' cells are run here, one page after the other, as a kernel would. A kernel of their own for each page would
hide what is not given back.
"""

import gc
import os

import nbformat
import psutil
import pytest

from conftest import copy_checkout, size
from peaks_and_gates import book, store

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


@pytest.mark.skipif(not hasattr(psutil.Process, "num_fds"), reason="open files are not counted here")
def test_the_smoke_book_twenty_times(tmp_path, monkeypatch, report):
    (tmp_path / "book").mkdir()
    root = copy_checkout(tmp_path / "book")
    monkeypatch.setattr(store, "project_folder", lambda: root)
    monkeypatch.setenv("PG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(root / "notebooks" / "landscape")
    os.environ.setdefault("MPLBACKEND", "agg")
    rounds = size(20, 3)
    jobs = [job for job in book.plan("smoke") if job.runnable]
    if rounds < 20:
        jobs = [job for job in jobs if job.name in ("accuracy", "known_agreement")]
    states = []
    for number in range(rounds):
        for job in jobs:
            run(job)
        states.append(state())
        if number == 0:
            gc.freeze()  # what is loaded by now stays: looking through it again and again takes a tenth of a round
    gc.unfreeze()
    memory, objects, open_files, files, stored = zip(*states, strict=True)
    settled = rounds // 2  # what is loaded once is loaded by then
    growth = (memory[-1] - memory[settled]) / (rounds - 1 - settled)
    more = (objects[-1] / objects[settled] - 1) / (rounds - 1 - settled)
    assert len(set(open_files[settled:])) == 1, open_files
    assert len(set(files)) == 1 and len(set(stored)) == 1, (files, stored)
    assert more < OBJECTS_A_ROUND, objects
    assert rounds < 20 or growth < MIB_A_ROUND, memory  # a few rounds are too few for memory to settle
    said = f"{rounds} rounds of {len(jobs)} pages; in each of the second half {growth:+.1f} MiB of {memory[-1]:,.0f}, "
    said += f"{more:+.2%} objects, no more open files ({open_files[-1]}), no more stored files ({files[-1]:,})"
    report("soak", "the smoke book in a row", rounds, said)
