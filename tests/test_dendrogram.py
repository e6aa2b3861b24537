"""Trees of density peaks: on landscapes whose peaks are known, and by the paper's rule for names."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from conftest import make_questions
from peaks_and_gates import claims, dendrogram, figures, hierarchy, tree_figures
from peaks_and_gates.clustering import Recipe
from peaks_and_gates.dendrogram import Panel, content, estimates, grow, least_points, named, panels
from peaks_and_gates.errors import BadParameter
from peaks_and_gates.geometry import Landscape, clustered, landscape
from peaks_and_gates.landscape.questions import QuestionSet
from peaks_and_gates.peaks import Study

LOW = -9.0  # what DADApy puts for the saddle of peaks that do not touch


def made_landscape(sizes, top, saddles):
    """A landscape with peaks of these sizes and heights; saddles: {(i, j): log density}."""
    assignment = np.repeat(np.arange(len(sizes)), sizes)
    centres = np.cumsum([0, *sizes[:-1]])
    density = np.full(len(assignment), LOW + 1)
    density[centres] = top
    matrix = np.full((len(sizes), len(sizes)), LOW)
    for (i, j), height in saddles.items():
        matrix[i, j] = matrix[j, i] = height
    n = len(assignment)
    empty = np.empty(0)
    return Landscape(
        None, n, 0, np.arange(n), empty, empty, empty, empty, empty, density, assignment, empty, centres, matrix, {}, {}
    )  # fmt: skip


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
    with pytest.raises(BadParameter, match="one a question"):
        grow(shifted, subjects, 11)


def test_least_is_in_proportion_to_the_papers():
    assert least_points(["a"] * 75 + ["b"] * 75) == 11
    assert least_points(["a"] * 200 + ["b"] * 100) == 30
    assert least_points(["a"] * 12) == 2


def test_names_follow_the_papers_rule():
    totals = np.array([100, 100, 100, 10])
    # The largest share is .5: named above .1 of a subject's own questions, however few of the peak these are.
    assert named(np.array([[50, 11, 10, 2]]), totals).tolist() == [[True, True, False, True]]
    # With half of the peak a subject of many questions is not named beside one of few; with more than half it is.
    assert named(np.array([[0, 0, 10, 10]]), totals).tolist() == [[False, False, False, True]]
    assert named(np.array([[0, 0, 12, 10]]), totals).tolist() == [[False, False, True, True]]


def test_leaf_names_and_composition():
    subjects = np.array([f"s{i}" for i in range(6)])
    counts = np.array([[9, 30, 0, 0, 0, 0], [6, 5, 4, 7, 0, 0], [5, 5, 5, 5, 6, 0]])
    tree = dendrogram.Tree(subjects, counts, np.full(6, 60), np.zeros(3), np.empty((0, 4)), np.zeros(6, int), 360, 5)
    names = [dendrogram.leaf_name(tree, leaf) for leaf in range(3)]
    assert names == ["s1, s0", "s3, s0, s1, s2", "mix of 5 subjects"]
    assert dendrogram.composition(tree, 0) == "s1 30, s0 9"
    assert dendrogram.composition(tree, 2, most=2) == "s4 6, s0 5, others (3) 15"
    assert dendrogram.is_mixed(counts, tree.totals).tolist() == [False, False, True]


def test_content_of_many_tables_at_once():
    counts = np.array([[[8, 2], [0, 10]], [[5, 5], [5, 5]]])
    mixed, purity = content(counts, np.array([10, 10]))
    np.testing.assert_allclose(purity, [0.9, 0.5])
    np.testing.assert_allclose(mixed, [0, 0])
    assert np.isnan(content(np.empty((0, 3), int), np.ones(3))).all()


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


def test_estimates_of_a_known_tree(grouped):
    found, subjects = grouped
    tree = grow(found, subjects, least_points(subjects))
    measured = estimates(found, tree, subjects, STEPS, GROUPS)
    leaves, mixed, purity = measured["n_leaves"], measured["mixed_share"], measured["purity"]
    assert leaves.value == 8 and leaves.low <= 8 <= leaves.high and leaves.n == 480
    assert mixed.value == 0 and mixed.null > 0.9  # shuffled subjects mix every peak
    assert purity.value > 0.95 and purity.high <= 1 and 1 / 8 < purity.null < purity.null_high < 0.35
    rank, nearer = measured["cophenetic_correlation"], measured["same_group_nearer"]
    assert rank.value > rank.null_high and rank.low <= rank.value <= rank.high <= 1 and rank.n == 8
    assert nearer.value == 1 and measured["same_group_nearer_p"].value < 0.05
    assert measured["least_points"].value == 9


def test_one_peak_of_everything_has_the_null_of_one_peak(grouped):
    found, subjects = grouped
    whole = replace(
        found,
        assignment=np.zeros(found.n, int),
        peak_centres=found.peak_centres[:1],
        saddle_log_density=np.zeros((1, 1)),
    )
    tree = grow(whole, subjects, 6)
    np.testing.assert_array_equal(dendrogram.shuffled_counts(whole, tree, subjects)[7], [[60] * 8])


def test_clustering_all_points_again_changes_nothing_but_z(grouped):
    found, _ = grouped
    first = landscape(grouped_points()[0], {}, "figures")
    again = with_z(first, first.recipe.z)
    np.testing.assert_array_equal(again.assignment, first.assignment)
    np.testing.assert_array_equal(again.saddle_log_density, first.saddle_log_density)
    assert with_z(first, 0).n_peaks > found.n_peaks
    part = np.arange(0, first.n, 2)
    half = with_z(first, 1.6, part)
    assert half.n == len(half.assignment) == 240
    np.testing.assert_array_equal(half.kept, part)


STUDY = Study("tiny-llama", "made", [0, 1], 8, 12)


def test_panels_of_the_paper():
    found = panels(STUDY, raw="other", fine_tuned=["a", "b"], depth_zero_shot=0.5)
    assert [(p.condition, p.study.model, p.n_shots, p.depth, p.z) for p in found] == [
        ("1-shot", "tiny-llama", 1, 0.3, 1.6),
        ("1-shot, raw model", "other", 1, 0.3, 1.6),
        ("0-shot", "tiny-llama", 0, 0.5, 1.6),
        ("fine-tuned, seed 0", "a", 0, 0.3, 1.6),
        ("fine-tuned, seed 1", "b", 0, 0.3, 1.6),
        ("1-shot, Z = 0", "tiny-llama", 1, 0.3, 0),
        ("1-shot, Z = 4", "tiny-llama", 1, 0.3, 4),
    ]
    assert not any("raw" in p.condition for p in panels(STUDY, raw="tiny-llama"))


@pytest.fixture
def made(own_cache, monkeypatch) -> QuestionSet:
    """A question set of 8 made subjects with 12 questions each, in place of the named one."""
    questions = make_questions(8, 12)
    monkeypatch.setattr(Study, "question_set", lambda study: questions)
    return questions


def test_depth_must_be_one(made):
    with pytest.raises(BadParameter, match="depth"):
        dendrogram.trees([Panel("0-shot", STUDY, 0, 1.2)])


def made_trees(leaf_sizes):
    """Tables of a tree over eight WordNet subjects, without a model; a leaf may be kept or not."""
    points, subjects = grouped_points()
    renamed = dict(zip(np.unique(subjects), NAMES, strict=True))
    subjects = np.array([renamed[s] for s in subjects])
    first = landscape(points, {}, "figures")
    found = with_z(first, 1.6)
    tree = grow(found, subjects, leaf_sizes)
    steps = STEPS[np.ix_(np.argsort(NAMES), np.argsort(NAMES))]
    groups = np.array(["animals", "animals", "society", "society", "plants", "plants", "arts", "arts"])[
        np.argsort(NAMES)
    ]
    about = {"condition": "5-shot", "model": "m", "layer": 9, "depth": 0.3, "setting": "Z = 1.6"}
    numbers = pd.DataFrame(
        {"metric": metric, **about, **vars(e)} for metric, e in estimates(found, tree, subjects, steps, groups).items()
    )
    links = pd.DataFrame(tree.links, columns=["left", "right", "height", "size"])
    tables = (dendrogram.leaf_table(tree, groups), links, dendrogram.subject_table(tree, groups))
    pairs = [(i, j) for i in range(8) for j in range(i + 1, 8)]
    names = sorted(NAMES)
    wordnet = pd.DataFrame({"subject": names[i], "other": names[j], "steps": steps[i, j]} for i, j in pairs)
    return dendrogram.Trees(numbers, *(table.assign(**about) for table in tables)), wordnet


NAMES = ["birds", "mammals", "law", "military", "trees", "botany", "music", "visual_arts"]


def test_tanglegram_and_captions_say_what_was_measured():
    trees, steps = made_trees(6)
    assert sorted(trees.leaves["name"]) == sorted(NAMES)
    figure = tree_figures.tanglegram(trees, "5-shot", steps)
    lines = [line for line in figure.axes[1].lines if len(line.get_xdata()) == 2]
    assert len(lines) == 8
    assert all(line.get_ydata()[0] == pytest.approx(line.get_ydata()[1]) for line in lines)  # nothing crosses
    assert "8 subjects compared" in tree_figures.agreement(trees, "5-shot")
    assert "mixed: 0 (share 0.00" in tree_figures.summary(trees, "5-shot")
    paragraph = tree_figures.left_out(trees, "5-shot", steps).data
    assert "Of 8 subjects" in paragraph and "too small: none" in paragraph and "probability 1.00" in paragraph
    assert "visual arts 59" in tree_figures.composition(trees, "5-shot").data


def test_an_empty_tree_is_a_message():
    trees, steps = made_trees(1000)
    for draw in (
        lambda: tree_figures.dendrogram(trees, "5-shot"),
        lambda: tree_figures.tanglegram(trees, "5-shot", steps),
        lambda: tree_figures.side_by_side(trees, ["5-shot"]),
    ):
        assert b"</svg>" in figures.as_svg(draw)
    assert "No peak has more than 1000 questions." in tree_figures.summary(trees, "5-shot")
    assert "Too few subjects" in tree_figures.agreement(trees, "5-shot")
    assert tree_figures.beside_paper(trees).iloc[-1]["peaks"] == 0


def test_leaf_order_turns_joins_and_keeps_the_tree():
    links = np.array([[0, 1, 1, 2], [2, 3, 1, 2], [4, 5, 3, 4]], dtype=float)
    assert tree_figures.leaf_order(links, np.array([3.0, 2.0, 1.0, 0.0])) == [3, 2, 1, 0]
    assert tree_figures.leaf_order(links, np.array([0.0, 3.0, 1.0, 1.5])) == [2, 3, 0, 1]


def test_every_group_has_a_look_of_its_own():
    groups = {subject.group for subject in tree_figures.wordnet_subjects()}
    looks = [tree_figures.group_look(group) for group in groups]
    assert len(set(looks)) == len(groups) and tree_figures.MIXED not in looks
    assert tree_figures.group_look("") == tree_figures.NO_GROUP


def test_claims_read_the_numbers():
    """The claims on trees find their rows, one a condition; without WordNet's tree L7 is not tested."""
    trees, _ = made_trees(6)
    few = trees.numbers
    mixed = few.copy()
    mixed.loc[mixed["metric"] == "mixed_share", ["value", "low", "high"]] = [0.8, 0.7, 0.9]
    table = pd.concat(
        [
            few,
            mixed.assign(condition="0-shot"),
            mixed.assign(condition="fine-tuned"),
            mixed.assign(condition="5-shot, Z = 4"),
        ]
    )
    known = {claim["id"]: claim for claim in claims.load()}
    assert claims.judge(known["L6"], {"dendrogram": table}).verdict == "holds"
    assert claims.judge(known["L7"], {"dendrogram": table}).parts[0].found.value > 0
    table = table[table["metric"] != "cophenetic_correlation"]
    assert claims.judge(known["L7"], {"dendrogram": table}).verdict == "not tested"


def test_mmlu_has_no_hierarchy(grouped):
    found, subjects = grouped
    tree = grow(found, subjects, 6)
    measured = estimates(found, tree, subjects, *hierarchy.known("mmlu", list(tree.subjects)))
    assert "cophenetic_correlation" not in measured and "same_group_nearer_p" not in measured
    assert measured["purity"].value > 0.95
