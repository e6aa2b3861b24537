"""Procedural scenes: coloured shapes on a plain background, described by a seed, without any file.

    scene = sample("test", n=1, seed=0)[0]      # a frozen description
    other = twins(scene)["colour"]              # one attribute changed, everything else kept

A scene is drawn by `drawing`; what is said and asked about it is in `words`.  The three splits share every attribute
value and no combination of colour, shape and texture, so that a test picture shows things never seen together in
training.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

# Chosen by a search for the largest smallest distance between any two of colours and backgrounds, in CIELAB, as seen
# with normal vision and without red, green or blue cones (Machado et al. 2009); a test checks the distances.
COLOURS = {
    "red": (184, 49, 15),
    "orange": (233, 130, 20),
    "yellow": (244, 225, 30),
    "green": (27, 120, 104),
    "cyan": (70, 208, 255),
    "blue": (46, 52, 210),
    "pink": (220, 120, 195),
    "black": (20, 22, 35),
}
BACKGROUNDS = {"white": (255, 255, 255), "grey": (193, 193, 193), "tan": (180, 150, 103)}
# The order matters to `split_of`: shapes that look alike are four apart, so that no split tells them apart by colour.
SHAPES = ("circle", "cross", "triangle", "diamond", "square", "star")
TEXTURES = ("plain", "striped", "dotted", "hollow")
SIZES = {"small": 0.30, "large": 0.44}  # half the width, as a part of a cell of the grid
COLUMNS = ("left", "center", "right")
ROWS = ("top", "middle", "bottom")
SPLITS = ("train", "validation", "test")
VALUES = {"colour": tuple(COLOURS), "shape": SHAPES, "texture": TEXTURES, "size": tuple(SIZES)}
MOST_THINGS, MOST_OBJECTS = 3, 4
MOST_SHIFT = 5  # hundredths of a cell; with the largest size it keeps an object inside its cell

# How many objects each thing of a scene has; a pattern that is listed twice is drawn twice as often.
PATTERNS = {
    1: ((1,), (1,), (2,), (3,)),
    2: ((1, 1), (1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1)),
    3: ((1, 1, 1), (1, 1, 1), (2, 1, 1), (1, 2, 1)),
}


@dataclass(frozen=True, order=True)
class Place:
    """Where an object is: row and column of a 3 x 3 grid (0 to 2), and a shift in hundredths of a cell."""

    row: int
    column: int
    down: int = 0
    right: int = 0


@dataclass(frozen=True)
class Thing:
    """One kind of object, at one place or at several."""

    shape: str
    colour: str
    texture: str
    size: str
    places: tuple[Place, ...]

    @property
    def count(self) -> int:
        """How many objects of this kind there are."""
        return len(self.places)


@dataclass(frozen=True)
class Scene:
    """A picture's description.  The first thing is the main one; the only large one in a sampled scene of several."""

    things: tuple[Thing, ...]
    background: str


def split_of(colour: str, shape: str, texture: str) -> str:
    """The split that owns a combination: three quarters train, an eighth each validation and test.

    A Latin pattern: for every colour and shape one texture is held out, for validation or for test, so that training
    shows every pair of values.  Each value of colour, shape and texture is equally frequent in each split.
    """
    c, s, t = list(COLOURS).index(colour), SHAPES.index(shape), TEXTURES.index(texture)
    if (c + s + t) % 4:
        return "train"
    return "test" if (c // 4 + s) % 2 else "validation"


def combinations(split: str) -> list[tuple[str, str, str]]:
    """All (colour, shape, texture) of a split."""
    return [kind for kind in itertools.product(COLOURS, SHAPES, TEXTURES) if split_of(*kind) == split]


def label(scene: Scene) -> str:
    """Class of a scene: colour and shape of its main thing."""
    return f"{scene.things[0].colour} {scene.things[0].shape}"


def labels(split: str) -> list[str]:
    """The classes of a split's scenes: 48 in training, 24 in validation, the other 24 in test."""
    return list(dict.fromkeys(f"{colour} {shape}" for colour, shape, _ in combinations(split)))


def sample(split: str, n: int, seed: int, most_things: int = MOST_THINGS) -> list[Scene]:
    """`n` scenes of a split; scene i depends on split, seed and i alone, so a longer sample begins with a shorter.

    Every class of the split occurs once in each run of as many scenes.  most_things: scenes with more are left out.
    """
    kinds = combinations(split)
    classes = list(dict.fromkeys(kind[:2] for kind in kinds))
    scenes: list[Scene] = []
    for i in itertools.count():
        cycle, step = divmod(i, len(classes))
        if step == 0:
            order = _generator(split, seed, 0, cycle).permutation(len(classes))
        scene = _scene(kinds, classes[order[step]], _generator(split, seed, 1, i))
        scenes += [scene] * (len(scene.things) <= most_things)
        if len(scenes) == n:
            return scenes


def _generator(split: str, seed: int, *path: int) -> np.random.Generator:
    """A random generator of its own for every scene."""
    return np.random.default_rng([seed, SPLITS.index(split), *path])


def _scene(kinds: list[tuple[str, str, str]], main: tuple[str, str], rng: np.random.Generator) -> Scene:
    """A scene whose main thing has the given colour and shape, its things from the combinations `kinds`."""
    patterns = PATTERNS[int(rng.integers(1, MOST_THINGS + 1))]
    counts = patterns[rng.integers(len(patterns))]
    chosen = [_pick([kind for kind in kinds if kind[:2] == main], rng)]
    for _ in counts[1:]:
        others = [kind for kind in kinds if kind[:2] not in [c[:2] for c in chosen]]
        # Distractors often share the main thing's colour or shape, or binding the two would not be needed.
        wish = rng.integers(3)
        alike = [kind for kind in others if wish < 2 and kind[wish] == main[wish]]
        chosen.append(_pick(alike or others, rng))
    cells = rng.permutation(9)[: sum(counts)]
    shifts = rng.integers(-MOST_SHIFT, MOST_SHIFT + 1, (len(cells), 2))
    places = [Place(*divmod(cell, 3), *shift) for cell, shift in zip(cells.tolist(), shifts.tolist(), strict=True)]
    main_size = "large" if len(counts) > 1 else _pick(list(SIZES), rng)
    things = []
    for (colour, shape, texture), count in zip(chosen, counts, strict=True):
        size = "small" if things else main_size
        things.append(Thing(shape, colour, texture, size, tuple(sorted(places[:count]))))
        places = places[count:]
    return Scene(tuple(things), _pick(list(BACKGROUNDS), rng))


def _pick(values: Sequence, rng: np.random.Generator):
    """One of the values."""
    return values[rng.integers(len(values))]


def twins(scene: Scene) -> dict[str, Scene]:
    """Seven scenes that differ from one in a single attribute of its last thing, or in the background, by attribute.

    A value is replaced by the next one in its list; "position" moves the last thing to the first free cell, "count"
    puts another such object there.  A twin may show a combination that another split owns.
    """
    *others, thing = scene.things
    following = lambda values, value: values[(values.index(value) + 1) % len(values)]
    cells = {(place.row, place.column) for other in scene.things for place in other.places}
    free = Place(*next(cell for cell in itertools.product(range(3), range(3)) if cell not in cells))
    changes = {name: {name: following(values, getattr(thing, name))} for name, values in VALUES.items()}
    changes |= {"position": {"places": (free, *thing.places[1:])}, "count": {"places": (free, *thing.places)}}
    changed = {name: replace(thing, **change) for name, change in changes.items()}
    twins = {name: replace(scene, things=(*others, other)) for name, other in changed.items()}
    return twins | {"background": replace(scene, background=following(tuple(BACKGROUNDS), scene.background))}
