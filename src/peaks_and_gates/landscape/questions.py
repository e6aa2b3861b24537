"""Multiple-choice questions and the prompts made of them.

    questions = load("wordnet")     # or load("wordnet-instances"), load("mmlu"), load("mmlu", selection="paper")
    prompts = build_prompts(questions, n_shots=5)    # one per test question
    prompts[0].text                                  # header, shots, question, "Answer:"

Prompt form: that of paper 1, byte for byte.  It is MMLU's (Hendrycks et al. 2021) with one blank before the subject
in place of two, and without white space around questions and options.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from ..cache import check_files, file_sha256, project_folder, read_json
from ..errors import BadParameter, BadQuestions, MissingFile, UnknownName
from ..statistics import at_least

LETTERS = ("A", "B", "C", "D")
SPLITS = ("dev", "train", "validation", "test")
FIRST = yaml.safe_load(Path(__file__).with_name("questions.yml").read_bytes())  # subjects of a selection, by set
SHIPPED = {"wordnet": "wordnet-questions", "wordnet-instances": "wordnet-instances"}  # tables in data/, by set
MMLU, MMLU_REVISION = "cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe"
MMLU_CAP = 200  # test questions per subject, as in paper 1
# How paper 1 drew: a fresh generator for each kind of draw; the orders of the shots in 16 processes, each with the same
# generator and its part of all 14,042 questions.  That there were 16 follows from the numbers of different prompts
# behind the figures: 9,164, 9,164, 9,174, 9,180 and 9,181 with 0, 1, 2, 4 and 5 shots.  Of one subject it has the first
# 169 questions, because its way to read a large model loses the last two of all.
PAPER_SEED, PAPER_SHARDS, PAPER_FIRST = 42, 16, {"world_religions": 169}


@dataclass(frozen=True)
class Question:
    """A question with four options; `answer` is the place of the right one, 0 to 3."""

    subject: str
    text: str
    options: tuple[str, str, str, str]
    answer: int


Split = dict[str, tuple[Question, ...]]  # {subject: its questions}


@dataclass(frozen=True)
class QuestionSet:
    """Questions by split and subject; `source` says where they came from: file or hub, hash, revision.

    order_numbers: by subject, which of the orders of shots that paper 1 drew in a process each test question gets.
    """

    name: str
    source: dict[str, Any]
    dev: Split
    train: Split
    validation: Split
    test: Split
    order_numbers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def subjects(self) -> list[str]:
        """Names of the subjects, sorted."""
        return sorted(self.test)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content in canonical form: equal exactly when every question is."""
        content = {split: {s: [asdict(q) for q in qs] for s, qs in getattr(self, split).items()} for split in SPLITS}
        return hashlib.sha256(json.dumps([self.name, content], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Prompt:
    """A prompt in two parts, so that prompts with the same shots can share the work on their `prefix`."""

    subject: str
    prefix: str  # header and shots
    question: str  # ends in "Answer:"
    answer: int

    @property
    def text(self) -> str:
        """The whole prompt."""
        return self.prefix + self.question


def header(subject: str) -> str:
    """First line of a prompt, with the blank line after it."""
    name = " " + subject.replace("_", " ") if subject else ""
    return f"The following are multiple choice questions (with answers) about{name}.\n\n"


def block(question: Question, with_answer: bool) -> str:
    """A question with its lettered options: as a shot with its answer, or open, ending in "Answer:"."""
    lines = [question.text.strip()]
    lines += [f"{letter}. {option.strip()}" for letter, option in zip(LETTERS, question.options, strict=True)]
    return "\n".join(lines) + "\nAnswer:" + (f" {LETTERS[question.answer]}\n\n" if with_answer else "")


def build_prompts(
    questions: QuestionSet,
    n_shots: int,
    n_orders: int | str | None = 8,
    seed: int = 0,
    split: str = "test",
    with_header: bool = True,
) -> list[Prompt]:
    """One prompt for every question of a split, by subject in sorted order.

    Args:
        questions: the question set.
        n_shots: solved examples before the question, the first of the subject's dev items.
        n_orders: how many orders of the shots a subject has, spread evenly over its questions; 1: all prompts
            share one prefix; None: every question has an order of its own; "paper": the one that it had in the paper,
            for test questions of its selection.
        seed: of the orders, but the paper's. They depend on the subject's name and on nothing else in the set.
        split: "test", "validation", "train" or "dev".
        with_header: begin with the line that names the subject; without it a prompt of no shots is the bare question.

    Raises BadQuestions if a subject has fewer dev items than shots, or as `check`; UnknownName, BadParameter.
    """
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    if n_shots and split == "dev":
        raise BadQuestions("Shots are taken from the dev questions, and would give their own answers: give n_shots=0.")
    at_least(0, n_shots=n_shots, seed=seed)
    if n_orders != "paper":
        at_least(1, n_orders=n_orders)
    elif split != "test" or not questions.order_numbers:
        raise BadParameter(f"'{questions.name}', {split}: the paper has no orders of shots for it. Take n_orders=null.")
    check(questions, split)
    if n_shots:
        check(questions, "dev")
    prompts = []
    for subject, items in sorted(getattr(questions, split).items()):
        dev = questions.dev.get(subject, ())
        if len(dev) < n_shots:
            raise BadQuestions(f"The subject '{subject}' has {len(dev)} dev items, {n_shots} shots were asked for.")
        shots = [block(question, with_answer=True) for question in dev[:n_shots]]
        numbers = questions.order_numbers[subject] if n_orders == "paper" else n_orders
        for question, order in zip(items, shot_orders(subject, len(items), n_shots, numbers, seed), strict=True):
            prefix = (header(subject) if with_header else "") + "".join(shots[i] for i in order)
            prompts.append(Prompt(subject, prefix, block(question, with_answer=False), question.answer))
    return prompts


def shot_orders(subject: str, n_questions: int, n_shots: int, n_orders: int | tuple | None, seed: int) -> list[tuple]:
    """The order of the shots for each of a subject's questions; n_orders may be its `order_numbers`."""
    shuffle = lambda rng: tuple(rng.permutation(n_shots).tolist())
    if n_orders is None:
        return [shuffle(generator("order", seed, subject, i)) for i in range(n_questions)]
    if isinstance(n_orders, tuple):
        rng = np.random.default_rng(PAPER_SEED)
        orders = [shuffle(rng) for _ in range(1 + max(n_orders))]
        return [orders[number] for number in n_orders]
    rng = generator("orders", seed, subject)
    orders: list[tuple[int, ...]] = []
    # More orders than questions would never be used, and take for ever to draw.
    while len(orders) < min(n_orders, n_questions, math.factorial(n_shots)):
        if (order := shuffle(rng)) not in orders:
            orders.append(order)
    places = generator("places", seed, subject, n_orders).permutation(np.arange(n_questions) % len(orders))
    return [orders[i] for i in places]


def generator(*names: object) -> np.random.Generator:
    """A random generator seeded by what it is for, the same on every machine and in every process."""
    sha256 = hashlib.sha256("\x1f".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(sha256[:8], "big"))


def load(
    name: str, n_subjects: int | None = None, n_per_subject: int | None = None, selection: str = "own", train: int = 20
) -> QuestionSet:
    """Load a question set by name.

    Args:
        name: "wordnet" (nouns), "wordnet-instances" (names, which no training has seen; test and dev alone), "mmlu",
            or a folder laid out as MMLU.
        n_subjects: keep only so many subjects, related and unrelated ones mixed; None keeps all.
        n_per_subject: so many test questions per subject, of MMLU at most; None: all ("mmlu": 200, as in the paper).
        selection: "paper" for the test questions that paper 1 drew of MMLU, 9,181, of which n_per_subject takes some,
            and for those that it trained on as the split `train`; "own" for a seeded choice of the book's.
        train: at most so many of a subject's dev and validation questions are in that split: 20 or 40 in the paper.

    Raises UnknownName, BadParameter, BadQuestions, MissingFile (no network and nothing stored), HashMismatch.
    """
    if name not in FIRST and not Path(name).is_dir():
        raise UnknownName("question set", name, FIRST)
    questions = _shipped(name) if name in SHIPPED else _mmlu(None if name == "mmlu" else Path(name))
    for split in [split for split in SPLITS if getattr(questions, split) or split == "test"]:
        check(questions, split)
    rows = {subject: range(len(items)) for subject, items in questions.test.items()}
    if selection != "own":
        if (selection, questions.name) != ("paper", "mmlu"):
            raise UnknownName("selection", f"{selection} of {questions.name}", ["own", "paper of mmlu"])
        rows = _paper_rows(questions.test, MMLU_CAP)
        rows |= {s: range(len(questions.test[s]))[:first] for s, first in PAPER_FIRST.items() if s in rows}
        pools = {s: questions.dev.get(s, ()) + questions.validation.get(s, ()) for s in questions.subjects}
        trained = {s: tuple(pools[s][i] for i in places) for s, places in _paper_rows(pools, train).items()}
        questions = replace(questions, train=trained, source=questions.source | {"selection": selection})
    questions = _part(questions, n_subjects, n_per_subject, rows)
    sizes = {split: sum(map(len, getattr(questions, split).values())) for split in SPLITS}
    return replace(questions, source=questions.source | {"subjects": len(questions.test), "sizes": sizes})


def check(questions: QuestionSet, split: str) -> None:
    """Raise BadQuestions, naming subject and question, for a split that cannot be used.

    MMLU as published has a few questions with equal options, which the paper kept: they are no fault here.
    """
    if not getattr(questions, split):
        raise BadQuestions(f"'{questions.name}' has no {split} questions.")
    for subject, items in getattr(questions, split).items():
        if not items:
            raise BadQuestions(f"The subject '{subject}' has no {split} questions.")
        for number, question in enumerate(items):
            texts = {type(text) for text in (question.subject, question.text, *question.options)}
            if len(question.options) != 4 or texts != {str} or repr(question.answer) not in {*"0123"}:  # not True, 2.0
                raise BadQuestions(f"{split} question {number} of '{subject}' is not 5 texts and 0 to 3: {question}")


def _part(questions: QuestionSet, n_subjects: int | None, n_per_subject: int | None, rows: Mapping) -> QuestionSet:
    """Keep the first `n_subjects` in an order that starts with FIRST, and so many test questions of each at most.

    These are a seeded choice among its `rows` (by subject, ascending), in their own order.
    """
    known = questions.subjects
    at_least(1, len(known), n_subjects=n_subjects)
    chosen = [subject for subject in dict.fromkeys([*FIRST[questions.name], *known]) if subject in known][:n_subjects]
    part = lambda split: {s: items for s, items in getattr(questions, split).items() if s in chosen}
    splits, order_numbers = {split: part(split) for split in SPLITS}, {}
    most = max(len(rows[subject]) for subject in chosen)
    at_least(1, most, n_per_subject=n_per_subject)
    if few := [s for s in chosen if questions.name in SHIPPED and len(rows[s]) < (n_per_subject or 1)]:
        advice = f"n_per_subject={n_per_subject} asks for more. Ask for fewer, or null for all."
        raise BadQuestions(f"The subject '{few[0]}' has {len(rows[few[0]])} test questions, {advice}")
    cap = n_per_subject or (MMLU_CAP if questions.name == "mmlu" else most)
    starts = np.cumsum([0, *(len(questions.test[subject]) for subject in known)])  # in all questions, subjects sorted
    numbers = np.concatenate([np.arange(len(shard)) for shard in np.array_split(np.arange(starts[-1]), PAPER_SHARDS)])
    for subject, items in splits["test"].items():
        rng = generator("choose", questions.name, 0, subject)
        places = np.sort(rng.choice(rows[subject], min(cap, len(rows[subject])), replace=False))
        splits["test"][subject] = tuple(items[i] for i in places)
        order_numbers[subject] = tuple(numbers[starts[known.index(subject)] + places].tolist())
    return replace(questions, **splits, order_numbers=order_numbers if questions.name == "mmlu" else {})


def _paper_rows(questions: Mapping[str, Sequence], most: int) -> dict[str, list[int]]:
    """Which questions of each subject paper 1 drew, ascending, where it took `most` at most.

    Source: the authors' masks of test and training questions, equal in every index.
    """
    rng = np.random.default_rng(PAPER_SEED)
    draw = lambda n: sorted(rng.choice(n, min(most, n), replace=False).tolist())
    return {subject: draw(len(items)) for subject, items in sorted(questions.items())}


def _question_set(name: str, source: dict[str, Any], rows: Mapping[str, Iterable[Mapping[str, Any]]]) -> QuestionSet:
    """A QuestionSet from {split: rows with subject, question, choices and answer}."""
    splits = {split: defaultdict(list) for split in SPLITS}
    for split, items in rows.items():
        for row in items:
            choices = row["choices"] if isinstance(row["choices"], (list, np.ndarray)) else [row["choices"]]
            question = Question(row["subject"], row["question"], tuple(choices), row["answer"])
            splits[split][question.subject].append(question)
    by_split = {split: {subject: tuple(qs) for subject, qs in items.items()} for split, items in splits.items()}
    return QuestionSet(name, source, **by_split)


def subject_groups(name: str, subjects: Iterable[str]) -> list[str]:
    """The rough neighbourhood of each subject (animals, plants, society, …); empty where a question set has none."""
    groups = dict(_shipped_table(name)[0][["subject", "group"]].to_numpy()) if name in SHIPPED else {}
    return [groups.get(subject, "") for subject in subjects]


def _shipped_table(name: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """The questions of a set that ships with the book, see `training.wordnet`, and where they came from."""
    path = project_folder() / "data" / f"{SHIPPED[name]}.parquet"
    card = read_json(path.with_suffix(".json"))
    check_files(path.parent, {path.name: card["sha256"]})
    return pd.read_parquet(path), {"kind": "file", "sha256": card["sha256"]}


def _shipped(name: str) -> QuestionSet:
    """A set that ships with the book.  Raises MissingFile, HashMismatch."""
    table, source = _shipped_table(name)
    return _question_set(name, source, {split: part.to_dict("records") for split, part in table.groupby("split")})


def _mmlu(folder: Path | None = None) -> QuestionSet:
    """MMLU from the hub, or from a folder with Parquet or JSON files named after their split, or such in its `all`."""
    import datasets  # slow to import, and not needed for the questions that ship with the book

    if folder:
        folder = folder / "all" if (folder / "all").is_dir() else folder
        files = {split: sorted(folder.glob(f"{split}*.*")) for split in ("dev", "validation", "test")}
        if missing := [split for split, paths in files.items() if not paths]:
            raise MissingFile(f"{folder} has no Parquet or JSON file for {missing}, with a name like 'test*.parquet'.")
        kind = "parquet" if files["test"][0].suffix == ".parquet" else "json"
        arguments = {"path": kind, "data_files": {split: list(map(str, paths)) for split, paths in files.items()}}
        origin = {"kind": "folder", "files": {p.name: file_sha256(p) for paths in files.values() for p in paths}}
    else:
        arguments = {"path": MMLU, "name": "all", "revision": MMLU_REVISION}
        origin = {"kind": "hub", "repository": MMLU, "revision": MMLU_REVISION}
    try:
        data = datasets.load_dataset(**arguments)
        return _question_set("mmlu", origin, {split: data[split] for split in SPLITS if split in data})
    except (KeyError, TypeError, ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        trouble, advice = MissingFile, "Connect to the network, or give a folder with the same files."
        if folder:
            trouble, advice = BadQuestions, "Parquet or JSON has the columns question, subject, choices and answer."
        raise trouble(f"{folder or MMLU} could not be read: {error}. {advice}") from error
