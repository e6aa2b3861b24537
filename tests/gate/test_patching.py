"""Activation patching on a tiny model of every family.  What it puts where: see test_oracle."""

import pytest
import torch

from page_code import page_code
from peaks_and_gates.errors import BadParameter, BadStates
from peaks_and_gates.gate import patching, pictures, vlm
from peaks_and_gates.gate.experiment import Experiment, first_token
from tiny_vlms import FAMILIES, close, encoded, generated, load, logits


@pytest.fixture(params=[*FAMILIES, "chameleon-34b"])
def model(request):
    return load(request.param)


def position(batch, group="gate"):
    return patching.single_position(batch.tokens.where(group))


def read(model, batch, group="gate"):
    with patching.read_states(model, position(batch, group)) as states:
        return states, logits(model, batch)


def patch(model, batch, states, layer, group="gate", run=logits):
    with patching.patched(model, states.residual[:, layer], position(batch, group), layer):
        return run(model, batch)


def test_states_are_the_models_own(model):
    """hidden_states[i] is what block i reads; the last one is normalised, so it is not the same.

    The blocks of Chameleon-34B normalise what attention gives, not what it reads.
    """
    batch, rows = encoded(model), torch.arange(3)
    states, _ = read(model, batch)
    with torch.inference_mode():
        own = model.network(**batch.inputs, output_hidden_states=True).hidden_states
    for layer in range(model.n_layers):
        assert close(states.residual[:, layer], own[layer][rows, position(batch)], 1e-5)
        swin = getattr(model.network.config, "swin_norm", False)
        normal = own[layer] if swin else model.layers[layer].input_layernorm(own[layer])
        assert close(states.attention_input[:, layer], normal[rows, position(batch)], 1e-5)
    assert close(model.final_norm(states.residual[:, -1]), own[-1][rows, position(batch)], 1e-4)


def test_the_mean_of_a_set_is_that_of_its_tokens(model):
    batch = encoded(model)
    image = batch.tokens.where("image")
    with patching.read_states(model, image) as means, torch.inference_mode():
        own = model.network(**batch.inputs, output_hidden_states=True).hidden_states
    for i, row in enumerate(image):
        for layer in range(model.n_layers):
            assert close(means.residual[i, layer], own[layer][i][row].mean(0), 1e-5)
    with pytest.raises(BadParameter, match="none in some row"), patching.read_states(model, image & False):
        logits(model, batch)


def test_the_last_state_is_the_output(model):
    batch, other, rows = encoded(model), encoded(model, first=10), torch.arange(3)
    theirs, expected = read(model, other, "last")
    outputs = patch(model, batch, theirs, model.n_layers, "last")[rows, position(batch, "last")]
    assert close(outputs, expected[rows, position(other, "last")], 1e-4)
    assert not close(outputs, logits(model, batch)[rows, position(batch, "last")], 1e-2)


def test_generation_goes_on_from_the_patched_prompt():
    model = load("llava")
    batch, (theirs, _) = encoded(model), read(model, encoded(model, first=10))
    runs = [patch(model, batch, theirs, 2, run=lambda *args, c=cached: generated(*args, c)) for cached in (True, False)]
    assert close(*runs)
    assert not close(runs[0], generated(model, batch), 1e-3)


def test_bad_input():
    model = load("llava")
    batch = encoded(model)
    states, before = read(model, batch)
    good, end = states.residual[:, 1], position(batch)
    patched = lambda *args: patching.patched(model, *args)
    for context, kind, message in [
        (lambda: patched(good, end, 5), BadParameter, "layer=5.*0 … 4"),
        (lambda: patched(good, end, -1), BadParameter, "layer=-1"),
        (lambda: patched(good[:2], end, 1), BadStates, r"shape \(2, 64\)"),
        (lambda: patched(good * torch.nan, end, 1), BadStates, "not finite"),
        (lambda: patched(good[:2], end[:2], 1), BadParameter, r"\(2,\) positions of torch.int64 for a batch of 3"),
        (lambda: patched(good, end > 0, 1), BadParameter, "one whole number for each"),
        (lambda: patched(good, end + 99, 1), BadParameter, "outside its prompt"),
        (lambda: patched(good, end * 0, 1), BadParameter, "on padding"),
        (lambda: patching.patched_attention(model, states.attention_input, end, 4), BadParameter, "first=4.*0 … 3"),
        (lambda: patching.patched_attention(model, good, end, 0), BadStates, r"\(3, 4, 64\)"),
    ]:
        with pytest.raises(kind, match=message), context():
            logits(model, batch)
    for context in (patched(good, end, 1), patching.read_states(model, end)):
        with pytest.raises(BadParameter, match="were not run"), context:
            pass
    with pytest.raises(BadParameter, match=r"Row 0 has \d+ tokens in the set"):
        position(batch, "block")
    assert torch.equal(logits(model, batch), before)  # nothing is left behind


def test_pages_compare_and_search_the_words_of_a_pair(monkeypatch):
    experiment = Experiment("mini-native-0", n_per_pair=2, batch_size=2)
    first, second = pictures.pairs("scenes", 2)[0].pictures
    pair = pictures.Pair(("green mamba", "siberian husky"), ("red", "blue"), (first, second))
    monkeypatch.setattr(Experiment, "pairs", lambda *_: [pair])
    _, of_words = page_code("gate/patching")["compare_pairs"](experiment, [("none", 0)])
    model = experiment.load()
    columns = [first_token(model, word) for word in pair.words]
    for picture, found in zip(first, of_words["none", 0], strict=True):
        batch = vlm.encode(model, [picture.image], ["<image> what is the largest thing?"])
        assert close(found, logits(model, batch)[0, -1, columns], 1e-4)
    page = page_code("gate/steering")
    (trial,), _ = page["make_trials"](experiment)
    assert page["shares"]("classes", ["red circle"], [trial])["own"].tolist() == [True]
