"""A random four-layer Llama with a byte-level tokenizer, for tests and the smoke preset.

`python -m training.tiny_llama` writes weights/smoke/tiny-llama (a second).  `models.yml` has its hash.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from peaks_and_gates import cache

FOLDER = Path(__file__).parents[1] / "weights" / "smoke" / "tiny-llama"


def save(folder: Path, seed: int = 0) -> Path:
    """Write a Llama of 0.2 M parameters, its weights drawn with `seed`, and its tokenizer.  Returns the folder."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(["<end>", *symbols, "ĠA", "ĠB", "ĠC", "ĠD"])}
    merges = [("Ġ", letter) for letter in "ABCD"]
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
        initializer_range=0.2,  # large enough that different prompts give clearly different states
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    save(FOLDER)
    (FOLDER / "card.json").unlink(missing_ok=True)
    card = {"command": "python -m training.tiny_llama", "seed": 0, "files": cache.checksums(FOLDER)}
    cache.write_json(FOLDER / "card.json", card | {"environment": cache.environment()})
