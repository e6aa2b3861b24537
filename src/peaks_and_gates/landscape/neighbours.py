"""Euclidean nearest neighbours, in blocks, and the share of them that agree.

distances, neighbours = nearest_neighbours(hidden_states, k=128)       # (n, k) float64, (n, k) int64
label_overlap(neighbours, subjects, class_fraction=0.3).value
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from peaks_and_gates.errors import BadParameter, BadStates, TooFewPoints
from peaks_and_gates.statistics import Estimate, at_least, bootstrap_mean, coded, null_of

TOLERANCE = 1e-8  # largest relative error of a squared distance that is not computed again
NEAR, STEP = 4, 0.3  # of a redrawn point: neighbours that it moves along, and how far; benchmarks/coverage.py chose
N_SHUFFLES = 50  # of the labels, for a null: what is shuffled is a mean over all points, and therefore steady


def nearest_neighbours(
    points: np.ndarray | torch.Tensor,
    k: int,
    *,
    block: int = 1024,
    device: str | torch.device | None = None,
    where: str = "the points",
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest neighbours of every point, the point itself left out.

    The fast way to all distances is |x|² + |y|² − 2x·y, one matrix product. Its error, at most a few d·eps times the
    norms, may be larger than a distance, or than the difference of two. A row in which that can be (duplicates,
    near-duplicates, ties, a group far from the mean) is computed again, from the differences themselves. The order is
    therefore that of float64 brute force, and distances have eight right digits. A distance below 1e-150 times the
    largest coordinate loses digits, and may be 0.

    Args:
        points: (n, d), float16, bfloat16, float32 or float64; computed with in float64.
        k: neighbours of each point, 1 <= k < n.
        block: rows of one block of distances; memory beyond two copies of the points is block·n.
        device: where to compute; by default a GPU if there is one.
        where: named in messages, such as 'smollm2-135m-instruct, layer 12'.

    Returns:
        distances (n, k) float64 and indices (n, k) int64, nearest first, equal distances by lower index.

    Raises:
        BadStates: the points are not a matrix of finite floats, or farther apart than float64 can say.
        BadParameter: k below 1.
        TooFewPoints: k >= n.
    """
    points = as_matrix(points, where).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    n, d = points.shape
    at_least(1, k=k)
    if k >= n:
        raise TooFewPoints(f"{where}: {n} points have at most {n - 1} neighbours each, but k={k}. Give {k + 1} points.")
    points = points.double()
    largest = float(torch.linalg.vector_norm(points, torch.inf))
    scale = 2.0 ** -int(np.clip(np.frexp(largest)[1], -1000, 1000)) if largest else 1.0  # so that no square overflows
    points = points * scale
    centred = points - points.mean(0)  # (n, d): a common offset would swell the norms
    norms = torch.linalg.vecdot(centred, centred)  # (n,)
    errors = 4 * (d + 2) * torch.finfo(torch.float64).eps * (norms + norms.max())  # (n,), of a squared distance
    squared = norms.new_empty(n, k)
    neighbours = torch.empty(n, k, dtype=torch.int64, device=points.device)
    for rows in torch.arange(n, device=points.device).split(block):
        to_all = (norms[rows, None] + norms).addmm_(centred[rows], centred.T, alpha=-2)  # (block, n)
        to_all[torch.arange(len(rows)), rows] = torch.inf  # the point itself
        nearest, index = to_all.topk(min(k + 1, n - 1), largest=False)  # (block, k + 1), ascending
        squared[rows], neighbours[rows] = nearest[:, :k], index[:, :k]
        error = errors[rows, None]  # (block, 1)
        doubtful = (error >= TOLERANCE * nearest[:, :1]).any(1) | (nearest.diff(dim=1) <= 2 * error).any(1)
        for i in torch.nonzero(doubtful).flatten().tolist():
            near = torch.nonzero(to_all[i] <= nearest[i, k - 1] + 2 * error[i]).flatten()  # ascending
            exact = (points[near] - points[rows[i]]).square().sum(1)
            order = exact.sort(stable=True).indices[:k]
            squared[rows[i]], neighbours[rows[i]] = exact[order], near[order]
    distances = squared.sqrt() / scale
    if torch.isinf(distances[:, -1]).any():
        raise BadStates(f"{where}: some distances exceed float64. Divide the points by a constant.")
    return distances.cpu().numpy(), neighbours.cpu().numpy()


def neighbour_overlap(neighbours: np.ndarray, labels: np.ndarray, k: int | np.ndarray) -> np.ndarray:
    """Share of each point's k nearest neighbours that carry its own label.

    Args:
        neighbours: (n, >=k) int, nearest first, the point itself left out.
        labels: (n,) integers or strings.
        k: one number for all points, or (n,) int.

    Returns:
        (n,) float in [0, 1].

    Raises:
        BadParameter: not one label a point, k below 1, or points that are their own neighbours.
        TooFewPoints: a row has fewer than k neighbours.

    Source: Doimo et al. 2020, eq. 1; label form as in Serra et al. 2024, sec. 3.
    """
    at_least(1, k=np.min(k))
    width = int(np.max(k))
    if (neighbours[:, 0] == np.arange(len(neighbours))).any() or np.min(neighbours) < 0:
        raise BadParameter("Neighbours are numbers of other points: leave out the point itself, neighbours[:, 1:].")
    if neighbours.shape[1] < width:
        needed = f"An overlap over {width} neighbours needs as many of each point, but only {neighbours.shape[1]}"
        raise TooFewPoints(f"{needed} were searched for. Search for more, or take a smaller k or class fraction.")
    codes = coded(labels, len(neighbours))[1]
    same = codes[neighbours[:, :width]] == codes[:, None]  # (n, width)
    within = np.arange(width) < np.reshape(k, (-1, 1))  # (n or 1, width)
    return (same & within).sum(1) / k


def label_overlap(neighbours: np.ndarray, labels: np.ndarray, class_fraction: float) -> Estimate:
    """Mean share of neighbours with a point's own label, every class with one weight.

    A point has class_fraction · (size of its class) neighbours, at least one: as in the paper, and as
    DADApy's return_label_overlap(class_fraction=..., weighted=True). The interval resamples points with
    their neighbours fixed; the null shuffles the labels.

    Args:
        neighbours: (n, >=k) int, nearest first, the point itself left out.
        labels: (n,) integers or strings.
        class_fraction: above 0, at most 1.

    Returns:
        Estimate with null and null_high.

    Raises:
        BadParameter: not one label a point, another class_fraction, or points that are their own neighbours.
        TooFewPoints: a row has fewer neighbours than the largest class needs.
    """
    return balanced_overlap(neighbours, labels, class_neighbours(labels, class_fraction))


def balanced_overlap(neighbours: np.ndarray, labels: np.ndarray, k: int | np.ndarray) -> Estimate:
    """Mean of `neighbour_overlap`, every class with one weight; interval and null as in `label_overlap`."""
    _, codes, sizes = coded(labels)
    k, weights = np.broadcast_to(k, len(codes)), 1 / sizes[codes]
    rng = np.random.default_rng(0)
    mean = bootstrap_mean(neighbour_overlap(neighbours, codes, k), weights)
    orders = [rng.permutation(len(codes)) for _ in range(N_SHUFFLES)]  # a label takes its k and its weight along
    null = [np.average(neighbour_overlap(neighbours, codes[o], k[o]), weights=weights[o]) for o in orders]
    return replace(mean, **null_of(null))


def redraw(
    points: np.ndarray | torch.Tensor, neighbours: np.ndarray, rng: np.random.Generator
) -> tuple[torch.Tensor, np.ndarray]:
    """Draw a new sample of as many points from where the old ones lie.

    A point is drawn with replacement, and moves along the differences to its NEAR nearest neighbours, by a normal
    random share of each, of deviation STEP. So it stays on the surface that the points lie on, whatever the dimension,
    and no two points of the sample are identical: each such pair would be a density peak.

    Args:
        points: (n, d) float, no two of them identical.
        neighbours: (n, >=NEAR) int, nearest first, the point itself left out.
        rng: draws.

    Returns:
        The sample, (n, d) float64, and (n,) int, the point that each of its points was drawn from.

    Source: smoothed bootstrap, Silverman and Young 1987.
    """
    points, source = as_matrix(points, "the points").double(), rng.integers(len(neighbours), size=len(neighbours))
    shares = torch.as_tensor(rng.normal(0, STEP, (NEAR, len(source), 1)), device=points.device)
    sample = points[source]  # a copy
    for share, neighbour in zip(shares, neighbours[source].T, strict=False):  # one at a time: (n, d) numbers are many
        sample += share * (points[neighbour] - points[source])
    return sample, source


def class_neighbours(labels: np.ndarray, class_fraction: float) -> np.ndarray:
    """Return (n,) int, the neighbours each point's overlap takes: a share of its class, at least one.

    Raises BadParameter for a share outside (0, 1].
    """
    if not 0 < class_fraction <= 1:
        raise BadParameter(f"class_fraction={class_fraction} must be a share, above 0 and at most 1.")
    _, codes, sizes = coded(labels)
    return np.maximum((sizes * class_fraction).astype(int), 1)[codes]


def as_matrix(points: np.ndarray | torch.Tensor, where: str) -> torch.Tensor:
    """Return the points, an array, table or tensor, as a detached (n, d) tensor of finite floats.

    Raises:
        BadStates: another shape or dtype, or rows that are not finite (the message names the first few).
    """
    try:
        points = torch.as_tensor(points if isinstance(points, torch.Tensor) else np.ascontiguousarray(points)).detach()
    except (TypeError, ValueError) as error:  # ragged, or no numbers
        raise BadStates(f"{where}: {type(points).__name__} is no matrix of floats: {error}") from error
    if points.ndim != 2 or not points.is_floating_point() or 0 in points.shape:
        form = f"shape {tuple(points.shape)} of {points.dtype}"
        raise BadStates(f"{where}: {form} is no matrix of floats. Give one layer at a time, a row per point.")
    largest = torch.linalg.vector_norm(points, torch.inf, dim=1)  # (n,), NaN where there is one
    if bad := torch.nonzero(~torch.isfinite(largest)).flatten().tolist():
        advice = "Extract them again in float32; half precision overflows beyond 65,504."
        raise BadStates(f"{where}: {len(bad)} of {len(points)} rows hold NaN or infinity, first {bad[:5]}. {advice}")
    return points
