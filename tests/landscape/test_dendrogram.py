"""Trees of density peaks: on landscapes whose peaks are known, by the paper's rule for names, and against WordNet."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage

from page_code import page_code
from peaks_and_gates.errors import BadParameter
from peaks_and_gates.landscape import dendrogram
from peaks_and_gates.landscape.dendrogram import grow, layer_at, leaf_order, least_points
from peaks_and_gates.landscape.density_peaks import Landscape, Recipe, landscape
from peaks_and_gates.landscape.questions import subject_groups
from peaks_and_gates.landscape.study import Study

LOW = -9.0  # what DADApy puts for the saddle of peaks that do not touch
page = cache(lambda: page_code("landscape/dendrogram"))


def made_landscape(sizes, top, saddles):
    """A landscape with peaks of these sizes and heights; saddles: {(i, j): log density}."""
    assignment = np.repeat(np.arange(len(sizes)), sizes)
    centres = np.cumsum([0, *sizes[:-1]])
    density = np.full(len(assignment), LOW + 1)
    density[centres] = top
    matrix = np.full((len(sizes), len(sizes)), LOW)
    for (i, j), height in saddles.items():
        matrix[i, j] = matrix[j, i] = height
    n, empty = len(assignment), np.empty(0)
    return Landscape(None, np.arange(n), empty, empty, empty, density, assignment, empty, matrix, {}, {}, n)


def chain():
    """Four peaks in a row, the saddles between them lower and lower; a fifth, small one beside the last."""
    saddles = {(0, 1): 1, (1, 2): -1, (2, 3): -6, (3, 4): 2}
    found = made_landscape([20, 15, 30, 12, 5], [3.0, 2.0, 1.0, 2.5, 2.9], saddles)
    subjects = ["birds"] * 20 + ["mammals"] * 15 + ["law"] * 25 + ["music"] * 5 + ["music"] * 12 + ["drugs"] * 5
    return found, np.array(subjects)


def test_joins_are_at_the_height_of_the_saddle():
    found, subjects = chain()
    tree = grow(found, subjects, 11)
    np.testing.assert_array_equal(tree.counts.sum(1), [20, 15, 30, 12])
    np.testing.assert_array_equal(tree.log_density, [3, 2, 1, 2.5])
    # Highest peak 3.0: saddle 1.0 joins at 2; then 2 with {0, 1}: the mean of 12 (no saddle) and 4;
    # then 3: the mean of 12 to {0, 1} and 9 to 2, however many leaves these have.
    np.testing.assert_allclose(tree.links, [[0, 1, 2, 2], [2, 4, 8, 3], [3, 5, 10.5, 4]])


def test_subjects_sit_where_most_of_their_questions_are():
    found, subjects = chain()
    tree = grow(found, subjects, 11)
    assert tree.subjects.tolist() == ["birds", "drugs", "law", "mammals", "music"]
    assert tree.home.tolist() == [0, -1, 2, 1, 3]
    assert tree.totals.tolist() == [20, 5, 25, 15, 17]  # drugs, on a small peak, are counted


def test_only_peaks_with_more_points_are_leaves():
    found, subjects = chain()
    assert [len(grow(found, subjects, least).counts) for least in (4, 12, 20, 30)] == [5, 3, 1, 0]
    none = grow(found, subjects, 30)
    assert none.links.shape == grow(found, subjects, 20).links.shape == (0, 4) and (none.home == -1).all()


def test_identical_questions_left_out_by_the_landscape_keep_subjects_in_step():
    found, subjects = chain()
    shifted = replace(found, unique_rows=found.unique_rows + 1, n_rows=found.n_rows + 1)
    same, tree = grow(found, subjects, 11), grow(shifted, np.array(["law", *subjects]), 11)
    np.testing.assert_array_equal(tree.counts, same.counts)
    for others in (subjects, [*subjects, "law", "law"]):  # fewer or more than there were questions
        with pytest.raises(BadParameter, match="entries for 83 points"):
            grow(shifted, others, 11)


def test_least_is_in_proportion_to_the_papers():
    assert [least_points(["a"] * a + ["b"] * b) for a, b in ((75, 75), (200, 100), (12, 0))] == [11, 30, 2]


def test_names_follow_the_papers_rule():
    naming, totals = page()["naming"], np.array([100, 100, 100, 10])
    # The largest share is .5: named above .1 of a subject's own questions, however few of the peak these are.
    assert naming(np.array([[50, 11, 10, 2]]), totals).tolist() == [[True, True, False, True]]
    # With half of the peak a subject of many questions is not named beside one of few; with more than half it is.
    assert naming(np.array([[0, 0, 10, 10]]), totals).tolist() == [[False, False, False, True]]
    assert naming(np.array([[0, 0, 12, 10]]), totals).tolist() == [[False, False, True, True]]


def grouped_points(size=60, seed=1):
    """Eight subjects: four pairs, close inside a pair; points (8 · size, 20) and the subjects' names."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((20, 3)))[0].T
    corners = np.array([[x, y, 0] for x in (0, 11) for y in (0, 9)])
    centres = np.concatenate([[corner, corner + np.array([0, 0, 6])] for corner in corners])  # (8, 3)
    which = np.repeat(np.arange(8), size)
    return (centres[which] + rng.standard_normal((len(which), 3))) @ basis, np.array([f"s{i}" for i in which])


@pytest.fixture(scope="module")
def grouped():
    points, subjects = grouped_points()
    return points, landscape(points, {}, Recipe(dendrogram.GRIDE_SCALE, dendrogram.Z, dendrogram.K)), subjects


STEPS = np.where(np.arange(8)[:, None] // 2 == np.arange(8) // 2, 2.0, 8.0) - 2 * np.eye(8)


def test_pairs_that_are_close_join_first(grouped):
    _, found, subjects = grouped
    tree = grow(found, subjects, least_points(subjects))
    assert len(tree.counts) == 8 and sorted(tree.home) == list(range(8))
    where = {leaf: subject for subject, leaf in enumerate(tree.home)}
    first = {frozenset(where[int(leaf)] for leaf in pair) for pair in tree.links[:4, :2]}
    assert first == {frozenset((i, i + 1)) for i in (0, 2, 4, 6)}


class Panel:
    """A tree of eight subjects, in place of one that a model makes."""

    def __init__(self, wordnet):
        self.wordnet = wordnet


def estimates(points, peaks, subjects, least, patch, steps=STEPS, wordnet=True):
    """What the page measures on a tree."""
    tree = grow(peaks, subjects, least)
    patch.setitem(page(), "grown", lambda panel: (9, 30, points, peaks, subjects, tree))
    patch.setitem(page(), "wordnet_distances", lambda subjects: steps)
    return page()["estimates"](Panel(wordnet))


def test_estimates_of_a_known_tree(grouped, monkeypatch):
    measured = estimates(*grouped, 9, monkeypatch)
    leaves, mixed, purity = measured["n_leaves"], measured["mixed_share"], measured["purity"]
    assert leaves.value == 8 and leaves.low <= 8 <= leaves.high and leaves.n == 480
    assert mixed.value == 0 and mixed.null > 0.9  # shuffled subjects mix every peak
    assert purity.value > 0.95 and purity.high <= 1 and 1 / 8 < purity.null < purity.null_high < 0.35
    assert measured["least_points"].value == 9


def test_a_known_tree_agrees_with_the_known_hierarchy(grouped, monkeypatch):
    measured = estimates(*grouped, 9, monkeypatch)
    rank, p = measured["cophenetic_correlation"], measured["cophenetic_correlation_p"]
    assert rank.value > rank.null_high and rank.low <= rank.value <= rank.high <= 1 and rank.n == p.n == 8
    assert p.value < 0.05
    nowhere = np.full((8, 8), np.nan)
    for steps, compared in ((nowhere, True), (STEPS, False)):  # WordNet places no subject; its tree is not theirs
        alone = estimates(*grouped, 9, monkeypatch, steps, compared)
        assert {name: e for name, e in measured.items() if "cophenetic" not in name} == alone


def test_without_leaves_shares_are_left_out(grouped, monkeypatch):
    assert set(estimates(*grouped, 1000, monkeypatch)) == {"n_leaves", "least_points"}


def test_a_layer_is_taken_by_its_depth(own_cache):
    study = Study("tiny-llama", "wordnet", n_subjects=2, n_per_subject=30, point="residual")
    layer, n_layers, hidden, peaks, subjects = layer_at(study, 0, 0.6)
    assert (layer, n_layers) == (2, 4) and len(subjects) == 60 and peaks.recipe == Recipe(3, 1.6, 16)
    np.testing.assert_array_equal(landscape(hidden, {}, peaks.recipe).neighbours, peaks.neighbours)
    with pytest.raises(BadParameter, match="depth"):
        layer_at(study, 0, 1.2)


def test_groups_of_subjects():
    assert subject_groups("wordnet", ["music", "birds"]) == ["arts", "animals"]
    assert subject_groups("mmlu", ["virology"]) == [""]


def test_leaf_order_turns_joins_and_keeps_the_tree():
    links = np.array([[0, 1, 1, 2], [2, 3, 1, 2], [4, 5, 3, 4]], dtype=float)
    assert leaf_order(links, np.array([3.0, 2.0, 1.0, 0.0])) == [3, 2, 1, 0]
    assert leaf_order(links, np.array([0.0, 3.0, 1.0, 1.5])) == [2, 3, 0, 1]


def test_subjects_are_apart_as_high_as_their_leaves_join():
    tree_distances = page()["tree_distances"]
    links = np.array([[0, 1, 1, 2], [2, 3, 4, 3]], dtype=float)
    expected = [[0, 1, 4], [1, 0, 4], [4, 4, 0]]
    np.testing.assert_array_equal(tree_distances(links, np.array([0, 1, 2])), expected)
    with_none = tree_distances(links, np.array([1, -1, 1, 2]))  # two subjects on a leaf, and one on none
    np.testing.assert_array_equal(with_none, [[0, np.nan, 0, 4], [np.nan] * 4, [0, np.nan, 0, 4], [4, np.nan, 4, 0]])
    np.testing.assert_array_equal(tree_distances(np.empty((0, 4)), np.array([0, 0])), np.zeros((2, 2)))


def random_tree(n, seed):
    """Distances in a random tree of n leaves."""
    points = np.random.default_rng(seed).random((n, 2))
    return page()["tree_distances"](linkage(points, "average"), np.arange(n))


def test_mantels_p_is_right_by_chance():
    # Trees that have nothing to do with each other: one in five is below .2, however unlike their shapes.
    p = [page()["mantel"](random_tree(8, 1000 + i), random_tree(8, i), 19, i)[1] for i in range(100)]
    assert 0.08 < np.mean(np.array(p) <= 0.2) < 0.32  # .2 ± 3 standard errors


def test_wordnets_distances_are_those_of_the_file():
    steps = page()["wordnet_distances"](["mammals", "birds", "nowhere"])
    assert steps[0, 1] == steps[1, 0] > 0 and np.isnan(steps[2]).all() and (np.diag(steps)[:2] == 0).all()
