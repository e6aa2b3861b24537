import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import normalize

from page_code import page_code
from peaks_and_gates.errors import BadParameter, BadStates, BookError, TooFewPoints, UnknownName
from peaks_and_gates.landscape import adp, density_peaks
from peaks_and_gates.landscape.density_peaks import RECIPES, Recipe, counted, landscape, landscapes
from peaks_and_gates.landscape.neighbours import nearest_neighbours, neighbour_overlap, redraw


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


# Boundaries (uniform), tails (normal) and 3,000 points in many dimensions lower it at larger scales.
MANIFOLDS = [("random", 2, 0.05), ("random", 5, 0.12), ("standard_normal", 5, 0.1), ("standard_normal", 11, 0.15)]


@pytest.mark.parametrize(("draw", "n_columns", "tolerance"), MANIFOLDS)
def test_dimension_of_known_manifolds(draw, n_columns, tolerance):
    points, on_sphere = getattr(np.random.default_rng(0), draw)((3000, n_columns)), n_columns == 11
    layer = landscape(rotated(normalize(points) if on_sphere else points, 60), {})
    assert list(layer.dimension_by_rank) == [1, 2, 4, 8, 16, 32, 64]
    assert layer.intrinsic_dimension[layer.recipe.gride_scale] == pytest.approx(n_columns - on_sphere, rel=tolerance)
    at_8 = layer.dimension_by_rank[8]
    assert at_8.value == layer.intrinsic_dimension[3] and at_8.low < at_8.value < at_8.high


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


def overlapping(n=700, seed=0):
    """Clusters that touch, with a halo, as float32."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(6, size=n)
    inner = 3.2 * rng.standard_normal((6, 4))[labels] + rng.standard_normal((n, 4))
    return rotated(inner, 40).astype(np.float32), labels


def test_equals_dadapys_own_route(dadapy):
    points, _ = overlapping()
    found = landscapes(points, {})
    for name, recipe in RECIPES.items():
        data = dadapy.Data(points.astype(np.float64), maxk=128)
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
        np.testing.assert_array_equal(found[name].peak_centres, data.cluster_centers)
        halo = data.compute_clustering_ADP(Z=recipe.z, halo=True)
        np.testing.assert_array_equal(found[name].core, halo != -1)
        assert 0 < found[name].core_fraction < 1


def test_identical_rows_are_dropped_with_their_labels():
    points, subjects = clusters(3, size=100)
    order = np.random.default_rng(0).permutation(len(points))
    points, subjects = np.asfortranarray(points[order]), subjects[order]
    points[20] = points[100] = points[280] = points[4]
    points[31] = points[30]
    points[30, 0], points[31, 0] = 0.0, -0.0
    layer = landscape(points, {"subject": subjects})
    kept = np.delete(np.arange(len(points)), [20, 31, 100, 280])
    assert layer.n == 296
    np.testing.assert_array_equal(layer.unique_rows, kept)
    without = landscape(points[kept], {"subject": subjects[kept]})
    np.testing.assert_array_equal(layer.assignment, without.assignment)
    assert layer.adjusted_rand_index == without.adjusted_rand_index


@pytest.mark.parametrize("class_fraction", [0.03, 0.1, 0.3])
@pytest.mark.filterwarnings("ignore:.*max_k < 1")  # DADApy's, for its smallest class
def test_label_overlap_is_dadapys(class_fraction, dadapy):
    points, _ = overlapping()
    labels = np.random.default_rng(0).choice(5, len(points), p=[0.5, 0.3, 0.1, 0.07, 0.03])
    labels[points[:, 0] > 1] = 2
    data = dadapy.Data(points.astype(np.float64), maxk=300)
    data.compute_distances()
    expected = data.return_label_overlap(labels, class_fraction=class_fraction, weighted=True)
    found = landscape(points, {"x": labels}, class_fraction={"x": class_fraction}).label_overlap["x"]
    assert found.value == pytest.approx(expected, abs=1e-12)
    # Shuffled labels give on average the chance of another point of the class, class by class.
    assert found.null == pytest.approx(np.mean((np.bincount(labels) - 1) / (len(labels) - 1)), abs=0.01)
    assert found.null < found.null_high


def test_adp_does_not_depend_on_the_labels_neighbours():
    points, _ = overlapping()
    few = landscape(points, {})
    many = landscape(points, {"all": np.zeros(len(points))}, class_fraction={"all": 0.5})
    assert few.neighbours.shape[1] == 128 and many.neighbours.shape[1] == 350
    np.testing.assert_array_equal(few.saddle_log_density, many.saddle_log_density)


def test_neighbour_overlap_by_hand():
    neighbours = np.array([[1, 2, 3], [0, 3, 2], [3, 1, 0], [2, 0, 1]])
    labels = np.array(["a", "a", "b", "b"])
    np.testing.assert_allclose(neighbour_overlap(neighbours, labels, 1), [1, 1, 1, 1])
    np.testing.assert_allclose(neighbour_overlap(neighbours, labels, 3), [1 / 3] * 4)
    np.testing.assert_allclose(neighbour_overlap(neighbours, labels, np.array([1, 2, 1, 2])), [1, 0.5, 1, 0.5])


def test_neighbours_in_common_are_dadapys(dadapy):
    points = torch.tensor(overlapping()[0]).double()
    moved = points + 0.5 * np.random.default_rng(1).standard_normal(points.shape)
    overlap_of = page_code("landscape/fine_tuning_dynamics")["overlap_of"]
    assert (overlap_of(points, points) == 1).all()
    data = dadapy.Data(points.numpy(), maxk=30)
    data.compute_distances()
    expected = data.return_data_overlap(coordinates=moved.numpy(), k=20, avg=False)
    np.testing.assert_allclose(overlap_of(points, moved, 20), expected)


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


@pytest.mark.parametrize("part", range(6))
def test_our_lines_equal_dadapy_on_random_clouds(part, dadapy):
    for seed in range(part, 330, 6):
        distances, neighbours, k, z = random_cloud(seed)
        dimension, error = adp.dadapy_gride(distances, neighbours)
        np.testing.assert_array_equal(adp.gride(distances), (dimension, error))
        data = adp.dadapy_data(distances, neighbours)
        data.set_id(np.clip(dimension[3], 0.01, 900))
        density = data.compute_density_kNN(k)[0].copy()
        log_density = adp.knn_log_density(distances, data.intrinsic_dim, k)
        np.testing.assert_allclose(log_density, density, rtol=1e-14, atol=1e-12)
        ours = adp.density_peaks(density, neighbours, k, z)
        for array, expected in zip(ours, adp.dadapy_peaks(data, z), strict=True):
            np.testing.assert_array_equal(array, expected)


def test_without_dadapy_a_landscape_is_the_same(dadapy, monkeypatch):
    points, labels = overlapping()
    expected = landscapes(points, {"subject": labels})
    intervals = density_peaks.redrawn_intervals(points, expected)
    monkeypatch.setattr(adp, "HAS_DADAPY", False)
    monkeypatch.setattr(adp, "dadapy_data", None)
    alone = landscapes(points, {"subject": labels})
    for name, layer in expected.items():
        for field in ("intrinsic_dimension", "assignment", "core"):
            np.testing.assert_array_equal(getattr(alone[name], field), getattr(layer, field))
        np.testing.assert_allclose(alone[name].saddle_log_density, layer.saddle_log_density, rtol=1e-12)
    assert density_peaks.redrawn_intervals(points, alone) == intervals


def test_planted_bad_labels_are_caught(dadapy, monkeypatch):
    points, _ = clusters(3)
    right = dadapy.Data.compute_clustering_ADP

    def wrong(self, **settings):
        labels = right(self, **settings)
        labels[5] = 4616842213449375055
        return labels

    monkeypatch.setattr(dadapy.Data, "compute_clustering_ADP", wrong)
    with pytest.raises(BookError, match="layer 7: DADApy left points without a peak"):
        landscape(points, {}, where="layer 7")


def test_redrawing_is_certain_of_far_clusters_and_not_of_noise():
    points, labels = clusters(6)
    sure = density_peaks.redrawn_intervals(points, landscapes(points, {"subject": labels}))
    for (metric, _), number in sure.items():
        expected = (6, 5.5, 6.5) if metric == "n_peaks" else (1, 11 / 12, 1)
        assert (number.value, number.low, number.high) == pytest.approx(expected)  # half a peak of six to either side
        assert metric != "ari_subject" or abs(number.null) < 0.02 < number.null_high + 0.02
    points, labels = overlapping()
    layer = landscapes(points, {"subject": labels, "letter": np.random.default_rng(0).integers(4, size=700)})
    unsure = density_peaks.redrawn_intervals(points, layer)
    for key, number in unsure.items():
        assert number.low <= number.value == counted(layer)[key] <= number.high and number.low < number.high
    assert density_peaks.redrawn_intervals(points, layer) == unsure


def test_everything_is_done_again_on_a_new_sample_and_labels_go_with_their_points():
    points, labels = overlapping()
    points, labels = np.vstack([points[:5], points]), np.append(labels[:5], labels)  # of two copies one counts
    layer = landscapes(points, {"subject": labels})
    again = density_peaks.redrawn_landscapes(points, layer, np.random.default_rng(3))
    unique = layer["figures"].unique_rows
    sample, source = redraw(points[unique], layer["figures"].neighbours, np.random.default_rng(3))
    expected = landscapes(sample, {"subject": labels[unique[source]]})
    for name, peaks in expected.items():
        assert (again[name].recipe, again[name].n_rows) == (RECIPES[name], 705)
        assert (again[name].unique_rows == unique[source]).all()
        np.testing.assert_array_equal(again[name].neighbours, peaks.neighbours)
    assert counted(again) == counted(expected)


def test_errors_say_what_where_and_how():
    points, names = clusters(3)
    described = lambda fraction: landscape(points, {"x": names}, class_fraction={"x": fraction})
    near = described(0.3).neighbours
    recipes = [(-1, 1, 16), (7, 1, 16), (3, np.nan, 16), (3, np.inf, 16), (3, -1, 16), (3, 1, 0), (3, 1, 129)]
    refused = [
        (TooFewPoints, r"layer 2: .*32 different rows", lambda: landscape(points[:32], {}, where="layer 2")),
        (BadStates, "distance 0", lambda: landscape(np.transpose([np.arange(40) * 1e-200, np.ones(40)]), {})),
        (TooFewPoints, "over 129 neighbours needs as many .*only 128", lambda: neighbour_overlap(near, names, 129)),
        (BadParameter, "leave out the point itself", lambda: neighbour_overlap(near * 0, names, 3)),
        (BadParameter, "numbers of other points", lambda: neighbour_overlap(near * 0 - 1, names, 3)),
        (BadParameter, "by their names", lambda: landscape(points, names)),
        (UnknownName, "recipe 'figure'. Did you mean 'figures'", lambda: landscape(points, {}, "figure")),
        (BadParameter, "181 entries for 180", lambda: landscape(points, {"x": [*names, "a"]})),
        *[(BadParameter, "a share, above 0", lambda f=f: described(f)) for f in (-1, np.nan, 1.5)],
        *[(BadParameter, f"k={k}", lambda k=k: neighbour_overlap(near, names, k)) for k in (0, -1)],
        *[(BadParameter, "must be", lambda r=r: Recipe(*r)) for r in recipes],
    ]
    for error, message, call in refused:
        with pytest.raises(error, match=message):
            call()
    assert landscape(points[:33], {}).n == 33
    assert landscape(points[:17], {}, "figures").n == 17
