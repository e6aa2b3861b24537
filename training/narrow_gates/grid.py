"""The grid of small models around one base, as grid.yml plans it, and what the cards of its models say.

export()     # writes data/narrow-gates.parquet, one row per model and number, from weights/study
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from peaks_and_gates.cache import read_json
from training.common import read_recipes, weights_folder, write_with_card

BASE = "base"
MEANING = {
    "factor": 'what the cell changes of the base, "base" if nothing',
    "cell": "its name",
    "base, label": "what the base has, and to what it is changed",
    "seed": "of the model",
    "metric": (
        '"accuracy" without a cut; "guess", of a guesser who sees no picture; "lost without end" and "lost without '
        'image", the shares of the accuracy that are lost when the text cannot read the end-of-image token, or the '
        'image; "strength", the first less the second; "loss" on text at the end; "minutes"'
    ),
    "value, low, high, n": "with the 95 % interval over questions",
}


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.  factor: what it changes, "base" if nothing; label: to what.  changes: settings by name."""

    name: str
    factor: str
    label: str
    changes: Mapping[str, Any]
    seeds: tuple[int, ...]


PLAN = Path(__file__).with_name("grid.yml")
FACTORS = read_recipes(PLAN, "factors")  # what is changed, and what the base has


def size(preset: str) -> dict[str, Any]:
    """The settings of the study at a preset's size."""
    return read_recipes(PLAN, "sizes")[preset]


def grid(preset: str) -> dict[str, Cell]:
    """The cells by name, the base first.  Raises UnknownName."""
    chosen, known = size(preset), read_recipes(PLAN, "cells")
    cells = {}
    for name in chosen.get("cells", known):
        changes = dict(known[name])
        factor, label = changes.pop("factor", BASE), changes.pop("label", BASE)
        cells[name] = Cell(name, factor, label, changes, tuple(chosen["seeds" if changes else "base_seeds"]))
    return cells


def cards_folder(preset: str) -> Path:
    """Where the cards are kept, beside the minis."""
    return weights_folder(preset) / "study"


def rows(preset: str) -> pd.DataFrame:
    """The numbers of all cards, in the order of the grid.  Raises MissingFile, HashMismatch if a card is damaged."""
    lines = []
    for cell in grid(preset).values():
        for seed in cell.seeds:
            card = read_json(cards_folder(preset) / f"{cell.name}-{seed}.json")
            numbers = [
                (metric, *(score[end] for end in ("value", "low", "high", "n")))
                for metric, score in card["scores"].items()
            ]
            loss, minutes = card["log"]["loss"][-1], card["log"]["seconds"] / 60
            numbers += [("loss", loss, loss, loss, 1), ("minutes", minutes, minutes, minutes, 1)]
            base = FACTORS.get(cell.factor, BASE)
            lines += [(cell.factor, cell.name, base, cell.label, seed, *number) for number in numbers]
    columns = ["factor", "cell", "base", "label", "seed", "metric", "value", "low", "high", "n"]
    return pd.DataFrame(lines, columns=columns).astype({"value": float, "low": float, "high": float})


def export() -> None:
    """Write what the book's page reads."""
    write_with_card(
        rows("laptop"),
        weights_folder("laptop").parent / "data" / "narrow-gates.parquet",
        command="python -m training.narrow_gates",
        seed=[0, 1, 2],
        source="The cards in weights/study, of models trained on training/scenes alone.",
        licence="MIT, as the book",
        meaning=MEANING,
    )
