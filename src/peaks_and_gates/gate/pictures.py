"""Pictures for the gate's pages, all with one face: the book's scenes, or rows of the paper's data sets.

    load("classes", "scenes", n=20, n_classes=16)     # 20 pictures of each class
    load("questions", "vqav2", n=2000, seed=42)       # streamed from the hub once, then stored
    pairs("imagenet", n_per_pair=100)                 # for activation patching

Of a data set only the chosen rows are stored, their images encoded: a second run needs no network.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from functools import cache
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ..cache import cached, project_folder
from ..errors import BadParameter, BadQuestions, BookError, MissingFile, TooFewPoints, UnknownName
from ..models import hub_advice
from ..statistics import at_least
from .inputs import open_image

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
        return open_image(self.encoded, self.key)


@dataclass(frozen=True)
class Pair:
    """Two classes and as many pictures of each, for patching.

    names: as a person would say them.  Whether they begin with different tokens is for the tokenizer's owner to check.
    """

    names: tuple[str, str]
    pictures: tuple[list[Picture], list[Picture]]


def load(task: str, source: str, n: int, seed: int = 0, n_classes: int | None = None) -> list[Picture]:
    """Pictures for a task, the same for the same arguments.

    Args:
        task: "classes", "captions" or "questions".
        source: "scenes", a data set in SOURCES, or "paper" for the paper's data set of that task.
        n: how many; for "classes" how many of each class.
        seed: of the choice. Rows of a data set are `random.Random(seed).sample(range(n_rows), n)`, sorted. Images of a
            class are its first in files that are walked in an order drawn by the seed.
        n_classes: of "classes"; None takes all of the scenes (24), 100 of ImageNet (those of `pairs` first).

    Raises UnknownName, BadParameter, TooFewPoints, BadImage, BadQuestions, MissingFile.
    """
    at_least(1, n=n, n_classes=1 if n_classes is None else n_classes)
    if task not in PAPER:
        raise UnknownName("task", task, PAPER)
    if source != "scenes":
        names = [name for name, data in SOURCES.items() if data.task == task]
        name = PAPER[task] if source == "paper" else source
        if name not in names:
            raise UnknownName(f"source of {task}", source, ["scenes", "paper", *names])
        inputs = asdict(SOURCES[name]) | {"source": name, "n": n, "seed": seed, "n_classes": n_classes}
        rows = cached("pictures", inputs, lambda: _streamed(name, n, seed, n_classes), "table").itertuples()
        return [
            Picture(
                row.image, row.key, row.label or None, tuple(row.captions), row.question or None, tuple(row.answers)
            )
            for row in rows
        ]
    if task == "classes":
        labels = _labels(seed)
        if n_classes is not None and n_classes > len(labels):
            raise BadParameter(f"n_classes={n_classes}: the scenes have {len(labels)} classes.")
        chosen = np.random.default_rng(seed).permutation(len(labels))[:n_classes]
        return _scene_classes({labels[i] for i in chosen}, n, seed)
    question = lambda row: (row.question, (row.answer,), row.kind) if task == "questions" else ()
    rows = _first_scenes(seed, n).itertuples()
    return [Picture(row.png, row.key, row.label, tuple(row.captions), *question(row)) for row in rows]


def pairs(source: str, n_per_pair: int, seed: int = 0) -> list[Pair]:
    """Ten pairs of classes with `n_per_pair` pictures of each class.

    "imagenet" (or "paper"): the paper's pairs.  "scenes": twenty classes drawn by the seed, paired so that colour and
    shape differ.  Raises as `load`.
    """
    if source == "scenes":
        names = _scene_pairs(seed)
        pictures = _scene_classes({name for pair in names for name in pair}, n_per_pair, seed)
    else:
        names, pictures = PAIRS, load("classes", source, n_per_pair, seed, 2 * len(PAIRS))
    of_class = lambda name: [picture for picture in pictures if picture.label == name]
    return [Pair(pair, (of_class(pair[0]), of_class(pair[1]))) for pair in names]


# Scenes, from data/scenes.parquet


@cache
def _scenes(seed: int) -> pd.DataFrame:
    """The test scenes of a seed, read once.  Raises BadParameter, MissingFile."""
    path = (project_folder() or Path()) / "data" / "scenes.parquet"
    if not path.is_file():
        raise MissingFile(f"{path} is not there: clone the repository to read its scenes.")
    scenes = pd.read_parquet(path, filters=[("split", "==", "test"), ("seed", "==", seed)]).sort_values("i")
    if scenes.empty:
        raise BadParameter(f"seed={seed}: the book ships scenes of the seeds 0, 1 and 2; training/scenes draws others.")
    return scenes


def _first_scenes(seed: int, n: int) -> pd.DataFrame:
    """The first n test scenes of a seed.  Raises as `_scenes`, and TooFewPoints."""
    scenes = _scenes(seed)
    if n > len(scenes):
        raise TooFewPoints(f"{n} scenes are needed, and {len(scenes)} of this seed are in data/scenes.parquet.")
    return scenes[:n]


def _labels(seed: int) -> list[str]:
    """The classes of a seed's scenes, in their own order."""
    return _scenes(seed).drop_duplicates("label_id").sort_values("label_id")["label"].tolist()


def _scene_classes(labels: set[str], n: int, seed: int) -> list[Picture]:
    """`n` scenes of each class: a sample has every class once in as many scenes as there are classes."""
    scenes = _first_scenes(seed, n * len(_labels(seed)))
    rows = scenes[scenes["label"].isin(labels)].itertuples()
    return [Picture(row.png, row.key, row.label, tuple(row.captions)) for row in rows]


def _scene_pairs(seed: int) -> list[tuple[str, str]]:
    """Ten pairs of classes without a colour or shape in common, no class twice."""
    labels, rng = _labels(seed), np.random.default_rng(seed)
    while True:  # about a dozen draws
        chosen = [labels[i] for i in rng.permutation(len(labels))[: 2 * len(PAIRS)]]
        names = list(zip(chosen[::2], chosen[1::2], strict=True))
        if not any(set(one.split()) & set(other.split()) for one, other in names):
            return names


# Data sets, from the hub


def _streamed(name: str, n: int, seed: int, n_classes: int | None) -> pd.DataFrame:
    """The chosen rows of a data set, with the columns that `_entry` gives them."""
    import datasets  # slow to import, and not needed for scenes

    source = SOURCES[name]
    try:
        stream = datasets.load_dataset(
            source.repository, "default", revision=source.revision, split=source.split, streaming=True
        ).decode(False)
        if source.task == "classes":
            rows = _first_of_classes(name, stream, n, seed, n_classes)
        else:
            numbers = sorted(random.Random(seed).sample(range(source.n_rows), n))
            rows = [(f"row {i}", "", row) for i, row in enumerate(islice(stream, numbers[-1] + 1)) if i in set(numbers)]
            if len(rows) < n:
                raise TooFewPoints(f"{source.repository} has fewer than {source.n_rows} rows.")
    except BookError:
        raise
    except Exception as error:  # the many ways in which a data set cannot be read
        if "gated" in str(error).lower():
            raise MissingFile(hub_advice(source.repository, PermissionError(f"Gated: {error}"))) from error
        raise MissingFile(
            f"The data set {source.repository} is not stored here and could not be read: {error} Connect to the "
            "network and run again; or take source='scenes'."
        ) from error
    return pd.DataFrame([_entry(name, where, label, row) for where, label, row in rows])


def _first_of_classes(name: str, stream: Any, n: int, seed: int, n_classes: int | None) -> list[tuple[str, str, dict]]:
    """The first n rows of each class, each with its place and its class, in files walked in an order drawn by the seed.

    The classes are the paper's pairs first, then others drawn by the seed.  Raises BadParameter, TooFewPoints.
    """
    column = SOURCES[name].columns["label"]
    # A class's first name: "American alligator, Alligator ..." becomes "american alligator".
    names = [label.partition(",")[0].lower() for label in stream.features[column].names[:N_ANIMALS]]
    paired = [label for pair in PAIRS for label in pair]
    others = [i for i, label in enumerate(names) if label not in paired and names.count(label) == 1]
    classes = [names.index(label) for label in paired] + random.Random(seed).sample(others, len(others))
    n_classes = 100 if n_classes is None else n_classes
    if n_classes > len(classes):
        raise BadParameter(f"n_classes={n_classes}: {name} has {len(classes)} classes of animals.")
    missing, rows = dict.fromkeys(classes[:n_classes], n), []
    for file in random.Random(seed).sample(range(stream.num_shards), stream.num_shards):
        print(f"{name}: reading file {file + 1} of {stream.num_shards}")
        for i, row in enumerate(stream.shard(stream.num_shards, file)):
            if missing.get(row[column]):
                missing[row[column]] -= 1
                rows.append((f"{file}-{i}", names[row[column]], row))
            if not any(missing.values()):
                return rows
    few = sorted(names[label] for label, count in missing.items() if count)
    raise TooFewPoints(f"{name} has too few images of {len(few)} classes: {', '.join(few[:5])}.")


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
    entry["image"] = entry["image"]["bytes"]
    open_image(entry["image"], where)
    return entry | {"key": f"{name}-{entry.pop('id')}-{sha256(entry['image']).hexdigest()[:8]}", "label": label}
