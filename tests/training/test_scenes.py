"""Scenes: no leak between splits, one answer to every question, nothing to guess, a file that is what is drawn."""

import hashlib
import io
import itertools
import re
from collections import Counter, defaultdict
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import ROOT
from peaks_and_gates.cache import file_sha256, read_json
from training.scenes import scene as scenes
from training.scenes import words
from training.scenes.build import scene_rows
from training.scenes.drawing import draw
from training.scenes.scene import COLOURS, COLUMNS, ROWS, SHAPES, SPLITS, TEXTURES, Thing, sample

sha = lambda content: hashlib.sha256(content).hexdigest()[:16]


@pytest.fixture(scope="module")
def many():
    """960 scenes of each split: 20 of each class in training, 40 in validation and test."""
    return {split: sample(split, 960, seed=0) for split in SPLITS}


def test_splits_are_balanced_and_share_no_combination(many):
    kinds = {split: {(t.colour, t.shape, t.texture) for s in many[split] for t in s.things} for split in SPLITS}
    assert not any(kinds[a] & kinds[b] for a, b in itertools.combinations(SPLITS, 2))
    assert [len(scenes.labels(split)) for split in SPLITS] == [48, 24, 24]
    for split, part in many.items():
        assert set(Counter(map(scenes.label, part)).values()) == {960 // len(scenes.labels(split))}
        for place, values in enumerate((COLOURS, SHAPES, TEXTURES)):
            counts = Counter(kind[place] for kind in scenes.combinations(split))
            assert set(counts) == set(values) and len(set(counts.values())) == 1
    for place, other in itertools.combinations(range(3), 2):  # training shows every pair of values
        pairs = {(kind[place], kind[other]) for kind in scenes.combinations("train")}
        values = (COLOURS, SHAPES, TEXTURES)
        assert pairs == set(itertools.product(values[place], values[other]))


def test_scenes_and_pictures_are_those_the_shipped_weights_were_trained_on(many):
    text = "\n".join(words.caption(scene) for split in SPLITS for scene in many[split])
    assert sha(text.encode()) == "7f7b0de1d5352b12"
    assert sha(b"".join(draw(scene).tobytes() for scene in many["train"][:48])) == "4eae6766c16fa65b"
    assert sample("test", 100, seed=0) == many["test"][:100] != sample("test", 100, seed=1)
    few = sample("train", 40, 0, most_things=1)
    assert few == [scene for scene in many["train"] if len(scene.things) == 1][:40]


def test_a_twin_differs_in_one_attribute(many):
    for scene in many["test"][:100]:
        for attribute, other in scenes.twins(scene).items():
            changes = ["background"] * (scene.background != other.background)
            for old, new in zip(scene.things, other.things, strict=True):
                changes += [f.name for f in fields(Thing)[:4] if getattr(old, f.name) != getattr(new, f.name)]
                gone, come = set(old.places) - set(new.places), set(new.places) - set(old.places)
                changes += ["position"] if len(gone) == len(come) == 1 else ["count"] * (len(gone) + len(come))
            assert changes == [attribute]
            assert draw(scene).tobytes() != draw(other).tobytes()


def solve(scene, text):
    """The answers a reader of the scene could give, by another road than `questions`; several if it is unclear."""
    objects = [replace(thing, places=(place,)) for thing in scene.things for place in thing.places]
    meant = lambda noun: [o for o in objects if noun in (o.shape, words.plural(o.shape), f"{o.colour} thing")]
    if text == "what colour is the background?":
        return {scene.background}
    if match := re.fullmatch(r"how many (\w+) are there\?", text):
        return {words.NUMBERS[len(meant(match[1]))]}
    if match := re.fullmatch(r"is there an? (\w+) (\w+)\?", text):
        return {"yes" if any((o.colour, o.shape) == match.groups() for o in objects) else "no"}
    if match := re.fullmatch(r"where is the (\w+) seen from the (\w+)\?", text):
        pairs = itertools.product(meant(match[1]), meant(match[2]))
        return set().union(*(directions(a.places[0], b.places[0]) for a, b in pairs))
    if match := re.fullmatch(r"in which (column|row) is the (\w+)\?", text):
        places = [o.places[0] for o in meant(match[2])]
        return {COLUMNS[p.column] if match[1] == "column" else ROWS[p.row] for p in places}
    attribute, be, noun = re.fullmatch(r"what (\w+) (is|are) the (.+)\?", text).groups()
    assert (len(meant(noun)) == 1) == (be == "is"), text
    return {getattr(o, attribute) for o in meant(noun)}


def directions(here, there):
    sideways = {"left"} if here.column < there.column else {"right"} if here.column > there.column else set()
    return sideways | ({"above"} if here.row < there.row else {"below"} if here.row > there.row else set())


def test_every_question_has_one_answer_and_every_word_is_known(many):
    asked, used = Counter(), {word for text in (words.REQUEST, words.CLASS_QUESTION) for word in words.words(text)}
    for scene in itertools.chain(*(part[:300] for part in many.values())):
        questions = words.questions(scene)
        assert len({q.text for q in questions}) == len(questions)
        for q in questions:
            assert solve(scene, q.text) == {q.answer}, q
            asked[q.kind] += 1
        truth = sorted((t.size, t.texture, t.colour) for t in scene.things)
        for caption in words.captions(scene):
            assert sorted(re.findall(r"(small|large) (\w+) (\w+) \w+", caption)) == truth
            assert re.findall(r"(\w+) background", caption) == [scene.background]
        for text in words.captions(scene) + [part for q in questions for part in (q.text, q.answer)]:
            used |= set(words.words(text))
    assert set(asked) == set(words.KINDS) and min(asked.values()) > 200
    assert used == set(words.vocabulary())


def guessed(asked, by):
    """Share of questions that the most frequent answer to each group `by` gets right."""
    answers = defaultdict(Counter)
    for q in asked:
        answers[by(q)][q.answer] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(asked)


def test_guessing_does_not_win(many):
    for part in many.values():
        asked = words.ask(part, seed=0)
        assert guessed(asked, lambda q: None) < 0.10  # one answer to everything
        assert guessed(asked, lambda q: q.kind) < 0.34  # the best answer to every kind
        kinds = Counter(q.kind for q in asked)
        assert max(kinds.values()) < 1.15 * min(kinds.values())
    leaky = [words.Question("colour", words.caption(s), s.things[0].colour) for s in many["test"]]
    assert guessed(leaky, lambda q: q.text) > 0.9  # a leak would be seen


def test_the_shipped_scenes_are_what_is_drawn():
    for name in ("scenes", "scene-twins", "scene-combinations"):
        assert read_json(ROOT / f"data/{name}.json")["sha256"] == file_sha256(ROOT / f"data/{name}.parquet")
    table = pd.read_parquet(ROOT / "data/scenes.parquet")
    test = table[(table["split"] == "test") & (table["seed"] == 0)].head(480)  # of the laptop: 20 of each class
    pixels = [np.asarray(Image.open(io.BytesIO(png))).tobytes() for png in test["png"]]
    asked = "\n".join(test["kind"] + test["question"] + test["answer"])
    captions = "\n".join("\n".join(five) for five in test["captions"])
    # Of the scenes that the record was measured on, as drawn at commit 27a7509.
    hashes = ("38ce5f22f6925691", "3872967ab381f866", "5e6aa0870a0f6761")
    assert (sha(b"".join(pixels)), sha(captions.encode()), sha(asked.encode())) == hashes
    again = scene_rows("test", 48, 0)
    columns = ["label", "label_id", "kind", "question", "answer", "key"]
    assert again[columns].equals(test.head(48)[columns])
    train = table[(table["split"] == "train") & (table["seed"] == 1)].head(48).reset_index(drop=True)
    assert scene_rows("train", 48, 1)[columns[:-1]].equals(train[columns[:-1]])
