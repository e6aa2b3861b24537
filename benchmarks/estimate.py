"""What reading a question set costs, from a model's shape: memory and floating-point operations; nothing is loaded.

Two operations for every weight of the blocks and token, and four for every pair of positions that attend to each
other, width and block.  A beginning that prompts share counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Shape(NamedTuple):
    """A decoder's shape.  inner: width of the gated feed-forward part.  tied: the head is the embedding."""

    blocks: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False

    @property
    def block_weights(self) -> int:
        """Weights of all blocks: queries and output, keys and values, and the three matrices of the gated part."""
        attention = 2 * self.width**2 + 2 * self.width**2 * self.kv_heads // self.heads
        return self.blocks * (attention + 3 * self.width * self.inner)


# From the configuration that each model was published with.
SHAPES = {
    "mistral-7b": Shape(32, 4096, 14336, 32, 8, 32000),
    "llama-2-7b": Shape(32, 4096, 11008, 32, 32, 32000),
    "llama-2-13b": Shape(40, 5120, 13824, 40, 40, 32000),
    "llama-2-70b": Shape(80, 8192, 28672, 64, 8, 32000),
    "llama-3-8b": Shape(32, 4096, 14336, 32, 8, 128256),
    "llama-3-70b": Shape(80, 8192, 28672, 64, 8, 128256),
}
# Dense 16-bit teraFLOP/s as the maker states them, and GiB of memory that are left to a program.
GPUS = {"A100": (312, 79), "H100": (989, 78), "H200": (989, 139)}
EFFICIENCY = 0.34  # of the maker's rate, measured on one H100 with the shape of Llama-3-8B: measured/gpu.json
QUESTIONS, SUBJECTS, QUESTION_TOKENS = 14_042, 57, 125  # MMLU's test set; 750 tokens in a mean prompt with five shots
BATCH_TOKENS = 4096


def shape_of(config) -> Shape:
    """The shape that a loaded model's configuration names."""
    return Shape(config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads,
                 config.num_key_value_heads, config.vocab_size, config.tie_word_embeddings)  # fmt: skip


def work(prompts: Iterable[Sequence[tuple[object, int]]]) -> tuple[int, int]:
    """Tokens and attending pairs of prompts in pieces, each a name and a length; the last one is never shared."""
    nodes, tokens, pairs = set(), 0, 0
    for number, pieces in enumerate(prompts):
        before, path = 0, ()
        for place, (name, length) in enumerate(pieces, 1):
            path += (name if place < len(pieces) else number,)
            if path not in nodes:
                nodes.add(path)
                tokens += length
                pairs += length * before + length * (length + 1) // 2
            before += length
    return tokens, pairs


def flops(shape: Shape, tokens: int, pairs: int, n_prompts: int) -> int:
    """Floating-point operations of reading prompts; the head runs at one token per prompt."""
    blocks = 2 * shape.block_weights * tokens + 4 * shape.blocks * shape.width * pairs
    return blocks + 2 * shape.vocabulary * shape.width * n_prompts


def memory(shape: Shape) -> int:
    """Bytes of the weights in bfloat16 and of one batch: keys and values twice, block states, the widest product."""
    weights = shape.block_weights + (1 if shape.tied else 2) * shape.vocabulary * shape.width
    kv_width = shape.width * shape.kv_heads // shape.heads
    per_token = 4 * shape.blocks * kv_width + (shape.blocks + 1) * shape.width + 3 * shape.inner
    return 2 * (weights + BATCH_TOKENS * per_token)


def table(shots: int = 5, orders: int = 8) -> list[dict[str, str]]:
    """A row per model: memory, and for each GPU how many hold the model and minutes to read MMLU on a node of eight."""
    prefix = lambda i: ((i % SUBJECTS, i % orders), shots * QUESTION_TOKENS)
    lengths = [(prefix(i), ("question", QUESTION_TOKENS)) for i in range(QUESTIONS)]
    rows = []
    for name, shape in SHAPES.items():
        operations = flops(shape, *work(lengths), QUESTIONS)
        row = {"model": name, "memory (GiB)": f"{memory(shape) / 2**30:,.0f}"}
        for gpu, (teraflops, gib) in GPUS.items():
            least = -(-memory(shape) // int(gib * 2**30))
            minutes = operations / (teraflops * 1e12 * EFFICIENCY) / 60
            row |= {f"{gpu}s needed": f"{least}", f"minutes on 8 {gpu}s": f"{minutes / (8 // least):.1f}"}
        rows.append(row)
    return rows
