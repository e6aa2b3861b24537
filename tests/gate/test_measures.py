"""Measures by hand, by brute force, and by the released scripts."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import homogeneity_score

from peaks_and_gates.errors import BadParameter, BadStates, TooFewPoints
from peaks_and_gates.gate import measures, pictures
from peaks_and_gates.gate.answers import cider, normalised, ptb_tokens, vqa_accuracy
from peaks_and_gates.gate.measures import class_overlap, cosine_gap, flips, modality_homogeneity, similarity
from peaks_and_gates.landscape.density_peaks import Recipe

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "cider.json").read_text())


def gaussian(n, d=12, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


# Cosines between modalities


def cosines_of(text, image, signed=False):
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (text, image)]
    cosines = unit[0] @ unit[1].T
    return cosines if signed else np.abs(cosines)


def with_telling_pairs_of_one_example(n=7):
    """Pairs of one example at either end of all cosines: they would show in a quartile."""
    image, text = gaussian(n, seed=1), gaussian(n, seed=2)
    near = image + 0.1 * text, image * np.arange(1, n + 1)[:, None]
    return near, (text - image * (text * image).sum(1, keepdims=True) / (image**2).sum(1, keepdims=True), image)


@pytest.mark.parametrize("signed", [False, True])
def test_quantiles_over_all_pairs_of_different_examples(signed):
    for text, image in with_telling_pairs_of_one_example():
        pairs = np.sort(cosines_of(text, image, signed)[~np.eye(7, dtype=bool)])
        expected = [pairs[int(np.ceil(q * 42)) - 1] for q in (0.25, 0.5, 0.75)]
        assert (expected[0] < 0) == signed
        median, lower, upper = cosine_gap(text, image, signed=signed)
        np.testing.assert_allclose([lower, median.value, upper], expected, atol=1e-6)
        assert median.n == 7


@pytest.mark.parametrize("signed", [False, True])
def test_the_line_of_chance_is_that_of_random_directions(signed):
    """.06 at the minis' 128 dimensions without the sign; with it, 0 at any."""
    medians = [cosine_gap(gaussian(20, seed=2 * i), gaussian(20, seed=2 * i + 1), signed=signed) for i in range(300)]
    estimate = medians[0][0]
    values = np.array([median.value for median, *_ in medians])
    assert estimate.null == pytest.approx(values.mean(), abs=0.005)
    assert estimate.null_high == pytest.approx(np.percentile(values, 97.5), abs=0.008)
    wide = cosine_gap(gaussian(9, 128), gaussian(9, 128, seed=1), signed=signed)[0]
    assert wide.null == pytest.approx(0 if signed else 0.6745 / np.sqrt(128), abs=0.001)


@pytest.mark.parametrize("signed", [False, True])
def test_the_interval_is_that_of_a_bootstrap_with_all_pairs(signed):
    n, shared = 60, gaussian(1, 5, seed=3)
    text, image = gaussian(n, 5) + shared, gaussian(n, 5, seed=1) + shared
    cosines = cosines_of(text, image, signed)
    order, replicates = np.argsort(cosines, axis=None), []
    for counts in np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=400):
        weights = (np.outer(counts, counts) * ~np.eye(n, dtype=bool)).ravel()[order].cumsum()
        replicates.append(cosines.ravel()[order][np.searchsorted(weights, weights[-1] / 2)])
    low, high = np.percentile(replicates, [2.5, 97.5])
    median, *_ = cosine_gap(text, image, signed=signed, n_bootstrap=400)
    assert (high - low) > 0.02
    np.testing.assert_allclose([median.low, median.high], [low, high], atol=0.1 * (high - low))
    assert median.low < median.value < median.high


# Homogeneity of peaks in modality


def clouds(n=150, shift=0.0, seed=0):
    """Directions in three clusters; shift pulls the modalities apart inside each."""
    rng = np.random.default_rng(seed)
    centres = 6 * np.linalg.qr(rng.standard_normal((12, 4)))[0].T
    text, image = (centres[rng.integers(0, 3, n)] + rng.standard_normal((n, 12)) for _ in range(2))
    return text, image + shift * centres[3]


def published(dadapy, text, image, setting):
    """The two released scripts, by DADApy alone."""
    points, labels = np.vstack([text, image]), np.repeat([1.0, 0.0], len(text))
    k, z = {"clean": (16, 1.65), "main": (15, 1.2)}[setting]
    if setting == "clean":
        data = dadapy.Data(points, verbose=False)
        data.compute_distances(metric="cosine", maxk=128)
        data.distances = data.remove_zero_dists(data.distances)
    else:
        data = dadapy.Data(points / np.linalg.norm(points, axis=1, keepdims=True), verbose=False)
    data.set_id(data.return_id_scaling_gride(range_max=128)[0][3])
    data.compute_density_kNN(k=k)
    return homogeneity_score(labels, data.compute_clustering_ADP(Z=z))


CLOUDS = [clouds(shift=0.9, seed=1), clouds(shift=1), clouds(shift=1, seed=2)]


def test_homogeneity_equals_that_of_the_published_scripts(dadapy):
    # On few points another k or scale may give the same peaks, so the numbers themselves are held fast.
    assert {"clean": Recipe(3, 1.65, 16), "main": Recipe(3, 1.2, 15)} == measures.SETTINGS
    for text, image in CLOUDS:
        homogeneity = modality_homogeneity(text, image, n_repeats=2)
        for setting in ("clean", "main"):
            assert homogeneity[setting].value == pytest.approx(published(dadapy, text, image, setting))


def test_apart_and_mixed():
    apart, mixed = modality_homogeneity(*clouds(shift=3)), modality_homogeneity(*clouds())
    for setting in ("clean", "main"):
        assert apart[setting].value == pytest.approx(1) and apart[setting].low > 0.9 > apart[setting].null_high
        assert mixed[setting].value < 0.1 and mixed[setting].value < mixed[setting].null_high + 0.05
        assert 0 <= mixed[setting].low <= mixed[setting].high <= apart[setting].high <= 1 and mixed[setting].n == 300


def test_copies_count_once_and_length_is_no_matter(dadapy):
    text, image = CLOUDS[0]
    again = np.vstack([text[:40], text]), 50 * np.vstack([image[:40], image])
    homogeneity = modality_homogeneity(*again, n_repeats=2)["main"]
    assert homogeneity.n == 300 and homogeneity.value == pytest.approx(published(dadapy, text, image, "main"))
    text, image = clouds(16)
    assert set(modality_homogeneity(text, image)) == {"clean", "main"}
    with pytest.raises(TooFewPoints):
        modality_homogeneity(text[:8], image[:8])
    image[4] = 3 * text[9]
    with pytest.raises(BadStates, match="share a direction"):
        modality_homogeneity(text, image)


@pytest.mark.parametrize("measure", [cosine_gap, modality_homogeneity])
def test_vectors_that_do_not_belong_together_are_refused(measure):
    text, image = clouds()
    for other in (image[:-1], image[:, :-1]):
        with pytest.raises(BadParameter, match="same order"):
            measure(text, other)
    with pytest.raises(TooFewPoints, match="one example"):
        measure(text[:1], image[:1])
    for value, message in ((0, "layer 3: a vector of zeros"), (1e-200, "no direction"), (np.nan, "1 of 150 rows")):
        image[5] = value
        with pytest.raises(BadStates, match=message):
            measure(text, image, where="toy, layer 3")


# Class overlap

LINE, HALVES = np.arange(6.0)[:, None], np.array(["a", "a", "a", "b", "b", "b"])


def test_overlap_by_hand():
    """Neighbours on a line, ties to the lower index: all agree but one of two at either side of the border."""
    assert class_overlap(LINE, HALVES, k=2).value == pytest.approx(5 / 6)


def test_overlap_equals_dadapys_with_classes_of_any_size(dadapy):
    order = np.random.default_rng(0).permutation(200)
    labels = np.repeat([0, 1, 2], [40, 60, 100])[order]
    states = (gaussian(200) + 1.5 * gaussian(3, seed=1)[np.repeat([0, 1, 2], [40, 60, 100])])[order]
    overlap = class_overlap(states, labels)
    data = dadapy.Data(states, verbose=False)
    data.compute_distances(maxk=40)
    assert overlap.value == pytest.approx(data.return_label_overlap(labels, k=30))
    assert overlap.value != pytest.approx(data.return_label_overlap(labels, k=30, weighted=False), abs=1e-3)
    assert overlap.low < overlap.value < overlap.high and overlap.value > overlap.null_high
    assert overlap.null == pytest.approx(1 / 3, abs=0.02)


def test_identical_states_tell_nothing_of_the_class_and_small_classes_are_named():
    overlap = class_overlap(np.ones((120, 4)), np.repeat(np.arange(4), 30), k=20)
    assert overlap.value == pytest.approx(0.25, abs=0.01)
    with pytest.raises(TooFewPoints, match="class 'a' has 3 vectors; give more than k=3"):
        class_overlap(LINE, HALVES, 3)
    for labels, k in ((HALVES, 0), (HALVES[:5], 2)):
        with pytest.raises(BadParameter):
            class_overlap(LINE, labels, k)


# Next words

P = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]])
Q = torch.tensor([[0.2, 0.3, 0.5], [0.0, 0.5, 0.5], [0.2, 0.2, 0.6], [0.3, 0.3, 0.4]])


def test_similarity_by_hand():
    """Each row has its own offset, which a softmax over the vocabulary takes out."""
    offset = torch.tensor([[0.0], [5.0], [-7.0], [100.0]])
    torch.testing.assert_close(similarity(P.log() + offset, Q.log() - offset), torch.tensor([0.7, 0.0, 1.0, 0.5]))
    logits = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(0)).bfloat16()  # widened first
    torch.testing.assert_close(similarity(logits, logits), torch.ones(3))


# Logits of tokens 0, 1, 2 before and after patching; answers 0 (base) and 1 (counterfactual).
BEFORE = torch.tensor([[3.0, 1, 9], [2, 1, 9], [1, 2, 9], [1, 3, 9], [2, 1, 9], [1, 1, 9]])
AFTER = torch.tensor([[1.0, 3, 0], [2, 1, 9], [2, 1, 9], [1, 4, 9], [2, 2, 0], [1, 2, 9]])
FORBIDDEN = BEFORE.where(torch.arange(3) == 2, -torch.inf)  # either answer
FIRST, SECOND = torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64)


def test_flips_by_hand():
    """Pair 0 flips; 1 stays; 2 is put right; 3 stays wrong; 4 ends in a tie; 5 starts in one."""
    shares = flips(BEFORE, AFTER, FIRST, SECOND)
    expected = {"flips": 1 / 6, "flips_of_right": 1 / 3, "sign_changes": 4 / 6, "base_right": 3 / 6}
    assert {name: share.value for name, share in shares.items()} == pytest.approx(expected)
    assert shares["flips"].n == 6 and shares["flips_of_right"].n == 3
    assert "flips_of_right" not in flips(AFTER[:1], BEFORE[:1], FIRST[:1], SECOND[:1])  # no pair was right


@pytest.mark.parametrize(
    ("measure", "arguments", "error", "message"),
    [
        (similarity, (P.log(), Q.log()[:1]), BadParameter, "shapes"),
        (similarity, (P, Q), BadParameter, "probabilities already"),
        (similarity, (P.log() * torch.nan, Q.log()), BadStates, "4 of 4 rows"),
        (flips, (BEFORE, AFTER, FIRST, FIRST), BadParameter, "same token"),
        (flips, (BEFORE, AFTER, FIRST[:2], SECOND[:2]), BadParameter, "6 pairs need"),
        (flips, (BEFORE, AFTER, FIRST - 9, SECOND), BadParameter, "6 pairs need"),
        (flips, (FORBIDDEN, AFTER, FIRST, SECOND), BadStates, "kept from giving either"),
    ],
)
def test_what_is_no_logits_or_tells_nothing_apart_is_refused(measure, arguments, error, message):
    with pytest.raises(error, match=message):
        measure(*arguments)


# Answers


def test_the_published_scale():
    """Ten choose nine by hand: two matches leave 1/3 in the two subsets that lack one of them and 2/3 in eight."""
    scores = vqa_accuracy(["red"] * 6, [["red"] * n + ["blue"] * (10 - n) for n in (0, 1, 2, 3, 4, 10)])
    np.testing.assert_allclose(scores, [0, 0.3, 0.6, 0.9, 1, 1])


NORMALISED = {
    "Yes": "yes", "dont": "don't", "couldnt've": "couldn't've", "don't": "don't", "girl's": "girl's", "its": "its",
    "2:50 pm": "2:50 pm", "100,978": "100978", "3.5": "3.5", "It is 3.": "it is 3", "U.S.": "us", "None": "0",
    "Two dogs and an apple": "2 dogs and apple", "ten": "10", "eleven": "eleven", "The": "", "T-shirt": "t shirt",
    "yes!": "yes", "red, blue": "red blue", "black/white": "black white", "red-blue - green": "redblue green",
    "1,000-2,000": "10002000", "  a\nred\tball\r\n": "red ball", "": "",
}  # fmt: skip


def test_answers_are_normalised_on_both_sides():
    assert {answer: normalised(answer) for answer in NORMALISED} == NORMALISED
    assert vqa_accuracy(["2 dogs", "Two dogs!"], [["two dogs."] * 10, ["2 Dogs"] * 10]).tolist() == [1, 1]


def test_fewer_than_ten_references_are_matched_exactly_each_answer_with_its_own():
    scores = vqa_accuracy(["a red one", "red", "blue"], [["Red 1"], ["reddish"], ["green", "Blue."]])
    assert scores.tolist() == [1, 0, 1] and vqa_accuracy(["red", "blue"], [["blue"], ["red"]]).tolist() == [0, 0]


@pytest.mark.parametrize("references", [["red", ["blue"]], [["red"], []]])
def test_what_cannot_be_compared_is_refused(references):
    for score in (vqa_accuracy, cider):
        with pytest.raises(BadParameter, match="must be a list of one text or more"):
            score(["red", "blue"], references)


# Captions


def test_tokens_are_those_of_the_penn_treebank():
    assert {text: ptb_tokens(text) for text in GOLDEN["tokens"]} == GOLDEN["tokens"]
    texts = [text for picture in pictures.load("captions", "scenes", 300) for text in picture.captions]
    tokens = "\n".join(ptb_tokens(text) for text in texts)
    assert hashlib.sha256(tokens.encode()).hexdigest() == GOLDEN["scene_tokens_sha256"]


def test_scores_are_those_of_pycocoevalcap():
    for corpus in GOLDEN["corpora"]:
        for tokenizer in ("ptb", "whitespace"):
            scores = cider(corpus["candidates"], corpus["references"], tokenizer)
            np.testing.assert_allclose(scores, corpus[tokenizer], rtol=1e-9, atol=1e-12)


def test_a_score_computed_by_hand():
    """All weights are log 2 and cancel.  "e f" has 2 of 4 words and 1 of 3 bigrams, and is two bigrams shorter."""
    scores = cider(["a b c d", "e f"], [["a b c d"], ["e f g h"]], tokenizer="whitespace")
    second = 10 * (2 / np.sqrt(2 * 4) + 1 / np.sqrt(1 * 3)) / 4 * np.exp(-4 / 72)
    np.testing.assert_allclose(scores, [10, second])


def test_case_and_punctuation_count_only_for_whitespace():
    candidates, references = ["A Red square.", "two circles"], [["a red square"], ["two circles"]]
    assert cider(candidates, references, "ptb")[0] == pytest.approx(7.5)  # three words have no n-gram of four
    assert cider(candidates, references, "whitespace")[0] == 0
    with pytest.raises(TooFewPoints, match="every weight of CIDEr is zero"):
        cider(["a", "b"], [["a"], ["a"]])
