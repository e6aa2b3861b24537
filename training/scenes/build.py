"""Write what the book's pages need of the scenes.

`data/scenes.parquet`, `data/scene-twins.parquet` and `data/scene-combinations.parquet`: their cards say what they hold.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pandas as pd
from PIL import Image

from training.common import write_data

from . import scene, words
from .drawing import draw
from .scene import Place, Scene, Thing

N_TEST = {0: 2400, 1: 1200, 2: 1200}  # by seed; of 24 classes, so 100 or 50 of each
N_TRAIN = 4000  # questions about training scenes, that a guesser reads
N_ASKED = 100  # scenes whose questions are all kept
TILE = 48  # pixels of a single object


def png(picture: Image.Image) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def all_questions(described: Scene) -> list[dict[str, str]]:
    """Every question about a scene, as plain data."""
    return [vars(question) for question in words.questions(described)]


def scene_rows(split: str, n: int, seed: int) -> pd.DataFrame:
    """The rows of `data/scenes.parquet` of one split and seed."""
    scenes, numbers = scene.sample(split, n, seed), {name: i for i, name in enumerate(scene.labels(split))}
    rows = []
    for i, (described, question) in enumerate(zip(scenes, words.ask(scenes, seed), strict=True)):
        label = scene.label(described)
        row = {"split": split, "seed": seed, "i": i, "label_id": numbers[label], "label": label}
        row |= {"kind": question.kind, "question": question.text, "answer": question.answer}
        if split == "test":
            picture = draw(described)
            key = f"scene-{split}-{seed}-{i}-{hashlib.sha256(picture.tobytes()).hexdigest()[:8]}"
            row |= {"captions": words.captions(described), "key": key, "png": png(picture)}
            row |= {"questions": all_questions(described) if i < N_ASKED else None}
        rows.append(row)
    columns = ["split", "seed", "i", "label_id", "label", "captions", "kind", "question", "answer", "questions", "key"]
    return pd.DataFrame(rows).reindex(columns=[*columns, "png"])


def has_two_different_objects(described: Scene) -> bool:
    """Whether a scene has two objects that differ in colour and in shape: it allows most questions."""
    one, other = described.things[0], described.things[-1]
    single = [thing.count for thing in described.things] == [1, 1]
    return single and one.colour != other.colour and one.shape != other.shape


def twin_rows(seed: int) -> list[dict[str, Any]]:
    """A test scene and its twins: attribute ("" for the scene itself), change, caption, questions, png."""
    scenes = scene.sample("test", N_ASKED, seed)
    i, original = next((i, described) for i, described in enumerate(scenes) if has_two_different_objects(described))
    rows = []
    for attribute, variant in {"": original, **scene.twins(original)}.items():
        old, new = (attribute and value(described, attribute) for described in (original, variant))
        row = {"seed": seed, "i": i, "attribute": attribute, "change": f"{old} → {new}" if attribute else ""}
        rows.append(
            row | {"caption": words.caption(variant), "questions": all_questions(variant), "png": png(draw(variant))}
        )
    return rows


def value(described: Scene, attribute: str) -> str:
    """An attribute of the last thing of a scene, or its background, in words: "red star", "two", "top left"."""
    thing = described.things[-1]
    if attribute == "background":
        return described.background
    if attribute == "position":
        return f"{scene.ROWS[thing.places[0].row]} {scene.COLUMNS[thing.places[0].column]}"
    values = {"count": words.NUMBERS[thing.count], "texture": thing.texture, "size": thing.size}
    return values.get(attribute, f"{thing.colour} {thing.shape}")


def combination_rows() -> list[dict[str, Any]]:
    """Each colour, shape and texture, the split that owns them, and a picture of a large such object on white."""
    rows = []
    for split in scene.SPLITS:
        for colour, shape, texture in scene.combinations(split):
            alone = Scene((Thing(shape, colour, texture, "large", (Place(1, 1),)),), "white")
            picture = draw(alone, 3 * TILE).crop((TILE, TILE, 2 * TILE, 2 * TILE))
            rows.append({"colour": colour, "shape": shape, "texture": texture, "split": split, "png": png(picture)})
    return rows


def build() -> None:
    """Write the three files, each with its card."""
    parts = [scene_rows("test", n, seed) for seed, n in N_TEST.items()]
    parts += [scene_rows("train", N_TRAIN, seed) for seed in N_TEST]
    write_data("scenes.parquet", pd.concat(parts, ignore_index=True))
    write_data("scene-twins.parquet", pd.DataFrame([row for seed in N_TEST for row in twin_rows(seed)]))
    write_data("scene-combinations.parquet", pd.DataFrame(combination_rows()))
