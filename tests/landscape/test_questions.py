"""The questions, the bytes of their prompts, and what is refused."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from unittest.mock import Mock

import datasets
import numpy as np
import pytest

from page_code import page_code
from peaks_and_gates import cache
from peaks_and_gates.errors import BadParameter, BadQuestions, MissingFile, UnknownName
from peaks_and_gates.landscape.questions import (
    Question,
    QuestionSet,
    block,
    build_prompts,
    check,
    header,
    load,
)

GOLDEN = Path(__file__).parents[1] / "golden"
FINGERPRINT = "96da0877aa46dbbeaaedc0525418b391073f5fb7dceb98fef5a86bacd33af641"  # of the WordNet questions
PROMPTS = {0: "04b79f6794f68a7e", 5: "bb77ae7124a89e50"}  # digest of all prompts' texts by number of shots


@pytest.fixture(scope="module")
def words() -> QuestionSet:
    return load("wordnet")


def question(number: int = 0, subject: str = "world_religions", answer: int = 2) -> Question:
    return Question(subject, f"Question {number}?", (" one", "two ", f"three {number}", "four"), answer)


def by_hand(n_test: int = 6, n_dev: int = 5, subject: str = "world_religions") -> QuestionSet:
    dev = {subject: tuple(question(i, subject, i % 4) for i in range(n_dev))} if n_dev else {}
    test = {subject: tuple(question(100 + i, subject, i % 4) for i in range(n_test))}
    return QuestionSet("by hand", {}, dev, {}, {}, test)


def test_prompt_is_the_papers_byte_for_byte():
    prompt = build_prompts(by_hand(n_test=1, n_dev=2), n_shots=1)[0]
    assert prompt.text == (
        "The following are multiple choice questions (with answers) about world religions.\n\n"
        "Question 0?\nA. one\nB. two\nC. three 0\nD. four\nAnswer: A\n\n"
        "Question 100?\nA. one\nB. two\nC. three 100\nD. four\nAnswer:"
    )
    assert header("") == "The following are multiple choice questions (with answers) about.\n\n"
    assert block(question(), with_answer=True).endswith("\nAnswer: C\n\n")


def test_white_space_around_a_question_is_no_cue():
    spaced = replace(by_hand(1, 1), test={"world_religions": (replace(question(), text=" \tQuestion\n0?\n"),)})
    (prompt,) = build_prompts(replace(spaced, dev={"world_religions": spaced.test["world_religions"]}), n_shots=1)
    assert prompt.text.encode() == (GOLDEN / "white-space-1-shot.txt").read_bytes()


@pytest.mark.parametrize("n_shots", [0, 5])
def test_golden_prompts(words, n_shots):
    prompts = build_prompts(words, n_shots)
    birds = next(prompt for prompt in prompts if prompt.subject == "birds")
    assert birds.text.encode() == (GOLDEN / f"wordnet-birds-{n_shots}-shot.txt").read_bytes()
    assert cache.digest([prompt.text for prompt in prompts]) == PROMPTS[n_shots]


def test_the_wordnet_questions_are_the_ones_of_the_record(words):
    assert words.fingerprint == FINGERPRINT
    sizes = {
        split: {len(items) for items in getattr(words, split).values()} for split in ("dev", "validation", "train")
    }
    assert len(words.subjects) == 32 and sizes == {"dev": {5}, "validation": {15}, "train": {40}}
    assert min(len(items) for items in words.test.values()) >= 150
    first, *rest = words.test["birds"]
    changed = replace(words, test=words.test | {"birds": (replace(first, text=first.text + "."), *rest)})
    assert changed.fingerprint != words.fingerprint == replace(words, source={}).fingerprint


@pytest.mark.parametrize(("n_orders", "n_shots", "distinct"), [(1, 5, 1), (8, 5, 8), (8, 2, 2), (8, 0, 1)])
def test_number_of_orders(words, n_orders, n_shots, distinct):
    prefixes = Counter(p.prefix for p in build_prompts(words, n_shots, n_orders) if p.subject == "birds")
    assert len(prefixes) == distinct and max(prefixes.values()) - min(prefixes.values()) <= 1


def test_an_order_of_its_own_for_every_question(words):
    prefixes = [p.prefix for p in build_prompts(words, 5, None) if p.subject == "birds"]
    assert 75 < len(set(prefixes)) <= 120 < len(prefixes)  # 180 draws of 120 orders: 93 distinct on average
    shots = [block(q, with_answer=True) for q in words.dev["birds"]]
    assert set(prefixes) <= {header("birds") + "".join(order) for order in permutations(shots)}


def test_prompts_of_a_subject_do_not_depend_on_the_others(words):
    alone = replace(words, test={"music": words.test["music"]})
    together = [p for p in build_prompts(words, 5) if p.subject == "music"]
    assert build_prompts(alone, 5) == together
    assert build_prompts(alone, 5, seed=1) != together


def test_bad_requests():
    with pytest.raises(BadQuestions, match="their own answers"):
        build_prompts(by_hand(), 1, split="dev")
    with pytest.raises(BadQuestions, match=r"world_religions.* 3 dev items, 5 shots"):
        build_prompts(by_hand(n_dev=3), 5)
    with pytest.raises(UnknownName, match="Did you mean 'test'"):
        build_prompts(by_hand(), 0, split="tests")
    with pytest.raises(BadParameter, match="n_shots=-1"):
        build_prompts(by_hand(), -1)


def test_selection(words, tmp_path, monkeypatch):
    monkeypatch.chdir(write_mmlu(tmp_path / "wordnet", "json").parent)
    few = load("wordnet", n_subjects=8, n_per_subject=12)
    assert len(few.subjects) == 8 and {"birds", "mammals", "law"} <= set(few.subjects)
    assert {len(items) for items in few.test.values()} == {12}
    assert set(few.test["birds"]) < set(words.test["birds"])
    assert load("wordnet", 8, 12) == few
    for bad in ({"n_per_subject": 0}, {"n_subjects": 33}, {"n_per_subject": True}, {"n_subjects": 2.0}):
        with pytest.raises(BadParameter, match=r"32|whole number"):
            load("wordnet", **bad)
    with pytest.raises(
        BadQuestions, match=r"'crime_and_wrongdoing' has 158 test questions, n_per_subject=159 asks for more"
    ):
        load("wordnet", n_per_subject=159)


def test_names_are_a_set_to_test_with():
    names = load("wordnet-instances", 8, 50)
    assert len(build_prompts(names, 5)) == 8 * 50 and "painters" in names.subjects
    with pytest.raises(BadQuestions, match="'wordnet-instances' has no train questions"):
        build_prompts(names, 0, split="train")
    with pytest.raises(UnknownName, match="Known: mmlu, wordnet, wordnet-instances"):
        load("names of stars")


BAD = {"options": [("a", "b", "c"), (*"abc", 1)], "answer": [4, "B", True, 2.0], "text": [None]}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in BAD for value in BAD[field]])
def test_bad_questions_are_named(field, value):
    bad = replace(by_hand(), test={"world_religions": (question(6), replace(question(7), **{field: value}))})
    with pytest.raises(BadQuestions, match=rf"test question 1 of 'world_religions'.*{field}"):
        check(bad, "test")


def write_mmlu(folder: Path, kind: str) -> Path:
    (folder / "all").mkdir(parents=True)
    for split, sizes in (("dev", (5, 5)), ("validation", (3, 3)), ("test", (220, 30))):  # of algebra and of law
        subjects = np.repeat(["algebra", "law"], sizes).tolist()
        about = {"choices": ["a", "b", "c", "d"], "answer": 2}
        rows = [about | {"question": f"{split} {i}?", "subject": subject} for i, subject in enumerate(subjects)]
        path = folder / "all" / f"{split}-00000-of-00001.{kind}"
        data = datasets.Dataset.from_list(rows)
        data.to_parquet(path) if kind == "parquet" else data.to_json(path)
    return folder


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_mmlu_from_a_folder(tmp_path, kind):
    folder = write_mmlu(tmp_path / "mmlu", kind)
    mmlu = load(str(folder))
    assert {s: len(items) for s, items in mmlu.test.items()} == {"algebra": 200, "law": 30}  # the cap, and all there is
    assert mmlu.dev["law"][1] == Question("law", "dev 6?", ("a", "b", "c", "d"), 2)
    assert mmlu.validation["law"][0].text == "validation 3?" and not mmlu.train
    assert mmlu.source["sizes"] == {"dev": 10, "train": 0, "validation": 6, "test": 230}
    name = f"dev-00000-of-00001.{kind}"
    assert mmlu.source["files"][name] == cache.file_sha256(folder / "all" / name)
    assert len(build_prompts(mmlu, 5)) == 230


@pytest.fixture(scope="module")
def of_mmlus_size(tmp_path_factory):
    """A folder with MMLU's 57 subjects at their sizes, in its order, and equal texts where it has equal texts."""
    sizes, equal = json.loads((GOLDEN / "mmlu-sizes.json").read_text()).values()
    folder, like = tmp_path_factory.mktemp("mmlu"), {second: first for first, second in equal}
    for place, split in enumerate(("test", "validation", "dev")):
        subjects = [subject for subject, n in sizes.items() for _ in range([*n, 5][place])]
        texts = [f"{split} {like.get(i, i) if split == 'test' else i}" for i in range(len(subjects))]
        options = [["a", "b", "c", "d"]] * len(texts)
        columns = {"question": texts, "subject": subjects, "choices": options, "answer": [0] * len(texts)}
        datasets.Dataset.from_dict(columns).to_parquet(folder / f"{split}.parquet")
    return folder


def numbers_of(split, offset=0):
    """Where the questions of a split stand in their file, those of validation behind so many others."""
    words = [item.text.split() for items in split.values() for item in items]
    return [int(number) + offset * (name == "validation") for name, number in words]


def test_the_papers_questions_and_orders_are_drawn_again(of_mmlus_size):
    """Digests of the authors' three lists of indices, and the numbers of different prompts that their figures show."""
    digests = {20: "317947aa062ca59b", 40: "a585f6c7c48ef7fe"}
    for most, expected in digests.items():
        drawn_again = load(str(of_mmlus_size), selection="paper", train=most)
        trained = np.array(numbers_of(drawn_again.train, offset=285), dtype="<i8")
        assert hashlib.sha256(trained.tobytes()).hexdigest()[:16] == expected
    assert drawn_again.source["sizes"]["test"] == 9181 and drawn_again.source["selection"] == "paper"
    different = [len({p.text for p in build_prompts(drawn_again, n, "paper")}) for n in (0, 1, 2, 4, 5)]
    assert different == [9164, 9164, 9174, 9180, 9181]
    orders = []
    for shard in np.array_split(np.arange(14042), 16):
        rng = np.random.default_rng(42)
        orders += [rng.permutation(5).tolist() for _ in shard]
    twice = {number for pair in json.loads((GOLDEN / "mmlu-sizes.json").read_text())["equal"] for number in pair}
    for prompt in build_prompts(drawn_again, 5, "paper"):
        number = int(prompt.question.split()[1])
        shots = [int(shot) % 5 for shot in re.findall(r"^dev (\d+)", prompt.prefix, re.MULTILINE)]  # five per subject
        assert shots == orders[number] or number in twice


def test_a_part_of_the_papers_questions(of_mmlus_size):
    every, some = (load(str(of_mmlus_size), *part, selection="paper") for part in ((), (3, 50)))
    orders = {p.question: p.prefix for p in build_prompts(every, 5, "paper")}
    assert len(some.subjects) == 3 and {len(items) for items in some.test.values()} == {50}
    prompts = build_prompts(some, 5, "paper")
    assert all(orders[p.question] == p.prefix for p in prompts)  # a question keeps its order among fewer
    assert some.train["college_biology"] == every.train["college_biology"]
    own = load(str(of_mmlus_size))
    assert own.source["sizes"]["test"] == 9183 and not own.train
    with pytest.raises(UnknownName, match="paper of mmlu"):
        load("wordnet", selection="paper")
    for split in ("validation", "train"):
        with pytest.raises(BadParameter, match=f"{split}: the paper has no orders"):
            build_prompts(every, 1, "paper", split=split)
    with pytest.raises(BadParameter, match="the paper has no orders"):
        build_prompts(load("wordnet", 1, 2), 1, "paper")


def test_a_question_in_two_splits_is_drawn_as_a_shot_once(of_mmlus_size):
    """In the paper's selection the training questions are dev and validation questions, too."""
    drawn_again = load(str(of_mmlus_size), selection="paper")
    pool = page_code("beyond/shots")["never_asked"](drawn_again, "anatomy")
    assert len(drawn_again.train["anatomy"]) == len(pool) == 5 + 14


def test_mmlu_folders_that_are_none(tmp_path):
    folder = write_mmlu(tmp_path / "mmlu", "parquet")
    whole = {"question": "?", "subject": "law", "choices": None, "answer": 2}
    for row, message in (({"question": "?"}, "subject"), (whole, "test question 0 of 'law'")):
        datasets.Dataset.from_list([row]).to_parquet(folder / "all/test-00000-of-00001.parquet")
        with pytest.raises(BadQuestions, match=message):
            load(str(folder))
    (folder / "all/dev-00000-of-00001.parquet").unlink()
    with pytest.raises(MissingFile, match=r"\['dev'\]"):
        load(str(folder))


def test_mmlu_from_the_hub_is_of_one_revision(monkeypatch):
    refuse = Mock(side_effect=ConnectionError("cannot reach"))
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(MissingFile, match="Connect to the network"):
        load("mmlu")
    refuse.assert_called_once_with(path="cais/mmlu", name="all", revision="c30699e8356da336a370243923dbaf21066bb9fe")
