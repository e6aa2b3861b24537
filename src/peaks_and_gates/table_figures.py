"""Drawings of probes beside peaks.  Nothing here makes a number that is recorded."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import figures
from .figures import select


def layer_curves(table: pd.DataFrame, panels: Mapping[str, str], title: str) -> Figure:
    """One panel a metric under another, a curve a condition, against relative depth, with 95 % bands and the null.

    panels: metric -> the setting drawn of it, None for any.  title: over the first panel.  In a panel of answer probes
    dashed lines give how often the model's own letter is right, where the table has it.
    """
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(6.6, 0.6 + 2.7 * len(panels)), sharex=True, squeeze=False, layout="constrained"
    )
    for ax, (metric, setting) in zip(axes[:, 0], panels.items(), strict=True):
        rows = select(table, metric, setting)
        for condition, curve in rows.groupby("condition", sort=False):
            figures.line(ax, curve, condition)
        null = rows.groupby("depth")[["null", "null_high"]].mean()
        ax.plot(null.index, null["null"], ls=":", lw=1.2, color=plt.rcParams["text.color"])
        if metric == "probe_answer":
            for own in select(table, "accuracy").itertuples():
                ax.axhline(own.value, ls="--", lw=1.2, color=figures.look(own.condition)[0])
        ax.set(ylabel=figures.LABELS[metric], xlim=(0, 1.02), ylim=(-0.05, 1.03))
    axes[0, 0].set_title(title)
    axes[-1, 0].set_xlabel("relative depth (layer / number of layers)")
    ink = plt.rcParams["text.color"]
    handles = [
        Line2D([], [], color=figures.look(c)[0], marker=figures.look(c)[1], lw=1.8, label=c)
        for c in dict.fromkeys(table["condition"])
    ]
    handles.append(Line2D([], [], ls=":", color=ink, label="shuffled labels"))
    if "probe_answer" in panels:
        handles.append(Line2D([], [], ls="--", color=ink, label="the model's own letter"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def beside(table: pd.DataFrame, label: str, recipe: str) -> pd.DataFrame:
    """The best probe of each model and condition, and the peaks' agreement at its layer and at their own best layer.

    Returns columns model, condition, probe, low, high, null_high, layer, ari (there), highest_ari, at_layer, n.  A
    condition without peaks of its own (an unseen order of the shots) has those of the condition it was made from.
    """
    ari = select(table, f"ari_{label}", recipe).set_index(["model", "condition"])
    rows = []
    for (model, condition), probes in select(table, f"probe_{label}").groupby(["model", "condition"], sort=False):
        best = probes.loc[probes["value"].idxmax()]
        peaks = ari.loc[[(model, condition.removesuffix(", unseen order"))]]
        top = peaks.iloc[peaks["value"].argmax()]
        rows.append({
            "model": model, "condition": condition, "probe": best["value"], "low": best["low"], "high": best["high"],
            "null_high": best["null_high"], "layer": int(best["layer"]),
            "ari": peaks.loc[peaks["layer"] == best["layer"], "value"].iloc[0],
            "highest_ari": top["value"], "at_layer": int(top["layer"]), "n": int(best["n"]),
        })  # fmt: skip
    return pd.DataFrame(rows)


def beside_summary(table: pd.DataFrame, label: str, recipe: str) -> str:
    """The same as one sentence."""
    told = [
        f"{b.condition} {b.probe:.2f} [{b.low:.2f}, {b.high:.2f}] at layer {b.layer} "
        f"(peaks there {b.ari:.2f}, at most {b.highest_ari:.2f})"
        for b in beside(table, label, recipe).itertuples()
    ]
    return f"Best probe of {label}, with the ARI of the peaks: {'; '.join(told)}."
