"""Pictures for the gate's pages, all with one face: the book's scenes, or rows of the paper's data sets.

    load("classes", "scenes", n=20, n_classes=16)     # 20 pictures of each class
    load("questions", "vqav2", n=2000)                # streamed from the hub once, then stored
    pairs("imagenet", n_per_pair=1000)                # for activation patching

Of a data set only the chosen rows are stored, their images encoded: a second run needs no network.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from tqdm.auto import tqdm

from ..cache import cached, project_folder
from ..errors import BadParameter, BadQuestions, BookError, MissingFile, TooFewPoints, UnknownName
from ..statistics import at_least
from .inputs import open_image

# Which data set "paper" means for each task.  The paper also reads captions of COCO.
PAPER = {"classes": "imagenet", "captions": "flickr30k", "questions": "vqav2"}
# The data sets, by name, and what is known of them; the paper's classes, and the pairs of classes with their words.
KNOWN = yaml.safe_load(Path(__file__).with_name("pictures.yml").read_bytes())
SOURCES: dict[str, dict[str, Any]] = KNOWN["sources"]
PAIRS: list[dict[str, str]] = KNOWN["pairs"]


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

    names: of the classes.  words: what a person would say, "snake" of a green mamba.  Whether they begin with different
    tokens is for the tokenizer's owner to check.
    """

    names: tuple[str, str]
    words: tuple[str, str]
    pictures: tuple[list[Picture], list[Picture]]


def load(
    task: str, source: str, n: int, seed: int = 0, n_classes: int | None = None, classes: Sequence[str] = ()
) -> list[Picture]:
    """Pictures for a task, the same for the same arguments.

    Args:
        task: "classes", "captions" or "questions".
        source: "scenes", a data set in SOURCES, or "paper" for the paper's data set of that task.
        n: how many; for "classes" how many of each class.
        seed: of the choice among scenes. Of a data set the choice is the paper's at every seed, see pictures.yml.
        n_classes: of "classes"; None takes all of the scenes (24), or the paper's 100 of ImageNet.
        classes: names of classes of ImageNet in place of these; where there are fewer than n pictures, all are given.

    Raises UnknownName, BadParameter, TooFewPoints, BadImage, BadQuestions, MissingFile.
    """
    at_least(1, n=n, n_classes=1 if n_classes is None else n_classes)
    if task not in PAPER:
        raise UnknownName("task", task, PAPER)
    if source == "scenes" and task == "classes":
        labels = _labels(seed)
        if n_classes is not None and n_classes > len(labels):
            raise BadParameter(f"n_classes={n_classes}: the scenes have {len(labels)} classes.")
        chosen = np.random.default_rng(seed).permutation(len(labels))[:n_classes]
        return _scene_classes({labels[i] for i in chosen}, n, seed)
    if source == "scenes":
        return _first_scenes(seed, n)
    names = [name for name, data in SOURCES.items() if data["task"] == task]
    name = PAPER[task] if source == "paper" else source
    if name not in names:
        raise UnknownName(f"source of {task}", source, ["scenes", "paper", *names])
    if task == "classes" and (n_classes or 0) > len(KNOWN["classes"]):
        raise BadParameter(f"n_classes={n_classes}: the paper's list has {len(KNOWN['classes'])} classes of {name}.")
    chosen = list(classes or KNOWN["classes"][:n_classes]) if task == "classes" else []
    inputs = SOURCES[name] | {"source": name, "n": n, "classes": chosen}
    rows = cached("pictures", inputs, lambda: _streamed(name, n, chosen), "table").itertuples()
    texts = lambda row: (tuple(row.captions), row.question or None, tuple(row.answers))
    return [Picture(row.image, row.key, row.label or None, *texts(row)) for row in rows]


def pairs(source: str, n_per_pair: int, seed: int = 0) -> list[Pair]:
    """Ten pairs of classes with `n_per_pair` pictures of each class.

    "imagenet" (or "paper"): the paper's classes, split as its code prints them; where a class has fewer pictures its
    pair has.  "scenes": twenty classes drawn by the seed, paired so that colour and shape differ.  Raises as `load`.
    """
    if source == "scenes":
        split = [{name: name for name in pair} for pair in _scene_pairs(seed)]
        pictures = _scene_classes({name for pair in split for name in pair}, n_per_pair, seed)
    else:
        split = PAIRS
        pictures = load("classes", source, n_per_pair, classes=[name for pair in PAIRS for name in pair])
    pairs = []
    for words in split:
        first, second = ([picture for picture in pictures if picture.label == name] for name in words)
        pairs.append(Pair(tuple(words), tuple(words.values()), (first[: len(second)], second[: len(first)])))
    return pairs


# Scenes, from data/scenes.parquet


@cache
def _scenes(seed: int) -> pd.DataFrame:
    """The test scenes of a seed, read once.  Raises BadParameter, MissingFile."""
    path = project_folder() / "data" / "scenes.parquet"
    if not path.is_file():
        raise MissingFile(f"{path} is not there: clone the repository to read its scenes.")
    scenes = pd.read_parquet(path, filters=[("split", "==", "test"), ("seed", "==", seed)]).sort_values("i")
    if scenes.empty:
        raise BadParameter(f"seed={seed}: the book ships scenes of the seeds 0, 1 and 2; training/scenes draws others.")
    return scenes


def _first_scenes(seed: int, n: int) -> list[Picture]:
    """The first n test scenes of a seed.  Raises as `_scenes`, and TooFewPoints."""
    scenes = _scenes(seed)
    if n > len(scenes):
        raise TooFewPoints(f"{n} scenes are needed, and {len(scenes)} of this seed are in data/scenes.parquet.")
    texts = lambda row: (tuple(row.captions), row.question, (row.answer,), row.kind)
    return [Picture(row.png, row.key, row.label, *texts(row)) for row in scenes[:n].itertuples()]


def _labels(seed: int) -> list[str]:
    """The classes of a seed's scenes, in their own order."""
    return _scenes(seed).drop_duplicates("label_id").sort_values("label_id")["label"].tolist()


def _scene_classes(labels: set[str], n: int, seed: int) -> list[Picture]:
    """`n` scenes of each class: a sample has every class once in as many scenes as there are classes."""
    return [scene for scene in _first_scenes(seed, n * len(_labels(seed))) if scene.label in labels]


def _scene_pairs(seed: int) -> list[tuple[str, str]]:
    """Ten pairs of classes without a colour or shape in common, no class twice."""
    labels, rng = _labels(seed), np.random.default_rng(seed)
    while True:  # about a dozen draws
        chosen = [labels[i] for i in rng.permutation(len(labels))[: 2 * len(PAIRS)]]
        names = list(zip(chosen[::2], chosen[1::2], strict=True))
        if not any(set(one.split()) & set(other.split()) for one, other in names):
            return names


# Data sets, from the hub


def _streamed(name: str, n: int, classes: Sequence[int | str]) -> pd.DataFrame:
    """The chosen rows of a data set, with the columns that `_entry` gives them."""
    import datasets  # slow to import, and not needed for scenes

    source = SOURCES[name]
    try:
        options = {"revision": source["revision"], "split": source["split"], "streaming": True}
        stream = datasets.load_dataset(source["repository"], "default", **options).decode(False)
        rows = _first_of_classes(name, stream, n, classes) if classes else _chosen_rows(name, stream, n)
    except BookError:
        raise
    except Exception as error:  # the many ways in which a data set cannot be read
        advice = "Connect to the network and run again"
        if "gated" in str(error).lower():
            advice = "It is gated. Accept its terms on its page, then run `hf auth login`"
        where = f"The data set {source['repository']} is not stored here and could not be read"
        raise MissingFile(f"{where}: {error} {advice}; or take source='scenes'.") from error
    return pd.DataFrame([_entry(name, where, label, row) for where, label, row in rows])


def _chosen_rows(name: str, stream: Any, n: int) -> list[tuple[str, str, dict]]:
    """The rows that the paper's code chooses, each with its place.  Raises TooFewPoints."""
    source, rows = SOURCES[name], []
    numbers = random.Random(source["seed"]).sample(range(source["n_rows"]), n) if "seed" in source else range(n)
    chosen, first_ids = {*numbers}, source.get("first_ids", [])
    for i, row in enumerate(tqdm(stream.take(max(chosen) + 1), name, max(chosen) + 1, unit="row")):
        if i < len(first_ids) and row[source["columns"]["id"]] != first_ids[i]:
            first_ids = []
            print(f"{name}: its rows are in another order than the paper's, so the chosen ones are not the paper's.")
        if i in chosen:
            rows.append((f"row {i}", "", row))
    if len(rows) < n:
        raise TooFewPoints(f"{source['repository']} has {len(rows)} of the {n} rows: fewer rows than it should have.")
    return rows


def _first_of_classes(name: str, stream: Any, n: int, classes: Sequence[int | str]) -> list[tuple[str, str, dict]]:
    """The first n rows of each class, each with its place and its class.

    classes: numbers, or names; of these some may have fewer rows.  Raises TooFewPoints.
    """
    column = SOURCES[name]["columns"]["label"]
    # A class's first name: "American alligator, Alligator ..." becomes "american alligator".
    names = [label.partition(",")[0].lower() for label in stream.features[column].names]
    missing, rows = {names.index(label) if isinstance(label, str) else label: n for label in classes}, []
    for i, row in enumerate(tqdm(stream, name, SOURCES[name]["n_rows"], unit="row")):
        if missing.get(row[column]):
            missing[row[column]] -= 1
            rows.append((f"row {i}", names[row[column]], row))
            if not any(missing.values()):
                return rows
    least = n if isinstance(classes[0], str) else 1
    if few := sorted(names[label] for label, count in missing.items() if count >= least):
        raise TooFewPoints(f"{name} has too few images of {len(few)} classes: {', '.join(few[:5])}.")
    return rows


def _entry(name: str, where: str, label: str, row: dict[str, Any]) -> dict[str, Any]:
    """What is stored of a row: key, image (bytes), label and texts.  Raises BadImage, BadQuestions."""
    entry: dict[str, Any] = {"id": where, "captions": [], "question": "", "answers": []}
    where = f"{name}, {where}"
    for what, path in SOURCES[name]["columns"].items():
        column, _, item = path.partition(".")
        entry[what] = [answer[item] for answer in row[column]] if item else row[column]
        if isinstance(entry[what], str) and what in ("captions", "answers"):
            entry[what] = [entry[what]]  # a single one; a string must not be taken apart into letters
        if what in ("captions", "question", "answers") and not entry[what]:
            raise BadQuestions(f"{where}: the column '{column}' is empty. Choose another seed.")
    entry["image"] = entry["image"]["bytes"]
    open_image(entry["image"], where)
    return entry | {"key": f"{name}-{entry.pop('id')}-{sha256(entry['image']).hexdigest()[:8]}", "label": label}
