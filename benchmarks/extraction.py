"""Extraction against the straightforward loop: batch of one, whole prompt, every state of every token to the host.

    python benchmarks/extraction.py

States are compared first; a faster wrong answer counts for nothing. Then questions a second both ways at 0, 1, 2 and 5
shots with one and with eight orders, the limit that this machine's matrix products set, and the most memory that
storing the states of 1,000, 2,000 and 4,000 questions takes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import estimate
import torch
from common import in_a_process, keep, matmul_rate, memory, side_by_side

from peaks_and_gates import cache, models
from peaks_and_gates.landscape.extraction import encode, extract, hidden_states
from peaks_and_gates.landscape.questions import build_prompts, load

MODEL = "smollm2-135m-instruct"
N_QUESTIONS = 75  # of one subject
N_PLAIN = 15  # the plain loop's time per question does not depend on their number
MEMORY = (1000, 2000, 4000)


@torch.inference_mode()
def plain(model, prompts):
    """The straightforward loop; (n, L, D) residual states."""
    states = []
    for prompt in prompts:
        ids = model.tokenizer(prompt.text, return_tensors="pt").input_ids.to(model.device)
        hidden = model.network(ids, output_hidden_states=True).hidden_states
        host = [layer[0].cpu().clone() for layer in hidden[1:]]
        states.append(torch.stack([layer[-1] for layer in host]))
    return torch.stack(states)


def speed():
    """Questions a second, ours and the plain loop's."""
    model = models.load(MODEL)
    shape, peak = estimate.shape_of(model.network.config), matmul_rate(model.network.dtype)
    print(f"{torch.get_num_threads()} threads, {model.network.dtype}, matrix product {peak / 1e9:.0f} GFLOP/s")
    print("shots orders  plain q/s  ours q/s  ratio  limit q/s  reached  tokens/s  lowest cosine")
    questions, rows = load("wordnet", 1, N_QUESTIONS), []
    for n_shots in (0, 1, 2, 5):
        for n_orders in (1, 8):
            prompts = build_prompts(questions, n_shots, n_orders)
            few = prompts[:N_PLAIN]
            extract(model, prompts[:4])
            plain(model, few[:2])
            (ours_time, found), (reference_time, expected) = side_by_side(
                lambda prompts=prompts: extract(model, prompts), lambda few=few: plain(model, few)
            )
            alike = torch.cosine_similarity(found["residual"][: len(few)].float(), expected.float(), dim=2).min()
            assert alike > 0.9999, f"the states differ: cosine {alike}"
            tokens, pairs = estimate.work([(e.prefix, len(e.prefix), len(e.rest)) for e in encode(model, prompts)])
            slow, fast = len(few) / reference_time, len(prompts) / ours_time
            limit = len(prompts) * peak / estimate.flops(shape, tokens, pairs, len(prompts))
            rows.append(
                {
                    "benchmark": "extraction",
                    "setting": f"{n_shots}-shot, {n_orders} order{'s' * (n_orders > 1)}",
                    "unit": "questions/s",
                    "ours": fast,
                    "reference": slow,
                    "ratio": fast / slow,
                    "limit": limit,
                    "agreement": f"lowest cosine {float(alike):.6f}",
                    "tokens_per_second": tokens / ours_time,
                    "gigaflops": estimate.flops(shape, tokens, pairs, len(prompts)) / ours_time / 1e9,
                }
            )
            print(
                f"{n_shots:>5} {n_orders:>6} {slow:>10.2f} {fast:>9.2f} {fast / slow:>6.1f} {limit:>10.1f}"
                f" {fast / limit:>8.0%} {tokens / ours_time:>9.0f} {alike:>14.6f}",
                flush=True,
            )
    return rows


def stored(n):
    """Store the states of n questions in a folder of its own and print the most memory it took."""
    prompts = build_prompts(load("wordnet", 20, 50), 0)
    many = [replace(p, subject=f"{p.subject}, {copy}") for copy in range(-(-n // len(prompts))) for p in prompts][:n]
    hidden_states(MODEL, many)
    print(json.dumps({"n": n, "gb": memory()}))


def main():
    """Print the tables and keep them."""
    rows = speed()
    for n in MEMORY:
        with tempfile.TemporaryDirectory() as folder:
            for made in ("models", "downloads"):  # the model is there; the states are to be made
                (Path(folder) / made).symlink_to(cache.cache_folder().resolve() / made)
            found = in_a_process("extraction.py", n, PG_CACHE=folder)
        rows.append({"benchmark": "memory", "setting": f"{n} questions", "unit": "GB, at most", "ours": found["gb"]})
        print(f"{n} questions: {found['gb']:.2f} GB at most", flush=True)
    keep("extraction", rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        stored(int(sys.argv[1]))
    else:
        main()
