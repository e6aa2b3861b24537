"""Multiple-choice questions and the prompts made of them.

    questions = load("wordnet")                      # or load("mmlu")
    prompts = build_prompts(questions, n_shots=5)    # one per test question
    prompts[0].text                                  # header, shots, question, "Answer:"

Prompt form: MMLU's (Hendrycks et al. 2021), byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from peaks_and_gates import mmlu, wordnet
from peaks_and_gates.errors import BadParameter, BadQuestions, UnknownName, is_whole
from peaks_and_gates.fetch import package_files
from peaks_and_gates.store import document, file_sha256

LETTERS = ("A", "B", "C", "D")
SPLITS = ("dev", "train", "validation", "test")
MMLU = "cais/mmlu"
MMLU_REVISION = "c30699e8356da336a370243923dbaf21066bb9fe"
MMLU_CAP = 200  # per subject, as in paper 1; the exact 9,181 questions it drew cannot be drawn again (see `_mmlu`)

# A selection of subjects starts with these, chosen for plain names and for near neighbours (birds, mammals) beside
# strangers (music, law), before any model had read them.
FIRST = {
    "wordnet": (
        "birds",
        "mammals",
        "diseases",
        "drugs",
        "law",
        "crime_and_wrongdoing",
        "music",
        "clothing",
        "fish_reptiles_and_amphibians",
        "insects_and_other_invertebrates",
        "trees",
        "flowers_and_herbs",
        "fruits_vegetables_and_spices",
        "cooking",
        "beverages_and_soups",
        "anatomy",
        "medicine",
        "chemistry",
        "physics",
        "rocks_and_minerals",
        "weather_and_astronomy",
        "landforms_and_waters",
        "mathematics_and_shapes",
        "units_of_measure",
        "military",
        "vehicles_and_ships",
        "buildings_and_structures",
        "fabrics_and_ropes",
        "money_and_finance",
        "religion_and_myth",
        "sports_and_games",
        "linguistics",
        "occupations",
        "emotions",
        "personality",
        "computing_and_electronics",
    ),
    "mmlu": (
        "high_school_biology",
        "college_biology",
        "professional_law",
        "jurisprudence",
        "college_mathematics",
        "abstract_algebra",
        "high_school_european_history",
        "philosophy",
    ),
}


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
    """Questions by split and subject; `source` says where they came from: package or hub, hash, revision."""

    name: str
    source: dict
    dev: Split
    train: Split
    validation: Split
    test: Split

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
    lines = [question.text]
    lines += [f"{letter}. {option.strip()}" for letter, option in zip(LETTERS, question.options, strict=True)]
    return "\n".join(lines) + "\nAnswer:" + (f" {LETTERS[question.answer]}\n\n" if with_answer else "")


def build_prompts(
    questions: QuestionSet,
    n_shots: int,
    n_orders: int | None = 8,
    seed: int = 0,
    split: str = "test",
    with_header: bool = True,
) -> list[Prompt]:
    """One prompt for every question of a split, by subject in sorted order.

    Args:
        questions: the question set.
        n_shots: solved examples before the question, the first of the subject's dev items.
        n_orders: how many orders of the shots a subject has, spread evenly over its questions; 1: all prompts
            share one prefix; None: every question has an order of its own, as in the paper.
        seed: of the orders. They depend on the subject's name and on nothing else in the set.
        split: "test", "validation", "train" or "dev".
        with_header: begin with the line that names the subject; without it a prompt of no shots is the bare question.

    Raises BadQuestions if a subject has fewer dev items than shots, or as `check`; BadParameter; UnknownName.
    """
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    if not is_whole(n_shots) or not (n_orders is None or is_whole(n_orders, 1)) or not is_whole(seed):
        raise BadParameter(
            f"n_shots={n_shots!r}, n_orders={n_orders!r}, seed={seed!r}: need whole numbers, n_shots >= 0, "
            "n_orders >= 1 or None, and seed >= 0."
        )
    if not getattr(questions, split):
        raise BadQuestions(f"'{questions.name}' has no {split} questions.")
    _check_split(questions, split)
    if n_shots:
        _check_split(questions, "dev")
    prompts = []
    for subject, asked in sorted(getattr(questions, split).items()):
        dev = questions.dev.get(subject, ())
        if len(dev) < n_shots:
            raise BadQuestions(f"The subject '{subject}' has {len(dev)} dev items, {n_shots} shots were asked for.")
        shots = [block(question, with_answer=True) for question in dev[:n_shots]]
        for question, order in zip(asked, _orders(subject, len(asked), n_shots, n_orders, seed), strict=True):
            prefix = (header(subject) if with_header else "") + "".join(shots[i] for i in order)
            prompts.append(Prompt(subject, prefix, block(question, with_answer=False), question.answer))
    return prompts


def _orders(subject: str, n_questions: int, n_shots: int, n_orders: int | None, seed: int) -> list[tuple[int, ...]]:
    """The order of the shots for each of a subject's questions."""
    shuffle = lambda draw: tuple(draw.permutation(n_shots).tolist())
    if n_orders is None:
        return [shuffle(wordnet.generator("order", seed, subject, i)) for i in range(n_questions)]
    draw = wordnet.generator("orders", seed, subject)
    orders: list[tuple[int, ...]] = []
    # More orders than questions would never be used, and take for ever to draw.
    while len(orders) < min(n_orders, n_questions, math.factorial(n_shots)):
        if (order := shuffle(draw)) not in orders:
            orders.append(order)
    places = wordnet.generator("places", seed, subject, n_orders).permutation(np.arange(n_questions) % len(orders))
    return [orders[i] for i in places]


def load(
    name: str,
    n_subjects: int | None = None,
    n_per_subject: int | None = None,
    seed: int = 0,
    source: str | None = None,
) -> QuestionSet:
    """Load a question set by name.

    Args:
        name: "wordnet", "mmlu", or a folder laid out as MMLU.
        n_subjects: keep only so many subjects, related and unrelated ones mixed; None keeps all.
        n_per_subject: at most so many test questions a subject; None: all ("mmlu": 200, as in the paper).
        seed: of the choice of test questions.
        source: for "mmlu", another hub repository or a local folder with the same layout.

    Raises UnknownName, BadParameter, MissingFile (no network and nothing stored), BadQuestions.
    """
    if isinstance(name, str | Path) and os.path.isdir(name):  # False, unlike Path's, for what can be no path
        name, source = "mmlu", str(name)
    if name not in list(FIRST):
        raise UnknownName("question set", name, FIRST)
    if name == "wordnet" and source is not None:
        raise BadParameter("'wordnet' comes from one pinned package; `source` is for 'mmlu' only.")
    if not is_whole(seed) or not isinstance(source, str | Path | None):
        raise BadParameter(f"seed={seed!r}, source={source!r}: need a whole number >= 0, and a name or None.")
    questions = _wordnet() if name == "wordnet" else _mmlu(source)
    cap = MMLU_CAP if name == "mmlu" and n_per_subject is None else None
    questions = _fewer_subjects(questions, n_subjects)
    questions = _fewer_questions(questions, n_per_subject, cap, seed)
    sizes = {split: sum(map(len, getattr(questions, split).values())) for split in SPLITS}
    return replace(questions, source=questions.source | {"subjects": len(questions.test), "sizes": sizes})


def check(questions: QuestionSet, distinct: bool = True) -> None:
    """Raise BadQuestions, naming subject and question, for a set that cannot be used.

    `distinct` also refuses equal options; MMLU as published has a few such questions, which the paper kept.
    """
    if not questions.test:
        raise BadQuestions(f"'{questions.name}' has no test questions.")
    for split in SPLITS:
        _check_split(questions, split, distinct)


def _check_split(questions: QuestionSet, split: str, distinct: bool = False) -> None:
    """`check` for one split."""
    for subject, asked in getattr(questions, split).items():
        if not _is_text(subject):
            raise BadQuestions(f"The {split} questions have a subject {subject!r} that is no text.")
        if not asked:
            raise BadQuestions(f"The subject '{subject}' has no {split} questions.")
        for number, question in enumerate(asked):
            if problem := _problem(question, distinct):
                raise BadQuestions(f"{split} question {number} of '{subject}' {problem}: {str(question.text)[:80]!r}")


def _problem(question: Question, distinct: bool) -> str | None:
    """What is wrong with a question, or None."""
    if not _is_text(question.text):
        return "has a text that is none"
    if not isinstance(question.options, tuple):
        return f"has the options {question.options!r}, not a list of 4"
    if len(question.options) != 4:
        return f"has {len(question.options)} options, not 4"
    if not all(map(_is_text, question.options)):
        return f"has an option that is no text among {question.options}"
    if type(question.answer) is not int or question.answer not in range(4):  # True and 1.0 are in a range
        return f"has the answer {question.answer!r}, not 0, 1, 2 or 3"
    if distinct and _has_repeats(question):
        return f"has equal options {question.options}"
    return None


def _is_text(value: object) -> bool:
    """Whether a value is text that can be written down: half of a surrogate pair cannot."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _has_repeats(question: Question) -> bool:
    """Whether two options are equal but for case and outer spaces."""
    return len({option.strip().lower() for option in question.options}) < len(question.options)


def _fewer_subjects(questions: QuestionSet, n_subjects: int | None) -> QuestionSet:
    """Keep the first `n_subjects` in an order that starts with FIRST."""
    known = questions.subjects
    if n_subjects is None:
        return questions
    if not is_whole(n_subjects, 1) or n_subjects > len(known):
        raise BadParameter(f"n_subjects={n_subjects!r}; '{questions.name}' has 1 to {len(known)}.")
    lead = [subject for subject in FIRST[questions.name] if subject in known]
    kept = (lead + [subject for subject in known if subject not in lead])[:n_subjects]
    part = lambda split: {s: qs for s, qs in getattr(questions, split).items() if s in kept}
    return replace(questions, **{split: part(split) for split in SPLITS})


def _fewer_questions(questions: QuestionSet, n_per_subject: int | None, cap: int | None, seed: int) -> QuestionSet:
    """Keep a seeded choice of at most so many test questions of each subject, in their own order."""
    most = max(map(len, questions.test.values()))
    if n_per_subject is not None and (not is_whole(n_per_subject, 1) or n_per_subject > most):
        raise BadParameter(f"n_per_subject={n_per_subject!r}; the largest subject here has {most} test questions.")
    wanted = n_per_subject or cap or most
    test = {}
    for subject, asked in questions.test.items():
        draw = wordnet.generator("choose", questions.name, seed, subject)
        chosen = sorted(draw.choice(len(asked), min(wanted, len(asked)), replace=False).tolist())
        test[subject] = tuple(asked[i] for i in chosen)
    return replace(questions, test=test)


def _question_set(name: str, source: dict, splits: Mapping[str, Mapping[str, Iterable]]) -> QuestionSet:
    """A QuestionSet from {split: {subject: [(text, options, answer), ...]}}."""
    listed = lambda options: tuple(options) if isinstance(options, list | tuple) else options  # `check` refuses others
    make = lambda subject, row: Question(subject, row[0], listed(row[1]), row[2])
    parts = {
        split: {subject: tuple(make(subject, row) for row in rows) for subject, rows in splits.get(split, {}).items()}
        for split in SPLITS
    }
    return QuestionSet(name, source, **parts)


def _wordnet() -> QuestionSet:
    """The WordNet definitions, from the stored copy if the builder has not changed since it was written."""
    source = {"kind": "package", "package": wordnet.PACKAGE, "sha256": wordnet.PACKAGE_SHA256}
    compute = lambda: wordnet.build(package_files(wordnet.PACKAGE, wordnet.PACKAGE_SHA256, wordnet.FILES))
    inputs = source | {"subjects": file_sha256(wordnet.SUBJECTS_FILE)}
    questions = _question_set("wordnet", source, document("questions", inputs, compute, ("wordnet", "glosses")))
    check(questions)
    return questions


def _mmlu(source: str | None) -> QuestionSet:
    """MMLU as read from the hub or a folder, with a count of the questions that have equal options."""
    splits, origin = mmlu.read(source)
    questions = _question_set("mmlu", origin, splits)
    check(questions, distinct=False)
    repeats = sum(_has_repeats(question) for asked in questions.test.values() for question in asked)
    return replace(questions, source=origin | {"test_questions_with_equal_options": repeats})
