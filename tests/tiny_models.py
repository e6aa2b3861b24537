"""Models and reference computations that several tests share."""

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from peaks_and_gates.models import LanguageModel, read_points


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


def tiny_language_model(config_class, tokenizer, **changes):
    """A random model of any family in float32, with another model's tokenizer."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "max_position_embeddings": 4096}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    tokens = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config_class(**sizes | heads | tokens | changes)).eval()
    return LanguageModel(config_class.model_type, network, tokenizer, read_points(network, config_class.model_type))


def joining_tokenizer():
    """A tokenizer that joins the last character of a prefix with the first one of the question behind it."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())[:-1]  # the model has no room for a token more
    tokens = ["<end>", *symbols, "ĠA", "ĠB", "ĠC", "ĠD", "ĊW"]
    merges = [("Ġ", "A"), ("Ġ", "B"), ("Ġ", "C"), ("Ġ", "D"), ("Ċ", "W")]
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
