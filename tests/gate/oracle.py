"""The language model of a vision-language model, eager and by hand, in float64: nothing of it is transformers' or ours.

logits, weights, residual, attention_input = language_model(model, x, closed, "zero")
"""

import torch
from torch.nn.functional import layer_norm, silu


def language_model(model, x, closed=None, how="zero", layers=(), position=None, states=None, mean_of=None):
    """Logits (T, V), attention weights (L, H, T, T), residual streams (L + 1, T, D) and attention inputs (L, T, D).

    x: (T, D), what block 0 reads.  closed: (T, T) or (H, T, T) bool, query by key, cut in some layers.  states: what is
    put at a position, by ("residual" or "attention", layer).  mean_of: (T,) bool, whose mean value is read with
    how="mean" where a pair is closed.
    """
    config, states = model.text_config, states or {}
    n_tokens, size = len(x), config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_key_value_heads
    linear = lambda module, x: x @ module.weight.double().T
    rms = lambda module, x: module.weight.double() * x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()
    split = lambda x: x.view(n_tokens, -1, size).transpose(0, 1)  # (H, T, d)
    frequency = config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2).double() / size)
    angle = (torch.arange(n_tokens)[:, None] * frequency).repeat(1, 2)  # (T, d)
    turn = lambda x: x * angle.cos() + torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1) * angle.sin()
    patch = lambda x, name: x if name not in states else x.index_copy(0, position, states[name].double()[None])
    later = torch.ones(n_tokens, n_tokens).triu(1).bool()
    x, weights, residual, attention_input = x.double(), [], [], []
    for i, block in enumerate(model.layers):
        x = patch(x, ("residual", i))
        residual.append(x)
        y = patch(rms(block.input_layernorm, x), ("attention", i))
        attention_input.append(y)
        part = block.self_attn
        query, key, value = (split(linear(module, y)) for module in (part.q_proj, part.k_proj, part.v_proj))
        if hasattr(part, "q_norm"):  # Chameleon: each head normalised by itself
            scale = lambda norm, x: layer_norm(x, (size,)) * norm.weight.double()[:, None] + norm.bias.double()[:, None]
            query, key = scale(part.q_norm, query), scale(part.k_norm, key)
        key, value = (turn(key).repeat_interleave(group, 0), value.repeat_interleave(group, 0))
        scores = (turn(query) @ key.mT / size**0.5).masked_fill(later, -torch.inf)  # (H, T, T)
        cut = closed if i in layers else torch.zeros_like(later)
        pattern = scores.masked_fill(cut & (how == "mask"), -torch.inf).softmax(-1)
        weights.append(pattern)
        hidden = (pattern * cut).sum(-1, keepdim=True) * (how == "mean")  # (H, T, 1), the weight on closed tokens
        pattern = pattern.masked_fill(cut & (how != "mask"), 0)
        read = pattern @ value + (hidden * value[:, mean_of].mean(1, keepdim=True) if how == "mean" else 0)  # (H, T, d)
        x = x + linear(part.o_proj, read.transpose(0, 1).flatten(1))
        y = rms(block.post_attention_layernorm, x)
        x = x + linear(block.mlp.down_proj, silu(linear(block.mlp.gate_proj, y)) * linear(block.mlp.up_proj, y))
    x = patch(x, ("residual", len(model.layers)))
    logits = linear(model.network.get_output_embeddings(), rms(model.final_norm, x))
    return logits, torch.stack(weights), torch.stack([*residual, x]), torch.stack(attention_input)
