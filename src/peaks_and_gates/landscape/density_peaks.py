"""The landscape of hidden states: intrinsic dimension, density peaks, and the labels they carry.

layer = landscape(hidden_states, {"subject": subjects, "answer": answers})
layer.n_peaks, layer.core_fraction, layer.adjusted_rand_index["subject"].value

Gride, the k-NN density and the peaks (ADP) are in `adp`; the neighbours are searched once for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score

from peaks_and_gates.errors import BadParameter, BadStates, TooFewPoints, UnknownName
from peaks_and_gates.landscape import adp
from peaks_and_gates.landscape.neighbours import (
    as_matrix,
    class_neighbours,
    label_overlap,
    nearest_neighbours,
    restrict_to,
)
from peaks_and_gates.statistics import Estimate, adjusted_rand_index, at_least, coded, normal_estimate, subsampled

K_MAX = 128  # the ID curve of the paper ends at ranks 64 and 128
CLASS_FRACTION = 0.3  # label overlap: neighbours per point, as a share of its class


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

    @property
    def most_neighbours(self) -> int:
        """Neighbours of a point that the recipe looks at."""
        return max(2 ** (self.gride_scale + 1), self.k)


# The paper's released code and the script that drew its figures differ; the book reports both.
RECIPES = {"released": Recipe(gride_scale=4, z=1.6, k=16), "figures": Recipe(gride_scale=3, z=1.68, k=16)}


@dataclass(frozen=True)
class Landscape:
    """What one layer looks like.

    Attributes:
        recipe: the settings.
        kept: (n,) int, rows of the hidden states that equal no earlier row; every array below is over these.
        n_dropped: rows identical to an earlier one.
        distances: (n, k) float64, to the neighbours, ascending.
        neighbours: (n, k) int, indices among the kept points, nearest first, the point itself left out.
        intrinsic_dimension: (scales,) float; NaN where Gride finds none (`dimensions`).
        intrinsic_dimension_error: (scales,) float, standard errors.
        log_density: (n,) float.
        assignment: (n,) int, the peak of each point, 0 … n_peaks - 1.
        core: (n,) bool, at least as dense as the highest saddle of its peak (not in the halo).
        saddle_log_density: (n_peaks, n_peaks) float, highest border of two peaks; below all log densities
            where two peaks do not touch, and on the diagonal.
        adjusted_rand_index: peaks against each set of labels.
        label_overlap: neighbours against each set of labels, every class with one weight.
    """

    recipe: Recipe
    kept: np.ndarray
    n_dropped: int
    distances: np.ndarray
    neighbours: np.ndarray
    intrinsic_dimension: np.ndarray
    intrinsic_dimension_error: np.ndarray
    log_density: np.ndarray
    assignment: np.ndarray
    core: np.ndarray
    saddle_log_density: np.ndarray
    adjusted_rand_index: dict[str, Estimate]
    label_overlap: dict[str, Estimate]

    @property
    def n(self) -> int:
        """Number of points kept."""
        return len(self.kept)

    @property
    def n_peaks(self) -> int:
        """Number of density peaks."""
        return len(self.saddle_log_density)

    @property
    def core_fraction(self) -> float:
        """Share of points that belong to a peak beyond doubt (ADP with halo: label not -1)."""
        return float(self.core.mean())

    @property
    def peak_centres(self) -> np.ndarray:
        """(n_peaks,) int, the densest point of each peak; of several equally dense, the first."""
        densest_first = np.argsort(-self.log_density, kind="stable")  # (n,)
        return densest_first[np.unique(self.assignment[densest_first], return_index=True)[1]]

    @property
    def peak_log_density(self) -> np.ndarray:
        """(n_peaks,) float, log density at the top of each peak."""
        return self.log_density[self.peak_centres]

    @property
    def gride_ranks(self) -> np.ndarray:
        """(scales,) int, the lower rank of each scale; the upper is twice that."""
        return 2 ** np.arange(len(self.intrinsic_dimension))

    def dimension_at(self, lower_rank: int) -> Estimate:
        """Intrinsic dimension from neighbours lower_rank and 2·lower_rank (the paper's curve: 64)."""
        if lower_rank not in self.gride_ranks:
            raise UnknownName("Gride rank", str(lower_rank), map(str, self.gride_ranks))
        scale = list(self.gride_ranks).index(lower_rank)
        value, error = self.intrinsic_dimension[scale], self.intrinsic_dimension_error[scale]
        return normal_estimate(float(value), float(error), self.n)


def landscape(hidden_states, labels: Mapping[str, np.ndarray], recipe: str = "released", **options) -> Landscape:
    """Describe one layer by one recipe; arguments, errors and source as in `landscapes`."""
    return landscapes(hidden_states, labels, (recipe,), **options)[recipe]


def landscapes(
    hidden_states: np.ndarray | torch.Tensor,
    labels: Mapping[str, np.ndarray],
    recipes: Sequence[str] = ("released", "figures"),
    *,
    k_max: int = K_MAX,
    class_fraction: Mapping[str, float] | None = None,
    where: str = "the hidden states",
    n_bootstrap: int = 200,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> dict[str, Landscape]:
    """Describe one layer by several recipes, from one search for neighbours.

    Identical rows are dropped, the first kept. Then: neighbours, Gride at all scales, and for each recipe
    the density of k neighbours in the ID of its scale, and its peaks.

    Args:
        hidden_states: (n, d), float16, bfloat16, float32 or float64, one row a question.
        labels: by name, (n,) integers or strings.
        recipes: names in RECIPES.
        k_max: neighbours of Gride and ADP, which see no farther (fewer if there are fewer points).
        class_fraction: by label name, neighbours of the label overlap as a share of the class; default 0.3.
        where: named in messages, such as 'smollm2-135m-instruct, layer 12'.
        n_bootstrap: replicates of each interval and null.
        seed: of intervals and nulls.
        device: where to search for neighbours; by default a GPU if there is one.

    Returns:
        A Landscape by recipe name.

    Raises:
        UnknownName: no such recipe.
        BadParameter: labels of another length or with NaN, or a k_max too small for the recipe.
        BadStates: states that are not a matrix of finite floats, or whose distances give no dimension or density.
        TooFewPoints: too few different rows for the recipe.

    Source: Doimo et al. 2024, sec. 2; Gride, Denti et al. 2022; ADP, d'Errico et al. 2021.
    """
    for name in recipes:
        if name not in RECIPES:
            raise UnknownName("recipe", name, RECIPES)
    at_least(1, k_max=k_max)
    states = as_matrix(hidden_states, where)
    kept = first_of_identical(states)
    n = len(kept)
    _check_enough(n, k_max, recipes, where)
    labels = {name: coded(values, len(states), f"The labels '{name}'")[1][kept] for name, values in labels.items()}
    fractions = {name: (class_fraction or {}).get(name, CLASS_FRACTION) for name in labels}
    per_point = [class_neighbours(labels[name], fractions[name]) for name in labels]

    k_max = min(k_max, n - 1)
    k = max([k_max, *(int(counts.max()) for counts in per_point)])
    distances, neighbours = nearest_neighbours(states[kept], k, device=device, where=where)  # (n, k) each
    if not distances[:, 0].all():
        raise BadStates(f"{where}: different rows at distance 0 in float64. Round the states to float32 first.")
    overlap = {name: label_overlap(neighbours, labels[name], fractions[name], n_bootstrap, seed) for name in labels}
    dimension, error = dimensions(distances[:, :k_max], neighbours[:, :k_max])
    described = {}
    for name in recipes:
        peaks = by_recipe(distances[:, :k_max], neighbours[:, :k_max], dimension, RECIPES[name], where)
        described[name] = Landscape(
            **peaks,
            kept=kept,
            n_dropped=len(states) - n,
            distances=distances,
            neighbours=neighbours,
            intrinsic_dimension=dimension,
            intrinsic_dimension_error=error,
            adjusted_rand_index={
                label: adjusted_rand_index(peaks["assignment"], labels[label], n_bootstrap, seed) for label in labels
            },
            label_overlap=overlap,
        )
    return described


def _check_enough(n: int, k_max: int, recipes: Sequence[str], where: str) -> None:
    """Refuse before the search what Gride or the density could not reach."""
    for name in recipes:
        recipe, most = RECIPES[name], RECIPES[name].most_neighbours
        if n <= most:
            raise TooFewPoints(
                f"{where}: {n} different rows, but the recipe '{name}' needs at least {most + 1}: its Gride "
                f"scale {recipe.gride_scale} compares neighbours {2**recipe.gride_scale} and "
                f"{2 ** (recipe.gride_scale + 1)}, its density takes {recipe.k}. Give more questions."
            )
        if k_max < most:
            raise BadParameter(f"k_max={k_max} is too small for the recipe '{name}', which needs {most}.")


def first_of_identical(states: torch.Tensor) -> np.ndarray:
    """Ascending indices of the rows that equal no earlier row; 0.0 and -0.0 are equal."""
    first = {}
    for part, start in zip(states.split(256), range(0, len(states), 256), strict=True):  # a copy of few at a time
        rows = part.cpu() if part.dtype == torch.float64 else part.cpu().float()
        for index, row in enumerate((rows + 0.0).numpy(), start):
            first.setdefault(blake2b(row.tobytes()).digest(), index)
    return np.fromiter(first.values(), dtype=np.int64)


def clustered(
    layer: Landscape, recipes: Mapping[str, Recipe], rows: np.ndarray | None = None, where: str = "the points"
) -> dict[str, Landscape]:
    """A layer's landscape by other settings, or of some of its points, without a new search for neighbours.

    The neighbours of a part are those of the whole that lie in it.  `adjusted_rand_index` and `label_overlap` come back
    empty: they belong to labels, which are not given.

    Args:
        layer: by any recipe.
        recipes: the settings, by any names.
        rows: ascending indices among the kept points; all of them by default.
        where: named in messages.

    Returns:
        A Landscape by the names of `recipes`.

    Raises:
        BadParameter, TooFewPoints: as `neighbours.restrict_to`.
        BookError: as `by_recipe`.
    """
    rows = np.arange(layer.n) if rows is None else rows
    distances, neighbours = restrict_to(layer.distances, layer.neighbours, rows)
    nearest = distances[:, :K_MAX], neighbours[:, :K_MAX]
    dimension, error = dimensions(*nearest)
    part = replace(
        layer,
        kept=layer.kept[rows],
        distances=distances,
        neighbours=neighbours,
        intrinsic_dimension=dimension,
        intrinsic_dimension_error=error,
        adjusted_rand_index={},
        label_overlap={},
    )
    return {name: replace(part, **by_recipe(*nearest, dimension, recipe, where)) for name, recipe in recipes.items()}


def subsample_intervals(
    layer: Mapping[str, Landscape],
    labels: Mapping[str, np.ndarray],
    n_repeats: int = 8,
    fraction: float = 0.9,
    seed: int = 0,
) -> dict[tuple[str, str], Estimate]:
    """What is counted on the peaks of a layer, with intervals from searching for the peaks again on parts of it.

    Args:
        layer: what `landscapes` returned for it.
        labels: as given to it.
        n_repeats: parts.
        fraction: of the points, drawn into a part.
        seed: of the draws.

    Returns:
        By metric ("n_peaks", "core_fraction", "ari_" and the label's name) and recipe.  ARIs carry their null.

    Raises:
        BadParameter: labels of too few hidden states, or as `statistics.subsampled`.
        BookError: as `clustered`.

    Source: `statistics.subsampled`.
    """
    every = next(iter(layer.values()))  # which points are kept, and their neighbours, are the same by every recipe
    for name, values in labels.items():
        if len(values) <= every.kept.max():
            raise BadParameter(f"The labels '{name}' have {len(values)} entries, fewer than there were hidden states.")
    labels = {name: np.asarray(values)[every.kept] for name, values in labels.items()}
    recipes = {name: peaks.recipe for name, peaks in layer.items()}

    def numbers(rows: np.ndarray) -> list[float]:
        counted = []
        for part in clustered(every, recipes, rows, "a part of the points").values():
            agreement = [adjusted_rand_score(values[rows], part.assignment) for values in labels.values()]
            counted += [part.n_peaks, part.core_fraction, *agreement]
        return counted

    values, names = [], []
    for recipe, peaks in layer.items():
        values += [peaks.n_peaks, peaks.core_fraction, *(peaks.adjusted_rand_index[label].value for label in labels)]
        names += [("n_peaks", recipe), ("core_fraction", recipe), *((f"ari_{label}", recipe) for label in labels)]
    intervals = dict(zip(names, subsampled(numbers, every.n, n_repeats, fraction, seed, values), strict=True))
    for (metric, recipe), estimate in intervals.items():
        if metric != "n_peaks":  # a share or an index: its interval ends at 1
            index = layer[recipe].adjusted_rand_index.get(metric.removeprefix("ari_"), Estimate(0, 0, 0, 0))
            estimate = replace(estimate, high=min(estimate.high, 1.0), null=index.null, null_high=index.null_high)
            intervals[metric, recipe] = estimate
    return intervals


def dimensions(distances: np.ndarray, neighbours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gride at every scale that the neighbours reach: dimension and standard error, (scales,) each.

    distances, neighbours: (n, k), as `nearest_neighbours` gives them.  NaN where Gride finds no dimension in
    GRIDE_RANGE: if it lies outside, or all ratios of distances are alike, an end of the range comes back.
    """
    dimension, error = adp.dadapy_gride(distances, neighbours) if adp.has_dadapy() else adp.gride(distances)
    low, high = adp.GRIDE_RANGE
    nothing = (dimension < low + 1e-6) | (dimension > high - 1e-6)
    dimension[nothing] = error[nothing] = np.nan
    return dimension, error


def by_recipe(
    distances: np.ndarray, neighbours: np.ndarray, intrinsic_dimension: np.ndarray, recipe: Recipe, where: str
) -> dict:
    """What a recipe finds among points whose neighbours and Gride dimensions are known, by the names in `Landscape`.

    distances, neighbours: (n, k), as `nearest_neighbours` gives them.  intrinsic_dimension: as `dimensions` does.

    Raises:
        TooFewPoints: fewer neighbours than the recipe needs.
        BadStates: Gride finds no dimension at the recipe's scale, or the densities overflow.
        BookError: as `adp.dadapy_peaks`.
    """
    if distances.shape[1] < recipe.most_neighbours:
        raise TooFewPoints(
            f"{where}: {distances.shape[1]} neighbours of each point are known, but {recipe} needs "
            f"{recipe.most_neighbours}. Give more points or a larger part of them."
        )
    dimension = intrinsic_dimension[recipe.gride_scale]
    if np.isnan(dimension):
        lower = 2**recipe.gride_scale
        raise BadStates(
            f"{where}: Gride finds no intrinsic dimension in {adp.GRIDE_RANGE} from "
            f"neighbours {lower} and {2 * lower}: their distances are equal, or alike for all points. Were the states "
            "rounded, or are they one-hot?"
        )
    if adp.has_dadapy():
        data = adp.dadapy_data(distances, neighbours)
        data.set_id(dimension)
        log_density = data.compute_density_kNN(recipe.k)[0].copy()
    else:
        log_density = adp.knn_log_density(distances, dimension, recipe.k)
    if not np.isfinite(log_density).all():
        raise BadStates(
            f"{where}: densities in {dimension:.3g} dimensions exceed float64. Divide the states by a constant."
        )
    if adp.has_dadapy():
        assignment, saddles, core = adp.dadapy_peaks(data, recipe.z, where)
    else:
        assignment, saddles, core = adp.density_peaks(log_density, neighbours, recipe.k, recipe.z)
    return {
        "recipe": recipe,
        "log_density": log_density,
        "assignment": assignment,
        "core": core,
        "saddle_log_density": saddles,
    }
