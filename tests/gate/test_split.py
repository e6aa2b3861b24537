"""Prompts in two parts say what undivided ones say, in every family."""

import pytest
import torch

from peaks_and_gates.gate import patching, vlm
from peaks_and_gates.gate.experiment import KNOCKOUTS, apply_knockout
from peaks_and_gates.gate.patching import single_position
from peaks_and_gates.gate.split import split_prompt
from tiny_vlms import FAMILIES, close, encoded, generated, load, logits, picture


def end(batch):
    return single_position(batch.tokens.where("gate"))


def states_of(model, batch):
    with patching.read_states(model, end(batch)) as states, torch.inference_mode():
        model.network(**batch.inputs)
    return states


@pytest.mark.parametrize("family", [*FAMILIES, "chameleon-34b"])
def test_the_next_word_is_the_same(family):
    """Twice, at every layer, with prompts of other lengths behind their images."""
    model = load(family)
    batch, states = encoded(model), states_of(model, encoded(model, first=10))
    prompt = split_prompt(model, batch, end(batch))
    assert prompt.keys_values is not None and prompt.inputs()["input_ids"].shape[1] < 40
    contexts = [(patching.patched, states.residual[:, layer], layer) for layer in range(1, model.n_layers)]
    contexts += [(patching.patched_attention, states.attention_input, 1)]
    for patch, state, layer in contexts:
        with patch(model, state, end(batch), layer), torch.inference_mode():
            whole = model.network(**batch.inputs).logits[:, -1]
        for _ in range(2):
            with patch(model, state, prompt.position, layer), torch.inference_mode():
                assert close(model.network(**prompt.inputs()).logits[:, -1], whole)
        assert not close(whole, logits(model, batch)[:, -1], 1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_generated_is_the_same(family):
    """With texts of other lengths before and behind the image, twice; and with the text blind to the image."""
    model = load(family)
    texts = ["<image> What is it?", "A longer one. <image> What is it?", "It. <image> How many are there of these?"]
    batch = vlm.encode(model, [picture(i) for i in range(3)], texts)
    prompt = split_prompt(model, batch, end(batch))

    def generate(tokens, inputs, name, how="zero"):
        with apply_knockout(model, tokens, [0, 1, 2], KNOCKOUTS[name], how):
            return generated(model, batch, inputs=inputs)

    plain = generate(batch.tokens, batch.inputs, "none")
    for _ in range(2):
        assert close(generate(*prompt.to_generate(), "none"), plain)
    for how in ("zero", "mask"):
        blind = generate(*prompt.to_generate(), "image → text", how)
        assert close(blind, generate(batch.tokens, batch.inputs, "image → text", how)) and not close(blind, plain, 1e-3)
    assert prompt.to_generate(("image",))[0] is batch.tokens  # the image was run beforehand
    for group in ("prompt", "after"):  # the tokens are told from padding
        assert torch.equal(prompt.batch.tokens.where(group).sum(1), batch.tokens.where(group).sum(1))


def test_what_cannot_be_split_is_run_undivided():
    model = load("chameleon")
    batch = encoded(model)
    begin = single_position(batch.tokens.where("begin"))  # the image is behind it
    assert split_prompt(model, batch, begin).keys_values is None
    wired = vlm.load("mini-gated")
    batch = vlm.encode(wired, [picture(0)], ["<image> what is it?"])
    prompt = split_prompt(wired, batch, end(batch))
    assert prompt.keys_values is None and prompt.inputs()["input_ids"] is batch.inputs["input_ids"]
