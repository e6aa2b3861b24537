"""What must be equal, measured: each pair of ways to one number, the largest difference seen and the one allowed.

In this field a wrong number comes without an error. Each of these ways is a place where one would.
"""

from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import make_questions
from peaks_and_gates import models
from peaks_and_gates.gate import attention, patching
from peaks_and_gates.gate.patching import single_position
from peaks_and_gates.gate.split import split_prompt
from peaks_and_gates.landscape.extraction import extract, hidden_states
from peaks_and_gates.landscape.questions import build_prompts
from tiny_models import plain_loop
from vlm_helpers import FAMILIES, encoded, generated, load, logits


def deviation(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, as a share of the largest number.

    Chameleon shuts tokens out with the least number there is, next to which any difference is nothing: such numbers
    must be the same, and count no further.
    """
    assert one.shape == other.shape and one.numel() > 0
    shut = other <= torch.finfo(torch.float32).min
    assert torch.equal(one[shut], other[shut]), "other tokens are shut out"
    one, other = one[~shut].double(), other[~shut].double()
    return float((one - other).abs().max() / other.abs().max())


def compare(report, what: str, one: torch.Tensor, other: torch.Tensor, allowed: float) -> None:
    """Report the deviation of two tensors, and fail beyond what is allowed."""
    found = deviation(one, other)
    said = f"largest relative deviation {found:.1e}, allowed {allowed:.0e}, {one.numel():,} numbers"
    report("equalities", what, 1, said)
    assert found <= allowed, f"{what}: {found:.2e} apart, {allowed:.0e} allowed"


@pytest.fixture
def equal(report):
    """Call with what is compared, two tensors and what is allowed."""
    return partial(compare, report)


@pytest.fixture(scope="module")
def prompts():
    return build_prompts(make_questions(3, 6), n_shots=5, n_orders=2)


def test_prefix_shared_is_whole(tiny, prompts, equal):
    equal("prefix-shared = whole (float64)", extract(tiny, prompts).hidden["norm"], plain_loop(tiny, prompts)[1], 1e-9)


def test_batched_is_single(tiny, prompts, equal):
    together = extract(tiny, prompts, batch_tokens=100_000).hidden["residual"]
    equal("batched = single (float64)", together, extract(tiny, prompts, batch_tokens=1).hidden["residual"], 1e-9)


def test_the_laptop_model_in_float32(prompts, equal):
    model = models.load("smollm2-135m-instruct", dtype=torch.float32)
    few = prompts[:4]
    equal(
        "prefix-shared = whole (SmolLM2-135M, float32)",
        extract(model, few).hidden["norm"],
        plain_loop(model, few)[1],
        1e-4,
    )


def test_cached_is_computed(prompts, own_cache, equal):
    stored = hidden_states("tiny-llama", prompts, dtype="float32")
    model = models.load("tiny-llama", dtype=torch.float32)
    by_subject = sorted(range(len(prompts)), key=lambda i: stored.subject.index(prompts[i].subject))
    computed = extract(model, [prompts[i] for i in by_subject]).hidden["norm"]
    layers = torch.stack([stored.layer("norm", layer) for layer in range(1, stored.n_layers + 1)], 1)
    equal("stored = computed (states on disk)", layers, computed, 1e-5)


def test_eager_is_sdpa_for_text(tiny, prompts, equal):
    ids = torch.tensor([tiny.tokenizer.encode(prompts[0].text)])
    with torch.inference_mode():
        sdpa = tiny.network(ids).logits
        tiny.network.set_attn_implementation("eager")
        eager = tiny.network(ids).logits
        tiny.network.set_attn_implementation("sdpa")
    # Eager attention takes its softmax in float32 whatever the model's dtype.
    equal("SDPA = eager (language model, float64)", sdpa, eager, 1e-5)


def test_split_is_whole(tmp_path, equal):
    ids, folder = torch.arange(3, 40)[None], models.source("tiny-llama")[0]
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    n = len(whole.model.layers)
    places |= {f"model.layers.{i}": "disk" if i >= n // 2 else "cpu" for i in range(n)}
    parts = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map=places, offload_folder=tmp_path
    ).eval()
    with torch.inference_mode():
        equal("split over two devices = whole (float32)", parts(ids).logits, whole(ids).logits, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_vision_language_models(family, equal):
    """Float32; the prompts of a batch have other lengths, so all but one are padded."""
    model = load(family)
    left, right = encoded(model, side="left"), encoded(model, side="right")
    sides = [logits(model, batch)[batch.tokens.where("prompt")] for batch in (left, right)]
    equal(f"padded left = right ({family})", *sides, 1e-4)
    row = left.tokens.where("prompt")[0]
    equal(f"padded = alone ({family})", logits(model, left)[0][row], logits(model, encoded(model, 1))[0], 1e-4)
    eager = load(family, "eager")
    prompt = left.tokens.where("prompt")
    equal(f"SDPA = eager ({family})", logits(model, left)[prompt], logits(eager, encoded(eager))[prompt], 1e-4)
    equal(f"cached = uncached ({family})", generated(model, left), generated(model, left, cached=False), 1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_interventions_that_change_nothing(family, equal):
    model = load(family)
    batch = encoded(model)
    prompt, untouched = batch.tokens.where("prompt"), logits(model, batch)
    for how in ("zero", "mask"):
        with attention.knockout(model, None, batch.tokens.where("after"), how):
            cut = logits(model, batch)
        equal(f"nothing cut ({how}) = untouched ({family})", cut[prompt], untouched[prompt], 1e-4)
    place = single_position(batch.tokens.where("end"))
    with patching.read_states(model, place) as states:
        logits(model, batch)
    with patching.patched(model, states.residual[:, 2], place, 2):
        patched = logits(model, batch)
    equal(f"patched with its own state = untouched ({family})", patched[prompt], untouched[prompt], 1e-4)
    rest = split_prompt(model, batch, place)
    if rest.keys_values is not None:
        with torch.inference_mode():
            said = model.network(**rest.inputs()).logits[:, -1].float()
        equal(f"behind a stored beginning = whole prompt ({family})", said, untouched[:, -1], 1e-4)


def test_a_deviation_beyond_what_is_allowed_is_seen(tiny, prompts):
    states = extract(tiny, prompts[:2]).hidden["residual"]
    said = []
    with pytest.raises(AssertionError, match="apart"):
        compare(lambda *figures: said.append(figures), "a layer late", states[:, 1:], states[:, :-1], 1e-4)
    assert len(said) == 1  # a deviation is told before it fails


def test_a_number_that_shuts_a_token_out_hides_no_deviation():
    kept, off = torch.ones(2, 3), torch.tensor([[1, 1, 2.0]]).expand(2, 3)
    shut = torch.full((2, 1), torch.finfo(torch.float32).min)
    assert deviation(torch.cat([off, shut], 1), torch.cat([kept, shut], 1)) == 1
    with pytest.raises(AssertionError, match="shut out"):
        deviation(torch.cat([kept, kept[:, :1]], 1), torch.cat([kept, shut], 1))
