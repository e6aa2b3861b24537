import numpy as np
import pytest
import torch

from peaks_and_gates.errors import BadParameter, BadStates
from peaks_and_gates.similarity import flips, similarity

P = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]])
Q = torch.tensor([[0.2, 0.3, 0.5], [0.0, 0.5, 0.5], [0.2, 0.2, 0.6], [0.3, 0.3, 0.4]])


def check_the_hand_computed():
    """Each row has its own offset, which a softmax over the vocabulary takes out."""
    offset = torch.tensor([[0.0], [5.0], [-7.0], [100.0]])
    found = similarity(P.log() + offset, Q.log() - offset)
    assert found.shape == (4,)
    torch.testing.assert_close(found, torch.tensor([0.7, 0.0, 1.0, 0.5]))


def test_similarity_by_hand():
    check_the_hand_computed()


def test_it_fails_with_a_softmax_over_the_examples(monkeypatch):
    right = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda self, dim: right(self, 0))
    with pytest.raises((AssertionError, BadStates)):
        check_the_hand_computed()


def test_it_fails_without_a_softmax(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "softmax", lambda self, dim: self)
    with pytest.raises((AssertionError, BadStates)):
        check_the_hand_computed()


def test_half_precision_is_widened_first():
    logits = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = similarity(logits, logits)
    torch.testing.assert_close(found, torch.ones(3))
    assert found.dtype == torch.float32 and (found <= 1).all()
    assert similarity(logits.double(), logits.double()).dtype == torch.float64


# Logits of tokens 0, 1, 2 before and after patching; answers 0 (base) and 1 (counterfactual).
BEFORE = torch.tensor([[3.0, 1, 9], [2, 1, 9], [1, 2, 9], [1, 3, 9], [2, 1, 9], [1, 1, 9]])
AFTER = torch.tensor([[1.0, 3, 0], [2, 1, 9], [2, 1, 9], [1, 4, 9], [2, 2, 0], [1, 2, 9]])
FIRST, SECOND = torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64)


def check_the_flips():
    """By hand: pair 0 flips; 1 stays; 2 is put right; 3 stays wrong; 4 ends in a tie; 5 starts in one."""
    found = flips(BEFORE, AFTER, FIRST, SECOND)
    assert found.of_all.value == pytest.approx(1 / 6) and found.of_all.n == 6
    assert found.of_right.value == pytest.approx(1 / 3) and found.of_right.n == 3
    assert found.base_right.value == pytest.approx(3 / 6)
    assert found.sign_changes.value == pytest.approx(4 / 6)
    assert found.of_all.low <= found.of_all.value <= found.of_all.high


def test_flips_by_hand():
    check_the_flips()


@pytest.mark.parametrize(
    "fault",
    [
        lambda before, after, first, second: flips(after, before, first, second),
        lambda before, after, first, second: flips(before, after, second, first),
        lambda before, after, first, second: flips(before, before, first, second),
    ],
    ids=["runs swapped", "answers swapped", "patched into itself"],
)
def test_the_flips_fail_with_swapped_inputs(fault):
    right = flips(BEFORE, AFTER, FIRST, SECOND)
    found = fault(BEFORE, AFTER, FIRST, SECOND)
    assert (found.of_all.value, found.base_right.value) != (right.of_all.value, right.base_right.value)


def test_each_pair_has_its_own_answers():
    before = torch.eye(3)[[0, 1, 2]] * 4
    found = flips(before, before[[1, 2, 0]], torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))
    assert found.of_all.value == found.of_right.value == 1
    found = flips(before, before[[1, 2, 0]], np.array([0, 1, 2]), np.array([2, 0, 1]))
    assert found.of_all.value == 0 and found.base_right.value == 1


def test_without_a_right_pair_there_is_no_share_of_them():
    found = flips(AFTER[:1], BEFORE[:1], FIRST[:1], SECOND[:1])
    assert found.of_right is None and found.of_all.value == 0 and found.sign_changes.value == 1


@pytest.mark.parametrize(
    ("p", "q", "error", "message"),
    [
        (P.log(), Q.log()[:2], BadParameter, "shapes"),
        (P.log()[0], Q.log()[0], BadParameter, "examples, vocabulary"),
        (FIRST[None], FIRST[None], BadParameter, "floats"),
        (P, Q, BadParameter, "probabilities already"),
        (P.log() * torch.nan, Q.log(), BadStates, "4 of 4 rows"),
        (torch.full((1, 3), -torch.inf), torch.zeros(1, 3), BadStates, "1 of 1 rows"),
    ],
)
def test_what_is_no_logits_is_refused(p, q, error, message):
    with pytest.raises(error, match=message):
        similarity(p, q)


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (FIRST, FIRST, BadParameter, "same token"),
        (FIRST - 1, SECOND, BadParameter, "0 … 2"),
        (FIRST, SECOND + 2, BadParameter, "0 … 2"),
        (FIRST[:2], SECOND, BadParameter, "6 integer token ids"),
        (FIRST.float(), SECOND, BadParameter, "6 integer token ids"),
        (FIRST[:, None], SECOND, BadParameter, "6 integer token ids"),
    ],
)
def test_answers_that_no_logit_tells_apart_are_refused(first, second, error, message):
    with pytest.raises(error, match=message):
        flips(BEFORE, AFTER, first, second)


def test_a_difference_of_two_forbidden_tokens_is_refused():
    forbidden = BEFORE.clone()
    forbidden[2, :2] = -torch.inf
    with pytest.raises(BadStates, match="kept from giving either"):
        flips(forbidden, AFTER, FIRST, SECOND)
    with pytest.raises(BadParameter, match="patched ones"):
        flips(BEFORE, AFTER[:2], FIRST, SECOND)
