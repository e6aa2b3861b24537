import hashlib
import itertools
import re
from collections import Counter, defaultdict
from dataclasses import fields, replace

import numpy as np
import pytest

from peaks_and_gates import scene_words, scenes
from peaks_and_gates.errors import BadParameter, UnknownName
from peaks_and_gates.scene_drawing import draw
from peaks_and_gates.scene_words import KINDS, NUMBERS, Question, ask, caption, captions, questions, vocabulary, words
from peaks_and_gates.scenes import (
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    ROWS,
    SHAPES,
    SIZES,
    SPLITS,
    TEXTURES,
    TWINS,
    Place,
    Scene,
    Thing,
    combinations,
    label,
    labels,
    sample,
    twin,
)

MIDDLE = (Place(1, 1),)


@pytest.fixture(scope="module")
def many():
    """960 scenes of each split: 20 of each class in training, 40 in validation and test."""
    return {split: sample(split, 960, seed=0) for split in SPLITS}


def one(shape="circle", colour="red", texture="plain", size="small", places=MIDDLE, background="white"):
    return Scene((Thing(shape, colour, texture, size, places),), background)


def kind(thing):
    return thing.colour, thing.shape, thing.texture


# Splits


def shared(by_split):
    """Combinations that things of several splits have."""
    seen = {split: {kind(thing) for scene in found for thing in scene.things} for split, found in by_split.items()}
    return set().union(*(seen[a] & seen[b] for a, b in itertools.combinations(seen, 2)))


def test_no_combination_is_in_two_splits(many):
    assert shared(many) == set()
    every = [kind for split in SPLITS for kind in combinations(split)]
    assert len(every) == len(set(every)) == len(COLOURS) * len(SHAPES) * len(TEXTURES)


def test_a_leak_would_be_seen(monkeypatch):
    everything = list(itertools.product(COLOURS, SHAPES, TEXTURES))
    monkeypatch.setattr(scenes, "combinations", lambda split: everything)
    assert shared({split: sample(split, 96, seed=0) for split in SPLITS})


def test_every_value_and_every_class_is_in_every_split_equally_often(many):
    for split, found in many.items():
        assert Counter(map(label, found)) == {name: 960 // len(labels(split)) for name in labels(split)}
        for place, values in enumerate((COLOURS, SHAPES, TEXTURES)):
            counts = Counter(kind[place] for kind in combinations(split))
            assert set(counts) == set(values) and len(set(counts.values())) == 1
        things = [thing for scene in found for thing in scene.things]
        for attribute, values in (("colour", COLOURS), ("shape", SHAPES), ("texture", TEXTURES), ("size", SIZES)):
            shares = Counter(getattr(thing, attribute) for thing in things)
            assert set(shares) == set(values)
            assert max(shares.values()) < 1.5 * min(shares.values())
        assert {scene.background for scene in found} == set(BACKGROUNDS)
        cells = Counter((place.row, place.column) for thing in things for place in thing.places)
        assert len(cells) == 9 and max(cells.values()) < 1.3 * min(cells.values())
    assert [len(labels(split)) for split in SPLITS] == [48, 24, 24]
    assert not set(labels("test")) & set(labels("validation"))


def test_training_shows_every_pair_of_values():
    for one, other in itertools.combinations(range(3), 2):
        values = (COLOURS, SHAPES, TEXTURES)
        assert {(kind[one], kind[other]) for kind in combinations("train")} == {
            *itertools.product(values[one], values[other])
        }


def test_a_sample_depends_on_its_seed_and_on_nothing_else(many):
    assert sample("test", 100, seed=0) == many["test"][:100]
    other = sample("test", 100, seed=1)
    for part in (label, lambda scene: scene.background, lambda scene: [thing.places for thing in scene.things]):
        assert [*map(part, other)] != [*map(part, many["test"][:100])]
    assert len(set(many["test"])) == 960
    text = "\n".join(caption(scene) for split in SPLITS for scene in many[split])
    # The shipped weights were trained on these scenes: another hash means that they must be trained again.
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "7f7b0de1d5352b12"


def test_the_main_thing_is_the_only_large_one_or_alone(many):
    for scene in itertools.chain(*many.values()):
        sizes = [thing.size for thing in scene.things]
        assert len(sizes) == 1 or sizes == ["large"] + ["small"] * (len(sizes) - 1)
    assert {len(scene.things) for scene in many["test"]} == {1, 2, 3}
    assert {thing.count for scene in many["test"] for thing in scene.things} == {1, 2, 3}


@pytest.mark.parametrize(
    ("scene", "message"),
    [
        (lambda: one(shape="heart"), "no shape 'heart'"),
        (lambda: one(background="black"), "no background 'black'"),
        (lambda: one(places=()), "red circle is at no place"),
        (lambda: one(places=(Place(0, 3),)), "outside the 3 x 3 grid"),
        (lambda: one(places=(Place(0, 2, 0, 6),)), "shifted by more than 5"),
        (lambda: one(places=(Place(0, 2), Place(0, 2, 1))), "in one cell"),
        (lambda: one(places=tuple(Place(i // 3, i % 3) for i in range(5))), "5 objects"),
        (lambda: Scene((), "white"), "0 things"),
        (lambda: Scene(one().things + one(texture="dotted", places=(Place(0, 0),)).things, "tan"), "same colour and"),
        (lambda: sample("dev", 1, 0), "no split 'dev'"),
        (lambda: labels("dev"), "no split 'dev'"),
        (lambda: sample("test", 0, 0), "n=0"),
        (lambda: sample("test", 1, -1), "seed=-1"),
        (lambda: draw(one(), 31), "size=31"),
        (lambda: twin(one(), "taste", np.random.default_rng(0)), "no attribute of a twin 'taste'"),
    ],
)
def test_messages(scene, message):
    with pytest.raises((BadParameter, UnknownName), match=message):
        scene()


# Twins


def changes(before, after):
    """What two scenes differ in, found without looking at how twins are made."""
    found = ["background"] * (before.background != after.background)
    assert len(before.things) == len(after.things)
    for old, new in zip(before.things, after.things, strict=True):
        attributes = [field.name for field in fields(Thing) if field.name != "places"]
        found += [name for name in attributes if getattr(old, name) != getattr(new, name)]
        gone, come = set(old.places) - set(new.places), set(new.places) - set(old.places)
        if len(gone) == len(come) == 1:
            (was,), (now,) = gone, come
            found += ["position"] + ["shift"] * ((was.down, was.right) != (now.down, now.right))
        else:
            found += ["count"] * (len(gone) + len(come))
    return found


@pytest.mark.parametrize("attribute", TWINS)
def test_a_twin_differs_in_one_attribute(attribute, many):
    rng = np.random.default_rng(0)
    for scene in many["test"][:200]:
        other = twin(scene, attribute, rng)
        assert changes(scene, other) == [attribute]
        assert draw(scene).tobytes() != draw(other).tobytes()
        assert caption(scene) != caption(other) or attribute in ("position", "count")


def test_a_second_change_would_be_seen(many):
    rng = np.random.default_rng(0)
    for first, second in itertools.permutations(TWINS, 2):
        twice = twin(twin(many["test"][5], first, rng), second, rng)
        assert len(changes(many["test"][5], twice)) >= 2, (first, second)
    moved = replace(one().things[0], places=(Place(0, 0, 0, 1),))
    assert changes(one(), Scene((moved,), "white")) == ["position", "shift"]


def test_twins_are_seeded_and_reach_every_value(many):
    scene = many["test"][0]
    for attribute in TWINS:
        draws = [twin(scene, attribute, np.random.default_rng(seed)) for seed in (3, 3, *range(20))]
        assert draws[0] == draws[1] and len(set(draws)) > 1
    grown = [sum(t.count for t in twin(s, "count", np.random.default_rng(1)).things) for s in many["test"]]
    steps = Counter(n - sum(t.count for t in s.things) for n, s in zip(grown, many["test"], strict=True))
    assert set(steps) == {1, -1} and min(steps.values()) > 200
    colours = {twin(one(), "colour", np.random.default_rng(seed)).things[0].colour for seed in range(60)}
    assert colours == set(COLOURS) - {"red"}


# Drawing


def test_equal_bytes_for_equal_scenes(many):
    shown = [draw(scene) for scene in many["train"][:48]]
    assert all(picture.mode == "RGB" and picture.size == (64, 64) for picture in shown)
    assert draw(many["train"][0], 96).size == (96, 96)
    digest = hashlib.sha256(b"".join(picture.tobytes() for picture in shown)).hexdigest()[:16]
    assert digest == "4eae6766c16fa65b"  # as above: other pixels are other training data
    assert [draw(scene).tobytes() for scene in many["train"][:48]] == [picture.tobytes() for picture in shown]


def coverage(scene, size):
    """(size, size) share of each pixel that a plain black object on white covers."""
    return (255 - np.asarray(draw(scene, size))[..., 1].astype(float)) / (255 - COLOURS["black"][1])


@pytest.mark.parametrize("size", [64, 96])
def test_nothing_overlaps_or_leaves_the_picture(size):
    shifts = [(a, b) for a in (-5, 0, 5) for b in (-5, 0, 5)]
    for shape in SHAPES:
        at = lambda place, shape=shape: coverage(one(shape, "black", size="large", places=(place,)), size)
        whole = at(Place(1, 1)).sum()
        for corner in ((0, 0), (0, 2), (2, 0), (2, 2)):
            for shift in shifts:
                assert at(Place(*corner, *shift)).sum() == pytest.approx(whole, rel=0.04), shape
        assert (at(Place(1, 1, 5, 5)) + at(Place(1, 2, 5, -5)) + at(Place(2, 1, -5, 5))).max() <= 1.01


def test_an_object_is_where_it_is_said_to_be():
    for row, column in itertools.product(range(3), range(3)):
        seen = coverage(one("diamond", "black", places=(Place(row, column),)), 63)
        y, x = np.nonzero(seen)
        assert (y // 21 == row).all() and (x // 21 == column).all()
    up = coverage(one("triangle", "black", size="large"), 96).sum(1)
    assert up[:48].sum() < up[48:].sum()  # it stands on its base


def test_any_two_kinds_look_different():
    shown = {
        (shape, texture, size): coverage(one(shape, "black", texture, size), 64)
        for shape, texture, size in itertools.product(SHAPES, TEXTURES, SIZES)
    }
    for (first, a), (second, b) in itertools.combinations(shown.items(), 2):
        assert np.abs(a - b).sum() > 0.12 * min(a.sum(), b.sum()), (first, second)


MACHADO = {  # linear RGB as seen without one kind of cone: Machado, Oliveira and Fernandes 2009, severity 1
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour, cones):
    """CIELAB (D65) of an sRGB colour as seen with some cones."""
    share = np.array(colour) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = np.array(to_xyz) @ np.clip(np.array(MACHADO[cones]) @ linear, 0, 1) / (0.95047, 1, 1.08883)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(("cones", "least"), [("all cones", 30), ("no red", 20), ("no green", 20), ("no blue", 20)])
def test_colours_are_told_apart_by_everyone(cones, least):
    seen = {name: lab(colour, cones) for name, colour in (COLOURS | BACKGROUNDS).items()}
    for first, second in itertools.combinations(seen, 2):
        floor = 15 if {first, second} <= set(BACKGROUNDS) else least
        assert np.linalg.norm(seen[first] - seen[second]) > floor, (first, second)


# Words


def named(scene, noun):
    """The objects that "the circle", "the circles" or "the red thing" mean, each as a thing of one place."""
    objects = [replace(thing, places=(place,)) for thing in scene.things for place in thing.places]
    if noun.endswith(" thing"):
        return [o for o in objects if o.colour == noun.removesuffix(" thing")]
    return [o for o in objects if noun in (o.shape, scene_words.plural(o.shape))]


def solve(scene, text):
    """The answers a reader of the scene could give, by another road than `questions`; several if it is unclear."""
    objects = [replace(thing, places=(place,)) for thing in scene.things for place in thing.places]
    if text == "what colour is the background?":
        return {scene.background}
    if found := re.fullmatch(r"how many (\w+) are there\?", text):
        return {NUMBERS[len(named(scene, found[1]))]}
    if found := re.fullmatch(r"is there an? (\w+) (\w+)\?", text):
        return {"yes" if any((o.colour, o.shape) == found.groups() for o in objects) else "no"}
    if found := re.fullmatch(r"where is the (\w+) seen from the (\w+)\?", text):
        pairs = list(itertools.product(named(scene, found[1]), named(scene, found[2])))
        return set().union(*(directions(a.places[0], b.places[0]) for a, b in pairs))
    if found := re.fullmatch(r"in which (column|row) is the (\w+)\?", text):
        meant = [o.places[0] for o in named(scene, found[2])]
        assert len(meant) == 1
        return {COLUMNS[p.column] if found[1] == "column" else ROWS[p.row] for p in meant}
    asked, be, noun = re.fullmatch(r"what (\w+) (is|are) the (.+)\?", text).groups()
    meant = named(scene, noun)
    assert (len(meant) == 1) == (be == "is"), f"{text} {scene}"
    return {getattr(o, asked) for o in meant}


def directions(here, there):
    sideways = {"left"} if here.column < there.column else {"right"} if here.column > there.column else set()
    return sideways | ({"above"} if here.row < there.row else {"below"} if here.row > there.row else set())


def test_every_question_has_one_answer(many):
    asked = Counter()
    for scene in itertools.chain(*(found[:300] for found in many.values())):
        found = questions(scene)
        assert len({q.text for q in found}) == len(found)
        for q in found:
            assert solve(scene, q.text) == {q.answer}, q
            assert words(q.answer) == [q.answer]
            asked[q.kind] += 1
    assert set(asked) == set(KINDS) and min(asked.values()) > 200


def test_an_unclear_question_would_be_seen():
    circles = (
        Thing("circle", "red", "plain", "large", (Place(0, 0),)),
        Thing("circle", "blue", "plain", "small", (Place(0, 2), Place(2, 2))),
    )
    scene = Scene(circles, "white")
    for text in ("what colour is the circle?", "in which row is the circle?"):
        with pytest.raises(AssertionError):
            solve(scene, text)
    assert solve(scene, "what colour are the circles?") == {"red", "blue"}
    assert (
        len(
            solve(
                Scene((circles[0], replace(circles[1], shape="star")), "tan"), "where is the circle seen from the star?"
            )
        )
        == 2
    )
    assert not any("the circle" in q.text for q in questions(scene))
    assert Question("shape", "what shape is the red thing?", "circle") in questions(scene)
    assert not any("blue thing" in q.text for q in questions(scene))


def test_captions_say_what_there_is_and_nothing_else(many):
    number = {"a": 1, "an": 1} | {word: i for i, word in enumerate(NUMBERS)}
    nouns = {scene_words.plural(shape): shape for shape in SHAPES} | {shape: shape for shape in SHAPES}
    for scene in itertools.chain(*(found[:200] for found in many.values())):
        told = captions(scene)
        assert len(set(told)) == 5 and told[0] == caption(scene)
        truth = sorted((t.count, t.size, t.texture, t.colour, t.shape) for t in scene.things)
        for text in told:
            assert text.count(".") == 1 and text.endswith(".")
            pattern = rf"(\w+) ({'|'.join(SIZES)}) ({'|'.join(TEXTURES)}) ({'|'.join(COLOURS)}) (\w+)"
            things = re.findall(pattern, text)
            assert sorted((number[n], s, t, c, nouns[noun]) for n, s, t, c, noun in things) == truth
            assert all((n in ("a", "an")) == (noun in SHAPES) for n, *_, noun in things)
            assert re.findall(r"(\w+) background", text) == [scene.background]
            by_kind = {(t.colour, t.shape): t for t in scene.things}
            for way in re.findall(r"left of|right of|above|below", text):
                first, second = (by_kind[c, noun].places[0] for _, _, _, c, noun in things)
                assert way.removesuffix(" of") in directions(first, second), text
            if found := re.search(r"at the (\w+) (\w+)|in the center", text):
                row, column = found.groups() if found[1] else ("middle", "center")
                assert [(ROWS.index(row), COLUMNS.index(column))] == [(p.row, p.column) for p in scene.things[0].places]
    texts = [text for scene in many["test"] for text in captions(scene)]
    assert sum("left of" in text for text in texts) > 100 and sum("at the" in text for text in texts) > 100


def test_the_vocabulary_is_what_is_used(many):
    used = {word for prompt in (scene_words.REQUEST, scene_words.CLASS_QUESTION) for word in words(prompt)}
    for scene in itertools.chain(*many.values()):
        for text in captions(scene) + [part for q in questions(scene) for part in (q.text, q.answer)]:
            assert " ".join(words(text)).replace(" ,", ",").replace(" .", ".").replace(" ?", "?") == text
            used |= set(words(text))
    assert used == set(vocabulary())
    assert len(vocabulary()) < 120


# Balance


def guessed(asked, by):
    """Share of questions that the most frequent answer to each group `by` gets right."""
    answers = defaultdict(Counter)
    for q in asked:
        answers[by(q)][q.answer] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(asked)


@pytest.mark.parametrize("split", SPLITS)
def test_guessing_does_not_win(split, many):
    asked = ask(many[split], seed=0)
    assert guessed(asked, lambda q: None) < 0.10  # one answer to everything
    assert guessed(asked, lambda q: q.kind) < 0.34  # the best answer to every kind
    kinds = Counter(q.kind for q in asked)
    assert max(kinds.values()) < 1.15 * min(kinds.values())
    for name in KINDS:
        answers = Counter(q.answer for q in asked if q.kind == name)
        assert max(answers.values()) / kinds[name] < 1.5 / len(answers), name


def test_a_reader_of_questions_alone_learns_nothing(many):
    learned = defaultdict(Counter)
    for q in ask(many["train"], seed=0) + [q for scene in many["train"] for q in questions(scene)]:
        learned[q.text][q.answer] += 1
    asked = ask(many["test"], seed=0)
    right = sum(bool(learned[q.text]) and learned[q.text].most_common(1)[0][0] == q.answer for q in asked)
    assert right / len(asked) < 0.36


def test_an_imbalance_would_be_seen(many):
    first = [next(q for q in questions(scene) if q.kind == "presence") for scene in many["test"]]
    assert guessed(first, lambda q: q.kind) == 1
    leaky = [Question("colour", f"what colour is the {caption(s)}?", s.things[0].colour) for s in many["test"]]
    assert guessed(leaky, lambda q: q.text) > 0.9


def test_asking_is_seeded(many):
    assert ask(many["test"], seed=0) == ask(many["test"], seed=0) != ask(many["test"], seed=1)
    for scene, q in zip(many["test"], ask(many["test"], seed=0), strict=True):
        assert q in questions(scene)
