"""Gride, the k-NN density and density peaks (ADP): in lines of our own, and by DADApy, equal to the last label.

distances, neighbours = nearest_neighbours(hidden_states, k=128)
dimension, error = gride(distances)                                    # at ranks 1 and 2, 2 and 4, 4 and 8, ...
log_density = knn_log_density(distances, dimension[4], k=16)
assignment, saddles, core = density_peaks(log_density, neighbours, k=16, z=1.6)

DADApy, by the papers' own group, does the work wherever it installs. Our lines do it elsewhere (Python 3.13, numpy 2),
and are what the pages on the methods show.
"""

from importlib.util import find_spec

import numpy as np
from scipy.special import gammaln

from peaks_and_gates.errors import BookError

GRIDE_RANGE = (1e-3, 1e3)  # where a dimension is looked for
EPS = np.finfo(np.float64).eps
HAS_DADAPY = find_spec("dadapy") is not None


def gride(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsic dimension at every scale: the likeliest, given the ratios of distances to neighbours 2^s and 2^(s+1).

    distances: (n, k) float, to the neighbours, ascending.
    Returns dimension and standard error, (scales,) each; an end of GRIDE_RANGE where there is no maximum between.

    Source: Denti et al. 2022, eq. 10, as in DADApy: ratios far out in the tail, of near-duplicates, are left out.
    """
    lower = 2 ** np.arange(int(np.log2(distances.shape[1])))  # (scales,) ranks
    ratios = distances[:, 2 * lower - 1] / distances[:, lower - 1]  # (n, scales)
    ratios[ratios == 1] += 10 * EPS
    estimates = [_likeliest_dimension(ratios[:, scale], rank) for scale, rank in enumerate(lower)]
    errors = [_standard_error(ratios[:, scale], estimates[scale], rank) for scale, rank in enumerate(lower)]
    return np.array(estimates), np.array(errors)


def _likeliest_dimension(ratios: np.ndarray, rank: int, precision: float = 1e-7) -> float:
    """Where the likelihood of ratios (n,), of distances to neighbours 2·rank and rank, has slope 0."""
    high, median = np.percentile(ratios, [95, 50])
    ratios = ratios[ratios < 20 * (high - median) + median]
    log_ratios = np.log(ratios)

    def falling(d: float) -> float:
        """Minus the slope of the log likelihood in d."""
        inside = np.maximum(1.0 - ratios ** (-d), 2 * precision)
        return np.sum(((1 - rank) / inside + 2 * rank - 1.0) * log_ratios) - (len(ratios) - 1) / d

    low, high = GRIDE_RANGE
    at_high = falling(high)
    while abs(low - high) > precision:
        middle = (low + high) / 2.0
        low, high = (low, middle) if falling(middle) * at_high > 0 else (middle, high)
    return (low + high) / 2.0


def _standard_error(ratios: np.ndarray, d: float, rank: int) -> float:
    """One over the root of the Fisher information."""
    inside = np.maximum(1.0 - ratios ** (-1.0 * d), 5 * EPS)
    information = len(ratios) / d**2 + np.sum((rank - 1) * ((np.log(ratios) / inside) ** 2 * ratios ** (-d)))
    return (1 / information) ** 0.5


def knn_log_density(distances: np.ndarray, dimension: float, k: int) -> np.ndarray:
    """Log density (n,): k points in the ball, of so many dimensions, that reaches the k-th neighbour."""
    radius = distances[:, k - 1].copy()  # (n,): the logarithm's last digit may depend on the layout
    unit_ball = np.log(np.exp(dimension / 2.0 * np.log(np.pi) - gammaln((dimension + 2) / 2)))
    return np.log(float(k)) - (unit_ball + dimension * np.log(radius)) - np.log(len(radius))


def density_peaks(
    log_density: np.ndarray, neighbours: np.ndarray, k: int, z: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cluster points by the peak that they lie on, and merge peaks that do not stand out from their saddle.

    Args:
        log_density: (n,) float, by `knn_log_density`; its error is 1/√k.
        neighbours: (n, >=k) int, nearest first, the point itself left out.
        k: neighbours of the density.
        z: errors by which a peak must exceed a saddle.

    Returns:
        assignment (n,) int, 0 … peaks - 1; saddle_log_density (peaks, peaks) float, of the densest point on the border,
        below all densities where two peaks do not touch and on the diagonal; core (n,) bool, False in the halo.

    Source: d'Errico, Facco, Laio, Rodriguez 2021, sec. 2.3, as in DADApy.
    """
    n, error = len(log_density), 1.0 / np.sqrt(float(k))
    lowest = np.min(log_density - z * error)
    density = log_density - lowest + 1  # positive, so that 0 stands below every saddle
    sure = density - error
    # Every point follows its nearest neighbour that is denser or a peak; a peak follows itself.
    is_peak = (sure[neighbours[:, :k]] <= sure[:, None]).all(1)  # (n,)
    peaks = np.flatnonzero(is_peak)
    rank = np.empty(n, dtype=int)
    rank[np.argsort(-sure)] = np.arange(n)
    ahead = (rank[neighbours] < rank[:, None]) | is_peak[neighbours]  # (n, K)
    leader = np.where(is_peak, np.arange(n), neighbours[np.arange(n), ahead.argmax(1)])  # (n,)
    while (leader != leader[leader]).any():
        leader = leader[leader]
    assignment = np.searchsorted(peaks, leader)  # (n,)
    saddle = _saddles(sure, assignment, is_peak, neighbours, k)  # (peaks, peaks) int
    top, touch = density[peaks], saddle >= 0
    height, doubt = np.where(touch, density[saddle], 0.0), np.where(touch, error, 0.0)  # (peaks, peaks)
    np.fill_diagonal(height, -1.0)
    while True:
        margin = np.minimum.outer(top, top) - height < z * (error + doubt)  # (peaks, peaks) bool
        pairs = np.argwhere(np.triu(margin, 1))
        if not len(pairs):
            break
        stays, goes = pairs[height[tuple(pairs.T)].argmax()]  # the highest saddle first
        above = (top - height[stays, goes]) / (error + doubt[stays, goes])  # (peaks,) errors
        if above[stays] < above[goes]:
            stays, goes = goes, stays
        assignment[assignment == goes] = stays
        height[stays, goes] = height[goes, stays] = -1.0
        higher = height[stays] < height[goes]  # (peaks,) bool
        for table in (height, doubt, saddle):
            table[stays, higher] = table[higher, stays] = table[goes, higher]
        height[goes], height[:, goes], doubt[goes], doubt[:, goes] = -1.0, -1.0, 0.0, 0.0
    alive, assignment = np.unique(assignment, return_inverse=True)
    height, saddle = height[np.ix_(alive, alive)], saddle[np.ix_(alive, alive)]
    return assignment, height + lowest - 1, density >= height.max(1)[assignment]


def _saddles(sure, assignment, is_peak, neighbours, k: int) -> np.ndarray:
    """The densest border point of every two peaks, (peaks, peaks) int; -1 where they do not touch.

    A point is on the border if one of its k neighbours lies on another peak, and no other point of its own peak is
    nearer to the first such neighbour.
    """
    n_peaks = is_peak.sum()
    abroad = assignment[neighbours[:, :k]] != assignment[:, None]  # (n, k)
    points = np.flatnonzero(abroad.any(1) & ~is_peak)
    across = neighbours[points, abroad[points].argmax(1)]  # (points,)
    back = neighbours[across]  # (points, K)
    own = assignment[back] == assignment[points, None]
    first = back[np.arange(len(points)), own.argmax(1)]
    border = ~own.any(1) | (first == points)
    points, across = points[border], across[border]
    order = np.lexsort((-points, -assignment[points], sure[points]))
    saddle = np.full((n_peaks, n_peaks), -1)
    for point, other in zip(points[order], across[order], strict=True):  # ascending: the densest is written last
        a, b = assignment[point], assignment[other]
        saddle[a, b] = saddle[b, a] = point
    return saddle


def dadapy_gride(distances: np.ndarray, neighbours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `gride` returns, by DADApy."""
    data = dadapy_data(distances, neighbours)
    low, high = GRIDE_RANGE
    return data.return_id_scaling_gride(data.maxk, d0=low, d1=high)[:2]


def dadapy_data(distances: np.ndarray, neighbours: np.ndarray):
    """Hand neighbours to DADApy, which counts the point itself as its neighbour 0."""
    from dadapy import Data  # takes seconds to import

    n, k = distances.shape
    own = np.arange(n)[:, None]
    columns = (np.hstack([np.zeros((n, 1)), distances]), np.hstack([own, neighbours]))  # (n, k + 1) each
    return Data(distances=columns, maxk=k, verbose=False)


def dadapy_peaks(data, z: float, where: str = "the points") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cluster a DADApy data set, whose density has been computed, by its ADP.

    DADApy 0.3.4's compiled ADP stores the link of a removed peak one row too low, and needs it for points
    with no denser neighbour among maxk. They then get a wrong peak or none (its issue #165). With the
    density of one fixed k it cannot occur: a removed peak lies among the k neighbours of
    a denser point, whose k-th neighbour is nearer, so that this point is also among its own k.

    Args:
        data: dadapy.Data with log_den and log_den_err; its cluster attributes are set.
        z: significance below which two peaks are merged.
        where: named in messages.

    Returns:
        As `density_peaks`.

    Raises:
        BookError: points are left without a peak.

    Source: d'Errico, Facco, Laio, Rodriguez 2021.
    """
    assignment = np.asarray(data.compute_clustering_ADP(Z=z, halo=False))
    # Labels of points without a peak are what was in memory, so count the members of the peaks instead.
    sizes = [len(members) for members in data.cluster_indices]
    in_range = assignment.min() >= 0 and assignment.max() < len(sizes)
    if not (in_range and np.array_equal(np.bincount(assignment), sizes)):
        raise BookError(f"{where}: DADApy left points without a peak.")
    return assignment, np.array(data.log_den_bord), _core(data, z)


def _core(data, z: float) -> np.ndarray:
    """Points as dense as the highest saddle of their peak, computed as DADApy does with halo=True."""
    shifted = data.log_den - np.min(data.log_den - z * data.log_den_err) + 1
    borders = np.asarray(data.bord_indices)
    highest = np.where(borders >= 0, shifted[borders], -np.inf).max(1)  # (n_peaks,)
    return shifted >= highest[data.cluster_assignment]
