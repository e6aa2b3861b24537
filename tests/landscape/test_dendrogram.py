"""Trees of density peaks: on landscapes whose peaks are known, by the paper's rule for names, and against WordNet."""

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from page_code import page_code
from peaks_and_gates.book import claims
from peaks_and_gates.cache import project_folder
from peaks_and_gates.errors import BadParameter
from peaks_and_gates.landscape import dendrogram
from peaks_and_gates.landscape.dendrogram import grow, layer_at, leaf_order, least_points, subject_groups
from peaks_and_gates.landscape.density_peaks import Landscape, Recipe, clustered, landscape
from peaks_and_gates.landscape.study import Study
from peaks_and_gates.statistics import row

LOW = -9.0  # what DADApy puts for the saddle of peaks that do not touch
page = cache(lambda name: page_code(name))
TREES, WORDNET = "landscape/dendrogram", "beyond/hierarchy"


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
    return Landscape(None, np.arange(n), 0, empty, empty, empty, empty, density, assignment, empty, matrix, {}, {})


def chain():
    """Four peaks in a row, the saddles between them lower and lower; a fifth, small one beside the last."""
    found = made_landscape(
        [20, 15, 30, 12, 5], [3.0, 2.0, 1.0, 2.5, 2.9], {(0, 1): 1, (1, 2): -1, (2, 3): -6, (3, 4): 2}
    )
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


def test_only_peaks_with_more_points_are_leaves():
    found, subjects = chain()
    assert len(grow(found, subjects, 12).counts) == 3
    assert len(grow(found, subjects, 4).counts) == 5
    one, none = grow(found, subjects, 20), grow(found, subjects, 30)
    assert len(one.counts) == 1 and one.links.shape == (0, 4)
    assert len(none.counts) == 0 and none.links.shape == (0, 4) and (none.home == -1).all()


def test_subjects_sit_where_most_of_their_questions_are():
    found, subjects = chain()
    tree = grow(found, subjects, 11)
    assert dict(zip(tree.subjects, tree.home, strict=True)) == {
        "birds": 0, "drugs": -1, "law": 2, "mammals": 1, "music": 3,
    }  # fmt: skip
    np.testing.assert_array_equal(tree.totals, [20, 5, 25, 15, 17])  # drugs, on a small peak, are counted


def test_identical_questions_left_out_by_the_landscape_keep_subjects_in_step():
    found, subjects = chain()
    shifted = replace(found, kept=found.kept + 1)
    same, tree = grow(found, subjects, 11), grow(shifted, np.array(["law", *subjects]), 11)
    np.testing.assert_array_equal(tree.counts, same.counts)
    with pytest.raises(BadParameter, match="one per question"):
        grow(shifted, subjects, 11)


def test_least_is_in_proportion_to_the_papers():
    assert least_points(["a"] * 75 + ["b"] * 75) == 11
    assert least_points(["a"] * 200 + ["b"] * 100) == 30
    assert least_points(["a"] * 12) == 2


def test_names_follow_the_papers_rule():
    naming, totals = page(TREES)["naming"], np.array([100, 100, 100, 10])
    # The largest share is .5: named above .1 of a subject's own questions, however few of the peak these are.
    assert naming(np.array([[50, 11, 10, 2]]), totals).tolist() == [[True, True, False, True]]
    # With half of the peak a subject of many questions is not named beside one of few; with more than half it is.
    assert naming(np.array([[0, 0, 10, 10]]), totals).tolist() == [[False, False, False, True]]
    assert naming(np.array([[0, 0, 12, 10]]), totals).tolist() == [[False, False, True, True]]


def test_leaf_names_composition_and_purity():
    subjects = np.array([f"s{i}" for i in range(6)])
    counts = np.array([[9, 30, 0, 0, 0, 0], [6, 5, 4, 7, 0, 0], [5, 5, 5, 5, 6, 0]])
    tree = dendrogram.Tree(subjects, counts, np.full(6, 60), np.zeros(3), np.empty((0, 4)), np.zeros(6, int), 5)
    names = [page(TREES)["leaf_name"](tree, leaf) for leaf in range(3)]
    assert names == ["s1, s0", "s3, s0, s1, s2", "mix of 5 subjects"]
    assert page(TREES)["composition"](tree, 0) == "s1 30, s0 9"
    assert page(TREES)["composition"](tree, 2, most=2) == "s4 6, s0 5, others (3) 15"
    purity_of = page(TREES)["purity_of"]
    mixed, purity = purity_of(np.array([[[8, 2], [0, 10]], [[5, 5], [5, 5]]]), np.array([10, 10]))
    np.testing.assert_allclose([mixed, purity], [[0, 0], [0.9, 0.5]])
    assert purity_of(counts, tree.totals)[0] == pytest.approx(1 / 3)
    assert np.isnan(purity_of(np.empty((0, 3), int), np.ones(3))).all()


def grouped_points(size=60, seed=1):
    """Eight subjects: four pairs, close inside a pair; points (8 · size, 20) and the subjects' names."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((20, 3)))[0].T
    corners = np.array([[x, y, 0] for x in (0, 11) for y in (0, 9)])
    centres = np.concatenate([[corner, corner + np.array([0, 0, 6])] for corner in corners])  # (8, 3)
    which = np.repeat(np.arange(8), size)
    return (centres[which] + rng.standard_normal((len(which), 3))) @ basis, np.array([f"s{i}" for i in which])


def with_z(found, z, rows=None):
    """A landscape, or some rows of it, clustered as for the paper's trees."""
    return clustered(found, {"tree": Recipe(dendrogram.GRIDE_SCALE, z, dendrogram.K)}, rows)["tree"]


@pytest.fixture(scope="module")
def grouped():
    points, subjects = grouped_points()
    found = landscape(points, {}, "figures")
    return with_z(found, 1.6), subjects


STEPS = np.where(np.arange(8)[:, None] // 2 == np.arange(8) // 2, 2.0, 8.0) - 2 * np.eye(8)
GROUPS = np.array(list("aabbccdd"))


def test_pairs_that_are_close_join_first(grouped):
    found, subjects = grouped
    tree = grow(found, subjects, least_points(subjects))
    assert len(tree.counts) == 8 and sorted(tree.home) == list(range(8))
    where = {leaf: subject for subject, leaf in enumerate(tree.home)}
    first = {frozenset(where[int(leaf)] for leaf in pair) for pair in tree.links[:4, :2]}
    assert first == {frozenset((i, i + 1)) for i in (0, 2, 4, 6)}


class Panel:
    """A tree of eight subjects, in place of one that a model makes."""

    condition, n_shots, depth, z = "5-shot", 5, 0.3, 1.6
    study = Study("m", "wordnet")


def estimates(name, peaks, subjects, least, patch, steps=STEPS):
    """What a page measures on a tree."""
    tree = grow(peaks, subjects, least)
    patch.setitem(page(name), "grown", lambda panel: (9, 30, peaks, subjects, tree))
    patch.setitem(page(name), "wordnet_distances", lambda questions, of: steps)
    patch.setattr(dendrogram, "subject_groups", lambda questions, of: GROUPS)
    return page(name)["estimates"](Panel)


def test_estimates_of_a_known_tree(grouped, monkeypatch):
    measured = estimates(TREES, *grouped, 9, monkeypatch)
    leaves, mixed, purity = measured["n_leaves"], measured["mixed_share"], measured["purity"]
    assert leaves.value == 8 and leaves.low <= 8 <= leaves.high and leaves.n == 480
    assert mixed.value == 0 and mixed.null > 0.9  # shuffled subjects mix every peak
    assert purity.value > 0.95 and purity.high <= 1 and 1 / 8 < purity.null < purity.null_high < 0.35
    assert measured["least_points"].value == 9


def test_a_known_tree_agrees_with_the_known_hierarchy(grouped, monkeypatch):
    measured = estimates(WORDNET, *grouped, 9, monkeypatch)
    rank, nearer = measured["cophenetic_correlation"], measured["same_group_nearer"]
    assert rank.value > rank.null_high and rank.low <= rank.value <= rank.high <= 1 and rank.n == 8
    assert nearer.value == 1 and measured["same_group_nearer_p"].value < 0.05
    unknown = estimates(WORDNET, *grouped, 9, monkeypatch, np.full((8, 8), np.nan))  # as for MMLU
    assert list(unknown) == ["n_leaves"]


def test_without_leaves_shares_are_left_out(grouped, monkeypatch):
    assert set(estimates(TREES, *grouped, 1000, monkeypatch)) == {"n_leaves", "least_points"}
    assert list(estimates(WORDNET, *grouped, 1000, monkeypatch)) == ["n_leaves"]


def test_one_peak_of_everything_has_the_null_of_one_peak(grouped):
    peaks, subjects = grouped
    one = replace(peaks, assignment=np.zeros(peaks.n, int), saddle_log_density=np.zeros((1, 1)))
    tree = grow(one, subjects, 6)
    np.testing.assert_array_equal(page(TREES)["shuffled_counts"](one, tree)[7], [[60] * 8])


def test_a_part_is_clustered_as_all_points_are(grouped):
    peaks, _ = grouped
    first = landscape(grouped_points()[0], {}, "figures")
    again = with_z(first, first.recipe.z)
    np.testing.assert_array_equal(again.assignment, first.assignment)
    np.testing.assert_array_equal(again.saddle_log_density, first.saddle_log_density)
    assert with_z(first, 0).n_peaks > peaks.n_peaks
    rows = np.arange(0, first.n, 2)
    half = with_z(first, 1.6, rows)
    assert half.n == len(half.assignment) == 240
    np.testing.assert_array_equal(half.kept, rows)


def test_depth_must_be_one():
    with pytest.raises(BadParameter, match="depth"):
        layer_at(Study("m", "wordnet"), 0, 1.2)


def test_groups_and_their_looks():
    assert subject_groups("wordnet", ["music", "birds"]) == ["arts", "animals"]
    assert subject_groups("mmlu", ["virology"]) == [""]
    groups = pd.read_parquet(project_folder() / "data" / "wordnet-questions.parquet", columns=["group"])["group"]
    looks = dendrogram.group_looks(groups)
    assert len(set(looks.values())) == groups.nunique() + 1 and dendrogram.MIXED not in looks.values()


def test_leaf_order_turns_joins_and_keeps_the_tree():
    links = np.array([[0, 1, 1, 2], [2, 3, 1, 2], [4, 5, 3, 4]], dtype=float)
    assert leaf_order(links, np.array([3.0, 2.0, 1.0, 0.0])) == [3, 2, 1, 0]
    assert leaf_order(links, np.array([0.0, 3.0, 1.0, 1.5])) == [2, 3, 0, 1]


LINKS = linkage(squareform([[0, 1, 5, 5], [1, 0, 5, 5], [5, 5, 0, 2], [5, 5, 2, 0]]), "weighted")


def test_tree_distances_of_subjects():
    home = np.array([0, 1, 3, 3, -1])
    distances = page(WORDNET)["tree_distances"](LINKS, home)
    np.testing.assert_allclose(distances[:4, :4], [[0, 1, 5, 5], [1, 0, 5, 5], [5, 5, 0, 0], [5, 5, 0, 0]])
    assert np.isnan(distances[4]).all() and np.isnan(distances[:, 4]).all()


def test_a_tree_of_one_leaf_or_none():
    empty = np.empty((0, 4))
    np.testing.assert_array_equal(page(WORDNET)["tree_distances"](empty, np.zeros(3, int)), np.zeros((3, 3)))
    assert np.isnan(page(WORDNET)["tree_distances"](empty, np.full(3, -1))).all()


def random_tree(n, seed):
    """Distances in a random tree of n leaves."""
    points = np.random.default_rng(seed).random((n, 2))
    return page(WORDNET)["tree_distances"](linkage(points, "average"), np.arange(n))


def test_rank_correlation_sees_order_alone():
    distances = random_tree(10, 0)
    assert page(WORDNET)["rank_correlation"](distances, distances**3) == pytest.approx(1)
    assert page(WORDNET)["rank_correlation"](distances, 9 - distances) == pytest.approx(-1)
    assert np.isnan(page(WORDNET)["rank_correlation"](distances, np.ones((10, 10))))
    assert np.isnan(page(WORDNET)["rank_correlation"](distances[:3, :3], distances[:3, :3]))


def test_same_group_nearer_counts_pairs():
    groups = np.array(["a", "a", "b", "b"])
    inside, across = 1.0, 2.0
    distances = np.where(groups[:, None] == groups, inside, across)
    assert page(WORDNET)["same_group_nearer"](distances, groups) == 1
    assert page(WORDNET)["same_group_nearer"](-distances, groups) == 0
    assert page(WORDNET)["same_group_nearer"](np.ones((4, 4)), groups) == 0.5
    distances[0, 2] = distances[2, 0] = 0.5  # nearer than both pairs of one group: 2 of 8 comparisons are lost
    assert page(WORDNET)["same_group_nearer"](distances, groups) == 0.75
    assert np.isnan(page(WORDNET)["same_group_nearer"](distances, np.array(["a"] * 4)))
    assert np.isnan(page(WORDNET)["same_group_nearer"](distances, np.array(list("abcd"))))


def test_mantel_tells_a_match_from_chance():
    mantel, correlation = page(WORDNET)["mantel"], page(WORDNET)["rank_correlation"]
    tree, other = random_tree(12, 0), random_tree(12, 1)
    null, null_high, p = mantel(lambda d: correlation(d, tree), tree, 199)
    assert p == pytest.approx(1 / 200) and null_high < 0.8 and abs(null) < 0.05
    assert mantel(lambda d: correlation(d, other), tree, 199)[2] > 0.05
    assert np.isnan(mantel(lambda d: correlation(d, d), np.zeros((6, 6)))).all()
    # Trees that have nothing to do with each other: one in five is below .2, however unlike their shapes.
    against = lambda tree: lambda d: correlation(d, tree)
    p = [mantel(against(random_tree(8, i)), random_tree(8, 1000 + i), 19, i)[2] for i in range(100)]
    assert 0.08 < np.mean(np.array(p) <= 0.2) < 0.32  # .2 ± 3 standard errors


def test_the_comparison_takes_the_subjects_both_know():
    links = linkage(np.random.default_rng(3).random((8, 2)), "average")
    home = np.arange(8)
    steps = page(WORDNET)["tree_distances"](links, home)
    steps[5], steps[:, 5] = np.nan, np.nan  # in no place of WordNet
    home[2] = -1  # on no leaf
    tree = dendrogram.Tree(np.arange(8).astype(str), np.eye(8), np.ones(8), np.zeros(8), links, home, 0)
    for statistic, distances in page(WORDNET)["comparisons"](tree, steps, GROUPS).values():
        assert distances.shape == (6, 6) and statistic(distances) > 0
    assert page(WORDNET)["comparisons"](tree, steps, GROUPS)["cophenetic_correlation"][0](distances) == pytest.approx(1)


def test_wordnets_distances_are_those_of_the_file():
    steps = page(WORDNET)["wordnet_distances"]("wordnet", ["mammals", "birds", "nowhere"])
    assert steps[0, 1] == steps[1, 0] > 0 and np.isnan(steps[2]).all() and (np.diag(steps)[:2] == 0).all()
    assert np.isnan(page(WORDNET)["wordnet_distances"]("mmlu", ["virology", "anatomy"])).all()


def test_claims_read_the_numbers(grouped, monkeypatch):
    """The claims on trees find their rows, one per condition; without WordNet's tree L7 is not tested."""
    rows_of = lambda name: [
        row("5-shot", "m", 9, 0.3, metric, "Z = 1.6", e)
        for metric, e in estimates(name, *grouped, 9, monkeypatch).items()
    ]
    few, agreement = pd.DataFrame(rows_of(TREES)), pd.DataFrame(rows_of(WORDNET))
    mixed = few.copy()
    mixed.loc[mixed["metric"] == "mixed_share", ["value", "low", "high"]] = [0.8, 0.7, 0.9]
    others = [mixed.assign(condition=condition) for condition in ("0-shot", "fine-tuned", "5-shot, Z = 4")]
    known = {claim["id"]: claim for claim in claims.load()}
    assert claims.judge(known["L6"], {"dendrogram.numbers": pd.concat([few, *others])}).verdict == "holds"
    assert claims.judge(known["L7"], {"hierarchy.agreement": agreement}).verdict == "holds"
    without = agreement[agreement["metric"] == "n_leaves"]
    assert claims.judge(known["L7"], {"hierarchy.agreement": without}).verdict == "not tested"
