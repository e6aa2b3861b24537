"""Scenes from data/, and rows of a data set that shows its row numbers: the chosen ones, with what is said of them."""

import io
import random
from collections import Counter
from dataclasses import replace

import datasets
import numpy as np
import pytest
from PIL import Image

from peaks_and_gates.errors import BadImage, BadParameter, BadQuestions, MissingFile, TooFewPoints, UnknownName
from peaks_and_gates.gate import pictures
from peaks_and_gates.gate.pictures import PAIRS, SOURCES, Picture, load, pairs
from training.scenes import scene, words
from training.scenes.drawing import draw

PAIRED = [name for pair in PAIRS for name in pair]
# As in ImageNet: several names, capitals; and the paired ones are neither first nor in order.
NAMES = [f"{name.capitalize()}, Latinus {i}" for i, name in enumerate(reversed(PAIRED))]
NAMES[3:3] = ["tench, Tinca tinca", "goldfish"]
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
    """The number that a picture shows."""
    red, green, blue = picture.image.getpixel((0, 0))
    assert blue == 7 and picture.image.size == (6, 4)
    return red + 256 * green


def label_of(number):
    return (7 * number + number // 30) % len(NAMES)  # every class about ten times, in no order


def row(number):
    """What every made data set says of a number."""
    return {
        "image": {"bytes": encoded(number), "path": None}, "label": label_of(number), "img_id": str(number),
        "caption": [f"caption {number} {i}" for i in range(5)], "question": f"question {number}?",
        "answers": [{"answer": f"answer {number}", "answer_id": i} for i in range(3)], "question_id": number,
    }  # fmt: skip


def write(folder, split, files=FILES, features=FEATURES, change=lambda made: made):
    """A data set laid out as on the hub, one Parquet file for each entry of `files`."""
    start = 0
    for file, count in enumerate(files):
        rows = [change(row(number)) for number in range(start, start + count)]
        path = folder / "data" / f"{split}-{file:05}-of-{len(files):05}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows, features=features).to_parquet(path, batch_size=25)  # several row groups
        start += count
    return str(folder)


@pytest.fixture(autouse=True)
def _small(own_cache, tmp_path, monkeypatch):
    """The data sets have as many rows as are made here."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    for name, source in SOURCES.items():
        monkeypatch.setitem(SOURCES, name, replace(source, n_rows=sum(FILES)))


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """{source: a local copy with the source's split}"""
    root = tmp_path_factory.mktemp("copies")
    return {name: write(root / name, SOURCES[name].split) for name in ("imagenet", "flickr30k", "vqav2")}


def check_what_is_said(shown):
    """Everything that is said of each picture is of the picture that it shows."""
    for picture in shown:
        number = number_of(picture)
        assert picture.label in (None, pictures.plain_name(NAMES[label_of(number)]))
        assert picture.captions in ((), tuple(f"caption {number} {i}" for i in range(5)))
        assert picture.question in (None, f"question {number}?")
        assert picture.answers in ((), (f"answer {number}",) * 3)
        assert picture.label or picture.key.split("-")[1] == str(number)


@pytest.mark.parametrize(("task", "source"), [("captions", "flickr30k"), ("questions", "vqav2")])
def test_the_rows_drawn_by_the_seed_and_no_others(task, source, copies):
    shown = load(task, source, 40, seed=42, folder=copies[source])
    assert [number_of(picture) for picture in shown] == sorted(random.Random(42).sample(range(sum(FILES)), 40))
    check_what_is_said(shown)
    assert {bool(picture.captions) for picture in shown} == {task == "captions"}
    assert {bool(picture.question) for picture in shown} == {task == "questions"}
    assert len({picture.key for picture in shown}) == 40
    with pytest.raises(BadParameter, match=f"n=301: {source} has 300 rows"):
        load(task, source, 301, folder=copies[source])


@pytest.mark.parametrize("seed", [0, 1])
def test_classes_are_the_first_in_files_in_seeded_order(seed, copies):
    shown = load("classes", "imagenet", 3, seed=seed, n_classes=24, folder=copies["imagenet"])
    counts = Counter(picture.label for picture in shown)
    assert set(counts.values()) == {3} and len(counts) == 24 and set(PAIRED) <= set(counts)
    check_what_is_said(shown)
    starts, seen, expected = np.cumsum([0, *FILES]), Counter(), []
    for file in random.Random(seed).sample(range(len(FILES)), len(FILES)):
        for number in range(starts[file], starts[file + 1]):
            name = pictures.plain_name(NAMES[label_of(number)])
            if name in counts and seen[name] < 3:
                seen[name] += 1
                expected.append(number)
    assert [number_of(picture) for picture in shown] == expected


def test_only_animals_and_as_many_as_there_are(copies, monkeypatch):
    monkeypatch.setattr(pictures, "N_ANIMALS", 23)
    with pytest.raises(BadParameter, match="n_classes=24: imagenet has 23 classes of animals"):
        load("classes", "imagenet", 1, n_classes=24, folder=copies["imagenet"])
    shown = load("classes", "imagenet", 1, n_classes=23, folder=copies["imagenet"])
    assert {picture.label for picture in shown} == {*PAIRED, "tench", "goldfish", "beast 0"}
    with pytest.raises(TooFewPoints, match=r"too few images of 20 classes \(.*: \d+ short"):
        load("classes", "imagenet", 30, n_classes=20, folder=copies["imagenet"])


def test_the_papers_pairs(copies):
    found = pairs("imagenet", 4, seed=3, folder=copies["imagenet"])
    assert [pair.names for pair in found] == PAIRS and sorted(PAIRED) == PAIRED
    for pair in found:
        for name, shown in zip(pair.names, pair.pictures, strict=True):
            assert len(shown) == 4 and {picture.label for picture in shown} == {name}
            check_what_is_said(shown)


def test_a_second_run_needs_no_network_and_a_changed_copy_is_read_again(tmp_path, monkeypatch):
    folder = write(tmp_path / "copy", "validation")
    shown = load("questions", "vqav2", 5, folder=folder)
    real = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda **place: pytest.fail("asked again"))
    assert load("questions", "vqav2", 5, folder=folder) == shown
    monkeypatch.setattr(datasets, "load_dataset", real)
    write(tmp_path / "copy", "validation", change=lambda made: made | {"question": "new?"})
    assert {picture.question for picture in load("questions", "vqav2", 5, folder=folder)} == {"new?"}


def test_from_the_hub_at_the_pinned_commit(copies, monkeypatch):
    real, places = datasets.load_dataset, []
    hub = lambda path, name, revision=None, **options: (
        places.append((path, revision)) or real(copies["vqav2"], name, **options)
    )
    monkeypatch.setattr(datasets, "load_dataset", hub)
    shown = load("questions", "paper", 3, seed=4)
    assert shown == load("questions", "vqav2", 3, seed=4, folder=copies["vqav2"])
    assert places[0] == (SOURCES["vqav2"].repository, SOURCES["vqav2"].revision)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("Dataset 'x' is a gated dataset on the Hub."), "is gated and .*Accept"),
        (ConnectionError("Couldn't reach 'x' on the Hub"), "Couldn't reach.*Connect to the network.*folder=FOLDER"),
    ],
)
def test_no_hub(error, message, monkeypatch):
    def refuse(**place):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(MissingFile, match=message):
        load("classes", "imagenet", 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: load("naming", "scenes", 1), UnknownName, "no task 'naming'.*Known: captions, classes, questions"),
        (lambda: load("captions", "vqav2", 1), UnknownName, "no source of captions 'vqav2'.*coco, flickr30k, paper"),
        (lambda: load("captions", "scenes", 0), BadParameter, "n=0"),
        (lambda: pairs("scenes", 1, seed=-1), BadParameter, "seed=-1"),
        (lambda: load("classes", "scenes", 1, n_classes=25), BadParameter, "n_classes=25: the scenes have 2 to 24"),
        (lambda: load("captions", "scenes", 2401), TooFewPoints, "2401 scenes are needed"),
        (lambda: load("captions", "scenes", 1, seed=7), BadParameter, "seeds 0, 1 and 2"),
        (lambda: load("captions", "coco", 1, folder="nowhere"), MissingFile, "nowhere could not be read.*data/test-"),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": {"bytes": b"no image", "path": None}}, BadImage, "vqav2, row 7: the image cannot be read"),
        ({"question": ""}, BadQuestions, "vqav2, row 7: the column 'question' is empty"),
    ],
)
def test_a_broken_row_is_named(change, error, message, tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "vqav2", replace(SOURCES["vqav2"], n_rows=10))
    broken = lambda made: made | change if made["question_id"] == 7 else made
    folder = write(tmp_path, "validation", (5, 5), change=broken)
    with pytest.raises(error, match=message):
        load("questions", "vqav2", 10, folder=folder)


def test_a_single_caption_is_not_taken_apart(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "flickr30k", replace(SOURCES["flickr30k"], n_rows=5))
    features = datasets.Features(FEATURES | {"caption": datasets.Value("string")})
    folder = write(tmp_path, "test", (5,), features, change=lambda made: made | {"caption": made["caption"][0]})
    assert load("captions", "flickr30k", 5, folder=folder)[2].captions == ("caption 2 0",)


def test_images_are_rgb_and_upright():
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        buffer = io.BytesIO()
        Image.new(mode, (5, 3)).save(buffer, "TIFF")
        assert Picture(buffer.getvalue(), "x").image.mode == "RGB"
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (5, 3)).save(turned, "JPEG", exif=exif)
    assert Picture(turned.getvalue(), "x").image.size == (3, 5)


def same(picture, described):
    return picture.image.tobytes() == draw(described).tobytes()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("task", ["captions", "questions"])
def test_scenes_with_what_is_true_of_them(task, seed):
    shown, described = load(task, "scenes", 30, seed=seed), scene.sample("test", 30, seed)
    asked = words.ask(described, seed)
    for picture, one, question in zip(shown, described, asked, strict=True):
        assert same(picture, one) and picture.label == scene.label(one)
        assert picture.captions == tuple(words.captions(one))
        expected = (question.text, (question.answer,), question.kind) if task == "questions" else (None, (), None)
        assert (picture.question, picture.answers, picture.kind) == expected
    assert not any(same(picture, one) for picture, one in zip(shown[1:], described, strict=False))
    assert len({picture.key for picture in shown}) == 30


def test_scenes_of_classes_and_pairs():
    shown = load("classes", "scenes", 3, seed=1, n_classes=16)
    counts = Counter(picture.label for picture in shown)
    assert len(counts) == 16 and set(counts.values()) == {3} and len(load("classes", "scenes", 1)) == 24
    described = {draw(one).tobytes(): scene.label(one) for one in scene.sample("test", 72, 1)}
    assert all(described[picture.image.tobytes()] == picture.label for picture in shown)
    labels = scene.labels("test")
    assert set(counts) == {labels[i] for i in np.random.default_rng(1).permutation(24)[:16]}
    found = pairs("scenes", 3)
    names = [name for pair in found for name in pair.names]
    assert len(found) == 10 and len(set(names)) == 20 and [pair.names for pair in pairs("scenes", 1, seed=1)] != names
    for pair in found:
        assert not set(pair.names[0].split()) & set(pair.names[1].split())
        assert [[picture.label for picture in shown] for shown in pair.pictures] == [[name] * 3 for name in pair.names]
