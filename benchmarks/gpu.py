"""Extraction, and the search for neighbours, at paper size on one GPU.

    python benchmarks/gpu.py

A Llama-3-8B with random weights reads 14,042 questions in 57 subjects behind five shots, in bfloat16. How fast a model
is read does not depend on what its weights are or on what the text says, only on how long it is. Lengths are drawn
around MMLU's mean. No disk is in the times.
"""

from __future__ import annotations

import time

import estimate
import numpy as np
import torch
from common import keep, matmul_rate, seconds
from extraction import plain
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from peaks_and_gates import models
from peaks_and_gates.landscape.extraction import encode, extract, max_batch_tokens
from peaks_and_gates.landscape.neighbours import nearest_neighbours
from peaks_and_gates.landscape.questions import Prompt

MODEL = "llama-3-8b"
N_SHOTS = 5
N_PLAIN = 24  # of the plain loop, whose time per question does not depend on their number
SPREAD = (0.5, 0.5)  # of the logarithm of a question's length, between subjects and within one: assumed
K = 100


def random_model() -> models.LanguageModel:
    """MODEL's shape with random weights on the GPU, and a tokenizer that takes every byte for a token."""
    shape = estimate.SHAPES[MODEL]
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.tied,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.config.tie_last_hidden_states = False  # as `models.load` does
    network.eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(models.source("tiny-llama")[0])
    return models.LanguageModel(MODEL, network, tokenizer, models.read_points(network, MODEL))


def prompts() -> dict[str, list[Prompt]]:
    """MMLU's numbers of questions and subjects, each question behind its subject's shots; letters for text."""
    rng = np.random.default_rng(0)
    n, n_subjects, mean = estimate.QUESTIONS, estimate.SUBJECTS, estimate.QUESTION_TOKENS
    shares = rng.lognormal(0, 0.6, n_subjects)
    sizes = np.maximum(100, shares / shares.sum() * n).astype(int)
    sizes[sizes.argmax()] += n - sizes.sum()
    means = rng.lognormal(0, SPREAD[0], n_subjects)
    lengths = [m * rng.lognormal(0, SPREAD[1], size + N_SHOTS) for m, size in zip(means, sizes, strict=True)]
    scale = mean / np.concatenate(lengths).mean()
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    text = lambda length: "".join(rng.choice(letters, max(20, int(length * scale))))
    found = {}
    for subject, of_subject in enumerate(lengths):
        shots = "".join(text(length) for length in of_subject[:N_SHOTS])
        name = f"subject {subject}"
        found[name] = [Prompt(name, shots, text(length), 0) for length in of_subject[N_SHOTS:]]
    return found


def main() -> None:
    """Print the numbers and keep them."""
    peak = matmul_rate(torch.bfloat16, "cuda")
    model, by_subject = random_model(), prompts()
    first = next(iter(by_subject.values()))
    plain(model, first[:4])
    extract(model, first, ("norm",))
    slow = N_PLAIN / seconds(lambda: plain(model, first[:N_PLAIN]))[0]
    torch.cuda.reset_peak_memory_stats()
    bound, layer, start = max_batch_tokens(model), [], time.perf_counter()
    for group in tqdm(by_subject.values(), desc="subjects"):
        layer.append(extract(model, group, ("norm",))["norm"][:, model.n_layers // 2])
    took = time.perf_counter() - start
    memory = torch.cuda.max_memory_allocated() / 1e9
    encoded = [each for group in by_subject.values() for each in encode(model, group)]
    tokens, pairs = estimate.work([[(piece, len(piece)) for piece in each.pieces] for each in encoded])
    shape = estimate.SHAPES[MODEL]
    operations = estimate.flops(shape, tokens, pairs, len(encoded))
    row = {"benchmark": "GPU, extraction", "setting": f"{MODEL}, 5-shot, 1 order"}
    rows = [
        row
        | {
            "unit": "questions/s",
            "ours": len(encoded) / took,
            "reference": slow,
            "ratio": len(encoded) / took / slow,
            "limit": len(encoded) * peak / operations,
        },
        row | {"unit": "minutes", "ours": took / 60, "limit": operations / peak / 60},
        row | {"unit": "GB, at most", "ours": memory, "limit": None, "agreement": f"batches of at most {bound} tokens"},
    ]
    print(
        f"matrix product {peak / 1e12:.0f} TFLOP/s; {len(encoded)} questions, {tokens / 1e6:.2f} M tokens, "
        f"{operations / 1e15:.1f} PFLOP in {took:.1f} s: {operations / took / 1e12:.0f} TFLOP/s, "
        f"{operations / took / peak:.0%}; {memory:.1f} GB; the plain loop {slow:.2f} questions/s",
        flush=True,
    )
    states = torch.cat(layer)  # (n, D) on the CPU
    found = {}
    for device in ("cuda", "cpu"):
        repeats = 3 if device == "cuda" else 1
        found[device] = seconds(lambda device=device: nearest_neighbours(states, K, device=device), repeats)
    same = np.array_equal(found["cuda"][1][1], found["cpu"][1][1])
    assert same, "the neighbours differ"
    n, d = states.shape
    times = {"ours": found["cuda"][0], "reference": found["cpu"][0], "ratio": found["cpu"][0] / found["cuda"][0]}
    limit = n * n * d / matmul_rate(torch.float64, "cuda")  # half of all products: the matrix is symmetric
    rows.append(
        {"benchmark": "GPU, neighbours", "setting": f"{n:,} x {d:,}, k = {K}", "unit": "s", "limit": limit}
        | times
        | {"agreement": "the same neighbours, in the same order"}
    )
    print(f"neighbours of {n} x {d}: {times}, limit {limit:.3f} s")
    keep("gpu", rows)


if __name__ == "__main__":
    main()
