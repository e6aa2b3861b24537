import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import cdist

from peaks_and_gates.errors import BadStates, TooFewPoints
from peaks_and_gates.landscape.neighbours import NEAR, nearest_neighbours, redraw


def by_differences(points, k):
    """Truth: all float64 differences, equal distances by lower index."""
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, indices, 1), indices


def gaussian(n=500, d=48, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


CASES = {
    "gaussian": gaussian(),
    # More copies than there are spare candidates.
    "duplicates": gaussian()[np.r_[0:7, 100, 8:10, [3] * 50, 60:480, 100, 481:500]],
    "near-duplicates": np.repeat(100 * gaussian(250), 2, 0) + 1e-9 * gaussian(seed=1),
    "ties": np.random.default_rng(0).permutation(np.stack(np.meshgrid(*[np.arange(8.0)] * 3), -1).reshape(-1, 3)),
    "constant column": np.hstack([gaussian(), np.full((500, 1), 1e7)]),
    "spread norms": gaussian() * np.logspace(-2, 2, 500)[:, None],
    "common offset": gaussian() + 1e6,
    # Centring does not help here: each group is small and far from the mean.
    "two far groups": gaussian() * 1e-3 + np.repeat([[-1e5], [1e5]], 250, 0),
}


@pytest.mark.parametrize("block", [7, 128, 1024])
@pytest.mark.parametrize("case", CASES)
def test_equal_to_all_float64_differences(case, block):
    points = CASES[case]
    before = points.copy()
    distances, neighbours = nearest_neighbours(points, 20, block=block)  # on a GPU if there is one
    np.testing.assert_array_equal(points, before)  # the input is left as it was
    true_distances, true_neighbours = by_differences(points, 20)
    np.testing.assert_array_equal(neighbours, true_neighbours)
    np.testing.assert_allclose(distances, true_distances, rtol=1e-8, atol=0)
    assert distances.dtype == np.float64 and neighbours.dtype == np.int64


def test_does_not_overflow():
    distances, indices = nearest_neighbours(gaussian() * 1e200, 20)
    true_distances, true_indices = by_differences(gaussian(), 20)
    np.testing.assert_array_equal(indices, true_indices)
    np.testing.assert_allclose(distances, true_distances * 1e200, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_takes_narrow_floats_as_the_numbers_they_are(dtype):
    points = torch.tensor(gaussian()).to(dtype)  # bfloat16 makes ties and near-duplicates by itself
    distances, indices = nearest_neighbours(points, 20)
    true_distances, true_indices = by_differences(points.double().numpy(), 20)
    np.testing.assert_allclose(distances, true_distances, rtol=1e-8)
    untied = np.diff(true_distances, prepend=0) > 1e-9
    np.testing.assert_array_equal(indices[:, :-1][untied[:, 1:]], true_indices[:, :-1][untied[:, 1:]])


def test_all_points_can_be_neighbours():
    points = gaussian(30)
    for same in (points, pd.DataFrame(points), points[:, ::-1]):  # a table, a view that runs backwards
        np.testing.assert_array_equal(nearest_neighbours(same, 29)[1], by_differences(points, 29)[1])


def test_messages_say_where():
    points = gaussian()
    points[[3, 77]] = np.nan
    with pytest.raises(BadStates, match=r"tiny, layer 12: 2 of 500 rows hold NaN or infinity, first \[3, 77\]"):
        nearest_neighbours(points, 5, where="tiny, layer 12")
    with pytest.raises(BadStates, match="int64"):
        nearest_neighbours(np.zeros((2, 3), dtype=int), 1)
    with pytest.raises(BadStates, match="layer 3: list is no matrix"):
        nearest_neighbours([[1.0, 2.0], [3.0]], 1, where="layer 3")
    with pytest.raises(TooFewPoints, match="layer 3: 10 points have at most 9 neighbours each, but k=10"):
        nearest_neighbours(gaussian(10), 10, where="layer 3")


def test_a_new_sample_lies_where_the_old_one_does_and_has_no_duplicates():
    flat = gaussian(d=6) @ np.linalg.qr(gaussian(48, 6, seed=1))[0].T  # (500, 48), in six dimensions
    distances, neighbours = nearest_neighbours(flat, 10)
    sample, source = redraw(torch.tensor(flat), neighbours, np.random.default_rng(2))
    moved = np.linalg.norm(sample.numpy() - flat[source], axis=1) / distances[source, NEAR - 1]
    assert 0.2 < np.median(moved) < 0.8 and moved.max() < 3  # near its source
    assert len(np.unique(np.vstack([flat, sample]), axis=0)) == 1000  # yet on none of the points
    assert np.linalg.matrix_rank(sample - flat[0], tol=1e-6) == 6  # on the same surface
    assert len(np.unique(source)) == pytest.approx(500 * (1 - 1 / np.e), rel=0.06)  # drawn with replacement
    np.testing.assert_allclose(np.cov(sample.numpy().T), np.cov(flat.T), atol=0.25 * np.cov(flat.T).max())
    again = redraw(torch.tensor(flat), neighbours, np.random.default_rng(2))
    assert (again[0] == sample).all() and (again[1] == source).all()
    assert redraw(torch.tensor(flat).bfloat16(), neighbours, np.random.default_rng(2))[0].dtype == torch.float64


def test_a_new_sample_moves_along_its_own_neighbours():
    """Points on two far lines: every new one lies on the line of its source."""
    line = np.arange(40.0)[:, None] * [[1.0, 1.0, 0.0]]
    points = np.vstack([line, line + np.array([0.0, 0.0, 1e6])])
    sample, source = redraw(points, nearest_neighbours(points, 8)[1], np.random.default_rng(0))
    np.testing.assert_allclose(sample[:, 0], sample[:, 1], atol=1e-9)
    np.testing.assert_array_equal(sample[:, 2], points[source, 2])
    assert (np.abs(sample[:, 0].numpy() - points[source, 0]) < 10).all()
