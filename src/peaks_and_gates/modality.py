"""How images and text lie in the hidden states: apart or mixed, and which token carries the class.

gap = cosine_gap(text, image)                       # gap.median.value near 0: nearly orthogonal
mixing = modality_homogeneity(text, image)          # mixing["clean"].value near 1: no peak holds both
overlap = class_overlap(states, classes)            # near 1: the token knows the class
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.metrics import homogeneity_score

from peaks_and_gates.errors import BadParameter, BadStates, TooFewPoints
from peaks_and_gates.landscape.density_peaks import Recipe, clustered, first_of_identical, landscape
from peaks_and_gates.landscape.neighbours import as_matrix, nearest_neighbours, neighbour_overlap
from peaks_and_gates.statistics import PERCENTILES, Estimate, at_least, bootstrap_mean, coded, subsampled

BINS = 2**20  # of |cos| in [0, 1]: medians are right to 5e-7
LEAST_NORM = 1e-150  # squares of what is shorter lose digits
THRESHOLDS = 256  # values of |cos| between which a replicate of the bootstrap is interpolated

# The paper's two published settings; Gride scale 3 is what the code calls ids[3].
SETTINGS = {"clean": Recipe(gride_scale=3, z=1.65, k=16), "main": Recipe(gride_scale=3, z=1.2, k=15)}


@dataclass(frozen=True)
class Gap:
    """Cosines between the modalities.

    Attributes:
        median: of |cos| over all pairs, with its interval over examples.
        lower_quartile: of |cos| over all pairs.
        upper_quartile: of |cos| over all pairs.
        n_pairs: n (n - 1).
    """

    median: Estimate
    lower_quartile: float
    upper_quartile: float
    n_pairs: int


def cosine_gap(
    text: np.ndarray | torch.Tensor,
    image: np.ndarray | torch.Tensor,
    *,
    block: int = 1024,
    n_bootstrap: int = 200,
    seed: int = 0,
    device: str | torch.device | None = None,
    where: str = "the hidden states",
) -> Gap:
    """Median and quartiles of |cos| between text vectors and image vectors of different examples.

    Taken over all n (n - 1) pairs of text i and image j with i ≠ j.  The authors' code takes half of them, those with
    j < i, which makes the result depend on the order of the examples; the expectation is the same.  Quantiles are of
    the lower kind (a pair's own value, no mean of two), exact up to one bin, 1e-6.  Memory is that of the vectors plus
    O(block² + n): no (n, n) matrix is stored.

    The interval resamples examples, each with its text and its image.  A pair would weigh the product of its two
    multiplicities; their linear part is used (multiplicity + multiplicity - 1), which is right up to O(1/n).

    Args:
        text: (n, d) float, one text token's vector an example.
        image: (n, d) float, one image token's vector an example, the same examples in the same order.
        block: examples in one block of cosines.
        n_bootstrap: replicates of the interval.
        seed: of the bootstrap.
        device: where to compute; by default where the vectors are.
        where: named in messages, such as 'chameleon, layer 12'.

    Returns:
        Gap.

    Raises:
        BadStates: not matrices of finite floats, a vector of zeros, or one whose square float64 does not hold.
        BadParameter: shapes that differ, or no replicates.
        TooFewPoints: fewer than two examples.

    Source: Serra et al. 2024, fig. 2 (left); projection of a U-statistic, Hoeffding 1948.
    """
    at_least(1, block=block, n_bootstrap=n_bootstrap)
    text, image = _directions(text, image, device, where)
    n = len(text)
    counts = torch.zeros(BINS + 1, dtype=torch.int64, device=text.device)  # the last is for pairs of one example
    for _, _, bins in _binned(text, image, block):
        counts += torch.bincount(bins.flatten(), minlength=BINS + 1)
    below = counts[:BINS].cumsum(0).cpu().numpy()  # pairs up to the end of each bin
    n_pairs = n * (n - 1)

    def bin_at(quantile: float | np.ndarray) -> np.ndarray:
        return np.searchsorted(below, np.ceil(np.asarray(quantile) * n_pairs).clip(1))

    lower, median, upper = (bin_at([0.25, 0.5, 0.75]) + 0.5) / BINS
    grid = np.unique(bin_at(np.linspace(0, 1, THRESHOLDS + 1)))  # bins at even steps of probability
    per_example = _counts_per_example(text, image, block, grid)  # (n, len(grid))
    multiplicity = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_bootstrap)
    share_below = np.maximum.accumulate((multiplicity - 0.5) @ per_example / n_pairs, axis=1)
    replicates = [np.interp(0.5, shares, (grid + 0.5) / BINS) for shares in share_below]
    low, high = np.percentile(replicates, PERCENTILES)
    return Gap(Estimate(float(median), float(low), float(high), n), float(lower), float(upper), n_pairs)


def modality_homogeneity(
    text: np.ndarray | torch.Tensor,
    image: np.ndarray | torch.Tensor,
    *,
    n_repeats: int = 8,
    fraction: float = 0.9,
    n_shuffles: int = 50,
    seed: int = 0,
    device: str | torch.device | None = None,
    where: str = "the hidden states",
) -> dict[str, Estimate]:
    """How pure the density peaks are in modality: 1 if none holds both, 0 if modality and peak are independent.

    Homogeneity is 1 - H(modality | peak) / H(modality).  It cannot fall when a peak is split, so many small peaks are
    pure by chance: read it beside its null.  Both published settings are computed on vectors scaled to length one, in
    float32, identical ones dropped:

    `clean`: cosine distance, 128 neighbours, Gride scale 3 (ranks 8 and 16), density of 16 neighbours, Z = 1.65.
    `main`: Euclidean distance, 100 neighbours, Gride scale 3, density of 15, Z = 1.2.

    The metrics do not differ in effect: 1 - cos is half the squared Euclidean distance of unit vectors, which halves
    the intrinsic dimension and shifts the log density by a constant, so neighbours and peaks stay; and with a density
    of a fixed k, ADP needs no neighbour beyond it.  Hence one search with the Euclidean distance and 128 neighbours.

    The interval searches for the peaks again on random parts of the vectors (`statistics.subsampled`), and ends at 0
    and 1; the null shuffles the modality.

    Args:
        text: (n, d) float, one text token's vector an example.
        image: (n, d) float, one image token's vector an example.
        n_repeats: parts.
        fraction: of the vectors, drawn into a part.
        n_shuffles: replicates of the null.
        seed: of parts and null.
        device: where to search for neighbours; by default where the vectors are.
        where: named in messages.

    Returns:
        By setting, 'clean' and 'main', an Estimate with null and null_high; n counts vectors of both modalities.

    Raises:
        BadStates: not matrices of finite floats, a vector of zeros, or a direction that both modalities share.
        BadParameter: shapes that differ.
        TooFewPoints: too few different vectors for Gride and density, in all or in a part (below 19, at 0.9).

    Source: Serra et al. 2024, fig. 2 (right); Rosenberg and Hirschberg 2007, eq. 1.
    """
    at_least(1, n_shuffles=n_shuffles)
    text, image = _directions(text, image, device, where)
    states, modality = torch.cat([text, image]), np.repeat([0, 1], [len(text), len(image)])
    kept = first_of_identical(states)
    if len(kept) < len(first_of_identical(text)) + len(first_of_identical(image)):
        raise BadStates(
            f"{where}: text and image share a direction exactly. Were the same positions taken for both, or are they "
            "set to one vector?"
        )
    needed = max(max(2 ** (recipe.gride_scale + 1), recipe.k) for recipe in SETTINGS.values()) + 1
    if round(fraction * len(kept)) < needed:
        raise TooFewPoints(
            f"{where}: {len(kept)} different vectors of both modalities, but a part of {fraction:.0%} needs {needed}. "
            "Give more examples."
        )
    whole = landscape(states, {}, "figures", device=device, where=where)
    modality = modality[whole.kept]
    everything = clustered(whole, SETTINGS, where=where).values()

    def numbers(rows: np.ndarray) -> list[float]:
        parts = clustered(whole, SETTINGS, rows, f"a part of {where}")
        return [homogeneity_score(modality[rows], part.assignment) for part in parts.values()]

    values = [homogeneity_score(modality, found.assignment) for found in everything]
    spread = subsampled(numbers, whole.n, n_repeats, fraction, seed, values)
    rng = np.random.default_rng(seed)
    described = {}
    for name, found, estimate in zip(SETTINGS, everything, spread, strict=True):
        null = [homogeneity_score(rng.permutation(modality), found.assignment) for _ in range(n_shuffles)]
        described[name] = replace(
            estimate,
            low=max(estimate.low, 0.0),
            high=min(estimate.high, 1.0),
            null=float(np.mean(null)),
            null_high=float(np.percentile(null, PERCENTILES[1])),
        )
    return described


def class_overlap(
    states: np.ndarray | torch.Tensor,
    labels: np.ndarray,
    k: int = 30,
    *,
    n_bootstrap: int = 200,
    n_shuffles: int = 50,
    seed: int = 0,
    device: str | torch.device | None = None,
    where: str = "the hidden states",
) -> Estimate:
    """Mean share of a vector's k nearest neighbours that carry its class, every class with one weight: χ^{l,gt}.

    Neighbours are Euclidean, the vector itself left out.  On the last text token at the last layer it is the paper's
    χ^{out,gt}.  The paper has k = 30 and stores 40 neighbours; the search is exact, so storing more changes nothing.
    With balanced classes the weights change nothing.  The interval resamples vectors with their neighbours fixed; the
    null shuffles the classes.

    Args:
        states: (n, d) float, one token's vector an example.
        labels: (n,) int or str, the classes.
        k: neighbours.
        n_bootstrap: replicates of the interval.
        n_shuffles: replicates of the null.
        seed: of both.
        device: where to search for neighbours; by default where the states are.
        where: named in messages.

    Returns:
        Estimate with null and null_high.

    Raises:
        BadStates: not a matrix of finite floats.
        BadParameter: not one label a vector, or k or a number of replicates below 1.
        TooFewPoints: a class has k vectors or fewer, so that its overlap could not reach 1.

    Source: Serra et al. 2024, fig. 4; Doimo et al. 2020, eq. 1; weights as DADApy's return_label_overlap.
    """
    states = as_matrix(states, where)
    at_least(1, k=k, n_shuffles=n_shuffles)
    names, codes, sizes = coded(labels, len(states), f"{where}: the labels")
    if sizes.min() <= k:
        raise TooFewPoints(
            f"{where}: class '{names[sizes.argmin()]}' has {sizes.min()} vectors, so at most {sizes.min() - 1} "
            f"neighbours can share it, but k={k}. Give {k + 1} vectors of each class, or k <= {sizes.min() - 1}."
        )
    neighbours = nearest_neighbours(states, k, device=device, where=where)[1]
    estimate = bootstrap_mean(neighbour_overlap(neighbours, codes, k), 1 / sizes[codes], n_bootstrap, seed)
    rng, null = np.random.default_rng(seed), []
    for _ in range(n_shuffles):
        shuffled = rng.permutation(codes)
        null.append(np.average(neighbour_overlap(neighbours, shuffled, k), weights=1 / sizes[shuffled]))
    return replace(estimate, null=float(np.mean(null)), null_high=float(np.percentile(null, PERCENTILES[1])))


def _directions(text, image, device, where: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sets of vectors at length one, (n, d) float32, checked to belong together."""
    pair = [as_matrix(text, f"{where}, text").to(device), as_matrix(image, f"{where}, image").to(device)]
    if pair[0].shape != pair[1].shape:
        raise BadParameter(
            f"{where}: text vectors {tuple(pair[0].shape)}, image vectors {tuple(pair[1].shape)}: give one of each an "
            "example, in the same order."
        )
    if len(pair[0]) < 2:
        raise TooFewPoints(f"{where}: a pair of different examples needs two examples, got {len(pair[0])}.")
    norms = [torch.linalg.vector_norm(vectors, dim=1, keepdim=True, dtype=torch.float64) for vectors in pair]
    if any(norm.isinf().any() or ((norm > 0) & (norm < LEAST_NORM)).any() for norm in norms):
        raise BadStates(
            f"{where}: the squares of some vectors exceed float64 or vanish in it. Scale them all by a constant."
        )
    if not all(norm.all() for norm in norms):
        raise BadStates(f"{where}: a vector of zeros has no direction. Was this position knocked out, or never filled?")
    first, second = ((vectors / norm).float() for vectors, norm in zip(pair, norms, strict=True))
    return first, second


def _binned(text: torch.Tensor, image: torch.Tensor, block: int) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Yield rows, columns and the bin of |cos| of each of their pairs, int64; pairs of one example get the bin BINS."""
    n = len(text)
    for i in range(0, n, block):
        for j in range(0, n, block):
            rows, columns = slice(i, min(i + block, n)), slice(j, min(j + block, n))
            bins = ((text[rows] @ image[columns].T).abs() * BINS).long().clamp_(max=BINS - 1)
            if i == j:
                bins.fill_diagonal_(BINS)
            yield rows, columns, bins


def _counts_per_example(text: torch.Tensor, image: torch.Tensor, block: int, grid: np.ndarray) -> np.ndarray:
    """For each example the pairs it is in, as text or as image, whose bin is at most each of `grid`; (n, grid) int."""
    width = len(grid) + 1  # the last is for pairs of one example
    place = torch.from_numpy(np.searchsorted(grid, np.arange(BINS + 1))).to(text.device)
    counts = torch.zeros((len(text), width), dtype=torch.int64, device=text.device)
    for rows, columns, bins in _binned(text, image, block):
        places = place[bins]  # (rows, columns)
        for part, at in ((rows, places), (columns, places.T)):
            own = torch.arange(len(at), device=at.device)[:, None] * width
            counts[part] += torch.bincount((at + own).flatten(), minlength=len(at) * width).view(len(at), width)
    return counts[:, :-1].cumsum(1).cpu().numpy()
