"""Extraction against the straightforward loop: batch of one, whole prompt, every state of every token to the host.

    python benchmarks/extraction.py

States are compared first; a faster wrong answer counts for nothing. Then questions a second both ways, behind shots in
one order, in eight, and in an own order for every question, there also without the tree of prefixes; the limit that
this machine's matrix products set; and the most memory that it takes to store the states of 1,000, 2,000 and 4,000
questions without shots, and of 600 behind five.
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
from peaks_and_gates.landscape.extraction import POINTS, encode, extract, hidden_states, run
from peaks_and_gates.landscape.prefixes import Encoded
from peaks_and_gates.landscape.questions import build_prompts, load

MODEL = "smollm2-135m-instruct"
N_QUESTIONS = 150  # of one subject
SETTINGS = ((0, 1), (1, 1), (2, None), (5, 1), (5, 8), (5, None))  # shots and orders; None: every question its own
N_PLAIN = 15  # the plain loop's time per question does not depend on their number
MEMORY = ((1000, 0), (2000, 0), (4000, 0), (600, 5))  # questions, shots


@torch.inference_mode()
def plain(model, prompts):
    """The straightforward loop; (n, L, D) residual states, of the last layer behind the final norm."""
    states = []
    for prompt in prompts:
        ids = model.tokenizer(prompt.text, return_tensors="pt").input_ids.to(model.device)
        hidden = model.network(ids, output_hidden_states=True).hidden_states
        host = [layer[0].cpu().clone() for layer in hidden[1:]]
        states.append(torch.stack([layer[-1] for layer in host]))
    return torch.stack(states)


def without_tree(model, prompts):
    """The same code where no beginning is shared; states as of `plain`."""
    whole = [Encoded(each.index, (each.ids,)) for each in encode(model, prompts)]
    return as_plain(run(model, whole, POINTS, None))


def as_plain(states):
    """Our states by read point, each (n, L, D), as transformers returns them."""
    return torch.cat([states["residual"][:, :-1], states["norm"][:, -1:]], 1)


def speed():
    """Questions a second: ours and the plain loop's; of five shots in own orders also ours without the tree."""
    model = models.load(MODEL, dtype=torch.float32)
    shape = estimate.shape_of(model.network.config)
    print(f"{torch.get_num_threads()} threads, {model.network.dtype}; reference q/s, ours q/s, ratio, lowest cosine")
    questions, rows, peaks = load("wordnet", 1, N_QUESTIONS), [], []
    for n_shots, n_orders in SETTINGS:
        prompts = build_prompts(questions, n_shots, n_orders)
        few = prompts[:N_PLAIN]
        extract(model, prompts[:4])
        plain(model, few[:2])
        references = {"extraction": lambda few=few: plain(model, few)}
        if n_orders is None:
            references["extraction, no tree"] = lambda prompts=prompts: without_tree(model, prompts)
        pieces = [[(piece, len(piece)) for piece in each.pieces] for each in encode(model, prompts)]
        tokens, pairs = estimate.work(pieces)
        operations = estimate.flops(shape, tokens, pairs, len(prompts))
        for benchmark, reference in references.items():
            (ours_time, own), (reference_time, expected) = side_by_side(
                lambda prompts=prompts: extract(model, prompts), reference
            )
            alike = torch.cosine_similarity(as_plain(own)[: len(expected)].float(), expected.float(), dim=2).min()
            assert alike > 0.9999, f"the states differ: cosine {alike}"
            slow, fast = len(expected) / reference_time, len(prompts) / ours_time
            peaks.append(matmul_rate(model.network.dtype))
            orders = "own orders" if n_orders is None else f"{n_orders} order{'s' * (n_orders > 1)}"
            rows.append(
                {
                    "benchmark": benchmark,
                    "setting": f"{n_shots}-shot, {orders}",
                    "unit": "questions/s",
                    "ours": fast,
                    "reference": slow,
                    "ratio": fast / slow,
                    "flops": operations / len(prompts),
                    "agreement": f"lowest cosine {float(alike):.6f}",
                    "tokens_per_second": tokens / ours_time,
                    "gigaflops": operations / ours_time / 1e9,
                }
            )
            numbers = f"{slow:.2f}, {fast:.2f}, {fast / slow:.2f}, {alike:.6f}"
            print(f"{benchmark}, {rows[-1]['setting']}: {numbers}", flush=True)
    # The machine is shared: the fastest product of all is nearest to what it can do.
    print(f"matrix product {max(peaks) / 1e9:.0f} GFLOP/s")
    return [row | {"limit": max(peaks) / row["flops"]} for row in rows]


def stored(n, n_shots):
    """Store the states of n questions in a folder of its own and print the most memory it took."""
    prompts = build_prompts(load("wordnet", 20, 150), n_shots, None)
    many = [replace(p, subject=f"{p.subject}, {copy}") for copy in range(-(-n // len(prompts))) for p in prompts][:n]
    hidden_states(MODEL, many, dtype="float32")
    print(json.dumps({"n": n, "gb": memory()}))


def main():
    """Print the tables and keep them."""
    rows = speed()
    for n, n_shots in MEMORY:
        with tempfile.TemporaryDirectory() as folder:
            for made in ("models", "downloads"):  # the model is there; the states are to be made
                (Path(folder) / made).symlink_to(cache.cache_folder().resolve() / made)
            peak = in_a_process("extraction.py", n, n_shots, PG_CACHE=folder)["gb"]
        setting = f"{n} questions, {n_shots}-shot, own orders"
        rows.append({"benchmark": "memory", "setting": setting, "unit": "GB, at most", "ours": peak})
        print(f"{setting}: {peak:.2f} GB at most", flush=True)
    keep("extraction", rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        stored(int(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
