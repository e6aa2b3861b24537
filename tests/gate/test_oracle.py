"""Knockout, shares, patching and steering against a language model written by hand (`oracle`), to 1e-5."""

import pytest
import torch
from oracle import language_model

from page_code import page_code
from peaks_and_gates.gate import attention, patching
from tiny_vlms import encoded, load, logits


@pytest.fixture(params=[("chameleon", "sdpa"), ("llava", "eager"), ("pixtral", "sdpa")], ids=lambda kind: kind[0])
def model(request):
    return load(*request.param, torch.float64)


def prompt(model, first=0):
    """A prompt alone, and what block 0 reads of it, (T, D)."""
    batch, embedded = encoded(model, 1, first=first), []
    handle = model.layers[0].register_forward_pre_hook(lambda module, args: embedded.append(args[0][0]))
    logits(model, batch)
    handle.remove()
    return batch, embedded[0]


def agree(model, batch, expected):
    """Of Chameleon's logits those of the image's codes are shut out, and left out here."""
    ours = logits(model, batch)[0].double()
    allowed = ours > torch.finfo(torch.float32).min / 2
    assert (ours - expected)[allowed].abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("how", ["zero", "mask", "mean"])
@pytest.mark.parametrize(("layers", "heads"), [(range(4), None), ([1, 2], None), (range(4), [0, 2])])
def test_knockout(model, how, layers, heads):
    batch, x = prompt(model)
    sources, targets = batch.tokens.where("end", "special"), batch.tokens.where("after")
    closed = (targets[0][:, None] & sources[0]).expand(4, -1, -1).clone()  # (H, T, T)
    closed[[head for head in range(4) if heads and head not in heads]] = False
    image = batch.tokens.where("image")
    expected = language_model(model, x, closed, how, layers, mean_of=image[0])[0]
    assert (expected - language_model(model, x)[0]).abs().max() > 1e-3
    with attention.knockout(model, sources, targets, how, layers, heads, mean_of=image):
        agree(model, batch, expected)


def test_attention_shares(model):
    batch, x = prompt(model)
    _, weights, _, attention_input = language_model(model, x)
    queries, n_heads = batch.tokens.where("after"), weights.shape[1]
    groups = {name: batch.tokens.where(name) for name in ("image", "end", "text")}
    # And every token for itself: more groups than a head has dimensions.
    groups |= {place: torch.arange(len(x))[None] == place for place in range(len(x))}
    assert len(groups) > 16
    with attention.attention_shares(model, groups, queries) as shares:
        logits(model, batch)
    lengths = torch.empty(len(weights), n_heads, len(x), dtype=torch.float64)  # of projected values
    for layer, block in enumerate(model.layers):
        value = attention_input[layer] @ block.self_attn.v_proj.weight.double().T  # (T, KV d)
        size = block.self_attn.o_proj.weight.shape[1] // n_heads
        for head in range(n_heads):
            start = head * value.shape[1] // size // n_heads * size  # the key head that serves this one
            project = block.self_attn.o_proj.weight.double()[:, head * size : (head + 1) * size]  # (D, d)
            lengths[layer, head] = (value[:, start : start + size] @ project.T).norm(dim=1)
    for g, group in enumerate(groups.values()):
        for name, of_key in (("weights", torch.ones_like(lengths)), ("contributions", lengths)):
            read = weights[:, :, queries[0]] * of_key[:, :, None]  # (L, H, Q, T)
            expected = read[..., group[0]].sum(-1).mean(-1)  # (L, H)
            assert (shares[name][0, :, :, g] - expected).abs().max() < 1e-5 * read.max()


def test_states_patching_and_steering(model):
    (batch, x), (other, x_other) = prompt(model), prompt(model, first=10)
    end, place = (patching.single_position(one.tokens.where("gate")) for one in (other, batch))
    with patching.read_states(model, end) as states:
        logits(model, other)
    _, _, residual, attention_input = language_model(model, x_other)
    own = language_model(model, x)[2][:, place[0]]
    assert (states.residual[0] - residual[:, end[0]]).abs().max() < 1e-5 * residual.abs().max()
    assert (states.attention_input[0] - attention_input[:, end[0]]).abs().max() < 1e-5
    for layer in range(5):
        theirs = residual[layer, end[0]]
        for strength in (1.0, 0.5, 2.0):
            goal = page_code("gate/steering")["steered"](own[layer], theirs, strength)
            by_hand = (1 - strength) * own[layer] + strength * theirs
            expected = language_model(model, x, position=place, states={("residual", layer): by_hand})[0]
            with patching.patched(model, goal[None], place, layer):
                agree(model, batch, expected)
    for first in range(4):
        goals = {("attention", i): attention_input[i, end[0]] for i in range(first, 4)}
        with patching.patched_attention(model, states.attention_input, place, first):
            agree(model, batch, language_model(model, x, position=place, states=goals)[0])
