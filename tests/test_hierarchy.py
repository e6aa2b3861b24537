"""WordNet's distances between subjects, and how a tree of peaks is held against them."""

import numpy as np
import pandas as pd
import pytest
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from peaks_and_gates import hierarchy, wordnet
from peaks_and_gates.hierarchy import (
    agreement,
    hypernym_steps,
    known,
    mantel,
    rank_correlation,
    same_group_nearer,
    tree_distances,
    wordnet_tree,
)


def made_nouns():
    """animal > {bird > finch, mammal}, thing > {tool, garment}; bat is mammal and tool."""
    above = {
        "entity": (),
        "animal": ("entity",),
        "thing": ("entity",),
        "bird": ("animal",),
        "mammal": ("animal",),
        "finch": ("bird",),
        "tool": ("thing",),
        "garment": ("thing",),
        "bat": ("mammal", "tool"),
        "alone": (),
    }
    synsets = {
        name: wordnet.Synset((name,), "", hypernyms, (), False, False, "03") for name, hypernyms in above.items()
    }
    return wordnet.Nouns(synsets, {}, {}, {})


def test_steps_go_through_the_lowest_common_hypernym():
    steps = hypernym_steps(made_nouns(), [["bird"], ["mammal"], ["finch"], ["garment"], ["bat"]])
    expected = [
        [0, 2, 1, 4, 3],
        [2, 0, 3, 4, 1],
        [1, 3, 0, 5, 4],
        [4, 4, 5, 0, 3],
        [3, 1, 4, 3, 0],
    ]
    np.testing.assert_array_equal(steps, expected)


def test_of_several_roots_the_nearest_pair_counts():
    steps = hypernym_steps(made_nouns(), [["finch", "garment"], ["mammal"], ["tool"]])
    assert steps[0, 1] == 3 and steps[0, 2] == 2 and steps[1, 2] == 4
    above_and_below = hypernym_steps(made_nouns(), [["bird", "finch"], ["mammal"], ["finch", "bird"]])
    np.testing.assert_array_equal(above_and_below, [[0, 2, 0], [2, 0, 2], [0, 2, 0]])


def test_a_subject_without_a_place_in_the_tree_is_left_out():
    steps = hypernym_steps(made_nouns(), [["bird"], [], ["mammal"], ["alone"]])
    assert np.isnan(steps[1]).all() and np.isnan(steps[:, 1]).all()
    assert steps[0, 2] == 2
    assert np.isnan(steps[0, 3]) and steps[3, 3] == 0  # no hypernym in common


def test_other_question_sets_have_no_tree():
    steps, groups = known("mmlu", ["virology", "anatomy"])
    assert np.isnan(steps).all() and list(groups) == ["", ""]
    assert hierarchy.distance_table("mmlu", ["virology", "anatomy"]).empty


def test_wordnet_groups_and_roots(monkeypatch):
    """Subjects of the question set are looked up by name, in the order asked for."""
    seen = []
    monkeypatch.setattr(hierarchy, "nouns", lambda: None)
    monkeypatch.setattr(hierarchy, "hypernym_steps", lambda source, roots: seen.append(roots))
    _, groups = known("wordnet", ["music", "birds"])
    assert list(groups) == ["arts", "animals"]
    assert seen[0][1] == ("01503061",)


def test_distance_table_and_its_tree(monkeypatch):
    steps = np.array([[0, 2, 6, np.nan], [2, 0, 4, np.nan], [6, 4, 0, np.nan], [np.nan] * 4])
    monkeypatch.setattr(hierarchy, "known", lambda questions, subjects: (steps, None))
    table = hierarchy.distance_table("wordnet", ["birds", "mammals", "law", "nowhere"])
    assert len(table) == 3 and "nowhere" not in {*table["subject"], *table["other"]}
    names, links = wordnet_tree(table)
    assert names == ["birds", "law", "mammals"]
    np.testing.assert_allclose(links, [[0, 2, 2, 2], [1, 3, 5, 3]])  # average linkage: (6 + 4) / 2


def test_the_ruler_is_tested_by_the_groups():
    rows = [("a1", "a2", 2), ("a1", "b1", 6), ("a1", "b2", 7), ("a2", "b1", 6), ("a2", "b2", 1), ("b1", "b2", 3)]
    steps = pd.DataFrame(rows, columns=["subject", "other", "steps"])
    groups = pd.Series({"b1": "b", "a1": "a", "b2": "b", "a2": "a", "elsewhere": "c"})
    assert hierarchy.ruler(steps, groups).value == 0.75  # 1 is nearer than both pairs of one group


LINKS = linkage(squareform([[0, 1, 5, 5], [1, 0, 5, 5], [5, 5, 0, 2], [5, 5, 2, 0]]), "weighted")


def test_tree_distances_of_subjects():
    home = np.array([0, 1, 3, 3, -1])
    distances = tree_distances(LINKS, home)
    np.testing.assert_allclose(distances[:4, :4], [[0, 1, 5, 5], [1, 0, 5, 5], [5, 5, 0, 0], [5, 5, 0, 0]])
    assert np.isnan(distances[4]).all() and np.isnan(distances[:, 4]).all()


def test_a_tree_of_one_leaf_or_none():
    empty = np.empty((0, 4))
    np.testing.assert_array_equal(tree_distances(empty, np.zeros(3, int)), np.zeros((3, 3)))
    assert np.isnan(tree_distances(empty, np.full(3, -1))).all()


def random_tree(n, seed):
    """Distances in a random tree of n leaves."""
    points = np.random.default_rng(seed).random((n, 2))
    return tree_distances(linkage(points, "average"), np.arange(n))


def test_rank_correlation_sees_order_alone():
    distances = random_tree(10, 0)
    assert rank_correlation(distances, distances**3) == pytest.approx(1)
    assert rank_correlation(distances, 9 - distances) == pytest.approx(-1)
    assert np.isnan(rank_correlation(distances, np.ones((10, 10))))
    assert np.isnan(rank_correlation(distances[:3, :3], distances[:3, :3]))


def test_same_group_nearer_counts_pairs():
    groups = np.array(["a", "a", "b", "b"])
    inside, across = 1.0, 2.0
    distances = np.where(groups[:, None] == groups, inside, across)
    assert same_group_nearer(distances, groups) == 1
    assert same_group_nearer(-distances, groups) == 0
    assert same_group_nearer(np.ones((4, 4)), groups) == 0.5
    distances[0, 2] = distances[2, 0] = 0.5  # nearer than both pairs of one group: 2 of 8 comparisons are lost
    assert same_group_nearer(distances, groups) == 0.75
    assert np.isnan(same_group_nearer(distances, np.array(["a"] * 4)))
    assert np.isnan(same_group_nearer(distances, np.array(list("abcd"))))


def test_mantel_tells_a_match_from_chance():
    tree, other = random_tree(12, 0), random_tree(12, 1)
    match, p = mantel(lambda d: rank_correlation(d, tree), tree, 199)
    assert match.value == pytest.approx(1) and match.n == 12
    assert p == pytest.approx(1 / 200) and match.null_high < 0.8 and abs(match.null) < 0.05
    chance, p = mantel(lambda d: rank_correlation(d, other), tree, 199)
    assert p > 0.05 and chance.value < chance.null_high


def test_mantel_p_is_uniform_under_the_null():
    """Trees that have nothing to do with each other: one in five is below .2, however unlike their shapes."""
    against = lambda tree: lambda d: rank_correlation(d, tree)
    p = [mantel(against(random_tree(8, i)), random_tree(8, 1000 + i), 19, i)[1] for i in range(100)]
    assert 0.08 < np.mean(np.array(p) <= 0.2) < 0.32  # .2 ± 3 standard errors


def test_mantel_of_what_is_not_defined():
    found, p = mantel(lambda d: rank_correlation(d, d), np.zeros((6, 6)))
    assert np.isnan(found.value) and np.isnan(found.null_high) and np.isnan(p) and found.n == 6


def test_agreement_takes_the_subjects_both_know():
    steps = random_tree(8, 3)
    distances = steps.copy()
    distances[2], distances[:, 2] = np.nan, np.nan  # on no leaf
    steps[5], steps[:, 5] = np.nan, np.nan  # in no place of WordNet
    groups = np.array(list("aabbccdd"))
    measures = agreement(distances, steps, groups)
    statistic, kept = measures["cophenetic_correlation"]
    assert kept.shape == (6, 6) and statistic(kept) == pytest.approx(1)
    statistic, kept = measures["same_group_nearer"]
    pair = {(0, 1), (6, 7)}  # the groups that are still whole
    near = [distances[i, j] for i, j in pair]
    inside = [0, 1, 3, 4, 6, 7]
    far = [distances[i, j] for a, i in enumerate(inside) for j in inside[a + 1 :] if (i, j) not in pair]
    wins = np.mean([(f > n) + 0.5 * (f == n) for n in near for f in far])
    assert statistic(kept) == pytest.approx(wins)
