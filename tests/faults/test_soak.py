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

# Memory that a library may keep for itself from one round to the next, on average.
MIB_A_ROUND = 2.0


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
    """Memory of this process in MiB, its open files, and the files and bytes of the store."""
    gc.collect()
    process = psutil.Process()
    stored = [path for path in store.cache_folder().rglob("*") if path.is_file()]
    return process.memory_info().rss / 2**20, process.num_fds(), len(stored), sum(p.stat().st_size for p in stored)


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
    for _ in range(rounds):
        for job in jobs:
            run(job)
        states.append(state())
    memory, open_files, files, stored = zip(*states, strict=True)
    settled = min(2, rounds - 2)  # what is loaded once is loaded by then
    growth = (memory[-1] - memory[settled]) / (rounds - 1 - settled)
    said = f"{rounds} rounds of {len(jobs)} pages: {growth:+.1f} MiB a round after the first, "
    assert len(set(open_files[settled:])) == 1, open_files
    assert len(set(files)) == 1 and len(set(stored)) == 1, (files, stored)
    assert rounds < 20 or growth < MIB_A_ROUND, memory  # a few rounds are too few for memory to settle
    report("soak", "the smoke book in a row", rounds, said + f"{open_files[-1]} open files, {files[-1]} stored files")
