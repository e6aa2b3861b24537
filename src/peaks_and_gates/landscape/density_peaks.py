"""The landscape of hidden states: intrinsic dimension, density peaks, and the labels they carry.

layer = landscape(hidden_states, {"subject": subjects, "answer": answers})
layer.n_peaks, layer.core_fraction, layer.adjusted_rand_index["subject"].value

Gride, the k-NN density and the peaks (ADP) are in `adp`; the neighbours are searched once for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import adjusted_rand_score

from ..errors import BadParameter, BadStates, TooFewPoints, UnknownName
from ..statistics import Estimate, adjusted_rand_index, at_least, coded, normal_estimate, redrawn
from . import adp
from .neighbours import as_matrix, class_neighbours, label_overlap, nearest_neighbours, redraw

K_MAX = 128  # the ID curve of the paper ends at ranks 64 and 128
ENDS = {"n_peaks": (1, np.inf), "core_fraction": (0, 1)}  # what they can be; an index lies between -1 and 1
CLASS_FRACTION = 0.3  # label overlap: neighbours per point, as a share of its class


@dataclass(frozen=True)
class Recipe:
    """Settings of the clustering.

    Attributes:
        gride_scale: s sets the intrinsic dimension from neighbours 2^s and 2^(s+1).
        z: significance below which two peaks are merged.
        k: neighbours of the density.

    Raises:
        BadParameter: a scale below 0, k below 1, a z that is negative or not finite, or more neighbours than K_MAX.
    """

    gride_scale: int
    z: float
    k: int

    def __post_init__(self) -> None:
        """Refuse what would choose neighbours or merge peaks in silence."""
        at_least(0, gride_scale=self.gride_scale)
        at_least(1, k=self.k)
        if not (0 <= self.z < np.inf and self.most_neighbours <= K_MAX):
            raise BadParameter(f"{self}: z must be 0 or more, and it can look at {K_MAX} neighbours of a point.")

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
        unique_rows: (n,) int, rows of the hidden states that equal no earlier row; every array below is over these.
        neighbours: (n, k) int, indices among the kept points, nearest first, the point itself left out.
        intrinsic_dimension: (scales,) float; NaN where Gride finds none (`dimensions`).
        intrinsic_dimension_error: (scales,) float, standard errors.
        log_density: (n,) float.
        assignment: (n,) int, the peak of each point, 0 … n_peaks - 1.
        core: (n,) bool, at least as dense as the highest saddle of its peak (not in the halo).
        saddle_log_density: (n_peaks, n_peaks) float, highest border of two peaks; below all log densities
            where two peaks do not touch, and on the diagonal.
        labels: by name, (n,) int, which of the different labels each point has.
        label_overlap: neighbours against each set of labels, every class with one weight.
        n_rows: rows of the hidden states, also those that equal an earlier one.
    """

    recipe: Recipe
    unique_rows: np.ndarray
    neighbours: np.ndarray
    intrinsic_dimension: np.ndarray
    intrinsic_dimension_error: np.ndarray
    log_density: np.ndarray
    assignment: np.ndarray
    core: np.ndarray
    saddle_log_density: np.ndarray
    labels: dict[str, np.ndarray]
    label_overlap: dict[str, Estimate]
    n_rows: int

    @property
    def n(self) -> int:
        """Number of points kept."""
        return len(self.unique_rows)

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
    def dimension_by_rank(self) -> dict[int, Estimate]:
        """Intrinsic dimension by the lower rank of the neighbours compared, the upper being twice that.

        The paper's curve has 64.
        """
        scales = enumerate(zip(self.intrinsic_dimension, self.intrinsic_dimension_error, strict=True))
        return {2**scale: normal_estimate(float(value), float(error), self.n) for scale, (value, error) in scales}

    @cached_property
    def adjusted_rand_index(self) -> dict[str, Estimate]:
        """Peaks against each set of labels."""
        return {name: adjusted_rand_index(self.assignment, codes) for name, codes in self.labels.items()}


def landscape(hidden_states, labels: Mapping, recipe: str | Recipe = "released", **options) -> Landscape:
    """Describe one layer by one recipe, or its name in RECIPES; arguments, errors and source as in `landscapes`.

    Raises UnknownName, too.
    """
    if isinstance(recipe, str) and recipe not in RECIPES:
        raise UnknownName("recipe", recipe, RECIPES)
    return landscapes(hidden_states, labels, {"one": RECIPES.get(recipe, recipe)}, **options)["one"]


def landscapes(
    hidden_states: np.ndarray | torch.Tensor,
    labels: Mapping[str, np.ndarray],
    recipes: Mapping[str, Recipe] = RECIPES,
    class_fraction: Mapping[str, float] | None = None,
    where: str = "the hidden states",
) -> dict[str, Landscape]:
    """Describe one layer by several recipes, from one search for neighbours.

    Identical rows are dropped, the first kept. Then: neighbours, Gride at all scales, and for each recipe
    the density of k neighbours in the ID of its scale, and its peaks.

    Args:
        hidden_states: (n, d), float16, bfloat16, float32 or float64, one row a question.
        labels: by name, (n,) integers or strings.
        recipes: the settings, by any names.
        class_fraction: by label name, neighbours of the label overlap as a share of the class; default 0.3.
        where: named in messages, such as 'smollm2-135m-instruct, layer 12'.

    Returns:
        A Landscape by the names of `recipes`.

    Raises:
        BadParameter: labels without a name, of another length or with NaN or None; a class_fraction outside (0, 1].
        BadStates: states that are not a matrix of finite floats, or whose distances give no dimension or density.
        TooFewPoints: too few different rows for the recipe.
        BookError: as `adp.dadapy_peaks`.

    Source: Doimo et al. 2024, sec. 2; Gride, Denti et al. 2022; ADP, d'Errico et al. 2021.
    """
    if not isinstance(labels, Mapping):
        raise BadParameter(f"{where}: give labels by their names, {{'subject': subjects}}, or {{}} for none.")
    states = as_matrix(hidden_states, where)
    unique_rows = first_of_identical(states)
    labels = {name: coded(v, len(states), f"The labels '{name}'")[1][unique_rows] for name, v in labels.items()}
    fractions = {name: (class_fraction or {}).get(name, CLASS_FRACTION) for name in labels}

    k_max = min(K_MAX, max(1, len(unique_rows) - 1))
    k = max([k_max, *(int(class_neighbours(labels[name], fractions[name]).max()) for name in labels)])
    distances, neighbours = nearest_neighbours(states[unique_rows], k, where=where)  # (n, k) each
    if not distances[:, 0].all():
        raise BadStates(f"{where}: different rows at distance 0 in float64. Round the states to float32 first.")
    if k < (most := max(recipe.most_neighbours for recipe in recipes.values())):
        known = f"{k} neighbours of each of {len(distances)} different rows are known"
        raise TooFewPoints(f"{where}: {known}, but a recipe looks at {most}. Give more questions, or more of them.")
    overlap = {name: label_overlap(neighbours, labels[name], fractions[name]) for name in labels}
    nearest = distances[:, :K_MAX], neighbours[:, :K_MAX]  # all that Gride and ADP see
    dimension, error = dimensions(*nearest)
    about = {"unique_rows": unique_rows, "neighbours": neighbours, "labels": labels, "label_overlap": overlap}
    about |= {"intrinsic_dimension": dimension, "intrinsic_dimension_error": error, "n_rows": len(states)}
    peaks = lambda recipe: density_and_peaks(*nearest, dimension[recipe.gride_scale], recipe, where)
    return {name: Landscape(recipe, **about, **peaks(recipe)) for name, recipe in recipes.items()}


def first_of_identical(states: torch.Tensor) -> np.ndarray:
    """Ascending indices of the rows that equal no earlier row; 0.0 and -0.0 are equal."""
    parts = ((part.cpu().double() + 0.0).numpy() for part in states.split(256))  # a copy of few at a time
    digests = [blake2b(row.tobytes()).digest() for part in parts for row in part]
    return np.flatnonzero(~pd.Series(digests).duplicated())


def redrawn_landscapes(
    hidden_states: np.ndarray | torch.Tensor, by_recipe: Mapping[str, Landscape], rng: np.random.Generator
) -> dict[str, Landscape]:
    """Landscapes of a new sample of a layer's points, by the same recipes; every point carries its source's labels.

    hidden_states, by_recipe: what `landscapes` was given for the layer, and returned.  `label_overlap` comes back
    empty; `unique_rows` are the sources, rows of the hidden states.

    Raises:
        BookError: as `landscapes`.

    Source: `neighbours.redraw`.
    """
    layer = next(iter(by_recipe.values()))  # which points are kept, and their neighbours, are the same by every recipe
    points = as_matrix(hidden_states, "the hidden states")[layer.unique_rows]
    sample, source = redraw(points, layer.neighbours, rng)
    fresh = landscapes(sample, {}, {name: peaks.recipe for name, peaks in by_recipe.items()}, where="redrawn points")
    source = source[next(iter(fresh.values())).unique_rows]
    about = {"labels": {name: codes[source] for name, codes in layer.labels.items()}, "n_rows": layer.n_rows}
    return {name: replace(peaks, unique_rows=layer.unique_rows[source], **about) for name, peaks in fresh.items()}


def counted(by_recipe: Mapping[str, Landscape]) -> dict[tuple[str, str], float]:
    """What is counted on peaks, by metric ("n_peaks", "core_fraction", "ari_" and the label's name) and recipe."""
    numbers = {}
    for recipe, peaks in by_recipe.items():
        numbers |= {("n_peaks", recipe): peaks.n_peaks, ("core_fraction", recipe): peaks.core_fraction}
        for name, codes in peaks.labels.items():
            numbers[f"ari_{name}", recipe] = adjusted_rand_score(codes, peaks.assignment)
    return numbers


def redrawn_intervals(
    hidden_states: np.ndarray | torch.Tensor, by_recipe: Mapping[str, Landscape], n_repeats: int = 8, seed: int = 0
) -> dict[tuple[str, str], Estimate]:
    """What is counted on the peaks of a layer, with intervals from doing everything again on new samples.

    Args:
        hidden_states: (n, d) float, those that the landscapes are of.
        by_recipe: what `landscapes` returned for them.
        n_repeats: new samples, each with a search for neighbours of its own.
        seed: of the samples.

    Returns:
        By metric and recipe, as `counted`.  ARIs carry their null.

    Raises:
        BookError: as `landscapes` and `statistics.redrawn`.

    Source: `statistics.redrawn`.
    """
    values, n = counted(by_recipe), next(iter(by_recipe.values())).n
    statistic = lambda rng: [*counted(redrawn_landscapes(hidden_states, by_recipe, rng)).values()]
    indices = [by_recipe[recipe].adjusted_rand_index.get(metric.removeprefix("ari_")) for metric, recipe in values]
    chance = [(index.null_high - index.null) / 1.96 if index else 0.0 for index in indices]
    ends = np.transpose([ENDS.get(metric, (-1, 1)) for metric, _ in values])  # (2, numbers)
    n_peaks = [by_recipe[recipe].n_peaks for _, recipe in values]
    estimates = redrawn(statistic, [*values.values()], n, n_repeats, seed, chance, n_peaks, ends)
    with_null = lambda e, index: replace(e, null=index.null, null_high=index.null_high) if index else e
    return dict(zip(values, map(with_null, estimates, indices), strict=True))


def dimensions(distances: np.ndarray, neighbours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gride at every scale that the neighbours reach: dimension and standard error, (scales,) each.

    distances, neighbours: (n, k), as `nearest_neighbours` gives them.  NaN where Gride finds no dimension in
    GRIDE_RANGE: if it lies outside, or all ratios of distances are alike, an end of the range comes back.
    """
    dimension, error = adp.dadapy_gride(distances, neighbours) if adp.HAS_DADAPY else adp.gride(distances)
    low, high = adp.GRIDE_RANGE
    nothing = (dimension < low + 1e-6) | (dimension > high - 1e-6)
    dimension[nothing] = error[nothing] = np.nan
    return dimension, error


def density_and_peaks(
    distances: np.ndarray, neighbours: np.ndarray, dimension: float, recipe: Recipe, where: str
) -> dict:
    """Density and peaks in so many dimensions, by the names in `Landscape`."""
    if np.isnan(dimension):
        why = "distances are equal, or alike for all points. Were the states rounded, or are they one-hot?"
        raise BadStates(f"{where}: Gride finds no intrinsic dimension in {adp.GRIDE_RANGE}: {why}")
    if adp.HAS_DADAPY:
        data = adp.dadapy_data(distances, neighbours)
        data.set_id(dimension)
        log_density = data.compute_density_kNN(recipe.k)[0].copy()
    else:
        log_density = adp.knn_log_density(distances, dimension, recipe.k)
    if not np.isfinite(log_density).all():
        raise BadStates(f"{where}: densities in {dimension:.3g} dimensions exceed float64. Divide by a constant.")
    if adp.HAS_DADAPY:
        assignment, saddles, core = adp.dadapy_peaks(data, recipe.z, where)
    else:
        assignment, saddles, core = adp.density_peaks(log_density, neighbours, recipe.k, recipe.z)
    return {"log_density": log_density, "assignment": assignment, "core": core, "saddle_log_density": saddles}
