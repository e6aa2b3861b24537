"""Every kind of stored file, damaged in every way: made again with one warning, or refused with one message."""

import hashlib
import json
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import torch

from conftest import size
from peaks_and_gates import (
    book,
    claims,
    contribute,
    fetch,
    finetune,
    gate_study,
    mini_cards,
    models,
    parts,
    record,
    store,
    study_training,
    training_state,
    vlms,
)
from peaks_and_gates.errors import BookError
from training.tiny_llama import save

ROOT = Path(__file__).parents[2]
CODE = ("store",)
TABLE = pd.DataFrame({"layer": range(40), "value": [i / 7 for i in range(40)]})


@dataclass
class Stored:
    """Something that is stored.  ask: reads it, or makes it; always the same value if all is well.

    files: what lies on the disk.  made_again: whether damage is mended, not refused.  silent: file names whose loss
    looks like nothing having been made yet.
    """

    ask: Callable[[], Any]
    files: Callable[[], list[Path]]
    made_again: bool
    silent: tuple[str, ...] = ()


def visible(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


def artifact_of(ask):
    return Stored(ask, lambda: visible(store.cache_folder()), True)


def a_table(tmp_path, monkeypatch):
    return artifact_of(lambda: store.table("kept", {"a": 1}, lambda: TABLE, CODE).to_json())


def a_document(tmp_path, monkeypatch):
    return artifact_of(lambda: store.document("kept", {"a": 1}, lambda: {"x": [1.5, 2.5]}, CODE))


def tensors(tmp_path, monkeypatch):
    made = {"a": torch.arange(64, dtype=torch.float32)}
    return artifact_of(lambda: store.tensors("kept", {}, lambda: made, CODE).get_tensor("a").tolist())


def a_made_model(tmp_path, monkeypatch):
    def ask():
        folder = store.made_once(store.cache_folder() / "models" / "tiny", {}, save)
        return {name: digest for name, digest in store.checksums(folder).items() if name != "model.safetensors.json"}

    return artifact_of(ask)


def a_download(tmp_path, monkeypatch):
    def download(requirement, sha256, folder):
        with zipfile.ZipFile(folder / "package.whl", "w") as archive:
            archive.writestr("words/pinned.txt", "one two three")
            archive.writestr("words/free.txt", "four five six")
        return folder / "package.whl"

    monkeypatch.setattr(fetch, "_download", download)
    known = hashlib.sha256(b"one two three").hexdigest()
    members = {"words/pinned.txt": known, "words/free.txt": None}
    ask = lambda: [path.read_text() for path in fetch.package_files("words==1", "0" * 64, members).values()]
    files = lambda: [p for p in visible(store.cache_folder()) if p.name != "pinned.txt.sha256"]
    return Stored(ask, files, True, silent=("pinned.txt", "free.txt"))


def a_training_state(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"

    def ask():
        weights = {"w": torch.nn.Parameter(torch.ones(32))}
        optimizers = [torch.optim.AdamW(weights.values(), lr=0.1)]
        log, done = training_state.restore(weights, optimizers, path)
        for step in range(done, 6):
            (weights["w"] * (step + 1)).square().sum().backward()
            training_state.step(optimizers, 0.1)
            log.loss.append(float(weights["w"].detach().sum()))
            if step == 3:
                training_state.keep(weights, optimizers, log, step + 1, path)
        return weights["w"].tolist(), log.loss

    return Stored(ask, lambda: [path], True, silent=(path.name,))


def a_model_of_the_study(tmp_path, monkeypatch):
    def ask():
        log = study_training.finished(tmp_path)
        if log is None:
            (tmp_path / "model").mkdir(exist_ok=True)
            (tmp_path / "model" / "model.safetensors").write_bytes(bytes(range(200)))
            (tmp_path / "model" / "config.json").write_text('{"layers": 4}')
            about = {"log": {"loss": [2.0, 1.0]}, "files": store.checksums(tmp_path / "model")}
            store.write_json(tmp_path / "log.json", about)
        return study_training.finished(tmp_path).loss, store.checksums(tmp_path / "model")

    return Stored(ask, lambda: visible(tmp_path), True, silent=("log.json",))


def a_page(tmp_path, monkeypatch):
    job = book.Job("page", "laptop", tmp_path, tmp_path / "page.ipynb", tmp_path / "record", {}, "key")
    monkeypatch.setattr(book, "finish", lambda *a: None)

    def perform(job):
        with book.environment({"PG_RECORD": str(job.record), "PG_PAGE": "page", "PG_REDRAW": ""}):
            record.table("numbers", {}, lambda: TABLE)
        about = {"run_key": "key", "tables": ["numbers"], "created": "today", "seconds": 1.0}
        store.write_json(job.manifest_path, about)
        job.marker.write_text("today")

    monkeypatch.setattr(book, "perform", perform)

    def ask():
        assert book.run([job]) == [] and job.state == "done"
        return job.manifest, record.read(job.record / "numbers.parquet").to_json()

    return Stored(ask, lambda: visible(job.record), True, silent=("page.json",))


def an_executed_page(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "page_key", lambda job: "key")
    job = book.Job("page", "laptop", tmp_path, tmp_path / "page.ipynb", tmp_path / "record", {}, "key")
    cell = nbformat.v4.new_code_cell("1 + 1", id="one", outputs=[nbformat.v4.new_output("stream", text="0.1234")])

    def ask():
        if not job.drawn:
            nbformat.write(nbformat.v4.new_notebook(cells=[cell]), job.output)
            book.stamp(job)
        assert job.drawn
        return nbformat.read(job.output, as_version=4).cells[0].outputs

    return Stored(ask, lambda: [job.output], True, silent=("page.ipynb",))


def a_recorded_table(tmp_path, monkeypatch):
    monkeypatch.setenv("PG_RECORD", str(tmp_path))
    record.table("numbers", {"seed": 0}, lambda: TABLE)
    monkeypatch.setenv("PG_REDRAW", "1")
    return Stored(lambda: record.table("numbers", {"seed": 0}, None).to_json(), lambda: visible(tmp_path), False)


def a_shipped_adapter(tmp_path, monkeypatch):
    for folder in (tmp_path, tmp_path / "checkpoints" / "step-1"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in models.ADAPTER:
            shutil.copy2(ROOT / "weights" / "smoke" / "fine-tuned-0" / name, folder)
    store.write_json(tmp_path / "card.json", {"files": store.checksums(tmp_path), "log": {"loss": [1.0]}})
    finetune.check_card.cache_clear()

    def ask():
        finetune.check_card.cache_clear()
        found = [models.adapter_hash(folder, True) for folder in (tmp_path, tmp_path / "checkpoints" / "step-1")]
        return found, finetune.check_card(tmp_path)

    return Stored(ask, lambda: visible(tmp_path), False)


def a_kept_adapter(tmp_path, monkeypatch):
    folder = tmp_path / "step-1"
    folder.mkdir()
    for name in models.ADAPTER:
        shutil.copy2(ROOT / "weights" / "smoke" / "fine-tuned-0" / name, folder)
    store.write_json(folder / ".files.json", {"files": store.checksums(folder)})
    return Stored(lambda: store.checksums(finetune.kept_adapter(folder)), lambda: visible(tmp_path), False)


def a_shipped_mini(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "weights" / "minis" / "words-0", tmp_path / "words-0")
    shutil.copy2(ROOT / "weights" / "minis" / "words-0.json", tmp_path)
    monkeypatch.setitem(vlms.VLMS, "copied", {"provider": "mini", "folder": str(tmp_path / "words-0")})

    def ask():
        vlms._described.cache_clear()
        return vlms.describe("copied"), mini_cards.card("copied")

    return Stored(ask, lambda: visible(tmp_path), False)


def a_shared_part(tmp_path, monkeypatch):
    for end in ("json", "safetensors"):
        shutil.copy2(ROOT / "weights" / "minis" / f"eyes.{end}", tmp_path)
    settings = store.read_json(tmp_path / "eyes.json")["made_from"]
    train = lambda: pytest.fail("the shipped eyes were trained again")
    ask = lambda: float(sum(t.sum() for t in parts.part(settings, tmp_path / "eyes.safetensors", train, CODE).values()))
    return Stored(ask, lambda: visible(tmp_path), False, silent=("eyes.json",))


def a_contributed_run(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "project_folder", lambda: tmp_path)
    monkeypatch.setattr(contribute, "root", lambda: tmp_path)
    monkeypatch.setattr(claims, "load", lambda: [])
    folder = tmp_path / "results" / "contributed" / "mine"
    monkeypatch.setenv("PG_RECORD", str(folder))
    record.table("numbers", {}, lambda: TABLE)
    store.write_json(folder / "about.json", {"name": "mine"})

    def ask():
        (run,) = contribute.contributed()
        return run.about, record.read(folder / "numbers.parquet").to_json()

    return Stored(ask, lambda: visible(folder), False, silent=("about.json",))


def a_card_of_the_study(tmp_path, monkeypatch):
    folder = tmp_path / "weights" / "study"
    folder.mkdir(parents=True)
    shutil.copy2(ROOT / "weights" / "study" / "adapted-0.json", folder)
    return Stored(lambda: gate_study.rows(folder).to_json(), lambda: visible(folder), False, silent=("adapted-0.json",))


KINDS = (
    a_table, a_document, tensors, a_made_model, a_download, a_training_state, a_model_of_the_study, a_page,
    an_executed_page, a_recorded_table, a_shipped_adapter, a_kept_adapter, a_shipped_mini, a_shared_part,
    a_contributed_run, a_card_of_the_study,
)  # fmt: skip


def damages(path, lost):
    """Ways to damage a file, as (name, what its bytes become); None: it is deleted."""
    data = path.read_bytes()
    draw = random.Random(path.name)
    places = [0, len(data) - 1, len(data) // 2, *(draw.randrange(len(data)) for _ in range(9))]
    places = places[: size(12, 3)][-size(12, 1) :]
    for place in places:
        yield f"flip at {place}", data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    yield "truncated", data[: draw.randrange(1, len(data) - 1)]
    yield "emptied", b""
    if lost:
        yield "deleted", None
    if path.suffix == ".json" and b'"seal"' in data:
        known = json.loads(data)
        for key in list(known)[: size(99, 2)]:  # each field alone: another value, or gone
            yield f"{key} changed", json.dumps(known | {key: "another"}).encode()
            yield f"{key} gone", json.dumps({k: v for k, v in known.items() if k != key}).encode()


def heard(ask):
    """What asking gives, and the warnings of this package's that it gave on the way."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        value = ask()
    return value, [str(w.message) for w in seen if issubclass(w.category, UserWarning)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_damage_is_mended_or_refused(kind, tmp_path, own_cache, monkeypatch, report):
    (tmp_path / "here").mkdir()
    stored = kind(tmp_path / "here", monkeypatch)
    expected, cases = stored.ask(), 0
    assert heard(stored.ask) == (expected, [])
    for path in stored.files():
        for name, data in damages(path, stored.made_again or path.name not in stored.silent):
            before, what = path.read_bytes(), f"{path.name}, {name}"
            path.unlink() if data is None else path.write_bytes(data)
            if stored.made_again:
                value, told = heard(stored.ask)
                quiet = data is None and path.name in stored.silent
                assert value == expected, what
                assert len(told) == (0 if quiet else 1), (what, told)
                assert heard(stored.ask) == (expected, []), what
            else:
                with pytest.raises(BookError) as caught:
                    stored.ask()
                assert path.stem in str(caught.value) and "\n" not in str(caught.value), what
                path.write_bytes(before)
            cases += 1
    if not stored.made_again:
        assert stored.ask() == expected
    outcome = "made again with one warning, the same value" if stored.made_again else "refused, naming the file"
    report("corruption", kind.__name__.replace("_", " "), cases, outcome)
