"""Extraction against the plain loop (one prompt at a time), and planted faults that it must not survive."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from conftest import make_questions
from peaks_and_gates import cache, models
from peaks_and_gates.errors import BadParameter, BadStates, ModelUnavailable
from peaks_and_gates.landscape import extraction
from peaks_and_gates.landscape.density_peaks import first_of_identical
from peaks_and_gates.landscape.extraction import extract, hidden_states
from peaks_and_gates.landscape.prefixes import Encoded, Node, batches
from peaks_and_gates.landscape.questions import build_prompts, load
from tiny_models import joining_tokenizer, plain_loop

GOLDEN = Path(__file__).parents[1] / "golden" / "states.safetensors"
EXACT = {"rtol": 1e-5, "atol": 1e-8}


def assert_like_plain_loop(model, prompts, **options):
    states = extract(model, prompts, **options)
    residual, normed, letters = plain_loop(model, prompts)
    torch.testing.assert_close(states["residual"], residual, **EXACT)
    torch.testing.assert_close(states["norm"], normed, **EXACT)
    torch.testing.assert_close(states["letter_logprobs"], letters, rtol=1e-5, atol=1e-6)


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


def test_batches_keep_to_the_token_bound_and_lose_no_prompt():
    sizes = [4, 9, 30, 2, 17, 11, 5]
    group = [Node(0, tuple(range(n)), 1, [Encoded(i, ())]) for i, n in enumerate(sizes)]
    batched = batches(group, 60, 200)
    assert sorted(node.prompts[0].index for batch in batched for node in batch) == list(range(7)) and len(batched) < 7
    assert all(len(batch) * (60 + max(len(node.ids) for node in batch)) <= 200 for batch in batched)


@pytest.mark.parametrize("n_orders", [1, 3, None])
def test_what_prompts_share_is_read_once(tiny, n_orders, monkeypatch):
    prompts = build_prompts(make_questions(2, 9), 5, n_orders)
    encoded = extraction.encode(tiny, prompts)
    extraction.compare(tiny, encoded)
    assert {len(item.pieces) for item in encoded} == {7}  # a header, five shots, a question
    beginnings = Counter(item.pieces[:end] for item in encoded for end in range(1, 7))
    once = sum(len(pieces[-1]) for pieces, n in beginnings.items() if n > 1)
    alone = sum(
        len(item.pieces[end - 1]) for item in encoded for end in range(1, 7) if beginnings[item.pieces[:end]] < 2
    )
    read = []
    rows_of = extraction.rows_of  # of every node and every rest that is read
    monkeypatch.setattr(extraction, "rows_of", lambda kept, nodes: read.extend(nodes) or rows_of(kept, nodes))
    assert_like_plain_loop(tiny, prompts)
    least, most = once + alone + sum(len(item.pieces[-1]) for item in encoded), sum(len(item.ids) for item in encoded)
    total = sum(len(node.ids) for node in read)
    assert least <= total < least + (most - least) / 10  # what is cut off so that nodes are alike is read again


def test_no_more_of_the_tree_is_kept_than_there_is_room_for(tiny, capsys, monkeypatch):
    prompts, held, original = build_prompts(make_questions(1, 40), 3, None), [], extraction.walk

    def walk(model, level, batch_tokens, room):
        held.append((sum(len(nodes) for _, _, nodes in level), room))
        yield from original(model, level, batch_tokens, room)

    monkeypatch.setattr(extraction, "walk", walk)
    extraction.say_once.cache_clear()
    assert_like_plain_loop(tiny, prompts, batch_tokens=20_000)
    assert max(n for n, _ in held) > 1 and all(room >= 0 for n, room in held if n > 1)
    assert "kept at a time" not in capsys.readouterr().out
    few = len(held)
    assert_like_plain_loop(tiny, prompts, batch_tokens=500)
    assert len(held) - few > few and all(room >= 0 for n, room in held if n > 1)
    assert capsys.readouterr().out.count("are kept at a time, to save memory") == 1


def test_a_model_is_compared_once_for_all_prompts(own_cache, monkeypatch):
    texts, original = [], extraction.own_forward
    monkeypatch.setattr(extraction, "own_forward", lambda m, t, x: texts.append(max(map(len, t))) or original(m, t, x))
    prompts = build_prompts(make_questions(4, 3), 2)
    longer = [dataclasses.replace(p, prefix=p.prefix * (1 + int(p.subject[-1]))) for p in prompts]  # by subject
    hidden_states("tiny-llama", longer, dtype="float64")
    encoded = extraction.encode(models.load("tiny-llama"), longer)
    assert len(texts) == 2 and texts[1] == max(len(item.ids) for item in encoded)


def test_a_token_across_the_cut_is_not_split(tiny, prompts):
    joined = dataclasses.replace(tiny, tokenizer=joining_tokenizer())
    apart = joined.tokenizer(prompts[0].prefix).input_ids + joined.tokenizer(prompts[0].question).input_ids
    assert apart != joined.tokenizer(prompts[0].text).input_ids  # the trap is there
    assert_like_plain_loop(joined, prompts)


def test_a_layer_off_by_one_is_seen(prompts):
    model = models.load("tiny-llama", dtype=torch.float64, device="cpu")
    for norm in model.norms:  # a random model's norms are all ones: make them differ
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    assert_like_plain_loop(model, prompts)


def test_states_that_are_not_finite_or_not_meant_name_model_and_layer(prompts):
    model = models.load("tiny-llama", dtype=torch.float32, device="cpu")
    with torch.no_grad():
        model.network.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(BadStates, match=r"tiny-llama.*layer 3"):
        extract(model, prompts)
    model.network.config.max_position_embeddings = 99
    with pytest.raises(BadParameter, match=r"prompt 0 has .* 99 fit"):
        extract(model, prompts)


@pytest.mark.parametrize("fault", [torch.zeros_like, lambda hidden: hidden * torch.nan])
def test_states_lost_between_two_devices_are_seen(prompts, fault):
    """A copy from one GPU to another that fails leaves zeros, or anything, and raises no error."""
    model = models.load("tiny-llama", dtype=torch.float64, device="cpu")
    model.network.model.layers[2].register_forward_pre_hook(lambda block, inputs: (fault(inputs[0]), *inputs[1:]))
    with pytest.raises((BadStates, ModelUnavailable), match=r"layer (2 is off|3 on)"):
        extract(model, prompts)


def test_stored_states_equal_extracted_ones(own_cache):
    prompts = sorted(build_prompts(make_questions(2, 6), 2), key=lambda prompt: prompt.answer)  # subjects mixed
    stored = hidden_states("tiny-llama", prompts, ("norm", "residual"), dtype="float64")
    model = models.load("tiny-llama", dtype=torch.float64)
    direct = extract(model, prompts)
    for layer in range(1, model.n_layers + 1):
        torch.testing.assert_close(stored.layer("norm", layer), direct["norm"][:, layer - 1], **EXACT)
    assert stored.subject == [prompt.subject for prompt in prompts]
    assert stored.answer.tolist() == direct["answer"].tolist()
    assert stored.n_layers == model.n_layers
    with pytest.raises(SafetensorError, match=r"norm\.0"):
        stored.layer("norm", 0)


def test_the_likeliest_token_is_a_letter_with_or_without_blanks(prompts):
    model, four = models.load("tiny-llama", dtype=torch.float64, device="cpu"), prompts[:4]
    final = extract(model, four, ("norm",))["norm"][:, -1]  # (4, D), all of one length
    tokens = [model.tokenizer.encode(text, add_special_tokens=False)[-1] for text in (" B", "D", "\n", " A")]
    head = torch.nn.Linear(*reversed(model.network.lm_head.weight.shape), bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(head.weight)
    head.weight.data[tokens] = final  # the likeliest token of each is its own
    model.network.set_output_embeddings(head)
    states = extract(model, four)
    assert states["top_letter"].tolist() == [1, 3, -1, 0]
    assert states["letter_logprobs"].shape == (4, 4)


def test_equal_prompts_have_equal_states(own_cache, monkeypatch):
    """Computed in another batch they would differ in the last digits, and not be dropped as identical."""
    (prompt, *others) = build_prompts(make_questions(2, 4), 1)
    again = dataclasses.replace(prompt, answer=(prompt.answer + 1) % 4)
    elsewhere = dataclasses.replace(others[-1], prefix=prompt.prefix, question=prompt.question)  # in another part
    prompts = [prompt, others[0], again, *others[1:], elsewhere]

    def noisy(model, prompts, points):
        n = len(prompts)
        states = {"norm": torch.rand(n, 2, 3), "letter_logprobs": torch.rand(n, 4), "top_letter": torch.arange(n)}
        return states | {"answer": torch.tensor([prompt.answer for prompt in prompts])}

    monkeypatch.setattr(extraction, "extract", noisy)
    stored = hidden_states("tiny-llama", prompts)
    hidden = stored.layer("norm", 2)
    assert first_of_identical(hidden).tolist() == [0, 1, *range(3, len(prompts) - 1)]
    assert torch.equal(hidden[2], hidden[0]) and torch.equal(hidden[-1], hidden[0])
    assert torch.equal(stored.letter_logprobs[2], stored.letter_logprobs[0]) and stored.top_letter[2] == 0
    assert stored.answer.tolist() == [prompt.answer for prompt in prompts]  # each is right or wrong by its own


def test_an_interrupted_run_resumes_where_it_stopped(own_cache, monkeypatch):
    prompts = build_prompts(make_questions(4, 5), 1)
    original, seen, interrupt_at = extraction.extract, [], ["subject_2"]

    def counted(model, prompts, *args, **kwargs):
        if prompts[0].subject in interrupt_at:
            interrupt_at.clear()
            raise KeyboardInterrupt
        seen.append(prompts[0].subject)
        return original(model, prompts, *args, **kwargs)

    monkeypatch.setattr(extraction, "extract", counted)
    with pytest.raises(KeyboardInterrupt):
        hidden_states("tiny-llama", prompts)
    hidden_states("tiny-llama", prompts)
    assert seen == ["subject_0", "subject_1", "subject_2", "subject_3"]
    monkeypatch.setattr(models, "load", lambda *a: pytest.fail("everything is stored, no model is needed"))
    hidden_states("tiny-llama", prompts)


def test_other_inputs_are_other_states(own_cache, monkeypatch):
    questions = make_questions(1, 5)
    keys = {hidden_states("tiny-llama", build_prompts(questions, 2)).key}
    for prompts in ({"seed": 1}, {"n_orders": 1}, {"with_header": False}):
        keys.add(hidden_states("tiny-llama", build_prompts(questions, 2, **prompts)).key)
    for change in ({"dtype": "float64"}, {"points": ("residual",)}, {"adapter": "weights/smoke/fine-tuned-0"}):
        keys.add(hidden_states("tiny-llama", build_prompts(questions, 2), **change).key)
    monkeypatch.setattr(extraction, "STATES", 0)
    keys.add(hidden_states("tiny-llama", build_prompts(questions, 2)).key)
    assert len(keys) == 8


def golden_names():
    """The models whose states are compared: those that need no download here."""
    wheel = models.MODELS["smollm2-135m-instruct"]
    folder = cache.cache_folder() / "models" / f"smollm2-135m-instruct-{wheel['sha256'][:8]}"
    return ["tiny-llama", "tiny-llama-fine-tuned-0", *(["smollm2-135m-instruct"] if folder.is_dir() else [])]


def golden_states(name):
    """Norm states of all layers (n, L, D), first 48 numbers each, and letter log-probabilities (n, 4) of 20 prompts."""
    prompts = [prompt for n_shots in (0, 5) for prompt in build_prompts(load("wordnet", 2, 5), n_shots, 2)]
    states = extract(models.load(name, dtype=torch.float32, device="cpu"), prompts)
    return {
        f"{name}.states": states["norm"][..., :48].contiguous(),
        f"{name}.letters": states["letter_logprobs"].contiguous(),
    }


@pytest.mark.parametrize("name", golden_names())
def test_states_are_those_of_this_version(name):
    """If this fails for a reason that is meant, raise `extraction.STATES` and run this file as a script."""
    golden = load_file(GOLDEN)
    for key, values in golden_states(name).items():
        torch.testing.assert_close(values, golden[key], rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    save_file({key: values for name in golden_names() for key, values in golden_states(name).items()}, GOLDEN)
