"""The tree of density peaks (paper, Figure 4): which peaks there are, what they hold, and how they join.

study = peaks.Study(pretrained, "wordnet", [0, 5], 32, 75)
trees = dendrogram.trees(dendrogram.panels(study, raw=model, fine_tuned=fine_tuned))
trees.numbers       # tidy: n_leaves, mixed_share, purity, cophenetic_correlation, same_group_nearer by condition
trees.leaves        # one row a peak: name, size, height, composition
trees.links         # the rows of scipy's linkage: with the leaves, all it takes to draw a tree
trees.subjects      # one row a subject: the leaf that holds most of its questions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from scipy.stats import random_table
from sklearn.metrics.cluster import contingency_matrix
from tqdm.auto import tqdm

from . import hierarchy, peaks, record, store
from .clustering import Recipe
from .errors import BadParameter
from .geometry import Landscape, clustered, landscape
from .peaks import GEOMETRY, Study
from .statistics import over_seeds
from .uncertainty import PERCENTILES, Estimate, coded, subsampled

Z = 1.6  # of the paper's main trees; its appendix has 0 and 4 too
GRIDE_SCALE, K = 3, 16  # of all of them
# The paper keeps peaks of more than 30 points, with 200 questions in most subjects.
LEAST_SHARE = 30 / 200
NAMED_SHARE, MOST_NAMES = 0.2, 4  # the paper's rule for a leaf's name
N_SHUFFLES = 200


@dataclass(frozen=True)
class Panel:
    """One tree: which model reads which prompts, at which relative depth, clustered with which Z."""

    condition: str
    study: Study
    n_shots: int
    depth: float
    z: float = Z


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
        n_points: number of all points.
        least: a leaf has more points than this.
    """

    subjects: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    log_density: np.ndarray
    links: np.ndarray
    home: np.ndarray
    n_points: int
    least: int


class Trees(NamedTuple):
    """Recorded tables of several trees, by `condition`; see the top of this file."""

    numbers: pd.DataFrame
    leaves: pd.DataFrame
    links: pd.DataFrame
    subjects: pd.DataFrame


def least_points(subjects: Sequence[str]) -> int:
    """The paper's 30 points, in proportion to the questions of the largest subject: 11 with 75 a subject.

    Raises BadParameter unless there is one subject a question.
    """
    return round(LEAST_SHARE * coded(subjects, name="The subjects")[2].max())


def grow(found: Landscape, subjects: Sequence[str], least: int) -> Tree:
    """The tree of the peaks with more than `least` points.

    Two peaks are as dissimilar as the highest peak's log density exceeds that of their saddle, and joined by scipy's
    `weighted` linkage.  Peaks that do not touch have no saddle; as in the paper they get DADApy's stand-in for it,
    which is lower than every point (by one, and by Z errors), the same for all such pairs.  The paper also drops
    peaks above a log density chosen by hand, which near-duplicates make; that is not done here.

    subjects: (N,) names of all the questions the landscape was made from, also of the identical ones it left out.
    A tree without leaves or links is a tree.  Raises BadParameter.

    Source: paper, Figure 4, as drawn by the authors' code.
    """
    if not least >= 0 or len(subjects) <= found.kept.max():
        raise BadParameter(f"least={least} must not be negative, and {len(subjects)} subjects be one a question.")
    names, which, _ = coded(np.asarray(subjects)[found.kept], name="The subjects")
    counts = contingency_matrix(found.assignment, which)  # (n_peaks, S)
    large = np.flatnonzero(counts.sum(1) > least)
    top = found.peak_log_density[large]
    dissimilarity = top.max(initial=-np.inf) - found.saddle_log_density[np.ix_(large, large)]
    np.fill_diagonal(dissimilarity, 0)
    links = linkage(squareform(dissimilarity), "weighted") if len(large) > 1 else np.empty((0, 4))
    leaf = np.full(len(counts), -1)
    leaf[large] = np.arange(len(large))
    home = leaf[counts.argmax(0)]
    return Tree(names, counts[large], counts.sum(0), top, links, home, found.n, least)


def named(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Which subjects name each peak, by the paper's rule.

    Named are subjects that have on the peak a share of their own questions above 0.2 times the largest such share,
    and one that makes up more than half of the peak.

    counts: (..., m, S) int, questions by peak and subject.  totals: (S,) int.  Returns (..., m, S) bool.
    """
    share = counts / totals
    return (share > NAMED_SHARE * share.max(-1, keepdims=True)) | (counts > counts.sum(-1, keepdims=True) / 2)


def is_mixed(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Peaks that more than four subjects would name, (..., m) bool; the paper calls them *mix of n subjects*."""
    return named(counts, totals).sum(-1) > MOST_NAMES


def leaf_name(tree: Tree, leaf: int) -> str:
    """The name of a leaf: its subjects, the largest first, or how many there are."""
    chosen = np.flatnonzero(named(tree.counts, tree.totals)[leaf])
    if len(chosen) > MOST_NAMES:
        return f"mix of {len(chosen)} subjects"
    return ", ".join(tree.subjects[sorted(chosen, key=lambda subject: -tree.counts[leaf, subject])])


def composition(tree: Tree, leaf: int, most: int = 4) -> str:
    """The questions of a leaf by subject, the largest first: "birds 71, mammals 3"."""
    order = np.argsort(-tree.counts[leaf], kind="stable")
    held = [subject for subject in order if tree.counts[leaf, subject]]
    parts = [f"{tree.subjects[subject]} {tree.counts[leaf, subject]}" for subject in held[:most]]
    if rest := held[most:]:
        parts.append(f"others ({len(rest)}) {tree.counts[leaf, rest].sum()}")
    return ", ".join(parts)


def content(counts: np.ndarray, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of mixed leaves, and share of the points of all leaves that belong to their leaf's largest subject.

    counts: (..., m, S) int.  totals: (S,) int.  Returns two (...,) float arrays; NaN without leaves.
    """
    if not counts.shape[-2]:
        return np.full(counts.shape[:-2], np.nan), np.full(counts.shape[:-2], np.nan)
    return is_mixed(counts, totals).mean(-1), counts.max(-1).sum(-1) / counts.sum((-2, -1))


def estimates(
    found: Landscape, whole: Tree, subjects: np.ndarray, steps: np.ndarray, groups: np.ndarray
) -> dict[str, Estimate]:
    """What is measured on a tree, by metric; every tree with its own null.

    Intervals are from growing the tree again on 90 % parts of the questions.  The null of `mixed_share` and `purity`
    shuffles the subjects over the questions and leaves the peaks as they are; that of the two comparisons with WordNet
    permutes the subjects' names.  A metric that a tree does not have (nothing is mixed where there is no leaf) is left
    out.

    found: the landscape `whole` was grown from.  subjects: (N,) names.  steps, groups: as `hierarchy.known` gives
    them for `whole.subjects`.
    """

    def numbers(tree: Tree) -> list[float]:
        here = np.searchsorted(whole.subjects, tree.subjects)  # a part may have lost a subject
        distances = hierarchy.tree_distances(tree.links, tree.home)
        measures = hierarchy.agreement(distances, steps[np.ix_(here, here)], groups[here])
        agreed = [statistic(kept) for statistic, kept in measures.values()]
        return [len(tree.counts), *map(float, content(tree.counts, tree.totals)), *agreed]

    def part(rows: np.ndarray) -> list[float]:
        least = round(whole.least * len(rows) / found.n)
        return numbers(grow(clustered(found, {"": found.recipe}, rows)[""], subjects, least))

    names = ("n_leaves", "mixed_share", "purity", "cophenetic_correlation", "same_group_nearer")
    values = numbers(whole)
    measured = dict(zip(names, subsampled(part, found.n, values=values), strict=True))
    for name, e in measured.items():  # an interval ends where the metric does
        lowest, highest = {"n_leaves": (0, np.inf), "cophenetic_correlation": (-1, 1)}.get(name, (0, 1))
        measured[name] = replace(e, low=max(e.low, lowest), high=min(e.high, highest))
    shuffled = shuffled_counts(found, whole, subjects)
    for name, null in zip(("mixed_share", "purity"), content(shuffled, whole.totals), strict=True):
        high = float(np.percentile(null, PERCENTILES[1]))
        measured[name] = replace(measured[name], null=float(null.mean()), null_high=high)
    distances = hierarchy.tree_distances(whole.links, whole.home)
    for name, (statistic, kept) in hierarchy.agreement(distances, steps, groups).items():
        null, p = hierarchy.mantel(statistic, kept)
        measured[name] = replace(measured[name], null=null.null, null_high=null.null_high, n=null.n)
        measured[f"{name}_p"] = Estimate(p, np.nan, np.nan, null.n)
    measured["least_points"] = Estimate(whole.least, np.nan, np.nan, found.n)
    return {name: e for name, e in measured.items() if not np.isnan(e.value)}


def shuffled_counts(found: Landscape, tree: Tree, subjects: np.ndarray, seed: int = 0) -> np.ndarray:
    """Questions by leaf and subject if subjects were shuffled over the questions, (N_SHUFFLES, m, S) int."""
    sizes = np.bincount(found.assignment)
    rng = np.random.default_rng(seed)
    # Of scipy's two methods only this one is right for a table of a single row (1.17 gives a negative count).
    drawn = random_table(sizes, tree.totals).rvs(N_SHUFFLES, method="boyett", random_state=rng)
    return drawn[:, sizes > tree.least].astype(np.int64)


def panels(
    study: Study,
    raw: str | None = None,
    fine_tuned: Sequence[str] = (),
    depth_few_shot: float = 0.3,
    depth_zero_shot: float = 0.3,
    depth_fine_tuned: float = 0.3,
    other_z: Sequence[float] = (0.0, 4.0),
) -> list[Panel]:
    """The trees of the paper: few-shot, 0-shot and fine-tuned, and few-shot again with other values of Z.

    study: the pretrained model, its last entry of `shots` being the few-shot one.  raw: a second model asked with
    shots, "5-shot, raw model"; none if it is the pretrained one.  fine_tuned: one model trained with several seeds.
    """
    shots = study.shots[-1]
    few = peaks.condition_name(shots)
    chosen = [Panel(few, study, shots, depth_few_shot)]
    if raw not in (None, study.model):
        chosen.append(Panel(f"{few}, raw model", replace(study, model=raw), shots, depth_few_shot))
    chosen.append(Panel("0-shot", study, 0, depth_zero_shot))
    for i, model in enumerate(fine_tuned):
        chosen.append(Panel(f"fine-tuned, seed {i}", replace(study, model=model), 0, depth_fine_tuned))
    return chosen + [Panel(f"{few}, Z = {z:g}", study, shots, depth_few_shot, z) for z in other_z]


def trees(chosen: Sequence[Panel], name: str = "dendrogram") -> Trees:
    """The trees of some panels as recorded tables: `name`, and with `_leaves`, `_links`, `_subjects` behind it.

    In `numbers`, rows named "fine-tuned" are the mean over the seeds.  Raises BadParameter for a depth outside (0, 1].
    """
    inputs = {"panels": [asdict(panel) for panel in chosen]}
    grown = cache(lambda: grow_all(chosen))  # nothing is computed when the book is redrawn
    parts = {"numbers": name, "leaves": f"{name}_leaves", "links": f"{name}_links", "subjects": f"{name}_subjects"}
    tables = {part: record.table(key, inputs, lambda part=part: getattr(grown(), part)) for part, key in parts.items()}
    return Trees(**tables)


def grow_all(chosen: Sequence[Panel]) -> Trees:
    """Compute what `trees` returns."""
    if bad := [panel.depth for panel in chosen if not 0 < panel.depth <= 1]:
        raise BadParameter(f"A relative depth lies above 0 and reaches 1 at the last layer; {bad[0]} does not.")
    made = [panel_tables(panel) for panel in tqdm(iterable=chosen, desc="trees of peaks", unit="tree")]
    numbers, leaves, links, subjects = (pd.concat(tables, ignore_index=True) for tables in zip(*made, strict=True))
    seeds = [rows for c, rows in numbers.groupby("condition", sort=False) if c.startswith("fine-tuned, seed")]
    if seeds:
        mean = over_seeds([rows.assign(condition="fine-tuned") for rows in seeds])
        numbers = pd.concat([numbers, mean], ignore_index=True)
    return Trees(numbers, leaves, links, subjects)


def panel_tables(panel: Panel) -> Trees:
    """The tables of one tree; its numbers, which take nine clusterings, are kept in the store."""
    study = panel.study
    states = study.states(study.question_set(), panel.n_shots)
    layer = max(1, round(panel.depth * states.n_layers))
    where = f"{study.model}, {panel.condition}, layer {layer}"
    first = landscape(states.layer(study.point, layer), {}, "figures", where=where)
    found = clustered(first, {panel.condition: Recipe(GRIDE_SCALE, panel.z, K)}, where=where)[panel.condition]
    subjects = np.array(states.subject)
    tree = grow(found, subjects, least_points(subjects))
    steps, groups = hierarchy.known(study.questions, tree.subjects)
    about = {
        "condition": panel.condition,
        "model": study.model,
        "layer": layer,
        "depth": layer / states.n_layers,
        "setting": f"Z = {panel.z:g}",
    }
    compute = lambda: pd.DataFrame(
        peaks.row(study, panel.condition, layer, about["depth"], metric, about["setting"], estimate)
        for metric, estimate in estimates(found, tree, subjects, steps, groups).items()
    )
    inputs = {**about, "states": states.key, "point": study.point, "questions": study.questions}
    numbers = store.table("dendrogram", inputs, compute, (*GEOMETRY, "dendrogram", "hierarchy", "peaks", "wordnet"))
    leaves = leaf_table(tree, groups)
    links = pd.DataFrame(tree.links, columns=["left", "right", "height", "size"])
    homes = subject_table(tree, groups)
    return Trees(numbers, *(frame.assign(**about) for frame in (leaves, links, homes)))


def leaf_table(tree: Tree, groups: np.ndarray) -> pd.DataFrame:
    """One row a leaf: name, how many subjects name it, size, height, its largest subject and that one's group."""
    largest, size = tree.counts.argmax(1), tree.counts.sum(1)
    leaves = range(len(tree.counts))
    return pd.DataFrame(
        {
            "leaf": leaves,
            "name": [leaf_name(tree, leaf) for leaf in leaves],
            "n_named": named(tree.counts, tree.totals).sum(1),
            "mixed": is_mixed(tree.counts, tree.totals),
            "n_points": size,
            "log_density": tree.log_density,
            "top_subject": tree.subjects[largest],
            "group": groups[largest],
            "purity": tree.counts.max(1) / size,
            "composition": [composition(tree, leaf) for leaf in leaves],
        }
    ).astype({"name": str, "composition": str})


def subject_table(tree: Tree, groups: np.ndarray) -> pd.DataFrame:
    """One row a subject: its leaf (-1: none), and the share of its questions there (NaN: none)."""
    at_home = tree.counts[tree.home, np.arange(len(tree.home))] if len(tree.counts) else np.zeros(len(tree.home))
    share = np.where(tree.home >= 0, at_home / tree.totals, np.nan)
    return pd.DataFrame({"subject": tree.subjects, "group": groups, "leaf": tree.home, "share": share})
