"""A reader's run: packed whole and without what is private, refused with every reason, shown under its own name."""

import io
import json
import shutil
import zipfile

import pandas as pd
import pytest

from conftest import ROOT
from peaks_and_gates import contribute, site, store
from peaks_and_gates.cli import main
from peaks_and_gates.errors import BadParameter, MissingFile

RECORD = ROOT / "results" / "laptop"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return contribute.pack(RECORD, "at-home", tmp_path_factory.mktemp("packed"))


def files_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def changed(packed, tmp_path, **files):
    """A copy of a packed run with some files put in or, given None, left out."""
    target = tmp_path / "changed.zip"
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in (files_of(packed) | files).items():
            if data is not None:
                archive.writestr(name, data)
    return target


def about(packed, **values):
    return json.dumps(json.loads(files_of(packed)["about.json"]) | values).encode()


def table(change):
    """accuracy.parquet and its description, after a change."""
    frame = pd.read_parquet(RECORD / "accuracy.parquet")
    frame = change(frame)
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    described = json.loads((RECORD / "accuracy.json").read_text())
    from hashlib import sha256

    described["sha256"] = sha256(buffer.getvalue()).hexdigest()
    return {"accuracy.parquet": buffer.getvalue(), "accuracy.json": json.dumps(store.sealed(described)).encode()}


def test_the_books_own_record_can_be_packed_and_taken_in(packed, tmp_path, monkeypatch):
    assert contribute.problems(packed) == []
    assert packed.stat().st_size < 16 * 2**20
    files = files_of(packed)
    assert {"about.json", "accuracy.parquet", "accuracy.json", "geometry.parquet"} <= files.keys()
    assert all(name.endswith((".json", ".parquet")) for name in files)
    monkeypatch.setattr(store, "project_folder", lambda: tmp_path)
    (tmp_path / "book").mkdir()
    shutil.copy2(ROOT / "book" / "claims.yml", tmp_path / "book")
    folder = contribute.keep(packed)
    assert folder == tmp_path / "results" / "contributed" / "at-home"
    (run,) = contribute.contributed()
    own = {card["id"]: card["verdict"] for card in json.loads((RECORD / "scorecard.json").read_text())}
    assert {verdict.claim["id"]: verdict.verdict for verdict in run.verdicts} == own
    page = site.contributed_html([run])
    assert "at-home, laptop: " in page and page.count("pg-verdict") == len(own)
    with pytest.raises(BadParameter, match="already"):
        contribute.keep(packed)


def test_no_place_of_the_senders_machine_is_told(tmp_path):
    folder = shutil.copytree(RECORD, tmp_path / "run", ignore=shutil.ignore_patterns("map*"))
    for path in (folder / "notebooks" / "accuracy.json", folder / "accuracy.json"):
        text = path.read_text().replace('"smollm2-135m-instruct"', '"/home/someone/hidden-place/my-model"')
        store.write_json(path, json.loads(text))
    files = files_of(contribute.pack(folder, "mine", tmp_path))
    assert not any(b"hidden-place" in data for data in files.values())
    assert not any(name.startswith(("stream_said", "known_")) for name in files)  # texts, and no results of a run
    assert "my-model" in json.loads(files["about.json"])["models"]


REFUSED = {
    "no about": (lambda packed: {"about.json": None}, "no about.json"),
    "about is no JSON": (lambda packed: {"about.json": b"{"}, "no JSON"),
    "a name with a path": (lambda packed: {"about.json": about(packed, name="../../x")}, "name"),
    "a page without a key": (lambda packed: {"about.json": about(packed, pages={"accuracy": {}})}, "run_key"),
    "something more": (lambda packed: {"about.json": about(packed, script="x")}, "script"),
    "a changed about": (lambda packed: {"about.json": about(packed, size="another")}, "changed after it was packed"),
    "a file of code": (lambda packed: {"run.py": b"1"}, "run.py"),
    "a file outside": (lambda packed: {"../accuracy.json": b"{}"}, "only tables"),
    "hidden states": (lambda packed: {"states.safetensors": b"1"}, "only tables"),
    "a table without a description": (lambda packed: {"accuracy.json": None}, "accuracy: a table without"),
    "a changed table": (lambda packed: {"accuracy.parquet": b"PAR1"}, "accuracy: not the table"),
    "letters for numbers": (
        lambda packed: table(lambda frame: frame.assign(value="high")),
        "accuracy: the column value holds no numbers",
    ),
    "an interval beside its value": (
        lambda packed: table(lambda frame: frame.assign(low=2.0)),
        "accuracy: 160 intervals that do not hold",
    ),
    "an infinite value": (
        lambda packed: table(lambda frame: frame.assign(value=float("inf"), high=float("inf"))),
        "infinite",
    ),
    "too much": (lambda packed: {"big.json": b" " * (contribute.MOST_BYTES + 1)}, "MiB"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_wrong_is_refused_with_its_reason(packed, tmp_path, fault):
    change, reason = REFUSED[fault]
    path = changed(packed, tmp_path, **change(packed))
    found = contribute.problems(path)
    assert any(reason in each for each in found), found
    with pytest.raises(BadParameter, match="is not taken in"):
        contribute.keep(path)


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"no archive")
    assert "cannot be read" in contribute.problems(tmp_path / "x.zip")[0]
    assert "cannot be read" in contribute.problems(tmp_path / "nothing.zip")[0]


def test_bad_input(tmp_path):
    with pytest.raises(BadParameter, match="no name"):
        contribute.pack(RECORD, "My Run")
    with pytest.raises(MissingFile, match="no record"):
        contribute.pack(tmp_path, "mine")


def test_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, code in (
        (["export-results", str(RECORD), "--name", "mine"], 0),
        (["check-results", "mine.zip"], 0),
        (["check-results", "nothing.zip"], 1),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == code
    assert "can be taken in" in capsys.readouterr().out
