"""What readers write, at random: each case is a right answer or one message of ours, never anything else."""

import io
import json
import math
import struct
import zlib
from collections import Counter
from contextlib import suppress
from itertools import permutations

import nbformat
import numpy as np
import pandas as pd
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import size
from peaks_and_gates import claims, cluster, picture_rows, pictures, presets, scenes
from peaks_and_gates.book import runner as book
from peaks_and_gates.errors import BookError
from peaks_and_gates.extraction import encode
from peaks_and_gates.questions import Question, QuestionSet, build_prompts, load
from peaks_and_gates.scene_drawing import draw
from peaks_and_gates.scene_words import captions, questions
from peaks_and_gates.vlm_images import open_image

HARD = [
    "",
    " ",
    "\x00",
    "\u202e\u200d",
    "👩\u200d👧",
    "\u2028",
    "\x85",
    "\ufeff",
    "\nAnswer: A\n\n",
    "<image>",
    "a" * 9999,
]
TEXT = st.sampled_from(HARD) | st.text(max_size=30)
WILD = st.none() | st.booleans() | st.integers(-3, 9) | st.just(10**30) | st.floats() | TEXT | st.just([]) | st.just({})
WHOLE = st.integers(1, 4)
PLAIN = st.recursive(WILD, lambda each: st.lists(each, max_size=3) | st.dictionaries(TEXT, each, max_size=3))
# One in twenty is wild, so that many cases have a single fault, and many none.
rarely = lambda tame, wild=WILD: st.integers(0, 19).flatmap(lambda drawn: wild if drawn == 7 else tame)


def tried(report, what, full, reduced, strategy, answer):
    """Give cases to `answer`, which checks what it is answered; count the answers and the refusals."""
    seen = Counter()

    @settings(max_examples=size(full, reduced), phases=[Phase.generate])
    @given(strategy)
    def cases(case):
        try:
            answer(case)
            seen["answers"] += 1
        except BookError as error:
            assert len(str(error)) > 20
            seen["refusals"] += 1

    cases()
    report("fuzzing", what, seen.total(), f"{seen['answers']} answers, {seen['refusals']} refusals")
    assert seen["answers"] and seen["refusals"]


QUESTION = st.builds(
    Question,
    rarely(st.just("s")),
    rarely(TEXT),
    rarely(st.lists(rarely(TEXT), min_size=4, max_size=4).map(tuple), st.lists(TEXT, max_size=5).map(tuple) | WILD),
    rarely(st.integers(0, 3)),
)
ASKED = st.lists(QUESTION, min_size=1, max_size=4).map(tuple)
ODD_SPLIT = st.dictionaries(TEXT | st.none() | st.integers(), ASKED | st.just(()), max_size=2)
SPLIT = rarely(st.dictionaries(st.just("s"), ASKED, min_size=1), ODD_SPLIT)
SETS = st.builds(QuestionSet, st.just("made"), st.just({}), SPLIT, st.just({}), st.just({}), SPLIT)


def block_of(question, answered):
    lettered = "".join(f"\n{letter}. {option.strip()}" for letter, option in zip("ABCD", question.options, strict=True))
    return question.text + lettered + "\nAnswer:" + (f" {'ABCD'[question.answer]}\n\n" if answered else "")


def test_prompts(report, tiny):
    def answer(case):
        made, n_shots, n_orders, seed, split, headed = case
        prompts = build_prompts(made, n_shots, n_orders, seed, split, headed)
        asked = [(subject, question) for subject, of in sorted(getattr(made, split).items()) for question in of]
        for (subject, question), prompt, encoded in zip(asked, prompts, encode(tiny, prompts), strict=True):
            shots = [block_of(shot, True) for shot in made.dev[subject][:n_shots]] if n_shots else []
            first = f"The following are multiple choice questions (with answers) about {subject}.\n\n" if headed else ""
            assert prompt.prefix in {first + "".join(order) for order in permutations(shots)}
            assert (prompt.question, prompt.answer) == (block_of(question, False), question.answer)
            assert list(encoded.prefix + encoded.rest) == tiny.tokenizer(prompt.text)["input_ids"]
            starts = tiny.tokenizer(prompt.text, return_offsets_mapping=True)["offset_mapping"]
            assert all(stop <= len(prompt.prefix) for _, stop in starts[: len(encoded.prefix)])
            assert encoded.rest and starts[len(encoded.prefix)][1] > len(prompt.prefix)

    wanted = rarely(st.integers(0, 2)), rarely(st.none() | WHOLE | st.just(10**9)), rarely(st.integers(0, 9))
    cases = st.tuples(SETS, *wanted, rarely(st.sampled_from(("dev", "test"))), st.booleans())
    tried(report, "question sets and prompts", 2000, 60, cases, answer)


GOOD = {"question": "?", "subject": "s", "choices": ["a", "b", "c", "d"], "answer": 2}
ROW = st.fixed_dictionaries({
    "question": rarely(TEXT), "subject": rarely(st.sampled_from(("s", "", "t"))), "answer": rarely(st.integers(0, 3)),
    "choices": rarely(st.lists(TEXT, min_size=4, max_size=4), st.lists(TEXT, max_size=5) | WILD),
})  # fmt: skip
ROWS = st.lists(rarely(ROW, PLAIN | st.just({"question": "\ud800"} | GOOD)), min_size=1, max_size=3)
RAW = st.sampled_from([b"", b"null", b"[", b"\xff\xfe", b"[" * 9999, b"9" * 5000, b'{"a": NaN}', b"PAR1" * 5])


def test_question_files(report, tmp_path):
    for split in ("dev", "validation"):
        (tmp_path / f"{split}.json").write_text(json.dumps(GOOD))

    def answer(case):
        rows, form = case
        for old in tmp_path.glob("test*"):
            old.unlink()
        if isinstance(rows, bytes):
            (tmp_path / f"test.{form}").write_bytes(rows)
        elif form == "parquet":
            with suppress(Exception):  # columns that Parquet cannot hold: then there is none
                (tmp_path / "test.parquet").write_bytes(pd.DataFrame(rows).to_parquet())
        else:
            lines = [json.dumps(row, ensure_ascii=len(rows) > 2) for row in rows]
            text = "\n".join(lines) if form == "jsonl" else f"[{','.join(lines)}]"
            (tmp_path / f"test.{form}").write_bytes(text.encode(errors="surrogatepass"))
        found = [question for asked in load(str(tmp_path)).test.values() for question in asked]
        told = sorted(rows, key=lambda row: row["subject"])
        of = [Question(row["subject"], row["question"], tuple(row["choices"]), row["answer"]) for row in told]
        assert sorted(found, key=lambda question: question.subject) == of

    cases = st.tuples(rarely(ROWS, RAW), st.sampled_from(("json", "jsonl", "parquet")))
    tried(report, "files of questions", 3000, 50, cases, answer)


PLACE = st.builds(scenes.Place, *[rarely(st.integers(0, 2))] * 2, *[rarely(st.integers(-5, 5))] * 2)
AMONG = lambda names: rarely(st.sampled_from(tuple(names)))
PLACES = rarely(st.lists(PLACE, min_size=1, max_size=2).map(tuple))
THING = st.builds(scenes.Thing, *map(AMONG, (scenes.SHAPES, scenes.COLOURS, scenes.TEXTURES, scenes.SIZES)), PLACES)
THINGS = rarely(st.lists(THING, min_size=1, max_size=3).map(tuple))


def test_scenes(report):
    def answer(case):
        things, background, pixels, attribute, seed = case
        scene = scenes.Scene(things, background)
        picture = np.asarray(draw(scene, pixels))
        assert picture.shape == (pixels, pixels, 3)
        for thing in scene.things:
            assert scene.background in captions(scene)[0] and thing.shape in captions(scene)[0]
            for place in thing.places:
                cell = np.s_[pixels * place.row // 3 : pixels * (place.row + 1) // 3 + 1]
                across = np.s_[pixels * place.column // 3 : pixels * (place.column + 1) // 3 + 1]
                assert (picture[cell, across] != scenes.BACKGROUNDS[background]).any()
        assert all(question.answer for question in questions(scene))
        assert scenes.twin(scene, attribute, np.random.default_rng(seed)) != scene

    cases = st.tuples(THINGS, AMONG(scenes.BACKGROUNDS), rarely(st.integers(32, 48)), AMONG(scenes.TWINS), WHOLE)
    tried(report, "scenes and their twins", 2500, 50, cases, answer)


def test_pictures_asked_for(report):
    def answer(case):
        task, source, n, seed, n_classes, split, pixels = case
        found = pictures.load(task, source, n, seed, n_classes=n_classes, split=split, size=pixels)
        assert len(found) == n * ((n_classes or len(scenes.labels(split or "test"))) if task == "classes" else 1)
        assert all(picture.image.size == (pixels, pixels) for picture in found)

    drawn = AMONG(pictures.TASKS), rarely(st.just("scenes"), WILD.filter(lambda name: name not in [*pictures.SOURCES]))
    numbers = rarely(st.integers(1, 2)), rarely(st.integers(0, 9)), rarely(st.integers(2, 4))
    few = st.tuples(*drawn, *numbers, AMONG(scenes.SPLITS), rarely(st.just(32)))
    tried(report, "pictures asked for", 1500, 20, few.filter(lambda case: case[2] != 10**30), answer)


def encoded_image(form, side):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(side * side * 3, dtype=np.uint8).reshape(side, side, 3)).save(buffer, form)
    return buffer.getvalue()


def png(width, height):
    """A whole PNG that says it is so large, with hardly a byte in it."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")


def test_image_files(report, tmp_path):
    def answer(case):
        data, cut, place, value = case
        data = bytearray(data[: len(data) - cut])
        if data and place is not None:
            data[place % len(data)] = value
        (tmp_path / "image").write_bytes(data)
        for read in (lambda: picture_rows.decoded(bytes(data), "row 3"), lambda: open_image(tmp_path / "image")):
            found = read()
            assert found.mode == "RGB" and np.asarray(found).size == 3 * math.prod(found.size)
            if not cut and place is None:
                assert np.array_equal(np.asarray(found), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))

    made = [encoded_image(form, side) for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF") for side in (1, 4, 9)]
    bombs = [png(*shape) for shape in ((0, 0), (1, 0), (9, 9), (10**5, 10**5), (2**31 - 1, 2**31 - 1), (10**4, 10**4))]
    data = st.sampled_from(made + bombs) | st.binary(max_size=99)
    cut = rarely(st.just(0), st.integers(0, 60))
    cases = st.tuples(data, cut, st.none() | st.integers(0, 400), st.integers(0, 255))
    tried(report, "bytes of images", 3000, 30, cases, answer)


ODD = ["!!python/object/apply:os.system [ls]", "[" * 3000, "{a: " * 3000, "2026-13-45", "2026-01-01", "!!int x", "="]
ODD += [
    "!!bool x",
    "9" * 5000,
    ".inf",
    ".nan",
    "&x [*x]",
    "!!set {1}",
    "!!binary x",
    "? [1]\n: 2",
    '"\\uD800"',
    "a: b: c",
]
LAPTOP = presets.load("laptop")
VALUE = st.sampled_from(ODD) | TEXT | PLAIN.map(lambda value: yaml.safe_dump(value, allow_unicode=True))
NAME = AMONG(LAPTOP).map(str)


def test_parameters(report):
    def answer(case):
        name, value = case
        given_name, read = presets.parse_assignment(f"{name}={value}")
        changed = presets.override(LAPTOP, {given_name: read})
        assert changed == LAPTOP | {name: yaml.safe_load(value)} and json.loads(json.dumps(read)) == read
        assert read is None or LAPTOP[name] is None or type(read) in (type(LAPTOP[name]), int)

    fitting = st.sampled_from(list(LAPTOP)).map(lambda name: (name, yaml.safe_dump(LAPTOP[name], width=9999)))
    tried(report, "parameters on the command line", 1500, 40, fitting | st.tuples(NAME, VALUE), answer)


def test_profiles(report, tmp_path):
    def answer(text):
        (tmp_path / "profile.yml").write_bytes(text.encode(errors="replace"))
        found = cluster.resources_of("laptop", str(tmp_path / "profile.yml"))
        assert found["shards"] >= 1 and all(isinstance(found[kind], dict) for kind in cluster.KINDS)

    keys = st.dictionaries(st.sampled_from((*cluster.KINDS, "shards", "slurm_partition")), PLAIN, max_size=2)
    tried(report, "profiles of a cluster", 300, 10, VALUE | keys.map(yaml.safe_dump), answer)


CLAIMS = claims.load()


def test_claims(report, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "project_folder", lambda: tmp_path)
    (tmp_path / "book").mkdir()
    about = {"metric": ["ari_subject"], "setting": "figures", "condition": "5-shot", "layer": 1, "depth": 1.0, "n": 9}
    tables = {"geometry": pd.DataFrame(about | {"value": 0.5, "low": 0.4, "high": 0.6})}

    def answer(case):
        number, where, key, value = case
        stated = json.loads(json.dumps(CLAIMS))
        changed = stated[number] if where else stated[number]["parts"][0]
        changed[key] = value
        (tmp_path / "book" / "claims.yml").write_text(yaml.safe_dump(stated))
        assert claims.load() == stated
        assert all(claims.judge(claim, tables).verdict in claims.VERDICTS for claim in stated)

    keys = st.sampled_from(sorted(CLAIMS[0]) + sorted(CLAIMS[0]["parts"][0]) + ["at_most", "script"])
    cases = st.tuples(st.integers(0, len(CLAIMS) - 1), st.booleans(), keys, TEXT | st.floats(0, 1) | PLAIN)
    tried(report, "claims", 200, 8, cases, answer)


def test_notebooks(report, tmp_path):
    def answer(case):
        lines, tagged, cut = case
        cell = nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": ["parameters"] * tagged})
        kernel = {"name": "python3", "language": "python", "display_name": "Python"}
        text = nbformat.writes(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}))
        (tmp_path / "page.ipynb").write_text(text[: len(text) - cut])
        meant = {}
        exec(cell.source, meant)  # only what is written below
        assert book.declared(tmp_path / "page.ipynb") == {k: v for k, v in meant.items() if "__" not in k}

    line = st.sampled_from(["n = 5", "shots = [0, 5]", 'model = "a"', "how = None", "deep = {'a': [1, (2,)]}"])
    wild = st.sampled_from(["n = min(3, 4)", "n: int = 5", "n = 1; m = 2", "a = b = 3", "text = 'x = 3  # no'"])
    tagged, cut = rarely(st.just(True), st.just(False)), rarely(st.just(0), WHOLE)
    cases = st.tuples(st.lists(rarely(line, wild), max_size=3), tagged, cut)
    tried(report, "cells of parameters", 1500, 10, cases, answer)
