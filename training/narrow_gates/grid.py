"""The grid of small models around one base, as grid.yml plans it, and what the cards of its models say.

rows("laptop")     # data/narrow-gates.parquet: one row per model and number, from weights/study
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from peaks_and_gates.cache import read_json
from training.common import read_recipes, weights_folder

BASE = "base"


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
