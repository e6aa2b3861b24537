"""Drawings of tables that have more than a curve a condition: settings against claims, halves, probes beside peaks.

Nothing here makes a number that is recorded: a claim's rule is applied to the recorded table when the page is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from . import claims, landscape_figures
from .figures import interval
from .peaks import select
from .robustness import CENTRE, highest, settings

LABELS = landscape_figures.LABELS | {
    "probe_subject": "probe accuracy, subject",
    "probe_answer": "probe accuracy, answer letter",
}
# Conditions, and what follows the comma of one, that other pages do not draw; colours and markers as in `figures`.
LOOKS = {
    "unseen order": ("#EE8866", "X"),
    "1 order": ("#EE6677", "X"),
    "8 orders": ("#4477AA", "D"),
    "an order per question": ("#228833", "o"),
}
OUTCOMES = {  # symbol and colour, laid thinly over the page so that its own text colour stays readable
    "met": ("✓", "#4477AA"),
    "unclear": ("~", "#CCBB44"),
    "missed": ("✗", "#EE6677"),
    "untested": ("○", "#BBBBBB"),
}
SHORT = {
    "lift": "lift",
    "maximum": "highest",
    "depth of maximum": "depth of\nhighest",
    "late share": "late\nshare",
    "ari_subject": "ARI\nsubject",
    "ari_answer": "ARI\nanswer",
    "n_peaks": "number\nof peaks",
    "core_fraction": "core\nfraction",
}


def look(condition: str) -> tuple[str, str]:
    """Colour and marker of a condition."""
    name, _, control = condition.partition(", ")
    return LOOKS.get(control or name) or landscape_figures.CONTROLS.get(control) or landscape_figures.look(name)


def held(table: pd.DataFrame, model: str, pretrained: str) -> pd.DataFrame:
    """Whether each part of a claim that hangs on the recipe is met, under every setting and for both base models.

    table: as `robustness.settings_varied` gives it.  The bounds are those of book/claims.yml; the conditions without
    and with shots are those of `model`, and again of `pretrained`, the latter with the fine-tuned model beside them.
    Parts that need a condition the table lacks (one shot) are left out.

    Returns one row a model, setting and part: model, setting, column (its heading), value, low, high, outcome.
    """
    shot = table["condition"].str.endswith("-shot")
    tuned = table["condition"] == "fine-tuned"
    groups = {model: table[shot & (table["model"] == model)]}
    groups[pretrained] = table[(shot & (table["model"] == pretrained)) | tuned]
    rows = []
    for name, group in groups.items():
        for claim in claims.load():
            for part in claim.get("parts", ()):
                if part.get("setting") == CENTRE:
                    rows += [
                        {"model": name, "setting": setting, "column": heading(claim["id"], part)}
                        | verdict(part, setting, group)
                        for setting in table["setting"].unique()
                    ]
    cells = pd.DataFrame(rows)
    tested = cells.groupby(["model", "column"])["outcome"].transform(lambda found: (found != "untested").any())
    return cells[tested].reset_index(drop=True)


def verdict(part: Mapping, setting: str, group: pd.DataFrame) -> dict:
    """One part of a claim under one setting."""
    anywhere = {key: value for key, value in part.items() if not key.endswith("group")}
    found = claims.measure({**anywhere, "setting": setting}, {part["table"]: group})
    if found.found is None:
        return {"value": np.nan, "low": np.nan, "high": np.nan, "outcome": "untested"}
    return {"value": found.found.value, "low": found.found.low, "high": found.found.high, "outcome": found.outcome}


def heading(claim: str, part: Mapping) -> str:
    """What a column of the map shows, and its bound, in a few short lines."""
    who = "fine-tuned" if part["condition"] == "fine-tuned" else "few-shot"
    bounds = [f"{sign} {part[key]:g}" for key, sign in (("at_least", "≥"), ("at_most", "≤")) if key in part]
    return "\n".join([claim, who, SHORT[part["measure"]], SHORT[part["metric"]], *bounds])


def verdict_map(cells: pd.DataFrame) -> Figure:
    """Settings in rows, parts of claims in columns; in each cell the number, and whether the bound was met."""
    groups = dict(list(cells.groupby("model", sort=False)))
    names = [name for name in settings() if name in set(cells["setting"])]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(6.8, len(groups) * (1.9 + 0.3 * len(names))), squeeze=False, layout="constrained"
    )
    for ax, (model, group) in zip(axes[:, 0], groups.items(), strict=True):
        columns = list(dict.fromkeys(group["column"]))
        for cell in group.itertuples():
            x, y = columns.index(cell.column), names.index(cell.setting)
            symbol, colour = OUTCOMES[cell.outcome]
            ax.add_patch(plt.Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=colour, alpha=0.35, lw=0))
            number = "" if np.isnan(cell.value) else f"{cell.value:.2f} "
            ax.text(x, y, f"{number}{symbol}", ha="center", va="center", fontsize=10)
        ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(names) - 0.5, -0.5))
        ax.set_xticks(range(len(columns)), columns, fontsize=9.5)
        ax.set_yticks(range(len(names)), names)
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.set_title(model, pad=10)
    handles = [Patch(color=colour, alpha=0.35, label=f"{symbol} {name}") for name, (symbol, colour) in OUTCOMES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def verdict_summary(cells: pd.DataFrame) -> str:
    """For each model, which parts of claims come out alike under all settings, and how often the others do."""
    sentences = []
    for model, group in cells.groupby("model", sort=False):
        alike, mixed = [], []
        for column, rows in group.groupby("column", sort=False):
            counts, name = rows["outcome"].value_counts(), column.replace("\n", " ")
            if len(counts) == 1:
                alike.append(f"{name} ({counts.index[0]})")
            else:
                mixed.append(f"{name} ({', '.join(f'{outcome} {n}' for outcome, n in counts.items())})")
        n = group["setting"].nunique()
        told = [f"the same verdict under all {n} settings: {'; '.join(alike) or 'none'}"]
        sentences.append(f"{model}: {'. '.join([*told, *(['not the same: ' + '; '.join(mixed)] if mixed else [])])}.")
    return " ".join(sentences)


def halves_map(table: pd.DataFrame, halves: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """The highest value of each half of the questions (dots) beside that of all of them (diamond, 95 % interval)."""
    cases = list(table.groupby(["model", "condition"], sort=False).groups)
    figure, axes = plt.subplots(
        len(metrics), 1, figsize=(6.6, len(metrics) * (0.9 + 0.42 * len(cases))), sharex=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax, metric in zip(axes[:, 0], metrics, strict=True):
        whole, parts = highest(table[table["setting"] == CENTRE], metric), highest(halves, metric)
        for y, (model, condition) in enumerate(cases):
            colour, _ = look(condition)
            of_case = lambda rows, model=model, condition=condition: rows[
                (rows["model"] == model) & (rows["condition"] == condition)
            ]
            values = of_case(parts)["value"]
            ax.plot(values, np.linspace(y + 0.12, y + 0.36, len(values)), "o", ms=5, mew=0, alpha=0.8, color=colour)
            top = of_case(whole).iloc[0]
            spread = [[top["value"] - top["low"]], [top["high"] - top["value"]]]
            ax.errorbar(top["value"], y - 0.1, xerr=spread, fmt="D", ms=6, capsize=3, color=colour)
        ax.set_yticks(range(len(cases)), [f"{condition}\n{model}" for model, condition in cases], fontsize=9)
        ax.set(ylim=(len(cases) - 0.5, -0.5), title=f"highest {LABELS[metric]}")
        ax.grid(True, axis="x")
    axes[-1, 0].set_xlabel("adjusted Rand index")
    ink = plt.rcParams["text.color"]
    handles = [
        Line2D([], [], marker="D", ls="-", color=ink, label="all questions, 95 % interval"),
        Line2D([], [], marker="o", ls="", color=ink, label="a half of the questions"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def halves_summary(table: pd.DataFrame, halves: pd.DataFrame, metric: str) -> str:
    """The highest value of all questions, and the range of the halves', of each condition and model."""
    whole, parts = highest(table[table["setting"] == CENTRE], metric), highest(halves, metric)
    told = []
    for top in whole.itertuples():
        values = parts[(parts["model"] == top.model) & (parts["condition"] == top.condition)]["value"]
        told.append(f"{top.condition} of {top.model} {top.value:.2f}, halves {values.min():.2f} to {values.max():.2f}")
    return f"Highest {LABELS[metric]}: {'; '.join(told)}."


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
            band(ax, curve, condition)
        null = rows.groupby("depth")[["null", "null_high"]].mean()
        ax.plot(null.index, null["null"], ls=":", lw=1.2, color=plt.rcParams["text.color"])
        if metric == "probe_answer":
            for own in select(table, "accuracy").itertuples():
                ax.axhline(own.value, ls="--", lw=1.2, color=look(own.condition)[0])
        ax.set(ylabel=LABELS[metric], xlim=(0, 1.02), ylim=landscape_figures.LIMITS.get(metric, (-0.02, 1.03)))
    axes[0, 0].set_title(title)
    axes[-1, 0].set_xlabel("relative depth (layer / number of layers)")
    ink = plt.rcParams["text.color"]
    handles = [
        Line2D([], [], color=look(c)[0], marker=look(c)[1], lw=1.8, label=c) for c in dict.fromkeys(table["condition"])
    ]
    handles.append(Line2D([], [], ls=":", color=ink, label="shuffled labels"))
    if "probe_answer" in panels:
        handles.append(Line2D([], [], ls="--", color=ink, label="the model's own letter"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def band(ax: Axes, curve: pd.DataFrame, condition: str) -> None:
    """One condition's curve with its interval."""
    colour, marker = look(condition)
    ax.plot(curve["depth"], curve["value"], color=colour, marker=marker, ms=5, mew=0, lw=1.8)
    ax.fill_between(curve["depth"], curve["low"], curve["high"], color=colour, alpha=0.2, lw=0)


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


def orders_summary(table: pd.DataFrame, metric: str, recipe: str) -> str:
    """The highest value of each number of orders, with its interval and layer."""
    told = []
    for condition, rows in select(table, metric, recipe).groupby("condition", sort=False):
        top = rows.loc[rows["value"].idxmax()]
        told.append(f"{condition} {interval(top)} (layer {top['layer']:.0f} of {rows['layer'].max():.0f})")
    return f"Highest {LABELS[metric]}, {int(table['n'].max()):,} questions: {', '.join(told)}."
