"""The figures of paper 2: a panel for each model of this run, beside them the paper's own curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .errors import MissingFile
from .figures import interval, paper
from .peaks import select
from .store import project_folder

# Paul Tol's bright palette with a marker each: the same token, or cut, looks the same on every page.
LOOKS = {
    "end": ("#EE6677", "D"),
    "begin": ("#CCBB44", "P"),
    "special": ("#228833", "^"),
    "last image": ("#66CCEE", "s"),
    "image": ("#4477AA", "o"),
    "random image": ("#4477AA", "o"),
    "last text": ("#AA3377", "v"),
    "none": ("#888888", "*"),
    "end → text": ("#EE6677", "D"),
    "image → text": ("#4477AA", "o"),
    "random image → text": ("#66CCEE", "s"),
    "block → text": ("#AA3377", "v"),
    "image → image": ("#228833", "^"),
    "residual": ("#EE6677", "D"),
    "attention": ("#4477AA", "o"),
    "image, text": ("#4477AA", "o"),
    "block": ("#AA3377", "v"),
}
# Models side by side, in the order of the tables.
MODELS = (("#EE6677", "D"), ("#4477AA", "o"), ("#228833", "^"), ("#CCBB44", "P"), ("#AA3377", "v"))
LABELS = {
    "cosine": "median |cosine| of image and text",
    "homogeneity": "homogeneity of peaks in modality",
    "share": "share of the attention on the image's block",
    "class_overlap": "class overlap χ",
    "vqa": "VQA accuracy",
    "vqa_lost": "share of VQA accuracy lost",
    "cider_ptb": "caption CIDEr",
    "cider_whitespace": "caption CIDEr, split at spaces",
    "mass": "attention on the image's block",
    "similarity": "similarity to the other's output",
    "flips": "share of pairs that flip",
    "flips_of_right": "share of right pairs that flip",
}
TELLING = ("none", "end → text", "image → text")  # the cuts that tell a gate from an open model


@cache
def reference(name: str) -> pd.DataFrame:
    """The paper's numbers: "gate_curves" or "gate_table".  Raises MissingFile."""
    root = project_folder()
    path = root / "book" / "reference" / f"{name}.csv" if root else None
    if path is None or not path.is_file():
        raise MissingFile("The paper's numbers are in book/reference of the repository: clone it to show them.")
    return pd.read_csv(path)


def paper_curve(quantity: str, model: str) -> pd.DataFrame:
    """One quantity of one of the paper's models: condition, layer, depth, value."""
    return paper(quantity, model)


def curves(
    tables: Mapping[str, pd.DataFrame],
    metric: str,
    setting: str | None = None,
    paper: Sequence[str] = (),
    quantity: str | None = None,
    limits: tuple[float, float | None] = (0, 1.03),
) -> Figure:
    """One metric against relative depth by condition: a panel for each table, then for each of the paper's models.

    Bands are 95 % intervals, or with a median its quartiles; the dotted line is what shuffled labels give.
    """
    figure, axes = panels(len(tables) + len(paper), 2.4, sharex=True)
    shown = {}
    for ax, (title, table) in zip(axes, tables.items(), strict=False):
        rows = select(table, metric, setting)
        for condition, part in rows.groupby("condition", sort=False):
            shown[condition] = curve(ax, part, condition)
            ax.fill_between(part["depth"], part["low"], part["high"], color=LOOKS[condition][0], alpha=0.2, lw=0)
            if metric == "cosine":
                quartiles = [table[(table["metric"] == metric) & (table["setting"] == f"quartile {q}")] for q in (1, 3)]
                edges = [each["value"].to_numpy() for each in quartiles]
                ax.fill_between(part["depth"], *edges, color=LOOKS[condition][0], alpha=0.15, lw=0)
        chance = rows.dropna(subset=["null"]).groupby("depth")["null"].mean()
        if len(chance):
            ax.plot(chance.index, chance, ls=":", lw=1.2, color=plt.rcParams["text.color"])
        model = ", ".join(dict.fromkeys(rows["model"]))
        ax.set_title(f"{title}: {model}, N = {rows['n'].max():,.0f}", fontsize=10)
    for ax, model in zip(axes[len(tables) :], paper, strict=True):
        for condition, part in paper_curve(quantity or metric, model).groupby("condition", sort=False):
            shown[condition] = curve(ax, part, condition)
        ax.set_title(f"the paper: {model}", fontsize=10)
    for ax in axes:
        ax.set(xlim=(-0.02, 1.02), ylim=limits)
    figure.supylabel(LABELS[metric], fontsize=10)
    label_below(axes, "relative depth (layer / number of layers)")
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=3)
    return figure


def panels(n: int, height: float, **shared: bool) -> tuple[Figure, list[Axes]]:
    """n panels with one y axis, below each other; more than three in two columns.  height: of a row, in inches."""
    columns = 1 if n <= 3 else 2
    rows = -(-n // columns)
    size = (6.6 if columns == 1 else 9.0, 0.8 + height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained", **shared)
    for ax in axes.flat[n:]:
        ax.remove()
    return figure, list(axes.flat[:n])


def label_below(axes: Sequence[Axes], text: str) -> None:
    """Name the x axis under the lowest panel of each column; a label of the whole figure would lie on the legend."""
    for ax in axes[-axes[0].get_gridspec().ncols :]:
        ax.set_xlabel(text, fontsize=10)
        ax.tick_params(labelbottom=True)


def curve(ax: Axes, rows: pd.DataFrame, condition: str):
    """One condition's curve; returns its line."""
    colour, marker = LOOKS.get(condition, ("#BBBBBB", "X"))
    if len(rows) == 1:  # it belongs to no layer
        return ax.axhline(rows["value"].item(), color=colour, ls="--", lw=1.2)
    (drawn,) = ax.plot(rows["depth"], rows["value"], color=colour, marker=marker, ms=4, mew=0, lw=1.7)
    return drawn


def stacked(tables: Mapping[str, pd.DataFrame], paper: Sequence[str] = ()) -> Figure:
    """Shares of text's attention on the image's block by group of tokens and block, as stacked bars (Fig 3)."""
    figure, axes = panels(len(tables) + len(paper), 2.2)
    handles = {}
    ours = {
        f"{title}: {table['model'].iloc[0]}, N = {table['n'].max():,.0f}": table[
            (table["metric"] == "share") & (table["setting"] == "all heads")
        ]
        for title, table in tables.items()
    }
    theirs = {f"the paper: {model}": paper_curve("share", model) for model in paper}
    for ax, (title, rows) in zip(axes, (ours | theirs).items(), strict=True):
        wide = rows.pivot(index="layer", columns="condition", values="value").fillna(0)
        bottom = np.zeros(len(wide))
        for i, condition in enumerate(sorted(wide.columns, key=lambda name: (name != "end", name))):
            colour = LOOKS.get(condition, ("#BBBBBB", "X"))[0]
            hatch = ("", "//", "", "\\\\", "xx")[i % 5]
            bar = ax.bar(
                wide.index, wide[condition], bottom=bottom, width=0.85, color=colour, hatch=hatch, edgecolor="none"
            )
            handles.setdefault(condition, bar)
            bottom = bottom + wide[condition].to_numpy()
        ax.set_title(title, fontsize=10)
        ax.set(ylim=(0, 1.02))
    label_below(axes, "block")
    figure.supylabel(LABELS["share"], fontsize=10)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3)
    return figure


def losses(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """What each cut leaves of every metric, with intervals: a panel for each metric, models side by side (Table 1)."""
    every = pd.concat(tables.values())
    shown = every[every["metric"].isin(["vqa", "cider_ptb", "class_overlap"])]
    measured = list(shown[["metric", "setting"]].drop_duplicates().itertuples(index=False, name=None))
    step = min(0.22, 0.8 / len(tables))  # between two models on one line of the figure, a line being 1
    figure, axes = plt.subplots(
        1,
        len(measured),
        figsize=(1.6 + 1.9 * len(measured), 1.6 + 0.15 * len(tables) * len(shown["condition"].unique())),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    handles = {}
    for ax, (metric, setting) in zip(axes[0], measured, strict=True):
        for i, (title, table) in enumerate(tables.items()):
            rows = table[(table["metric"] == metric) & (table["setting"] == setting)]
            y = np.arange(len(rows)) + (i - (len(tables) - 1) / 2) * step
            spread = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
            colour, marker = MODELS[i]
            handles[f"{title}: {rows['model'].iloc[0]}"] = ax.errorbar(
                rows["value"], y, xerr=spread, fmt=marker, color=colour, ms=5, capsize=2
            )
            ax.set_yticks(range(len(rows)), rows["condition"])
        ax.set_title(LABELS[metric] + (f", {setting}" if metric.startswith("cider") else ""), fontsize=10)
        ax.set_xlim(left=0)
        ax.grid(axis="x")
    axes[0, 0].invert_yaxis()
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=1)
    return figure


def table(tables: Mapping[str, pd.DataFrame]) -> HTML:
    """Table 1: every cut by model and metric, with intervals; the paper's own numbers in `paper_table`."""
    parts = []
    for title, rows in tables.items():
        shown = lambda r: "–" if np.isnan(r["value"]) else interval(r)
        text = rows.apply(shown, axis=1)
        column = rows["metric"].map(LABELS) + rows["setting"].where(rows["metric"].str.startswith("cider"), "").map(
            lambda data: f", {data}" * bool(data)
        )
        wide = rows.assign(text=text, column=column).pivot(index="condition", columns="column", values="text")
        order = list(dict.fromkeys(rows["condition"]))
        model = rows["model"].iloc[0]
        parts.append(wide.loc[order].assign(model=f"{title}: {model}").reset_index().set_index(["model", "condition"]))
    return HTML(pd.concat(parts).rename_axis(columns=None).to_html(classes="pg-table", border=0, na_rep="–"))


def paper_table(version: str = "v2+") -> HTML:
    """The paper's Table 1, as far as it is known, in one of its versions."""
    rows = reference("gate_table")
    rows = rows[rows["version"] == version]
    wide = rows.pivot(index=["model", "knockout"], columns="task", values="value")
    order = rows[["model", "knockout"]].drop_duplicates().apply(tuple, axis=1)
    return HTML(wide.loc[list(order)].rename_axis(columns=None).to_html(classes="pg-table", border=0, na_rep="–"))


def summary(tables: Mapping[str, pd.DataFrame], metric: str, setting: str | None = None) -> str:
    """The highest value of every condition and where it is, by model, in a sentence; for captions and alt text."""
    said = []
    for title, table in tables.items():
        rows = select(table, metric, setting)
        tops = rows.loc[rows.groupby("condition", sort=False)["value"].idxmax()]
        parts = [f"{r['condition']} {r['value']:z.2f} (layer {r['layer']:.0f})" for _, r in tops.iterrows()]
        said.append(f"{title}: {', '.join(parts)}.")
    return f"Highest {LABELS[metric]}. {' '.join(said)}{of_seeds(tables)}"


def loss_summary(tables: Mapping[str, pd.DataFrame], metric: str, brief: bool = False) -> str:
    """What every cut leaves of a metric, by model, in a sentence.

    brief: without intervals, and of the cuts only those that tell a gate from an open model.
    """
    said = []
    for title, table in tables.items():
        rows = table[(table["metric"] == metric) & (table["condition"].isin(TELLING) | (not brief))]
        number = lambda r: f"{r['value']:z.2f}" if brief else interval(r)
        parts = [f"{r['condition']} {number(r)}" for _, r in rows.iterrows()]
        said.append(f"{title}: {', '.join(parts)}.")
    return f"{LABELS[metric]}. {' '.join(said)}{of_seeds(tables)}"


def of_seeds(tables: Mapping[str, pd.DataFrame]) -> str:
    """For captions: how several seeds of one model are shown, if there are any."""
    several = [title for title, table in tables.items() if table["model"].iloc[0].endswith("seeds)")]
    return (
        f" Of the seeds of {' and '.join(several)}: their mean, and an interval that spans theirs." if several else ""
    )
