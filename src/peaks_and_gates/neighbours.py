"""Euclidean nearest neighbours, in blocks, and the share of them that agree.

distances, indices = nearest_neighbours(hidden_states, k=128)       # (n, k) float64, (n, k) int64

The fast way to all distances is |x|² + |y|² − 2x·y, one matrix product. It loses every digit of a distance
much smaller than the norms. So some of those found are computed again from the differences themselves. Their
error, with a margin, bounds that of the others; where it leaves a rank or a value open, the distance is computed
again, too.
"""

from __future__ import annotations

import numpy as np
import torch

from peaks_and_gates.errors import BadParameter, BadStates, TooFewPoints
from peaks_and_gates.uncertainty import Estimate, at_least, coded, mean_estimate

SLACK = 8  # spare candidates a row; they certify that nothing nearer was left out
SAMPLE, MARGIN = 1024, 4  # distances whose error is looked at; how far the bound lies above the largest
# Largest relative error of a squared distance that is not computed again, by the type of the products.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOAT64_UP_TO = 1e11  # products of coordinates: a second of two cores


def nearest_neighbours(
    points: np.ndarray | torch.Tensor,
    k: int,
    *,
    block: int = 1024,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    where: str = "the points",
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest neighbours of every point, the point itself left out.

    Time is half of one matrix product (the Gram matrix is symmetric); beyond one copy of the points, memory is
    O(n·k + block²). The order is that of float64 brute force on the differences: rows with duplicates,
    near-duplicates, ties or a large common offset are found out by the bound and computed again. The distances have
    ten right digits by products in float64. In float32, which takes half the time and memory, they have at least
    four, mostly six. A distance below 1e-150 times the largest coordinate loses digits, and may be 0.

    Args:
        points: (n, d), float16, bfloat16, float32 or float64.
        k: neighbours of each point, 1 <= k < n.
        block: points in one block of the Gram matrix.
        dtype: of the products, float64 or float32; by default float64 where it takes two cores about a second.
        device: where to compute; by default a GPU if there is one, else where the points are.
        where: named in messages, such as 'smollm2-135m-instruct, layer 12'.

    Returns:
        distances (n, k) float64 and indices (n, k) int64, nearest first, equal distances by lower index.

    Raises:
        BadStates: the points are not a matrix of finite floats, or farther apart than float64 can say.
        BadParameter: k or block below 1, or another dtype.
        TooFewPoints: k >= n.
    """
    points = as_matrix(points, where).to(device or ("cuda" if torch.cuda.is_available() else None))
    n, d = points.shape
    at_least(1, k=k, block=block)
    if k >= n:
        choice = f"Choose k between 1 and {n - 1}, or give" if n > 1 else "Give"
        raise TooFewPoints(
            f"{where}: {n} points have at most {n - 1} neighbours each, but k={k} was asked for. "
            f"{choice} at least {k + 1} points."
        )
    if dtype not in (None, *TOLERANCE):
        raise BadParameter(f"{where}: products are taken in torch.float64 or torch.float32, not in {dtype}.")
    dtype = dtype or (torch.float64 if n * n * d <= FLOAT64_UP_TO else torch.float32)
    scale = _power_of_two(points)
    centred = _centred(points, scale, dtype)  # (n, d)
    norms = torch.cat([torch.linalg.vecdot(part, part) for part in centred.split(_chunk(points))])  # (n,)
    found, index = _smallest(centred, norms, min(k + SLACK, n - 1), block)  # (n, m) each
    bound = _relative_bound(points, scale, norms, found, index)
    last = found.amax(1)  # what was rejected was found to be no nearer
    squared = torch.empty(found.shape, dtype=torch.float64, device=points.device)
    for rows in torch.arange(n, device=points.device).split(block):  # a block at a time: sorting takes many copies
        errors = bound * (norms[rows, None] + norms[index[rows]])
        squared[rows], index[rows] = _right_order(points, scale, rows, errors, found[rows], index[rows])

    if index.shape[1] < n - 1:  # points were rejected; perhaps some that are as near
        doubtful = last - bound * (norms + norms.max()) <= squared[:, k - 1] * (1 + TOLERANCE[dtype])
        squared, index = squared[:, :k].contiguous(), index[:, :k].contiguous()
        for row in torch.nonzero(doubtful).flatten().tolist():
            all_others = _squared(centred[row : row + 1], centred, norms[row : row + 1], norms)[0]
            all_others[row] = torch.inf
            lowest = all_others - bound * (norms[row] + norms)
            near = torch.nonzero(lowest <= squared[row, -1] * (1 + TOLERANCE[dtype])).flatten()  # ascending
            exact = _direct(points, scale, torch.full_like(near, row), near)
            order = exact.sort(stable=True).indices[:k]
            squared[row], index[row] = exact[order], near[order]
    distances = squared[:, :k].sqrt() / scale
    if torch.isinf(distances[:, -1]).any():
        raise BadStates(
            f"{where}: some distances exceed the largest number of float64. Divide the points by a constant."
        )
    return distances.cpu().numpy(), index[:, :k].cpu().numpy()


def neighbour_overlap(neighbours: np.ndarray, labels: np.ndarray, k: int | np.ndarray) -> np.ndarray:
    """Share of each point's k nearest neighbours that carry its own label.

    Args:
        neighbours: (n, >=k) int, nearest first, the point itself left out.
        labels: (n,) integers or strings.
        k: one number for all points, or (n,) int.

    Returns:
        (n,) float in [0, 1].

    Raises:
        BadParameter: not one neighbour list and one label a point, or a k below 1.
        TooFewPoints: a row has fewer than k neighbours.

    Source: Doimo et al. 2020, eq. 1; label form as in Serra et al. 2024, sec. 3.
    """
    neighbours = _as_neighbours(neighbours, k)
    return _shares(neighbours, coded(labels, len(neighbours))[1], k)


def label_overlap(
    neighbours: np.ndarray,
    labels: np.ndarray,
    class_fraction: float,
    n_bootstrap: int = 200,
    seed: int = 0,
    n_shuffles: int = 50,
) -> Estimate:
    """Mean share of neighbours with a point's own label, every class with one weight.

    A point has class_fraction · (size of its class) neighbours, at least one: as in the paper, and as
    DADApy's return_label_overlap(class_fraction=..., weighted=True). The interval resamples points with
    their neighbours fixed; the null shuffles the labels.

    Args:
        neighbours: (n, >=k) int, nearest first, the point itself left out.
        labels: (n,) integers or strings.
        class_fraction: from 0 to 1.
        n_bootstrap: replicates of the interval.
        seed: of interval and null.
        n_shuffles: replicates of the null, a mean over all points and therefore steady.

    Returns:
        Estimate with null and null_high.

    Raises:
        BadParameter: not one neighbour list and one label a point, a fraction outside its range, or no replicates.
        TooFewPoints: a row has fewer neighbours than the largest class needs.
    """
    at_least(1, n_shuffles=n_shuffles)
    _, codes, sizes = coded(labels)
    k = class_neighbours(codes, class_fraction)
    neighbours = _as_neighbours(neighbours, k)
    weights = 1 / sizes[codes]
    rng = np.random.default_rng(seed)
    estimate = mean_estimate(neighbour_overlap(neighbours, codes, k), weights, n_bootstrap, seed)
    null = []
    for _ in range(n_shuffles):
        order = rng.permutation(len(codes))  # a label takes its k and its weight along
        null.append(np.average(_shares(neighbours, codes[order], k[order]), weights=weights[order]))
    value, low, high, n = estimate.value, estimate.low, estimate.high, estimate.n
    return Estimate(value, low, high, n, float(np.mean(null)), float(np.percentile(null, 97.5)))


def among(distances: np.ndarray, neighbours: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest neighbours among some of the points, from those among all of them.

    Args:
        distances: (n, k) float, ascending.
        neighbours: (n, k) int, nearest first, the point itself left out.
        rows: (m,) ascending int, the points kept.

    Returns:
        distances (m, k') and neighbours (m, k'), the latter as places in `rows`; k' is the largest number that every
        kept point has left, about k · m / n.

    Raises:
        BadParameter: rows that do not ascend or are no points, or other distances than neighbours.
        TooFewPoints: no points, or some kept point has no neighbour left.
    """
    if np.shape(distances) != np.shape(neighbours):
        raise BadParameter(f"Distances {np.shape(distances)} do not belong to neighbours {np.shape(neighbours)}.")
    rows = np.asarray(rows)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise BadParameter(f"Points are kept by their numbers, got {rows.dtype} of shape {rows.shape}.")
    if not rows.size:
        raise TooFewPoints("No point is kept, and none has neighbours: give more points or a larger part of them.")
    if rows[0] < 0 or rows[-1] >= len(neighbours) or (np.diff(rows) <= 0).any():
        raise BadParameter(f"The points kept must ascend, none twice, from 0 to at most {len(neighbours) - 1}.")
    place = np.full(len(neighbours), -1)
    place[rows] = np.arange(len(rows))
    local = place[neighbours[rows]]  # (m, k), -1 where a neighbour was left out
    k = int((local >= 0).sum(1).min())
    if k == 0:
        raise TooFewPoints(f"{len(rows)} of {len(neighbours)} points leave some point without a neighbour.")
    first = np.argsort(local < 0, axis=1, kind="stable")[:, :k]  # those kept, in their order
    return np.take_along_axis(distances[rows], first, 1), np.take_along_axis(local, first, 1)


def point_overlap(neighbours_a: np.ndarray, neighbours_b: np.ndarray, k: int) -> np.ndarray:
    """Share of each point's k nearest neighbours that two representations have in common.

    Args:
        neighbours_a: (n, >=k) int, nearest first, the point itself left out.
        neighbours_b: the same points elsewhere: another layer, model or checkpoint.
        k: neighbours compared (the paper: 30).

    Returns:
        (n,) float in [0, 1].

    Raises:
        BadParameter: not the same number of points, no neighbour lists, or a k below 1.
        TooFewPoints: a row has fewer than k neighbours.

    Source: Doimo et al. 2020, eq. 1.
    """
    if len(neighbours_a) != len(neighbours_b):
        raise BadParameter(f"Overlap needs the same points twice, got {len(neighbours_a)} and {len(neighbours_b)}.")
    at_least(1, k=k)
    neighbours_a, neighbours_b = _as_neighbours(neighbours_a, k), _as_neighbours(neighbours_b, k)
    # (n, 2k) in ascending order, so that a shared neighbour stands beside its copy
    both = np.sort(np.hstack([neighbours_a[:, :k], neighbours_b[:, :k]]), axis=1)
    return (both[:, 1:] == both[:, :-1]).sum(1) / k


def class_neighbours(labels: np.ndarray, class_fraction: float) -> np.ndarray:
    """Return (n,) int, the neighbours each point's overlap takes: a share of its class, at least one.

    Raises BadParameter for a share outside [0, 1] and for labels that are not one a point.
    """
    if not 0 <= class_fraction <= 1:
        raise BadParameter(f"class_fraction={class_fraction} is a share of each point's class: from 0 to 1.")
    _, codes, sizes = coded(labels)
    return np.maximum((sizes * class_fraction).astype(int), 1)[codes]


def as_matrix(points: np.ndarray | torch.Tensor, where: str) -> torch.Tensor:
    """Return the points as a detached (n, d) tensor of finite floats.

    Raises:
        BadStates: another shape or dtype, or rows that are not finite (the message names the first few).
    """
    try:
        points = torch.as_tensor(points).detach()
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, names, dtypes and strides torch has not
        raise BadStates(f"{where}: not a matrix of floats ({error}). Give an array of numpy or torch.") from error
    dense = points.layout == torch.strided and not points.is_meta
    if points.ndim != 2 or points.dtype not in FLOATS or 0 in points.shape or not dense:
        raise BadStates(
            f"{where}: expected a matrix (points, dimensions) of floats, got shape {tuple(points.shape)} "
            f"of {points.dtype}{'' if dense else ' without dense values'}. Give one layer at a time, one row a point."
        )
    largest = torch.linalg.vector_norm(points, torch.inf, dim=1)  # NaN where there is one
    bad = torch.nonzero(~torch.isfinite(largest)).flatten().tolist()
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        raise BadStates(
            f"{where}: {len(bad)} of {len(points)} rows hold NaN or infinity (rows {shown}). "
            "Extract them again in float32; half precision overflows beyond 65,504."
        )
    return points


def _as_neighbours(neighbours: np.ndarray, k: int | np.ndarray) -> np.ndarray:
    """Neighbours as an (n, >=k) array of places among the points.  Raises BadParameter, TooFewPoints."""
    neighbours, k = np.asarray(neighbours), np.asarray(k)
    if neighbours.ndim != 2 or neighbours.dtype.kind not in "iu":
        raise BadParameter(
            f"Neighbours are integers (points, k), as `nearest_neighbours` gives them second; got {neighbours.dtype} "
            f"of shape {neighbours.shape}."
        )
    if k.shape not in ((), (len(neighbours),)) or k.dtype.kind not in "iu" or not k.size or k.min() < 1:
        raise BadParameter(
            f"The neighbours compared are one whole number from 1, or one for each of {len(neighbours)} points; got "
            f"{k.dtype} of shape {k.shape}."
        )
    if neighbours.shape[1] < k.max():
        raise TooFewPoints(
            f"An overlap over {k.max()} neighbours was asked for, but only {neighbours.shape[1]} were found. "
            f"Search with k >= {k.max()}, or take a smaller k or class fraction."
        )
    if not neighbours.size or neighbours.min() < 0 or neighbours.max() >= len(neighbours):
        raise BadParameter(f"Neighbours of {len(neighbours)} points lie among them, from 0; some of these do not.")
    return neighbours


def _shares(neighbours: np.ndarray, codes: np.ndarray, k: int | np.ndarray) -> np.ndarray:
    """What `neighbour_overlap` returns."""
    width = int(np.max(k))
    same = codes[neighbours[:, :width]] == codes[:, None]  # (n, width)
    within = np.arange(width) < np.reshape(k, (-1, 1))
    return (same & within).sum(1) / k


def _power_of_two(points: torch.Tensor) -> float:
    """Return the power of two that brings the largest coordinate near 1, so that no square overflows."""
    largest = float(torch.linalg.vector_norm(points, torch.inf))
    return 2.0 ** -int(np.clip(np.frexp(largest)[1], -1000, 1000)) if largest else 1.0


def _chunk(points: torch.Tensor) -> int:
    """Rows of 2 MB in float64, which stay in a CPU's cache between one step and the next; a GPU takes more at once."""
    return max(1, 2 ** (18 if points.device.type == "cpu" else 24) // points.shape[1])


def _centred(points: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """The points about their mean, for a common offset would swell the norms; no float64 copy of them all is made."""
    parts = points.split(_chunk(points))
    mean = sum((part.double() * scale).sum(0) for part in parts) / len(points)
    centred = torch.empty(points.shape, dtype=dtype, device=points.device)
    for part, place in zip(parts, centred.split(_chunk(points)), strict=True):
        place.copy_(torch.add(-mean, part, alpha=scale))  # in float64, whatever the points are
    return centred


def _squared(rows, columns, row_norms, column_norms) -> torch.Tensor:
    """Squared distances of all rows to all columns, (rows, columns), by the Gram matrix."""
    return (row_norms[:, None] + column_norms).addmm_(rows, columns.T, alpha=-2)


def _smallest(centred, norms, m: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the m smallest squared distances of every row and their columns, (n, m) each, in no order."""
    n = len(centred)
    values = torch.full((n, m), torch.inf, dtype=centred.dtype, device=centred.device)
    index = torch.zeros((n, m), dtype=torch.int64, device=centred.device)

    def merge(rows: slice, found: torch.Tensor, first_column: int) -> None:
        best = torch.cat([values[rows], found], 1).topk(m, 1, largest=False, sorted=False)
        old = best.indices < m
        columns = index[rows].gather(1, best.indices.clamp(max=m - 1))
        values[rows], index[rows] = best.values, torch.where(old, columns, best.indices + (first_column - m))

    for i in range(0, n, block):
        rows = slice(i, min(i + block, n))
        for j in range(i, n, block):  # the upper triangle of blocks; each serves its rows and its columns
            columns = slice(j, min(j + block, n))
            found = _squared(centred[rows], centred[columns], norms[rows], norms[columns])
            if i == j:
                found.fill_diagonal_(torch.inf)  # the point itself
            else:
                merge(columns, found.T, i)
            merge(rows, found, j)
    return values, index


def _relative_bound(points, scale, norms, squared, index) -> float:
    """Bound the error of squared distances, in units of |x|² + |y|², by what it is in some of those found."""
    rows = torch.arange(0, len(points), max(1, len(points) // SAMPLE), device=index.device)
    columns = index[rows, -1]
    error = (squared[rows, -1] - _direct(points, scale, rows, columns)).abs() / (norms[rows] + norms[columns])
    return MARGIN * max(float(error.nan_to_num(0).max()), torch.finfo(norms.dtype).eps)


def _right_order(points, scale, rows, bound, squared, index) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort some rows' candidates by squared distance; where the bound leaves value or rank open, compute again."""
    tolerance = TOLERANCE[squared.dtype]
    squared, order = squared.double().sort(1)
    index, bound = index.gather(1, order), bound.gather(1, order)
    reach = bound.amax(1, keepdim=True)  # one bound a row, so that only adjacent ranks can be in doubt
    close = squared.diff(dim=1) <= 2 * reach
    unsure = bound >= tolerance * squared
    unsure[:, 1:] |= close
    unsure[:, :-1] |= close
    squared[unsure] = _direct(points, scale, rows[unsure.nonzero()[:, 0]], index[unsure])
    order = index.sort(1).indices  # by index first, then stably by distance: ties go to the lower index
    order = order.gather(1, squared.gather(1, order).sort(dim=1, stable=True).indices)
    return squared.gather(1, order), index.gather(1, order)


def _direct(points, scale: float, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Squared distances of pairs of points, (pairs,), by their float64 differences."""
    found = torch.empty(len(rows), dtype=torch.float64, device=points.device)
    chunk = _chunk(points)
    for a, b, place in zip(rows.split(chunk), columns.split(chunk), found.split(chunk), strict=True):
        difference = (points[a].double() * scale).sub_(points[b], alpha=scale)
        place.copy_(difference.square_().sum(1))
    return found
