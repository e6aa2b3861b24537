"""Draw the maps of `maps`: a page with a layer slider, and the same as a plain picture.

The slider needs two scripts of the book's own site, `_static/landscape_map.js` and the copy of plotly.js it loads; no
other server is asked. Where they are not (in JupyterLab, without JavaScript, in print) the picture has to do.
"""

from __future__ import annotations

import json

import numpy as np
from IPython.display import HTML
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import interval, script
from .maps import UNIT, Map

# Paul Tol's bright palette and two of his light one.  8 colours and 9 marks take turns: 72 pairs before one repeats.
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#EE8866", "#BBBBBB")
MARKS = {
    "circle": "o",
    "triangle-up": "^",
    "square": "s",
    "x": "X",
    "diamond": "D",
    "star": "*",
    "triangle-down": "v",
    "cross": "P",
    "triangle-left": "<",
}  # plotly's name: matplotlib's; the same colour comes back with the mark before, so neighbours look unlike each other
COLOURINGS = {"group": "group of subjects", "subject": "subject", "answer": "answer letter", "peak": "density peak"}
DEPTHS = (0.1, 0.3, 0.6, 0.9)  # of the picture's rows; fixed before any was looked at
NAMES_IN_LEGEND = 16


def interactive(found: Map) -> HTML:
    """Controls, an empty plot and the data, for `landscape_map.js` to bring to life; hidden until it does."""
    data = json.dumps(content(found), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # No "<" in the data: nothing in a question can end the script element or open another.
    data = data.replace("<", "\\u003c")
    colourings = "".join(f'<option value="{key}">{name}</option>' for key, name in COLOURINGS.items())
    return HTML(
        '<div class="pg-map" hidden><div class="pg-map-controls">'
        '<label>Model and prompt <select data-role="view"></select></label>'
        f'<label>Colour by <select data-role="colouring">{colourings}</select></label>'
        '<label>Show <select data-role="only"></select></label>'
        '<label class="pg-map-layer"><span data-role="at"></span> <input type="range" min="0" step="1"></label>'
        '<button type="button">Play</button></div>'
        '<div class="pg-map-plot" role="img"></div><p class="pg-map-status" aria-live="polite"></p>'
        f'<script type="application/json">{data}</script></div>{script("landscape_map.js")}'
    )


def content(found: Map) -> dict:
    """What the page is drawn from, as plain data; coordinates in hundredths, see `Map`."""
    views = []
    for condition, rows in found.points.groupby("condition", sort=False):
        layers = [
            {"layer": int(layer), **{column: at[column].tolist() for column in ("x", "y", "peak")}}
            | measured(found, condition, layer)
            for layer, at in rows.groupby("layer")
        ]
        views.append({"name": f"{condition}, {rows['model'].iloc[0]}", "layers": layers})
    names = ["subject", "group", "text", "answer", "option"]
    return {
        "views": views,
        "questions": found.questions[names].to_dict("records"),
        "categories": {key: categories(found, key) for key in ("group", "subject", "answer")},
        "colours": COLOURS,
        "marks": list(MARKS),
        "unit": UNIT,
        "reach": edge(found),
        "names_in_legend": NAMES_IN_LEGEND,
    }


def measured(found: Map, condition: str, layer: int) -> dict[str, list[float]]:
    """What was measured at one layer, by metric: the value, with its interval where it has one."""
    table = found.landscape
    at = table[(table["condition"] == condition) & (table["layer"] == layer)].set_index("metric")
    return {
        metric: row.dropna().astype(float).round(4).tolist() for metric, row in at[["value", "low", "high"]].iterrows()
    }


def categories(found: Map, colouring: str) -> list[str]:
    """The names a colouring tells apart, sorted."""
    return sorted(found.questions[colouring].unique())


def panels(found: Map, colouring: str) -> Figure:
    """Layers downwards, models and prompts across, coloured by "group" or "answer"."""
    conditions = list(found.points["condition"].unique())
    layers = drawn_layers(found)
    size = (7.2, 1.9 * len(layers) + 1.2)
    figure, axes = plt.subplots(
        len(layers), len(conditions), figsize=size, dpi=200, sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for row, layer in zip(axes, layers, strict=True):
        row[0].set_ylabel(f"layer {layer}")
        for ax, condition in zip(row, conditions, strict=True):
            panel(ax, found, condition, layer, colouring)
    for ax, condition in zip(axes[0], conditions, strict=True):
        ax.set_title(condition.replace(", ", ",\n"), fontsize=11)
    limits = 1.05 * edge(found) * np.array([-1, 1])
    axes[0, 0].set(xlim=limits, ylim=limits, xticks=[], yticks=[])
    if len(categories(found, colouring)) <= NAMES_IN_LEGEND:
        marks = axes[0, 0].get_legend_handles_labels()
        figure.legend(*marks, loc="outside lower center", ncols=4, handletextpad=0, markerscale=2.5)
    return figure


def panel(ax: Axes, found: Map, condition: str, layer: int, colouring: str) -> None:
    """One layer of one condition."""
    points = found.points
    at = points[(points["condition"] == condition) & (points["layer"] == layer)].merge(found.questions, on="question")
    reach = edge(found)
    for i, name in enumerate(categories(found, colouring)):
        its = at[at[colouring] == name]
        # A few far points must not make one dot of all the others: they are drawn on the edge.
        place = np.clip(its[["x", "y"]] / UNIT, -reach, reach)
        mark = list(MARKS.values())[i % len(MARKS)]
        ax.scatter(
            place["x"], place["y"], s=7, marker=mark, color=COLOURS[i % len(COLOURS)], lw=0, label=name, rasterized=True
        )
    label = "answer" if colouring == "answer" else "subject"
    index = measured(found, condition, layer)[f"ari_{label}"][0]
    ax.text(0.03, 0.97, f"ARI {index:z.2f}", transform=ax.transAxes, va="top", fontsize=9)
    ax.set(aspect="equal")
    ax.spines[:].set(visible=True, lw=0.5)
    ax.grid(False)


def drawn_layers(found: Map) -> list[int]:
    """The mapped layers nearest to DEPTHS."""
    layers = np.sort(found.points["layer"].unique())
    return sorted({int(layers[np.abs(layers - depth * layers[-1]).argmin()]) for depth in DEPTHS})


def edge(found: Map) -> float:
    """How far a map reaches from its centre: past 99.5 % of the drawn points of all layers and conditions."""
    return float(np.quantile(found.points[["x", "y"]].abs().max(axis=1), 0.995) / UNIT)


def summary(found: Map, label: str) -> str:
    """The highest ARI with "subject" or "answer" of each condition over the mapped layers, in one sentence."""
    rows = found.landscape[found.landscape["metric"] == f"ari_{label}"]
    parts = []
    for condition, its in rows.groupby("condition", sort=False):
        top = its.loc[its["value"].idxmax()]
        parts.append(f"{condition} {interval(top)} at layer {top['layer']}")
    name = "subject" if label == "subject" else "answer letter"
    return f"Highest ARI of the peaks with the {name} over the mapped layers: {'; '.join(parts)}."


def extent(found: Map) -> str:
    """How many questions and how much of the variance the maps show, in one sentence."""
    explained = found.landscape.loc[found.landscape["metric"] == "explained", "value"]
    return (
        f"{len(found.questions):,} of {found.points['n'].max():,} questions are drawn; a plane holds "
        f"{explained.min():.0%} to {explained.max():.0%} of a layer's variance."
    )
