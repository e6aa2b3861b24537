"""What patching does to the next token: how alike two predictions are, and how many answers flip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from peaks_and_gates.errors import BadParameter, BadStates
from peaks_and_gates.statistics import Estimate, bootstrap_mean


def similarity(p_logits: torch.Tensor, q_logits: torch.Tensor) -> torch.Tensor:
    """Probability that two next-token distributions have in common, Σ min(p_i, q_i).

    It is 1 less their total variation distance: 1 for equal distributions, 0 for disjoint ones.

    Args:
        p_logits: (B, V) float, one row an example; -inf for tokens that cannot come.
        q_logits: (B, V) float, the same examples.

    Returns:
        (B,) float in [0, 1]: float64 if either input is, else float32, in which the softmax is taken.

    Raises:
        BadParameter: shapes that differ, not (B, V), not floats, or probabilities instead of logits.
        BadStates: NaN, +inf, or a row of nothing but -inf.

    Source: Serra et al. 2024, fig. 5 (activation patching).
    """
    if p_logits.shape != q_logits.shape:
        raise BadParameter(f"The logits compared have shapes {tuple(p_logits.shape)} and {tuple(q_logits.shape)}.")
    p, q = _probabilities(p_logits), _probabilities(q_logits)
    return torch.minimum(p, q).sum(-1).clamp(max=1)


@dataclass(frozen=True)
class Flips:
    """How often patching changes the answer; each a share with its interval over pairs.

    Attributes:
        of_all: among all pairs, those whose difference of logits goes from above to below zero.
        of_right: the same among pairs that the base run had right; None if there are none.
        sign_changes: among all pairs, those whose sign changes in either direction (also to or from exactly zero),
            which is what the released code counts.  A pair that was wrong and is put right counts here only.
        base_right: among all pairs, those whose difference is above zero before patching.
    """

    of_all: Estimate
    of_right: Estimate | None
    sign_changes: Estimate
    base_right: Estimate


def flips(
    base_logits: torch.Tensor,
    patched_logits: torch.Tensor,
    base_answers: torch.Tensor,
    counterfactual_answers: torch.Tensor,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> Flips:
    """Count the pairs whose answer patching turns from the base's to the counterfactual's.

    The difference is logit(base answer) − logit(counterfactual answer) at the next token.  The base has it right when
    the difference is above zero; patching flips it when the difference is then below zero.

    Args:
        base_logits: (B, V) float, of the base run without patching.
        patched_logits: (B, V) float, of the base run with activations of the counterfactual run.
        base_answers: (B,) int, token ids.
        counterfactual_answers: (B,) int, token ids.
        n_bootstrap: replicates of each interval.
        seed: of the bootstrap.

    Returns:
        Flips.

    Raises:
        BadParameter: shapes that do not fit, probabilities instead of logits, ids outside the vocabulary, or a pair
            whose answers begin with one token (its difference is always zero).
        BadStates: as `similarity`, or both answers of a pair at -inf.

    Source: Serra et al. 2024, fig. 5 (activation patching).
    """
    if base_logits.shape != patched_logits.shape:
        raise BadParameter(
            f"The base logits have shape {tuple(base_logits.shape)}, the patched ones {tuple(patched_logits.shape)}."
        )
    before = _differences(base_logits, base_answers, counterfactual_answers)
    after = _differences(patched_logits, base_answers, counterfactual_answers)
    right, flipped = before > 0, (before > 0) & (after < 0)
    share = lambda values: bootstrap_mean(values, n_bootstrap=n_bootstrap, seed=seed)
    return Flips(
        of_all=share(flipped),
        of_right=share(flipped[right]) if right.any() else None,
        sign_changes=share(np.sign(before) != np.sign(after)),
        base_right=share(right),
    )


def _probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the vocabulary, (B, V), of logits that are checked to be such."""
    if logits.ndim != 2 or not logits.is_floating_point() or 0 in logits.shape:
        raise BadParameter(f"Logits must be floats (examples, vocabulary), got {tuple(logits.shape)} {logits.dtype}.")
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    found = wide.softmax(-1)
    bad = torch.nonzero(~torch.isfinite(found).all(-1)).flatten().tolist()
    if bad:
        raise BadStates(
            f"{len(bad)} of {len(logits)} rows of logits hold NaN or +inf, or only -inf (rows {str(bad[:5])[1:-1]})."
        )
    if (wide >= 0).all() and torch.allclose(wide.sum(-1), torch.ones_like(wide[:, 0]), atol=1e-2):
        raise BadParameter("These rows are probabilities already; give logits, the softmax is taken here.")
    return found


def _differences(logits: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """logit(first) − logit(second) of every row, (B,) float64."""
    _probabilities(logits)
    size, vocabulary = logits.shape
    pair = [torch.as_tensor(ids, device=logits.device) for ids in (first, second)]
    if any(ids.shape != (size,) or ids.is_floating_point() for ids in pair):
        shapes = " and ".join(f"{tuple(ids.shape)} {ids.dtype}" for ids in pair)
        raise BadParameter(f"{size} pairs need {size} integer token ids of each answer, got {shapes}.")
    answers = torch.stack(pair, -1)  # (B, 2)
    if answers.min() < 0 or answers.max() >= vocabulary:
        raise BadParameter(f"The answers' token ids must lie in 0 … {vocabulary - 1}.")
    same = torch.nonzero(answers[:, 0] == answers[:, 1]).flatten().tolist()
    if same:
        raise BadParameter(
            f"The answers of pairs {same[:5]} begin with the same token, so no logit tells them apart. "
            "Leave these pairs out, or choose answers that differ in their first token."
        )
    chosen = logits.double().gather(1, answers)
    difference = (chosen[:, 0] - chosen[:, 1]).cpu().numpy()
    if np.isnan(difference).any():
        raise BadStates("Both answers of some pair have a logit of -inf: the model is kept from giving either.")
    return difference
