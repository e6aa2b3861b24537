"""Language models that are built or tokenised otherwise: read as their own forward pass reads, or refused in a line."""

import copy
import dataclasses

import pytest
import torch
import transformers
from tokenizers import normalizers, processors

from conftest import make_questions
from peaks_and_gates import models
from peaks_and_gates.errors import BadParameter, ModelUnavailable
from peaks_and_gates.landscape import extraction
from peaks_and_gates.landscape.extraction import extract
from peaks_and_gates.landscape.questions import build_prompts
from tiny_models import plain_loop, tiny_language_model


@pytest.fixture(scope="module")
def prompts():
    return build_prompts(make_questions(2, 5), n_shots=5, n_orders=2)


WIDE, EXPERTS = {"head_dim": 16}, {"num_local_experts": 4, "num_experts_per_tok": 2}
LINEAR = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16} | WIDE
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
LONGROPE |= {"original_max_position_embeddings": 300, "factor": 8.0}
SCALED = "letter_logprobs is off"
UNUSUAL = [
    ("Cohere", {"logit_scale": 0.0625}, SCALED),
    ("Gemma2", WIDE | {"final_logit_softcapping": 30.0}, SCALED),
    ("Granite", {"logits_scaling": 8.0}, SCALED),
    ("Qwen3Next", LINEAR, "qwen3_next fails on three prompts"),  # states of a recurrence, not keys and values
    ("Llama", {"rope_parameters": LONGROPE}, "300 fit"),
    # From some length on such models read otherwise, whatever their config calls it.
    ("Doge", {"keep_window_size": 100}, "residual of layer . is off"),
    ("Llama", {"attention_chunk_size": 150}, "residual of layer . is off"),
    ("Olmo", {}, None),  # norms without weights
    # A window shorter than a prefix, between prefix and prompt, a little shorter than the longest.
    *(("Mistral", {"sliding_window": window}, None) for window in (40, 300, 370)),
    ("Gemma3Text", WIDE | {"sliding_window": 300}, None),
    ("GptOss", WIDE | EXPERTS | {"sliding_window": 370}, None),
]


@pytest.mark.parametrize(("family", "changes", "message"), UNUSUAL)
def test_a_family_is_read_rightly_or_refused_in_a_line(tiny, family, changes, message):
    model = tiny_language_model(getattr(transformers, f"{family}Config"), tiny.tokenizer, **changes)
    prompts = build_prompts(make_questions(1, 5), 2, n_orders=1)  # of 344 to 382 tokens
    if message is None:
        states = extract(model, prompts)
        for name, expected in zip(("residual", "norm", "letter_logprobs"), plain_loop(model, prompts), strict=True):
            torch.testing.assert_close(states[name], expected, rtol=1e-3, atol=1e-4)
        return
    with pytest.raises((ModelUnavailable, BadParameter), match=message) as refusal:
        extract(model, prompts)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("dtype", "size", "refused"),
    [("float32", 1e-3, True), ("float32", 1e-5, False), ("bfloat16", 0.3, True), ("bfloat16", 0.01, False)],
)
def test_what_depends_on_the_batch_is_refused_once_it_is_more_than_rounding(prompts, dtype, size, refused):
    model = models.load("tiny-llama", dtype=getattr(torch, dtype), device="cpu")
    block = model.network.model.layers[2]
    original = block.forward
    block.forward = lambda hidden, **settings: original(hidden, **settings) * (1 + size * (len(hidden) > 1))
    if refused:
        with pytest.raises(ModelUnavailable, match=rf"residual of layer 3 is off the model's own by {size}"):
            extract(model, prompts)
    else:
        extract(model, prompts)


def test_a_cache_that_loses_what_lies_beyond_the_window_is_seen_when_a_prompt_reaches_there(tiny, monkeypatch):
    original = extraction.read_nodes

    def lossy(*given):
        keys_values = original(*given)
        for layer in keys_values.layers:
            layer.values[:, :, : max(0, layer.values.shape[2] - 60)] = 0
        return keys_values

    monkeypatch.setattr(extraction, "read_nodes", lossy)
    model = tiny_language_model(transformers.MistralConfig, tiny.tokenizer, sliding_window=100)
    extract(model, build_prompts(make_questions(1, 3), 0, with_header=False))
    with pytest.raises(ModelUnavailable, match="residual of layer 2"):
        extract(model, build_prompts(make_questions(1, 3), 2, n_orders=1))


def test_the_length_that_a_model_reads_stands_in_the_part_of_its_config_about_text(tiny, monkeypatch):
    model = tiny_language_model(transformers.LlamaConfig, tiny.tokenizer)
    nested = transformers.LlamaConfig(max_position_embeddings=300)
    monkeypatch.setattr(model.network.config, "get_text_config", lambda: nested)
    with pytest.raises(BadParameter, match="300 fit"):
        extract(model, build_prompts(make_questions(1, 3), 2, n_orders=1))


def test_letters_that_do_not_follow_the_colon_as_one_token_are_refused(tiny):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()  # " a" is no token of its own
    with pytest.raises(ModelUnavailable, match="splits the answer letters"):
        _ = dataclasses.replace(tiny, tokenizer=tokenizer).letter_tokens


def test_blocks_of_unlike_layout_are_refused(tiny):
    """OLMo-Hybrid's first block has what the reading needs, its attention blocks have not."""
    with pytest.raises(ModelUnavailable, match=r"add it to `models\.read_points`"):
        tiny_language_model(transformers.OlmoHybridConfig, tiny.tokenizer)


def test_norms_of_another_layer_are_seen(prompts):
    model = models.load("tiny-llama", dtype=torch.float64)
    for norm in model.norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    extract(model, prompts[:2])
    moved = model.norms[1:] + model.norms[:1]
    for norms, message in ((model.norms[1:], "fails on three prompts"), (moved, "residual of layer 4")):
        with pytest.raises(ModelUnavailable, match=message):
            extract(dataclasses.replace(model, norms=norms), prompts[:2])


def test_tokens_that_the_tokenizer_appends_are_not_the_end_of_a_prompt(tiny, prompts):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    around = processors.TemplateProcessing(single="<end> $A <end>", special_tokens=[("<end>", 0)])
    tokenizer.backend_tokenizer.post_processor = around
    (item,) = extraction.encode(dataclasses.replace(tiny, tokenizer=tokenizer), prompts[:1])
    assert [*item.ids] == [0, *tiny.tokenizer(prompts[0].text).input_ids]
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(":", "")  # a prompt's last character is lost
    with pytest.raises(ModelUnavailable, match="cuts prompts"):
        extract(dataclasses.replace(tiny, tokenizer=tokenizer), prompts)
    small = tiny_language_model(transformers.LlamaConfig, tiny.tokenizer, vocab_size=100)
    with pytest.raises(ModelUnavailable, match="another model's"):
        extract(small, prompts)
