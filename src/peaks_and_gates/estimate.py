"""What reading a question set costs before it is read: memory and time, from a model's shape.

    shape = estimate.shape("llama-3-70b")
    estimate.memory(shape)                         # bytes
    estimate.flops(shape, few_shot(n_shots=5))     # of the whole extraction
    estimate.machines(shape, few_shot(n_shots=5))  # GPUs and minutes, on several kinds of GPU

Two floating-point operations for every weight of the blocks and token, and four for every pair of positions that
attend to each other, width and block. A shared prefix counts once, as `extraction` computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from transformers import PreTrainedConfig

from .errors import BadParameter, UnknownName
from .extraction import FEWEST_TOKENS, numbers_per_token

KNOWN: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "shapes.yml").read_text())
BYTES = 2  # of a number in bfloat16
GIB = 2**30
# MMLU's test questions and subjects.  EvalScope's page on MMLU gives 3,212 characters for a mean prompt with five
# shots; at 4.3 characters a token these are about 750 tokens, 125 for each of the six questions in it.
MMLU = {"n_questions": 14_042, "n_subjects": 57, "question_tokens": 125}
PER_NODE = 8  # GPUs
MOST = 10**12  # questions, shots, nodes: more than anybody has
# Share of the maker's matrix rate that an extraction reaches: measured on one H100 with the shape of Llama-3-8B, see
# benchmarks/measured/gpu.json.  Other GPUs and shapes may differ.
EFFICIENCY = 0.34


@dataclass(frozen=True)
class Shape:
    """A decoder's shape.  inner: width of the gated feed-forward part.  tied: the head is the embedding."""

    blocks: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    @property
    def block_weights(self) -> int:
        """Weights of all blocks' matrices: queries and output, keys and values, and the three of the gated part."""
        attention = 2 * self.width**2 + 2 * self.width * self.width * self.kv_heads // self.heads
        return self.blocks * (attention + 3 * self.width * self.inner)

    @property
    def weights(self) -> int:
        """All weights; the norms' few are left out."""
        return self.block_weights + (1 if self.tied else 2) * self.vocabulary * self.width


@dataclass(frozen=True)
class Work:
    """What an extraction computes: tokens, pairs of a token and one that it can see, and prompts."""

    tokens: int
    pairs: int
    prompts: int


def shape(name: str) -> Shape:
    """The shape of a model of the book.  Raises UnknownName."""
    if name not in KNOWN["models"]:
        raise UnknownName("model", name, KNOWN["models"])
    return Shape(**KNOWN["models"][name])


def shape_of(config: PreTrainedConfig) -> Shape:
    """The shape that a loaded model's configuration names."""
    return Shape(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
        config.tie_word_embeddings,
    )


def work(prompts: Sequence[tuple[Any, int, int]]) -> Work:
    """The tokens of prompts, each given by its prefix (anything that tells prefixes apart) and the two lengths."""
    lengths = {prefix: length for prefix, length, _ in prompts}
    tokens = sum(lengths.values()) + sum(rest for _, _, rest in prompts)
    pairs = sum(n * (n + 1) // 2 for n in lengths.values())
    pairs += sum(rest * before + rest * (rest + 1) // 2 for _, before, rest in prompts)
    return Work(tokens, pairs, len(prompts))


def flops(shape: Shape, work: Work) -> int:
    """Floating-point operations of an extraction; the head runs at one token a prompt."""
    blocks = 2 * shape.block_weights * work.tokens + 4 * shape.blocks * shape.width * work.pairs
    return blocks + 2 * shape.vocabulary * shape.width * work.prompts


def few_shot(
    n_shots: int,
    n_orders: int | None = 8,
    n_questions: int = MMLU["n_questions"],
    n_subjects: int = MMLU["n_subjects"],
    question_tokens: int = MMLU["question_tokens"],
) -> Work:
    """The work of a question set whose questions, shots included, are all of one length.

    n_orders: of the shots of a subject, each a prefix that its questions share; None for an order a question, where
    nothing is shared.  Raises BadParameter for numbers below what makes sense.
    """
    counts = (n_questions, n_subjects, question_tokens, 1 if n_orders is None else n_orders, n_shots + 1)
    if min(counts) < 1 or max(counts) > MOST or n_questions < n_subjects:
        raise BadParameter(
            f"{n_questions} questions in {n_subjects} subjects, {n_shots} shots in {n_orders} orders, "
            f"{question_tokens} tokens: all must be at least 1, shots 0, none above {MOST:.0e}, and every subject "
            "needs a question."
        )
    shots = n_shots * question_tokens
    if n_orders is None or not n_shots:
        return alike(0, 0, n_questions, shots + question_tokens)
    return alike(min(n_subjects * n_orders, n_questions), shots, n_questions, question_tokens)


def alike(n_prefixes: int, prefix: int, n_prompts: int, rest: int) -> Work:
    """`work` of so many prompts that all have as many tokens in their prefix and after it."""
    tokens = n_prefixes * prefix + n_prompts * rest
    pairs = n_prefixes * (prefix * (prefix + 1) // 2) + n_prompts * (rest * prefix + rest * (rest + 1) // 2)
    return Work(tokens, pairs, n_prompts)


def memory(shape: Shape, batch_tokens: int = FEWEST_TOKENS) -> int:
    """Bytes on the GPU at most: the weights, and what a batch takes."""
    kv_width = shape.width * shape.kv_heads // shape.heads
    return BYTES * (shape.weights + batch_tokens * numbers_per_token(shape.blocks, shape.width, kv_width, shape.inner))


def least_gpus(shape: Shape, gpu_memory: float, batch_tokens: int = FEWEST_TOKENS) -> int:
    """GPUs of so many GiB that hold the model and a batch between them."""
    return -(-memory(shape, batch_tokens) // int(gpu_memory * GIB))


def machines(shape: Shape, work: Work, n_nodes: int = 4, efficiency: float = EFFICIENCY) -> pd.DataFrame:
    """Minutes of an extraction by kind of GPU, on one of them, on a node and on several; NaN where it has no room.

    A model that is split over GPUs passes from one to the next, and computes no faster than on one that could hold it;
    what is left of a node holds copies of it that read other questions.  Reading the weights from disk comes on top.
    columns: gpu, least (GPUs that hold the model), one, node, nodes (minutes).
    """
    rows = []
    for name, gpu in KNOWN["hardware"].items():
        least = least_gpus(shape, gpu["memory"])
        minutes = flops(shape, work) / (gpu["teraflops"] * 1e12 * efficiency) / 60
        copies = {"one": 1 // least, "node": PER_NODE // least, "nodes": n_nodes * (PER_NODE // least)}
        times = {where: minutes / n if n else float("nan") for where, n in copies.items()}
        rows.append({"gpu": name, "least": least} | times)
    return pd.DataFrame(rows)


def report(model: str, n_shots: int, n_orders: int | None, n_questions: int, n_nodes: int) -> str:
    """What `pg estimate` prints.  Raises UnknownName, BadParameter."""
    known = shape(model)
    if not 1 <= n_nodes <= MOST:
        raise BadParameter(f"{n_nodes} nodes: there must be at least 1, and no more than {MOST:.0e}.")
    needed = few_shot(n_shots, n_orders, n_questions)
    plain = few_shot(n_shots, None, n_questions)
    table = machines(known, needed, n_nodes)
    times = table[["one", "node", "nodes"]].map(lambda minutes: "-" if minutes != minutes else f"{minutes:.1f}")
    times.insert(0, "GPUs at least", table["least"])
    times.columns = ["GPUs at least", "one GPU", f"node of {PER_NODE}", f"{n_nodes} nodes"]
    times.index = table["gpu"]
    times.index.name = "minutes on"
    return "\n".join(
        [
            f"{model}: {known.weights / 1e9:.1f} billion weights, {known.weights * BYTES / GIB:.0f} GiB in bfloat16, "
            f"{memory(known) / GIB:.0f} GiB with a batch of {FEWEST_TOKENS} tokens.",
            f"{n_questions} questions of {MMLU['question_tokens']} tokens: {needed.tokens / 1e6:.1f} million tokens, "
            f"{flops(known, needed) / 1e15:.0f} PFLOP; a prompt at a time {plain.tokens / 1e6:.1f} million tokens, "
            f"{flops(known, plain) / 1e15:.0f} PFLOP.",
            times.reset_index().to_string(index=False),
            f"At {EFFICIENCY:.0%} of the maker's matrix rate, as measured on one H100 with the shape of Llama-3-8B. "
            "Reading the weights from disk comes on top.",
        ]
    )
