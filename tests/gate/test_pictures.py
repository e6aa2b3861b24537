"""Scenes from data/, and rows of a data set that shows its row numbers: the chosen ones, with what is said of them."""

import io
import random
from collections import Counter
from unittest.mock import Mock

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import ROOT
from peaks_and_gates.errors import BadImage, BadParameter, BadQuestions, MissingFile, TooFewPoints, UnknownName
from peaks_and_gates.gate.pictures import KNOWN, PAIRS, SOURCES, Picture, load, pairs
from training.scenes import scene

PAIRED = [name for pair in PAIRS for name in pair]
# Some of the paper's hundred classes by their numbers in ImageNet, as published with it; 60 are breeds, 151 to 268.
HUNDRED = {0: 179, 36: 92, 38: 158, 60: 381, 71: 125, 73: 0, 94: 354, 99: 227}
# As in ImageNet: several names, capitals; and the paired ones are neither first nor in order.
NAMES = [f"{name.capitalize()}, Latinus {i}" for i, name in enumerate(reversed(PAIRED))]
NAMES[3:3] = ["tench, Tinca tinca", "crane, the bird", "crane, another", "goldfish"]
NAMES += [f"beast {i}" for i in range(8)]
FILES = (70, 110, 40, 80)  # rows of each file
FEATURES = datasets.Features(
    image=datasets.Image(), label=datasets.ClassLabel(names=NAMES), caption=datasets.List(datasets.Value("string")),
    img_id=datasets.Value("string"), question=datasets.Value("string"), question_id=datasets.Value("int64"),
    answers=datasets.List({"answer": datasets.Value("string"), "answer_id": datasets.Value("int64")}),
)  # fmt: skip


def encoded(number):
    """An image that shows its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def number_of(picture):
    red, green, blue = picture.image.getpixel((0, 0))
    assert blue == 7 and picture.image.size == (6, 4)
    return red + 256 * green


def label_of(number):
    return (7 * number + number // 30) % len(NAMES)  # every class about ten times, in no order


def name_of(number):
    return NAMES[label_of(number)].partition(",")[0].lower()


def row(number):
    """What every made data set says of a number."""
    return {
        "image": {"bytes": encoded(number), "path": None}, "label": label_of(number), "img_id": str(number),
        "caption": [f"caption {number} {i}" for i in range(5)], "question": f"question {number}?",
        "answers": [{"answer": f"answer {number}", "answer_id": i} for i in range(3)], "question_id": number,
    }  # fmt: skip


@pytest.fixture
def hub(own_cache, tmp_path, monkeypatch):
    """Call with the name of a data set to put one made here in its place; gives what the hub is asked for."""
    real, places = datasets.load_dataset, []
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")

    def make(name, files=FILES, change=lambda made: made, features=FEATURES):
        numbers = np.split(np.arange(sum(files)), np.cumsum(files)[:-1])
        monkeypatch.setitem(SOURCES, name, SOURCES[name] | {"n_rows": sum(files)})
        (tmp_path / "data").mkdir()
        for file, rows in enumerate(numbers):
            path = tmp_path / "data" / f"{SOURCES[name]['split']}-{file:05}-of-{len(files):05}.parquet"
            made = datasets.Dataset.from_list([change(row(int(number))) for number in rows], features=features)
            made.to_parquet(path, batch_size=25)  # several row groups
        local = str(tmp_path)
        ask = lambda path, name, revision, **more: places.append((path, revision)) or real(local, name, **more)
        monkeypatch.setattr(datasets, "load_dataset", ask)
        return places

    return make


def check_what_is_said(shown):
    """Everything that is said of each picture is of the picture that it shows."""
    for picture in shown:
        number = number_of(picture)
        assert picture.label in (None, name_of(number))
        assert picture.captions in ((), tuple(f"caption {number} {i}" for i in range(5)))
        assert picture.question in (None, f"question {number}?")
        assert picture.answers in ((), (f"answer {number}",) * 3)
        assert picture.label or picture.key.split("-")[1] == str(number)


@pytest.mark.parametrize(("task", "source"), [("captions", "flickr30k"), ("questions", "vqav2")])
def test_the_rows_that_the_paper_chooses_and_no_others(task, source, hub):
    places = hub(source)
    shown = load(task, "paper", 40)
    expected = range(40) if task == "captions" else sorted(random.Random(42).sample(range(sum(FILES)), 40))
    assert [number_of(picture) for picture in shown] == [*expected]
    check_what_is_said(shown)
    assert {bool(picture.captions) for picture in shown} == {task == "captions"}
    assert {bool(picture.question) for picture in shown} == {task == "questions"}
    assert len({picture.key for picture in shown}) == 40
    assert load(task, source, 40, seed=7) == shown  # at every seed
    assert places == [(SOURCES[source]["repository"], SOURCES[source]["revision"])]  # once, at its commit
    with pytest.raises((MissingFile, TooFewPoints), match=r"Sample larger than population|has 300 of the 301 rows"):
        load(task, source, 301)


def test_questions_in_another_order_than_the_papers_are_told(hub, capsys, monkeypatch):
    monkeypatch.setitem(SOURCES, "vqav2", SOURCES["vqav2"] | {"first_ids": [0, 1, 2]})
    hub("vqav2", (9, 9))
    assert len(load("questions", "vqav2", 4)) == 4 and "another order" not in capsys.readouterr().out
    monkeypatch.setitem(SOURCES, "vqav2", SOURCES["vqav2"] | {"first_ids": [0, 2, 1]})
    assert len(load("questions", "vqav2", 4)) == 4
    assert capsys.readouterr().out.count("vqav2: its rows are in another order than the paper's") == 1


def test_classes_are_the_papers_and_their_pictures_the_first(hub, monkeypatch):
    assert len(set(KNOWN["classes"])) == 100 and sum(151 <= number <= 268 for number in KNOWN["classes"]) == 60
    assert {i: KNOWN["classes"][i] for i in HUNDRED} == HUNDRED
    hub("imagenet")
    monkeypatch.setitem(KNOWN, "classes", [9, 3, 20, 11, 17])
    shown = load("classes", "paper", 3, seed=1, n_classes=3)
    expected = [i for c in (9, 3, 20) for i in [i for i in range(sum(FILES)) if label_of(i) == c][:3]]
    assert [number_of(picture) for picture in shown] == sorted(expected)
    check_what_is_said(shown)
    everything = load("classes", "imagenet", 1)
    assert {picture.label for picture in everything} == {NAMES[i].partition(",")[0].lower() for i in (9, 3, 20, 11, 17)}
    with pytest.raises(BadParameter, match="n_classes=6: the paper's list has 5 classes of imagenet"):
        load("classes", "imagenet", 1, n_classes=6)
    with pytest.raises(TooFewPoints, match="too few images of 5 classes"):
        load("classes", "imagenet", 30)


def test_pairs_are_the_split_that_the_paper_prints_with_its_words(hub):
    hub("imagenet")
    by_pair = pairs("paper", 10, 1)
    assert [pair.names for pair in by_pair] == [tuple(pair) for pair in PAIRS] and sorted(PAIRED) == PAIRED
    words = {word for pair in by_pair for word in pair.words}
    assert len(words) == 20 and words > {"crocodile", "camel", "owl", "snake", "whale", "fox", "monkey", "dog"}
    assert not words & {"american alligator", "great grey owl", "siberian husky", "trilobite"}
    for pair in by_pair:
        first, second = pair.pictures
        check_what_is_said([*first, *second])
        rows = [[i for i in range(sum(FILES)) if name_of(i) == name] for name in pair.names]
        n_both = min(10, *map(len, rows))  # of some classes there are fewer than ten
        assert [[number_of(p) for p in part] for part in pair.pictures] == [part[:n_both] for part in rows]
    with pytest.raises(UnknownName, match="no source of classes 'coco'"):
        pairs("coco", 1)


def test_no_hub(own_cache, monkeypatch):
    for error, advice in (("Dataset 'x' is a gated dataset", "is gated.*Accept"), ("Couldn't reach", "Connect to the")):
        monkeypatch.setattr(datasets, "load_dataset", Mock(side_effect=ConnectionError(error)))
        with pytest.raises(MissingFile, match=advice):
            load("classes", "imagenet", 1)


def test_messages():
    for arguments, error, message in [
        (("captions", "vqav2", 1), UnknownName, "no source of captions 'vqav2'.*coco, flickr30k, paper"),
        (("classes", "scenes", 1, 0, 25), BadParameter, "n_classes=25: the scenes have 24"),
        (("classes", "scenes", 1, 0, -3), BadParameter, "n_classes=-3 must be"),
        (("questions", "scenes", 0), BadParameter, "n=0 must be"),
        (("question", "scenes", 1), UnknownName, "Did you mean 'questions'"),
        (("captions", "scenes", 2401), TooFewPoints, "2401 scenes are needed"),
        (("captions", "scenes", 1, 7), BadParameter, "seeds 0, 1 and 2"),
    ]:
        with pytest.raises(error, match=message):
            load(*arguments)


@pytest.mark.parametrize("change", [{"image": {"bytes": b"no image", "path": None}}, {"question": ""}])
def test_a_broken_row_is_named(change, hub):
    hub("vqav2", (5, 5), lambda made: made | change if made["question_id"] == 7 else made)
    with pytest.raises((BadImage, BadQuestions), match=r"vqav2, row 7.* (cannot be read|is empty)"):
        load("questions", "vqav2", 10)


def test_a_single_caption_is_not_taken_apart(hub):
    features = datasets.Features(FEATURES | {"caption": datasets.Value("string")})
    hub("flickr30k", (5,), lambda made: made | {"caption": made["caption"][0]}, features)
    assert load("captions", "flickr30k", 5)[2].captions == ("caption 2 0",)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scenes_with_what_is_true_of_them(seed):
    scenes = pd.read_parquet(ROOT / "data/scenes.parquet").query(f"split == 'test' and seed == {seed}")
    rows = [*scenes.set_index("i").loc[range(30)].itertuples()]
    captions, questions = load("captions", "scenes", 30, seed), load("questions", "scenes", 30, seed)
    known = lambda row: (row.png, row.key, row.label, tuple(row.captions), row.question, (row.answer,), row.kind)
    assert captions == questions == [Picture(*known(row)) for row in rows] and len({p.key for p in captions}) == 30


def test_scenes_of_classes_and_pairs():
    shown, everything = load("classes", "scenes", 3, 1, 16), load("classes", "scenes", 3, 1)
    labels = [scene.labels("test")[i] for i in np.random.default_rng(1).permutation(24)[:16]]
    assert Counter(picture.label for picture in everything) == dict.fromkeys(scene.labels("test"), 3)
    assert shown == [picture for picture in everything if picture.label in labels]
    by_pair = pairs("scenes", 3)
    names = [name for pair in by_pair for name in pair.names]
    assert len(by_pair) == 10 and len(set(names)) == 20 and [pair.names for pair in pairs("scenes", 1, 1)] != names
    for pair in by_pair:
        assert not set(pair.names[0].split()) & set(pair.names[1].split())
        assert [[picture.label for picture in shown] for shown in pair.pictures] == [[name] * 3 for name in pair.names]
