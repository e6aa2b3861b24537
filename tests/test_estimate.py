"""The cost of an extraction: weights counted as the model has them, operations as torch counts them."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from conftest import ROOT, make_questions
from peaks_and_gates import estimate, extraction
from peaks_and_gates.cli import main
from peaks_and_gates.errors import BadParameter, UnknownName
from peaks_and_gates.questions import build_prompts

BILLION = 1e9


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-3-8b", 8.03), ("llama-3-70b", 70.6), ("llama-2-7b", 6.74), ("llama-2-13b", 13.0), ("mistral-7b", 7.24)],
)
def test_the_weights_of_the_papers_models(name, billions):
    assert estimate.shape(name).weights / BILLION == pytest.approx(billions, rel=0.01)


def test_an_unknown_model_is_named():
    with pytest.raises(UnknownName, match="llama-3-8b"):
        estimate.shape("llama-3-9b")


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_weights_and_operations_of_a_model_that_is_there(kv_heads):
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, tie_word_embeddings=False,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    shape = estimate.shape_of(config)
    norms = (2 * 3 + 1) * 32
    assert shape.weights == sum(weight.numel() for weight in network.parameters()) - norms
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        hidden = network.model(torch.zeros(1, 50, dtype=torch.long), use_cache=False).last_hidden_state
        network.lm_head(hidden[:, -1])
    # Eager attention computes both halves of the square of positions; what is needed is the lower one.
    square = estimate.Work(tokens=50, pairs=50 * 50, prompts=1)
    assert estimate.flops(shape, square) == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert estimate.work([("", 0, 50)]) == estimate.Work(50, 50 * 51 // 2, 1)


def test_a_shared_prefix_counts_once(tiny):
    prompts = build_prompts(make_questions(2, 6), 5, n_orders=1)
    encoded = extraction.encode(tiny, prompts)
    whole = [(i, 0, len(e.prefix) + len(e.rest)) for i, e in enumerate(encoded)]
    shared = [(e.prefix, len(e.prefix), len(e.rest)) for e in encoded]
    assert estimate.work(shared).tokens < estimate.work(whole).tokens / 2
    prefixes = {e.prefix for e in encoded}
    assert len(prefixes) == 2
    assert estimate.work(shared).tokens == sum(map(len, prefixes)) + sum(len(e.rest) for e in encoded)


def test_memory_grows_with_the_batch_and_says_how_many_gpus():
    shape = estimate.shape("llama-3-70b")
    few, many = (estimate.memory(shape, n) for n in (1024, 65536))
    assert 2 * shape.weights < few < many
    assert estimate.least_gpus(shape, 80) == 2
    assert estimate.least_gpus(estimate.shape("llama-3-8b"), 24) == 1


def test_questions_of_one_length_are_counted_as_given_ones_are():
    prompts = [(i % 6, 50, 10) for i in range(30)]
    assert estimate.few_shot(5, 3, 30, 2, 10) == estimate.work(prompts)
    alone = estimate.few_shot(5, None, 30, 2, 10)
    assert alone.tokens == 30 * 60 and alone == estimate.work([("", 0, 60)] * 30)
    assert estimate.few_shot(0, 3, 30, 2, 10).tokens == 300
    assert estimate.few_shot(5, 100, 30, 2, 10) == estimate.work([(i, 50, 10) for i in range(30)])
    with pytest.raises(BadParameter, match="every subject needs a question"):
        estimate.few_shot(5, 3, 30, 31, 10)


def test_numbers_that_nobody_has_take_no_memory():
    many = estimate.few_shot(5, 3, 10**12, 10**11, 10)
    assert many == estimate.Work(10**13 + 15 * 10**12, many.pairs, 10**12)
    for odd in ({"n_questions": 10**30}, {"n_shots": 10**400}, {"n_orders": 0}, {"n_shots": -1}):
        with pytest.raises(BadParameter, match="none above 1e"):
            estimate.few_shot(**{"n_shots": 5} | odd)
    for nodes in (0, 10**400):
        with pytest.raises(BadParameter, match="nodes: there must be at least 1"):
            estimate.report("llama-3-8b", 5, 8, 14_042, nodes)


def test_copies_read_in_parallel_and_a_split_model_is_no_faster():
    shape, work = estimate.shape("llama-3-70b"), estimate.few_shot(5)
    table = estimate.machines(shape, work, n_nodes=3).set_index("gpu")
    alone = estimate.flops(shape, work) / (989e12 * estimate.EFFICIENCY) / 60
    assert table.loc["h200", "least"] == 2 and table.loc["h200", "one"] != table.loc["h200", "one"]
    assert table.loc["h100", "node"] == pytest.approx(alone / 4)
    assert table.loc["h100", "nodes"] == pytest.approx(alone / 12)
    assert table.loc["t4", ["node", "nodes"]].isna().all()


def test_the_command_line_estimates(capsys):
    with pytest.raises(SystemExit) as end:
        main(["estimate", "--model", "llama-3-8b", "--shots", "5"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and "8.0 billion weights" in said and "h100" in said
    assert "as measured on one H100" in said


def test_the_estimate_is_that_of_the_run_that_was_measured():
    """Of what was not fitted: lengths that differ count as their mean, and memory is a bound of the right size."""
    rows = json.loads((ROOT / "benchmarks" / "measured" / "gpu.json").read_text())["rows"]
    measured = {row["unit"]: row for row in rows if row["benchmark"] == "GPU, extraction"}
    shape = estimate.shape("llama-3-8b")
    table = estimate.machines(shape, estimate.few_shot(n_shots=5, n_orders=1)).set_index("gpu")
    assert table.loc["h100", "one"] == pytest.approx(measured["minutes"]["ours"], rel=0.1)
    memory = measured["GB, at most"]
    bound = int(memory["agreement"].split()[-2])
    assert 0.5 < memory["ours"] * 1e9 / estimate.memory(shape, bound) < 1
