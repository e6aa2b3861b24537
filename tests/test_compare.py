"""Two records: what moved, what left its interval, what is missing, which verdict changed."""

import json
import shutil

import pandas as pd
import pytest

from conftest import ROOT
from peaks_and_gates import compare, store
from peaks_and_gates.cli import main
from peaks_and_gates.errors import MissingFile

RECORD = ROOT / "results" / "laptop"


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(RECORD, tmp_path / "laptop", ignore=shutil.ignore_patterns("notebooks", "map*", "mini*"))


@pytest.fixture
def same(tmp_path):
    return shutil.copytree(RECORD, tmp_path / "same", ignore=shutil.ignore_patterns("notebooks", "map*", "mini*"))


def change(path, row, column, by):
    table = pd.read_parquet(path)
    table.loc[row, column] += by
    written(path, table)
    return table.loc[row]


def written(path, table):
    """Put another table into a record, with its description."""
    table.to_parquet(path)
    about = path.with_suffix(".json")
    store.write_json(about, store.read_json(about) | {"sha256": store.file_sha256(path)})


def test_a_record_is_like_itself(copy, same):
    found = compare.records(same, copy)
    assert found.alike and found.n > 10_000 and found.moved.empty
    assert compare.report(found).endswith("The same verdicts.")


def test_a_number_within_its_interval_moved_and_one_outside_is_told(copy, same):
    path = copy / "accuracy.parquet"
    row = change(path, 0, "value", 0.01)
    assert row["low"] < row["value"] < row["high"]
    found = compare.records(same, copy)
    assert found.alike and len(found.moved) == 1
    change(path, 1, "value", 0.5)
    found = compare.records(same, copy)
    assert not found.alike and len(found.moved) == 2 and len(found.outside) == 1
    assert "accuracy: " in compare.report(found) and " -> " in compare.report(found)


def test_what_is_missing_is_told(copy, same):
    (copy / "accuracy.parquet").unlink()
    written(copy / "dynamics.parquet", pd.read_parquet(copy / "dynamics.parquet").iloc[3:])
    found = compare.records(same, copy)
    assert found.missing == [f"accuracy: only in {same}", "dynamics: 3 rows only in one"]
    assert not found.alike


def test_a_changed_verdict_ends_the_command_with_an_error(copy, same, capsys):
    path = copy / "scorecard.json"
    cards = json.loads(path.read_text())
    cards[0]["verdict"] = "holds" if cards[0]["verdict"] != "holds" else "fails"
    path.write_text(json.dumps(cards))
    for folder, code in ((same, 0), (copy, 1)):
        with pytest.raises(SystemExit) as ended:
            main(["compare", str(same), str(folder)])
        assert ended.value.code == code
    assert f"{cards[0]['id']}: " in capsys.readouterr().out


def test_a_folder_that_is_no_record(tmp_path):
    with pytest.raises(MissingFile, match="no record"):
        compare.records(RECORD, tmp_path)
