"""What must be equal: pairs of ways to one number, as a share of the largest number, and the deviation allowed.

In this field a wrong number comes without an error. Each of these ways is a place where one would.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import make_questions
from peaks_and_gates import models
from peaks_and_gates.gate import attention, patching
from peaks_and_gates.gate.split import split_prompt
from peaks_and_gates.landscape.extraction import extract
from peaks_and_gates.landscape.questions import build_prompts
from tiny_models import plain_loop
from tiny_vlms import FAMILIES, encoded, generated, load, logits


def equal(one, other, allowed):
    """Chameleon shuts tokens out with the least number there is, next to which any difference is nothing: such numbers
    must be the same, and count no further.
    """
    assert one.shape == other.shape and one.numel() > 0
    shut = other <= torch.finfo(torch.float32).min
    assert torch.equal(one[shut], other[shut]), "other tokens are shut out"
    one, other = one[~shut].double(), other[~shut].double()
    deviation = float((one - other).abs().max() / other.abs().max())
    assert deviation <= allowed, f"{deviation:.2e} apart, {allowed:.0e} allowed"


@pytest.fixture(scope="module")
def prompts():
    return build_prompts(make_questions(3, 6), n_shots=5, n_orders=2)


def test_language_models(tiny, prompts, tmp_path):
    """Prefixes shared or whole, batched or single, on SDPA or eager, on one device or split over two."""
    states = extract(tiny, prompts)
    equal(states["norm"], plain_loop(tiny, prompts)[1], 1e-9)
    equal(states["residual"], extract(tiny, prompts, batch_tokens=1)["residual"], 1e-9)
    laptop = models.load("smollm2-135m-instruct", dtype=torch.float32)
    equal(extract(laptop, prompts[:4])["norm"], plain_loop(laptop, prompts[:4])[1], 1e-4)
    folder, ids = models.source("tiny-llama")[0], torch.arange(3, 40)[None]
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    places |= {f"model.layers.{i}": ("cpu", "disk")[i // 2] for i in range(tiny.n_layers)}
    ways = {"attn_implementation": "eager"}, {"device_map": places, "offload_folder": tmp_path}
    with torch.inference_mode():
        whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
        for way in ways:
            equal(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **way)(ids).logits, whole, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_vision_language_models(family):
    """Padded left, right or not at all, on SDPA or eager, cached or not; and with interventions that change nothing."""
    model, eager = load(family), load(family, "eager")
    batch, right = encoded(model), encoded(model, side="right")
    prompt, whole = batch.tokens.where("prompt"), logits(model, batch)
    equal(logits(model, right)[right.tokens.where("prompt")], whole[prompt], 1e-4)
    equal(logits(model, encoded(model, 1))[0], whole[0][prompt[0]], 1e-4)
    equal(logits(eager, batch)[prompt], whole[prompt], 1e-4)
    equal(generated(model, batch), generated(model, batch, cached=False), 1e-4)
    for how in ("zero", "mask"):
        with attention.knockout(model, None, batch.tokens.where("after"), how):
            equal(logits(model, batch)[prompt], whole[prompt], 1e-4)
    end = patching.single_position(batch.tokens.where("gate"))
    with patching.read_states(model, end) as states:
        logits(model, batch)
    with patching.patched(model, states.residual[:, 2], end, 2):
        equal(logits(model, batch)[prompt], whole[prompt], 1e-4)
    with torch.inference_mode():
        equal(model.network(**split_prompt(model, batch, end).inputs()).logits[:, -1], whole[:, -1], 1e-4)


def test_a_deviation_beyond_what_is_allowed_is_seen(tiny, prompts):
    states = extract(tiny, prompts[:2])["residual"]
    with pytest.raises(AssertionError, match="apart"):
        equal(states[:, 1:], states[:, :-1], 1e-4)
    kept, off = torch.ones(2, 3), torch.tensor([[1, 1, 2.0]]).expand(2, 3)
    shut = torch.full((2, 1), torch.finfo(torch.float32).min)
    for one, message in (([off, shut], "apart"), ([kept, kept[:, :1]], "shut out")):
        with pytest.raises(AssertionError, match=message):
            equal(torch.cat(one, 1), torch.cat([kept, shut], 1), 0.9)
