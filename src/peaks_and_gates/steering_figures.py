"""The figures of steering: a panel for each model, what is named against the layer and against the strength."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

import pandas as pd
from IPython.display import HTML
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .gate_figures import of_seeds, panels
from .scene_words import plural

# A curve: condition, metric, and Paul Tol's bright palette with a marker.
Curves = Mapping[str, tuple[str, str, str, str]]
ANSWERS: Curves = {
    "its own class": ("other class", "own", "#4477AA", "o"),
    "the other's class": ("other class", "other", "#EE6677", "D"),
    "neither": ("other class", "neither", "#888888", "X"),
}
CONTROLS: Curves = {
    "towards the other class": ("other class", "own", "#EE6677", "D"),
    "the same in all layers": ("all layers", "own", "#AA3377", "v"),
    "towards its own class": ("same class", "own", "#4477AA", "o"),
    "in a random direction": ("random direction", "own", "#228833", "^"),
}
CAPTIONS: Curves = {
    "its own class": ("other class", "caption_own", "#4477AA", "o"),
    "the other's class": ("other class", "caption_other", "#EE6677", "D"),
}
LEFT = "text-align:left"  # sentences are read from the left; tables of notebooks are set to the right


def chosen(table: pd.DataFrame) -> tuple[float, float]:
    """The chosen layer; of several seeds the lowest and the highest."""
    rows = table[table["metric"] == "chosen_layer"]
    return rows["low"].item(), rows["high"].item()


def place(table: pd.DataFrame) -> str:
    """The chosen layer in words."""
    low, high = chosen(table)
    return f"layer {low:.0f}" if low == high else f"layers {low:.0f} to {high:.0f}"


def by_layer(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """What is named when one layer is steered, a mean over the strengths; the chosen layer is marked."""
    figure, axes = panels(len(tables), 2.2)
    for ax, (title, table) in zip(axes, tables.items(), strict=True):
        rows = table[table["condition"] == "each layer"]
        for label, (_, metric, colour, marker) in ANSWERS.items():
            mean = rows[rows["metric"] == metric].groupby("layer")["value"].mean()
            ax.plot(mean.index, mean, color=colour, marker=marker, ms=5, mew=0, lw=1.7, label=label)
        low, high = chosen(table)
        ax.axvspan(low - 0.15, high + 0.15, color=plt.rcParams["grid.color"], alpha=0.6, lw=0, zorder=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_title(f"{title}: {rows['model'].iloc[0]}, N = {rows['n'].max():,.0f}", fontsize=10)
    finish(figure, axes, "share of the answers that name", "layer that is steered")
    return figure


def by_strength(tables: Mapping[str, pd.DataFrame], curves: Curves, ylabel: str) -> Figure:
    """Some shares against the strength, at the chosen layer, with 95 % bands.  Dotted: strength 1, a whole patch."""
    figure, axes = panels(len(tables), 2.2, sharex=True)
    for ax, (title, table) in zip(axes, tables.items(), strict=True):
        for label, (condition, metric, colour, marker) in curves.items():
            rows = shares(table, condition, metric)
            ax.plot(rows.index, rows["value"], color=colour, marker=marker, ms=5, mew=0, lw=1.7, label=label)
            ax.fill_between(rows.index, rows["low"], rows["high"], color=colour, alpha=0.2, lw=0)
        ax.axvline(1, ls=":", lw=1.2, color=plt.rcParams["text.color"])
        ax.set_title(f"{title}: {rows['model'].iloc[0]}, {place(table)}, N = {rows['n'].max():,.0f}", fontsize=10)
    finish(figure, axes, ylabel, "strength (0: untouched, 1: a whole patch)")
    return figure


def shares(table: pd.DataFrame, condition: str, metric: str) -> pd.DataFrame:
    """The rows of one curve by their strength, a float, ascending."""
    rows = table[(table["condition"] == condition) & (table["metric"] == metric)]
    return rows.set_index(rows["setting"].astype(float)).sort_index()


def finish(figure: Figure, axes: list[Axes], ylabel: str, xlabel: str) -> None:
    """Limits, labels, and one legend for all panels."""
    for ax in axes:
        ax.set_ylim(-0.03, 1.03)
    columns = axes[0].get_gridspec().ncols
    for ax in axes[-columns:]:  # the lowest of each column; a label of the whole figure would lie on the legend
        ax.set_xlabel(xlabel, fontsize=10)
        ax.tick_params(labelbottom=True)
    figure.supylabel(ylabel, fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3 if len(labels) < 4 else 2)


def layer_summary(tables: Mapping[str, pd.DataFrame]) -> str:
    """The chosen layer, and how often the other class is named there, in a sentence a model."""
    said = []
    for title, table in tables.items():
        rows = table[(table["condition"] == "each layer") & (table["metric"] == "other")]
        means = rows.groupby("layer")["value"].mean()
        told = ", ".join(f"{value:z.2f} at {layer}" for layer, value in means.items())
        said.append(f"{title}: {place(table)} chosen; share of the other's class by layer {told}.")
    return f"Answers when one layer is steered, means over the strengths. {' '.join(said)}"


def strength_summary(tables: Mapping[str, pd.DataFrame], curves: Curves, what: str, brief: bool = False) -> str:
    """Every curve at the lowest strength, at 1 and at the greatest, with intervals, in a sentence a model.

    what: the shares are of.  brief: at the lowest strength and at 1 only, and without intervals.
    """
    said = []
    for title, table in tables.items():
        parts = []
        for label, (condition, metric, *_) in curves.items():
            rows = shares(table, condition, metric)
            told = [s for s in dict.fromkeys((rows.index[0], 1.0, rows.index[-1])) if s in rows.index]
            interval = lambda row: "" if brief else f" [{row['low']:z.2f}, {row['high']:z.2f}]"
            values = [f"{rows['value'][s]:z.2f}{interval(rows.loc[s])} at {s:g}" for s in told[: 2 if brief else 3]]
            parts.append(f"{label} {', '.join(values)}")
        said.append(f"{title}, {place(table)}: {'; '.join(parts)}.")
    return f"{what}, by strength. {' '.join(said)}{of_seeds(tables)}"


def reading(tables: Mapping[str, pd.DataFrame]) -> HTML:
    """What was said at every strength: a table a model, which can be folded, and a group of rows a picture.

    The words of the own class are in italics, those of the other class in bold.
    """
    parts = [one_model(title, table) for title, table in tables.items()]
    return HTML(parts[0].replace("<details>", "<details open>", 1) + "".join(parts[1:]))


def one_model(title: str, table: pd.DataFrame) -> str:
    """The examples of one model, as a table in HTML."""
    first = table.iloc[0]
    summary = html.escape(f"{title}: {first['model']}, steered in layer {first['layer']}")
    caption = html.escape(f"What {first['model']} says, by strength")
    head = "".join(f'<th scope="col" style="{LEFT}">{name}</th>' for name in ("Strength", "Answer", "Caption"))
    bodies = "".join(one_example(rows) for _, rows in table.groupby("example", sort=False))
    rows = f"<caption>{caption}</caption><thead><tr>{head}</tr></thead>{bodies}"
    return f'<details><summary>{summary}</summary><table class="pg-table">{rows}</table></details>'


def one_example(rows: pd.DataFrame) -> str:
    """A picture's group of rows: what is true of it and of the other one, then what is said at each strength."""
    first = rows.iloc[0]
    own, other = (
        f"{first[which]} (“{first[f'{which}_caption']}”)" if first[f"{which}_caption"] else first[which]
        for which in ("own", "other")
    )
    about = marked(f"A picture of: {own}. Steered towards: {other}.", first)
    # Not bold, as headings are, since bold has a meaning here.
    head = f'<tr><th scope="rowgroup" colspan="3" style="{LEFT};font-weight:normal">{about}</th></tr>'
    lines = "".join(
        f'<tr><th scope="row" style="{LEFT}">{line.strength:g}</th>'
        f'<td style="{LEFT}">{marked(line.answer, first)}</td>'
        f'<td style="{LEFT}">{marked(line.caption, first)}</td></tr>'
        for line in rows.itertuples()
    )
    return f"<tbody>{head}{lines}</tbody>"


def marked(text: str, classes: pd.Series) -> str:
    """A text as HTML, its words of the own class in italics, those of the other class in bold."""
    found = html.escape(text)
    for label, tag in ((classes["own"], "em"), (classes["other"], "strong")):
        forms = "|".join(re.escape(html.escape(form)) for form in (plural(label), label))
        found = re.sub(rf"\b({forms})\b", rf"<{tag}>\1</{tag}>", found, flags=re.IGNORECASE)
    return found
