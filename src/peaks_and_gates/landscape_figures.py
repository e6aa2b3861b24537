"""Draw the landscape against depth: a curve a condition, beside the paper's own; and say in words what they show.

figures.show(lambda: landscape_figures.curves(table, "ari_subject", "figures"), alt="...", caption="...")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .errors import MissingFile
from .peaks import select
from .store import project_folder

# Paul Tol's bright palette; marker and position back the colour up, so that no figure needs colour to be read.
CONDITIONS = {
    "0-shot": ("#4477AA", "o"),
    "1-shot": ("#66CCEE", "s"),
    "2-shot": ("#228833", "^"),
    "4-shot": ("#EE6677", "D"),
    "5-shot": ("#EE6677", "D"),
    "fine-tuned": ("#AA3377", "v"),
}
CONTROLS = {"no header": ("#CCBB44", "P"), "one order": ("#EE8866", "X")}
LABELS = {
    "ari_subject": "ARI of peaks with subject",
    "ari_answer": "ARI of peaks with answer letter",
    "overlap_subject": "label overlap with subject",
    "overlap_answer": "label overlap with answer letter",
    "n_peaks": "number of density peaks",
    "core_fraction": "fraction of core points",
    "intrinsic_dimension": "intrinsic dimension",
    "accuracy": "accuracy",
    "letter_mass": "probability of a letter",
    "overlap_pretrained": "neighbours in common with step 0",
}
# What a metric can be at all; an interval may reach beyond, a picture need not. None: as the data ask.
LIMITS = {
    "ari_subject": (-0.05, 1.03),
    "ari_answer": (-0.05, 1.03),
    "overlap_subject": (0, 1.03),
    "overlap_answer": (0, 1.03),
    "overlap_pretrained": (0, 1.03),
    "core_fraction": (0, 1.03),
    "n_peaks": (0, None),
    "intrinsic_dimension": (0, None),
}


@cache
def reference() -> pd.DataFrame:
    """The paper's own curves: quantity, model, condition, layer, value, source.  Raises MissingFile."""
    root = project_folder()
    path = root / "book" / "reference" / "landscape_curves.csv" if root else None
    if path is None or not path.is_file():
        raise MissingFile("The paper's curves are in book/reference of the repository: clone it to draw them.")
    curves = pd.read_csv(path)
    # The later question set of the authors' rebuttal is another experiment; it would double every curve.
    curves = curves[~curves["source"].str.contains("rebuttal")]
    curves["depth"] = curves["layer"] / curves.groupby("model")["layer"].transform("max")
    return curves


def paper_curve(metric: str, model: str | None = "llama-3-8b") -> pd.DataFrame:
    """One quantity of one of the paper's models, with relative depth; empty if the paper has none."""
    curves = reference()
    return curves[(curves["quantity"] == metric) & (curves["model"] == model)]


def curves(
    tables: pd.DataFrame | Sequence[pd.DataFrame], metric: str, setting: str, paper_model: str | None = "llama-3-8b"
) -> Figure:
    """One metric against relative depth: a panel for each table of this run, below them the paper's own curves.

    Bands are 95 % intervals; of a model trained with several seeds the band spans them all, and each seed is a thin
    line. The panels share their axes, so that depths can be compared along a vertical line, and heights too, but for
    the number of peaks, which grows with N.  A metric that the paper has no curve of is drawn without it, and so is
    every metric with paper_model=None.
    """
    ours = [select(table, metric, setting) for table in ([tables] if isinstance(tables, pd.DataFrame) else tables)]
    published = paper_curve(metric, paper_model)
    panels = len(ours) + (not published.empty)
    figure, axes = plt.subplots(
        panels, 1, figsize=(6.6, 0.5 + 2.7 * panels), sharex=True, sharey=metric != "n_peaks", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax, rows in zip(axes[:, 0], ours, strict=False):
        panel(ax, rows)
        models = ", ".join(dict.fromkeys(rows.loc[~rows["condition"].map(is_seed), "model"]))
        ax.set_title(f"here: {models}, {rows['layer'].max()} layers, N = {rows['n'].max():,.0f}", fontsize=10)
    shown = [c for rows in ours for c in rows["condition"].unique() if not is_seed(c)]
    if not published.empty:
        for condition, rows in published.groupby("condition"):
            line(axes[-1, 0], rows, condition)
        shown += list(published["condition"].unique())
        title = f"the paper: {paper_model}, {published['layer'].max()} layers, N = 9,181"
        axes[-1, 0].set_title(title, fontsize=10)
    for ax in axes.flat:
        ax.set(xlabel="", ylabel=LABELS[metric], xlim=(0, 1.02), ylim=LIMITS.get(metric))
    axes[-1, 0].set_xlabel("relative depth (layer / number of layers)")
    legend(figure, list(dict.fromkeys(shown)), any(rows["null"].notna().any() for rows in ours))
    return figure


def panel(ax: Axes, table: pd.DataFrame) -> None:
    """The conditions of one table with their bands, and what shuffled labels give."""
    for condition, rows in table.groupby("condition"):
        if is_seed(condition):
            ax.plot(rows["depth"], rows["value"], color=look(condition.split(",")[0])[0], lw=0.7, alpha=0.7)
            continue
        line(ax, rows, condition)
        ax.fill_between(rows["depth"], rows["low"], rows["high"], color=look(condition)[0], alpha=0.2, lw=0)
    shuffled = table.dropna(subset=["null"]).groupby("depth")[["null", "null_high"]].mean()
    ink = plt.rcParams["text.color"]
    ax.plot(shuffled.index, shuffled["null"], ls=":", lw=1.2, color=ink)
    margin = shuffled["null_high"] - shuffled["null"]
    ax.fill_between(shuffled.index, shuffled["null"] - margin, shuffled["null_high"], color=ink, alpha=0.15, lw=0)


def is_seed(condition: str) -> bool:
    """Whether a condition is one of several seeds of a model ("fine-tuned, seed 0")."""
    return ", seed " in condition


def look(condition: str) -> tuple[str, str]:
    """Colour and marker of a condition, or of the control named behind its comma."""
    name, _, control = condition.partition(", ")
    known = CONTROLS.get(control) if control else CONDITIONS.get(name)
    return known or ("#888888", "*")


def line(ax: Axes, rows: pd.DataFrame, condition: str) -> None:
    """One condition's curve."""
    colour, marker = look(condition)
    sns.lineplot(
        rows,
        x="depth",
        y="value",
        ax=ax,
        color=colour,
        marker=marker,
        markersize=4.5,
        markeredgewidth=0,
        lw=1.8,
    )
    ax.set_ylabel("")


def legend(figure: Figure, conditions: list[str], with_null: bool) -> None:
    """One legend under all panels."""
    handles = [Line2D([], [], color=look(c)[0], marker=look(c)[1], lw=1.8, label=c) for c in conditions]
    if with_null:
        handles.append(Line2D([], [], ls=":", color=plt.rcParams["text.color"], label="shuffled labels"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3 if len(handles) > 5 else 5)


def accuracies(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy (micro, macro, calibrated) and letter mass by condition: a panel for each model, by its name."""
    metrics = {"accuracy_micro": "micro", "accuracy_macro": "macro"}
    metrics |= {"accuracy_calibrated": "calibrated", "letter_mass": "letter mass"}
    figure, axes = plt.subplots(
        len(tables), 1, figsize=(6.6, 0.6 + 2.2 * len(tables)), sharex=True, squeeze=False, layout="constrained"
    )
    handles = {}
    for ax, (name, table) in zip(axes[:, 0], tables.items(), strict=True):
        conditions = [c for c in dict.fromkeys(table["condition"]) if not is_seed(c)]
        for i, condition in enumerate(conditions):
            colour, marker = look(condition)
            rows = table[table["condition"] == condition].set_index("metric")
            x = np.arange(len(metrics)) + (i - (len(conditions) - 1) / 2) * 0.15
            value = rows.loc[list(metrics), "value"].to_numpy()
            spread = np.abs(rows.loc[list(metrics), ["low", "high"]].to_numpy().T - value)
            handles[condition] = ax.errorbar(x, value, spread, fmt=marker, color=colour, capsize=2)
        ax.axhline(0.25, ls=":", color=plt.rcParams["text.color"])
        ax.annotate("chance", (len(metrics) - 0.6, 0.25), va="bottom", ha="right")
        ax.set(xticks=range(len(metrics)), xticklabels=metrics.values(), ylim=(0, 1.03), ylabel="share of questions")
        ax.set_title(name)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4)
    return figure


def letters(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """How often each letter is chosen, a bar for each condition of each model."""
    shares = []
    for name, table in tables.items():
        rows = table[(table["metric"] == "letter_share") & ~table["condition"].map(is_seed)]
        wide = rows.pivot(index="condition", columns="setting", values="value")
        shares.append(wide.set_index(f"{name}, " + wide.index))
    share = pd.concat(shares)
    figure, ax = plt.subplots(figsize=(6.6, 0.9 + 0.34 * len(share)), layout="constrained")
    left = np.zeros(len(share))
    for letter, colour in zip("ABCD", ("#4477AA", "#66CCEE", "#CCBB44", "#EE6677"), strict=True):
        ax.barh(share.index, share[letter], left=left, color=colour, height=0.7)
        for y, (start, width) in enumerate(zip(left, share[letter], strict=True)):
            if width > 0.08:
                ax.text(start + width / 2, y, letter, ha="center", va="center", color="#1b1f24")
        left = left + share[letter].to_numpy()
    ax.set(xlim=(0, 1), xlabel="share of questions for which the letter is chosen")
    ax.invert_yaxis()
    ax.grid(False)
    return figure


def summary(table: pd.DataFrame, metric: str, setting: str) -> str:
    """The highest value of each condition and where it is, in one sentence; for captions and alternative text."""
    parts = []
    for condition, rows in select(table, metric, setting).groupby("condition"):
        if is_seed(condition):
            continue
        top = rows.loc[rows["value"].idxmax()]
        digits = 0 if metric == "n_peaks" else 1 if metric == "intrinsic_dimension" else 2
        parts.append(f"{condition} {top['value']:.{digits}f} (layer {top['layer']:.0f} of {rows['layer'].max():.0f})")
    return f"Highest {LABELS[metric]}: {', '.join(parts)}."


def summaries(tables: Mapping[str, pd.DataFrame], metric: str, setting: str) -> str:
    """`summary` of several tables, each behind its name."""
    return " ".join(f"{name}. {summary(table, metric, setting)}" for name, table in tables.items())


def accuracy_summary(table: pd.DataFrame) -> str:
    """Micro accuracy and letter mass of each condition with the most frequent letter, in one sentence."""
    parts = []
    for condition, rows in table.groupby("condition"):
        if is_seed(condition):
            continue
        by_metric = rows.set_index("metric")
        micro, mass = by_metric.loc["accuracy_micro"], by_metric.loc["letter_mass"]
        letters = rows[rows["metric"] == "letter_share"]
        top = letters.loc[letters["value"].idxmax()]
        parts.append(
            f"{condition} {micro['value']:.2f} [{micro['low']:.2f}, {micro['high']:.2f}] "
            f"(letter mass {mass['value']:.2f}, {top['setting']} chosen for {top['value']:.0%})"
        )
    n = int(table["n"].max())
    return f"Accuracy over {n:,} questions, chance .25: {'; '.join(parts)}."


def widest_ranks(table: pd.DataFrame) -> str:
    """The widest pair of neighbour ranks the intrinsic dimension was measured at: the paper's where N allows it."""
    settings = table.loc[table["metric"] == "intrinsic_dimension", "setting"].unique()
    return max(settings, key=lambda ranks: int(ranks.split("-")[0]))


def by_recipe(table: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """The highest value over the layers by metric, recipe and condition, as a table to print."""
    rows = table[table["metric"].isin(metrics)]
    highest = rows.groupby(["metric", "setting", "condition"])["value"].max().unstack("condition")
    return highest.rename(index=LABELS).rename_axis(index=["highest", "recipe"], columns=None).round(3)


def per_subject(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by subject and condition, as a table to print."""
    rows = table[table["metric"] == "accuracy"]
    wide = rows.pivot(index="setting", columns="condition", values="value").round(2)
    wide.index = wide.index.str.replace("_", " ")
    return wide.rename_axis(index="subject", columns=None)
