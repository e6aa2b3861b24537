"""Several processes at one store, processes killed while they write, and disks that are full or closed."""

import os
import random
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import storing
import torch

from conftest import size
from peaks_and_gates import record, store
from peaks_and_gates.errors import StorageFull

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")
CODE = ("store",)
ROWS = storing.ROWS
SUM = ROWS * (ROWS - 1) // 2


def leftovers(folder):
    """Temporary files."""
    return [path for path in Path(folder).rglob("*") if path.name.endswith(".tmp")]


def test_four_processes_compute_one_artifact_once(tmp_path, report):
    rounds = size(5, 1)
    for number in range(rounds):
        marks = tmp_path / f"marks-{number}"
        work = lambda marks=marks: storing.table(marks, wait=0.5)
        children = [storing.forked(work, tmp_path / f"cache-{number}") for _ in range(4)]
        assert [storing.ended(child) for child in children] == [0] * 4
        assert len(marks.read_text().splitlines()) == 1
    report("concurrency", "four processes ask for one artifact", rounds, "computed once")


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path, report):
    writer = storing.forked(storing.values, tmp_path)
    path, reads, seen = tmp_path / "values.parquet", size(200, 20), set()
    try:
        while not path.exists():
            time.sleep(0.01)
        for _ in range(reads):
            found = pd.read_parquet(path)["value"]
            assert len(found) == ROWS and found.iloc[-1] - found.iloc[0] == ROWS - 1
            seen.add(int(found.iloc[0]))
    finally:
        os.kill(writer, signal.SIGKILL)
        storing.ended(writer)
    assert len(seen) > 1, "the writer wrote nothing meanwhile: this tested nothing"
    report("concurrency", "reads of a file that is written all the time", reads, "old or new, never half")


@pytest.mark.filterwarnings("ignore:.*is damaged or was not finished")
def test_a_kill_at_any_moment_leaves_nothing_wrong(tmp_path, monkeypatch, report):
    monkeypatch.setenv("PG_CACHE", str(tmp_path / "whole"))
    expected = storing.table(), storing.model()
    assert expected[0] == SUM
    draw, kills, during = random.Random(0), size(24, 3), 0
    for number in range(kills):
        cache = tmp_path / f"cache-{number}"
        child = storing.forked(lambda: (storing.table(), storing.model()), cache)
        time.sleep(draw.uniform(0.0, 0.08))
        os.kill(child, signal.SIGKILL)  # one that has ended already is a zombie until it is waited for
        during += storing.ended(child) == -signal.SIGKILL
        monkeypatch.setenv("PG_CACHE", str(cache))
        assert (storing.table(), storing.model()) == expected
        assert not leftovers(cache)
    assert during, "every process ended before it was killed: this tested nothing"
    report("kills", "SIGKILL while artifacts and models are stored", kills, "the same values, nothing left behind")


@pytest.mark.parametrize("moment", ["data", "manifest", "model", "model's manifest"])
def test_a_kill_within_a_write_leaves_nothing_wrong(moment, tmp_path, monkeypatch, report):
    """As above, at the moments that matter most, each hit for certain."""
    monkeypatch.setenv("PG_CACHE", str(tmp_path))

    def work():
        die_at(moment, monkeypatch)
        (storing.table if moment in ("data", "manifest") else storing.model)()

    assert storing.ended(storing.forked(work, tmp_path)) == -signal.SIGKILL
    assert leftovers(tmp_path) or moment == "model"
    with pytest.warns(UserWarning, match="not finished") if "m" in moment else nothing_expected():
        assert storing.table() == SUM
        made = storing.model()
    assert len(made) == 4 and not leftovers(tmp_path)
    report("kills", f"SIGKILL while the {moment} is written", 1, "the same value, nothing left behind")


@contextmanager
def nothing_expected():
    yield


def die_at(moment, monkeypatch):
    """Let this process be killed in the middle of one write."""

    def killed(path, *rest, **more):
        Path(path).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "data":
        monkeypatch.setattr(pd.DataFrame, "to_parquet", lambda self, path, **more: killed(path))
    elif moment == "model":
        monkeypatch.setattr(storing, "save_file", lambda values, path: killed(path))
    else:
        before = Path.write_text
        dying = lambda self, text, **more: killed(self) if ".tmp" in self.name else before(self, text, **more)
        monkeypatch.setattr(Path, "write_text", dying)


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own: the folder, and a function that mounts it anew with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no disk of a test's own can be mounted here: {done.stderr.strip()}")
    yield folder, lambda how: subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def small(name):
    return store.table(name, {}, lambda: pd.DataFrame({"value": range(10)}), CODE)["value"].sum()


def large():
    """More than the disk has room for."""
    return os.urandom(4 * 2**20)


def save_large(folder):
    (folder / "model.safetensors").write_bytes(large())


FULL = {
    "table": lambda folder: store.table("new", {}, lambda: pd.DataFrame({"value": list(large())}), CODE),
    "document": lambda folder: store.document("new", {}, lambda: large().hex(), CODE),
    "model": lambda folder: store.made_once(folder / "new", {}, save_large),
    "state": lambda folder: store.keep_state(folder / "new", {"w": tensor()}, {"done": "1"}),
    "record": lambda folder: recorded(folder / "new"),
}


def tensor():
    return torch.frombuffer(bytearray(large()), dtype=torch.uint8)


def recorded(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PG_RECORD", str(folder))
        patch.delenv("PG_REDRAW", raising=False)
        return record.table("numbers", {}, lambda: pd.DataFrame({"value": list(large())}))


@pytest.mark.parametrize("what", FULL)
@pytest.mark.parametrize("how", ["full", "closed"])
def test_a_full_or_closed_disk_is_one_message_and_keeps_what_is_finished(what, how, disk, monkeypatch, report):
    folder, remount = disk
    monkeypatch.setenv("PG_CACHE", str(folder))
    assert small("kept") == 45
    store.keep_state(folder / "state", {}, {"done": "1"})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if how == "closed":
        remount("ro")
    with pytest.raises(StorageFull, match="PG_CACHE") as caught:
        FULL[what](folder)
    assert "\n" not in str(caught.value)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name[-5:] != ".lock"}
    assert not after.keys() - before.keys()
    assert all(after.get(path, data) == data for path, data in before.items())
    monkeypatch.setattr(store.pd.DataFrame, "to_parquet", lambda *a, **k: pytest.fail("computed again"))
    assert small("kept") == 45 and store.kept_state(folder / "state") == ({}, {"done": "1"})
    report("disk", f"a {what} written to a {how} disk", 1, "one message, nothing half-written, the rest kept")
