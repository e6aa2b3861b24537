"""Pictures for the gate's pages, all with one face: drawn scenes, or rows of the paper's data sets.

    load("classes", "scenes", n=20, n_classes=16)     # 20 pictures of each class
    load("questions", "vqav2", n=2000, seed=42)       # streamed from the hub once, then kept
    pairs("imagenet", n_per_pair=100)                 # for activation patching

The data sets are described in pictures.yml; which rows were taken is told by `selection`.
"""

from __future__ import annotations

import hashlib
import io
import random
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from . import picture_rows, scene_words, scenes
from .errors import BadParameter, UnknownName, is_whole
from .picture_rows import Source
from .scene_drawing import draw
from .store import document

SETTINGS = yaml.safe_load((Path(__file__).parent / "pictures.yml").read_text())
SOURCES: dict[str, dict[str, Any]] = SETTINGS["sources"]
TASKS = ("classes", "captions", "questions")


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
        return picture_rows.decoded(self.encoded, self.key)


@dataclass(frozen=True)
class Pair:
    """Two classes and as many pictures of each, for patching.

    names: as a person would say them.  Whether they begin with different tokens is for the tokenizer's owner to check.
    """

    names: tuple[str, str]
    pictures: tuple[list[Picture], list[Picture]]


def load(
    task: str,
    source: str,
    n: int,
    seed: int = 0,
    *,
    n_classes: int | None = None,
    within: int | None = None,
    folder: str | None = None,
    split: str | None = None,
    size: int = 64,
) -> list[Picture]:
    """Pictures for a task, the same for the same arguments.

    Args:
        task: "classes", "captions" or "questions".
        source: "scenes", a data set in pictures.yml, or "paper" for the paper's data set of that task.
        n: how many; for "classes" how many of each class.
        seed: of the choice. Rows of a data set are `random.Random(seed).sample(range(rows), n)`, sorted. Images of a
            class are its first in files that are walked in an order drawn by the seed.
        n_classes: of "classes"; None takes all of the scenes (24 in test), 100 of ImageNet (those of `pairs` first).
        within: choose among the first so many rows only; `within=n` takes the first n.
        folder: a local copy of the data set, laid out as on the hub.
        split: another split than the data set's in pictures.yml, or the scenes' "test".
        size: side of a scene in pixels.

    Raises UnknownName, BadParameter, TooFewPoints, BadImage, BadQuestions, MissingFile.
    """
    _check(task, n, seed)
    if source == "scenes":
        if folder is not None or within is not None:
            raise BadParameter("Scenes are drawn: `folder` and `within` are for data sets.")
        return _scenes(task, n, seed, n_classes, "test" if split is None else split, size)
    chosen = find(task, source, folder, split)
    return _pictures(chosen, _rows(chosen, n, seed, n_classes, within)[0])


def find(task: str, source: str, folder: str | None = None, split: str | None = None) -> Source:
    """The data set that a source's name means for a task.  Raises UnknownName."""
    if task not in TASKS:
        raise UnknownName("task", task, TASKS)
    name = SETTINGS["paper"][task] if source == "paper" else source
    known = [known for known, settings in SOURCES.items() if settings["task"] == task]
    if name not in known:
        raise UnknownName(f"source of {task}", source, ["scenes", "paper", *known])
    settings = SOURCES[name] | ({"split": split} if split else {})
    return Source(name=name, folder=folder, **settings)


def selection(
    task: str,
    source: str,
    n: int,
    seed: int = 0,
    *,
    n_classes: int | None = None,
    within: int | None = None,
    folder: str | None = None,
    split: str | None = None,
) -> dict[str, Any]:
    """Which rows `load` takes with the same arguments: repository, commit, config, split, and (file, row) of each.

    `load` leaves the same beside the pictures.  Not for scenes, which their seed tells.  Raises as `load`.
    """
    _check(task, n, seed)
    return _rows(find(task, source, folder, split), n, seed, n_classes, within)[1]


def expected_reading(task: str, source: str, n: int, n_classes: int = 100) -> dict[str, float]:
    """About how much `load` reads of a data set: {"rows", "gigabytes"}.

    For classes, the rows after which the last of `n_classes` equal classes has its n images, if the rows are shuffled
    (half of the time it is less); else nearly all of them, since a random choice is spread over all files.
    """
    chosen = find(task, source)
    rows = float(chosen.rows)
    if task == "classes":
        slowest = n + NormalDist().inv_cdf(0.5 ** (1 / n_classes)) * n**0.5
        rows = min(rows, 1000 * slowest)
    return {"rows": rows, "gigabytes": chosen.gigabytes * rows / chosen.rows}


def pairs(
    source: str, n_per_pair: int, seed: int = 0, *, folder: str | None = None, split: str | None = None, size: int = 64
) -> list[Pair]:
    """Ten pairs of classes with `n_per_pair` pictures of each class.

    "imagenet" (or "paper"): the paper's pairs.  "scenes": twenty classes drawn by the seed, paired so that colour and
    shape differ.  Raises as `load`.
    """
    _check("classes", n_per_pair, seed)
    if source == "scenes":
        split = "test" if split is None else split
        names = _scene_pairs(split, seed)
        wanted = {name for pair in names for name in pair}
        shown = _scene_classes(wanted, n_per_pair, seed, split, size)
    else:
        names = [tuple(pair) for pair in SETTINGS["pairs"]]
        chosen = find("classes", source, folder, split)
        shown = _pictures(chosen, _rows(chosen, n_per_pair, seed, 2 * len(names), None)[0])
    by_name = {name: [picture for picture in shown if picture.label == name] for pair in names for name in pair}
    return [Pair((one, other), (by_name[one], by_name[other])) for one, other in names]


def _check(task: str, n: int, seed: int) -> None:
    """Raise UnknownName or BadParameter for what no source can give."""
    if task not in TASKS:
        raise UnknownName("task", task, TASKS)
    if not is_whole(n, 1) or not is_whole(seed):
        raise BadParameter(f"n={n!r}, seed={seed!r}: need whole numbers, n >= 1 and seed >= 0.")


def _rows(
    source: Source, n: int, seed: int, n_classes: int | None, within: int | None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The chosen rows of a data set, and the stored JSON that tells which they are."""
    files = source.description["files"]
    request = {"source": source.name, "n": n, "seed": seed}
    if source.task == "classes":
        if within is not None:
            raise BadParameter("`within` is for captions and questions; classes are filled file by file.")
        classes = _classes(source, n_classes, seed)
        request["classes"] = [plain_name(source.description["classes"][number]) for number in classes]
        order = random.Random(seed).sample(range(len(files)), len(files))
        frame = picture_rows.by_class(source, dict.fromkeys(classes, n), order)
    else:
        if within is not None and not is_whole(within):
            raise BadParameter(f"within={within!r}: need a whole number of rows, or None.")
        rows = sum(files) if within is None else min(sum(files), within)
        if n > rows:
            raise BadParameter(f"n={n}: {source.name} has {sum(files)} rows, and {rows} may be chosen.")
        request["within"] = rows
        frame = picture_rows.numbered(source, sorted(random.Random(seed).sample(range(rows), n)))
    taken = {"rows": frame[["file", "row"]].astype(int).to_numpy().tolist()}
    request |= source.identity
    return frame, document("picture-selections", request, lambda: request | taken, ())


def plain_name(name: str) -> str:
    """A class's first name in lower case: "American alligator, Alligator ..." becomes "american alligator"."""
    return name.partition(",")[0].replace("_", " ").strip().lower()


def _classes(source: Source, n_classes: int | None, seed: int) -> list[int]:
    """Numbers of the animal classes to show: the paper's pairs first, then others drawn by the seed."""
    names = [plain_name(name) for name in source.description["classes"][: SETTINGS["animals"]]]
    paired = [name for pair in SETTINGS["pairs"] for name in pair]
    for name in paired:
        if names.count(name) != 1:
            raise UnknownName(f"class of {source.name}", name, names)
    n_classes = 100 if n_classes is None else n_classes
    if not is_whole(n_classes, 2) or n_classes > len(names):
        raise BadParameter(f"n_classes={n_classes!r}: {source.name} has {len(names)} classes of animals; at least 2.")
    rest = [number for number, name in enumerate(names) if name not in paired and names.count(name) == 1]
    first = [names.index(name) for name in paired]
    return (first + random.Random(seed).sample(rest, len(rest)))[:n_classes]


def _key(name: str, content: bytes) -> str:
    """A picture's name with a hash of its content, for what is computed from pictures is stored by their keys."""
    return f"{name}-{hashlib.sha256(content).hexdigest()[:8]}"


def _pictures(source: Source, frame: pd.DataFrame) -> list[Picture]:
    """The rows of a data set as pictures."""
    names = source.description["classes"]
    return [
        Picture(
            row.image,
            _key(f"{source.name}-{row.id or f'{row.file}-{row.row}'}", row.image),
            plain_name(names[row.label]) if names else None,
            tuple(row.captions),
            row.question or None,
            tuple(row.answers),
        )
        for row in frame.itertuples()
    ]


def _scenes(task: str, n: int, seed: int, n_classes: int | None, split: str, size: int) -> list[Picture]:
    """Drawn scenes for a task."""
    if task == "classes":
        known = scenes.labels(split)
        n_classes = len(known) if n_classes is None else n_classes
        if not is_whole(n_classes, 2) or n_classes > len(known):
            raise BadParameter(f"n_classes={n_classes!r}: the {split} scenes have 2 to {len(known)} classes.")
        drawn = np.random.default_rng(seed).permutation(len(known))[:n_classes]
        return _scene_classes({known[i] for i in drawn}, n, seed, split, size)
    drawn = scenes.sample(split, n, seed)
    asked = scene_words.ask(drawn, seed) if task == "questions" else [None] * n
    return [
        _scene(scene, f"{split}-{seed}-{i}", q, size) for i, (scene, q) in enumerate(zip(drawn, asked, strict=True))
    ]


def _scene_classes(wanted: set[str], n: int, seed: int, split: str, size: int) -> list[Picture]:
    """`n` scenes of each class: a sample has every class once in as many scenes as there are classes."""
    drawn = enumerate(scenes.sample(split, n * len(scenes.labels(split)), seed))
    return [_scene(scene, f"{split}-{seed}-{i}", None, size) for i, scene in drawn if scenes.label(scene) in wanted]


def _scene(scene: scenes.Scene, key: str, question: scene_words.Question | None, size: int) -> Picture:
    """A drawn scene as a picture."""
    encoded = io.BytesIO()
    image = draw(scene, size)
    image.save(encoded, "PNG")
    asked = (question.text, (question.answer,), question.kind) if question else ()
    told = tuple(scene_words.captions(scene))
    return Picture(encoded.getvalue(), _key(f"scene-{key}", image.tobytes()), scenes.label(scene), told, *asked)


def _scene_pairs(split: str, seed: int) -> list[tuple[str, str]]:
    """Ten pairs of classes without a colour or shape in common, no class twice."""
    known, rng = scenes.labels(split), np.random.default_rng(seed)
    while True:  # about a dozen draws
        drawn = [known[i] for i in rng.permutation(len(known))[: 2 * len(SETTINGS["pairs"])]]
        found = list(zip(drawn[::2], drawn[1::2], strict=True))
        if not any(set(one.split()) & set(other.split()) for one, other in found):
            return found
