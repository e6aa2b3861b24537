import inspect
from functools import cache

import numpy as np
import pytest
import torch
from dadapy import Data
from sklearn.metrics import adjusted_rand_score

from peaks_and_gates.errors import BadParameter, BadStates, BookError, TooFewPoints, UnknownName
from peaks_and_gates.landscape import adp, density_peaks
from peaks_and_gates.landscape.density_peaks import (
    RECIPES,
    first_of_identical,
    landscape,
    landscapes,
    subsample_intervals,
)
from peaks_and_gates.landscape.neighbours import nearest_neighbours, neighbour_overlap, point_overlap
from peaks_and_gates.statistics import normal_estimate


def rotated(points, d, seed=0):
    """Lay points into d dimensions without changing distances."""
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, points.shape[1])))[0]
    return points @ basis.T


def clusters(n_clusters, size=60, d=30, inner=4, seed=0):
    """Gaussian clusters far from each other; labels as names."""
    rng = np.random.default_rng(seed)
    centres = 40 * np.linalg.qr(rng.standard_normal((d, n_clusters)))[0].T
    labels = np.repeat(np.arange(n_clusters), size)
    points = centres[labels] + rotated(rng.standard_normal((len(labels), inner)), d, seed)
    return points, np.array([f"subject {label}" for label in labels])


def plane():
    return rotated(np.random.default_rng(0).random((3000, 2)), 50)


def cube():
    return rotated(np.random.default_rng(0).random((3000, 5)), 100)


def gaussian():
    return rotated(np.random.default_rng(0).standard_normal((3000, 5)), 100)


def sphere():
    points = np.random.default_rng(0).standard_normal((3000, 11))
    return rotated(points / np.linalg.norm(points, axis=1, keepdims=True), 60)


# Boundaries (plane, cube), tails (Gaussian) and 3,000 points in many dimensions lower it at larger scales.
@pytest.mark.parametrize(
    ("manifold", "dimension", "tolerance"),
    [(plane, 2, 0.05), (cube, 5, 0.12), (gaussian, 5, 0.10), (sphere, 10, 0.15)],
)
def test_dimension_of_known_manifolds(manifold, dimension, tolerance):
    found = landscape(manifold(), {})
    np.testing.assert_array_equal(found.gride_ranks, [1, 2, 4, 8, 16, 32, 64])
    assert found.intrinsic_dimension[found.recipe.gride_scale] == pytest.approx(dimension, rel=tolerance)
    at_8 = found.dimension_at(8)
    assert at_8.value == found.intrinsic_dimension[3] and at_8.low < at_8.value < at_8.high
    with pytest.raises(UnknownName, match="Known: 1, 16, 2"):
        found.dimension_at(9)


@pytest.mark.parametrize("n_clusters", [3, 10])
@pytest.mark.parametrize("recipe", RECIPES)
def test_far_clusters_are_the_peaks(n_clusters, recipe):
    points, subjects = clusters(n_clusters)
    answers = np.random.default_rng(0).integers(4, size=len(points))
    found = landscape(points, {"subject": subjects, "answer": answers}, recipe)
    assert found.n_peaks == n_clusters
    assert found.adjusted_rand_index["subject"].value == 1
    assert abs(found.adjusted_rand_index["answer"].value) < 0.02
    assert found.label_overlap["subject"].value == 1
    answer = found.label_overlap["answer"]
    assert answer.value == pytest.approx(0.25, abs=0.03) and answer.null == pytest.approx(0.25, abs=0.01)
    assert answer.low < answer.value < answer.high and answer.value < answer.null_high + 0.02
    assert found.core_fraction == 1  # they do not touch
    np.testing.assert_array_equal(found.assignment[found.peak_centres], np.arange(n_clusters))


def test_uniform_noise_has_few_peaks():
    assert landscape(np.random.default_rng(0).random((600, 8)), {}).n_peaks <= 2


def test_smoke_size_reaches_the_recipe():
    points, subjects = clusters(8, size=12)
    found = landscapes(points, {"subject": subjects})
    assert found["released"].n == 96
    assert list(found["released"].gride_ranks) == [1, 2, 4, 8, 16, 32]


def overlapping(n=700, seed=0):
    """Clusters that touch, with a halo, as float32."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(6, size=n)
    inner = 3.2 * rng.standard_normal((6, 4))[labels] + rng.standard_normal((n, 4))
    return rotated(inner, 40).astype(np.float32), labels


def test_equals_dadapys_own_route():
    points, _ = overlapping()
    found = landscapes(points, {})
    for name, recipe in RECIPES.items():
        data = Data(points.astype(np.float64), maxk=128)
        data.compute_distances()
        dimension, error, _ = data.return_id_scaling_gride(range_max=128)
        data.set_id(dimension[recipe.gride_scale])
        data.compute_density_kNN(recipe.k)
        np.testing.assert_allclose(found[name].intrinsic_dimension, dimension, rtol=1e-6)
        np.testing.assert_allclose(found[name].intrinsic_dimension_error, error, rtol=1e-6)
        np.testing.assert_allclose(found[name].log_density, data.log_den, rtol=1e-6)
        assignment = data.compute_clustering_ADP(Z=recipe.z).copy()
        assert found[name].n_peaks == data.N_clusters > 1
        assert adjusted_rand_score(found[name].assignment, assignment) == 1
        np.testing.assert_allclose(found[name].saddle_log_density, data.log_den_bord, rtol=1e-6)
        np.testing.assert_allclose(found[name].peak_log_density, data.log_den[data.cluster_centers], rtol=1e-6)
        halo = data.compute_clustering_ADP(Z=recipe.z, halo=True)
        np.testing.assert_array_equal(found[name].core, halo != -1)
        assert 0 < found[name].core_fraction < 1


def test_several_recipes_equal_single_calls():
    points, labels = overlapping()
    together = landscapes(points, {"subject": labels}, n_bootstrap=20)
    for name in RECIPES:
        alone = landscape(points, {"subject": labels}, name, n_bootstrap=20)
        for field in vars(alone):
            np.testing.assert_equal(getattr(together[name], field), getattr(alone, field))
    assert not np.array_equal(together["released"].log_density, together["figures"].log_density)


def test_torch_and_bfloat16():
    points, labels = overlapping()
    states = torch.tensor(points).bfloat16()
    found = landscape(states, {"subject": labels})
    same = landscape(states.double().numpy(), {"subject": labels})
    np.testing.assert_array_equal(found.assignment, same.assignment)


def test_identical_rows_are_dropped_with_their_labels():
    points, subjects = clusters(3)
    order = np.random.default_rng(0).permutation(len(points))
    points, subjects = points[order], subjects[order]
    points[20] = points[100] = points[4]
    points[30, 0] = points[7, 0] = 0.0
    points[31] = points[30]
    points[31, 0] = -0.0
    found = landscape(points, {"subject": subjects})
    kept = np.delete(np.arange(len(points)), [20, 31, 100])
    assert (found.n, found.n_dropped) == (177, 3)
    np.testing.assert_array_equal(found.kept, kept)
    without = landscape(points[kept], {"subject": subjects[kept]})
    np.testing.assert_array_equal(found.assignment, without.assignment)
    assert found.adjusted_rand_index == without.adjusted_rand_index


@pytest.mark.parametrize("class_fraction", [0.03, 0.1, 0.3])
@pytest.mark.filterwarnings("ignore:.*max_k < 1")  # DADApy's, for its smallest class
def test_label_overlap_is_dadapys(class_fraction):
    points, _ = overlapping()
    labels = np.random.default_rng(0).choice(5, len(points), p=[0.5, 0.3, 0.1, 0.07, 0.03])
    labels[points[:, 0] > 1] = 2
    data = Data(points.astype(np.float64), maxk=300)
    data.compute_distances()
    expected = data.return_label_overlap(labels, class_fraction=class_fraction, weighted=True)
    found = landscape(points, {"x": labels}, class_fraction={"x": class_fraction}).label_overlap["x"]
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.null == pytest.approx(shuffled_overlap(labels), abs=0.01)
    assert found.null < found.null_high


def shuffled_overlap(labels):
    """What shuffled labels give on average: another point of the class, class by class."""
    sizes = np.bincount(labels)
    return np.mean((sizes - 1) / (len(labels) - 1))


def test_adp_does_not_depend_on_the_labels_neighbours():
    points, _ = overlapping()
    few, many = (
        landscape(points, {}),
        landscape(points, {"all": np.zeros(len(points))}, class_fraction={"all": 0.5}),
    )
    assert few.neighbours.shape[1] == 128 and many.neighbours.shape[1] == 350
    np.testing.assert_array_equal(few.saddle_log_density, many.saddle_log_density)


def test_neighbour_overlap_by_hand():
    neighbours = np.array([[1, 2, 3], [0, 3, 2], [3, 1, 0], [2, 0, 1]])
    labels = np.array(["a", "a", "b", "b"])
    np.testing.assert_allclose(neighbour_overlap(neighbours, labels, 1), [1, 1, 1, 1])
    np.testing.assert_allclose(neighbour_overlap(neighbours, labels, 3), [1 / 3] * 4)
    np.testing.assert_allclose(neighbour_overlap(neighbours, labels, np.array([1, 2, 1, 2])), [1, 0.5, 1, 0.5])
    with pytest.raises(TooFewPoints, match="over 4 neighbours needs as many of each point, but only 3"):
        neighbour_overlap(neighbours, labels, 4)


def test_point_overlap():
    points, _ = overlapping()
    _, neighbours = nearest_neighbours(points, 30)
    assert (point_overlap(neighbours, neighbours, 30) == 1).all()
    moved, _ = overlapping()
    other = nearest_neighbours(moved + 0.5 * np.random.default_rng(1).standard_normal(moved.shape), 30)[1]
    data = Data(points.astype(np.float64), maxk=30)
    data.compute_distances()
    own = np.arange(len(points))[:, None]
    expected = data.return_data_overlap(dist_indices=np.hstack([own, other]), k=20, avg=False)
    np.testing.assert_allclose(point_overlap(neighbours, other, 20), expected)
    with pytest.raises(BadParameter, match="700 and 699"):
        point_overlap(neighbours, other[:-1], 20)
    with pytest.raises(TooFewPoints):
        point_overlap(neighbours, other, 31)


def random_cloud(seed):
    """Points of one of six kinds, from 40 to 260 in 1 to 8 dimensions: distances and neighbours, a k and a Z."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(40, 260)), int(rng.integers(1, 9))
    points = rng.standard_normal((n, d))
    half = len(points[1::2])
    match seed % 6:
        case 0:  # heavy tails
            points /= np.abs(rng.standard_normal((n, 1))) ** 0.8
        case 1:  # near-ties on a grid
            points = np.round(3 * points) + 1e-12 * rng.standard_normal((n, d))
        case 2:  # near-duplicates in pairs
            points[1::2] = points[::2][:half] + 1e-9 * rng.standard_normal((half, d))
        case 3:  # duplicates, which fill whole neighbourhoods
            points[n // 2 :] = points[rng.integers(0, n // 2, n - n // 2)]
        case 4:  # clusters that touch
            points += 3 * rng.standard_normal((5, d))[rng.integers(5, size=n)]
    distances, neighbours = nearest_neighbours(points, int(min(n - 1, rng.integers(20, 129))))
    k, z = int(rng.integers(3, 17)), float(rng.choice([0, 0.5, 1, 1.6, 1.68, 3]))
    return np.maximum(distances, 1e-12), neighbours, k, z


@cache
def dadapys_answer(seed):
    """Of a random cloud: what DADApy says of its dimension, error, density, and of peaks, saddles and core."""
    distances, neighbours, k, z = random_cloud(seed)
    dimension, error = adp.dadapy_gride(distances, neighbours)
    data = adp.dadapy_data(distances, neighbours)
    data.set_id(np.clip(dimension[3], 0.01, 900))
    density = data.compute_density_kNN(k)[0].copy()
    return distances, neighbours, k, z, data.intrinsic_dim, (dimension, error, density, *adp.dadapy_peaks(data, z))


def compare_engines(seeds):
    """By what is compared: the clouds in which our lines and DADApy differ."""
    names = ("dimension", "error", "density", "peaks", "saddles", "core")
    differ = {name: [] for name in names}
    for seed in seeds:
        distances, neighbours, k, z, at, expected = dadapys_answer(seed)
        density = adp.knn_log_density(distances, at, k)
        if np.allclose(density, expected[2], rtol=1e-14, atol=1e-12):
            density = expected[2]  # equal but for the last digit
        ours = (*adp.gride(distances), density, *adp.density_peaks(expected[2], neighbours, k, z))
        for name, a, b in zip(names, expected, ours, strict=True):
            differ[name] += [] if np.array_equal(a, b) else [seed]
    return differ


def test_our_lines_equal_dadapy_on_random_clouds():
    assert not any(compare_engines(range(330)).values())


# What is changed in one line of `adp`, and what must differ then in some cloud.
@pytest.mark.parametrize(
    ("right", "wrong", "what"),
    [
        ("(1 - rank) / inside", "(2 - rank) / inside", "dimension"),
        ("< 20 * (high - median)", "< 2 * (high - median)", "dimension"),
        ("np.percentile(ratios, [95, 50])", "np.percentile(ratios, [99, 50])", "dimension"),
        ("- (len(ratios) - 1) / d", "- len(ratios) / d", "dimension"),
        ("(np.log(ratios) / inside) ** 2", "(np.log(ratios) / inside)", "error"),
        ("(dimension + 2) / 2", "(dimension + 1) / 2", "density"),
        ("distances[:, k - 1]", "distances[:, k - 2]", "density"),
        ("sure[neighbours[:, :k]] <= sure", "sure[neighbours] <= sure", "peaks"),
        ("ahead.argmax(1)", "(ahead.cumsum(1) == ahead.sum(1)[:, None]).argmax(1)", "peaks"),
        ("abroad.any(1) & ~is_peak", "abroad.any(1)", "saddles"),
        ("~own.any(1) | (first == points)", "first == first", "saddles"),
        ("back = neighbours[across]", "back = neighbours[across][:, :k]", "saddles"),
        ("height < z * (error + doubt)", "height < z * error", "peaks"),
        ("np.minimum.outer(top, top)", "np.maximum.outer(top, top)", "peaks"),
        ("height[tuple(pairs.T)].argmax()", "height[tuple(pairs.T)].argmin()", "peaks"),
        ("above[stays] < above[goes]", "above[stays] > above[goes]", "peaks"),
        ("higher = height[stays] < height[goes]", "higher = height[stays] > height[goes]", "saddles"),
        ("density >= height.max(1)", "density > height.max(1)", "core"),
    ],
)
def test_a_changed_formula_is_seen(right, wrong, what, monkeypatch):
    source = inspect.getsource(adp)
    assert source.count(right) == 1
    changed = {}
    exec(compile(source.replace(right, wrong), "changed", "exec"), changed)
    for name in ("gride", "knn_log_density", "density_peaks"):
        monkeypatch.setattr(adp, name, changed[name])
    differ = compare_engines(range(60))
    assert differ[what], differ


def test_without_dadapy_a_landscape_is_the_same(monkeypatch):
    points, labels = overlapping()
    expected = landscapes(points, {"subject": labels})
    intervals = subsample_intervals(expected, {"subject": labels})
    monkeypatch.setattr(adp, "has_dadapy", lambda: False)
    monkeypatch.setattr(adp, "dadapy_data", None)
    alone = landscapes(points, {"subject": labels})
    for name, layer in expected.items():
        np.testing.assert_array_equal(alone[name].intrinsic_dimension, layer.intrinsic_dimension)
        np.testing.assert_array_equal(alone[name].assignment, layer.assignment)
        np.testing.assert_array_equal(alone[name].core, layer.core)
        np.testing.assert_allclose(alone[name].saddle_log_density, layer.saddle_log_density, rtol=1e-12)
    assert subsample_intervals(alone, {"subject": labels}) == intervals


def with_pak_density(seed, n, d, k):
    """A DADApy data set whose density has a k of its own for each point, so that peaks get removed."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, d)) / np.abs(rng.standard_normal((n, 1))) ** 0.7
    data = adp.dadapy_data(*nearest_neighbours(points, k))
    data.set_id(d)
    data.compute_density_PAk()
    return data


@pytest.mark.parametrize(("seed", "n", "d", "k"), [(15, 80, 5, 8), (7, 150, 6, 12)])
@pytest.mark.parametrize("recognised", [True, False])
def test_points_that_dadapy_leaves_without_a_peak(seed, n, d, k, recognised, monkeypatch):
    """Real inputs of DADApy's fault; the second may give labels in range, from memory that was zero."""
    data = with_pak_density(seed, n, d, k)
    data.compute_clustering_ADP(Z=1.0)
    assert sum(map(len, data.cluster_indices)) < n, "DADApy has mended its bug: the guard can go"
    assert adp._needs_links(data)
    if not recognised:  # the check after the call finds it too
        monkeypatch.setattr(adp, "_needs_links", lambda data: False)
    assignment, *_ = adp.dadapy_peaks(data, 1.0)
    np.testing.assert_array_equal(assignment, data.compute_clustering_ADP_pure_python(Z=1.0))
    np.testing.assert_array_equal(np.unique(assignment), np.arange(data.N_clusters))


def test_links_are_not_needed_with_one_k():
    """The argument in dadapy_peaks' docstring, on data of many kinds."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        points = rng.standard_normal((300, 5)) / np.abs(rng.standard_normal((300, 1))) ** 0.7
        data = adp.dadapy_data(*nearest_neighbours(points, 16))
        data.set_id(5)
        data.compute_density_kNN(16)
        assert not adp._needs_links(data)


def test_planted_bad_labels_are_caught(monkeypatch):
    points, _ = clusters(3)
    expected = landscape(points, {}).assignment
    right = Data.compute_clustering_ADP

    def wrong(self, **settings):
        labels = right(self, **settings)
        labels[5] = 4616842213449375055
        return labels

    monkeypatch.setattr(Data, "compute_clustering_ADP", wrong)
    np.testing.assert_array_equal(landscape(points, {}).assignment, expected)
    monkeypatch.setattr(Data, "compute_clustering_ADP_pure_python", wrong)
    with pytest.raises(BookError, match="layer 7: DADApy left points without a peak"):
        landscape(points, {}, where="layer 7")


def test_reclustering_is_certain_of_far_clusters_and_not_of_noise():
    points, labels = clusters(6)
    sure = subsample_intervals(landscapes(points, {"subject": labels}), {"subject": labels})
    for recipe in RECIPES:
        peaks, index = sure["n_peaks", recipe], sure["ari_subject", recipe]
        assert (peaks.value, peaks.low, peaks.high) == (6, 6, 6)
        assert (index.value, index.low, index.high) == (1, 1, 1)
        assert abs(index.null) < 0.02 < index.null_high + 0.02
    noise, names = overlapping()
    unsure = subsample_intervals(landscapes(noise, {"subject": names}), {"subject": names})
    assert unsure["core_fraction", "released"].low < unsure["core_fraction", "released"].high


def test_reclustering_a_part_equals_the_landscape_of_that_part(monkeypatch):
    points, labels = overlapping()
    found = landscapes(points, {"subject": labels})
    seen = {}

    def one_part(statistic, n, n_repeats, fraction, seed, values):
        seen["rows"] = np.sort(np.random.default_rng(5).choice(n, round(fraction * n), replace=False))
        seen["numbers"] = statistic(seen["rows"])
        return [normal_estimate(value, 0.0, n) for value in values]

    monkeypatch.setattr(density_peaks, "subsampled", one_part)
    subsample_intervals(found, {"subject": labels})
    rows, expected = seen["rows"], []
    for part in landscapes(points[seen["rows"]], {"subject": labels[rows]}).values():
        expected += [part.n_peaks, part.core_fraction, part.adjusted_rand_index["subject"].value]
    np.testing.assert_allclose(seen["numbers"], expected, atol=1e-9)


def test_errors_say_what_where_and_how():
    points, subjects = clusters(3)
    with pytest.raises(TooFewPoints, match=r"layer 2: 32 different rows, but the recipe 'released' needs at least 33"):
        landscape(points[:32], {}, where="layer 2")
    assert landscape(points[:33], {}).n == 33
    assert landscape(points[:17], {}, "figures").n == 17
    with pytest.raises(TooFewPoints, match="1 different rows"):
        landscape(np.ones((50, 3)), {})
    with pytest.raises(UnknownName, match=r"no recipe 'release'\. Did you mean 'released'"):
        landscape(points, {}, "release")
    with pytest.raises(BadParameter, match="'subject' have 10 entries for 180"):
        landscape(points, {"subject": subjects[:10]})
    with pytest.raises(BadParameter, match="k_max=20 is too small for the recipe 'released', which needs 32"):
        landscape(points, {}, k_max=20)
    points[8, 3] = np.inf
    with pytest.raises(BadStates, match=r"layer 2: 1 of 180 rows hold NaN or infinity \(rows 8\)"):
        landscape(points, {}, where="layer 2")
    points = np.ones((40, 2))
    points[:, 0] = np.arange(40) * 1e-200
    with pytest.raises(BadStates, match="distance 0"):
        landscape(points, {})


def test_the_order_in_memory_does_not_matter():
    points = np.random.default_rng(0).standard_normal((1500, 8))
    points[700] = points[3]
    columns_first = np.asfortranarray(points)
    assert first_of_identical(torch.as_tensor(columns_first)).tolist() == [i for i in range(1500) if i != 700]
    expected, found = (landscape(each, {}) for each in (points, columns_first))
    np.testing.assert_array_equal(found.neighbours, expected.neighbours)
    np.testing.assert_array_equal(found.assignment, expected.assignment)
