"""Hidden states with NaN, infinity, ties, overflow, one row or none: a right answer or one of our errors."""

from collections import Counter

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import size
from peaks_and_gates import dendrogram, hierarchy, modality, probes
from peaks_and_gates.clustering import Recipe
from peaks_and_gates.errors import BookError
from peaks_and_gates.geometry import clustered, landscapes, reclustered
from peaks_and_gates.neighbours import among, label_overlap, nearest_neighbours, neighbour_overlap, point_overlap
from peaks_and_gates.uncertainty import adjusted_rand_index, mean_estimate, subsampled

FEW = {"n_bootstrap": 4}
NO_LABELS = [[], 3, None, "abc", [None, "a"], [[0, 1], [1, 0]], [0.0, np.nan]]
NO_COUNTS = [0, -1, 1.5, np.nan]
KINDS = {
    "normal": lambda rng, n, d: rng.standard_normal((n, d)),
    "integers": lambda rng, n, d: rng.integers(-3, 4, (n, d)) * 1.0,
    "duplicates": lambda rng, n, d: rng.standard_normal((n, d))[rng.integers(0, max(1, n // 2), n)],
    "zeros": lambda rng, n, d: np.zeros((n, d)),
    "constant features": lambda rng, n, d: rng.standard_normal((n, d)) * (np.arange(d) == 0) + 1e6,
    "one-hot": lambda rng, n, d: np.eye(n),
    "huge": lambda rng, n, d: rng.uniform(-1, 1, (n, d)) * 1.7e308,
    "large": lambda rng, n, d: rng.standard_normal((n, d)) * 1e37,
    "tiny": lambda rng, n, d: rng.standard_normal((n, d)) * 1e-310,
    "of all sizes": lambda rng, n, d: rng.standard_normal((n, d)) * 10.0 ** rng.integers(-40, 40, (n, 1)),
}
FAULTS = ["NaN", "infinity", "a vector", "a cube", "integers", "empty", "ragged", "objects", "names", "None"]


def mostly(good, bad):
    """One of the good, and one time in sixteen one of the bad: many cases have one fault, and many have none."""
    return st.integers(0, 15).flatmap(lambda drawn: st.sampled_from(bad if drawn == 7 else good))


@st.composite
def states(draw, sizes=(2, 3, 8, 20, 40, 40)):
    """Hidden states as they come, and whether they are a matrix of finite floats."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, d = draw(mostly(sizes, [1])), draw(st.integers(1, 5))
    points = KINDS[draw(st.sampled_from(sorted(KINDS)))](rng, n, d)
    with np.errstate(over="ignore"):
        points = points.astype(draw(mostly([np.float64, np.float32], [np.float16])))
    fault = draw(mostly([""], FAULTS))
    if fault in ("NaN", "infinity"):
        points[rng.integers(n), 0] = {"NaN": np.nan, "infinity": -np.inf}[fault]
    elif fault in ("integers", "objects", "names"):
        points = (
            np.nan_to_num(points, posinf=1, neginf=0)
            .clip(-9, 9)
            .astype({"integers": np.int64, "objects": object, "names": str}[fault])
        )
    elif fault:
        changed = {"a vector": points[:, 0], "a cube": points[None], "empty": points[: n * (d % 2), :0]}
        points = changed.get(fault, [[1.0], [1.0, 2.0]] if fault == "ragged" else None)
    elif draw(st.booleans()):
        points = torch.as_tensor(points).to(draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64])))
    return points, not fault and bool(torch.isfinite(torch.as_tensor(points)).all())


def fuzz(tried, case, examples, report):
    """Draw cases with `case`, which answers True, or raises one of our errors with a message that helps."""
    counts = Counter()

    @settings(max_examples=size(*examples))
    @given(st.data())
    def one(data):
        try:
            case(data.draw)
            counts["answers"] += 1
        except BookError as error:
            assert len(str(error).split()) > 6 and str(error).endswith((".", "?")), str(error)
            counts["refusals"] += 1

    one()
    assert counts["answers"] and counts["refusals"]
    report("fuzzing", tried, counts.total(), f"{counts['answers']} answers, {counts['refusals']} refusals")


def refused(is_bad, call):
    """The call's answer; that what is bad is answered is a fault, and that what is good is refused."""
    try:
        answer = call()
    except BookError:
        assert is_bad, "refused although nothing is wrong"
        raise
    assert not is_bad, "answered although something is wrong"
    return answer


def by_differences(points):
    """All distances by float64 differences, (n, n), infinite on the diagonal."""
    points = torch.as_tensor(points).double().numpy()
    scale = 2.0 ** -int(np.clip(np.frexp(np.abs(points).max())[1], -1000, 1000))
    points = points * scale
    with np.errstate(over="ignore"):
        distances = np.sqrt(np.square(points[:, None] - points).sum(-1)) / scale
    np.fill_diagonal(distances, np.inf)
    return distances


def is_estimate(found, low=-np.inf, high=np.inf):
    """Finite throughout, in its range."""
    numbers = [v for v in (found.value, found.low, found.high, found.null, found.null_high) if v is not None]
    assert np.isfinite(numbers).all(), found
    assert low - 1e-9 <= found.value <= high + 1e-9 and found.low <= found.high, found


def test_neighbours(report):
    def case(draw):
        points, sound = draw(states())
        k, block = draw(mostly([1, 2, 5, 16, 39], NO_COUNTS)), draw(mostly([7, 64], [0]))
        good = sound and block and k in (1, 2, 5, 16, 39) and k < len(points)
        truth = by_differences(points) if good else None
        nearest = np.sort(truth, 1)[:, : int(k)] if good else None
        too_far = good and np.isinf(nearest).any()
        distances, found = refused(not good or too_far, lambda: nearest_neighbours(points, k, block=block))
        atol = 1e-150 * np.abs(torch.as_tensor(points).double().numpy()).max()
        assert distances.shape == found.shape == (len(points), k) and (np.diff(distances, axis=1) >= 0).all()
        np.testing.assert_allclose(distances, nearest, 1e-9, atol)
        np.testing.assert_allclose(np.take_along_axis(truth, found, 1), nearest, 1e-9, atol)
        assert all(len(set(row)) == k for row in found.tolist())

    fuzz("nearest neighbours against all differences", case, (2500, 100), report)


def labels(draw, n):
    """Labels of n points, and whether they can be used."""

    made = np.arange(n) % draw(st.integers(1, 4))
    wrong = [*NO_LABELS, np.arange(n + 1), np.arange(n) * np.nan]
    found = draw(mostly([made, made.astype(str), made.tolist(), torch.as_tensor(made)], wrong))
    return found, n > 0 and not any(found is each for each in wrong)


def test_overlaps(report):
    def case(draw):
        n, width = draw(st.integers(2, 20)), draw(st.integers(1, 6))
        found = np.random.default_rng(n).permuted(np.tile(np.arange(n), (n, 1)), axis=1)[:, :width]
        bad = draw(mostly([None], [found * 1.0, found + n, found - n, found[0], found[:0]]))
        bad = None if bad is not None and bad.shape == found.shape and np.array_equal(bad, found) else bad
        given, (classes, usable) = found if bad is None else bad, labels(draw, n)
        k = draw(mostly([1, 2, np.arange(n) % 2 + 1], [6, np.arange(n), *NO_COUNTS]))
        k_good = np.asarray(k).dtype.kind == "i" and np.min(k) >= 1 and np.max(k) <= found.shape[1]
        which = draw(st.integers(0, 3))
        if which == 0:
            share = refused(bad is not None or not usable or not k_good, lambda: neighbour_overlap(given, classes, k))
            names, each = np.asarray(classes), np.broadcast_to(k, n)
            expected = [(names[found[i, : each[i]]] == names[i]).mean() for i in range(n)]
        elif which == 1:
            k_good &= np.ndim(k) == 0
            share = refused(bad is not None or not k_good, lambda: point_overlap(given, found, k))
            expected = np.ones(n)
        elif which == 2:
            rows = draw(mostly([np.arange(1, n), np.arange(n)], [[], [n], [-1], [0, 0], np.ones(n), [1, 0]]))
            kept = among(found * 1.0, found, rows)
            share = expected = 0
            assert kept[0].shape == kept[1].shape and (np.asarray(rows)[kept[1]] == kept[0]).all()
        else:
            fraction = draw(mostly([0.3, 0.0, 1.0], [-1, 2, np.nan, np.inf]))
            is_estimate(label_overlap(given, classes, fraction, 4, n_shuffles=3), 0, 1)
            assert bad is None and usable and 0 <= fraction <= 1
            share = expected = 0
        np.testing.assert_allclose(share, expected)

    fuzz("overlaps and parts of neighbours", case, (2000, 80), report)


def test_estimates(report):
    values = st.lists(mostly([0.5, 1.0, 2.5], [0.0, -1.0, 1e308, np.nan, np.inf]), min_size=2, max_size=2) | st.just([])

    def case(draw):
        n_bootstrap = draw(mostly([3], NO_COUNTS))
        which = draw(st.integers(0, 2))
        if which == 0:
            given, weights = draw(values), draw(st.none() | values)
            found = mean_estimate(given, weights, n_bootstrap)
            is_estimate(found, min(given), max(given))
            np.testing.assert_allclose(found.value, np.average(given, weights=weights))
        elif which == 1:
            n = draw(st.integers(0, 8))
            (groups, first), (classes, second) = labels(draw, n), labels(draw, n)
            bad = not (first and second) or n_bootstrap != 3
            found = refused(bad, lambda: adjusted_rand_index(groups, classes, n_bootstrap))
            is_estimate(found, -1, 1)
        else:
            n, fraction = (
                draw(mostly([2, 20], [0, 3, 2.5])),
                draw(mostly([0.5, 0.9], [0.1, 1, np.nan])),
            )
            (found,) = subsampled(lambda rows: [rows.mean()], n, n_bootstrap, fraction)
            is_estimate(found, 0, n)

    fuzz("means, Rand indices and intervals from parts", case, (1500, 60), report)


def is_landscape(found, n):
    """Every array of its shape, finite where it has to be, peaks that partition the points."""
    np.testing.assert_array_equal(np.unique(found.assignment), np.arange(found.n_peaks))
    assert found.assignment.shape == found.core.shape == found.log_density.shape == (found.n,) and found.n <= n
    for numbers in (found.distances, found.log_density, found.saddle_log_density):
        assert np.isfinite(numbers).all()
    dimension, error = found.intrinsic_dimension, found.intrinsic_dimension_error
    assert ((dimension > 1.001e-3) & (dimension < 999.9) & (error > 0) | np.isnan(dimension)).all(), dimension
    for name, estimate in found.adjusted_rand_index.items():
        is_estimate(estimate, -1, 1)
        is_estimate(found.label_overlap[name], 0, 1)


def test_landscapes(report):
    def case(draw):
        points, sound = draw(states((32, 33, 50, 70, 90)))
        n = len(points) if sound else 0
        classes, usable = labels(draw, n)
        k_max = draw(mostly([128, 40], [20, 33.5, 0]))
        found = landscapes(points, {"class": classes}, k_max=k_max, where="toy, layer 3", **FEW)
        assert sound and usable and n > 32
        for layer in found.values():
            is_landscape(layer, n)
        rows = np.flatnonzero(np.arange(layer.n) % draw(mostly([9, 100], [2])))
        recipe = Recipe(
            draw(mostly([1, 2, 3], [-1, 5])), draw(mostly([1.6, 0.0], [np.nan])), draw(mostly([16, 3, 1], [0, 60]))
        )
        is_landscape(clustered(layer, {"": recipe}, rows)[""], n)
        tree = dendrogram.grow(layer, draw(mostly([classes], [[], [None] * n])), draw(mostly([0, 5], [-1])))
        assert tree.counts.sum() <= layer.n and tree.links.shape == (max(0, len(tree.counts) - 1), 4)
        for estimate in reclustered(found, {"class": classes}, 2).values():
            is_estimate(estimate)

    fuzz("landscapes, parts of them, and their trees", case, (1000, 30), report)


def test_trees(report):
    def case(draw):
        n = draw(mostly([1, 2, 4, 7], [0]))
        rng = np.random.default_rng(n)
        made = [rng.random((n, n)), np.eye(n), np.full((n, n), np.nan)]
        matrices = mostly(made[:2], [made[2], rng.random((n, n + 1)), rng.random(n)])
        distances, steps = draw(matrices), draw(matrices)
        groups = np.array(list("aabbcca"))[: n - draw(mostly([0], [1]))]
        measures = hierarchy.agreement(distances, steps, groups)
        for statistic, kept in measures.values():
            found, p = hierarchy.mantel(statistic, kept, draw(mostly([9], NO_COUNTS)))
            assert np.isnan(found.value) == np.isnan(p) and (np.isnan(p) or (-1 <= found.value <= 1 and 0 < p <= 1))
        links = hierarchy.linkage(rng.random((n, 2))) if n > 1 else np.empty((0, 4))
        links = draw(mostly([links], [links * np.nan, links[:, :3], links - 1]))
        far = hierarchy.tree_distances(links, np.arange(-1, n + draw(mostly([0], [1]))))
        assert np.isnan(far[0]).all() and np.isfinite(far[1:, 1:]).all() and (far[1:, 1:] == far[1:, 1:].T).all()

    fuzz("trees of subjects", case, (500, 20), report)


def test_probes_and_modalities(report):
    def case(draw):
        points, sound = draw(states())
        n = len(points) if sound else 0
        classes, usable = labels(draw, n)
        which = draw(st.integers(0, 2))
        if which == 0:
            folds = probes.folds_of(classes)
            folds = draw(mostly([folds], [folds[1:], [], [(np.arange(n), np.arange(n))]]))
            is_estimate(probes.probe(points, {"class": classes}, folds, n_shuffles=2)["class"], 0, 1)
        elif which == 1:
            k = draw(mostly([1, 3], NO_COUNTS))
            is_estimate(modality.class_overlap(points, classes, k, n_shuffles=2, **FEW), 0, 1)
        else:
            usable, other = True, draw(states())[0] if not sound or draw(st.booleans()) else points[:, [0]] - points
            found = modality.cosine_gap(points, other, **FEW)
            is_estimate(found.median, 0, 1)
            assert 0 <= found.lower_quartile <= found.median.value <= found.upper_quartile <= 1
        assert sound and usable

    fuzz("probes, class overlap and the gap of modalities", case, (500, 30), report)
