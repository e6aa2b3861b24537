"""Extraction against the straightforward loop: batch of one, whole prompt, every state of every token to the host.

    python benchmarks/extraction.py [questions per measurement]

States are compared first; a faster wrong answer counts for nothing. Printed for 0, 1, 2, 5 shots and one or eight
orders: questions/s both ways, their ratio, the share of this machine's measured matrix-product rate that ours reaches.
"""

from __future__ import annotations

import sys
import time
from statistics import median

import torch

from peaks_and_gates import models
from peaks_and_gates.extraction import encode, extract
from peaks_and_gates.questions import build_prompts, load

MODEL = "smollm2-135m-instruct"


@torch.inference_mode()
def plain(model, prompts):
    """The straightforward loop; (n, L, D) residual states."""
    states = []
    for prompt in prompts:
        ids = model.tokenizer(prompt.text, return_tensors="pt").input_ids
        hidden = model.network(ids, output_hidden_states=True).hidden_states
        states.append(torch.stack([h[0, -1].clone() for h in hidden[1:]]))
    return torch.stack(states)


def seconds(call, repeats=3):
    """Median wall time of a few calls, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return median(times), result


def matmul_rate(dtype):
    """This machine's FLOP/s in a large matrix product."""
    a = torch.randn(2048, 2048).to(dtype)
    a @ a
    return 2 * 2048**3 / seconds(lambda: a @ a, 7)[0]


def tokens_computed(model, prompts):
    """Tokens that go through the network when every prefix is computed once."""
    encoded = encode(model, prompts)
    return sum(len(prefix) for prefix in {e.prefix for e in encoded}) + sum(len(e.rest) for e in encoded)


def main() -> None:
    """Print the table."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 75
    model = models.load(MODEL)
    body = sum(p.numel() for p in model.network.get_decoder().layers.parameters())
    peak = matmul_rate(model.dtype)
    print(f"{torch.get_num_threads()} threads, {model.dtype}, matrix product {peak / 1e9:.0f} GFLOP/s, {n} questions")
    print("shots orders  plain q/s  ours q/s  ratio  of peak  lowest cosine")
    questions = load("wordnet", 1, n)
    for n_orders in (1, 8):
        for n_shots in (0, 1, 2, 5):
            prompts = build_prompts(questions, n_shots, n_orders)
            few = prompts[: max(1, n // 5)]  # the plain loop's time per question does not depend on their number
            extract(model, prompts[:4])
            reference_time, reference = seconds(lambda few=few: plain(model, few), 1)
            ours_time, ours = seconds(lambda prompts=prompts: extract(model, prompts))
            same = torch.cosine_similarity(ours.hidden["residual"][: len(few)].float(), reference.float(), dim=2).min()
            rate = 2 * body * tokens_computed(model, prompts) / ours_time
            slow, fast = len(few) / reference_time, n / ours_time
            print(
                f"{n_shots:>5} {n_orders:>6} {slow:>10.2f} {fast:>9.2f} {fast / slow:>6.1f} {rate / peak:>8.0%}"
                f" {same:>14.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
