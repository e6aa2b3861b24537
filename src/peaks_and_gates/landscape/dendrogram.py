"""The tree of density peaks (paper 1, Figure 4): which peaks there are, and how they join.

layer, n_layers, hidden, peaks, subjects = layer_at(study, n_shots=5, depth=0.3)
tree = grow(peaks, subjects, least_points(subjects))
tree.counts                                                     # (leaves, subjects): what each leaf holds
regrown(peaks, hidden, tree, subjects, lambda tree: [len(tree.counts)], (0, np.inf))  # with intervals
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from sklearn.metrics.cluster import contingency_matrix

from peaks_and_gates import figures
from peaks_and_gates.errors import BadParameter
from peaks_and_gates.landscape.density_peaks import Landscape, Recipe, landscape, redrawn_landscapes
from peaks_and_gates.landscape.study import Study
from peaks_and_gates.statistics import Estimate, coded, redrawn

Z = 1.6  # of the paper's main trees; its appendix has 0 and 4 too
GRIDE_SCALE, K = 3, 16  # of all of them
# The paper keeps peaks of more than 30 points, with 200 questions in most subjects.
LEAST_SHARE = 30 / 200
# Five colours and seven markers come back to the same pair only after 35 groups.
COLOURS = (figures.BLUE, figures.ORANGE, figures.GREEN, figures.CYAN, figures.PURPLE)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Tree:
    """The large peaks of a landscape and how they join.

    Attributes:
        subjects: (S,) str, sorted names.
        counts: (m, S) int, questions by leaf and subject.
        totals: (S,) int, questions of each subject on all peaks, also those too small for a leaf.
        log_density: (m,) float, at the top of each leaf's peak.
        links: (m - 1, 4) float, scipy's linkage; a height is the highest peak's log density minus a saddle's.
        home: (S,) int, the leaf on which each subject has more questions than on any other peak; -1 if that peak is
            too small to be a leaf.
        least: a leaf has more points than this.
    """

    subjects: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    log_density: np.ndarray
    links: np.ndarray
    home: np.ndarray
    least: int


def layer_at(
    study: Study, n_shots: int, depth: float, z: float = Z
) -> tuple[int, int, torch.Tensor, Landscape, np.ndarray]:
    """A layer's peaks at a relative depth.

    Returns its number, the number of layers, (N, D) hidden states, their landscape and (N,) subjects.

    Raises BadParameter for a depth outside (0, 1].
    """
    if not 0 < depth <= 1:
        raise BadParameter(f"A relative depth lies above 0 and reaches 1 at the last layer; {depth} does not.")
    states = study.states(study.question_set(), n_shots)
    layer = max(1, round(depth * states.n_layers))
    where = f"{study.model}, {n_shots}-shot, layer {layer}"
    hidden = states.layer(study.point, layer)[:: study.every]  # (N, D)
    peaks = landscape(hidden, {}, Recipe(GRIDE_SCALE, z, K), where=where)
    return layer, states.n_layers, hidden, peaks, np.array(states.subject)[:: study.every]


def least_points(subjects: Sequence[str]) -> int:
    """The paper's 30 points, in proportion to the questions of the largest subject: 22 with 150 per subject.

    Raises BadParameter unless there is one subject per question.
    """
    return round(LEAST_SHARE * coded(subjects, name="The subjects")[2].max())


def grow(peaks: Landscape, subjects: Sequence[str], least: int) -> Tree:
    """The tree of the peaks with more than `least` points.

    Two peaks are as dissimilar as the highest peak's log density exceeds that of their saddle, and joined by scipy's
    `weighted` linkage.  Peaks that do not touch have no saddle; as in the paper they get DADApy's stand-in for it,
    which is lower than every point (by one, and by Z errors), the same for all such pairs.  The paper also drops
    peaks above a log density chosen by hand, which near-duplicates make; that is not done here.

    subjects: (N,) names of all the questions the landscape was made from, also of the identical ones it left out.
    A tree without leaves or links is a tree.  Raises BadParameter for another number of subjects.

    Source: paper, Figure 4, as drawn by the authors' code.
    """
    coded(subjects, peaks.n_rows, "The subjects")
    names, codes, _ = coded(np.asarray(subjects)[peaks.unique_rows], name="The subjects")
    counts = contingency_matrix(peaks.assignment, codes)  # (n_peaks, S)
    large = np.flatnonzero(counts.sum(1) > least)
    top = peaks.peak_log_density[large]  # (m,)
    dissimilarity = top.max(initial=-np.inf) - peaks.saddle_log_density[np.ix_(large, large)]  # (m, m)
    np.fill_diagonal(dissimilarity, 0)
    links = linkage(squareform(dissimilarity), "weighted") if len(large) > 1 else np.empty((0, 4))
    leaf = np.full(len(counts), -1)
    leaf[large] = np.arange(len(large))
    return Tree(names, counts[large], counts.sum(0), top, links, leaf[counts.argmax(0)], least)


def regrown(
    peaks: Landscape, hidden: torch.Tensor, tree: Tree, subjects: np.ndarray, measure: Callable, ends: tuple
) -> list[Estimate]:
    """Numbers measured on a tree, with intervals from growing it again on new samples of the questions.

    peaks: the landscape that the tree was grown from.  hidden: (N, D) float, what the landscape is of.  subjects: (N,)
    names.  measure: numbers of a tree.  ends: the least and the greatest that each can be; the intervals end there.

    Raises BookError as `redrawn_landscapes`.
    """
    again = lambda rng: grow(redrawn_landscapes(hidden, {"again": peaks}, rng)["again"], subjects, tree.least)
    return redrawn(lambda rng: measure(again(rng)), measure(tree), peaks.n, n_peaks=max(1, len(tree.counts)), ends=ends)


def leaf_order(links: np.ndarray, rank: np.ndarray) -> list[int]:
    """The leaves of a tree from one side to the other; at every join the branch of lower mean rank comes first.

    links: (m - 1, 4) scipy's linkage.  rank: (m,) float.  A tree may be turned at any join without being changed.
    `np.argsort` of the answer gives the row of each leaf.
    """
    branches = {leaf: [leaf] for leaf in range(len(rank))}
    for step, (left, right, *_) in enumerate(links):
        pair = [branches.pop(int(left)), branches.pop(int(right))]
        first, second = sorted(pair, key=lambda leaves: rank[leaves].mean())
        branches[len(rank) + step] = first + second
    return [leaf for leaves in branches.values() for leaf in leaves]


def draw_branches(ax: Axes, links: np.ndarray, rows: np.ndarray, tips: np.ndarray, lw: float = 1.2) -> None:
    """A tree lying on its side: leaf i has its tip at tips[i], rows[i], a join lies at minus its height."""
    # Nothing here is clipped: a clipped line names its axes' size to the last digit, which the layout does not repeat.
    style = {"color": plt.rcParams["text.color"], "lw": lw, "clip_on": False}
    x, y = [*tips], [*rows]
    for left, right, height, _ in links:
        a, b = int(left), int(right)
        ax.plot([x[a], -height, -height, x[b]], [y[a], y[a], y[b], y[b]], **style)
        x.append(-height)
        y.append((y[a] + y[b]) / 2)
    if len(tips) == 1:  # nothing to join: the peak alone
        ax.plot([tips[0] - 1, tips[0]], [rows[0]] * 2, **style)


def group_looks(groups: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each group of subjects."""
    names = sorted({group for group in groups if group})
    looks = {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}
    return looks | {"": (figures.GREY, "o")}


def group_legend(figure: Figure, looks: dict[str, tuple[str, str]]) -> None:
    """The groups that are drawn, under the figure."""
    styles = [(label, colour, MarkerStyle(marker)) for label, (colour, marker) in looks.items() if label]
    if styles:
        handles = [Line2D([], [], ls="", color=colour, marker=mark, label=label) for label, colour, mark in styles]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)


def no_tree(title: str, why: str = "no peak is large enough to be drawn") -> Figure:
    """What is drawn where there is no tree."""
    figure, ax = plt.subplots(figsize=(6.6, 1.2))
    ax.text(0.5, 0.5, why, ha="center", va="center", transform=ax.transAxes)
    ax.set_title(title)
    ax.set_axis_off()
    return figure
