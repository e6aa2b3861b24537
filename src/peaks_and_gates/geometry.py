"""The landscape of hidden states: intrinsic dimension, density peaks, and the labels they carry.

layer = landscape(hidden_states, {"subject": subjects, "answer": answers})
layer.n_peaks, layer.core_fraction, layer.adjusted_rand_index["subject"].value

Gride, the k-NN density and the peaks (ADP) are DADApy's; the neighbours are ours, found once for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score

from .clustering import RECIPES, Recipe, by_recipe, dadapy_data, dimensions
from .errors import BadParameter, BadStates, TooFewPoints, UnknownName
from .neighbours import among, as_matrix, class_neighbours, label_overlap, nearest_neighbours
from .uncertainty import Estimate, adjusted_rand_index, at_least, coded, normal_estimate, subsampled

K_MAX = 128  # the ID curve of the paper ends at ranks 64 and 128
CLASS_FRACTION = 0.3  # label overlap: neighbours per point, as a share of its class


@dataclass(frozen=True)
class Landscape:
    """What one layer looks like.  n counts the points kept, n_dropped the identical rows left out.

    Attributes:
        recipe: the settings.
        n: points kept; every array below is over these.
        n_dropped: rows identical to an earlier one.
        kept: (n,) int, their rows in the hidden states given.
        distances: (n, k) float64, to the neighbours, ascending.
        neighbours: (n, k) int, indices among the kept points, nearest first, the point itself left out.
        gride_ranks: (scales,) int, the lower rank of each scale; the upper is twice that.
        intrinsic_dimension: (scales,) float; NaN where Gride finds none (`clustering.dimensions`).
        intrinsic_dimension_error: (scales,) float, standard errors.
        log_density: (n,) float.
        assignment: (n,) int, the peak of each point, 0 … n_peaks - 1.
        core: (n,) bool, at least as dense as the highest saddle of its peak (not in the halo).
        peak_centres: (n_peaks,) int, the densest point of each peak.
        saddle_log_density: (n_peaks, n_peaks) float, highest border of two peaks; below all log densities
            where two peaks do not touch, and on the diagonal.
        adjusted_rand_index: peaks against each set of labels.
        label_overlap: neighbours against each set of labels, every class with one weight.
    """

    recipe: Recipe
    n: int
    n_dropped: int
    kept: np.ndarray
    distances: np.ndarray
    neighbours: np.ndarray
    gride_ranks: np.ndarray
    intrinsic_dimension: np.ndarray
    intrinsic_dimension_error: np.ndarray
    log_density: np.ndarray
    assignment: np.ndarray
    core: np.ndarray
    peak_centres: np.ndarray
    saddle_log_density: np.ndarray
    adjusted_rand_index: dict[str, Estimate]
    label_overlap: dict[str, Estimate]

    @property
    def n_peaks(self) -> int:
        """Number of density peaks."""
        return len(self.peak_centres)

    @property
    def core_fraction(self) -> float:
        """Share of points that belong to a peak beyond doubt (ADP with halo: label not -1)."""
        return float(self.core.mean())

    @property
    def peak_log_density(self) -> np.ndarray:
        """(n_peaks,) float, log density at the top of each peak."""
        return self.log_density[self.peak_centres]

    def dimension_at(self, lower_rank: int) -> Estimate:
        """Intrinsic dimension from neighbours lower_rank and 2·lower_rank (the paper's curve: 64)."""
        if lower_rank not in self.gride_ranks:
            raise UnknownName("Gride rank", str(lower_rank), map(str, self.gride_ranks))
        at = list(self.gride_ranks).index(lower_rank)
        value, error = self.intrinsic_dimension[at], self.intrinsic_dimension_error[at]
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
        k_max: neighbours given to DADApy (fewer if there are fewer points); Gride and ADP see no farther.
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
    per_point = {name: class_neighbours(labels[name], fractions[name]) for name in labels}

    k_max = min(k_max, n - 1)
    k = max([k_max, *(int(counts.max()) for counts in per_point.values())])
    different = states if n == len(states) else states[kept]
    distances, neighbours = nearest_neighbours(different, k, device=device, where=where)
    if not distances[:, 0].all():
        raise BadStates(f"{where}: different rows at distance 0 in float64. Round the states to float32 first.")
    overlap = {name: label_overlap(neighbours, labels[name], fractions[name], n_bootstrap, seed) for name in labels}
    data = dadapy_data(distances[:, :k_max], neighbours[:, :k_max])
    gride = dimensions(data)

    described = {}
    for name in recipes:
        found = by_recipe(data, gride["intrinsic_dimension"], RECIPES[name], where)
        described[name] = Landscape(
            **found,
            **gride,
            n=n,
            n_dropped=len(states) - n,
            kept=kept,
            distances=distances,
            neighbours=neighbours,
            adjusted_rand_index={
                label: adjusted_rand_index(found["assignment"], labels[label], n_bootstrap, seed) for label in labels
            },
            label_overlap=overlap,
        )
    return described


def _check_enough(n: int, k_max: int, recipes: Sequence[str], where: str) -> None:
    """Refuse before the search what Gride or the density could not reach."""
    for name in recipes:
        recipe = RECIPES[name]
        rank = max(2 ** (recipe.gride_scale + 1), recipe.k)
        if n <= rank:
            raise TooFewPoints(
                f"{where}: {n} different rows, but the recipe '{name}' needs at least {rank + 1}: its Gride "
                f"scale {recipe.gride_scale} compares neighbours {2**recipe.gride_scale} and "
                f"{2 ** (recipe.gride_scale + 1)}, its density takes {recipe.k}. Give more questions."
            )
        if k_max < rank:
            raise BadParameter(f"k_max={k_max} is too small for the recipe '{name}', which needs {rank}.")


def first_of_identical(states: torch.Tensor) -> np.ndarray:
    """Ascending indices of the rows that equal no earlier row; 0.0 and -0.0 are equal."""
    first = {}
    for part, start in zip(states.split(256), range(0, len(states), 256), strict=True):  # a copy of few at a time
        rows = part.cpu() if part.dtype == torch.float64 else part.cpu().float()
        for index, row in enumerate((rows + 0.0).numpy(), start):
            first.setdefault(blake2b(row.tobytes()).digest(), index)
    return np.fromiter(first.values(), dtype=np.int64)


def clustered(
    found: Landscape, recipes: Mapping[str, Recipe], rows: np.ndarray | None = None, where: str = "the points"
) -> dict[str, Landscape]:
    """A layer's landscape by other settings, or of some of its points, without a new search for neighbours.

    The neighbours of a part are those of the whole that lie in it.  `adjusted_rand_index` and `label_overlap` come back
    empty: they belong to labels, which are not given.

    Args:
        found: the layer by any recipe.
        recipes: the settings wanted, by any names.
        rows: ascending indices among the kept points; all of them by default.
        where: named in messages.

    Returns:
        A Landscape by the names of `recipes`.

    Raises:
        BadParameter, TooFewPoints: as `neighbours.among`.
        BookError: as `clustering.by_recipe`.
    """
    rows = np.arange(found.n) if rows is None else rows
    distances, neighbours = among(found.distances, found.neighbours, rows)
    k = min(K_MAX, neighbours.shape[1])
    data = dadapy_data(distances[:, :k], neighbours[:, :k])
    gride = dimensions(data)
    part = replace(
        found,
        n=len(rows),
        kept=found.kept[rows],
        distances=distances,
        neighbours=neighbours,
        **gride,
        adjusted_rand_index={},
        label_overlap={},
    )
    dimension = gride["intrinsic_dimension"]
    return {name: replace(part, **by_recipe(data, dimension, recipe, where)) for name, recipe in recipes.items()}


def reclustered(
    found: Mapping[str, Landscape],
    labels: Mapping[str, np.ndarray],
    n_repeats: int = 8,
    fraction: float = 0.9,
    seed: int = 0,
) -> dict[tuple[str, str], Estimate]:
    """What is counted on the peaks of a layer, with intervals from searching for the peaks again on parts of it.

    Args:
        found: what `landscapes` returned for the layer.
        labels: as given to it.
        n_repeats: parts.
        fraction: of the points, drawn into a part.
        seed: of the draws.

    Returns:
        By metric ("n_peaks", "core_fraction", "ari_" and the label's name) and recipe.  ARIs carry their null.

    Raises:
        BadParameter: labels of too few hidden states, or as `uncertainty.subsampled`.
        BookError: as `clustered`.

    Source: `uncertainty.subsampled`.
    """
    whole = next(iter(found.values()))
    for name, values in labels.items():
        if len(values) <= whole.kept.max():
            raise BadParameter(f"The labels '{name}' have {len(values)} entries, fewer than there were hidden states.")
    labels = {name: np.asarray(values)[whole.kept] for name, values in labels.items()}

    def numbers(rows: np.ndarray) -> list[float]:
        recipes = {name: landscape.recipe for name, landscape in found.items()}
        counted = []
        for part in clustered(whole, recipes, rows, "a part of the points").values():
            agreement = [adjusted_rand_score(values[rows], part.assignment) for values in labels.values()]
            counted += [part.n_peaks, part.core_fraction, *agreement]
        return counted

    values, names = [], []
    for recipe, landscape in found.items():
        agreement = [landscape.adjusted_rand_index[label].value for label in labels]
        values += [landscape.n_peaks, landscape.core_fraction, *agreement]
        names += [("n_peaks", recipe), ("core_fraction", recipe), *((f"ari_{label}", recipe) for label in labels)]
    spread = dict(zip(names, subsampled(numbers, whole.n, n_repeats, fraction, seed, values), strict=True))
    for (metric, recipe), estimate in spread.items():
        if metric != "n_peaks":  # a share or an index: its interval ends at 1
            spread[metric, recipe] = replace(estimate, high=min(estimate.high, 1.0))
    for recipe, landscape in found.items():
        for label in labels:
            index, name = landscape.adjusted_rand_index[label], (f"ari_{label}", recipe)
            spread[name] = replace(spread[name], null=index.null, null_high=index.null_high)
    return spread
