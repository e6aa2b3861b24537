"""Knockout, attention shares and wirings on a tiny model of every family.  How much they change: see test_oracle."""

import copy
import gc
from functools import partial

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from peaks_and_gates.errors import BadParameter, ModelUnavailable
from peaks_and_gates.gate import attention, vlm
from tiny_vlms import FAMILIES, TEXTS, close, encoded, generated, load, logits, picture

HOW = pytest.mark.parametrize("how", ["zero", "mask", "mean"])


@pytest.fixture(params=FAMILIES)
def model(request):
    return load(request.param)


def cut(model, batch, sources, targets, how="mask", run=logits, **settings):
    mean_of = batch.tokens.where("image") if how == "mean" else None
    with attention.knockout(model, sources, targets, how, mean_of=mean_of, **settings):
        return run(model, batch)


def shares_of(model, batch):
    image, queries = batch.tokens.where("image"), batch.tokens.where("after")
    with attention.attention_shares(model, {"image": image}, queries) as shares:
        logits(model, batch)
    return shares["contributions"]


@HOW
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_its_rows(model, how, side):
    """Rows of other lengths, images of other sizes, padded on either side, are what each is alone."""
    images = [picture(i, size) for i, size in enumerate([(64, 64), (128, 64), (64, 128)])]
    batch = vlm.encode(model, images, TEXTS, side)
    together = cut(model, batch, batch.tokens.where("end"), batch.tokens.where("after"), how)
    for i in range(3):
        alone = vlm.encode(model, [images[i]], [TEXTS[i]])
        expected = cut(model, alone, alone.tokens.where("end"), alone.tokens.where("after"), how)[0]
        assert close(together[i][batch.tokens.where("prompt")[i]], expected)
        assert close(shares_of(model, batch)[i], shares_of(model, alone)[0])


@HOW
def test_generated_text_is_cut_too_with_a_cache_and_without(model, how):
    batch = encoded(model)
    sets = batch.tokens.where("image"), batch.tokens.where("after")
    runs = [cut(model, batch, *sets, how, lambda *args, c=cached: generated(*args, c)) for cached in (True, False)]
    assert close(*runs)
    assert not close(runs[0], generated(model, batch), 1e-3)
    both = [encoded(model, first=first) for first in (0, 10)]
    blind = [cut(model, b, b.tokens.where("block"), b.tokens.where("after"), "mask", generated) for b in both]
    assert close(*blind, 1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_nothing_is_left_behind(implementation):
    model = load("chameleon", implementation)
    batch = encoded(model)
    before = logits(model, batch)
    sets = batch.tokens.where("image"), batch.tokens.where("after")
    with pytest.raises(KeyError), attention.knockout(model, *sets):
        logits(model, batch)
        raise KeyError("an error of the caller's")
    assert model.text_config._attn_implementation == implementation and not attention._running
    assert torch.equal(logits(model, batch), before)


def test_bad_input():
    model = load("llava")
    batch = encoded(model)
    end, after = batch.tokens.where("end"), batch.tokens.where("after")
    second, prompt = torch.arange(3)[:, None] == 1, batch.tokens.where("prompt")
    run, shorter = partial(cut, model, batch), vlm.encode(model, [picture(0)] * 3, TEXTS[:1] * 3)
    for wrong, message in [
        (lambda: run(end, after, "delete"), "how='delete'"),
        (lambda: attention.knockout(model, end, after, "mean"), "'mean' with mean_of"),
        (lambda: run(end, after, layers=[0, 4]), r"Blocks \[4\] of .* blocks, 0 … 3"),
        (lambda: run(end, after, layers=[]), "nothing was changed"),
        (lambda: run(end & second, after), r"sources is empty in rows \[0, 2\]"),
        (lambda: run(end, after & False), r"targets is empty in rows \[0, 1, 2\]"),
        (lambda: run(end[:1], after), r"one shape.*\(1, 55, torch.bool\)"),
        (lambda: run(end, after, heads=[-1]), r"heads=\[-1\].* 0 … 3"),
        (lambda: run(end, after, heads=torch.arange(4) > 2), "give some of the numbers"),
        (lambda: run(end, after, layers=np.arange(4) > 2), "give some of the numbers"),
        (lambda: run(end, after, run=lambda *_: (logits(model, batch), logits(model, shorter))), "55 tokens.* 3 of"),
        (lambda: run(end[:1], after[:1]), "have 1 rows of 55 tokens, the model runs 3 of 55"),
        (lambda: run(end[:, 1:], after[:, 1:]), "have 3 rows of 54 tokens, the model runs 3 of 55"),
        (lambda: run(prompt, prompt), "nothing left to read"),
        (lambda: run(end, after, run=lambda *_: None), "never asked for attention"),
        (lambda: run(end, after, run=lambda *_: run(end, after)), "do not nest"),
    ]:
        with pytest.raises(BadParameter, match=message):
            wrong()
    generate = torch.inference_mode()(partial(model.network.generate, **batch.inputs, max_new_tokens=2))
    for wrong in ({"cache_implementation": "static"}, {"num_beams": 2}):
        with pytest.raises(BadParameter, match="generate greedily"), attention.knockout(model, end, after):
            generate(**wrong)
    for queries, groups, message in [
        (after, [end], "one pass"),
        (second & after, [end], r"empty in rows \[0, 2\]"),
        (after, [end, end[:1]], "one shape"),
        (after, [end.float()], "must be bool"),
    ]:
        groups = dict(enumerate(groups))
        with pytest.raises(BadParameter, match=message), attention.attention_shares(model, groups, queries):
            generate()


def test_an_attention_that_cannot_be_replaced(monkeypatch):
    """Flash-attention and models with masks of their own give none, or one of two dimensions."""
    model = load("llava")
    batch, forward = encoded(model), model.layers[1].forward
    run = lambda: cut(model, batch, batch.tokens.where("end"), batch.tokens.where("after"))
    for mask in (None, batch.inputs["attention_mask"]):
        skip = lambda *args, mask=mask, **settings: forward(*args, **settings | {"attention_mask": mask})
        monkeypatch.setattr(model.layers[1], "forward", skip)
        with pytest.raises(ModelUnavailable, match="Block 1 got no mask"):
            run()
    monkeypatch.setattr(model.text_config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ModelUnavailable, match=r"flash_attention_2.*attention='sdpa'"):
        run()


# --- wirings ---

WIRED = {"gated": "chameleon", "open": "emu3"}


def wired(wiring, implementation="sdpa"):
    """A tiny model with a wiring, and the one without, which has the same weights."""
    plain = load(WIRED[wiring], implementation)
    network = copy.deepcopy(plain.network)
    network.config.wiring = wiring
    attention.wire(network, plain.processor, plain.family)
    return type(plain)(plain.name, network, plain.processor, plain.family, plain.template), plain


def closed(batch, wiring):
    """The sets of a wiring, written out."""
    targets = {"gated": "after", "open": "end"}[wiring]
    return batch.tokens.where("begin", "image", "special"), batch.tokens.where(targets)


@pytest.mark.parametrize("wiring", WIRED)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_wiring_is_a_knockout_that_is_always_on(wiring, implementation):
    model, plain = wired(wiring, implementation)
    for n, side in ((3, "left"), (3, "right"), (1, "left")):
        batch = encoded(model, n, side)
        real = batch.tokens.where("prompt")
        expected = cut(plain, batch, *closed(batch, wiring))[real]
        assert close(logits(model, batch)[real], expected)
        assert not close(expected, logits(plain, batch)[real], 1e-3)


@pytest.mark.parametrize("wiring", WIRED)
def test_a_wiring_holds_with_a_cache_and_without(wiring):
    model, plain = wired(wiring)
    batch = encoded(model)
    expected = cut(plain, batch, *closed(batch, wiring), run=generated, generated=wiring == "gated")
    assert close(generated(model, batch), expected)
    assert close(generated(model, batch, cached=False), expected)
    assert not close(expected, generated(plain, batch), 1e-3)


def test_a_cut_comes_on_top_of_a_wiring():
    model, plain = wired("gated")
    batch = encoded(model)
    real, after = batch.tokens.where("prompt"), batch.tokens.where("after")
    both = cut(model, batch, batch.tokens.where("end"), after)
    assert close(both[real], cut(plain, batch, batch.tokens.where("block"), after)[real])
    with attention.attention_shares(model, {"closed": closed(batch, "gated")[0]}, after) as shares:
        logits(model, batch)
    assert shares["weights"].abs().max() < 1e-6
    zeroed = cut(model, batch, batch.tokens.where("end"), after, "zero")
    assert not close(zeroed[after], logits(model, batch)[after], 1e-3)


def test_a_wiring_leaves_text_alone():
    model, plain = wired("gated")
    logits(model, encoded(model))  # what was closed there must not be closed here
    batch = vlm.encode(model, None, ["What is this? A dark shade of green, or of red, or whatever one may see."] * 3)
    assert close(logits(model, batch), logits(plain, batch), 1e-6)


@pytest.mark.parametrize("wiring", WIRED)
def test_a_model_is_trained_under_the_mask_it_runs_with(wiring):
    model, plain = wired(wiring)
    batch = encoded(model, 1)
    n = batch.inputs["input_ids"].shape[1]
    reads = torch.ones(1, n, n, dtype=torch.bool).tril() & ~attention.closed_pairs(batch.tokens, wiring)
    with torch.inference_mode():
        inputs = {name: value for name, value in batch.inputs.items() if name != "attention_mask"}
        trained = plain.network.model(**inputs, attention_mask=reads[:, None]).last_hidden_state
        assert close(trained, model.network(**batch.inputs, output_hidden_states=True).hidden_states[-1])
    hidden = batch.tokens.where("after")[:, :, None] & batch.tokens.where("end")[:, None, :]
    assert torch.equal(attention.closed_pairs(batch.tokens, "hidden"), hidden)


def test_a_cache_is_found_whatever_its_name():
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4), 0)
    for name in ("past_key_values", "cache", "a name to come"):
        assert attention.cached_tokens({"input_ids": torch.zeros(1, 3), name: cache}) == 5
    assert attention.cached_tokens({"past_key_values": None, "cache": DynamicCache()}) == 0


def test_a_wiring_is_carried_in_the_config_and_forgotten_with_its_model(tmp_path, monkeypatch):
    model, plain = wired("gated")
    monkeypatch.setattr(plain.network.config, "wiring", "gated", raising=False)
    plain.network.save_pretrained(tmp_path)
    plain.processor.save_pretrained(tmp_path)
    loaded, batch = vlm.load(str(tmp_path), torch.float32, "cpu"), encoded(model)
    assert close(logits(loaded, batch), logits(model, batch), 1e-6)
    key = id(loaded.text_config)
    assert key in attention._closed
    del loaded
    gc.collect()
    assert key not in attention._closed
