"""Density peaks by DADApy's ADP, guarded against a fault of its compiled version."""

from __future__ import annotations

import numpy as np

from peaks_and_gates.errors import BookError


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
    for cluster in versions[needs_links(data) :]:
        assignment = np.asarray(cluster(Z=z, halo=False))
        # Labels of points without a peak are what was in memory, so count the members of the peaks instead.
        sizes = [len(members) for members in data.cluster_indices]
        in_range = assignment.min() >= 0 and assignment.max() < len(sizes)
        if in_range and np.array_equal(np.bincount(assignment), sizes):
            return assignment, core_points(data, z)
    raise BookError(f"{where}: DADApy left points without a peak, also in its pure Python version.")


def needs_links(data) -> bool:
    """Tell whether some removed peak has no denser neighbour to follow."""
    g, neighbours = data.log_den - data.log_den_err, data.dist_indices[:, 1:]
    denser = g[neighbours] > g[:, None]  # (n, maxk)
    within = np.arange(neighbours.shape[1]) < data.kstar[:, None]
    followers = (g[neighbours] < g[:, None]) & within  # less dense, in a point's neighbourhood
    removed = np.unique(neighbours[followers])
    return not denser[removed].any(1).all()


def core_points(data, z: float) -> np.ndarray:
    """Points as dense as the highest saddle of their peak, computed as DADApy does with halo=True."""
    shifted = data.log_den - np.min(data.log_den - z * data.log_den_err) + 1
    borders = np.asarray(data.bord_indices)
    highest = np.where(borders >= 0, shifted[borders], -np.inf).max(1)  # (n_peaks,)
    return shifted >= highest[data.cluster_assignment]
