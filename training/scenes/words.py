"""Texts about a scene: captions, questions with short answers, and the words they are made of.

    caption(scene)      # "a large striped red circle left of a small plain blue square on a white background."
    captions(scene)     # the same in five ways, as references
    questions(scene)    # questions that have exactly one answer
    ask(scenes, seed)   # one question for each scene, kinds and answers balanced

All text is lower case, each word is in `vocabulary`, and no text speaks of "the circle" where there are two.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from .scene import BACKGROUNDS, COLOURS, COLUMNS, MOST_OBJECTS, ROWS, SHAPES, SIZES, TEXTURES, Scene, Thing

CLASS_QUESTION = "what is the largest thing?"  # its answer: the label of the scene
REQUEST = "describe it."  # its answer: a caption
NUMBERS = ("zero", "one", "two", "three", "four")[: MOST_OBJECTS + 1]
KINDS = ("colour", "shape", "size", "texture", "count", "column", "row", "relation", "presence", "background")
GLUE = "a an and at background colour column how in is are many of on picture row seen from shape shows size"
GLUE += " texture the there thing what where which with yes no above below largest describe it"


@dataclass(frozen=True)
class Question:
    """A question about a scene, and its only answer: one word."""

    kind: str
    text: str
    answer: str


def plural(noun: str) -> str:
    """The plural of a shape."""
    return noun + ("es" if noun.endswith("s") else "s")


def article(word: str) -> str:
    """ "a" or "an", as the word's first letter asks."""
    return "an" if word[0] in "aeiou" else "a"


def phrase(thing: Thing) -> str:
    """A thing with all its attributes but its places: "two small plain blue squares"."""
    number = "a" if thing.count == 1 else NUMBERS[thing.count]
    noun = thing.shape if thing.count == 1 else plural(thing.shape)
    return f"{number} {thing.size} {thing.texture} {thing.colour} {noun}"


def relation(first: Thing, second: Thing) -> str:
    """Where the first of two single objects is from the second; sideways if their columns differ."""
    one, other = first.places[0], second.places[0]
    if one.column != other.column:
        return "left of" if one.column < other.column else "right of"
    return "above" if one.row < other.row else "below"


def position(thing: Thing) -> str:
    """Where a single object is: "at the top left", "in the center"."""
    row, column = ROWS[thing.places[0].row], COLUMNS[thing.places[0].column]
    return "in the center" if (row, column) == ("middle", "center") else f"at the {row} {column}"


def _content(scene: Scene, backwards: bool = False) -> str:
    """The things of a scene, in its order or backwards, with a position or relation where single objects have one."""
    things = scene.things[::-1] if backwards else scene.things
    single = all(thing.count == 1 for thing in things)
    if single and len(things) == 1:
        return f"{phrase(things[0])} {position(things[0])}"
    if single and len(things) == 2:
        return f"{phrase(things[0])} {relation(*things)} {phrase(things[1])}"
    *first, last = [phrase(thing) for thing in things]
    return ", ".join(first) + " and " + last if first else last


def caption(scene: Scene) -> str:
    """One sentence with every thing, its attributes and the background."""
    return captions(scene)[0]


def captions(scene: Scene) -> list[str]:
    """Five different sentences that say the same, the first of them `caption`."""
    content, backwards = _content(scene), _content(scene, backwards=True)
    ground = f"{scene.background} background"
    be = lambda thing: "is" if thing.count == 1 else "are"
    return [
        f"{content} on a {ground}.",
        f"there {be(scene.things[0])} {content} on a {ground}.",
        f"on a {ground} there {be(scene.things[-1])} {backwards}.",
        f"the picture shows {backwards} on a {ground}.",
        f"{content} in a picture with a {ground}.",
    ]


def questions(scene: Scene) -> list[Question]:
    """Questions of every kind that have exactly one answer in this scene, as often answered by "yes" as by "no".

    A thing is called by its shape alone, or by its colour alone where the shape is asked.  A name of two attributes
    would give the third away to a reader of the question, since a split holds only some of the combinations.
    """
    possible = [Question("background", "what colour is the background?", scene.background)]
    for thing in scene.things:
        others = [other for other in scene.things if other != thing]
        if all(other.shape != thing.shape for other in others):
            possible += _of_shape(thing)
        if thing.count == 1 and all(other.colour != thing.colour for other in others):
            possible.append(Question("shape", f"what shape is the {thing.colour} thing?", thing.shape))
    # Which absent things are asked for is drawn, but always alike for equal scenes.
    rng = np.random.default_rng(zlib.crc32(repr(scene).encode()))
    return possible + _relations(scene) + _counts(scene, rng) + _presences(scene, rng)


def _of_shape(thing: Thing) -> list[Question]:
    """Questions about the only thing of its shape."""
    be, noun = ("is", thing.shape) if thing.count == 1 else ("are", plural(thing.shape))
    possible = [
        Question("colour", f"what colour {be} the {noun}?", thing.colour),
        Question("size", f"what size {be} the {noun}?", thing.size),
        Question("texture", f"what texture {be} the {noun}?", thing.texture),
    ]
    if thing.count == 1:
        place = thing.places[0]
        possible.append(Question("column", f"in which column is the {noun}?", COLUMNS[place.column]))
        possible.append(Question("row", f"in which row is the {noun}?", ROWS[place.row]))
    return possible


def _relations(scene: Scene) -> list[Question]:
    """Where one object is from another, for pairs in one row or in one column."""
    shapes = Counter(shape for thing in scene.things for shape in [thing.shape] * thing.count)
    single = [thing for thing in scene.things if shapes[thing.shape] == 1]
    possible = []
    for first, second in permutations(single, 2):
        one, other = first.places[0], second.places[0]
        if one.row == other.row or one.column == other.column:
            text = f"where is the {first.shape} seen from the {second.shape}?"
            possible.append(Question("relation", text, relation(first, second).removesuffix(" of")))
    return possible


def _counts(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """How many objects of each shape there are, and of one that is missing."""
    shapes = Counter(shape for thing in scene.things for shape in [thing.shape] * thing.count)
    missing = [shape for shape in SHAPES if shape not in shapes]
    shapes[missing[rng.integers(len(missing))]] = 0
    return [Question("count", f"how many {plural(s)} are there?", NUMBERS[n]) for s, n in shapes.items()]


def _presences(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """For each thing one question with "yes", and one with "no" that has another colour or another shape."""
    there = {(thing.colour, thing.shape) for thing in scene.things}
    denied: set[tuple[str, str]] = set()
    text = "is there {} {} {}?".format
    possible = []
    for colour, shape in sorted(there):
        wrong = [(c, shape) for c in COLOURS] if rng.integers(2) else [(colour, s) for s in SHAPES]
        wrong = [kind for kind in wrong if kind not in there | denied]
        absent = wrong[rng.integers(len(wrong))]
        denied.add(absent)
        possible.append(Question("presence", text(article(colour), colour, shape), "yes"))
        possible.append(Question("presence", text(article(absent[0]), *absent), "no"))
    return possible


def ask(scenes: list[Scene], seed: int) -> list[Question]:
    """One question for each scene: the kinds in turn as far as scenes allow, then the answer used least of that kind.

    So no kind has an answer that a guesser could count on.  Question i depends on the scenes before it.
    """
    rng = np.random.default_rng(seed)
    kinds, answers = Counter({kind: 0 for kind in KINDS}), Counter()
    questions_asked = []
    for scene in scenes:
        possible = questions(scene)
        possible = [possible[i] for i in rng.permutation(len(possible))]
        rarest = min(possible, key=lambda q: (kinds[q.kind], answers[q.kind, q.answer]))
        kinds[rarest.kind] += 1
        answers[rarest.kind, rarest.answer] += 1
        questions_asked.append(rarest)
    return questions_asked


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text, in order."""
    return re.findall(r"[a-z]+|[.,?]", text)


def vocabulary() -> list[str]:
    """All words and punctuation marks that captions, questions and answers use, sorted."""
    names = [*COLOURS, *BACKGROUNDS, *SHAPES, *map(plural, SHAPES), *TEXTURES, *SIZES, *COLUMNS, *ROWS, *NUMBERS]
    return sorted({*names, *GLUE.split(), ".", ",", "?"})
