"""Wiring: which tokens of a model can never read which others, as a part of the model.

    network.config.wiring = "gated"
    wire(network, processor, family)      # from now on every forward pass, cached or not, obeys it

A model trained under such a mask has never learned to do without, so the mask is carried in its config and `vlms.load`
puts it back.  It acts before the softmax.  What `attention` changes or measures comes on top of it.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel, ProcessorMixin
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .errors import UnknownName
from .tokens import Family, TokenMap, token_map

# Who is hidden from whom, as groups of tokens.  "gated": the text sees the image through the end-of-image token alone.
# "open": the end-of-image token is blind to the image, the text sees the image itself.
# "hidden": the text cannot read the end-of-image token.
WIRINGS = {
    "gated": (("begin", "image", "special"), "after"),
    "open": (("begin", "image", "special"), "end"),
    "hidden": (("end",), "after"),
}
# The attention of a wired model, by the attention that it is made of.
WIRED = {"sdpa": "wired_sdpa", "eager": "wired_eager"}


@dataclass
class Closed:
    """What is closed in the sequence that a model is in.  sources: (B, T) bool.  targets: (B, T) bool, those of the
    tokens seen so far.  later: whether generated tokens are targets."""

    sources: Tensor
    targets: Tensor
    later: bool


_closed: dict[int, Closed | None] = {}  # by the id of the config that the model's attention modules hold


def closed_pairs(tokens: TokenMap, wiring: str) -> Tensor:
    """(B, T, T) bool: whether a query (row) is kept from reading a key (column).  Raises UnknownName."""
    sources, targets = _sets(tokens, wiring)
    return targets[:, :, None] & sources[:, None, :]


def _sets(tokens: TokenMap, wiring: str) -> tuple[Tensor, Tensor]:
    if wiring not in WIRINGS:
        raise UnknownName("wiring", wiring, WIRINGS)
    sources, targets = WIRINGS[wiring]
    return tokens.where(*sources), tokens.where(targets)


def wire(network: PreTrainedModel, processor: ProcessorMixin, family: Family) -> None:
    """Make the wiring named in a network's config part of every forward pass.

    Raises UnknownName.  A prompt without an image is not touched.
    """
    wiring, image = network.config.wiring, processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    config = network.get_decoder().layers[0].self_attn.config
    if wiring not in WIRINGS:
        raise UnknownName("wiring", wiring, WIRINGS)

    def look(module, args, inputs) -> None:
        """Before a forward pass: see where the image and the text are, or that the text grows."""
        ids = inputs["input_ids"]
        if known(inputs) == 0:
            _closed[id(config)] = None
            if (ids == image).any():
                mask = inputs.get("attention_mask")
                tokens = token_map(
                    family, processor, network.config, ids, torch.ones_like(ids) if mask is None else mask
                )
                _closed[id(config)] = Closed(*_sets(tokens, wiring), WIRINGS[wiring][1] == "after")

    network.register_forward_pre_hook(look, with_kwargs=True)
    weakref.finalize(network, _closed.pop, id(config), None)  # the id may be another config's one day
    config._attn_implementation_internal = WIRED[config._attn_implementation]


def known(inputs: Mapping[str, object]) -> int:
    """Number of tokens in the cache that a forward pass is given, 0 if it is given none.

    The cache is found by its type: transformers 5.24 gave it another name, and a name that finds none unwires a model
    from its second token on.
    """
    return max((given.get_seq_length() for given in inputs.values() if isinstance(given, Cache)), default=0)


def without_closed(mask: Tensor, config: object) -> Tensor:
    """The mask of a forward pass, (B, 1, Q, K), without the pairs that the model's wiring closes, if it has one."""
    closed = _closed.get(id(config))
    if closed is None:
        return mask
    n_queries, n_keys = mask.shape[2:]
    sources = grown(closed.sources, n_keys, False)
    targets = grown(closed.targets, n_keys, closed.later)[:, n_keys - n_queries :]
    return without(mask, targets[:, None, :, None] & sources[:, None, None, :])


def without(mask: Tensor, pairs: Tensor) -> Tensor:
    """A mask, boolean or added to the scores, without some pairs."""
    return mask & ~pairs if mask.dtype == torch.bool else mask.masked_fill(pairs, torch.finfo(mask.dtype).min)


def grown(chosen: Tensor, n_keys: int, later: bool) -> Tensor:
    """A set over the prompt (B, T) as one over the n_keys tokens there are now; later: whether new tokens are in it."""
    missing = n_keys - chosen.shape[1]
    return torch.nn.functional.pad(chosen, (0, missing), value=later) if missing > 0 else chosen[:, :n_keys]


def full_mask(kind: str, *args, **settings) -> Tensor:
    """The mask of SDPA or eager, always made (transformers leaves it out where the kernel can make a causal one
    itself), without what the model's wiring closes."""
    make = {"sdpa": sdpa_mask, "eager": eager_mask}[kind]
    return without_closed(make(*args, **settings | {"allow_is_causal_skip": False}), settings["config"])


def attend_by(kind: str, module, *args, **settings):
    """The attention function of SDPA or eager."""
    if kind == "sdpa":
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **settings)
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **settings)


for kind, name in WIRED.items():
    AttentionInterface.register(name, partial(attend_by, kind))
    AttentionMaskInterface.register(name, partial(full_mask, kind))
