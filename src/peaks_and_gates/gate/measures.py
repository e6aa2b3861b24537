"""What hidden states and next words say of a vision-language model; texts are scored in `answers`.

median, *quartiles = cosine_gap(text, image)        # median.value near median.null: nearly orthogonal
mixing = modality_homogeneity(text, image)          # mixing["clean"].value near 1: no peak holds both
overlap = class_overlap(states, classes)            # near 1: the token knows the class
similarity(logits, other_logits)                    # 1: every next word is as probable in one as in the other
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.stats import beta, norm
from sklearn.metrics import homogeneity_score
from torch import Tensor

from ..errors import BadParameter, BadStates, TooFewPoints
from ..landscape.density_peaks import Recipe, first_of_identical, landscapes, redrawn_landscapes
from ..landscape.neighbours import N_SHUFFLES, as_matrix, balanced_overlap, nearest_neighbours
from ..statistics import PERCENTILES, Estimate, bootstrap_mean, coded, null_of, redrawn

Vectors = "np.ndarray | Tensor"  # (n, d) float, one token's vector per example
LEAST_NORM = 1e-150  # squares of what is shorter lose digits
THRESHOLDS = 256  # values of |cos| between which a replicate of the bootstrap is interpolated

# The paper's two published settings; Gride scale 3 is what the code calls ids[3].
SETTINGS = {"clean": Recipe(gride_scale=3, z=1.65, k=16), "main": Recipe(gride_scale=3, z=1.2, k=15)}


def cosine_gap(
    text: Vectors, image: Vectors, *, signed: bool = False, n_bootstrap: int = 200, seed: int = 0, where: str = "states"
) -> tuple[Estimate, float, float]:
    """Median and quartiles of cos or |cos| between text vectors and image vectors of different examples.

    The first version of the paper takes the median of cos, the second that of |cos|.  In d dimensions cos² of
    independent directions is distributed as Beta(1/2, (d - 1)/2): the median of cos is 0, and that of |cos| .67/√d, so
    .01 at d = 4,096 and .06 at d = 128 are chance.  The null is that median; its upper end is what the median of as
    many pairs stays below in 97.5 % of all cases (cosines of different pairs are independent two by two).

    Taken over all n (n - 1) pairs of text i and image j with i ≠ j.  The authors' code takes half of them, those with
    j < i, which makes the result depend on the order of the examples; the expectation is the same.  Quantiles are of
    the lower kind (a pair's own value, no mean of two).

    The interval resamples examples, each with its text and its image.  A pair would weigh the product of its two
    multiplicities; their linear part is used (multiplicity + multiplicity - 1), which is right up to O(1/n).

    Args:
        text: (n, d) float, one text token's vector per example.
        image: (n, d) float, one image token's vector per example, the same examples in the same order.
        signed: whether the sign of the cosine counts.
        n_bootstrap: replicates of the interval.
        seed: of the bootstrap.
        where: named in messages, such as 'chameleon, layer 12'.

    Returns:
        The median over all pairs, with its interval over examples and the null of independent directions; the lower
        and the upper quartile.

    Raises:
        BadStates: not matrices of finite floats, a vector of zeros, or one whose square float64 does not hold.
        BadParameter: shapes that differ.

    Source: Serra et al. 2024 (v1: cos, v2: |cos|), fig. 2 (left); projection of a U-statistic, Hoeffding 1948.
    """
    text, image = _directions(text, image, where)
    n, d = text.shape
    cosines = (text @ image.T).clamp(-1, 1).cpu().double().numpy()  # (n, n)
    cosines = cosines if signed else np.abs(cosines)
    np.fill_diagonal(cosines, np.inf)  # text and image of one example: in no quantile
    cosines_of = {"text": np.sort(cosines, axis=1), "image": np.sort(cosines.T, axis=1)}
    pairs = np.sort(cosines_of["text"][:, :-1].ravel())  # (n (n - 1),)
    at_quantile = lambda q: pairs[np.ceil(np.asarray(q) * len(pairs)).clip(1).astype(int) - 1]
    lower, median, upper = at_quantile([0.25, 0.5, 0.75])
    grid = np.unique(at_quantile(np.linspace(0, 1, THRESHOLDS + 1)))  # (g,)
    # The pairs that each example is in, as text or as image, up to each threshold.
    up_to = lambda rows: np.array([np.searchsorted(row, grid, "right") for row in rows])
    below = sum(map(up_to, cosines_of.values()))  # (n, g)
    multiplicity = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_bootstrap)
    share_below = np.maximum.accumulate((multiplicity - 0.5) @ below / len(pairs), axis=1)  # (n_bootstrap, g)
    low, high = np.percentile([np.interp(0.5, shares, grid) for shares in share_below], PERCENTILES)
    chance = np.array([0.5, 0.5 + norm.ppf(PERCENTILES[1] / 100) / 2 / np.sqrt(len(pairs))])  # quantiles
    # The p-quantile of cos is that of |cos| at 2 p - 1, if it is not below 0.
    null = np.sqrt(beta.ppf(2 * chance - 1 if signed else chance, 0.5, (d - 1) / 2)).tolist()
    return Estimate(float(median), float(low), float(high), n, *null), float(lower), float(upper)


def modality_homogeneity(
    text: Vectors, image: Vectors, *, n_repeats: int = 8, seed: int = 0, where: str = "the hidden states"
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

    The interval searches for neighbours and peaks again on new samples (`statistics.redrawn`), whose vectors miss the
    length of one by a few hundredths, and ends at 0 and 1; the null shuffles the modality.

    Args:
        text: (n, d) float, one text token's vector per example.
        image: (n, d) float, one image token's vector per example.
        n_repeats: new samples, at least two.
        seed: of samples and null.
        where: named in messages.

    Returns:
        By setting, 'clean' and 'main', an Estimate with null and null_high; n counts vectors of both modalities.

    Raises:
        BadStates: not matrices of finite floats, a vector of zeros, or a direction that both modalities share.
        BadParameter: shapes that differ, or fewer than two repeats.
        TooFewPoints: too few different vectors for Gride and density (below 17).

    Source: Serra et al. 2024, fig. 2 (right); Rosenberg and Hirschberg 2007, eq. 1.
    """
    text, image = _directions(text, image, where)
    states, modality = torch.cat([text, image]), np.repeat([0, 1], [len(text), len(image)])  # (2n, d), (2n,)
    if len(first_of_identical(states)) < len(first_of_identical(text)) + len(first_of_identical(image)):
        raise BadStates(f"{where}: text and image share a direction exactly. Are they of the same positions?")
    by_setting = landscapes(states, {}, SETTINGS, where=where)
    purity = lambda peaks, of: homogeneity_score(of[peaks.unique_rows], peaks.assignment)

    def homogeneities(rng: np.random.Generator) -> list[float]:
        return [purity(peaks, modality) for peaks in redrawn_landscapes(states, by_setting, rng).values()]

    rng, values = np.random.default_rng(seed), [purity(peaks, modality) for peaks in by_setting.values()]
    orders = [rng.permutation(modality) for _ in range(N_SHUFFLES)]
    nulls = [[purity(peaks, order) for order in orders] for peaks in by_setting.values()]
    n, n_peaks = by_setting["main"].n, [peaks.n_peaks for peaks in by_setting.values()]
    spread = redrawn(homogeneities, values, n, n_repeats, seed, np.std(nulls, axis=1), n_peaks, (0, 1))
    return {name: replace(e, **null_of(null)) for name, e, null in zip(SETTINGS, spread, nulls, strict=True)}


def class_overlap(states: Vectors, labels: np.ndarray, k: int = 30, where: str = "the hidden states") -> Estimate:
    """Mean share of a vector's k nearest neighbours that carry its class, every class with one weight: χ^{l,gt}.

    Neighbours are Euclidean, the vector itself left out.  On the last text token at the last layer it is the paper's
    χ^{out,gt}.  The paper has k = 30 and stores 40 neighbours; the search is exact, so storing more changes nothing.
    With balanced classes the weights change nothing.  The interval resamples vectors with their neighbours fixed; the
    null shuffles the classes.

    Args:
        states: (n, d) float, one token's vector per example.
        labels: (n,) int or str, the classes.
        k: neighbours.
        where: named in messages.

    Returns:
        Estimate with null and null_high.

    Raises:
        BadStates: not a matrix of finite floats.
        BadParameter: not one label per vector, or k below 1.
        TooFewPoints: a class has k vectors or fewer, so that its overlap could not reach 1.

    Source: Serra et al. 2024, fig. 4; Doimo et al. 2020, eq. 1; weights as DADApy's return_label_overlap.
    """
    states = as_matrix(states, where)
    names, codes, sizes = coded(labels, len(states), f"{where}: the labels")
    if sizes.min() <= k:
        raise TooFewPoints(f"{where}: class '{names[sizes.argmin()]}' has {sizes.min()} vectors; give more than k={k}.")
    return balanced_overlap(nearest_neighbours(states, k, where=where)[1], codes, k)


def similarity(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Probability that two next-token distributions have in common, Σ min(p_i, q_i).

    It is 1 less their total variation distance: 1 for equal distributions, 0 for disjoint ones.

    Args:
        p_logits: (B, V) float, one row per example; -inf for tokens that cannot come.
        q_logits: (B, V) float, the same examples.

    Returns:
        (B,) float in [0, 1]: float64 if either input is, else float32, in which the softmax is taken.

    Raises:
        BadParameter: shapes that differ, or probabilities instead of logits.
        BadStates: NaN, +inf, or a row of nothing but -inf.

    Source: Serra et al. 2024, fig. 5 (activation patching).
    """
    if p_logits.shape != q_logits.shape:
        raise BadParameter(f"The logits compared have shapes {tuple(p_logits.shape)} and {tuple(q_logits.shape)}.")
    return torch.minimum(_probabilities(p_logits), _probabilities(q_logits)).sum(-1).clamp(max=1)  # (B,)


def flips(
    base_logits: Tensor, patched_logits: Tensor, base_answers: Tensor, counterfactual_answers: Tensor
) -> dict[str, Estimate]:
    """Count the pairs whose answer patching turns from the base's to the counterfactual's.

    The difference is logit(base answer) − logit(counterfactual answer) at the next token.  The base has it right when
    the difference is above zero; patching flips it when the difference is then below zero.

    Args:
        base_logits: (B, V) float, of the base run without patching.
        patched_logits: (B, V) float, of the base run with activations of the counterfactual run.
        base_answers: (B,) int, token ids.
        counterfactual_answers: (B,) int, token ids.

    Returns:
        Shares with their intervals over pairs, by name:

        - flips: among all pairs, those whose difference of logits goes from above to below zero.
        - flips_of_right: the same among pairs that the base run had right; left out if there are none.
        - sign_changes: among all pairs, those whose sign changes in either direction (also to or from exactly zero),
          which is what the released code counts.  A pair that was wrong and is put right counts here only.
        - base_right: among all pairs, those whose difference is above zero before patching.

    Raises:
        BadParameter: shapes that do not fit, probabilities instead of logits, or a pair whose answers begin with one
            token (its difference is always zero).
        BadStates: as `similarity`, or both answers of a pair at -inf.

    Source: Serra et al. 2024, fig. 5 (activation patching).
    """
    before = _differences(base_logits, base_answers, counterfactual_answers)  # (B,)
    after = _differences(patched_logits, base_answers, counterfactual_answers)  # (B,)
    right, flipped = before > 0, (before > 0) & (after < 0)
    shares = {"flips": flipped, "flips_of_right": flipped[right]}
    shares |= {"sign_changes": np.sign(before) != np.sign(after), "base_right": right}
    return {name: bootstrap_mean(of) for name, of in shares.items() if name != "flips_of_right" or right.any()}


def _directions(text, image, where: str) -> tuple[Tensor, Tensor]:
    """Both sets of vectors at length one, (n, d) float32, checked to belong together."""
    pair = [as_matrix(text, f"{where}, text"), as_matrix(image, f"{where}, image")]
    if pair[0].shape != pair[1].shape:
        raise BadParameter(f"{where}: text and image vectors must be of the same examples, in the same order.")
    if len(pair[0]) < 2:
        raise TooFewPoints(f"{where}: one example has no text and image of different examples. Give more.")
    norms = [torch.linalg.vector_norm(vectors, dim=1, keepdim=True, dtype=torch.float64) for vectors in pair]  # (n, 1)
    if not all(((norm > LEAST_NORM) & norm.isfinite()).all() for norm in norms):
        raise BadStates(f"{where}: a vector of zeros has no direction. Was this position knocked out, or never filled?")
    first, second = ((vectors / norm).float() for vectors, norm in zip(pair, norms, strict=True))
    return first, second


def _probabilities(logits: Tensor) -> Tensor:
    """Softmax over the vocabulary, (B, V), of logits that are checked to be such."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    probabilities = wide.softmax(-1)
    if bad := torch.nonzero(~torch.isfinite(probabilities).all(-1)).flatten().tolist():
        raise BadStates(f"{len(bad)} of {len(logits)} rows of logits hold NaN or +inf, or only -inf: rows {bad[:5]}.")
    if (wide >= 0).all() and torch.allclose(wide.sum(-1), torch.ones_like(wide[:, 0]), atol=1e-2):
        raise BadParameter("These rows are probabilities already; give logits, the softmax is taken here.")
    return probabilities


def _differences(logits: Tensor, first: Tensor, second: Tensor) -> np.ndarray:
    """logit(first) − logit(second) of every row, (B,) float64."""
    _probabilities(logits)  # for its checks
    answers = torch.stack([first, second], -1).to(logits.device)  # (B, 2)
    if len(answers) != len(logits) or not ((answers >= 0) & (answers < logits.shape[1])).all():
        raise BadParameter(f"{len(logits)} pairs need as many token ids of each answer, got {answers.tolist()}.")
    if same := torch.nonzero(answers[:, 0] == answers[:, 1]).flatten().tolist():
        raise BadParameter(f"The answers of pairs {same[:5]} begin with the same token: leave these pairs out.")
    chosen = logits.double().gather(1, answers)  # (B, 2)
    difference = (chosen[:, 0] - chosen[:, 1]).cpu().numpy()
    if np.isnan(difference).any():
        raise BadStates("Both answers of some pair have a logit of -inf: the model is kept from giving either.")
    return difference
