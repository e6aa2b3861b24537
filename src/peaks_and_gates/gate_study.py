"""What makes a gate narrow? A grid of small models around one base, as it is planned and as their cards say it.

    table = gate_study.table("weights/study")     # one row for each model and number
    gate_study.finding(gate_study.effects(table))

The grid is in gate_study.yml; `study_training` trains it and leaves a card of each model.  Rows:
    factor, cell, label   what the cell changes of the base, its name, and to what
    seed                  of the model
    metric                "accuracy" without a cut; "guess", a guesser's; "lost without end" and "lost without image",
                          the shares of the accuracy that are lost when the text cannot read the end-of-image token,
                          or the image; "strength", the first less the second; "loss" on text at the end; "minutes"
    value, low, high, n   with the 95 % interval over questions
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.stats import t as student

from . import record
from .errors import UnknownName
from .store import project_folder, read_json

BASE = "base"
COLUMNS = ("factor", "cell", "label", "seed", "metric", "value", "low", "high", "n")
SURE = 0.95


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.  factor: what it changes, "base" if nothing; label: to what.  changes: settings by name."""

    name: str
    factor: str
    label: str
    changes: Mapping[str, Any]
    seeds: tuple[int, ...]


@cache
def described() -> dict[str, Any]:
    """What gate_study.yml says."""
    return yaml.safe_load((Path(__file__).parent / "gate_study.yml").read_text())


def size(preset: str) -> dict[str, Any]:
    """The settings of the study at a preset's size.  Raises UnknownName."""
    known = described()["sizes"]
    if preset not in known:
        raise UnknownName("preset with a study", preset, known)
    return known[preset]


def grid(preset: str) -> dict[str, Cell]:
    """The cells by name, the base first.  Raises UnknownName."""
    chosen = size(preset)
    known = described()["cells"]
    found = {}
    for name in chosen.get("cells", known):
        changes = dict(known[name])
        factor, label = changes.pop("factor", BASE), changes.pop("label", BASE)
        found[name] = Cell(name, factor, label, changes, tuple(chosen["seeds" if changes else "base_seeds"]))
    return found


def preset_of(cards: str) -> str:
    """The preset whose cards a folder holds: `weights/study` is the laptop's, `weights/smoke/study` the smoke one's."""
    above = Path(cards).parent.name
    return "laptop" if above == "weights" else above


def table(cards: str, name: str = "narrow_gates") -> pd.DataFrame:
    """What the cards in a folder of the checkout say; empty if there are none.  Recorded under `name`."""
    return record.table(name, {"cards": cards}, lambda: rows((project_folder() or Path.cwd()) / cards))


def rows(folder: Path) -> pd.DataFrame:
    """The numbers of all cards of a folder, in the order of the grid; cards of other cells do not count.

    Raises HashMismatch if a card is damaged.
    """
    cells = grid(preset_of(str(folder)))
    cards = [read_json(path) for path in folder.glob("*.json")]
    cards = [card for card in cards if card["cell"] in cells]
    cards.sort(key=lambda card: (list(cells).index(card["cell"]), card["seed"]))
    found = []
    for card in cards:
        cell = cells[card["cell"]]
        who = (cell.factor, cell.name, cell.label, card["seed"])
        for metric, number in card["scores"].items():
            found.append((*who, metric, *(number[end] for end in ("value", "low", "high", "n"))))
        for metric, value in {"loss": card["log"]["loss"][-1], "minutes": card["log"]["seconds"] / 60}.items():
            found.append((*who, metric, value, value, value, 1))
    kinds = {"seed": int, "value": float, "low": float, "high": float, "n": int}
    return pd.DataFrame(found, columns=COLUMNS).astype(kinds)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """One row a model: its numbers by metric, "accuracy low", and whether it `answers` better than a guesser.

    A model answers if its accuracy's whole interval is above the guesser's accuracy; the strength of a gate is that of
    nothing if there is nothing to lose.
    """
    keys = ["factor", "cell", "label", "seed"]
    found = table.pivot(index=keys, columns="metric", values="value").reset_index()
    low = table[table["metric"] == "accuracy"].set_index(keys)["low"]
    found["accuracy low"] = low.loc[list(found[keys].itertuples(index=False, name=None))].to_numpy()
    found["answers"] = found["accuracy low"] > found["guess"]
    order = {cell: place for place, cell in enumerate(dict.fromkeys(table["cell"]))}
    return found.sort_values(["cell", "seed"], key=lambda c: c.map(order) if c.name == "cell" else c, ignore_index=True)


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """How far the gate of each cell is from the base's in strength, and how far seeds alone could bring it.

    Rows: factor, cell, label, n (models), mean, low and high (of the models), difference, margin, outcome: "more" or
    "less" if the difference is beyond the margin, "same" if it is not; "guesses" if a model of the cell does not
    answer; "unknown" of a cell with one seed, or if there is no base that answers.
    margin: the spread of seeds, pooled over the cells that answer, times Student's t, so that of all cells together
    none differs by chance with 95 % probability (Bonferroni; cells against a control, as in Dunnett 1955).
    """
    models = wide(table)
    cells = models.groupby("cell", sort=False).agg(
        factor=("factor", "first"),
        label=("label", "first"),
        n=("strength", "size"),
        answers=("answers", "all"),
        mean=("strength", "mean"),
        low=("strength", "min"),
        high=("strength", "max"),
        squares=("strength", lambda values: ((values - values.mean()) ** 2).sum()),
    )
    known = cells[cells["answers"]]
    freedom = int((known["n"] - 1).sum())
    compared = len(known) - (BASE in known.index)
    if BASE not in known.index or freedom == 0 or compared == 0:
        outcome = np.where(cells["answers"], "unknown", "guesses")
        return cells.assign(difference=np.nan, margin=np.nan, outcome=outcome).drop(columns="squares").reset_index()
    spread = np.sqrt(known["squares"].sum() / freedom)
    base = known.loc[BASE]
    quantile = student.ppf(1 - (1 - SURE) / 2 / compared, freedom)
    cells["difference"] = cells["mean"] - base["mean"]
    cells["margin"] = quantile * spread * np.sqrt(1 / cells["n"] + 1 / base["n"])
    beyond = np.where(cells["difference"] > 0, "more", "less")
    outcome = np.where(cells["difference"].abs() > cells["margin"], beyond, "same")
    outcome = np.where(cells["n"] > 1, outcome, "unknown")
    cells["outcome"] = np.where(cells["answers"], outcome, "guesses")
    return cells.drop(columns="squares").reset_index()


def finding(effects: pd.DataFrame) -> str:
    """Which factors move the strength of the gate beyond the spread of seeds, in sentences."""
    base = effects[effects["cell"] == BASE]
    others = effects[effects["cell"] != BASE]
    by = lambda *outcomes: others[others["outcome"].isin(outcomes)]
    said = []
    if len(base) and base["outcome"].item() != "guesses":
        at = base.iloc[0]
        span = f"{at['n']} seeds, {at['low']:+.2f} to {at['high']:+.2f}"
        reads = ": its text reads the image itself" if at["high"] < 0 else ""
        said.append(f"The base's gate strength is {at['mean']:+.2f} ({span}){reads}.")
        moving = by("more", "less")
        if len(by("unknown")):
            said.append("There are too few models to tell what moves it.")
        elif len(moving):
            said.append(f"Beyond the spread of seeds it is moved by {listed(moving, 'difference')}.")
        elif len(by("same")):
            said.append("None of the factors moves it beyond the spread of seeds.")
        still = by("same")
        still = still[~still["factor"].isin(moving["factor"])]
        if len(still) and len(moving):
            said.append(f"Not beyond it: {', '.join(dict.fromkeys(still['factor']))}.")
    elif len(base):
        said.append("The base answers no better than a guesser, so nothing can be compared with it.")
    else:
        said.append("The base has not been trained, so nothing can be compared with it.")
    if len(by("guesses")):
        said.append(f"No better than a guesser, hence without a strength: {listed(by('guesses'))}.")
    return " ".join(said)


def listed(cells: pd.DataFrame, column: str = "") -> str:
    """Cells by factor in words, with a number each: "layers (2: +0.31; 8: −0.40)"."""
    number = lambda row: f": {row[column]:+.2f}" if column else ""
    return ", ".join(
        f"{factor} ({'; '.join(row['label'] + number(row) for _, row in part.iterrows())})"
        for factor, part in cells.groupby("factor", sort=False)
    )


def missing(table: pd.DataFrame, cards: str) -> str:
    """What a page says if not all models of the grid have a card; nothing if they have."""
    preset = preset_of(cards)
    planned = sum(len(cell.seeds) for cell in grid(preset).values())
    there = len(table[["cell", "seed"]].drop_duplicates())
    command = f"`pg study --preset {preset}`"
    if there == 0:
        return f"The {planned} models of this page have not been trained yet: {command} does it and leaves their cards."
    return f"So far {there} of {planned} models have been trained; {command} goes on." if there < planned else ""
