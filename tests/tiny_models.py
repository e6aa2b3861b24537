"""Models and reference computations that several tests share."""

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast


@torch.inference_mode()
def plain_states(model, prompt):
    """The reference for one prompt: alone, as one text, read by hooks; (L, D) twice and (4,)."""
    seen = {}

    def record(name):
        return lambda module, args, output: seen.__setitem__(name, output[0, -1])

    decoder = model.network.model
    hooks = [decoder.norm.register_forward_hook(record("final"))]
    for i, block in enumerate(decoder.layers):
        hooks.append(block.register_forward_hook(record(("out", i))))
        hooks.append(block.input_layernorm.register_forward_hook(record(("norm", i))))
    logits = model.network(model.tokenizer(prompt.text, return_tensors="pt").input_ids).logits[0, -1]
    for hook in hooks:
        hook.remove()
    n = len(decoder.layers)
    residual = torch.stack([seen["out", i] for i in range(n)])
    normed = torch.stack([*(seen["norm", i] for i in range(1, n)), seen["final"]])
    return residual, normed, logits.float().log_softmax(-1)[model.letter_tokens]


def plain_loop(model, prompts):
    """The reference for all: (n, L, D) twice and (n, 4)."""
    return [torch.stack(part) for part in zip(*(plain_states(model, prompt) for prompt in prompts), strict=True)]


def joining_tokenizer():
    """A tokenizer that joins the last character of a prefix with the first one of the question behind it."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())[:-1]  # the model has no room for a token more
    tokens = ["<end>", *symbols, "ĠA", "ĠB", "ĠC", "ĠD", "ĊW"]
    merges = [("Ġ", "A"), ("Ġ", "B"), ("Ġ", "C"), ("Ġ", "D"), ("Ċ", "W")]
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
