"""Pictures of the scenes: a gallery, a scene among its twins, who learns from which combination, answers by kind.

    shown = sample("test", 12, seed=0)
    figures.show(lambda: scene_figures.gallery(shown), alt=scene_figures.gallery_summary(shown), caption=...)

Every scene is shown as the models get it, with as many pixels.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from . import scenes
from .errors import BadParameter
from .figures import interval
from .scene_drawing import draw
from .scene_words import NUMBERS, Question, caption, questions
from .scenes import COLOURS, COLUMNS, ROWS, SHAPES, SPLITS, TEXTURES, TWINS, Place, Scene, Thing

COLUMN = 3.0  # inches that a scene of the gallery has for itself and its text
SIDE = 2.0  # inches a picture has
LINE = 0.165  # inches of a line of text
CHARACTERS = 44  # in a line of the gallery's text
TILE = 48  # pixels of a single object in the picture of the splits
ARROW = "→\N{NO-BREAK SPACE}"  # stays on the line of the answer behind it
# How a combination is framed, by split; on white, in both themes, so in one dark ink.
INK = "#1b1f24"
FRAMES = {"train": {}, "validation": {"ls": (0, (1.5, 1.5)), "lw": 1.5}, "test": {"ls": "-", "lw": 2.4}}
# Paul Tol's light palette, in turn: neighbours differ, and the word in a bar says which answer it is.
BARS = ("#77AADD", "#EEDD88", "#99DDFF", "#EE8866", "#BBCC33", "#FFAABB", "#44BB99", "#DDDDDD")


def show_picture(ax: Axes, scene: Scene) -> None:
    """A scene as the models get it; pixels stay squares however large the page draws it."""
    ax.imshow(draw(scene), interpolation="none")
    ax.set_anchor("NW")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=plt.rcParams["grid.color"])  # a white background ends somewhere


def gallery(shown: Sequence[Scene], columns: int = 3) -> Figure:
    """The scenes, numbered, each with its caption and two questions below it."""
    texts = [
        "\n".join([*wrapped(f"{number}. {caption(scene)}"), *(line for q in pair for line in wrapped(answered(q)))])
        for number, (scene, pair) in enumerate(zip(shown, two_questions(shown), strict=True), 1)
    ]
    rows = [texts[start : start + columns] for start in range(0, len(texts), columns)]
    heights = [part for row in rows for part in (SIDE, LINE * (1.5 + max(text.count("\n") + 1 for text in row)))]
    figure = plt.figure(figsize=(COLUMN * columns, sum(heights)))
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights, hspace=0, left=0, right=1, top=1, bottom=0)
    for i, (scene, text) in enumerate(zip(shown, texts, strict=True)):
        row, column = divmod(i, columns)
        show_picture(figure.add_subplot(grid[2 * row, column]), scene)
        below = figure.add_subplot(grid[2 * row + 1, column])
        below.axis("off")
        below.text(0, 1 - 0.4 * LINE / heights[2 * row + 1], text, va="top", fontsize=9, linespacing=1.25)
    return figure


def wrapped(text: str) -> list[str]:
    """Lines of a text, the later ones indented."""
    return textwrap.wrap(text, CHARACTERS, subsequent_indent="    ")


def answered(question: Question) -> str:
    """A question with its answer."""
    return f"{question.text} {ARROW}{question.answer}"


def two_questions(shown: Sequence[Scene]) -> list[list[Question]]:
    """Two questions of different kinds for each scene, the kinds and their answers as far as can be in turn."""
    used: Counter = Counter()
    pairs = []
    for scene in shown:
        possible: dict[str, list[Question]] = {}
        for question in questions(scene):
            possible.setdefault(question.kind, []).append(question)
        kinds = sorted(possible, key=lambda kind: used[kind])[:2]
        pair = [min(possible[kind], key=lambda q: used[q.kind, q.answer]) for kind in kinds]
        used.update(kinds)
        used.update((question.kind, question.answer) for question in pair)
        pairs.append(pair)
    return pairs


def gallery_summary(shown: Sequence[Scene]) -> str:
    """Everything the gallery says, for those who cannot see it."""
    told = [
        f"{number}: {caption(scene)} {' '.join(f'{q.text} {q.answer}.' for q in pair)}"
        for number, (scene, pair) in enumerate(zip(shown, two_questions(shown), strict=True), 1)
    ]
    return f"{len(shown)} scenes, each with its caption and two questions with their answers. {' '.join(told)}"


def telling(shown: Sequence[Scene]) -> Scene:
    """The first scene of two single objects that differ in colour and in shape: everything can be asked about both.

    Raises BadParameter if there is none.
    """
    for scene in shown:
        if len(scene.things) == 2 and all(thing.count == 1 for thing in scene.things):
            one, other = scene.things
            if one.colour != other.colour and one.shape != other.shape:
                return scene
    raise BadParameter(
        f"None of {len(shown)} scenes has two single objects that differ in colour and shape: draw more."
    )


def twins_of(scene: Scene, seed: int = 0) -> dict[str, Scene]:
    """A twin for each attribute of TWINS; each depends on the scene, the attribute and the seed alone."""
    return {name: scenes.twin(scene, name, np.random.default_rng([seed, i])) for i, name in enumerate(TWINS)}


def twins(scene: Scene, seed: int = 0) -> Figure:
    """A scene and its twins, each with what was changed."""
    figure, axes = plt.subplots(2, 4, figsize=(9.0, 5.6), layout="constrained")
    show_picture(axes[0, 0], scene)
    axes[0, 0].set_title("the scene\n\n", fontsize=10, loc="left")
    for ax, (attribute, twin) in zip(axes.flat[1:], twins_of(scene, seed).items(), strict=True):
        show_picture(ax, twin)
        lines = [attribute, *textwrap.wrap(change(scene, twin, attribute), 28), ""]
        ax.set_title("\n".join(lines[:3]), fontsize=10, loc="left")
    return figure


def change(scene: Scene, twin: Scene, attribute: str) -> str:
    """What differs between a scene and its twin: "red star: plain → dotted"."""
    if attribute == "background":
        return f"{scene.background} → {twin.background}"
    before, after = next(pair for pair in zip(scene.things, twin.things, strict=True) if pair[0] != pair[1])
    name = f"{before.colour} {before.shape}"
    match attribute:
        case "colour" | "shape":
            return f"{name} → {after.colour} {after.shape}"
        case "count":
            return f"{name}: {NUMBERS[before.count]} → {NUMBERS[after.count]}"
        case "position":
            return f"{name}: {cell(gone(before, after))} → {cell(gone(after, before))}"
    return f"{name}: {getattr(before, attribute)} → {getattr(after, attribute)}"


def gone(thing: Thing, other: Thing) -> Place:
    """The place that a thing has and another has not."""
    return next(place for place in thing.places if place not in other.places)


def cell(place: Place) -> str:
    """The name of a place's cell in the grid."""
    return f"{ROWS[place.row]} {COLUMNS[place.column]}"


def twins_summary(scene: Scene, seed: int = 0) -> str:
    """The scene and what each twin changes, in two sentences."""
    told = [f"{name} ({change(scene, twin, name)})" for name, twin in twins_of(scene, seed).items()]
    itself = caption(scene).removesuffix(".")
    return f"A scene, {itself}, and {len(told)} twins. Each changes one thing: {', '.join(told)}."


def twins_table(scene: Scene, seed: int = 0) -> HTML:
    """For each twin how many questions can be asked of both pictures, and which of them change their answer."""
    own = {question.text: question.answer for question in questions(scene)}
    rows = []
    for attribute, twin in twins_of(scene, seed).items():
        theirs = {question.text: question.answer for question in questions(twin)}
        both = [text for text in own if text in theirs]
        changed = [f"{text} {own[text]} {ARROW}{theirs[text]}" for text in both if own[text] != theirs[text]]
        columns = {"changed": attribute, "asked of both": len(both), "answered otherwise": len(changed)}
        rows.append(columns | {"which": "<br>".join(changed)})
    return HTML(pd.DataFrame(rows).to_html(classes="pg-table", border=0, index=False, escape=False))


def splits() -> Figure:
    """Every combination of colour, shape and texture as an object, framed by the split that owns it."""
    figure, axes = plt.subplots(2, 2, figsize=(9.0, 7.4), layout="constrained")
    for ax, texture in zip(axes.flat, TEXTURES, strict=True):
        tiles = [[tile(colour, shape, texture) for colour in COLOURS] for shape in SHAPES]
        ax.imshow(
            np.concatenate([np.concatenate(row, axis=1) for row in tiles]), extent=(0, 8, 6, 0), interpolation="none"
        )
        for row, shape in enumerate(SHAPES):
            for column, colour in enumerate(COLOURS):
                style = FRAMES[scenes.split_of(colour, shape, texture)]
                if style:
                    ax.add_patch(Rectangle((column + 0.07, row + 0.07), 0.86, 0.86, fill=False, ec=INK, **style))
        ax.set_title(texture)
        ax.set_xticks(np.arange(len(COLOURS)) + 0.5, COLOURS, rotation=45, fontsize=9)
        ax.set_yticks(np.arange(len(SHAPES)) + 0.5, SHAPES, fontsize=9)
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
    handles = [
        Patch(fc="white", ec=INK if style else "white", **style, label=name if style else f"{name} (no frame)")
        for name, style in FRAMES.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, handleheight=1.6, handlelength=1.8)
    return figure


def tile(colour: str, shape: str, texture: str) -> Image.Image:
    """One large object on white: the middle cell of a picture that has nothing else, (TILE, TILE, 3) as an image."""
    thing = Thing(shape, colour, texture, "large", (Place(1, 1),))
    return draw(Scene((thing,), "white"), 3 * TILE).crop((TILE, TILE, 2 * TILE, 2 * TILE))


def splits_summary() -> str:
    """How many combinations and classes each split has, and what the splits share, in two sentences."""
    counts = [
        f"{name} owns {len(scenes.combinations(name))} with {len(scenes.labels(name))} pairs of colour and shape"
        for name in SPLITS
    ]
    whole = len(COLOURS) * len(SHAPES) * len(TEXTURES)
    return (
        f"Of the {whole} combinations of {len(COLOURS)} colours, {len(SHAPES)} shapes and {len(TEXTURES)} textures, "
        f"{', '.join(counts)}. No combination is in two splits; every colour, shape and texture is in each."
    )


def balance(table: pd.DataFrame) -> Figure:
    """How often each answer is right, a bar for each kind of question.  table: as `scene_table.answers` gives it."""
    shares = table[table["metric"] == "share"]
    kinds = list(dict.fromkeys(shares["kind"]))
    figure, ax = plt.subplots(figsize=(9.0, 0.7 + 0.36 * len(kinds)), layout="constrained")
    for y, kind in enumerate(kinds):
        left = 0.0
        for i, each in enumerate(shares[shares["kind"] == kind].itertuples()):
            ax.barh(y, each.value, left=left, height=0.78, color=BARS[i], ec="white", lw=0.8)
            ax.text(left + each.value / 2, y, each.setting, ha="center", va="center", fontsize=9, color=INK)
            left += each.value
    ax.set_yticks(range(len(kinds)), kinds)
    ax.set(xlim=(0, 1), xlabel="share of the kind's questions with this answer")
    ax.invert_yaxis()
    ax.grid(False)
    return figure


def guess_table(table: pd.DataFrame, asked: Sequence[Question]) -> HTML:
    """By kind: an example, the number of answers and of questions, and what the guessers get, with intervals.

    table: as `scene_table.answers` gives it.  asked: the questions it counts.
    """
    guesses = table[table["metric"] == "guess"].assign(text=lambda t: t.apply(interval, axis=1))
    examples = {question.kind: answered(question) for question in reversed(asked)}
    n_answers = table[table["metric"] == "share"].groupby("kind").size()
    rows = []
    for kind, part in guesses.groupby("kind", sort=False):
        knows = part.set_index("setting")["text"]
        rows.append({
            "kind": kind, "for example": examples.get(kind, ""), "answers": n_answers.get(kind, ""),
            "questions": part["n"].iloc[0], "knows the kind": knows["kind"], "knows the question": knows["question"],
        })  # fmt: skip
    return HTML(pd.DataFrame(rows).to_html(classes="pg-table", border=0, index=False))


def balance_summary(table: pd.DataFrame) -> str:
    """The commonest answer of each kind and its share, and what both guessers get over all, in two sentences."""
    tops = table[table["metric"] == "share"].drop_duplicates("kind")
    told = [f"{top.kind} {top.setting} {top.value:.2f}" for top in tops.itertuples()]
    every = table[table["kind"] == "all"].set_index("setting").apply(interval, axis=1)
    n = int(table["n"].max())
    return (
        f"Commonest answer to each kind of question, {n:,} questions in all: {', '.join(told)}. Without a picture, "
        f"who knows the kind gets {every['kind']} right, who knows the question {every['question']}."
    )
