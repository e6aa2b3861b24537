"""Knockout and attention shares on a tiny model of every family, and what a fault in them would look like."""

import sys
from functools import partial

import pytest
import torch
from transformers import AttentionInterface

from peaks_and_gates import attention, vlms
from peaks_and_gates.errors import BadParameter, ModelUnavailable
from vlm_helpers import FAMILIES, TEXTS, broken, close, encoded, generated, load, logits, picture

# Checks take the module under test, so that each can be shown a broken one.


def nothing_masked_is_untouched(tools, family):
    model = load(family)
    batch = encoded(model)
    real = batch.tokens.where("padding").logical_not()
    before = logits(model, batch)
    for how in ("mask", "zero"):
        with tools.knockout(model, None, batch.tokens.where("after"), how):
            assert close(logits(model, batch)[real], before[real])
    assert torch.equal(logits(model, batch), before)


def text_is_blind_behind_a_wall(tools, family):
    model = load(family)
    one, other = encoded(model), encoded(model, first=10)
    assert torch.equal(one.tokens.kinds, other.tokens.kinds)
    after, block = one.tokens.where("after"), one.tokens.where("block")
    single = one.tokens.where("last image")
    moved = lambda sources: [logits_with(tools, model, batch, sources, after) for batch in (one, other)]
    a, b = moved(block)
    assert close(a[after], b[after], 1e-6)
    for left_open in (one.tokens.where("end"), single):
        a, b = moved(block & ~left_open)
        rows = torch.stack([(a[i] - b[i])[after[i]].abs().max() for i in range(len(a))])
        assert (rows > 1e-3).all()


def logits_with(tools, model, batch, sources, targets, how="mask", **settings):
    with tools.knockout(model, sources, targets, how, **settings):
        return logits(model, batch)


def zero_is_the_slow_reference(tools, family):
    model = load(family, "eager")
    batch = encoded(model)
    sources, targets = batch.tokens.where("end") | batch.tokens.random("image", 2, 0), batch.tokens.where("after")
    real = batch.tokens.where("padding").logical_not()
    heads, layers = [0, 3], [1, 2]
    expected = by_hand(model, batch, sources, targets, heads, layers)
    found = logits_with(tools, model, batch, sources, targets, "zero", heads=heads, layers=layers)
    assert close(found[real], expected[real])
    assert not close(found[targets], logits(model, batch)[targets], 1e-3)
    assert not close(expected[targets], logits_with(tools, model, batch, sources, targets, "zero")[targets], 1e-3)


def by_hand(model, batch, sources, targets, heads, layers):
    """Logits with attention weights set to zero after the softmax, one head and one example at a time."""
    blocks = {id(block.self_attn): i for i, block in enumerate(model.layers)}
    file = sys.modules[type(model.layers[0].self_attn).__module__]
    before = file.eager_attention_forward

    def edited(module, query, key, value, attention_mask, scaling, **kwargs):
        if id(module) not in blocks:
            return before(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        n_rep = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(n_rep, 1), value.repeat_interleave(n_rep, 1)
        weights = (query @ key.transpose(2, 3) * scaling + attention_mask).softmax(-1)
        if blocks[id(module)] in layers:
            for row in range(len(weights)):
                for head in heads:
                    for q in targets[row].nonzero().flatten():
                        weights[row, head, q, sources[row]] = 0
        return (weights @ value).transpose(1, 2).contiguous(), None

    file.eager_attention_forward = edited
    try:
        return logits(model, batch)
    finally:
        file.eager_attention_forward = before


def sdpa_is_eager(tools, family):
    for how in ("zero", "mask"):
        results = []
        for implementation in ("sdpa", "eager"):
            model = load(family, implementation)
            batch = encoded(model)
            sources, targets = batch.tokens.where("image"), batch.tokens.where("after")
            results.append(logits_with(tools, model, batch, sources, targets, how, heads=[0, 1])[targets])
        assert close(*results)


def batched_is_single(tools, family):
    """Rows of other lengths, padded on either side, are what each is alone."""
    model = load(family)
    for how in ("zero", "mask"):
        for side in ("left", "right"):
            batch = encoded(model, side=side)
            tokens = batch.tokens
            together = logits_with(tools, model, batch, tokens.where("end"), tokens.where("after"), how)
            for i in range(3):
                alone = vlms.encode(model, [picture(i)], [TEXTS[i]], side)
                sets = alone.tokens.where("end"), alone.tokens.where("after")
                expected = logits_with(tools, model, alone, *sets, how)[0]
                assert close(together[i][~tokens.where("padding")[i]], expected)


def cached_is_uncached(tools, family):
    model = load(family)
    batch = encoded(model)
    sources, targets = batch.tokens.where("image"), batch.tokens.where("after")
    for how in ("zero", "mask"):
        runs = []
        for cached in (True, False):
            with tools.knockout(model, sources, targets, how):
                runs.append(generated(model, batch, cached))
        assert close(*runs)
        assert not close(runs[0], generated(model, batch), 1e-3)


def what_is_generated_is_blind_too(tools, family):
    model = load(family)
    said = []
    for first in (0, 10):
        batch = encoded(model, first=first)
        with tools.knockout(model, batch.tokens.where("block"), batch.tokens.where("after"), "mask"):
            said.append(generated(model, batch))
    assert close(*said, 1e-5)


def shares_are_the_pattern(tools, family):
    """Against the full attention pattern, which eager attention can return."""
    model = load(family, "eager")
    batch = encoded(model)
    kinds = ["text", "image", "end"]
    groups = {kind: batch.tokens.where(kind) for kind in kinds}
    queries = batch.tokens.where("after")
    patterns = pattern_by_hand(model, batch)
    for implementation in ("eager", "sdpa"):
        model = load(family, implementation)
        with tools.attention_shares(model, groups, queries) as shares:
            logits(model, batch)
        assert shares.values.shape == (3, model.n_layers, model.n_heads, 3)
        for layer, pattern in enumerate(patterns):
            for row in range(3):
                expected = [pattern[row][:, queries[row]][:, :, groups[kind][row]].sum(-1).mean(-1) for kind in kinds]
                assert close(shares.values[row, layer], torch.stack(expected, -1))


def pattern_by_hand(model, batch):
    patterns = {}
    file = sys.modules[type(model.layers[0].self_attn).__module__]
    blocks = {id(block.self_attn): i for i, block in enumerate(model.layers)}
    before = file.eager_attention_forward

    def kept(module, *args, **kwargs):
        output, weights = before(module, *args, **kwargs)
        if id(module) in blocks:
            patterns[blocks[id(module)]] = weights
        return output, weights

    file.eager_attention_forward = kept
    try:
        logits(model, batch)
    finally:
        file.eager_attention_forward = before
    return [patterns[i] for i in range(model.n_layers)]


CHECKS = [
    nothing_masked_is_untouched,
    text_is_blind_behind_a_wall,
    zero_is_the_slow_reference,
    sdpa_is_eager,
    batched_is_single,
    cached_is_uncached,
    what_is_generated_is_blind_too,
    shares_are_the_pattern,
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_family(check, family):
    check(attention, family)


FAULTS = {
    "sources a token late": (
        "blocked = grown(sources, n_keys, False)",
        "blocked = grown(sources.roll(1, 1), n_keys, False)",
        text_is_blind_behind_a_wall,
    ),
    "last block left out": (
        "if layer not in run.layers:",
        "if layer + 1 not in run.layers:",
        text_is_blind_behind_a_wall,
    ),
    "end of the sets taken for their begin": (
        "[:, seen:]  # (B, Q)",
        "[:, : n_keys - seen]",
        cached_is_uncached,
    ),
    "generated tokens go free": (
        "reading = grown(targets, n_keys, generated)",
        "reading = grown(targets, n_keys, False)",
        what_is_generated_is_blind_too,
    ),
    "row 0 for all": (
        "reading = grown(targets,",
        "reading = grown(targets[:1].expand_as(targets),",
        batched_is_single,
    ),
    "weights shared out again": ('if how == "mask":', "if True:", zero_is_the_slow_reference),
    "heads ignored": (
        "reading[:, rows, None, None] & chosen[:, None]",
        "reading[:, rows, None, None]",
        zero_is_the_slow_reference,
    ),
    "layers ignored": ("if layer not in run.layers:", "if False:", zero_is_the_slow_reference),
    "keys for values": ("silent = value.masked_fill(", "silent = key.masked_fill(", zero_is_the_slow_reference),
    "changed rows of other examples": (
        "torch.where(taken, changed, output[:, rows])",
        "changed",
        batched_is_single,
    ),
    "hook that never changes anything": (
        "return attend(query, key, value, _without(mask, pairs))",
        "return attend(query, key, value, mask)",
        text_is_blind_behind_a_wall,
    ),
    "shares not divided by their queries": ("/ weights.sum(1)[:, None, None]", "/ len(rows)", shares_are_the_pattern),
    "shares of the wrong block": (
        "shares.values[:, module.layer_idx]",
        "shares.values[:, module.layer_idx - 1]",
        shares_are_the_pattern,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault):
    old, new, check = FAULTS[fault]
    try:
        with (
            broken(attention, old, new) as copy,
            pytest.raises((AssertionError, RuntimeError, TypeError, BadParameter)),
        ):
            check(copy, "llava")
            check(copy, "idefics3")
    finally:
        for name in attention.IMPLEMENTATIONS.values():
            AttentionInterface.register(name, attention._attention)


def test_nothing_is_left_behind():
    for implementation in ("sdpa", "eager"):
        model = load("chameleon", implementation)
        batch = encoded(model)
        before = logits(model, batch)
        sets = batch.tokens.where("image"), batch.tokens.where("after")
        with pytest.raises(KeyError), attention.knockout(model, *sets):
            logits(model, batch)
            raise KeyError("an error of the caller's")
        assert model.text_config._attn_implementation == implementation
        assert not attention._running
        assert torch.equal(logits(model, batch), before)


def test_layouts_may_differ_from_row_to_row():
    """Pictures of other sizes are other numbers of image tokens, hence another end in every row."""
    for family in ("pixtral", "llava_onevision", "idefics3"):
        model = load(family)
        sizes = [(64, 64), (128, 64), (64, 128)]
        shown = [picture(i, size) for i, size in enumerate(sizes)]
        batch = vlms.encode(model, shown, TEXTS, "left")
        ends = batch.tokens.where("end").int().argmax(1) - batch.tokens.where("padding").sum(1)
        assert len(set(ends.tolist())) > 1
        for how in ("zero", "mask"):
            sets = batch.tokens.where("end"), batch.tokens.where("after")
            together = logits_with(attention, model, batch, *sets, how)[:, -1]
            for i in range(3):
                alone = vlms.encode(model, [shown[i]], [TEXTS[i]])
                sets = alone.tokens.where("end"), alone.tokens.where("after")
                assert close(together[i], logits_with(attention, model, alone, *sets, how)[0, -1])


def test_image_tokens_can_be_hidden_from_each_other():
    model = load("llava")
    batch = encoded(model)
    image = batch.tokens.where("image")
    found = logits_with(attention, model, batch, image, image, "zero")
    assert not close(found[image], logits(model, batch)[image], 1e-3)
    with pytest.raises(BadParameter, match="nothing left to read"):
        everything = ~batch.tokens.where("padding")
        logits_with(attention, model, batch, everything, everything, "mask")


def test_bad_input():
    model = load("llava")
    batch = encoded(model)
    end, after = batch.tokens.where("end"), batch.tokens.where("after")
    second = torch.arange(3)[:, None] == 1
    longer = lambda chosen: torch.nn.functional.pad(chosen, (1, 0))
    run = partial(logits_with, attention, model, batch)
    for wrong, message in [
        (lambda: run(end, after, "delete"), "how='delete'"),
        (lambda: run(end, after, layers=[0, 99]), r"layers=\[0, 99\]: tiny-llava has layers 0 … 3"),
        (lambda: run(end, after, layers=[-1]), r"layers=\[-1\]: tiny-llava has layers 0 … 3"),
        (lambda: run(end, after, layers=[]), "at least one"),
        (lambda: run(end, after, heads=[4]), r"heads=\[4\]: tiny-llava has heads 0 … 3"),
        (lambda: run(end, after, heads=[-1, 2]), r"heads=\[-1, 2\]: tiny-llava has heads 0 … 3"),
        (lambda: run(end, after, heads=[]), "at least one"),
        (lambda: run(end & False, after), r"sources is empty in rows \[0, 1, 2\]"),
        (lambda: run(end & second, after), r"sources is empty in rows \[0, 2\]"),
        (lambda: run(end, after & False), r"targets is empty in rows \[0, 1, 2\]"),
        (lambda: run(end, after & second), r"targets is empty in rows \[0, 2\]"),
        (lambda: run(end[:, 1:], after), "sources must be"),
        (lambda: run(end.int(), after), "sources must be"),
        (lambda: run(end[:1], after[:1]), "have 1 rows, the model runs 3"),
        (lambda: run(end[:, 1:], after[:, 1:]), "have 54 tokens a row, the model runs 55: they are of another batch"),
        (lambda: run(longer(end), longer(after)), "have 56 tokens a row, the model runs 55"),
    ]:
        with pytest.raises(BadParameter, match=message):
            wrong()
    with pytest.raises(BadParameter, match="never asked for attention"), attention.knockout(model, end, after):
        pass
    cut = partial(attention.knockout, model, end, after)
    with pytest.raises(BadParameter, match="do not nest"), cut(), cut():
        pass
    generate = torch.inference_mode()(partial(model.network.generate, **batch.inputs, max_new_tokens=2))
    with pytest.raises(BadParameter, match="static or sliding"), cut():
        generate(cache_implementation="static")
    with pytest.raises(BadParameter, match="Beam search"), cut():
        generate(num_beams=2)
    shares = partial(attention.attention_shares, model, queries=after)
    with pytest.raises(BadParameter, match="in parts"), shares({str(i): end for i in range(99)}):
        logits(model, batch)
    with pytest.raises(BadParameter, match="one pass"), shares({"end": end}):
        generate()
    nowhere = shares({"end": end}, queries=second & after)
    with pytest.raises(BadParameter, match=r"queries is empty in rows \[0, 2\]"), nowhere:
        logits(model, batch)
    with pytest.raises(BadParameter, match="end must be"), shares({"end": end[:, 1:]}):
        logits(model, batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_text_alone_has_nothing_to_cut_or_measure(family):
    model = load(family)
    batch = vlms.encode(model, None, [text.removeprefix("<image> ") for text in TEXTS])
    end, after, text = (batch.tokens.where(group) for group in ("end", "after", "text"))
    advice = r"is empty in rows \[0, 1, 2\].*prompt without an image"
    with pytest.raises(BadParameter, match="sources " + advice):
        logits_with(attention, model, batch, end, text)
    with pytest.raises(BadParameter, match="targets " + advice):
        logits_with(attention, model, batch, text, after)
    with pytest.raises(BadParameter, match="queries " + advice), attention.attention_shares(model, {"end": end}, after):
        logits(model, batch)
    with pytest.raises(BadParameter, match=r"Row 0 has no token of end.*prompt without an image"):
        batch.tokens.where("end", required=True)
    first = text & (text.cumsum(1) == 1)
    assert not close(logits_with(attention, model, batch, first, text & ~first), logits(model, batch), 1e-3)


def test_an_attention_that_cannot_be_replaced(monkeypatch):
    model = load("llava")
    batch = encoded(model)
    monkeypatch.setattr(model.text_config, "_attn_implementation_internal", "flash_attention_2")
    sets = batch.tokens.where("end"), batch.tokens.where("after")
    for context in (
        attention.knockout(model, *sets),
        attention.attention_shares(model, {"end": sets[0]}, sets[1]),
    ):
        with pytest.raises(ModelUnavailable, match=r"flash_attention_2.*attention='sdpa'"), context:
            pass


def test_an_attention_without_a_mask_of_transformers(monkeypatch):
    """Flash-attention and models with masks of their own give none, or one of two dimensions."""
    model = load("llava")
    batch = encoded(model)
    sets = batch.tokens.where("end"), batch.tokens.where("after")
    right = model.layers[1].forward
    for mask in (None, batch.inputs["attention_mask"]):
        skip = lambda *args, attention_mask, mask=mask, **rest: right(*args, attention_mask=mask, **rest)
        monkeypatch.setattr(model.layers[1], "forward", skip)
        with pytest.raises(ModelUnavailable, match=r"Block 1 got no mask.*create_causal_mask"):
            logits_with(attention, model, batch, *sets)
