"""Prompts in two parts say what whole ones say, and what would be wrong if they did not."""

import pytest
import torch

from peaks_and_gates import interventions, tails
from peaks_and_gates.gate import patching, vlm
from peaks_and_gates.gate.patching import single_position
from peaks_and_gates.interventions import CUTS, cutting
from vlm_helpers import FAMILIES, broken, close, encoded, load, picture


def end(batch):
    return single_position(batch.tokens.where("end"))


def states_of(model, batch):
    with patching.read_states(model, end(batch)) as states, torch.inference_mode():
        model.network(**batch.inputs)
    return states


def whole(tools, model, batch, position):
    return tails.Tail(batch, 0, position, None)


def last_logits(model, batch, inputs):
    with torch.inference_mode():
        found = model.network(**inputs).logits.float()
    return found[torch.arange(3), single_position(batch.tokens.where("last")) - batch.inputs["input_ids"].shape[1]]


def says_the_same(tools, model):
    """Twice, at every layer, with prompts of other lengths behind their images."""
    batch, states = encoded(model, side="right"), states_of(model, encoded(model, first=10))
    rest = tools.tail(model, batch, end(batch))
    assert (
        rest.keys_values is not None and rest.inputs()["input_ids"].shape[1] < 40 < batch.inputs["input_ids"].shape[1]
    )
    for layer in range(1, model.n_layers):
        for _ in range(2):
            with patching.patched(model, states.residual[:, layer], rest.position, layer):
                found = last_logits(model, batch, rest.inputs())
        with patching.patched(model, states.residual[:, layer], end(batch), layer):
            expected = last_logits(model, batch, batch.inputs)
        assert close(found, expected)
        with patching.patched_attention(model, states.attention_input, rest.position, layer):
            found_of_attention = last_logits(model, batch, rest.inputs())
        with patching.patched_attention(model, states.attention_input, end(batch), layer):
            assert close(found_of_attention, last_logits(model, batch, batch.inputs))
        assert not close(found, last_logits(model, batch, batch.inputs), 1e-3)


def generates_the_same(tools, model):
    """With texts of other lengths before and behind the image, twice; and with the text blind to the image."""
    texts = ["<image> What is it?", "A longer one. <image> What is it?", "It. <image> How many are there of these?"]
    batch = vlm.encode(model, [picture(i) for i in range(3)], texts)
    states = states_of(model, vlm.encode(model, [picture(10 + i) for i in range(3)], texts))
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    settings |= {"output_logits": True, "suppress_tokens": [model.network.config.image_token_id]}

    def run(inputs, position):
        with patching.patched(model, states.residual[:, 2], position, 2), torch.inference_mode():
            return torch.stack(model.network.generate(**inputs, **settings).logits)

    rest = tools.tail(model, batch, end(batch))
    assert rest.keys_values is not None
    run(rest.to_generate(), rest.position)
    found = run(rest.to_generate(), rest.position)
    assert close(found, run(batch.inputs, end(batch)))

    def cut(inputs, tokens, how):
        with cutting(model, tokens, [0, 1, 2], CUTS["image → text"], how), torch.inference_mode():
            return torch.stack(model.network.generate(**inputs, **settings).logits)

    for how in ("zero", "mask"):
        blind = cut(rest.to_generate(), rest.batch.tokens, how)
        assert close(blind, cut(batch.inputs, batch.tokens, how)) and not close(blind, found, 1e-3)
    for group in ("prompt", "after"):  # the tokens are told from what is filled in
        assert torch.equal(rest.batch.tokens.where(group).sum(1), batch.tokens.where(group).sum(1))


CHECKS = [says_the_same, generates_the_same]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_family(check, family):
    check(tails, load(family))


FAULTS = {
    "the cache is one for all runs": ("own.layers = [copy.copy(layer) for layer in self.keys_values.layers]", "pass"),
    "the token's place is that in the whole prompt": (
        "Tail(parted, start, position - position.min(), keys_values)",
        "Tail(parted, start, position, keys_values)",
    ),
    "the mask is cut like the tokens": (
        '["attention_mask"]}\n        return behind',
        '["attention_mask"][:, self.start :]}\n        return behind',
    ),
    "positions begin anew": (
        "whole[name][:, self.start :] for",
        "whole[name][:, self.start * (name == 'input_ids') :][:, : whole[name].shape[1] - self.start] for",
    ),
    "the token itself is run beforehand": (
        "return replace(batch, inputs=inputs",
        "start += 1\n    return replace(batch, inputs=inputs",
    ),
    "another batch's image": (
        "model.network(**inputs,",
        'model.network(**(inputs | {"pixel_values": inputs["pixel_values"].flip(0)}),',
    ),
    "what is filled in is seen": ('"attention_mask": 0,', '"attention_mask": 1,'),
    "what is filled in counts as text": ('KINDS.index("padding"))', 'KINDS.index("text"))'),
    "the rest is counted from the front": (
        "n_tokens - start - behind + columns)",
        "position[:, None] - start + columns)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault):
    with broken(tails, *FAULTS[fault]) as copy, pytest.raises(Exception):  # noqa: B017 - a wrong number or any error
        for check in CHECKS:
            check(copy, load("llava"))


def test_what_cannot_be_parted_is_run_whole():
    model = load("chameleon")
    batch = encoded(model)
    in_front = single_position(batch.tokens.where("begin"))
    assert tails.tail(model, batch, in_front).keys_values is None  # the image is behind it
    wired = vlm.load("mini-gated")
    batch = vlm.encode(wired, [picture(0)], ["<image> what is it?"])
    rest = tails.tail(wired, batch, end(batch))
    assert rest.keys_values is None and rest.inputs()["input_ids"] is batch.inputs["input_ids"]


@pytest.mark.parametrize("family", ["chameleon", "llava"])
def test_patched_outputs_are_those_of_whole_prompts(family, monkeypatch):
    model, text = load(family), ["<image> What is it?"] * 3
    batch, source = (vlm.encode(model, [picture(first + i) for i in range(3)], text) for first in (0, 10))
    steps = [("none", 0), *(("residual", i) for i in range(5)), *(("attention", i) for i in range(4))]
    theirs, found = interventions.outputs(model, batch, source, steps)
    monkeypatch.setattr(interventions, "tail", lambda *given: whole(tails, *given))
    same, expected = interventions.outputs(model, batch, source, steps)
    assert torch.equal(theirs, same)
    assert all(close(found[step], expected[step]) for step in steps)
    assert not close(found["residual", 2], found["none", 0], 1e-3)
