"""Density peaks by DADApy: from neighbours to peaks, their saddles and their cores.

All of DADApy, and the way round a fault of its release 0.3.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import BadParameter, BadStates, BookError, TooFewPoints
from .uncertainty import at_least

# Where DADApy looks for an intrinsic dimension; if it lies outside, or all ratios of distances are alike, an end of
# this range comes back, to within 1e-6.
GRIDE_RANGE = (1e-3, 1e3)


@dataclass(frozen=True)
class Recipe:
    """Settings of the clustering.

    Attributes:
        gride_scale: s sets the intrinsic dimension from neighbours 2^s and 2^(s+1).
        z: significance below which two peaks are merged.
        k: neighbours of the density.

    Raises BadParameter for settings below 0 (k: 1) or not finite.
    """

    gride_scale: int
    z: float
    k: int

    def __post_init__(self):  # noqa: D105 - in the docstring above
        at_least(0, gride_scale=self.gride_scale)
        at_least(1, k=self.k)
        if not 0 <= self.z < np.inf:
            raise BadParameter(f"z={self.z}, the significance of a peak, must be a finite number from 0.")


# The paper's released code and the script that drew its figures differ; the book reports both.
RECIPES = {"released": Recipe(gride_scale=4, z=1.6, k=16), "figures": Recipe(gride_scale=3, z=1.68, k=16)}


def dadapy_data(distances: np.ndarray, neighbours: np.ndarray):
    """Hand neighbours to DADApy, which counts the point itself as its neighbour 0."""
    from dadapy import Data  # takes seconds to import

    n, k = distances.shape
    own = np.arange(n)[:, None]
    columns = (np.hstack([np.zeros((n, 1)), distances]), np.hstack([own, neighbours]))
    return Data(distances=columns, maxk=k, verbose=False)


def dimensions(data) -> dict[str, np.ndarray]:
    """Gride at every scale that a DADApy data set reaches, by the names in `Landscape`; NaN where it finds none."""
    least, most = GRIDE_RANGE
    dimension, error, upper_ranks = data.return_id_scaling_gride(data.maxk, d0=least, d1=most, return_ranks=True)
    nothing = (dimension < least + 1e-6) | (dimension > most - 1e-6)
    dimension[nothing] = error[nothing] = np.nan
    return {"gride_ranks": upper_ranks // 2, "intrinsic_dimension": dimension, "intrinsic_dimension_error": error}


def by_recipe(data, intrinsic_dimension: np.ndarray, recipe: Recipe, where: str) -> dict:
    """What a recipe finds in a DADApy data set whose Gride dimensions are known, by the names in `Landscape`.

    Raises:
        TooFewPoints: the data set has fewer neighbours than the recipe needs.
        BadStates: Gride finds no dimension at the recipe's scale, or the densities overflow.
        BookError: as `density_peaks`.
    """
    upper = 2 ** (recipe.gride_scale + 1)
    if data.maxk < max(upper, recipe.k):
        raise TooFewPoints(
            f"{where}: {data.maxk} neighbours of each point are known, but {recipe} needs {max(upper, recipe.k)}. "
            "Give more points or a larger part of them."
        )
    dimension = intrinsic_dimension[recipe.gride_scale]
    if np.isnan(dimension):
        raise BadStates(
            f"{where}: Gride finds no intrinsic dimension between {GRIDE_RANGE[0]:g} and {GRIDE_RANGE[1]:g} from "
            f"neighbours {upper // 2} and {upper}: their distances are equal, or alike for all points. Were the states "
            "rounded, or are they one-hot?"
        )
    data.set_id(dimension)
    data.compute_density_kNN(recipe.k)
    if not np.isfinite(data.log_den).all():
        raise BadStates(
            f"{where}: densities in {dimension:.3g} dimensions exceed float64. Divide the states by a constant."
        )
    assignment, core = density_peaks(data, recipe.z, where)
    return {
        "recipe": recipe,
        "log_density": data.log_den.copy(),
        "assignment": assignment,
        "core": core,
        "peak_centres": np.array(data.cluster_centers),
        "saddle_log_density": np.array(data.log_den_bord),
    }


def density_peaks(data, z: float, where: str = "the points") -> tuple[np.ndarray, np.ndarray]:
    """Cluster a DADApy data set, whose density has been computed, by ADP.

    DADApy 0.3.4's compiled ADP stores the link of a removed peak one row too low, and needs it for points
    with no denser neighbour among maxk. They then get a wrong peak or none (its issue #165), some of them
    silently. So the case is recognised beforehand, and left to DADApy's pure Python version, which is right
    but slow. With the density of one fixed k it cannot occur: a removed peak lies among the k neighbours of
    a denser point, whose k-th neighbour is nearer, so that this point is also among its own k.

    Args:
        data: dadapy.Data with log_den, log_den_err and kstar; its cluster attributes are set.
        z: significance below which two peaks are merged.
        where: named in messages.

    Returns:
        assignment (n,) int, 0 … peaks - 1, and core (n,) bool, False in the halo.

    Raises:
        BookError: points are left without a peak by both versions.

    Source: d'Errico, Facco, Laio, Rodriguez 2021.
    """
    versions = [data.compute_clustering_ADP, data.compute_clustering_ADP_pure_python]
    for cluster in versions[_needs_links(data) :]:
        assignment = np.asarray(cluster(Z=z, halo=False))
        # Labels of points without a peak are what was in memory, so count the members of the peaks instead.
        sizes = [len(members) for members in data.cluster_indices]
        in_range = assignment.min() >= 0 and assignment.max() < len(sizes)
        if in_range and np.array_equal(np.bincount(assignment), sizes):
            return assignment, _core(data, z)
    raise BookError(f"{where}: DADApy left points without a peak, also in its pure Python version.")


def _needs_links(data) -> bool:
    """Tell whether some removed peak has no denser neighbour to follow."""
    g, neighbours = data.log_den - data.log_den_err, data.dist_indices[:, 1:]
    denser = g[neighbours] > g[:, None]  # (n, maxk)
    within = np.arange(neighbours.shape[1]) < data.kstar[:, None]
    followers = (g[neighbours] < g[:, None]) & within  # less dense, in a point's neighbourhood
    removed = np.unique(neighbours[followers])
    return not denser[removed].any(1).all()


def _core(data, z: float) -> np.ndarray:
    """Points as dense as the highest saddle of their peak, computed as DADApy does with halo=True."""
    shifted = data.log_den - np.min(data.log_den - z * data.log_den_err) + 1
    borders = np.asarray(data.bord_indices)
    highest = np.where(borders >= 0, shifted[borders], -np.inf).max(1)  # (n_peaks,)
    return shifted >= highest[data.cluster_assignment]
