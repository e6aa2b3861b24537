"""What reading a question set costs before it is read: memory and time, from a model's shape.

    shape = estimate.shape("llama-3-70b")
    estimate.memory(shape, batch_tokens=4096)      # bytes
    estimate.flops(shape, work)                    # of the whole extraction

Two floating-point operations for every weight of the blocks and token, and four for every pair of positions that
attend to each other, width and block. A shared prefix counts once, as `extraction` computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedConfig

from .errors import UnknownName

KNOWN: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "shapes.yml").read_text())
BYTES = 2  # of a number in bfloat16
GIB = 2**30


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

    @property
    def cache_per_token(self) -> int:
        """Bytes of keys and values of a token."""
        return 2 * self.blocks * self.width * self.kv_heads // self.heads * BYTES


@dataclass(frozen=True)
class Work:
    """Tokens that an extraction computes.  rows: of them each with the tokens before it that it can see."""

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


def memory(shape: Shape, batch_tokens: int) -> int:
    """Bytes on the GPU at most: weights, keys and values, every block's states of a batch, and its largest product."""
    states = (shape.blocks + 1) * shape.width * BYTES
    widest = 3 * shape.inner * BYTES
    return shape.weights * BYTES + batch_tokens * (2 * shape.cache_per_token + states + widest)


def least_gpus(shape: Shape, batch_tokens: int, gpu_memory: float) -> int:
    """GPUs of so many GiB that hold the model and a batch between them."""
    return -(-memory(shape, batch_tokens) // int(gpu_memory * GIB))


def seconds(operations: int, rate: float) -> float:
    """Time of an extraction at a rate that was measured or is assumed, in FLOP/s."""
    return operations / rate
