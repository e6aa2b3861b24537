"""The figure and the table of the study on narrow gates, or what to do where there is nothing to show yet."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import figures, gate_study

# Paul Tol's bright palette by factor, a marker by seed; every row has its name beside it, too.
COLOURS = ("#4477AA", "#228833", "#AA3377", "#CCBB44", "#66CCEE", "#EE8866", "#BBBBBB")
BASE = "#EE6677"
MARKERS = ("o", "s", "^", "D", "v")
GAP = 0.5  # between two factors, a row being 1
LABELS = {
    "accuracy": "accuracy",
    "lost without end": "share lost without end-of-image",
    "lost without image": "share lost without image",
    "strength": "gate strength",
    "loss": "loss on text (nats per token)",
    "minutes": "minutes",
}


def shown(table: pd.DataFrame, cards: str) -> HTML:
    """The figure with its finding; a sentence instead if no model of the grid has been trained, beside it if some."""
    missing = re.sub("`(.+?)`", r"<code>\1</code>", gate_study.missing(table, cards))
    note = f"<p><strong>{missing}</strong></p>" if missing else ""
    if table.empty:
        return HTML(note)
    said = gate_study.finding(gate_study.effects(table))
    n = int(table.loc[table["metric"] == "accuracy", "n"].max())
    caption = (
        f"{said} Points are seeds, whiskers 95 % intervals over {n} questions. Left: the solid line is the base's "
        "mean, the band what seeds alone may do to a cell. Right: the dotted line is a guesser."
    )
    alt = f"Gate strength and accuracy of every cell of the grid, a point for each seed. {said}"
    return HTML(note + figures.show(lambda: strengths(table), alt, caption).data)


def named(factor: str, label: str) -> str:
    """A cell in words: "image tokens: 64 → 16"."""
    return label if factor == gate_study.BASE else f"{factor}: {gate_study.described()['factors'][factor]} → {label}"


def places(table: pd.DataFrame) -> dict[str, float]:
    """Where each cell's row is, downwards, with a gap between factors."""
    found, at, before = {}, 0.0, None
    for cell, factor in table[["cell", "factor"]].drop_duplicates().itertuples(index=False):
        at += 1 + GAP * (before not in (None, factor))
        found[cell], before = at, factor
    return found


def strengths(table: pd.DataFrame) -> Figure:
    """Gate strength by cell and seed, grouped by factor, with the base as a line; beside it accuracy without a cut."""
    models, effects, rows = gate_study.wide(table), gate_study.effects(table), places(table)
    figure, axes = plt.subplots(
        1, 2, figsize=(8.6, 1.5 + 0.31 * max(rows.values())), sharey=True, width_ratios=(3, 2), layout="constrained"
    )
    answers = {(m["cell"], m["seed"]): m["answers"] for _, m in models.iterrows()}
    for ax, metric in zip(axes, ("strength", "accuracy"), strict=True):
        for _, row in table[table["metric"] == metric].iterrows():
            if metric == "accuracy" or answers[row["cell"], row["seed"]]:
                point(ax, row, table, rows)
        ax.grid(axis="x")
    ink = plt.rcParams["text.color"]
    for cell, part in models[~models["answers"]].groupby("cell", sort=False):
        which = "" if len(part) == (models["cell"] == cell).sum() else f"seed {', '.join(map(str, part['seed']))}: "
        axes[0].text(-1.1, rows[cell], f"{which}no better than a guesser", va="center", fontsize=8, color=ink)
    base = effects[(effects["cell"] == gate_study.BASE) & (effects["outcome"] != "guesses")]
    if len(base):
        axes[0].axvline(base["mean"].item(), color=BASE, lw=1.5, zorder=0)
        margin = effects.loc[effects["cell"] != gate_study.BASE, "margin"].max()
        if np.isfinite(margin):
            edges = base["mean"].item() - margin, base["mean"].item() + margin
            axes[0].axvspan(*edges, color=BASE, alpha=0.15, lw=0, zorder=0)
    axes[0].axvline(0, color=ink, lw=0.8)
    axes[1].axvline(models["guess"].mean(), color=ink, lw=1.2, ls=":")
    axes[0].set(xlim=(-1.15, 1.15), xlabel="gate strength\n(−1: open, +1: gate)")
    axes[1].set(xlim=(0, 1.02), xlabel="accuracy without a cut\n(share of questions)")
    names = models.drop_duplicates("cell")
    labels = [named(factor, label) for factor, label in zip(names["factor"], names["label"], strict=True)]
    axes[0].set_yticks([rows[cell] for cell in names["cell"]], labels)
    axes[0].invert_yaxis()
    seeds = sorted(models["seed"].unique())
    handles = [Line2D([], [], color=ink, marker=MARKERS[s % len(MARKERS)], lw=0, label=f"seed {s}") for s in seeds]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def point(ax: Axes, row: pd.Series, table: pd.DataFrame, rows: dict[str, float]) -> None:
    """One model's number with its interval, on its cell's row."""
    factors = [factor for factor in table["factor"].unique() if factor != gate_study.BASE]
    own = row["factor"] == gate_study.BASE
    colour = BASE if own else COLOURS[factors.index(row["factor"]) % len(COLOURS)]
    seeds = sorted(table.loc[table["cell"] == row["cell"], "seed"].unique())
    y = rows[row["cell"]] + 0.24 * (seeds.index(row["seed"]) - (len(seeds) - 1) / 2)
    ends = [[max(0.0, row["value"] - row["low"])], [max(0.0, row["high"] - row["value"])]]
    marker = MARKERS[row["seed"] % len(MARKERS)]
    ax.errorbar(row["value"], y, xerr=ends, fmt=marker, color=colour, ms=5, lw=1.2, capsize=2)


def numbers(table: pd.DataFrame) -> HTML:
    """Accuracy, losses and strength of every cell, the seeds side by side; nothing if there is no model."""
    if table.empty:
        return HTML("")
    models = gate_study.wide(table)
    text = {"cell": [], "seeds": []} | {label: [] for label in LABELS.values()}
    for _, part in models.groupby("cell", sort=False):
        text["cell"].append(named(part["factor"].iloc[0], part["label"].iloc[0]))
        text["seeds"].append(", ".join(map(str, part["seed"])))
        for metric, label in LABELS.items():
            hidden = ~part["answers"] & (metric not in ("accuracy", "loss", "minutes"))
            values = part[metric].where(~hidden)
            digits = 1 if metric == "minutes" else 2
            text[label].append(" / ".join("–" if np.isnan(v) else f"{v:z.{digits}f}" for v in values))
    return HTML(pd.DataFrame(text).to_html(classes="pg-table", border=0, index=False))
