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


def dimension_frames(table: pd.DataFrame) -> dict[str, Frame]:
    """Gride against the ranks compared, a frame for each noise."""
    frames = {}
    for noise, rows in table.groupby("noise"):
        ends = []
        for true, its in rows.groupby("true"):
            first, last = its.iloc[0], its.iloc[-1]
            ends.append(f"{true} is estimated as {first['value']:.1f} from near, {last['value']:.1f} from far")
        frames[f"noise {noise:g}"] = (lambda rows=rows: dimension_picture(table, rows), f"{'; '.join(ends)}.")
    return frames


def dimension_picture(table: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """One noise."""
    figure, ax = plt.subplots(figsize=(6.6, 4.2), layout="constrained")
    for (colour, marker), (true, its) in zip(LOOKS, rows.groupby("true"), strict=False):
        ax.plot(its["rank"], its["value"], color=colour, marker=marker, ms=5, mew=0)
        ax.fill_between(its["rank"], its["low"], its["high"], color=colour, alpha=0.2, lw=0)
        ax.axhline(true, color=colour, ls=":", lw=1.3)
        ax.text(its["rank"].max() * 1.12, true, f"truly {true}", color=plt.rcParams["text.color"], va="center")
    ranks = sorted(rows["rank"].unique())
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ticks = [2, 5, 10, 20, 50, 100, 200]
    ax.set(xticks=ranks, xticklabels=[f"{r} and {2 * r}" for r in ranks], xlim=(0.9, 1.9 * ranks[-1]))
    ax.set(yticks=ticks, yticklabels=ticks, ylim=(1.6, 1.2 * table["high"].max()))
    ax.set(xlabel="neighbours compared", ylabel="estimated dimension")
    ax.tick_params(axis="x", rotation=30)
    ax.minorticks_off()
    return figure


def peak_frames(numbers: pd.DataFrame, drawn: pd.DataFrame) -> dict[str, Frame]:
    """The five clouds coloured by peak, beside the number of peaks, a frame for each Z."""
    frames = {}
    for z, points in drawn.groupby("z"):
        at = numbers[numbers["z"] == z].set_index("true")
        one, five = at.loc[1], at.loc[5]
        said = (
            f"{points['peak'].nunique()} peaks in the draw shown, {1 - points['core'].mean():.0%} of its points in the "
            f"halo. Over the draws, {five['value']:.1f} peaks [{five['low']:.0f}, {five['high']:.0f}] where there are "
            f"five clouds, ARI with them {five['ari']:.2f}, and {one['value']:.1f} [{one['low']:.0f}, "
            f"{one['high']:.0f}] where there is one."
        )
        frames[f"Z = {z:g}"] = (lambda z=z, points=points: peak_picture(numbers, points, z), said)
    return frames


def peak_picture(numbers: pd.DataFrame, points: pd.DataFrame, z: float) -> Figure:
    """One Z."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.7), dpi=130, layout="constrained")  # dpi: of the points
    sizes = points["peak"].value_counts()
    for i, (_, its) in enumerate((peak, points[points["peak"] == peak]) for peak in sizes.index):
        colour, marker = LOOKS[i % len(LOOKS)]
        core = its[its["core"]]
        halo = its[~its["core"]]
        left.scatter(core["x"], core["y"], s=12, color=colour, marker=marker, lw=0, rasterized=True)
        left.scatter(
            halo["x"], halo["y"], s=11, facecolor="none", edgecolor=colour, marker=marker, lw=0.5, rasterized=True
        )
    left.set(xticks=[], yticks=[], aspect="equal", title="filled: core, hollow: halo")
    left.grid(False)
    left.spines[:].set(visible=True, lw=0.5)
    for (colour, marker), (true, its) in zip((LOOKS[3], LOOKS[0]), numbers.groupby("true"), strict=True):
        right.plot(its["z"], its["value"], color=colour, marker=marker, ms=5, mew=0)
        right.fill_between(its["z"], its["low"], its["high"], color=colour, alpha=0.2, lw=0)
        right.axhline(true, color=colour, ls=":", lw=1.3)
        right.text(4.05, true * 1.06, f"truly {true}", ha="right", va="bottom", color=plt.rcParams["text.color"])
    right.axvline(z, color=plt.rcParams["text.color"], lw=1)
    ticks = [1, 2, 5, 10, 20, 50]
    right.set_yscale("log")
    right.set(yticks=ticks, yticklabels=ticks, xlabel="significance Z", title="number of peaks")
    right.minorticks_off()
    return figure


def agreement_frames(table: pd.DataFrame, counted: pd.DataFrame) -> dict[str, Frame]:
    """Labels against groups as a table of counts, beside the indices, a frame for each share that was shuffled."""
    rows = table[table["what"] == "shuffled"]
    frames = {}
    for share, its in rows.groupby("x"):
        at = its.set_index("index")
        said = (
            f"adjusted Rand index {interval(at.loc['ari'])}, expected {(1 - share) ** 2:.2f}; Rand index "
            f"{at.loc['rand', 'value']:.2f}; homogeneity {at.loc['homogeneity', 'value']:.2f}."
        )
        its = counted[counted["x"] == share]
        counts = its.pivot(index="label", columns="group", values="n").fillna(0).to_numpy()
        frames[f"{share:.0%} shuffled"] = (lambda c=counts, x=share: agreement_picture(rows, c, x), said)
    return frames


def agreement_picture(rows: pd.DataFrame, counts: np.ndarray, share: float) -> Figure:
    """One share."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.6), layout="constrained")
    left.imshow(counts, cmap="Blues", vmin=0, vmax=counts.sum() / len(counts))
    for (i, j), count in np.ndenumerate(counts):
        dark = count > 0.6 * counts.sum() / len(counts)
        left.text(j, i, f"{count:.0f}", ha="center", va="center", fontsize=8, color="#ffffff" if dark else "#1b1f24")
    left.set(xlabel="group", ylabel="label", xticks=[], yticks=[], title="points by label and group")
    left.grid(False)
    index_curves(right, rows)
    x = np.linspace(0, 1, 50)
    right.plot(x, (1 - x) ** 2, color=LOOKS[3][0], ls=":", lw=1.3)
    right.axvline(share, color=plt.rcParams["text.color"], lw=1)
    right.set(xlabel="share of the points shuffled", ylim=(-0.05, 1.05), title="agreement")
    right.legend(loc="lower left", fontsize=9)
    return figure


def index_curves(ax: Axes, rows: pd.DataFrame) -> None:
    """A curve for each index of agreement."""
    names = {"ari": "adjusted Rand", "rand": "Rand", "homogeneity": "homogeneity"}
    for (colour, marker), (index, name) in zip((LOOKS[3], LOOKS[0], LOOKS[2]), names.items(), strict=True):
        its = rows[rows["index"] == index]
        ax.plot(its["x"], its["value"], color=colour, marker=marker, ms=5, mew=0, label=name)


def null_picture(table: pd.DataFrame) -> Figure:
    """Indices of groups that have nothing to do with the labels; overlap of classes that lie more and more apart."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.5), layout="constrained")
    rows = table[table["what"] == "random"]
    index_curves(left, rows)
    left.set_xscale("log", base=2)
    ticks = sorted(rows["x"].unique())
    left.set(xticks=ticks, xticklabels=[f"{t:.0f}" for t in ticks], ylim=(-0.05, 1.05))
    left.set(xlabel="number of random groups", title="no agreement at all")
    left.minorticks_off()
    left.legend(fontsize=9)
    its = table[table["what"] == "apart"]
    right.plot(its["x"], its["value"], color=LOOKS[0][0], marker="o", ms=5, mew=0)
    right.fill_between(its["x"], its["low"], its["high"], color=LOOKS[0][0], alpha=0.2, lw=0)
    right.plot(its["x"], its["null"], ls=":", color=plt.rcParams["text.color"])
    right.text(its["x"].max(), its["null"].iloc[-1] + 0.03, "shuffled labels", ha="right")
    right.set(ylim=(-0.05, 1.05), xlabel="distance of the classes, in widths", title="label overlap")
    return figure


def null_summary(table: pd.DataFrame) -> str:
    """What `null_picture` shows, in words."""
    random = table[table["what"] == "random"].pivot(index="x", columns="index", values="value")
    first, last = random.iloc[0], random.iloc[-1]
    apart = table[table["what"] == "apart"]
    return (
        f"With {random.index[0]:.0f} to {random.index[-1]:.0f} random groups the Rand index goes from "
        f"{first['rand']:.2f} to {last['rand']:.2f} and homogeneity from {first['homogeneity']:.2f} to "
        f"{last['homogeneity']:.2f}; the adjusted Rand index stays within {random['ari'].abs().max():.3f} of 0. Label "
        f"overlap is {apart['value'].iloc[0]:.2f} where the classes are one cloud (shuffled labels: "
        f"{apart['null'].iloc[0]:.2f}) and {apart['value'].iloc[-1]:.2f} where they lie "
        f"{apart['x'].iloc[-1]:.0f} widths apart."
    )


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
