import io
import itertools
import random
import re
from collections import Counter
from dataclasses import replace

import datasets
import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from peaks_and_gates import picture_rows, pictures, scene_words, scenes
from peaks_and_gates.errors import BadImage, BadParameter, BadQuestions, MissingFile, TooFewPoints, UnknownName
from peaks_and_gates.pictures import SETTINGS, SOURCES, TASKS, Picture, expected_reading, load, pairs, selection
from peaks_and_gates.scene_drawing import draw

PAIRED = [name for pair in SETTINGS["pairs"] for name in pair]
# As in ImageNet: several names, capitals; and the paired ones are neither first nor in order.
NAMES = [f"{name.capitalize()}, Latinus {i}" for i, name in enumerate(reversed(PAIRED))]
NAMES[3:3] = ["tench, Tinca tinca", "goldfish"]
NAMES += [f"beast {i}" for i in range(8)]
FILES = (70, 110, 40, 80)  # rows of each file


def encoded(number, kind="PNG"):
    """An image that shows its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (number % 256, number // 256, 7)).save(buffer, kind)
    return buffer.getvalue()


def number_of(picture):
    """The number that a picture shows."""
    red, green, blue = picture.image.getpixel((0, 0))
    assert blue == 7 and picture.image.size == (6, 4) and picture.image.mode == "RGB"
    return red + 256 * green


def label_of(number):
    return (7 * number + number // 30) % len(NAMES)  # every class about ten times, in no order


def row(number):
    """What every made data set says of a number."""
    return {
        "image": {"bytes": encoded(number), "path": None},
        "label": label_of(number),
        "caption": [f"caption {number} {i}" for i in range(5)],
        "img_id": str(number),
        "captions": [f"caption {number} {i}" for i in range(5)],
        "image_id": str(number),
        "question": f"question {number}?",
        "answers": [{"answer": f"answer {number}", "answer_id": i} for i in range(3)],
        "question_id": number,
    }


FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=NAMES),
        "caption": datasets.List(datasets.Value("string")),
        "img_id": datasets.Value("string"),
        "captions": datasets.List(datasets.Value("string")),
        "image_id": datasets.Value("string"),
        "question": datasets.Value("string"),
        "answers": datasets.List({"answer": datasets.Value("string"), "answer_id": datasets.Value("int64")}),
        "question_id": datasets.Value("int64"),
    }
)


def write(folder, split, rows=None, features=FEATURES, change=None, leave_out=()):
    """A data set laid out as on the hub, one Parquet file for each entry of `rows`."""
    start = 0
    for file, count in enumerate(rows or FILES):
        made = [(change or (lambda made: made))(row(number)) for number in range(start, start + count)]
        kept = datasets.Features({name: kind for name, kind in features.items() if name not in leave_out})
        data = datasets.Dataset.from_list([{name: one[name] for name in kept} for one in made], features=kept)
        path = folder / "data" / f"{split}-{file:05}-of-{len(rows or FILES):05}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        data.to_parquet(path, batch_size=25)  # several row groups a file
        start += count
    return str(folder)


@pytest.fixture(autouse=True)
def _quiet(own_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """{source: a local copy with the source's split}"""
    root = tmp_path_factory.mktemp("copies")
    return {name: write(root / name, settings["split"]) for name, settings in SOURCES.items()}


def aligned(shown):
    """Whether everything that is said of each picture is of the picture that it shows."""
    for picture in shown:
        number = number_of(picture)
        truth = {f"caption {number} {i}" for i in range(5)}
        if not (
            (picture.label is None or picture.label == pictures.plain_name(NAMES[label_of(number)]))
            and set(picture.captions) in (truth, set())
            and picture.question in (f"question {number}?", None)
            and set(picture.answers) in ({f"answer {number}"}, set())
            and (picture.label is not None or picture.key.split("-")[1] == str(number))
        ):
            return False
    return True


# Captions and questions: rows by number


@pytest.mark.parametrize(("task", "source"), [("captions", "flickr30k"), ("captions", "coco"), ("questions", "vqav2")])
def test_the_rows_drawn_by_the_seed_and_no_others(task, source, copies):
    shown = load(task, source, 40, seed=42, folder=copies[source])
    assert [number_of(p) for p in shown] == sorted(random.Random(42).sample(range(sum(FILES)), 40))
    assert aligned(shown)
    assert len({p.key for p in shown}) == 40
    assert [number_of(p) for p in load(task, source, 40, seed=43, folder=copies[source])] != list(map(number_of, shown))
    if task == "captions":
        assert all(len(p.captions) == 5 and p.question is None and not p.answers for p in shown)
    else:
        assert all(len(p.answers) == 3 and p.question and not p.captions for p in shown)


def test_every_row_and_the_first_rows(copies):
    everything = load("questions", "vqav2", sum(FILES), folder=copies["vqav2"])
    assert [number_of(p) for p in everything] == list(range(sum(FILES)))
    first = load("captions", "flickr30k", 90, seed=5, within=90, folder=copies["flickr30k"])
    assert [number_of(p) for p in first] == list(range(90))
    some = load("captions", "flickr30k", 9, seed=5, within=90, folder=copies["flickr30k"])
    assert [number_of(p) for p in some] == sorted(random.Random(5).sample(range(90), 9))


@pytest.mark.parametrize("n", [sum(FILES) + 1, 91])
def test_more_than_there_is(n, copies):
    within = 90 if n == 91 else None
    with pytest.raises(BadParameter, match=rf"n={n}: vqav2 has 300 rows, and {within or 300} may be chosen"):
        load("questions", "vqav2", n, within=within, folder=copies["vqav2"])
    with pytest.raises(BadParameter, match="0 may be chosen"):
        load("questions", "vqav2", 1, within=0, folder=copies["vqav2"])


def test_a_row_that_does_not_exist_is_not_left_out(copies):
    source = pictures.find("questions", "vqav2", copies["vqav2"])
    with pytest.raises(BadParameter, match="Row 300 of vqav2 was asked for, but it has 300 rows"):
        picture_rows.numbered(source, [5, 300])


def test_images_of_other_rows_would_be_seen(copies, monkeypatch):
    real, before = picture_rows._kept, []

    def late(source, where, example):
        before.append(example["image"])
        return real(source, where, example | {"image": before[-2] if len(before) > 1 else before[0]})

    monkeypatch.setattr(picture_rows, "_kept", late)
    assert not aligned(load("questions", "vqav2", 10, folder=copies["vqav2"]))
    assert not aligned(load("classes", "imagenet", 2, n_classes=4, folder=copies["imagenet"]))


def test_rows_off_by_one_would_be_seen(copies, monkeypatch):
    real = picture_rows.numbered
    monkeypatch.setattr(picture_rows, "numbered", lambda source, rows: real(source, [row + 1 for row in rows]))
    shown = load("questions", "vqav2", 10, seed=1, folder=copies["vqav2"])
    assert aligned(shown)
    assert [number_of(p) for p in shown] != sorted(random.Random(1).sample(range(sum(FILES)), 10))


# Classes


def first_of_class(seed, wanted, n):
    """Truth: the numbers of the first `n` of each class in the seeded order of files."""
    starts = np.cumsum([0, *FILES])
    order = random.Random(seed).sample(range(len(FILES)), len(FILES))
    walked = [number for file in order for number in range(starts[file], starts[file + 1])]
    seen, found = Counter(), []
    for number in walked:
        if (name := pictures.plain_name(NAMES[label_of(number)])) in wanted and seen[name] < n:
            seen[name] += 1
            found.append(number)
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_classes_are_filled_in_seeded_order(seed, copies):
    shown = load("classes", "imagenet", 3, seed=seed, n_classes=24, folder=copies["imagenet"])
    counts = Counter(p.label for p in shown)
    assert set(counts.values()) == {3} and len(counts) == 24
    assert set(PAIRED) <= set(counts)
    assert aligned(shown)
    assert [number_of(p) for p in shown] == first_of_class(seed, set(counts), 3)


def test_other_seeds_draw_other_classes_and_images(copies):
    one, other = (load("classes", "imagenet", 2, seed=s, n_classes=23, folder=copies["imagenet"]) for s in (0, 1))
    assert {p.label for p in one} != {p.label for p in other}
    assert {p.label for p in one} & {p.label for p in other} >= set(PAIRED)
    assert {number_of(p) for p in one} != {number_of(p) for p in other}


def test_only_animals(copies, monkeypatch):
    monkeypatch.setitem(SETTINGS, "animals", 23)
    with pytest.raises(BadParameter, match="n_classes=24: imagenet has 23 classes of animals"):
        load("classes", "imagenet", 1, n_classes=24, folder=copies["imagenet"])
    shown = load("classes", "imagenet", 1, n_classes=23, folder=copies["imagenet"])
    assert {p.label for p in shown} == {*PAIRED, "tench", "goldfish", "beast 0"}


def test_too_few_images_of_a_class(copies):
    with pytest.raises(TooFewPoints, match=r"too few images of 20 classes \(American alligator.*: \d+ short"):
        load("classes", "imagenet", 30, n_classes=20, folder=copies["imagenet"])


def test_reading_stops_when_every_class_is_full(copies, capsys):
    load("classes", "imagenet", 1, n_classes=2, folder=copies["imagenet"])
    assert capsys.readouterr().out.count("reading file") == 1


def test_the_papers_pairs(copies):
    found = pairs("imagenet", 4, seed=3, folder=copies["imagenet"])
    assert [pair.names for pair in found] == [tuple(pair) for pair in SETTINGS["pairs"]]
    assert found[2].names == ("bee eater", "cheetah") and found[5].names == ("hippopotamus", "jaguar")
    for pair in found:
        for name, shown in zip(pair.names, pair.pictures, strict=True):
            assert len(shown) == 4 and {p.label for p in shown} == {name}
            assert aligned(shown)
    numbers = [number_of(p) for pair in found for shown in pair.pictures for p in shown]
    assert len(set(numbers)) == 80


# What is stored


def forbid(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no network")

    for name in ("load_dataset", "load_dataset_builder"):
        monkeypatch.setattr(datasets, name, refuse)
    monkeypatch.setattr(huggingface_hub, "HfApi", refuse)


CHOICES = [("questions", "vqav2", 40, {}), ("classes", "imagenet", 3, {"n_classes": 22})]


@pytest.mark.parametrize(("task", "source", "n", "more"), CHOICES)
def test_a_second_run_needs_no_network(task, source, n, more, copies, monkeypatch):
    shown = load(task, source, n, folder=copies[source], **more)
    chosen = selection(task, source, n, folder=copies[source], **more)
    forbid(monkeypatch)
    assert load(task, source, n, folder=copies[source], **more) == shown
    assert selection(task, source, n, folder=copies[source], **more) == chosen
    with pytest.raises(MissingFile, match="could not be read"):
        load(task, source, n, seed=1, folder=copies[source], **more)


@pytest.mark.parametrize(("task", "source", "n", "more"), CHOICES)
def test_a_killed_run_goes_on_where_it_was(task, source, n, more, copies, monkeypatch, capsys):
    whole = load(task, source, n, seed=7, folder=copies[source], **more)
    read = re.findall(r"reading file (\d)", capsys.readouterr().out)
    assert len(read) > 1
    monkeypatch.setenv("PG_CACHE", str(picture_rows.Path(copies[source]).parent / f"{source}-second"))
    real, walked = picture_rows._walk, []

    def killed(*args):
        walked.append(args[1])
        if len(walked) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(picture_rows, "_walk", killed)
    with pytest.raises(KeyboardInterrupt):
        load(task, source, n, seed=7, folder=copies[source], **more)
    assert load(task, source, n, seed=7, folder=copies[source], **more) == whole
    assert [str(file + 1) for file in walked] == [read[0], read[1], read[1], *read[2:]]


def test_a_changed_copy_is_read_again(tmp_path):
    folder = write(tmp_path / "copy", "validation", (5,))
    before = load("questions", "vqav2", 5, folder=folder)
    write(tmp_path / "copy", "validation", (5,), change=lambda made: made | {"question": "new?"})
    assert [p.question for p in load("questions", "vqav2", 5, folder=folder)] == ["new?"] * 5 != before


def from_the_hub(monkeypatch, folder):
    """Let the hub's data set be a local folder; returns what was asked for."""
    asked = []

    def redirect(real):
        def read(path, name, revision, **options):
            asked.append((path, name, revision, options))
            return real(folder, name, **options)

        return read

    for name in ("load_dataset", "load_dataset_builder"):
        monkeypatch.setattr(datasets, name, redirect(getattr(datasets, name)))
    return asked


@pytest.mark.parametrize("task", TASKS)
def test_from_the_hub_at_the_pinned_commit(task, copies, monkeypatch):
    name = SETTINGS["paper"][task]
    settings = SOURCES[name]
    local = load(task, name, 3, seed=4, n_classes=20, folder=copies[name])
    asked = from_the_hub(monkeypatch, copies[name])
    shown = load(task, "paper", 3, seed=4, n_classes=20)
    assert [(p.key, p.encoded, p.label) for p in shown] == [(p.key, p.encoded, p.label) for p in local]
    place = (settings["repository"], "default", settings["revision"])
    assert {call[:3] for call in asked} == {place}
    assert {"split": settings["split"], "streaming": True} in [call[3] for call in asked]
    chosen = selection(task, "paper", 3, seed=4, n_classes=20)
    assert {k: chosen[k] for k in ("source", "repository", "config", "revision", "split", "seed", "n")} == {
        "source": name,
        "repository": place[0],
        "config": "default",
        "revision": place[2],
        "split": settings["split"],
        "seed": 4,
        "n": 3,
    }
    starts = np.cumsum([0, *FILES])
    assert [int(starts[file]) + row for file, row in chosen["rows"]] == [number_of(p) for p in shown]


def test_an_unpinned_commit_is_asked_for_once(copies, monkeypatch):
    calls = []

    class Api:
        def dataset_info(self, repository):
            calls.append(repository)
            return type("Info", (), {"sha": "c" * 40})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    asked = from_the_hub(monkeypatch, copies["coco"])
    load("captions", "coco", 3)
    assert selection("captions", "coco", 3)["revision"] == "c" * 40 and {call[2] for call in asked} == {"c" * 40}
    assert calls == [SOURCES["coco"]["repository"]]


def test_keys_follow_the_content():
    shown = load("captions", "scenes", 4)
    assert [p.key for p in shown] == [p.key for p in load("captions", "scenes", 4)]
    bigger = load("captions", "scenes", 4, size=96)
    keys = {p.key for found in (shown, bigger, load("captions", "scenes", 4, seed=1)) for p in found}
    assert len(keys) == 12


# Errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: load("naming", "scenes", 1), UnknownName, "no task 'naming'.*Known: captions, classes, questions"),
        (lambda: load("captions", "vqav2", 1), UnknownName, "no source of captions 'vqav2'.*coco, flickr30k, paper"),
        (lambda: pairs("coco", 1), UnknownName, "no source of classes 'coco'"),
        (lambda: load("captions", "scenes", 0), BadParameter, "n=0"),
        (lambda: pairs("scenes", 1, seed=-1), BadParameter, "seed=-1"),
        (lambda: load("captions", "scenes", 1, folder="here"), BadParameter, "`folder` and `within` are for data sets"),
        (
            lambda: load("classes", "scenes", 1, n_classes=25),
            BadParameter,
            "n_classes=25: the test scenes have 2 to 24",
        ),
        (lambda: load("captions", "scenes", 1, split="dev"), UnknownName, "no split 'dev'"),
        (
            lambda: load("captions", "coco", 1, folder="nowhere"),
            MissingFile,
            "nowhere holds no Parquet file.*data/test-",
        ),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_missing_column_names_what_there_is(tmp_path):
    folder = write(tmp_path / "a", "test", (5,), leave_out=("captions", "label", "answers"))
    with pytest.raises(
        UnknownName, match=r"no column of .*a 'captions'. Did you mean 'caption'\? Known: caption, image"
    ):
        load("captions", "coco", 1, folder=folder)
    folder = write(tmp_path / "b", "train", (5,), leave_out=("label",))
    with pytest.raises(UnknownName, match=r"no column of .*b 'label'"):
        load("classes", "imagenet", 1, folder=folder)


def test_a_missing_split(copies):
    with pytest.raises(MissingFile, match=r"Bad split: test.*Expected files like data/test-00000"):
        load("questions", "vqav2", 1, folder=copies["vqav2"], split="test")


def test_labels_without_names(tmp_path):
    features = datasets.Features(FEATURES | {"label": datasets.Value("int64")})
    folder = write(tmp_path, "train", (5,), features)
    with pytest.raises(BadQuestions, match=r"'label' of .* has no class names"):
        load("classes", "imagenet", 1, folder=folder)


def test_a_paired_class_that_is_missing(tmp_path):
    features = datasets.Features(FEATURES | {"label": datasets.ClassLabel(names=[f"x {i}" for i in range(30)])})
    folder = write(tmp_path, "train", (5,), features)
    with pytest.raises(UnknownName, match="no class of imagenet 'american alligator'"):
        load("classes", "imagenet", 1, folder=folder)


def truncated(number):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()[: -number or None]


@pytest.mark.parametrize("broken", [b"", b"no image", truncated(900)])
def test_an_unreadable_image_names_its_row(broken, tmp_path):
    change = lambda made: made | {"image": {"bytes": broken, "path": None}} if made["question_id"] == 7 else made
    folder = write(tmp_path, "validation", (5, 5), change=change)
    with pytest.raises(BadImage, match="vqav2, file 1, row 2: the image cannot be read"):
        load("questions", "vqav2", 10, folder=folder)
    assert len(load("questions", "vqav2", 7, within=7, folder=folder)) == 7


def test_an_empty_caption_names_its_row(tmp_path):
    change = lambda made: made | {"caption": []} if made["img_id"] == "3" else made
    folder = write(tmp_path, "test", (5,), change=change)
    with pytest.raises(BadQuestions, match="flickr30k, file 0, row 3: the column 'caption' is empty"):
        load("captions", "flickr30k", 5, folder=folder)


def test_a_single_caption_is_not_taken_apart(tmp_path):
    features = datasets.Features(FEATURES | {"caption": datasets.Value("string")})
    folder = write(tmp_path, "test", (5,), features, change=lambda made: made | {"caption": made["caption"][0]})
    assert load("captions", "flickr30k", 5, folder=folder)[2].captions == ("caption 2 0",)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub."),
            "is gated and .*Accept",
        ),
        (ConnectionError("Couldn't reach 'x' on the Hub"), "Couldn't reach.*Connect to the network.*folder=FOLDER"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist"), "doesn't exist.*local copy"),
    ],
)
def test_no_hub(error, message, monkeypatch):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(MissingFile, match=message):
        load("classes", "imagenet", 1)
    monkeypatch.setattr(huggingface_hub, "HfApi", refuse)
    with pytest.raises(MissingFile, match=message):
        load("captions", "coco", 1)


def test_a_stream_that_breaks_off(copies, monkeypatch):
    def broken(self, *args, **kwargs):
        raise OSError("connection reset")

    load("questions", "vqav2", 3, folder=copies["vqav2"])
    from_the_hub(monkeypatch, copies["vqav2"])
    monkeypatch.setattr(datasets.IterableDataset, "shard", broken)
    with pytest.raises(MissingFile, match=r"connection reset.*what was read is kept"):
        load("questions", "vqav2", 3)


# Images


def test_images_are_rgb_and_upright():
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        buffer = io.BytesIO()
        Image.new(mode, (5, 3)).save(buffer, "TIFF")
        assert Picture(buffer.getvalue(), "x").image.mode == "RGB"
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (5, 3)).save(turned, "JPEG", exif=exif)
    assert Picture(turned.getvalue(), "x").image.size == (3, 5)
    with pytest.raises(BadImage, match="some picture: the image cannot be read"):
        _ = Picture(b"", "some picture").image


# Scenes


def same(picture, scene):
    return picture.image.tobytes() == draw(scene).tobytes()


@pytest.mark.parametrize("task", ["captions", "questions"])
def test_scenes_with_what_is_true_of_them(task):
    shown, drawn = load(task, "scenes", 50, seed=2), scenes.sample("test", 50, 2)
    for picture, scene in zip(shown, drawn, strict=True):
        assert same(picture, scene) and picture.label == scenes.label(scene)
        assert picture.captions == tuple(scene_words.captions(scene))
        asked = {(q.text, (q.answer,)) for q in scene_words.questions(scene)}
        assert (picture.question, picture.answers) in (asked if task == "questions" else {(None, ())})
    others = [not same(picture, scene) for picture, scene in zip(shown[1:], drawn, strict=False)]
    assert all(others)  # a shift by one would be seen
    assert load(task, "scenes", 50, seed=2) == shown != load(task, "scenes", 50, seed=3)
    assert load(task, "scenes", 5, split="train", size=96)[0].image.size == (96, 96)


def test_scenes_of_classes():
    shown = load("classes", "scenes", 3, seed=1, n_classes=16)
    counts = Counter(p.label for p in shown)
    assert len(counts) == 16 and set(counts.values()) == {3}
    drawn = {draw(scene).tobytes(): scenes.label(scene) for scene in scenes.sample("test", 72, 1)}
    assert all(drawn[p.image.tobytes()] == p.label for p in shown)
    assert {p.label for p in load("classes", "scenes", 1, seed=2, n_classes=16)} != set(counts)
    assert len(load("classes", "scenes", 1)) == 24
    assert len(load("classes", "scenes", 1, split="train")) == 48


def test_pairs_of_scenes():
    found = pairs("scenes", 3, seed=0)
    names = [name for pair in found for name in pair.names]
    assert len(found) == 10 and len(set(names)) == 20
    for pair in found:
        assert not set(pair.names[0].split()) & set(pair.names[1].split())
        assert [[p.label for p in shown] for shown in pair.pictures] == [[name] * 3 for name in pair.names]
    assert [pair.names for pair in pairs("scenes", 1, seed=1)] != [pair.names for pair in found]


# Settings


def test_settings():
    for name, settings in SOURCES.items():
        assert settings["task"] in TASKS and "image" in settings["columns"]
        assert settings["revision"] is None or re.fullmatch("[0-9a-f]{40}", settings["revision"])
        assert replace(pictures.find(settings["task"], name), folder="x").name == name
    assert {task: SOURCES[name]["task"] for task, name in SETTINGS["paper"].items()} == {task: task for task in TASKS}
    assert len(SETTINGS["pairs"]) == 10 and sorted(PAIRED) == PAIRED and len(set(PAIRED)) == 20


def test_how_much_is_read():
    """The estimate against draws from 1,000 equal classes."""
    rng = np.random.default_rng(0)
    draws = [max(rng.negative_binomial(20, 1 / 1000, 50) + 20) for _ in range(400)]
    expected = expected_reading("classes", "imagenet", 20, n_classes=50)
    assert expected["rows"] == pytest.approx(np.median(draws), rel=0.1)
    whole = expected_reading("classes", "paper", 100)
    assert 0.08 < whole["rows"] / SOURCES["imagenet"]["rows"] < 0.12 and 11 < whole["gigabytes"] < 18
    assert expected_reading("questions", "vqav2", 2000)["gigabytes"] == SOURCES["vqav2"]["gigabytes"]


def test_label_of_is_fair():
    """The made data set has every class, mixed, in every file."""
    labels = [label_of(number) for number in range(sum(FILES))]
    assert set(labels) == set(range(len(NAMES)))
    assert all(a != b for a, b in itertools.pairwise(labels))
