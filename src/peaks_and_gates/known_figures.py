"""Draw what tools say where the answer is known: the figures of the pages beside the methods."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import interval

Frame = tuple[Callable[[], Figure], str]  # how it is drawn, and what it shows
# Paul Tol's bright palette, a marker each.
LOOKS = (("#4477AA", "o"), ("#66CCEE", "s"), ("#228833", "^"), ("#EE6677", "D"), ("#AA3377", "v"), ("#CCBB44", "P"))
GREY = "#888888"


def cut_frames(table: pd.DataFrame) -> dict[str, Frame]:
    """Who reads whom in each wired mini, and its accuracy, a frame for each cut."""
    frames = {}
    for cut, rows in table.groupby("cut", sort=False):
        said = "; ".join(f"{row['model'].removeprefix('mini-')} {interval(row)}" for _, row in rows.iterrows())
        name = "nothing cut" if cut == "none" else f"cut {cut}"
        frames[name] = (lambda cut=cut: cut_picture(table, cut), f"accuracy {said}.")
    return frames


# A prompt in small: what each of its tokens is.
TOKENS = ("text", "begin", *["image"] * 6, "end", "text", "text", "text")


def reading(model: str, cut: str) -> np.ndarray:
    """(T, T) int for the tokens of TOKENS, row reads column: 0 later, so never read, 1 read, 2 closed by the wiring,
    3 cut."""
    from .gate.attention import closed_pairs
    from .gate.tokens import KINDS, TokenMap
    from .interventions import CUTS

    tokens = TokenMap(torch.tensor([[KINDS.index(kind) for kind in TOKENS]], dtype=torch.uint8), "end", "begin")
    closed = closed_pairs(tokens, model.removeprefix("mini-"))[0]
    cells = torch.ones_like(closed, dtype=torch.int).tril()
    if sources := CUTS[cut].sources:
        pairs = tokens.where(*CUTS[cut].targets).mT & tokens.where(*sources)
        cells[(cells == 1) & pairs.fill_diagonal_(False)] = 3  # a token always reads itself
    cells[(cells > 0) & closed] = 2
    return cells.numpy()


def cut_picture(table: pd.DataFrame, cut: str) -> Figure:
    """One cut."""
    models = list(dict.fromkeys(table["model"]))
    widths = [1.0] * len(models) + [0.9]
    figure, axes = plt.subplots(
        1, len(models) + 1, figsize=(3.1 * len(models) + 2.4, 3.4), width_ratios=widths, layout="constrained"
    )
    for ax, model in zip(axes, models, strict=False):
        reading_panel(ax, reading(model, cut))
        ax.set_title(model.removeprefix("mini-"))
    rows = table[table["cut"] == cut].set_index("model").loc[models]
    spread = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
    colours = [LOOKS[3][0], LOOKS[0][0], *[GREY] * len(models)][: len(models)]
    axes[-1].bar(range(len(models)), rows["value"], yerr=spread, color=colours, capsize=3, width=0.7)
    axes[-1].set(xticks=range(len(models)), xticklabels=[m.removeprefix("mini-") for m in models], ylim=(0, 1.05))
    axes[-1].set_title("accuracy")
    axes[-1].set_axisbelow(True)
    return figure


def reading_panel(ax: Axes, cells: np.ndarray) -> None:
    """A square a pair of tokens: filled where a token (row) reads another (column), crossed where it was cut."""
    for value, colour, mark, size in ((1, LOOKS[0][0], "s", 42), (2, GREY, "x", 12), (3, "#CC3311", "X", 55)):
        rows, columns = np.nonzero(cells == value)
        ax.scatter(columns, rows, s=size, color=colour, marker=mark, lw=0.8 if value == 2 else 0)
    middles = {"begin": 1, "image": 4.5, "end": 8, "text": 10}
    ax.set(xticks=list(middles.values()), yticks=list(middles.values()))
    ax.set_xticklabels(middles, rotation=60, fontsize=8)
    ax.set_yticklabels(middles, fontsize=8)
    ax.set(xlim=(-0.7, len(cells) - 0.3), ylim=(len(cells) - 0.3, -0.7), aspect="equal")
    ax.grid(False)


def flip_picture(table: pd.DataFrame) -> Figure:
    """Share of answers that change sides when the end-of-image token is patched, by layer and model."""
    figure, ax = plt.subplots(figsize=(6.6, 3.4), layout="constrained")
    for (colour, marker), (model, rows) in zip((LOOKS[3], LOOKS[0]), table.groupby("model", sort=False), strict=False):
        ax.plot(rows["layer"], rows["value"], color=colour, marker=marker, ms=5, mew=0)
        ax.fill_between(rows["layer"], rows["low"], rows["high"], color=colour, alpha=0.2, lw=0)
        at = rows.loc[rows["value"].idxmax()]
        name = model.removeprefix("mini-")
        ax.text(at["layer"], at["value"] + 0.04, name, color=plt.rcParams["text.color"], ha="center")
    ax.set(ylim=(-0.03, 1.1), xlabel="layer whose state is replaced", ylabel="share of answers that flip")
    return figure


def flip_summary(table: pd.DataFrame) -> str:
    """What `flip_picture` shows, in words."""
    parts = []
    for model, rows in table.groupby("model", sort=False):
        top, others = rows.loc[rows["value"].idxmax()], rows["value"].nlargest(2).iloc[-1]
        name = model.removeprefix("mini-")
        parts.append(f"{name} {interval(top)} at layer {top['layer']}, at any other at most {others:.2f}")
    return f"Largest share of answers that change sides: {'; '.join(parts)}."
