"""The cache: computed once, never half-written, and computed again when a file is damaged."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
import torch

from peaks_and_gates import cache
from peaks_and_gates.errors import HashMismatch, MissingFile, StorageFull

TABLE = pd.DataFrame({"layer": [0, 1], "value": [0.5, None], "model": ["a", None]})
VALUES = {"tensors": {"a": torch.arange(6, dtype=torch.bfloat16)[::2]}, "table": TABLE}
FORK = multiprocessing.get_context("fork")


def assert_equal(kind, value):
    if kind == "tensors":
        assert torch.equal(value.get_tensor("a"), VALUES[kind]["a"]) and value.get_tensor("a").dtype == torch.bfloat16
    else:
        pd.testing.assert_frame_equal(value, TABLE)


@pytest.mark.parametrize("kind", VALUES)
def test_an_artifact_is_computed_once_and_again_for_other_inputs(own_cache, kind):
    calls = []
    compute = lambda: (calls.append(1), VALUES[kind])[1]
    for inputs in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 3}):
        assert_equal(kind, cache.cached("test", inputs, compute, kind))
    assert len(calls) == 2


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, lambda path: path.write_bytes(b""), Path.unlink])
@pytest.mark.parametrize("part", ["data", "manifest"])
@pytest.mark.parametrize("kind", VALUES)
def test_a_damaged_file_is_computed_again(own_cache, kind, part, damage):
    cache.cached("test", {}, lambda: VALUES[kind], kind)
    (manifest,) = (own_cache / "test").glob("[!.]*.json")
    data = manifest.with_suffix("")
    damage(data if part == "data" else manifest)
    calls = []
    recompute = lambda: (calls.append(1), VALUES[kind])[1]
    if not cache.is_valid(data):  # a flipped bit may fall into a part of the manifest that says nothing of the data
        with pytest.warns(UserWarning, match="computed again"):
            assert_equal(kind, cache.cached("test", {}, recompute, kind))
        assert calls
    assert_equal(kind, cache.cached("test", {}, lambda: pytest.fail("computed twice"), kind))


@pytest.mark.parametrize("kind", VALUES)
def test_a_full_disk_is_one_message_and_leaves_nothing(own_cache, kind, monkeypatch):
    monkeypatch.setattr("pathlib.Path.replace", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(StorageFull, match=r"No space left.*PG_CACHE"):
        cache.cached("test", {}, lambda: VALUES[kind], kind)
    assert [path.suffix for path in (own_cache / "test").iterdir()] == [".lock"]
    assert cache.is_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not cache.is_full(RuntimeError("Cannot allocate memory (os error 12)"))
    assert not cache.is_full(ValueError("28")) and not cache.is_full(OSError(2, "No such file"))


def write_and_hang(folder):
    os.environ["PG_CACHE"] = str(folder)
    cache.FORMATS["table"] = (".parquet", lambda value, path: (path.write_text("half"), time.sleep(60)), None)
    cache.cached("test", {}, lambda: 1, "table")


def count_and_compute(folder, counter):
    os.environ["PG_CACHE"] = str(folder)

    def compute():
        with counter.get_lock():
            counter.value += 1
        time.sleep(0.2)
        return TABLE

    assert_equal("table", cache.cached("test", {}, compute, "table"))
    cache.made_once(folder / "model", {}, lambda path: (path / "weights").write_text(str(compute())))


def test_a_killed_writer_leaves_nothing_that_counts_and_three_writers_compute_once(own_cache):
    process = FORK.Process(target=write_and_hang, args=(own_cache,))
    process.start()
    while not list(own_cache.rglob(".*.tmp")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    counter = FORK.Value("i", 0)
    processes = [FORK.Process(target=count_and_compute, args=(own_cache, counter)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert counter.value == 2  # the artifact and the folder, each once
    assert not list(own_cache.rglob(".*.tmp"))


def test_a_folder_is_made_once_and_again_when_a_file_of_it_is_damaged(own_cache):
    save = lambda folder: (folder / "weights").write_bytes(b"weights")
    folder = cache.made_once(own_cache / "model", {"name": "a"}, save)
    assert json.loads((folder / "manifest.json").read_text())["name"] == "a"
    cache.made_once(folder, {}, lambda folder: pytest.fail("made twice"))
    for damage in (cut_short, Path.unlink, lambda path: (path.parent / "more").write_text("")):
        damage(folder / "weights")
        with pytest.warns(UserWarning, match="made again"):
            assert cache.is_valid(cache.made_once(folder, {}, save))
    with pytest.raises(ZeroDivisionError):
        cache.made_once(own_cache / "other", {}, lambda folder: 1 / 0)
    assert [path.name for path in own_cache.iterdir() if "other" in path.name] == [".other.lock"]


def test_a_file_that_is_missing_or_damaged_is_named(tmp_path):
    path = tmp_path / "a.json"
    for read in (cache.read_json, lambda path: cache.check_files(tmp_path, {path.name: "0"})):
        path.unlink(missing_ok=True)
        with pytest.raises(MissingFile, match=r"a\.json"):
            read(path)
        path.write_text("[]")
        with pytest.raises(HashMismatch, match=r"a\.json"):
            read(path)
    cache.write_json(path, {"b": (1, 2)})
    cache.check_files(tmp_path, {path.name: cache.file_sha256(path)})
    assert cache.read_json(path) == {"b": [1, 2]}
