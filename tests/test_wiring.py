"""Wiring: a mask that is part of a model is what knockout with "mask" does to a model without one, wherever it runs."""

import copy
import gc
from functools import partial

import pytest
import torch
from transformers import AttentionMaskInterface, DynamicCache

from peaks_and_gates import attention, vlms, wiring
from peaks_and_gates.errors import UnknownName
from vlm_helpers import TEXTS, broken, close, encoded, generated, load, logits, picture

FAMILY = {"gated": "chameleon", "open": "emu3"}


def wired(kind, tools=wiring, implementation="sdpa"):
    """A tiny model with a wiring, which shares its weights with the one that has none."""
    plain = load(FAMILY[kind], implementation)
    network = copy.deepcopy(plain.network)
    network.config.wiring = kind
    tools.wire(network, plain.processor, plain.family)
    return type(plain)(plain.name, network, plain.processor, plain.family, plain.template, "wired"), plain


def closed(tokens, kind):
    """The sets of a wiring, written out."""
    sources = tokens.where("begin", "image", "special")
    return sources, tokens.where("after") if kind == "gated" else tokens.where("end")


def wired_is_knocked_out(tools, kind):
    for implementation in ("sdpa", "eager"):
        model, plain = wired(kind, tools, implementation)
        for n, side in ((3, "left"), (3, "right"), (1, "left")):
            batch = encoded(model, n, side)
            real = ~batch.tokens.where("padding")
            with attention.knockout(plain, *closed(batch.tokens, kind), "mask"):
                expected = logits(plain, batch)
            assert close(logits(model, batch)[real], expected[real])
            assert not close(expected[real], logits(plain, batch)[real], 1e-3)


def cached_is_uncached(tools, kind):
    model, plain = wired(kind, tools)
    batch = encoded(model)
    found = generated(model, batch)
    assert close(found, generated(model, batch, cached=False))
    with attention.knockout(plain, *closed(batch.tokens, kind), "mask", generated=kind == "gated"):
        assert close(found, generated(plain, batch))
    assert not close(found, generated(plain, batch), 1e-3)


def a_cut_comes_on_top(tools, kind):
    model, plain = wired(kind, tools)
    batch = encoded(model)
    tokens, after = batch.tokens, batch.tokens.where("after")
    real = ~tokens.where("padding")
    with attention.knockout(model, tokens.where("end"), after, "mask"):
        found = logits(model, batch)
    if kind == "gated":
        with attention.knockout(plain, tokens.where("block"), after, "mask"):
            assert close(found[real], logits(plain, batch)[real])
    with attention.attention_shares(model, {"closed": closed(tokens, kind)[0]}, closed(tokens, kind)[1]) as shares:
        logits(model, batch)
    assert shares.values.abs().max() < 1e-6
    with attention.knockout(model, tokens.where("end"), after, "zero"):
        zeroed = logits(model, batch)
    assert not close(zeroed[after], logits(model, batch)[after], 1e-3)
    assert model.text_config._attn_implementation == "wired_sdpa"


def test_a_cache_is_found_whatever_its_name():
    cache = DynamicCache()
    assert wiring.known({"input_ids": torch.zeros(1, 3), "cache": cache, "use_cache": True}) == 0
    cache.update(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4), 0)
    for name in ("past_key_values", "cache", "a name to come"):
        assert wiring.known({"input_ids": torch.zeros(1, 3), name: cache}) == 5
    assert wiring.known({"past_key_values": None}) == 0


def text_alone_is_not_touched(tools, kind):
    model, plain = wired(kind, tools)
    logits(model, encoded(model))  # what was closed there must not be closed here
    batch = vlms.encode(model, None, ["What is this? A dark shade of green, or of red, or whatever one may see."] * 3)
    assert close(logits(model, batch), logits(plain, batch), 1e-6)


CHECKS = [wired_is_knocked_out, cached_is_uncached, a_cut_comes_on_top, text_alone_is_not_touched]


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("check", CHECKS)
def test_wiring(check, kind):
    check(wiring, kind)


FAULTS = {
    "the hook never fires": ("if (ids == image).any():", "if False:", wired_is_knocked_out),
    "sources and targets swapped": ("return tokens.where(*sources), tokens.where(targets)",
                                    "return tokens.where(targets), tokens.where(*sources)", wired_is_knocked_out),
    "generated text is not closed": ('WIRINGS[wiring][1] == "after")', "False)", cached_is_uncached),
    "the last prompt is remembered": ("            _closed[id(config)] = None\n", "            pass\n",
                                      text_alone_is_not_touched),
    "queries taken from the front": ("[:, n_keys - n_queries :]", "[:, :n_queries]", cached_is_uncached),
    "no mask where the kernel makes its own": (
        '"allow_is_causal_skip": False',
        '"allow_is_causal_skip": True',
        wired_is_knocked_out,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault):
    old, new, check = FAULTS[fault]
    try:
        with (
            broken(wiring, old, new) as tools,
            pytest.raises((AssertionError, AttributeError, RuntimeError, TypeError)),
        ):
            check(tools, "gated")
    finally:
        for kind in wiring.WIRED:
            AttentionMaskInterface.register(wiring.WIRED[kind], partial(wiring.full_mask, kind))


def test_training_closes_what_the_model_closes():
    """The mask that a mini is trained under is the one it runs with."""
    for kind in FAMILY:
        model, plain = wired(kind)
        batch = vlms.encode(model, [picture(0)], TEXTS[:1])
        ids, tokens = batch.inputs["input_ids"], batch.tokens
        n = ids.shape[1]
        earlier = torch.ones(1, n, n, dtype=torch.bool).tril() & ~wiring.closed_pairs(tokens, kind)
        with torch.inference_mode():
            given = {k: v for k, v in batch.inputs.items() if k != "attention_mask"}
            trained = plain.network.model(**given, attention_mask=earlier[:, None]).last_hidden_state
            expected = model.network(**batch.inputs, output_hidden_states=True)
        assert close(trained, expected.hidden_states[-1])


def test_hidden_is_the_end_token_knocked_out():
    model = load("chameleon")
    tokens = encoded(model).tokens
    pairs = tokens.where("after")[:, :, None] & tokens.where("end")[:, None, :]
    assert torch.equal(wiring.closed_pairs(tokens, "hidden"), pairs)


def test_nothing_is_kept_of_a_model_that_is_gone():
    model, _ = wired("gated")
    logits(model, encoded(model))
    key = id(model.text_config)
    assert key in wiring._closed
    del model
    gc.collect()
    assert key not in wiring._closed


def test_an_unknown_wiring_is_refused():
    model = load("chameleon")
    network = copy.deepcopy(model.network)
    network.config.wiring = "gate"
    with pytest.raises(UnknownName, match="Did you mean 'gated'"):
        wiring.wire(network, model.processor, model.family)
    with pytest.raises(UnknownName, match="wiring"):
        wiring.closed_pairs(encoded(model).tokens, "gate")


def test_a_wiring_is_carried_in_the_config(tmp_path):
    model, plain = wired("gated")
    plain.network.config.wiring = "gated"
    try:
        plain.network.save_pretrained(tmp_path)
    finally:
        del plain.network.config.wiring
    plain.processor.save_pretrained(tmp_path)
    loaded = vlms.load(str(tmp_path), torch.float32, "cpu")
    batch = encoded(model)
    assert close(logits(loaded, batch), logits(model, batch), 1e-6)
    assert loaded.text_config._attn_implementation == "wired_sdpa"
