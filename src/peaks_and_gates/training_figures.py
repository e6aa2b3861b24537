"""What a training did: its loss and accuracy, and what it changed, checkpoint by checkpoint; figures and words."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from . import models
from .errors import MissingFile
from .figures import interval
from .finetune import check_card
from .landscape_figures import LABELS, LIMITS, paper_curve
from .peaks import select

LOOKS = (("#4477AA", "o"), ("#AA3377", "v"), ("#228833", "^"), ("#EE6677", "D"))  # colour and marker of an adapter
WINDOW = 10  # steps the drawn loss is averaged over


def training(cards: dict[str, dict]) -> Figure:
    """Loss (running mean) and validation accuracy against the step, for each adapter by the name of its card."""
    figure, axes = plt.subplots(2, 1, figsize=(6.6, 5.6), sharex=True, layout="constrained")
    for (name, card), (colour, marker) in zip(cards.items(), LOOKS, strict=False):
        loss = pd.Series(card["log"]["loss"]).rolling(WINDOW, min_periods=1).mean()
        axes[0].plot(loss.index + 1, loss, color=colour, lw=1.5, label=name)
        rows = pd.DataFrame(card["log"]["validation"])
        for shots, style in ((0, "-"), (5, "--")):
            one = rows[rows["shots"] == shots]
            label = f"{name}, {shots}-shot"
            axes[1].plot(one["step"], one["accuracy"], color=colour, marker=marker, ms=4, ls=style, label=label)
    axes[0].set(ylabel="loss on the answer (nats)", ylim=(0, None))
    axes[0].axhline(np.log(4), ls=":", color=plt.rcParams["text.color"])
    axes[0].annotate("four letters, guessing", (1, np.log(4)), va="bottom")
    axes[1].axhline(0.25, ls=":", color=plt.rcParams["text.color"])
    axes[1].set(xlabel="optimiser step", ylabel="validation accuracy", ylim=(0, 1))
    for ax in axes:
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def checkpoints(table: pd.DataFrame, metric: str, setting: str) -> Figure:
    """One metric of every checkpoint against relative depth, the later the lighter; below it the paper's."""
    rows = select(table, metric, setting)
    published = paper_curve("overlap_pretrained") if metric == "overlap_pretrained" else rows[:0]
    sets = {f"here: {rows['model'].iloc[0]}, N = {rows['n'].max():,.0f}": rows}
    if not published.empty:
        sets["the paper: llama-3-8b, N = 1,065"] = published
    figure, axes = plt.subplots(
        len(sets),
        1,
        figsize=(6.6, 0.8 + 3.2 * len(sets)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, (title, part) in zip(axes[:, 0], sets.items(), strict=True):
        steps = sorted(shown_step(c) for c in part["condition"].unique() if c.startswith("step "))
        shades = plt.get_cmap("viridis")(np.linspace(0.05, 0.9, len(steps)))
        for i, (step, shade) in enumerate(zip(steps, shades, strict=True)):
            one = part[part["condition"] == f"step {step}"]
            marker = "osv^DPX*<>"[i % 10]
            ax.plot(one["depth"], one["value"], color=shade, marker=marker, ms=3.5, lw=1.5, label=f"{step}")
            if "low" in one:
                ax.fill_between(one["depth"], one["low"], one["high"], color=shade, alpha=0.15, lw=0)
        ax.set(ylabel=LABELS[metric], xlim=(0, 1.02), ylim=LIMITS.get(metric))
        ax.set_title(title, fontsize=10)
        ax.legend(title="step", fontsize=8, title_fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    axes[-1, 0].set_xlabel("relative depth (layer / number of layers)")
    return figure


def shown_step(condition: str) -> int:
    """The number in a condition such as "step 42"."""
    return int(condition.removeprefix("step "))


def cards(folder: str) -> dict[str, dict]:
    """The cards of an adapter and of those trained beside it, by name.  Raises MissingFile, HashMismatch."""
    beside = models.in_checkout(folder).parent
    found = {path.parent.name: check_card(path.parent) for path in sorted(beside.glob("*/card.json"))}
    if not found:
        raise MissingFile(f"{beside} holds no adapter with a card.json: `pg finetune` makes them.")
    return found


def training_summary(found: dict[str, dict]) -> str:
    """What each training ended with, in words."""
    parts = []
    for name, card in found.items():
        scores = ", ".join(f"{value:.2f} {shots}" for shots, value in card["test_accuracy"].items())
        parts.append(f"{name}: {len(card['log']['loss'])} steps, test accuracy {scores}")
    return f"Loss and validation accuracy of the trainings. {'; '.join(parts)}."


def summary(table: pd.DataFrame, metric: str) -> str:
    """First and last layer and highest value of the metric at the first and the last checkpoint, in words."""
    rows = table[(table["metric"] == metric) & (table["condition"] != "fine-tuned")]
    steps = sorted({shown_step(c) for c in rows["condition"]})
    parts = []
    for step in (steps[1], steps[-1]):
        one = rows[rows["condition"] == f"step {step}"].sort_values("layer")
        top = one.loc[one["value"].idxmax()]
        ends = f"{one['value'].iloc[0]:.2f} at the first layer, {one['value'].iloc[-1]:.2f} at the last"
        parts.append(f"step {step}: {ends}, highest {top['value']:.2f} at layer {top['layer']:.0f}")
    return f"{LABELS[metric][0].upper()}{LABELS[metric][1:]}, {len(steps)} steps. {'; '.join(parts)}."


def by_step(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy, highest answer ARI and overlap, and last layer's overlap with step 0, by step, as a table to print."""
    rows = table[table["condition"] != "fine-tuned"].assign(step=lambda t: t["condition"].map(shown_step))
    last = rows[(rows["metric"] == "overlap_pretrained") & (rows["depth"] == 1)].set_index("step")["value"]
    highest = rows.groupby(["step", "metric"])["value"].max().unstack("metric")
    wide = highest[["accuracy", "ari_answer", "overlap_answer"]].assign(last_layer=last)
    names = {
        "ari_answer": "highest ARI with answer",
        "overlap_answer": "highest overlap with answer",
        "last_layer": "last layer, neighbours in common with step 0",
    }
    return wide.rename(columns=names).rename_axis(columns=None).round(3)


def compared(tables: Mapping[str, pd.DataFrame], every: int = 5) -> pd.DataFrame:
    """Neighbours in common at the last step, with their intervals, to print: a row a layer, a column a table.

    tables: by heading, as `dynamics.dynamics` gives them.  every: layers between two rows.
    """
    columns = {}
    for heading, table in tables.items():
        rows = select(table[table["condition"] == "fine-tuned"], "overlap_pretrained").set_index("layer")
        rows = rows[(rows.index == 1) | (rows.index % every == 0)]
        columns[heading] = rows.apply(interval, axis=1)
    return pd.DataFrame(columns)
