"""Artifacts: computed once, checked on read, safe against kills, damage, two processes and a full disk."""

import errno
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch

from peaks_and_gates import store
from peaks_and_gates.errors import StorageFull

CODE = ("store",)


@pytest.fixture(autouse=True)
def _cache(own_cache):
    return own_cache


def number_table(calls, value=1.0):
    def compute():
        calls.append(value)
        return pd.DataFrame({"value": [value]})

    return compute


def stored_file():
    (path,) = store.cache_folder().glob("numbers/*.parquet")
    return path


def test_the_second_time_nothing_is_computed():
    calls = []
    for _ in range(2):
        table = store.table("numbers", {"a": 1, "b": [1, 2]}, number_table(calls), CODE)
    assert table["value"].tolist() == [1.0]
    assert len(calls) == 1


def test_other_inputs_and_other_code_are_other_artifacts(monkeypatch):
    calls = []
    store.table("numbers", {"a": 1}, number_table(calls), CODE)
    store.table("numbers", {"a": 2}, number_table(calls), CODE)
    monkeypatch.setattr(store, "code_version", lambda *names: "other")
    store.table("numbers", {"a": 1}, number_table(calls), CODE)
    assert len(calls) == 3


def test_comments_and_docstrings_are_not_code(tmp_path, monkeypatch):
    def version(source):
        (tmp_path / "m.py").write_text(source)
        monkeypatch.setattr(store, "SOURCE", tmp_path)
        store.code_version.cache_clear()
        return store.code_version("m")

    plain = version('"""One."""\ndef f(x):\n    """Two."""\n    return x\n')
    assert version('"""Other."""\ndef f(x):  # why\n    """Words."""\n    return x\n') == plain
    assert version('"""One."""\ndef f(x):\n    """Two."""\n    return -x\n') != plain
    store.code_version.cache_clear()


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete", "manifest", "no manifest"])
def test_damage_is_found_and_computed_again_with_one_warning(damage):
    calls = []
    store.table("numbers", {}, number_table(calls), CODE)
    path = stored_file()
    data = path.read_bytes()
    if damage == "flip":
        path.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    elif damage == "truncate":
        path.write_bytes(data[:-10])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "delete":
        path.unlink()
    elif damage == "manifest":
        store.manifest_path(path).write_text("{")
    else:
        store.manifest_path(path).unlink()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        table = store.table("numbers", {}, number_table(calls), CODE)
    assert table["value"].tolist() == [1.0]
    assert len(calls) == 2
    assert len(seen) == 1, [str(w.message) for w in seen]
    assert store.intact(path)


def test_tensors_keep_their_dtype():
    made = {"a": torch.randn(3, 4, dtype=torch.bfloat16), "b": torch.arange(5)}
    file = store.tensors("states", {}, lambda: made, CODE)
    assert torch.equal(file.get_tensor("a"), made["a"])
    assert file.get_tensor("a").dtype == torch.bfloat16
    assert torch.equal(file.get_tensor("b"), made["b"])


def test_the_manifest_says_how_it_was_made():
    store.table("numbers", {"seed": 3}, number_table([]), CODE)
    manifest = json.loads(store.manifest_path(stored_file()).read_text())
    assert manifest["inputs"] == {"seed": 3}
    assert manifest["environment"]["packages"]["torch"]
    assert manifest["environment"]["cores"] >= 1
    assert manifest["seconds"] >= 0


def slow(folder, marks):
    os.environ["PG_CACHE"] = folder

    def compute():
        Path(marks, str(os.getpid())).touch()
        time.sleep(1)
        return pd.DataFrame({"value": [2.0]})

    store.table("numbers", {"slow": True}, compute, CODE)


def test_four_processes_compute_one_artifact_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    marks = tmp_path / "marks"
    marks.mkdir()
    workers = [context.Process(target=slow, args=(str(store.cache_folder()), str(marks))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(list(marks.iterdir())) == 1


def killed_while_writing(folder):
    os.environ["PG_CACHE"] = folder

    def write(frame, path):
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    store.artifact("numbers", {}, lambda: 1, code=CODE, suffix=".parquet", write=write, read=pd.read_parquet)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is not a Windows signal")
def test_a_killed_process_leaves_neither_a_lock_nor_a_half_file():
    worker = multiprocessing.get_context("spawn").Process(
        target=killed_while_writing, args=(str(store.cache_folder()),)
    )
    worker.start()
    worker.join(120)
    assert worker.exitcode == -signal.SIGKILL
    assert list(store.cache_folder().glob("numbers/.*.tmp")), "the process died too early for this test"
    calls = []
    assert store.table("numbers", {}, number_table(calls), CODE)["value"].tolist() == [1.0]
    assert calls == [1.0]
    assert not list(store.cache_folder().glob("numbers/.*.tmp"))


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(errno.EACCES, "no")]
)
def test_a_full_or_closed_disk_is_one_clear_message_and_leaves_nothing(monkeypatch, error):
    def fail(self, *args, **kwargs):
        Path(args[0]).write_bytes(b"half")
        raise error

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fail)
    with pytest.raises(StorageFull, match="PG_CACHE"):
        store.table("numbers", {}, number_table([]), CODE)
    assert not [p for p in store.cache_folder().rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_a_full_disk_in_the_words_of_safetensors():
    assert store.no_room(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not store.no_room(RuntimeError("something else"))
