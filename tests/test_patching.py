"""Activation patching on a tiny model of every family, and what a fault in it would look like."""

import pytest
import torch

from peaks_and_gates import patching, vlms
from peaks_and_gates.errors import BadParameter, BadStates
from peaks_and_gates.tokens import only
from vlm_helpers import FAMILIES, TEXTS, broken, close, encoded, generated, load, logits


def position(batch, group):
    return only(batch.tokens.where(group))


def record(tools, model, batch, group):
    with tools.recorded(model, position(batch, group)) as states:
        return states, logits(model, batch)


def patch(tools, model, batch, group, states, layer):
    with tools.patched(model, states.residual[:, layer], position(batch, group), layer):
        return logits(model, batch)


def recorded_states_are_the_models_own(tools, model):
    """hidden_states[i] is what block i reads; the last one is normalised, so that it is not the same."""
    batch = encoded(model)
    states, _ = record(tools, model, batch, "end")
    with torch.inference_mode():
        own = model.network(**batch.inputs, output_hidden_states=True).hidden_states
    rows, at = torch.arange(3), position(batch, "end")
    for layer in range(model.n_layers):
        assert close(states.residual[:, layer], own[layer][rows, at], 1e-5)
        normal = model.layers[layer].input_layernorm(own[layer])
        assert close(states.attention_input[:, layer], normal[rows, at], 1e-5)
    assert states.residual.shape[1] == model.n_layers + 1
    assert close(model.final_norm(states.residual[:, -1]), final(model, batch)[rows, at], 1e-4)


def final(model, batch):
    with torch.inference_mode():
        states = []
        handle = model.final_norm.register_forward_hook(lambda module, args, output: states.append(output))
        logits(model, batch)
        handle.remove()
    return states[0]


def own_state_changes_nothing_and_anothers_does(tools, model):
    batch, other = encoded(model), encoded(model, first=10)
    own, before = record(tools, model, batch, "end")
    theirs, _ = record(tools, model, other, "end")
    after = batch.tokens.where("after")
    for layer in range(model.n_layers + 1):
        assert close(patch(tools, model, batch, "end", own, layer), before, 1e-5)
        if 0 < layer < model.n_layers:  # before block 0 the token is the same in both; after the last, no one reads it
            moved = patch(tools, model, batch, "end", theirs, layer) - before
            assert all(moved[i][after[i]].abs().max() > 1e-4 for i in range(3))
    for first in range(model.n_layers):
        with tools.patched_attention(model, own.attention_input, position(batch, "end"), first):
            assert close(logits(model, batch), before, 1e-5)
        if first:
            with tools.patched_attention(model, theirs.attention_input, position(batch, "end"), first):
                moved = logits(model, batch) - before
            assert all(moved[i][after[i]].abs().max() > 1e-5 for i in range(3))


def the_last_state_is_the_output(tools, model):
    batch, other = encoded(model), encoded(model, first=10)
    theirs, expected = record(tools, model, other, "last")
    found = patch(tools, model, batch, "last", theirs, model.n_layers)
    rows, at, there = torch.arange(3), position(batch, "last"), position(other, "last")
    assert close(found[rows, at], expected[rows, there], 1e-4)
    assert not close(found[rows, at], logits(model, batch)[rows, at], 1e-2)


def padding_changes_nothing(tools, model):
    """Patched rows of other lengths, padded on either side, say what each would alone."""
    last = []
    for side in ("left", "right"):
        batch, other = encoded(model, side=side), encoded(model, side=side, first=10)
        theirs, _ = record(tools, model, other, "end")
        found = patch(tools, model, batch, "end", theirs, 2)
        last.append(found[torch.arange(3), position(batch, "last")])
    assert close(*last)


CHECKS = [
    recorded_states_are_the_models_own,
    own_state_changes_nothing_and_anothers_does,
    the_last_state_is_the_output,
    padding_changes_nothing,
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_family(check, family):
    check(patching, load(family))


FAULTS = {
    "patched with itself": (
        "states.to(hidden_states)",
        "hidden_states[rows, places]",
        own_state_changes_nothing_and_anothers_does,
    ),
    "a token late": (
        "hidden_states[rows, places] = states",
        "hidden_states[rows, places - 1] = states",
        own_state_changes_nothing_and_anothers_does,
    ),
    "recorded a token late": (
        "use(hidden_states[rows, places]",
        "use(hidden_states[rows, places - 1]",
        recorded_states_are_the_models_own,
    ),
    "a layer late": (
        "[*model.layers, model.final_norm][layer]",
        "[*model.layers[1:], model.final_norm, model.final_norm][layer]",
        own_state_changes_nothing_and_anothers_does,
    ),
    "recorded a layer late": (
        "states.residual[:, i]) for i",
        "states.residual[:, i - 1]) for i",
        recorded_states_are_the_models_own,
    ),
    "row 0 for all": ("states.to(hidden_states)", "states[:1].to(hidden_states)", the_last_state_is_the_output),
    "the change is dropped": (
        'return args, kwargs | {"hidden_states": changed}',
        "return args, kwargs",
        own_state_changes_nothing_and_anothers_does,
    ),
    "the change of a positional input is dropped": (
        "return (changed, *args[1:]), kwargs",
        "return args, kwargs",
        the_last_state_is_the_output,
    ),
    "the last block instead of the last state": (
        "[*model.layers, model.final_norm][layer]",
        "[*model.layers, model.layers[-1]][layer]",
        the_last_state_is_the_output,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault):
    old, new, check = FAULTS[fault]
    with broken(patching, old, new) as copy, pytest.raises((AssertionError, BadParameter)):
        check(copy, load("llava"))


def test_generation_goes_on_from_the_patched_prompt():
    model = load("llava")
    batch, other = encoded(model), encoded(model, first=10)
    theirs, _ = record(patching, model, other, "end")
    runs = []
    for cached in (True, False):
        with patching.patched(model, theirs.residual[:, 2], position(batch, "end"), 2):
            runs.append(generated(model, batch, cached))
    assert close(*runs)
    assert not close(runs[0], generated(model, batch), 1e-3)


def test_steering_is_a_line_between_two_states():
    own, other = torch.randn(2, 5), torch.randn(2, 5)
    assert torch.equal(patching.steered(own, other, 0.0), own)
    assert close(patching.steered(own, other, 1.0), other, 1e-6)
    assert close(patching.steered(own, other, 2.0) - other, other - own, 1e-6)


def test_bad_input():
    model = load("llava")
    batch = encoded(model)
    states, before = record(patching, model, batch, "end")
    end = position(batch, "end")
    attempt = lambda state, at, layer: patching.patched(model, state, at, layer)
    attention = lambda first: patching.patched_attention(model, states.attention_input, end, first)
    good = states.residual[:, 1]
    for context, kind, message in [
        (lambda: attempt(good, end, 5), BadParameter, "layer=5.*0 … 4"),
        (lambda: attempt(good, end, -1), BadParameter, "layer=-1.*0 … 4"),
        (lambda: attempt(good, end, 1.5), BadParameter, r"layer=1\.5"),
        (lambda: attempt(good[:2], end[:2], 1), BadParameter, "2 positions for a batch of 3"),
        (lambda: attempt(good[:, :5], end, 1), BadStates, "where"),
        (lambda: attempt(good * torch.nan, end, 1), BadStates, "not finite"),
        (lambda: attention(4), BadParameter, "first=4.*blocks 0 … 3"),
        (lambda: attention(-1), BadParameter, "first=-1.*blocks 0 … 3"),
    ]:
        with pytest.raises(kind, match=message), context():
            logits(model, batch)
    with pytest.raises(BadParameter, match="nothing was read or patched"), attempt(good, end, 1):
        pass
    assert torch.equal(logits(model, batch), before)  # no hook is left


def opened(tool, model, states, at):
    """The context of a tool, with states that are good."""
    return {
        "recorded": lambda: patching.recorded(model, at),
        "patched": lambda: patching.patched(model, states.residual[:, 1], at, 1),
        "patched_attention": lambda: patching.patched_attention(model, states.attention_input, at, 1),
    }[tool]()


@pytest.mark.parametrize("tool", ["recorded", "patched", "patched_attention"])
def test_a_position_outside_the_prompt_is_refused(tool):
    model = load("llava")
    for side in ("left", "right"):
        batch = encoded(model, side=side)
        states, before = record(patching, model, batch, "end")
        end = position(batch, "end")
        row, place = batch.tokens.where("padding").nonzero()[-1].tolist()
        moved = lambda to, row=row, end=end: end.where(torch.arange(3) != row, torch.tensor(to))
        for to in (place, -1, 10_000):
            refused = pytest.raises(BadParameter, match=f"Position {to} of row {row} is outside its prompt")
            with refused, opened(tool, model, states, moved(to)):
                logits(model, batch)
        for wrong in (batch.tokens.where("end"), end.float(), end[:0], end[:, None]):
            with pytest.raises(BadParameter, match=r"position must be \(B,\) int"), opened(tool, model, states, wrong):
                logits(model, batch)
        assert torch.equal(logits(model, batch), before)  # no hook is left


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_text_alone_has_no_token_of_an_image_to_patch(family):
    model = load(family)
    batch = vlms.encode(model, None, [text.removeprefix("<image> ") for text in TEXTS])
    for group in ("end", "last image"):
        with pytest.raises(BadParameter, match=r"Row 0 has 0 tokens in the set.*prompt without an image"):
            position(batch, group)
    states, before = record(patching, model, batch, "last")  # what every prompt has can be read and patched
    assert close(patch(patching, model, batch, "last", states, 2), before, 1e-5)
