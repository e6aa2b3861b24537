import numpy as np
import pytest
import torch
from dadapy import Data
from sklearn.metrics import homogeneity_score

from peaks_and_gates import modality
from peaks_and_gates.errors import BadParameter, BadStates, TooFewPoints
from peaks_and_gates.landscape.density_peaks import Recipe
from peaks_and_gates.modality import class_overlap, cosine_gap, modality_homogeneity


def gaussian(n, d=12, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def absolute_cosines(text, image):
    """Truth: the whole matrix."""
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (text, image)]
    return np.abs(unit[0] @ unit[1].T)


def lower_quantiles(values):
    values = np.sort(values)
    return [values[int(np.ceil(q * len(values))) - 1] for q in (0.25, 0.5, 0.75)]


def near_its_own_image(n=7):
    image = gaussian(n, seed=1)
    return image + 0.1 * gaussian(n, seed=2), image * np.arange(1, n + 1)[:, None]


def orthogonal_to_its_own_image(n=7):
    image, text = gaussian(n, seed=1), gaussian(n, seed=2)
    return text - image * (text * image).sum(1, keepdims=True) / (image**2).sum(1, keepdims=True), image


def check_the_quantiles(**options):
    """Pairs of one example lie at either end of all cosines, so they would show in a quartile."""
    for text, image in (near_its_own_image(), orthogonal_to_its_own_image()):
        truth = lower_quantiles(absolute_cosines(text, image)[~np.eye(len(text), dtype=bool)])
        found = cosine_gap(text, image, **options)
        np.testing.assert_allclose([found.lower_quartile, found.median.value, found.upper_quartile], truth, atol=1e-6)
        assert found.n_pairs == 42 and found.median.n == 7


@pytest.mark.parametrize("block", [1, 3, 7, 1024])
def test_quantiles_over_all_pairs_of_different_examples(block):
    check_the_quantiles(block=block)


def without_absolute_value(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "abs", lambda self: self.clamp(min=0))


def with_pairs_of_one_example(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "fill_diagonal_", lambda self, value: self)


def without_length_one(monkeypatch):
    right = torch.linalg.vector_norm
    wrong = lambda *args, **options: torch.full_like(right(*args, **options), 30.0)
    monkeypatch.setattr(torch.linalg, "vector_norm", wrong)


@pytest.mark.parametrize("fault", [without_absolute_value, with_pairs_of_one_example, without_length_one])
def test_the_quantiles_fail_with_a_planted_fault(monkeypatch, fault):
    fault(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        check_the_quantiles()


def test_the_interval_is_that_of_a_bootstrap_with_all_pairs():
    n = 60
    shared = gaussian(1, 5, seed=3)
    text, image = gaussian(n, 5) + shared, gaussian(n, 5, seed=1) + shared
    cosines = absolute_cosines(text, image)
    order = np.argsort(cosines, axis=None)
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=400)
    replicates = []
    for counts in draws:
        weights = (np.outer(counts, counts) * ~np.eye(n, dtype=bool)).ravel()[order].cumsum()
        replicates.append(cosines.ravel()[order][np.searchsorted(weights, weights[-1] / 2)])
    low, high = np.percentile(replicates, [2.5, 97.5])
    found = cosine_gap(text, image, n_bootstrap=400, block=17).median
    assert (high - low) > 0.02
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=0.1 * (high - low))
    assert found.low < found.value < found.high


def test_the_order_of_the_examples_changes_nothing_and_the_papers_half_is_near():
    text, image = gaussian(300) + 0.5, gaussian(300, seed=1) + 0.5
    order = np.random.default_rng(0).permutation(300)
    found, turned = cosine_gap(text, image), cosine_gap(text[order], image[order])
    assert found.median.value == turned.median.value and found.upper_quartile == turned.upper_quartile
    half = absolute_cosines(text, image)[np.tril_indices(300, -1)]
    assert found.median.value == pytest.approx(np.median(half), abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_narrow_floats_and_two_examples(dtype):
    text, image = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    found = cosine_gap(text.to(dtype), image.to(dtype))  # pairs (0, 1): 1, (1, 0): 0.8
    assert found.median.value == pytest.approx(0.8, abs=1e-6) and found.upper_quartile == pytest.approx(1, abs=1e-6)
    assert 0.8 - 1e-6 <= found.median.low <= found.median.high <= 1


def clouds(n=150, shift=0.0, seed=0):
    """Directions in three clusters; shift pulls the modalities apart inside each."""
    rng = np.random.default_rng(seed)
    centres = 6 * np.linalg.qr(rng.standard_normal((12, 4)))[0].T
    text, image = (centres[rng.integers(0, 3, n)] + rng.standard_normal((n, 12)) for _ in range(2))
    return text, image + shift * centres[3]


def published(text, image, setting):
    """The two released scripts, by DADApy alone."""
    points, labels = np.vstack([text, image]), np.repeat([1.0, 0.0], len(text))
    if setting == "clean":
        data = Data(points, verbose=False)
        data.compute_distances(metric="cosine", maxk=128)
        data.distances = data.remove_zero_dists(data.distances)
        k, z = 16, 1.65
    else:
        data = Data(points / np.linalg.norm(points, axis=1, keepdims=True), verbose=False)
        k, z = 15, 1.2
    data.set_id(data.return_id_scaling_gride(range_max=128)[0][3])
    data.compute_density_kNN(k=k)
    return homogeneity_score(labels, data.compute_clustering_ADP(Z=z))


CLOUDS = [clouds(shift=0.9, seed=1), clouds(shift=1), clouds(shift=1, seed=2)]


def test_the_settings_are_the_published_ones():
    """On few points another k or scale may give the same peaks, so the numbers themselves are held fast."""
    expected = {"clean": Recipe(gride_scale=3, z=1.65, k=16), "main": Recipe(gride_scale=3, z=1.2, k=15)}
    assert expected == modality.SETTINGS


def check_the_published_scripts():
    for text, image in CLOUDS:
        found = modality_homogeneity(text, image, n_repeats=2)
        for setting in ("clean", "main"):
            assert found[setting].value == pytest.approx(published(text, image, setting))


def test_homogeneity_equals_that_of_the_published_scripts():
    check_the_published_scripts()
    both = [[published(*pair, setting) for setting in ("clean", "main")] for pair in CLOUDS]
    assert np.ptp(both, axis=1).max() > 0.05  # the settings can be told apart


@pytest.mark.parametrize(
    "settings",
    [
        {"clean": modality.SETTINGS["main"], "main": modality.SETTINGS["clean"]},
        {"clean": Recipe(3, 0.2, 16), "main": Recipe(3, 0.2, 15)},
    ],
    ids=["swapped", "Z too small"],
)
def test_it_differs_with_other_settings(monkeypatch, settings):
    monkeypatch.setattr(modality, "SETTINGS", settings)
    with pytest.raises(AssertionError):
        check_the_published_scripts()


def test_apart_and_mixed():
    apart = modality_homogeneity(*clouds(shift=3))
    mixed = modality_homogeneity(*clouds())
    for setting in ("clean", "main"):
        assert apart[setting].value == pytest.approx(1) and apart[setting].low > 0.99 > apart[setting].null_high
        assert apart[setting].high <= 1
        assert mixed[setting].value < 0.1 and mixed[setting].value < mixed[setting].null_high + 0.05
        assert 0 <= mixed[setting].low <= mixed[setting].high and mixed[setting].n == 300


def test_a_vector_that_comes_twice_counts_once():
    text, image = CLOUDS[0]
    text_again, image_again = np.vstack([text[:40], text]), np.vstack([image[:40], image])
    found = modality_homogeneity(text_again, image_again, n_repeats=2)["main"]
    assert found.n == 300 and found.value == pytest.approx(published(text, image, "main"))


def check_that_length_is_no_matter():
    text, image = clouds()
    found = modality_homogeneity(text, 50 * image, n_repeats=2)
    assert found["clean"].value < 0.1 and found["main"].value < 0.1


def test_length_is_no_matter(monkeypatch):
    check_that_length_is_no_matter()
    without_length_one(monkeypatch)
    with pytest.raises(AssertionError):
        check_that_length_is_no_matter()


def test_the_smallest_samples():
    text, image = clouds(16)
    assert set(modality_homogeneity(text, image)) == {"clean", "main"}
    with pytest.raises(TooFewPoints, match="18 different vectors"):
        modality_homogeneity(text[:9], image[:9])
    copies = np.repeat(text[:4], 10, axis=0), np.repeat(image[:4], 10, axis=0)
    with pytest.raises(TooFewPoints, match="8 different vectors"):
        modality_homogeneity(*copies)


def test_one_set_of_vectors_given_twice_is_noticed():
    text, image = clouds()
    with pytest.raises(BadStates, match="same positions"):
        modality_homogeneity(text, 2 * text)
    image[4] = 3 * text[9]
    with pytest.raises(BadStates, match="share a direction"):
        modality_homogeneity(text, image)


@pytest.mark.parametrize("measure", [cosine_gap, modality_homogeneity])
def test_vectors_that_do_not_belong_together_are_refused(measure):
    text, image = clouds()
    for other in (image[:-1], image[:, :-1]):
        with pytest.raises(BadParameter, match="same order"):
            measure(text, other, where="toy, layer 3")
    image[5] = 0
    with pytest.raises(BadStates, match="toy, layer 3: a vector of zeros"):
        measure(text, image, where="toy, layer 3")
    image[5] = np.nan
    with pytest.raises(BadStates, match="layer 3, image: 1 of 150 rows"):
        measure(text, image, where="toy, layer 3")
    with pytest.raises(TooFewPoints, match="two examples"):
        measure(text[:1], image[:1])


LINE, HALVES = np.arange(6.0)[:, None], np.array(["a", "a", "a", "b", "b", "b"])


def check_the_overlap_by_hand():
    """Neighbours on a line, ties to the lower index: all agree but one of two at either side of the border."""
    found = class_overlap(LINE, HALVES, k=2)
    assert found.value == pytest.approx(5 / 6) and found.n == 6


def test_overlap_by_hand():
    check_the_overlap_by_hand()


def test_it_fails_when_a_point_is_its_own_neighbour(monkeypatch):
    right = modality.nearest_neighbours

    def with_itself(states, k, **options):
        distances, neighbours = right(states, k, **options)
        return distances, np.hstack([np.arange(len(neighbours))[:, None], neighbours[:, :-1]])

    monkeypatch.setattr(modality, "nearest_neighbours", with_itself)
    with pytest.raises(AssertionError):
        check_the_overlap_by_hand()


def test_overlap_equals_dadapys_with_classes_of_any_size():
    labels = np.repeat([0, 1, 2], [40, 60, 100])
    states = gaussian(200) + 1.5 * gaussian(3, seed=1)[labels]
    order = np.random.default_rng(0).permutation(200)
    states, labels = states[order], labels[order]
    found = class_overlap(states, labels)
    data = Data(states, verbose=False)
    data.compute_distances(maxk=40)
    assert found.value == pytest.approx(data.return_label_overlap(labels, k=30))
    assert found.value != pytest.approx(data.return_label_overlap(labels, k=30, weighted=False), abs=1e-3)
    assert found.low < found.value < found.high and found.value > found.null_high
    assert found.null == pytest.approx(1 / 3, abs=0.02)


def test_without_classes_the_overlap_is_that_of_its_null():
    found = class_overlap(gaussian(200), np.repeat(np.arange(5), 40), k=10)
    assert found.null == pytest.approx(0.2, abs=0.02)
    assert found.value == pytest.approx(found.null, abs=0.05)


def test_identical_states_tell_nothing_of_the_class():
    found = class_overlap(np.ones((120, 4)), np.repeat(np.arange(4), 30), k=20)
    assert found.value == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("labels", "k", "error", "message"),
    [
        (HALVES, 3, TooFewPoints, "class 'a' has 3 vectors, so at most 2"),
        (np.array(list("aaaaab")), 2, TooFewPoints, "class 'b' has 1"),
        (HALVES, 30, TooFewPoints, "k=30"),
        (HALVES, 0, BadParameter, "k=0"),
        (HALVES[:5], 2, BadParameter, "one label"),
        (HALVES[:, None], 2, BadParameter, "one label"),
    ],
)
def test_classes_too_small_are_named(labels, k, error, message):
    with pytest.raises(error, match=message):
        class_overlap(LINE, labels, k)
