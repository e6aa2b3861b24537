"""The idea of the chapter on questions made up for it: a landscape of two dimensions that one can look at.

    points = cartoon.points(seed=0)             # where each made-up question sits in each of six panels
    found = cartoon.measured(points)            # what the book's own landscape finds there
    figures.show(lambda: cartoon.drawing(points, found), ...)

After the cartoon of paper 1 (Fig 1), with a design of its own: early layers are six clouds, one a subject, nearer or
farther apart; late layers are four clouds, one a letter, and a share of the questions sits in its own. No model is
asked, so nothing here is evidence: distances and shares are chosen to show what the words of the chapter mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .errors import BadParameter
from .geometry import landscape
from .questions import LETTERS

# Two families of three: related subjects are neighbours.  Places are in units of a cloud's width.
SUBJECTS = {
    "birds": (-3.5, 8.5),
    "mammals": (-8.5, 6.0),
    "trees": (-4.5, 3.0),
    "law": (8.5, -6.5),
    "money": (3.5, -8.5),
    "music": (4.5, -3.0),
}
CORNERS = {"A": (-2.6, 2.6), "B": (2.6, 2.6), "C": (-2.6, -2.6), "D": (2.6, -2.6)}
LOOKS = (("#4477AA", "o"), ("#66CCEE", "s"), ("#228833", "^"), ("#EE6677", "D"), ("#CCBB44", "P"), ("#AA3377", "v"))


@dataclass(frozen=True)
class Panel:
    """One picture: the clouds of the subjects or of the letters.

    apart: factor on the distances between the clouds.  share: of the questions that sit in the cloud of their own
    label; the others sit in any other, each as likely.
    """

    stage: str
    condition: str
    label: str
    apart: float
    share: float

    @property
    def centres(self) -> np.ndarray:
        """(clouds, 2) float."""
        return self.apart * np.array(list(places(self.label).values()))


PANELS = (
    Panel("early", "0-shot", "subject", apart=0.4, share=1.0),
    Panel("early", "few-shot", "subject", apart=1.0, share=1.0),
    Panel("early", "fine-tuned", "subject", apart=0.15, share=1.0),
    Panel("late", "0-shot", "answer", apart=1.0, share=0.25),
    Panel("late", "few-shot", "answer", apart=1.0, share=0.5),
    Panel("late", "fine-tuned", "answer", apart=1.0, share=0.8),
)


def places(label: str) -> dict[str, tuple[float, float]]:
    """Where the cloud of each subject or letter would be if nothing pulled it nearer."""
    return SUBJECTS if label == "subject" else CORNERS


def points(seed: int = 0, n_per_subject: int = 80, panels: Sequence[Panel] = PANELS) -> pd.DataFrame:
    """Place the same made-up questions in every panel.

    Columns: stage, condition, label (what the panel is coloured by), x, y, subject, answer.  Letters are dealt evenly
    and independently of the subjects.  Raises BadParameter for fewer than 20 questions a subject: a cloud needs more
    points than the density has neighbours.
    """
    if n_per_subject < 20:
        raise BadParameter(f"n_per_subject={n_per_subject}: a cloud needs at least 20 questions to make a peak.")
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(len(SUBJECTS)), n_per_subject)
    answer = rng.permutation(np.arange(len(subject)) % len(LETTERS))
    tables = []
    for panel in panels:
        own = subject if panel.label == "subject" else answer
        strays = rng.random(len(own)) >= panel.share
        cloud = np.where(strays, own + rng.integers(1, len(panel.centres), len(own)), own) % len(panel.centres)
        place = panel.centres[cloud] + rng.standard_normal((len(own), 2))  # (n, 2)
        columns = {"stage": panel.stage, "condition": panel.condition, "label": panel.label}
        columns |= {"x": place[:, 0], "y": place[:, 1]}
        columns |= {"subject": np.array(list(SUBJECTS))[subject], "answer": np.array(LETTERS)[answer]}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def measured(table: pd.DataFrame, recipe: str = "figures") -> pd.DataFrame:
    """Read each panel with `geometry.landscape`, as if its two coordinates were hidden states.

    Columns: stage, condition, label; value, low, high, null_high: the ARI of the peaks with the label, its 95 %
    interval over questions, its null; n_peaks; n; tops: (n_peaks, 2), where the peaks are highest.
    """
    rows = []
    for (stage, condition, label), asked in table.groupby(["stage", "condition", "label"], sort=False):
        place = asked[["x", "y"]].to_numpy(copy=True)
        found = landscape(place, {label: asked[label].to_numpy()}, recipe, where=f"{stage} layers, {condition}")
        index = found.adjusted_rand_index[label]
        row = {"stage": stage, "condition": condition, "label": label, "value": index.value, "low": index.low}
        row |= {"high": index.high, "null_high": index.null_high, "n_peaks": found.n_peaks, "n": index.n}
        rows.append(row | {"tops": place[found.kept[found.peak_centres]]})
    return pd.DataFrame(rows)


def density(panel: Panel, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The density that a panel's points are drawn from, at the given coordinates."""
    # Evenly dealt labels and evenly spread strays leave every cloud the same number of questions on average.
    clouds = [np.exp(-((x - a) ** 2 + (y - b) ** 2) / 2) for a, b in panel.centres]
    return sum(clouds) / (2 * np.pi * len(clouds))


def drawing(table: pd.DataFrame, found: pd.DataFrame) -> Figure:
    """The six PANELS, early layers above, late ones below.

    Contours are the density the questions were drawn from, crosses the tops of the peaks that were found.
    """
    figure = plt.figure(figsize=(7.2, 6.4), dpi=150, layout="constrained")  # dpi: of the points
    panels = zip(PANELS, found.iterrows(), strict=True)
    for half, label in zip(figure.subfigures(2, 1), ("subject", "answer"), strict=True):
        row = half.subplots(1, 3)
        for ax, (panel, (_, numbers)) in zip(row, panels, strict=False):
            asked = table[(table["stage"] == panel.stage) & (table["condition"] == panel.condition)]
            draw_panel(ax, panel, asked, numbers)
            ax.set_title(panel.condition)
        row[0].set_ylabel(f"{panel.stage} layers,\ncoloured by {label}")
        # The same marks in every panel of the row: one legend.
        marks = row[0].get_legend_handles_labels()
        half.legend(*marks, loc="outside lower center", ncols=6, handletextpad=0, markerscale=2)
    return figure


def draw_panel(ax: Axes, panel: Panel, asked: pd.DataFrame, row: pd.Series) -> None:
    """One panel: contours, questions, tops, and the numbers underneath."""
    ink = plt.rcParams["text.color"]
    reach = np.abs(asked[["x", "y"]].to_numpy()).max() * 1.04
    x, y = np.meshgrid(*2 * [np.linspace(-reach, reach, 120)])
    heights = density(panel, x, y)
    levels = heights.max() * np.array([0.05, 0.2, 0.4, 0.6, 0.8])
    ax.contour(x, y, heights, levels, colors=ink, linewidths=0.7, alpha=0.55)
    for name, (colour, marker) in zip(places(panel.label), LOOKS, strict=False):
        its = asked[asked[panel.label] == name]
        ax.scatter(its["x"], its["y"], s=10, color=colour, marker=marker, lw=0, alpha=0.9, label=name, rasterized=True)
    ax.scatter(*row["tops"].T, s=70, color=ink, marker="x", lw=1.8)
    ax.set(xticks=[], yticks=[], xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.grid(False)
    ax.set_xlabel(f"ARI {number(row['value'])} · {peaks(row)}")


def summary(found: pd.DataFrame) -> str:
    """What was measured in each panel, in one sentence a row; for captions and alternative text."""
    sentences = []
    for label, rows in found.groupby("label", sort=False):
        parts = [
            f"{row['condition']} {number(row['value'])} [{number(row['low'])}, {number(row['high'])}], {peaks(row)}"
            for _, row in rows.iterrows()
        ]
        name = "subjects" if label == "subject" else "answer letters"
        sentences.append(f"ARI with {name}, {rows['stage'].iloc[0]} layers: {'; '.join(parts)}.")
    return " ".join(sentences)


def number(value: float) -> str:
    """Two decimals, and no minus before a zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def peaks(row: pd.Series) -> str:
    """How many peaks a panel has, as text."""
    return f"{row['n_peaks']} peak{'s' * (row['n_peaks'] != 1)}"
