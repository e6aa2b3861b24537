"""The record: what is read back is what was written, for these inputs and no others."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from test_cache import cut_short

from peaks_and_gates import record, recorded
from peaks_and_gates.errors import BadParameter, HashMismatch, MissingFile

NUMBERS = pd.DataFrame({
    "condition": ["a", None, "c"],
    "layer": [0, 1, 2],
    "value": [0.5, float("nan"), float("inf")],
    "core": [True, False, True],
    "small": pd.Series([1.5, 2.5, None], dtype="float32"),
})  # fmt: skip
OTHERS = pd.DataFrame({"core": [0.25], "png": [b"\x00\xff"], "points": [[1, 2]], "layer": [1.5], "rank": [None]})
EMPTY = pd.DataFrame({"value": pd.Series(dtype=float), "name": pd.Series(dtype=object)})
TABLES = {"numbers": NUMBERS, "others": OTHERS, "empty": EMPTY}


@dataclass
class Study:
    seed: int
    shots: tuple


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The Parquet file of a page that recorded three tables which share columns of other types."""
    monkeypatch.setenv("PG_PAGE", "page")
    monkeypatch.setenv("PG_RECORD", str(tmp_path / "parts"))
    for name, frame in TABLES.items():
        computed = record.table(name, {"seed": 0, "shots": (0, 5)}, lambda frame=frame: frame)
        pd.testing.assert_frame_equal(computed, frame)  # a run shows what a reader of the record will see
    path = tmp_path / "results" / "page.parquet"
    record.publish(tmp_path / "parts", path, {"key": "k"})
    (path.parent / "scorecard.json").write_text("[]")
    monkeypatch.setenv("PG_RECORD", str(path.parent))
    monkeypatch.setenv("PG_REDRAW", "1")
    return path


def test_tables_of_one_page_come_back_as_they_were_written(page):
    tables = record.read(page)
    assert list(tables) == list(TABLES)
    for name, frame in TABLES.items():
        pd.testing.assert_frame_equal(tables[name], frame)
    assert list(record.read_all(page.parent)) == ["page.numbers", "page.others", "page.empty"]
    about = record.manifest(page)
    assert (about["page"], about["key"], about["tables"]["numbers"]["rows"]) == ("page", "k", 3)


def test_the_record_that_ships_is_drawn_behind_smaller_runs_of_the_same_alone(page, tmp_path, monkeypatch):
    monkeypatch.setattr(record.cache, "project_folder", lambda: tmp_path)
    assert record.shipped("page.numbers", "laptop").empty  # not there yet
    page.parent.rename(tmp_path / "full")
    (tmp_path / "results").mkdir()
    (tmp_path / "full").rename(tmp_path / "results" / "full")
    pd.testing.assert_frame_equal(record.shipped("page.numbers", "laptop"), NUMBERS)
    for preset in ("full", "smoke", "paper"):
        assert record.shipped("page.numbers", preset).empty and "group" in record.shipped("page.numbers", preset)


def test_a_page_is_redrawn_from_the_record_for_the_same_inputs_only(page):
    compute = lambda: pytest.fail("computed")
    pd.testing.assert_frame_equal(record.table("numbers", {"shots": [0, 5], "seed": 0}, compute), NUMBERS)
    for name, inputs in (("numbers", {"seed": 1, "shots": [0, 5]}), ("more", {})):
        with pytest.raises(MissingFile, match="pg run"):
            record.table(name, inputs, compute)


@pytest.mark.parametrize("suffix", [".parquet", ".json"])
@pytest.mark.parametrize("damage", [cut_short, Path.unlink])
def test_a_damaged_record_is_not_read(page, suffix, damage):
    damage(page.with_suffix(suffix))
    with pytest.raises((HashMismatch, MissingFile), match=r"page\.(parquet|json)"):
        record.read_all(page.parent)


def test_a_manifest_without_tables_is_not_read(page):
    about = json.loads(page.with_suffix(".json").read_text())
    page.with_suffix(".json").write_text(json.dumps({"sha256": about["sha256"]}))
    with pytest.raises(HashMismatch, match=r"page\.parquet"):
        record.read(page)


def test_a_recorded_function_is_called_once_with_plain_data(tmp_path, monkeypatch):
    @recorded
    def numbers(seed, more=()):
        return NUMBERS

    monkeypatch.delenv("PG_RECORD", raising=False)
    assert numbers(0) is numbers(object()) is NUMBERS  # in a notebook nothing is recorded
    monkeypatch.setenv("PG_RECORD", str(tmp_path))
    monkeypatch.setenv("PG_PAGE", "page")
    with pytest.raises(TypeError):
        numbers(object())
    numbers(Study(seed=0, shots=(0, 5)))
    about = json.loads((tmp_path / "numbers.json").read_text())
    assert about["inputs"] == {"seed": {"seed": 0, "shots": [0, 5]}, "more": []}
    with pytest.raises(BadParameter, match="twice"):
        numbers(1)
