"""Attention in which heads that share keys and values ask them together.

with grouped_attention(network):
    network(ids, past_key_values=keys_values)

Behind a shared prefix most keys are the prefix's, and a batch of short questions reads them all. Where a model has
fewer heads of keys than of queries, transformers writes them out once for every head of queries before it attends.
Laid end to end, the queries of a group read them as they are: the same numbers, without the copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "peaks_and_gates_grouped"
# Without cuDNN's kernels: they are planned anew for every shape, and here nearly every batch has one of its own.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings
) -> tuple[Tensor, None]:
    """The attention function that transformers calls; see `AttentionInterface`.

    query: (B, H, Q, d).  key, value: (B, G, K, d), H a multiple of G.  attention_mask: (B, 1, Q, K) or None.
    Returns (B, Q, H, d).
    """
    batch, heads, n_queries, width = query.shape
    groups = key.shape[1]
    if attention_mask is None or heads == groups:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    together = heads // groups  # heads of one group lie side by side
    found = scaled_dot_product_attention(
        query.reshape(batch, groups, together * n_queries, width),
        key,
        value,
        attention_mask.repeat(1, 1, together, 1),
        scale=settings.get("scaling"),
    )
    return found.reshape(query.shape).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def grouped_attention(network: PreTrainedModel) -> Iterator[None]:
    """Let a network whose attention is SDPA attend by groups; any other stays as it is."""
    own = network.config._attn_implementation
    if own != "sdpa":
        yield
        return
    network.set_attn_implementation(NAME)
    try:
        with sdpa_kernel(KERNELS):
            yield
    finally:
        network.set_attn_implementation(own)
