"""How sure a number is: bootstrap intervals, shuffled-label nulls, and intervals from new samples.

index = adjusted_rand_index(landscape.assignment, subjects)
index.value, index.low, index.high, index.null_high
row("5-shot", "smollm2-135m-instruct", 12, 0.4, "ari_subject", "released", index)    # of a tidy table
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from peaks_and_gates.errors import BadParameter

PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: the estimate from all the data.
        low: lower end of the interval.
        high: upper end of the interval.
        n: points, questions or scenes it rests on.
        null: mean of the same number under shuffled labels, where that means something.
        null_high: 97.5 % quantile under shuffled labels; a value above it is not chance.
    """

    value: float
    low: float
    high: float
    n: int
    null: float | None = None
    null_high: float | None = None


def row(condition: str, model: str, layer: int, depth: float, metric: str, setting: str, estimate: Estimate) -> dict:
    """One row of a tidy table."""
    about = {"condition": condition, "model": model, "layer": layer, "depth": depth, "metric": metric}
    numbers = asdict(estimate)
    n = numbers.pop("n")
    return about | {"setting": setting} | numbers | {"n": n}


def over_seeds(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Mean over the tables of like models, with an interval from the lowest low to the highest high.

    Raises BadParameter if the tables do not hold the same rows.
    """
    together = pd.concat(tables)
    how = {"value": "mean", "low": "min", "high": "max", "null": "mean", "null_high": "mean", "n": "min"}
    keys = ["condition", "layer", "depth", "metric", "setting"]
    if together.groupby(keys).size().ne(len(tables)).any():
        raise BadParameter("Models taken together must have as many layers, and the same tokens around an image.")
    mean = together.groupby(keys, sort=False, as_index=False).agg(how)
    name = together["model"].iloc[0]
    label = f"{name.rstrip('0123456789').rstrip('-')} ({len(tables)} seeds)" if len(tables) > 1 else name
    return mean.assign(model=label)[list(together.columns)]


def with_means(table: pd.DataFrame) -> pd.DataFrame:
    """A table and, behind it, the means over the seeds of conditions such as "5-shot, seed 0", named "5-shot".

    A number that not every seed has is left out: a tree may have too few leaves for it.
    """
    tables = [table]
    for condition, together in table.groupby(table["condition"].str.extract("(.*), seed ", expand=False), sort=False):
        in_all = together.groupby("metric")["metric"].transform("size") == together["condition"].nunique()
        of_seed = [rows.assign(condition=condition) for _, rows in together[in_all].groupby("condition", sort=False)]
        tables.append(over_seeds(of_seed))
    return pd.concat(tables, ignore_index=True)


def at_least(least: int, most: float = np.inf, /, **counts: int | None) -> None:
    """Raise BadParameter for a count, named by its keyword, that is neither None nor a whole number in these bounds."""
    for name, count in counts.items():
        integer = isinstance(count, (int, np.integer)) and not isinstance(count, bool)
        if count is not None and not (integer and least <= count <= most):
            raise BadParameter(f"{name}={count} must be a whole number, at least {least} and at most {most}.")


def coded(labels: Sequence, n: int | None = None, name: str = "The labels") -> tuple[np.ndarray, ...]:
    """The different labels in order, (classes,), which of them each point has, (n,) int, and how many have each.

    Raises BadParameter unless there is one label a point, none missing.  name: begins the messages.  "nan" is missing,
    too: it is what numpy makes of NaN among names.
    """
    labels = np.asarray(labels)
    nan = labels.dtype.kind == "U" and labels == "nan"
    if labels.ndim != 1 or not labels.size or np.any(nan | pd.isna(labels)):
        raise BadParameter(f"{name} have shape {labels.shape} or are NaN or None in places. Give one label a point.")
    if n is not None and len(labels) != n:
        raise BadParameter(f"{name} have {len(labels)} entries for {n} points. Give one label a point, in their order.")
    return np.unique(labels, return_inverse=True, return_counts=True)


def adjusted_rand_index(assignment: np.ndarray, labels: np.ndarray, n_bootstrap: int = 200, seed: int = 0) -> Estimate:
    """Agreement of a partition with labels: 1 for the same grouping, 0 on average for independent ones.

    The interval resamples points and keeps the partition fixed: it does not contain the change of the peaks
    themselves from one sample of questions to another (`redrawn` does). A resampled point always agrees
    with its own copies, which lifts the index of every replicate a little; the replicates are therefore
    centred on the value. The null redraws the contingency table with both margins fixed, which is what
    shuffled labels do.

    Args:
        assignment: (n,) the group of each point, any integers or names.
        labels: (n,) the label of each point, any integers or names.
        n_bootstrap: replicates of the bootstrap, and tables of the null.
        seed: of both.

    Returns:
        Estimate with null and null_high.

    Raises:
        BadParameter: the two are not of one length, empty, or hold NaN; fewer than one replicate.

    Source: Hubert and Arabie 1985, eq. 5; random tables, Patefield 1981.
    """
    from scipy.stats import random_table
    from sklearn.metrics import adjusted_rand_score
    from sklearn.metrics.cluster import contingency_matrix

    at_least(1, n_bootstrap=n_bootstrap)
    labels = coded(labels)[1]
    assignment = coded(assignment, len(labels), "The assignments")[1]
    table = contingency_matrix(labels, assignment)  # (classes, groups)
    n = int(table.sum())
    value = float(adjusted_rand_score(labels, assignment))
    rng = np.random.default_rng(seed)
    resampled = rand_of_tables(rng.multinomial(n, table.ravel() / n, size=n_bootstrap).reshape(-1, *table.shape))
    low, high = value + np.percentile(resampled, PERCENTILES) - resampled.mean()
    # Of scipy's two methods only this one is right for a table of a single column (1.17 gives a negative count).
    shuffled = random_table(table.sum(1), table.sum(0)).rvs(n_bootstrap, method="boyett", random_state=rng)
    return Estimate(value, float(low), min(float(high), 1.0), n, **null_of(rand_of_tables(shuffled)))


def null_of(replicates: Sequence[float]) -> dict[str, float]:
    """The two fields of an Estimate about shuffled labels."""
    return {"null": float(np.mean(replicates)), "null_high": float(np.percentile(replicates, PERCENTILES[1]))}


def rand_of_tables(tables: np.ndarray) -> np.ndarray:
    """Adjusted Rand index of each contingency table, (tables, classes, groups) int -> (tables,) float."""
    pairs = lambda counts: (counts * (counts - 1.0)) / 2
    together = pairs(tables).sum((1, 2))  # (tables,)
    by_class, by_group = pairs(tables.sum(2)).sum(1), pairs(tables.sum(1)).sum(1)  # (tables,) each
    expected = by_class * by_group / np.maximum(pairs(tables.sum((1, 2))), 1)  # a single point has no pairs
    above, most = together - expected, (by_class + by_group) / 2 - expected
    same = most == 0  # both partitions are one group, or both all singletons
    return np.where(same, 1.0, above / np.where(same, 1.0, most))


def bootstrap_mean(
    values: np.ndarray, weights: np.ndarray | None = None, n_bootstrap: int = 200, seed: int = 0
) -> Estimate:
    """Mean of one value a point (an accuracy, an overlap, a share of core points), bootstrapped over points.

    Args:
        values: (n,) float or bool.
        weights: (n,) positive, all equal by default.
        n_bootstrap: replicates.
        seed: of the bootstrap.

    Returns:
        Estimate without a null.

    Raises:
        BadParameter: no values, values that are not finite numbers below 1e150, another number of weights, or weights
            that are not positive; fewer than one replicate.
    """
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or not values.size or weights.shape != values.shape:
        raise BadParameter(f"A mean needs one value and one weight a point, got {values.shape}, {weights.shape}.")
    at_least(1, n_bootstrap=n_bootstrap)
    if not ((np.abs([values, weights]) < 1e150).all() and (weights > 0).all()):  # so that no sum overflows
        raise BadParameter("A mean needs finite values and positive weights, below 1e150; leave out all other points.")
    n = len(values)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_bootstrap)  # (replicates, n)
    low, high = np.percentile((counts @ (weights * values)) / (counts @ weights), PERCENTILES)
    return Estimate(float(np.average(values, weights=weights)), float(low), float(high), n)


def share_lost(before: np.ndarray, after: np.ndarray, seed: int = 0, n_bootstrap: int = 200) -> Estimate:
    """Which share of a mean score is lost, with an interval that resamples questions.

    Both scores of one question stay together, so that equal scores are a loss of exactly 0.

    before, after: (n,) scores.  Value, low and high are NaN where there was nothing to lose.
    """
    n = len(before)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_bootstrap)  # (replicates, n)
    with np.errstate(invalid="ignore", divide="ignore"):
        lost = 1 - (counts @ after) / (counts @ before)  # (replicates,)
        value = 1 - after.sum() / before.sum()
    if not np.isfinite(value):
        return Estimate(np.nan, np.nan, np.nan, n)
    low, high = np.nanquantile(lost[np.isfinite(lost)], [0.025, 0.975])
    return Estimate(float(value), float(low), float(high), n)


def normal_estimate(value: float, standard_error: float, n: int) -> Estimate:
    """Return value ± 1.96 standard errors, for an estimator that brings its own error, such as Gride."""
    return Estimate(value, value - 1.96 * standard_error, value + 1.96 * standard_error, n)


def redrawn(
    statistic: Callable[[np.random.Generator], Sequence[float]],
    values: Sequence[float],
    n: int,
    n_repeats: int = 8,
    seed: int = 0,
    chance: Sequence[float] | float = 0.0,
    n_peaks: Sequence[int] | float = np.inf,
    ends: tuple = (-np.inf, np.inf),
) -> list[Estimate]:
    """Intervals of numbers from the same numbers of new samples, such as a number of density peaks.

    The interval is the value and, to both sides, the replicates' deviation from their own mean times Student's t, for
    so few of them. Only their deviation is used: their mean is off where drawing smooths the points, while the value
    is right on average.

    No interval is narrower than half a peak's share of the number to either side. A number of peaks is whole, and its
    mean is not: what a few new samples agree on happens often, not always.  A number nearer to 0 counts as .02
    here: the index of a single peak is 0 whatever the labels, and is not known to better than a hundredth.

    Labels that have nothing to do with a partition are a case of their own. There the variance of a redrawn index is
    three times that of the index, because points that are drawn more than once agree with themselves; two thirds
    are taken off, and never more than the two variances by chance that are too much.

    Args:
        statistic: from a random generator to the numbers of one new sample.
        values: the numbers of the sample at hand.
        n: its points.
        n_repeats: new samples; each costs one call.
        seed: of the generator.
        chance: standard deviation of each number if the labels were shuffled; 0 for one without labels.
        n_peaks: peaks that the numbers are counted on.
        ends: the least and the greatest that each number can be; the interval ends there.

    Returns:
        One Estimate a number, without a null; its interval is NaN if the number is NaN for some sample.

    Raises:
        BadParameter: fewer than two repeats.

    Source: smoothed bootstrap, Silverman and Young 1987; that of degenerate statistics, Bretagnolle 1983.
    """
    from scipy.special import stdtrit  # Student's quantile

    at_least(2, n_repeats=n_repeats)
    rng, values = np.random.default_rng(seed), np.asarray(values, dtype=np.float64)
    variance = np.var([statistic(rng) for _ in range(n_repeats)], axis=0, ddof=1)  # (numbers,)
    variance = np.maximum(variance / 3, variance - 2 * np.square(chance))
    error = np.maximum(stdtrit(n_repeats - 1, 0.975) * np.sqrt(variance), abs(values).clip(0.02) / n_peaks / 2)
    low, high = np.clip([values - error, values + error], *ends)
    return [Estimate(*map(float, numbers), n) for numbers in zip(values, low, high, strict=True)]
