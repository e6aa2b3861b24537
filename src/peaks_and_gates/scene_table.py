"""How far one gets with the questions about scenes without looking at a picture.

    table = answers(n_questions=300, seed=0)

Rows are
    kind           of question, as in `scene_words.KINDS`; "all" for all of them
    metric         "share": of the kind's questions, how many have this answer
                   "guess": how many a guesser gets right that sees no picture
    setting        the answer; or what the guesser knows, the "kind" or the "question"
    value, low, high, n   with its 95 % interval, and the number of questions
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pandas as pd

from . import record, scene_words
from .scene_words import Question
from .scenes import sample
from .uncertainty import mean_estimate

N_LESSONS = 4000  # training questions the second guesser has read


def asked(n_questions: int, seed: int) -> list[Question]:
    """The questions about test scenes that the gate's pages ask for the same number and seed.

    Raises BadParameter for no questions or a negative seed.
    """
    return scene_words.ask(sample("test", n_questions, seed), seed)


def answers(n_questions: int, seed: int, name: str = "scene_questions") -> pd.DataFrame:
    """How the questions' answers are spread, and what two guessers get.  Raises BadParameter."""
    inputs = {"n_questions": n_questions, "seed": seed, "n_lessons": N_LESSONS}
    return record.table(name, inputs, lambda: answer_rows(n_questions, seed))


def answer_rows(n_questions: int, seed: int) -> pd.DataFrame:
    """Compute what `answers` returns: kinds in the order of `scene_words.KINDS`, answers with the commonest first."""
    found = asked(n_questions, seed)
    lessons = scene_words.ask(sample("train", N_LESSONS, seed), seed)
    right = {
        "kind": hits(found, commonest(found, "kind"), "kind"),
        "question": hits(found, commonest(lessons, "text"), "text"),
    }
    rows = []
    kinds = np.array([question.kind for question in found])
    for kind in scene_words.KINDS:
        replies = np.array([question.answer for question in found])[kinds == kind]
        rows += [row(kind, "share", answer, replies == answer) for answer, _ in Counter(replies.tolist()).most_common()]
        if len(replies):
            rows += [row(kind, "guess", known, each[kinds == kind]) for known, each in right.items()]
    rows += [row("all", "guess", known, each) for known, each in right.items()]
    return pd.DataFrame(rows)


def commonest(questions: Sequence[Question], by: str) -> dict[str, str]:
    """The answer given most often to the questions of one kind or of one wording.  by: "kind" or "text"."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for question in questions:
        counts[getattr(question, by)][question.answer] += 1
    return {key: count.most_common(1)[0][0] for key, count in counts.items()}


def hits(questions: Sequence[Question], guesses: dict[str, str], by: str) -> np.ndarray:
    """Which questions a guesser gets right, (n,) bool; it has no answer to what it never met."""
    return np.array([guesses.get(getattr(question, by)) == question.answer for question in questions])


def row(kind: str, metric: str, setting: str, values: np.ndarray) -> dict:
    """One row of the table.  values: (n,) bool, one a question."""
    estimate = mean_estimate(values)
    numbers = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
    return {"kind": kind, "metric": metric, "setting": setting} | numbers
