"""A page computed anew beside its record: the same, a number off, a word off, a row missing."""

import json
from dataclasses import replace
from shutil import copytree

import pandas as pd
import pytest

from conftest import copy_checkout
from peaks_and_gates import store, verify
from peaks_and_gates.book import runner as book
from peaks_and_gates.cli import main
from peaks_and_gates.errors import HashMismatch, MissingFile

PAGE, TABLE = "known_agreement", "known_agreements"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A checkout in which a page of a few seconds was run."""
    folder = copy_checkout(tmp_path_factory.mktemp("verify"))
    patch = pytest.MonkeyPatch()
    patch.setattr(store, "project_folder", lambda: folder)
    (job,) = book.plan("laptop", [PAGE])
    book.perform(job)
    yield job
    patch.undo()


@pytest.fixture
def job(recorded, tmp_path):
    """The page, with a record of its own that a test may change."""
    return replace(recorded, record=copytree(recorded.record, tmp_path / "record"))


@pytest.mark.parametrize(
    ("change", "deviation", "said"),
    [
        (lambda table: table, 0, ""),
        (lambda table: table.assign(value=table["value"] + 0.02), 0.02, ""),
        (lambda table: table.assign(value=float("nan")), float("inf"), ""),
        (lambda table: table.assign(index="other"), 0, "other words in index"),
        (lambda table: table.iloc[1:], 0, "other rows or columns"),
        (lambda table: table.drop(columns="value"), 0, "other rows or columns"),
    ],
    ids=["same", "number", "nan", "word", "row", "column"],
)
def test_what_differs_is_found(recorded, change, deviation, said):
    table = pd.read_parquet(recorded.record / f"{TABLE}.parquet")
    n, far, other = verify.compared(table, change(table))
    assert far == pytest.approx(deviation) and other.startswith(said) and bool(other) == bool(said)
    assert n == table.select_dtypes("number").size or said.startswith("other rows")


def test_a_record_that_says_something_else_does_not_hold(job):
    path = job.record / f"{TABLE}.parquet"
    table = pd.read_parquet(path)
    table.assign(value=table["value"] + 0.02).to_parquet(path, index=False)
    about = json.loads(path.with_suffix(".json").read_text())
    store.write_json(path.with_suffix(".json"), about | {"sha256": store.file_sha256(path)})
    found = {one.table: one for one in verify.pages([job])}
    assert found.keys() == set(job.manifest["tables"]) > {TABLE}
    assert [name for name, one in found.items() if not one.holds] == [TABLE]
    said = f"DIFFERENT    known_agreement: known_agreements, {table.select_dtypes('number').size} numbers"
    assert said in verify.report(list(found.values()))


def test_a_damaged_record_and_an_empty_one_are_refused(job, tmp_path):
    path = job.record / f"{TABLE}.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(HashMismatch, match=TABLE):
        list(verify.pages([job]))
    with pytest.raises(MissingFile, match="pg run"):
        list(verify.pages([replace(job, record=tmp_path / "none")]))


def test_the_command_says_whether_the_record_holds(recorded, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["verify", PAGE])
    assert ended.value.code == 0 and "2 of 2 tables as recorded" in capsys.readouterr().out
