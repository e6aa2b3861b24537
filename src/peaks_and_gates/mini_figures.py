"""Figures of the page on the minis: how they learned, what they can do, what they see and make."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from .figures import interval
from .scene_words import KINDS

# By architecture and role: the seeds of one mini share a look.
LOOKS = {
    "native": ("#EE6677", "-"),
    "adapted": ("#4477AA", "-"),
    "gated": ("#228833", "--"),
    "open": ("#CCBB44", "--"),
    "lightly-taxed": ("#AA3377", ":"),
    "taxed": ("#AA3377", "-."),
    "opened": ("#66CCEE", ":"),
}
SMOOTHED = 25  # steps that a point of a loss curve is the mean of
LAST = {"all questions": "all questions", "classes": "class", "cider_ptb": "caption CIDEr"}


def role(mini: str) -> str:
    """The recipe of a mini, from its name: "mini-native-0" is "native"."""
    return mini.removeprefix("mini-").rstrip("0123456789").rstrip("-")


def loss_curves(losses: pd.DataFrame) -> Figure:
    """Loss on text against the step, a line for each mini."""
    figure, ax = plt.subplots(figsize=(6.6, 3.4), layout="constrained")
    named: dict[str, object] = {}
    for mini, rows in losses.groupby("mini", sort=False):
        colour, style = LOOKS[role(mini)]
        mean = rows.groupby((rows["step"] - 1) // SMOOTHED)[["step", "loss"]].mean()
        (line,) = ax.plot(mean["step"], mean["loss"], color=colour, ls=style, lw=1.5)
        named.setdefault(role(mini), line)
    ax.set(xlabel="step", ylabel="loss on text (nats per token)", yscale="log")
    figure.legend(named.values(), named, loc="outside lower center", ncols=3)
    return figure


def abilities(table: pd.DataFrame) -> HTML:
    """What the minis can do: accuracy by kind of question, class accuracy, CIDEr, each with its interval.

    The seeds of one recipe share a column: their mean, and an interval that spans all of theirs.
    """
    scored = table[table["metric"].isin([*KINDS, *LAST])]
    seeds = table.groupby(table["mini"].map(role), sort=False)["mini"].nunique()
    titles = {each: each + (f" ({n} seeds)" if n > 1 else "") for each, n in seeds.items()}
    merged = scored.assign(mini=scored["mini"].map(role).map(titles)).groupby(["metric", "mini"])
    ends = merged.agg({"value": "mean", "low": "min", "high": "max"})
    text = ends.apply(interval, axis=1)
    wide = text.unstack().loc[[*KINDS, *LAST], list(titles.values())].rename(index=LAST)
    return HTML(wide.rename_axis(index=None, columns=None).to_html(classes="pg-table", border=0))


def sights(table: pd.DataFrame) -> Figure:
    """A row of pictures for each kind in `mini_cards.sights`."""
    titles = {"drawn": "drawn", "seen": "seen: as image tokens, and back", "imagined": "imagined from the caption"}
    columns = int((table["kind"] == "drawn").sum())
    figure, axes = plt.subplots(
        len(titles), columns, figsize=(1.1 * columns, 1.3 * len(titles)), squeeze=False, layout="constrained"
    )
    for line, (kind, title) in zip(axes, titles.items(), strict=True):
        for ax, png in zip(line, table.loc[table["kind"] == kind, "png"], strict=True):
            ax.imshow(np.asarray(Image.open(io.BytesIO(png))), interpolation="nearest")
            ax.set(xticks=[], yticks=[])
        line[0].set_title(title, loc="left", fontsize=10)
    return figure
