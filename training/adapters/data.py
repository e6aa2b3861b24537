"""What a model is fine-tuned on: solved questions, in an order that the seed and the step alone decide.

    examples = build(recipe)
    examples.batch(step)        # texts with the places of their answers

Two kinds. "answers": questions of the subjects themselves, one per text and without the header line, as in paper 1; the
WordNet questions get new wrong options every epoch. "format": the tasks of `format_tasks`, several in a row, which
teach the form of an answer with and without solved examples before it, and no noun definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from peaks_and_gates.errors import BadQuestions
from peaks_and_gates.landscape import questions as question_sets
from peaks_and_gates.landscape.questions import LETTERS, Question, QuestionSet, block, generator, header
from training.wordnet import build as wordnet

from . import format_tasks

MOST_IN_A_ROW = 6  # a question behind up to five solved ones
SORTED = 8  # batches whose texts are sorted by length together
REDRAWN = "wordnet"  # the question set whose wrong options can be drawn anew
TESTED = ("test", "validation")  # a word in these is in no training question


@dataclass(frozen=True)
class Text:
    """A training text.  ends: where the "Answer:" of each question ends.  answers: the letters to learn, 0 to 3."""

    text: str
    ends: tuple[int, ...]
    answers: tuple[int, ...]


@dataclass(frozen=True)
class TrainingSet:
    """batch(step): the texts of a step, from 0.  n_steps: in all.  about: size and source, for the card.

    questions: what the model is validated and tested on.
    """

    batch: Callable[[int], list[Text]]
    n_steps: int
    about: dict
    questions: QuestionSet


def in_a_row(questions: Sequence[Question], begin: str = "") -> Text:
    """Questions one after the other, solved but for the last; the answers of all are learned."""
    text, ends = begin, []
    for question in questions:
        text += block(question, with_answer=False)
        ends.append(len(text))
        text += f" {LETTERS[question.answer]}\n\n"
    return Text(text[: ends[-1]], tuple(ends), tuple(question.answer for question in questions))


def build(recipe: Mapping) -> TrainingSet:
    """The training set of a recipe (see recipes.yml).  Raises BadQuestions."""
    drawn_by_paper = {"selection": "paper", "train": recipe["per_subject"]} if "selection" in recipe else {}
    questions = question_sets.load(recipe["questions"], recipe["n_subjects"], **drawn_by_paper)
    return {"format": _format, "answers": _answers}[recipe["data"]](recipe, questions)


def words_of(questions: QuestionSet, splits: Sequence[str]) -> set[str]:
    """Every option of the questions of some splits, lower case."""
    parts = [getattr(questions, split) for split in splits]
    return {option.lower() for part in parts for questions in part.values() for q in questions for option in q.options}


def check_no_leak(trained: Sequence[Question], held_out: Collection[str]) -> None:
    """Raise BadQuestions if a word that is asked for or offered in training is held out.

    For question sets whose options are single words; in MMLU an option ("True", "4") may stand in many questions.
    """
    if leaked := sorted({option for q in trained for option in q.options if option.lower() in held_out}):
        examples = ", ".join(leaked[:5]) + (", …" if len(leaked) > 5 else "")
        raise BadQuestions(
            f"{len(leaked)} options of the training questions occur in held-out questions ({examples}). "
            "A score on these would measure memory: take the words out of one of the two."
        )


def _answers(recipe: Mapping, questions: QuestionSet) -> TrainingSet:
    """Questions of the named splits, in a new order every epoch."""
    epochs, dropped = _epochs(recipe, questions)
    size = len(epochs(0))
    per_epoch = math.ceil(size / recipe["batch"])

    @lru_cache(maxsize=1)
    def batches(epoch: int) -> list[list[Text]]:
        rng = generator("epoch", recipe["seed"], epoch)
        return in_batches([in_a_row([question]) for question in epochs(epoch)], recipe["batch"], rng)

    def batch(step: int) -> list[Text]:
        epoch, place = divmod(step, per_epoch)
        return batches(epoch)[place]

    about = {"questions": size, "source": questions.source, "fingerprint": questions.fingerprint, "dropped": dropped}
    return TrainingSet(batch, round(per_epoch * recipe["epochs"]), about, questions)


def in_batches(texts: Sequence[Text], size: int, rng: np.random.Generator) -> list[list[Text]]:
    """All texts in a random order, in batches of `size` of like length, so that little is padded.

    Alike in length are only the texts of a batch among those of SORTED batches; these come in a random order.
    """
    order = [texts[i] for i in rng.permutation(len(texts))]
    shuffled = []
    for at in range(0, len(order), SORTED * size):
        part = sorted(order[at : at + SORTED * size], key=lambda text: len(text.text))
        batches = [part[i : i + size] for i in range(0, len(part), size)]
        shuffled += [batches[i] for i in rng.permutation(len(batches))]
    return shuffled


def _epochs(recipe: Mapping, questions: QuestionSet) -> tuple[Callable[[int], list[Question]], int]:
    """The questions of an epoch, and how many were left out because they are test questions too."""
    parts = [getattr(questions, split) for split in recipe["splits"]]
    for subject in questions.subjects:
        if not any(part.get(subject) for part in parts):
            raise BadQuestions(
                f"The training set has no question of the subject '{subject}' ({', '.join(recipe['splits'])}): add "
                "some, or leave the subject out; a model trained without it would be compared unfairly."
            )
    if recipe["questions"] == REDRAWN:
        redraw = _redrawn(questions.subjects, recipe["others"])
        check_no_leak(redraw(0), words_of(questions, TESTED))
        return redraw, 0
    content = lambda q: (q.text.strip(), tuple(option.strip() for option in q.options))
    # The paper trained on what it drew, also where an equal question is in the test.
    tests = {} if "selection" in recipe else questions.test
    tested = {content(q) for group in tests.values() for q in group}
    training, dropped = [], 0
    for subject in questions.subjects:
        candidates = [q for part in parts for q in part.get(subject, ())]
        fresh = [q for q in candidates if content(q) not in tested]
        dropped += len(candidates) - len(fresh)
        order = generator("train", recipe["seed"], subject).permutation(len(fresh))
        training += [fresh[i] for i in order[: recipe["per_subject"]]]
    return (lambda epoch: training), dropped


def _redrawn(subjects: Sequence[str], others: float | None) -> Callable[[int], list[Question]]:
    """WordNet's training questions with wrong options drawn anew for every epoch.

    others: ask for nouns of no subject too, those that are met more often than this; None for no such.
    """
    nouns = wordnet.read_nouns()
    by_subject = wordnet.chosen()
    pools = {name: wordnet.split(name, by_subject[name])["train"] for name in subjects}
    if others is not None:
        pools |= wordnet.others(nouns, by_subject, others)

    @lru_cache(maxsize=1)
    def epoch(number: int) -> list[Question]:
        ask = lambda name, pool: wordnet.ask(nouns, name, f"epoch {number}", pool, pool)
        return [Question(name, *row) for name, pool in pools.items() for row in ask(name, pool)]

    return epoch


def _format(recipe: Mapping, questions: QuestionSet) -> TrainingSet:
    """Rows of up to six questions of one task, with and without a header; early on mostly copying."""
    held_out = words_of(questions, (*TESTED, "dev"))
    words = format_tasks.read(held_out)
    mix = {task: recipe["mix"].get(task, 0) for task in format_tasks.TASKS}
    names, late = list(mix), np.array(list(mix.values()), float) / sum(mix.values())
    early = np.array([name == "copying" for name in names], float)

    def batch(step: int) -> list[Text]:
        rng = generator("format", recipe["seed"], step)
        # A model that cannot yet bind a letter to an option learns it from options that are shown in the question.
        share = min(1.0, step / (recipe["steps"] * recipe["copying_until"]))
        n = int(rng.integers(1, MOST_IN_A_ROW + 1))  # one number a step, so that little is padded
        texts = []
        for _ in range(round(recipe["batch"] / n)):
            task = str(rng.choice(names, p=(1 - share) * early + share * late))
            begin = header(task) if rng.random() < 0.5 else ""
            row = [format_tasks.draw(words, task, rng) for _ in range(n)]
            check_no_leak(row, held_out)
            texts.append(in_a_row(row, begin))
        return texts

    about = {"tasks": mix, "words": len(words.pool), "source": questions.source}
    return TrainingSet(batch, recipe["steps"], about, questions)
