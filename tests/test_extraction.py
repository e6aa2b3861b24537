"""Extraction against the plain loop (one whole prompt at a time), and planted faults that it must not survive."""

import copy
import dataclasses

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from conftest import make_questions
from peaks_and_gates import extraction, grouped, models, packing
from peaks_and_gates.errors import BadParameter, BadStates
from peaks_and_gates.extraction import extract, hidden_states
from peaks_and_gates.questions import build_prompts

EXACT = {"rtol": 1e-5, "atol": 1e-8}


@torch.inference_mode()
def plain_states(model, prompt):
    """The reference for one prompt: alone, whole, watched by hooks; (L, D) twice and (4,)."""
    seen = {}

    def watch(name):
        return lambda module, args, output: seen.__setitem__(name, output[0, -1])

    decoder = model.network.model
    hooks = [decoder.norm.register_forward_hook(watch("final"))]
    for i, block in enumerate(decoder.layers):
        hooks.append(block.register_forward_hook(watch(("out", i))))
        hooks.append(block.input_layernorm.register_forward_hook(watch(("norm", i))))
    logits = model.network(model.tokenizer(prompt.text, return_tensors="pt").input_ids).logits[0, -1]
    for hook in hooks:
        hook.remove()
    n = len(decoder.layers)
    residual = torch.stack([seen["out", i] for i in range(n)])
    normed = torch.stack([*(seen["norm", i] for i in range(1, n)), seen["final"]])
    return residual, normed, logits.float().log_softmax(-1)[model.letter_tokens]


def plain_loop(model, prompts):
    """The reference for all: (n, L, D) twice and (n, 4)."""
    return [torch.stack(part) for part in zip(*(plain_states(model, prompt) for prompt in prompts), strict=True)]


def assert_like_plain_loop(model, prompts, **options):
    states = extract(model, prompts, **options)
    residual, normed, letters = plain_loop(model, prompts)
    torch.testing.assert_close(states.hidden["residual"], residual, **EXACT)
    torch.testing.assert_close(states.hidden["norm"], normed, **EXACT)
    torch.testing.assert_close(states.letter_logprobs, letters, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def prompts():
    return build_prompts(make_questions(2, 5), n_shots=5, n_orders=2)


@pytest.mark.parametrize("n_shots", [0, 1, 5])
@pytest.mark.parametrize("n_orders", [3, None])
def test_shared_prefix_and_batches_equal_the_plain_loop(tiny, n_shots, n_orders):
    assert_like_plain_loop(tiny, build_prompts(make_questions(2, 4), n_shots, n_orders))


@pytest.mark.parametrize("batch_tokens", [1, 700, 100_000])
def test_batch_size_does_not_matter(tiny, prompts, batch_tokens):
    assert_like_plain_loop(tiny, prompts, batch_tokens=batch_tokens)


def test_a_padded_row_equals_the_row_alone(tiny, prompts):
    together = extract(tiny, prompts)
    for i in (0, 4, len(prompts) - 1):
        alone = extract(tiny, [prompts[i]])
        torch.testing.assert_close(together.hidden["norm"][i], alone.hidden["norm"][0], **EXACT)


def test_states_are_the_frameworks_own(tiny, prompts):
    ids = tiny.tokenizer(prompts[0].text, return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = tiny.network(ids, output_hidden_states=True).hidden_states
    states = extract(tiny, prompts[:1]).hidden["residual"][0]
    for layer in range(1, tiny.n_layers + 1):
        torch.testing.assert_close(states[layer - 1], expected[layer][0, -1], **EXACT)


def test_short_questions_share_a_row_and_none_is_lost():
    prefixes = [tuple(range(60)), tuple(range(1, 61))]
    group = [
        packing.Encoded(i, prefixes[i % 2], tuple(range(length))) for i, length in enumerate([4, 9, 30, 2, 17, 11, 5])
    ]
    rows = packing.packed(group, 60)
    assert sorted(item.index for row in rows for item in row) == list(range(7))
    for row in rows:
        assert len({item.prefix for item in row}) == 1 and sum(len(item.rest) for item in row) <= 30
    assert len(rows) < 7
    batches = packing.batches(rows, 60, 200)
    assert [row for batch in batches for row in batch] == sorted(rows, key=lambda row: sum(len(i.rest) for i in row))
    assert all(len(batch) * (60 + max(sum(len(i.rest) for i in row) for row in batch)) <= 200 for batch in batches)


def test_prefixes_are_computed_once(tiny, prompts, monkeypatch):
    calls = []
    original = extraction.shared_cache
    monkeypatch.setattr(extraction, "shared_cache", lambda m, prefixes: calls.append(prefixes) or original(m, prefixes))
    extract(tiny, prompts)
    computed = [prefix for prefixes in calls for prefix in prefixes]
    assert len(computed) == len(set(computed)) == len({p.prefix for p in prompts}) < len(prompts)


def joining_tokenizer():
    """A tokenizer that joins the last character of a prefix with the first one of the question behind it."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())[:-1]  # the model has no room for a token more
    tokens = ["<end>", *symbols, "ĠA", "ĠB", "ĠC", "ĠD", "ĊW"]
    merges = [("Ġ", "A"), ("Ġ", "B"), ("Ġ", "C"), ("Ġ", "D"), ("Ċ", "W")]
    made = Tokenizer(tokenizer_models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def test_a_token_across_the_cut_is_not_split(tiny, prompts):
    joined = dataclasses.replace(tiny, tokenizer=joining_tokenizer())
    apart = joined.tokenizer(prompts[0].prefix).input_ids + joined.tokenizer(prompts[0].question).input_ids
    assert apart != joined.tokenizer(prompts[0].text).input_ids  # the trap is there
    assert_like_plain_loop(joined, prompts)


def heads_interleaved(query, *arguments, **settings):
    """Queries of a group asked in another order than they are given back: each head reads another one's keys."""
    return torch.nn.functional.scaled_dot_product_attention(query.flip(1), *arguments, **settings)


def test_questions_attend_by_groups_and_the_model_is_left_as_it_was(tiny, prompts, monkeypatch):
    asked = []
    original = grouped.scaled_dot_product_attention
    monkeypatch.setattr(
        grouped, "scaled_dot_product_attention", lambda query, *a, **s: asked.append(query) or original(query, *a, **s)
    )
    extract(tiny, prompts)
    config = tiny.network.config
    assert asked and {query.shape[1] for query in asked} == {config.num_key_value_heads}
    assert config._attn_implementation == "sdpa" and config.num_key_value_heads < config.num_attention_heads
    monkeypatch.setattr(grouped, "scaled_dot_product_attention", heads_interleaved)
    with pytest.raises(AssertionError):
        assert_like_plain_loop(tiny, prompts)


def test_a_model_with_eager_attention_keeps_it(tiny, prompts):
    expected = extract(tiny, prompts)
    eager = dataclasses.replace(tiny, network=copy.deepcopy(tiny.network))
    eager.network.set_attn_implementation("eager")
    with grouped.grouped_attention(eager.network):
        assert eager.network.config._attn_implementation == "eager"
    torch.testing.assert_close(extract(eager, prompts).hidden, expected.hidden, rtol=1e-4, atol=1e-5)


def rows_shifted(keys_values, rows):
    return ORIGINAL["rows_of"](keys_values, rows.roll(1))


def tokenised_apart(model, prompts):
    ids = lambda text: tuple(model.tokenizer(text).input_ids)
    return [packing.Encoded(i, ids(p.prefix), ids(p.question)) for i, p in enumerate(prompts)]


def token_before_last(model, prompts):
    return [dataclasses.replace(e, rest=e.rest[:-1]) for e in ORIGINAL["encode"](model, prompts)]


def prefix_forgotten(model, prefixes):
    return None


def neighbours_seen(*arguments):
    return {"position_ids": ORIGINAL["own_pasts"](*arguments)["position_ids"]}


def counted_through(*arguments):
    return {"attention_mask": ORIGINAL["own_pasts"](*arguments)["attention_mask"]}


def read_at_the_end_of_the_row(states, ends):
    last = {row: end for row, end in ends.tolist()}
    return ORIGINAL["at"](states, torch.tensor([(row, last[row]) for row, _ in ends.tolist()]))


def prefix_shortened(model, prefixes):
    return ORIGINAL["shared_cache"](model, [p[:-1] for p in prefixes])


ORIGINAL = {name: getattr(extraction, name) for name in ("rows_of", "encode", "shared_cache", "own_pasts", "at")}
FAULTS = [
    ("rows_of", rows_shifted),
    ("encode", tokenised_apart),
    ("encode", token_before_last),
    ("shared_cache", prefix_forgotten),
    ("shared_cache", prefix_shortened),
    ("own_pasts", neighbours_seen),
    ("own_pasts", counted_through),
    ("at", read_at_the_end_of_the_row),
]


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=[fault.__name__ for _, fault in FAULTS])
def test_planted_faults_are_seen(tiny, prompts, monkeypatch, name, fault):
    model = dataclasses.replace(tiny, tokenizer=joining_tokenizer())
    assert_like_plain_loop(model, prompts)
    monkeypatch.setattr(extraction, name, fault)
    with pytest.raises((AssertionError, RuntimeError)):  # the latter where a mask no longer fits
        assert_like_plain_loop(model, prompts)


def test_a_layer_off_by_one_is_seen(tiny, prompts):
    shifted = dataclasses.replace(tiny, norms=(*tiny.norms[1:], tiny.norms[0]))
    for norm in tiny.norms:  # a random model's norms are all ones: make them differ
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    assert_like_plain_loop(tiny, prompts)
    with pytest.raises(AssertionError):
        assert_like_plain_loop(shifted, prompts)


def test_states_that_are_not_finite_name_model_and_layer(prompts):
    model = models.load("tiny-llama", dtype=torch.float32, device="cpu")
    with torch.no_grad():
        model.network.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(BadStates, match=r"tiny-llama.*layer 3"):
        extract(model, prompts)


def test_unknown_point(tiny, prompts):
    with pytest.raises(BadParameter, match="norm"):
        extract(tiny, prompts, points=("attention",))


def test_stored_states_equal_extracted_ones(own_cache):
    prompts = build_prompts(make_questions(2, 6), 2)
    stored = hidden_states("tiny-llama", prompts, ("norm", "residual"), dtype="float64")
    model = models.load("tiny-llama", dtype=torch.float64)
    direct = extract(model, prompts)
    for layer in range(1, model.n_layers + 1):
        torch.testing.assert_close(stored.layer("norm", layer), direct.hidden["norm"][:, layer - 1], **EXACT)
    assert stored.subject == direct.subject
    assert stored.answer.tolist() == direct.answer.tolist()
    assert stored.n_layers == model.n_layers
    with pytest.raises(BadParameter):
        stored.layer("norm", 0)


def test_an_interrupted_run_goes_on_where_it_was(own_cache, monkeypatch):
    prompts = build_prompts(make_questions(4, 5), 1)
    original, seen = extraction.extract, []

    def killed(model, prompts, *args, **kwargs):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(prompts[0].subject)
        return original(model, prompts, *args, **kwargs)

    monkeypatch.setattr(extraction, "extract", killed)
    with pytest.raises(KeyboardInterrupt):
        hidden_states("tiny-llama", prompts)
    monkeypatch.setattr(
        extraction, "extract", lambda m, p, *a, **k: seen.append(p[0].subject) or original(m, p, *a, **k)
    )
    hidden_states("tiny-llama", prompts)
    assert seen == ["subject_0", "subject_1", "subject_2", "subject_3"]
    monkeypatch.setattr(models, "load", lambda *a: pytest.fail("everything is stored, no model is needed"))
    hidden_states("tiny-llama", prompts)


def test_other_inputs_are_other_states(own_cache):
    questions = make_questions(1, 5)
    keys = {hidden_states("tiny-llama", build_prompts(questions, 2)).key}
    for prompts in ({"seed": 1}, {"n_orders": 1}, {"with_header": False}):
        keys.add(hidden_states("tiny-llama", build_prompts(questions, 2, **prompts)).key)
    for change in ({"dtype": "float64"}, {"points": ("residual",)}):
        keys.add(hidden_states("tiny-llama", build_prompts(questions, 2), **change).key)
    assert len(keys) == 6


def test_bfloat16_agrees_with_float32_on_the_real_model():
    """bfloat16 keeps 8 bits; what is left of a state without the mean over prompts still points the same way."""
    prompts = build_prompts(make_questions(2, 8), 2)
    full = extract(models.load("smollm2-135m-instruct", dtype=torch.float32), prompts)
    half = extract(models.load("smollm2-135m-instruct", dtype=torch.bfloat16), prompts)
    whole = torch.cosine_similarity(full.hidden["norm"], half.hidden["norm"].float(), dim=2)  # (n, L)
    centre = full.hidden["norm"].mean(0)
    centred = torch.cosine_similarity(full.hidden["norm"] - centre, half.hidden["norm"].float() - centre, dim=2)
    print(f"cosine of states: lowest {whole.min():.4f}")
    print(f"cosine of centred states: mean {centred.mean():.4f}, lowest {centred.min():.4f}")
    assert whole.min() > 0.99
    assert centred.mean() > 0.95
    assert (full.letter_logprobs - half.letter_logprobs).abs().max() < 0.5
