"""A model over several devices: whether it fits, and a check that finds a hop that loses what is sent."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from peaks_and_gates import split
from peaks_and_gates.errors import ModelUnavailable
from peaks_and_gates.tiny import tiny_llama

GIB = 2**30
IDS = torch.tensor([[5, 9, 2, 7, 3]])


@pytest.fixture
def network(monkeypatch):
    """A tiny model whose blocks say that they lie on two GPUs, the second half on another."""
    found = AutoModelForCausalLM.from_pretrained(tiny_llama(), dtype=torch.float32).eval()
    blocks = list(found.model.layers)
    place = {id(block): torch.device("cuda", int(i >= len(blocks) // 2)) for i, block in enumerate(blocks)}
    monkeypatch.setattr(split, "device_of", lambda block: place[id(block)])
    return found


def test_the_bytes_of_a_model_are_known_before_it_is_made():
    config = LlamaConfig.from_pretrained(tiny_llama())
    network = AutoModelForCausalLM.from_pretrained(tiny_llama(), dtype=torch.bfloat16)
    assert split.weight_bytes(config, torch.bfloat16) == 2 * sum(weight.numel() for weight in network.parameters())


def test_a_model_is_split_only_if_it_must_be():
    assert split.memory_limits(16 * GIB, [24 * GIB, 24 * GIB], "m") is None
    limits = split.memory_limits(30 * GIB, [24 * GIB, 24 * GIB], "m")
    assert limits.keys() == {0, 1} and 15 * GIB < limits[0] < 24 * GIB  # and "cpu" is none of them
    assert sum(limits.values()) >= 30 * GIB


def test_too_little_memory_says_how_much_is_needed():
    with pytest.raises(ModelUnavailable, match=r"m needs about 50\.0 GiB .*40\.0 of weights.* 44\.0 GiB are free on 2"):
        split.memory_limits(40 * GIB, [22 * GIB, 22 * GIB], "m")


def test_a_hop_that_is_right_passes_and_leaves_nothing_behind(network):
    before = network.model(IDS).last_hidden_state
    assert split.preflight(network, IDS, "m") == 1
    assert torch.equal(network.model(IDS).last_hidden_state, before)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in network.model.layers)


def second_half(network):
    return network.model.layers[len(network.model.layers) // 2]


@pytest.mark.parametrize("fault", ["zeros", "rows exchanged", "nan"])
def test_a_hop_that_loses_what_is_sent_is_refused(network, fault):
    """The fault is between the blocks, where the states travel: the block itself is right."""
    block = second_half(network)
    spoil = {"zeros": torch.zeros_like, "rows exchanged": lambda h: h.flip(1), "nan": lambda h: h * torch.nan}[fault]
    forward = block.forward
    block.forward = lambda hidden, *args, **kwargs: forward(spoil(hidden), *args, **kwargs)
    with pytest.raises(ModelUnavailable, match="states change on the way between cuda:0 and cuda:1"):
        split.preflight(network, IDS, "m")


def test_a_device_that_computes_something_else_is_refused(network, monkeypatch):
    block = second_half(network)
    right = copy.deepcopy(block)
    with torch.no_grad():
        block.mlp.down_proj.weight.zero_()
    monkeypatch.setattr(split, "on_cpu", lambda _: right)
    with pytest.raises(ModelUnavailable, match="behind the hop between cuda:0 and cuda:1, block"):
        split.preflight(network, IDS, "m")


def test_a_model_that_accelerate_has_split_passes_and_computes_the_same(tmp_path):
    """On one machine without GPUs the second device is the disk, from which weights are read when they are needed."""
    whole = AutoModelForCausalLM.from_pretrained(tiny_llama(), dtype=torch.float32).eval()
    n = len(whole.model.layers)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i == n - 1 else "cpu" for i in range(n)}
    parts = AutoModelForCausalLM.from_pretrained(
        tiny_llama(), dtype=torch.float32, device_map=places, offload_folder=tmp_path
    ).eval()
    assert split.device_of(parts.model.layers[-1]) != split.device_of(parts.model.layers[0])
    torch.testing.assert_close(parts.model(IDS).last_hidden_state, whole.model(IDS).last_hidden_state)
