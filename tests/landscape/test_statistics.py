import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from peaks_and_gates import statistics
from peaks_and_gates.errors import BadParameter
from peaks_and_gates.statistics import adjusted_rand_index, bootstrap_mean, coded, redrawn


def noisy_copy(labels, share, rng):
    """The labels, a share of them drawn anew."""
    fresh = rng.integers(labels.max() + 1, size=len(labels))
    return np.where(rng.random(len(labels)) < share, fresh, labels)


def test_known_partitions():
    labels = np.repeat(np.arange(5), 40)
    same = adjusted_rand_index(labels, labels)
    assert (same.value, same.low, same.high, same.n) == (1, 1, 1, 200)
    assert adjusted_rand_index((labels + 3) % 5, np.array(list("abcde"))[labels]).value == 1
    assert adjusted_rand_index(np.zeros(9, int), np.zeros(9, int)).value == 1


def test_the_index_of_many_tables_is_scikit_learns():
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(4, size=90), rng.integers(6, size=90)) for _ in range(20)]
    pairs += [(a, noisy_copy(a, 0.3, rng)) for a, _ in pairs]
    tables = np.array([np.histogram2d(a, b, [np.arange(5), np.arange(7)])[0] for a, b in pairs])
    expected = [adjusted_rand_score(a, b) for a, b in pairs]
    np.testing.assert_allclose(statistics.rand_of_tables(tables), expected, atol=1e-12)


def test_independent_labels_lie_at_the_null():
    rng = np.random.default_rng(0)
    found = adjusted_rand_index(rng.integers(20, size=2000), rng.integers(4, size=2000))
    assert abs(found.value) < 0.01 and abs(found.null) < 0.002
    assert found.low < 0 < found.high
    assert 0 < found.null_high < 0.01


@pytest.mark.parametrize("n_classes", [2, 4, 30])
def test_one_group_agrees_with_nothing_nor_does_its_null(n_classes):
    one = adjusted_rand_index(np.zeros(320, int), np.arange(320) % n_classes)
    assert (one.value, one.null, one.null_high) == (0, 0, 0)


def test_the_null_is_that_of_shuffled_labels():
    rng = np.random.default_rng(1)
    a, b = rng.integers(3, size=60), rng.integers(3, size=60)
    shuffled = [adjusted_rand_score(a, rng.permutation(b)) for _ in range(2000)]
    found = adjusted_rand_index(a, b, n_bootstrap=2000)
    assert found.null == pytest.approx(np.mean(shuffled), abs=0.003)
    assert found.null_high == pytest.approx(np.percentile(shuffled, 97.5), rel=0.15)


def test_the_interval_covers_a_known_index():
    """Draw samples of 400 from a joint distribution whose index is known: most intervals hold it."""
    rng = np.random.default_rng(0)
    labels = rng.integers(8, size=400_000)
    groups = noisy_copy(labels, 0.4, rng)
    true = adjusted_rand_score(labels, groups)
    covered = []
    for seed in range(150):
        rows = rng.choice(len(labels), 400, replace=False)
        found = adjusted_rand_index(groups[rows], labels[rows], seed=seed)
        covered.append(found.low <= true <= found.high)
    assert np.mean(covered) >= 0.85


def test_replicates_are_centred():
    """Copies of a point agree with it; uncentred, the interval would not even hold the value."""
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(150, size=300), rng.integers(150, size=300)
    found = adjusted_rand_index(groups, labels)
    assert found.low < found.value < found.high


def test_mean():
    values = np.random.default_rng(0).random(400) < 0.3
    found = bootstrap_mean(values)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / 400), rel=0.2)
    assert bootstrap_mean(np.array([0.0, 1.0]), weights=np.array([3, 1])).value == 0.25
    covers = [bootstrap_mean(np.random.default_rng(s).random(200) < 0.3, seed=s) for s in range(200)]
    assert 0.88 <= np.mean([c.low <= 0.3 <= c.high for c in covers]) <= 0.99


def test_redrawing_finds_the_standard_error_of_a_mean():
    values = np.random.default_rng(0).standard_normal(1000)
    resampled = lambda rng: [rng.choice(values, 1000).mean()]
    (found,) = redrawn(resampled, [values.mean()], 1000, n_repeats=400)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.966 / np.sqrt(1000), rel=0.15)
    assert found.high + found.low == pytest.approx(2 * found.value) and found.n == 1000
    assert redrawn(resampled, [0.0], 9, seed=1) == redrawn(resampled, [0.0], 9, seed=1)
    assert redrawn(resampled, [0.0], 9, seed=1) != redrawn(resampled, [0.0], 9, seed=2)


@pytest.mark.parametrize("n_repeats", [3, 8])
def test_few_samples_that_are_off_as_a_whole_still_cover(n_repeats):
    """The value lies around 0, its replicates around 5: nineteen of twenty intervals hold the 0."""
    rng, covered = np.random.default_rng(0), []
    for seed in range(1000):
        (found,) = redrawn(lambda rng: [5 + rng.standard_normal()], [rng.standard_normal()], 1, n_repeats, seed)
        covered.append(found.low <= 0 <= found.high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_an_index_by_chance_gets_the_deviation_that_it_has():
    """Drawn points agree with their copies: without what is taken off the interval would be 1.7 times too wide."""
    rng, indices = np.random.default_rng(0), []
    for _ in range(400):
        groups, labels = rng.integers(12, size=300), rng.integers(4, size=300)
        indices.append(adjusted_rand_score(groups, labels))
    resampled = lambda rng: [adjusted_rand_score(*np.stack([groups, labels])[:, rng.integers(300, size=300)])]
    (found,) = redrawn(resampled, indices[-1:], 300, n_repeats=400, chance=[np.std(indices)])
    assert (found.high - found.low) / 2 == pytest.approx(1.966 * np.std(indices), rel=0.2)
    (sure,) = redrawn(lambda rng: [rng.standard_normal()], [0.0], 300, n_repeats=400, chance=[0.3])
    assert sure.high == pytest.approx(1.966 * np.sqrt(1 - 2 * 0.3**2), rel=0.1)  # never more than is too much


def test_an_interval_ends_where_the_number_does():
    far = lambda rng: [*(9 * rng.standard_normal(2)), np.nan]
    first, second, missing = redrawn(far, [0.2, 3.0, 1.0], 9, ends=([0, 1, 0], [1, np.inf, 1]))
    assert (first.low, first.high, second.low) == (0, 1, 1) and second.high > 3 and np.isnan(missing.high)
    for number in redrawn(lambda rng: [12, -0.9, 0], [12, -0.9, 0], 9, n_peaks=[12, 3, 1]):  # where all agree
        assert (number.high - number.value) == pytest.approx({12: 0.5, -0.9: 0.15, 0: 0.01}[number.value])


def test_errors():
    with pytest.raises(BadParameter, match="n_repeats=1"):
        redrawn(lambda rng: [rng.random()], [0.5], 10, n_repeats=1)
    for labels in (None, ["a", None], ["a", np.nan], np.array(["a", np.nan], dtype=object), [0, np.nan]):
        with pytest.raises(BadParameter, match="NaN or None"):
            coded(labels)
    with pytest.raises(BadParameter, match="below 1e150"):
        bootstrap_mean([1e308, 1e308])
