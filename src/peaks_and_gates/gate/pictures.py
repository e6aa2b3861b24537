"""Pictures for the gate's pages, all with one face: the book's scenes, or rows of the paper's data sets.

    load("classes", "scenes", n=20, n_classes=16)     # 20 pictures of each class
    load("questions", "vqav2", n=2000, seed=42)       # streamed from the hub once, then stored
    pairs("imagenet", n_per_pair=100)                 # for activation patching

Of a data set only the chosen rows are stored, their images encoded: a second run needs no network.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from ..cache import cached, project_folder
from ..errors import BadImage, BadParameter, BadQuestions, BookError, MissingFile, TooFewPoints, UnknownName, is_whole
from ..models import hub_advice

# Which data set "paper" means for each task.  The paper also reads captions of COCO.
PAPER = {"classes": "imagenet", "captions": "flickr30k", "questions": "vqav2"}


@dataclass(frozen=True)
class Source:
    """A data set on the hub, Parquet, whose rows are pictures.

    revision: a commit; None takes the newest at the first use.  n_rows: of the split.  columns: where what is needed
    stands; "answers.answer" is the field `answer` of every entry of the list `answers`.
    """

    task: str
    repository: str
    revision: str | None
    split: str
    n_rows: int
    columns: dict[str, str]


# What was looked up in public copies of the repositories' pages and in public code is marked "seen"; nothing here was
# downloaded by us.
SOURCES = {
    # Gated: accept its terms on its page once.  Seen in several public projects: the commit of the Parquet form, 294
    # train files of about 500 MB.
    "imagenet": Source(
        "classes", "ILSVRC/imagenet-1k", "49e2ee26f3810fb5a7536bbf732a7b07389a47b5", "train", 1281167,
        {"image": "image", "label": "label"},
    ),
    # The paper names nlphuji/flickr30k, which is a script and no longer loads; this is the same test split of all
    # 31,783 photographs.  Seen: columns, commit, 9 files.  Not known: whether the rows are in the same order.
    "flickr30k": Source(
        "captions", "lmms-lab/flickr30k", "0d6d9049be2e08261be315e731e0d8054c1d1c03", "test", 31783,
        {"image": "image", "captions": "caption", "id": "img_id"},
    ),
    # The paper names yerevann/coco-karpathy, which holds addresses of images and no images.  Seen in public code: this
    # copy's columns and its 5,000 test rows.  Not seen: a commit.
    "coco": Source(
        "captions", "namkha1032/coco-karpathy", None, "test", 5000,
        {"image": "image", "captions": "captions", "id": "image_id"},
    ),
    # The paper names HuggingFaceM4/VQAv2, which is a script and no longer loads.  Seen: columns, number of rows,
    # commit.  Not known: whether the rows are in the same order, so seed 42 need not give the paper's questions.
    "vqav2": Source(
        "questions", "lmms-lab/VQAv2", "32665d35052eb4a6d4414851c3c829a72754915a", "validation", 214354,
        {"image": "image", "question": "question", "answers": "answers.answer", "id": "question_id"},
    ),
}  # fmt: skip
# Classes 0 to 397 of ImageNet are animals.  The paper's list of 100 is not public: ours is the 20 below, then others
# drawn by the seed.  A class is called by the first of its names in the data set, in lower case.
N_ANIMALS = 398
PAIRS = [  # the paper's 20 classes in alphabetical order, two by two
    ("american alligator", "arabian camel"), ("bald eagle", "barn spider"), ("bee eater", "cheetah"),
    ("flamingo", "great grey owl"), ("green mamba", "grey whale"), ("hippopotamus", "jaguar"),
    ("king penguin", "kit fox"), ("lionfish", "macaw"), ("proboscis monkey", "siberian husky"),
    ("tailed frog", "trilobite"),
]  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """An image and what is known of it; what a source does not tell is None or empty.

    encoded: PNG or JPEG.  key: the same in every run for the same picture, another if a pixel changes.  label: name of
    its class.  kind: of a scene's question.
    """

    encoded: bytes = field(repr=False)
    key: str
    label: str | None = None
    captions: tuple[str, ...] = ()
    question: str | None = None
    answers: tuple[str, ...] = ()
    kind: str | None = None

    @property
    def image(self) -> Image.Image:
        """The picture, RGB and upright, decoded when it is asked for.  Raises BadImage."""
        return decode(self.encoded, self.key)


@dataclass(frozen=True)
class Pair:
    """Two classes and as many pictures of each, for patching.

    names: as a person would say them.  Whether they begin with different tokens is for the tokenizer's owner to check.
    """

    names: tuple[str, str]
    pictures: tuple[list[Picture], list[Picture]]


def load(
    task: str, source: str, n: int, seed: int = 0, *, n_classes: int | None = None, folder: str | None = None
) -> list[Picture]:
    """Pictures for a task, the same for the same arguments.

    Args:
        task: "classes", "captions" or "questions".
        source: "scenes", a data set in SOURCES, or "paper" for the paper's data set of that task.
        n: how many; for "classes" how many of each class.
        seed: of the choice. Rows of a data set are `random.Random(seed).sample(range(n_rows), n)`, sorted. Images of a
            class are its first in files that are walked in an order drawn by the seed.
        n_classes: of "classes"; None takes all of the scenes (24), 100 of ImageNet (those of `pairs` first).
        folder: a local copy of the data set, laid out as on the hub.

    Raises UnknownName, BadParameter, TooFewPoints, BadImage, BadQuestions, MissingFile.
    """
    _check(task, n, seed)
    if source != "scenes":
        name = PAPER[task] if source == "paper" else source
        names = [name for name, data in SOURCES.items() if data.task == task]
        if name not in names:
            raise UnknownName(f"source of {task}", source, ["scenes", "paper", *names])
        return _stored(name, n, seed, n_classes, folder)
    if task == "classes":
        labels = _scene_labels(seed)
        n_classes = len(labels) if n_classes is None else n_classes
        if not is_whole(n_classes, 2) or n_classes > len(labels):
            raise BadParameter(f"n_classes={n_classes!r}: the scenes have 2 to {len(labels)} classes.")
        chosen = np.random.default_rng(seed).permutation(len(labels))[:n_classes]
        return _scene_classes({labels[i] for i in chosen}, n, seed)
    scenes = _scenes(seed, n)
    question = lambda row: (row.question, (row.answer,), row.kind) if task == "questions" else ()
    return [Picture(row.png, row.key, row.label, tuple(row.captions), *question(row)) for row in scenes.itertuples()]


def pairs(source: str, n_per_pair: int, seed: int = 0, *, folder: str | None = None) -> list[Pair]:
    """Ten pairs of classes with `n_per_pair` pictures of each class.

    "imagenet" (or "paper"): the paper's pairs.  "scenes": twenty classes drawn by the seed, paired so that colour and
    shape differ.  Raises as `load`.
    """
    _check("classes", n_per_pair, seed)
    if source == "scenes":
        names = _scene_pairs(seed)
        pictures = _scene_classes({name for pair in names for name in pair}, n_per_pair, seed)
    else:
        names = PAIRS
        pictures = load("classes", source, n_per_pair, seed, n_classes=2 * len(PAIRS), folder=folder)
    of_class = lambda name: [picture for picture in pictures if picture.label == name]
    return [Pair(pair, (of_class(pair[0]), of_class(pair[1]))) for pair in names]


def _check(task: str, n: int, seed: int) -> None:
    """Raise UnknownName or BadParameter for what no source can give."""
    if task not in PAPER:
        raise UnknownName("task", task, PAPER)
    if not is_whole(n, 1) or not is_whole(seed):
        raise BadParameter(f"n={n!r}, seed={seed!r}: need whole numbers, n >= 1 and seed >= 0.")


# Scenes, from data/scenes.parquet


@cache
def _test_scenes(seed: int) -> pd.DataFrame:
    """All test scenes of a seed that the book ships, in order.  Raises BadParameter, MissingFile."""
    path = (project_folder() or Path()) / "data" / "scenes.parquet"
    if not path.is_file():
        raise MissingFile(f"{path} is not there: clone the repository to read its scenes.")
    scenes = pd.read_parquet(path, filters=[("split", "==", "test"), ("seed", "==", seed)])
    if scenes.empty:
        raise BadParameter(f"seed={seed}: the book ships scenes of the seeds 0, 1 and 2; training/scenes draws others.")
    return scenes.sort_values("i")


def _scenes(seed: int, n: int) -> pd.DataFrame:
    """The first n test scenes.  Raises TooFewPoints."""
    scenes = _test_scenes(seed)
    if n > len(scenes):
        raise TooFewPoints(f"{n} scenes are needed, and {len(scenes)} of this seed are in data/scenes.parquet.")
    return scenes[:n]


def _scene_labels(seed: int) -> list[str]:
    """The classes of the test scenes."""
    return _test_scenes(seed).drop_duplicates("label_id").sort_values("label_id")["label"].tolist()


def _scene_classes(labels: set[str], n: int, seed: int) -> list[Picture]:
    """`n` scenes of each class: a sample has every class once in as many scenes as there are classes."""
    scenes = _scenes(seed, n * len(_scene_labels(seed)))
    rows = scenes[scenes["label"].isin(labels)].itertuples()
    return [Picture(row.png, row.key, row.label, tuple(row.captions)) for row in rows]


def _scene_pairs(seed: int) -> list[tuple[str, str]]:
    """Ten pairs of classes without a colour or shape in common, no class twice."""
    labels, rng = _scene_labels(seed), np.random.default_rng(seed)
    while True:  # about a dozen draws
        drawn = [labels[i] for i in rng.permutation(len(labels))[: 2 * len(PAIRS)]]
        names = list(zip(drawn[::2], drawn[1::2], strict=True))
        if not any(set(one.split()) & set(other.split()) for one, other in names):
            return names


# Data sets, from the hub


def _stored(name: str, n: int, seed: int, n_classes: int | None, folder: str | None) -> list[Picture]:
    """Pictures of a data set, stored or streamed.  Arguments and errors as of `load`."""
    source = SOURCES[name]
    if source.task != "classes" and n > source.n_rows:
        raise BadParameter(f"n={n}: {name} has {source.n_rows} rows.")
    files = []
    if folder is not None:
        # Names, sizes and times: hashing would read all of a data set that may be 146 GB.
        files = sorted((str(path), path.stat()) for path in Path(folder).expanduser().rglob("*.parquet"))
        files = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in files]
    inputs = asdict(source) | {"source": name, "files": files, "n": n, "seed": seed, "n_classes": n_classes}
    rows = cached("pictures", inputs, lambda: _streamed(name, n, seed, n_classes, folder), "table")
    return [
        Picture(row.image, row.key, row.label or None, tuple(row.captions), row.question or None, tuple(row.answers))
        for row in rows.itertuples()
    ]


def _streamed(name: str, n: int, seed: int, n_classes: int | None, folder: str | None) -> pd.DataFrame:
    """The chosen rows of a data set, with the columns that `_entry` gives them."""
    import datasets  # slow to import, and not needed for scenes

    source = SOURCES[name]
    place = {"path": source.repository, "revision": source.revision} if folder is None else {"path": folder}
    with _reading(name, folder):
        stream = datasets.load_dataset(**place, name="default", split=source.split, streaming=True).decode(False)
        if source.task == "classes":
            rows = _first_of_classes(name, stream, n, seed, n_classes)
        else:
            numbers = sorted(random.Random(seed).sample(range(source.n_rows), n))
            rows = [(f"row {i}", "", row) for i, row in enumerate(islice(stream, numbers[-1] + 1)) if i in set(numbers)]
            if len(rows) < n:
                raise TooFewPoints(f"{folder or source.repository} has fewer than {source.n_rows} rows.")
        return pd.DataFrame([_entry(name, where, label, row) for where, label, row in rows])


def _first_of_classes(name: str, stream: Any, n: int, seed: int, n_classes: int | None) -> list[tuple[str, str, dict]]:
    """The first n rows of each class, each with its place and its class, in files walked in an order drawn by the seed.

    The classes are the paper's pairs first, then others drawn by the seed.  Raises TooFewPoints, as `load` too.
    """
    column = SOURCES[name].columns["label"]
    names = [plain_name(label) for label in stream.features[column].names[:N_ANIMALS]]
    paired = [label for pair in PAIRS for label in pair]
    for label in paired:
        if names.count(label) != 1:
            raise UnknownName(f"class of {name}", label, names)
    n_classes = 100 if n_classes is None else n_classes
    if not is_whole(n_classes, 2) or n_classes > len(names):
        raise BadParameter(f"n_classes={n_classes!r}: {name} has {len(names)} classes of animals; at least 2.")
    others = [i for i, label in enumerate(names) if label not in paired and names.count(label) == 1]
    classes = [names.index(label) for label in paired] + random.Random(seed).sample(others, len(others))
    missing, rows = dict.fromkeys(classes[:n_classes], n), []
    for file in random.Random(seed).sample(range(stream.num_shards), stream.num_shards):
        print(f"{name}: reading file {file + 1} of {stream.num_shards}")
        for i, row in enumerate(stream.shard(stream.num_shards, file)):
            if missing.get(row[column]):
                missing[row[column]] -= 1
                rows.append((f"{file}-{i}", names[row[column]], row))
            if not any(missing.values()):
                return rows
    few = sorted(f"{names[label]}: {count} short" for label, count in missing.items() if count)
    raise TooFewPoints(
        f"{name} has too few images of {len(few)} classes ({'; '.join(few[:5])}). Ask for fewer of each class."
    )


def _entry(name: str, where: str, label: str, row: dict[str, Any]) -> dict[str, Any]:
    """What is stored of a row: key, image (bytes), label and texts.  Raises BadImage, BadQuestions."""
    entry: dict[str, Any] = {"id": where, "captions": [], "question": "", "answers": []}
    where = f"{name}, {where}"
    for what, path in SOURCES[name].columns.items():
        column, _, item = path.partition(".")
        entry[what] = [answer[item] for answer in row[column]] if item else row[column]
        if isinstance(entry[what], str) and what in ("captions", "answers"):
            entry[what] = [entry[what]]  # a single one; a string must not be taken apart into letters
        if what in ("captions", "question", "answers") and not entry[what]:
            raise BadQuestions(f"{where}: the column '{column}' is empty. Choose another seed.")
    entry["image"] = (entry["image"] or {}).get("bytes")
    decode(entry["image"], where)
    return entry | {"key": f"{name}-{entry.pop('id')}-{sha256(entry['image']).hexdigest()[:8]}", "label": label}


@contextmanager
def _reading(name: str, folder: str | None) -> Iterator[None]:
    """Turn the many ways in which a data set cannot be read into one message.  Raises MissingFile."""
    try:
        yield
    except BookError:
        raise
    except Exception as error:
        source, reason = SOURCES[name], str(error).partition("\n")[0] or type(error).__name__
        if folder is not None:
            example = f"data/{source.split}-00000-of-00001.parquet"
            advice = f"{folder} could not be read as {name}: {reason} Expected files like {example}."
        elif re.search(r"gated|\b40[13]\b", f"{type(error).__name__} {error}", re.IGNORECASE):
            advice = hub_advice(source.repository, PermissionError(f"Gated: {reason}"))
        else:
            advice = (
                f"The data set {source.repository} is not stored here and could not be read: {reason} Connect to the "
                "network and run again; or give a local copy with folder=FOLDER; or take source='scenes'."
            )
        raise MissingFile(advice) from error


def plain_name(name: str) -> str:
    """A class's first name in lower case: "American alligator, Alligator ..." becomes "american alligator"."""
    return name.partition(",")[0].replace("_", " ").strip().lower()


def decode(encoded: bytes | None, where: str) -> Image.Image:
    """An image from its bytes: RGB, upright.  Raises BadImage."""
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise BadImage(f"{where}: the image cannot be read ({error}). Choose another seed.") from error
