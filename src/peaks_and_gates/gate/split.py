"""Prompts in two parts: what comes before the token that is changed is run once, the rest once per change.

prompt = split_prompt(model, batch, single_position(batch.tokens.where("gate")))
with patched(model, states, prompt.position, layer):
    logits = model.network(**prompt.inputs(), logits_to_keep=1).logits

A token never sees what follows it, so changing one leaves everything before it as it is. The image comes before its
end-of-image token: most of a prompt with a picture and a short text is run once.  A table of knockouts takes a seventh
of the time, one of patches an eleventh.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from .inputs import Batch
from .model import VisionLanguageModel
from .tokens import KINDS, TokenMap

OF_TOKENS = {"input_ids", "attention_mask", "position_ids"}  # the inputs with a column per token


@dataclass(frozen=True)
class SplitPrompt:
    """The last tokens of a batch of prompts, and the keys and values of those before them.

    original: the prompts.  batch: the same, padded between the two parts, too.  start: the first column of the last
    tokens; 0 if nothing was run beforehand.  position: (B,) int, where the token sits among the last ones.
    keys_values: of the tokens before; None if none are.
    """

    original: Batch
    batch: Batch
    start: int
    position: Tensor
    keys_values: DynamicCache | None

    def inputs(self) -> dict[str, object]:
        """What the network takes in one run over the last tokens."""
        full = self.batch.inputs
        if self.keys_values is None:
            return full | {"use_cache": False}
        # The mask stays complete: it also says which of the tokens before are padding.
        last = {name: full[name][:, self.start :] for name in ("input_ids", "position_ids")}
        return last | {"attention_mask": full["attention_mask"], "past_key_values": self._cache(), "use_cache": True}

    def to_generate(self, targets: Sequence[str] = ("after",)) -> tuple[TokenMap, dict[str, object]]:
        """The tokens, and what `generate` takes, which itself leaves out the tokens that the cache has.

        targets: tokens that a knockout changes; if some were run beforehand, the prompt is run from its beginning.
        """
        changed = self.batch.tokens.where(*targets)[:, : self.start].any()
        if changed or self.keys_values is None:
            return self.original.tokens, dict(self.original.inputs)
        prompts = {name: self.batch.inputs[name] for name in ("input_ids", "attention_mask")}
        return self.batch.tokens, prompts | {"past_key_values": self._cache()}

    def _cache(self) -> DynamicCache:
        """A copy of the cache: a run writes its own tokens into it."""
        own = copy.copy(self.keys_values)
        own.layers = [copy.copy(layer) for layer in self.keys_values.layers]
        return own


@torch.inference_mode()
def split_prompt(model: VisionLanguageModel, batch: Batch, position: Tensor) -> SplitPrompt:
    """Run a batch up to a token of every row, the token itself left out.

    Nothing is run beforehand where some row has its image, or nothing, on the other side of that token, or where the
    model is wired: a wiring looks at the complete prompt.

    position: (B,) int, a token of each row, counted with the padding.
    """
    image = batch.tokens.where("begin", "image", "special")  # (B, T)
    before = torch.arange(image.shape[1], device=image.device) < position.to(image.device)[:, None]  # (B, T)
    nothing_before = not (before & batch.tokens.where("prompt")).any(1).all()
    if nothing_before or (image & ~before).any() or getattr(model.network.config, "wiring", None):
        return SplitPrompt(batch, batch, 0, position, None)
    parted, start = _in_two_parts(batch, position.to(image.device), model.tokenizer.pad_token_id)
    inputs = {name: value[:, :start] if name in OF_TOKENS else value for name, value in parted.inputs.items()}
    keys_values = model.network(**inputs, logits_to_keep=1, use_cache=True).past_key_values
    return SplitPrompt(batch, parted, start, position - position.min(), keys_values)


def _in_two_parts(batch: Batch, position: Tensor, padding: int) -> tuple[Batch, int]:
    """A batch in which what comes before a token of every row ends in one column, and the column behind it.

    Both parts are padded in front.  position: (B,) int, on the batch's device.  padding: the id of padding.
    """
    n_tokens = batch.inputs["input_ids"].shape[1]
    start, behind = int(position.max()), n_tokens - int(position.min())
    columns = torch.arange(start + behind, device=position.device)
    # Where each new column comes from: in the first part counted from the token, in the second from the end.
    source = torch.where(columns < start, position[:, None] - start + columns, n_tokens - start - behind + columns)
    padded = torch.where(columns < start, source < 0, source < position[:, None])  # (B, T')
    source = source.clamp(min=0)
    empty = int((batch.inputs["attention_mask"].gather(1, source) * ~padded).any(0).int().argmax())  # in all rows
    moved = lambda values, fill: values.gather(1, source).masked_fill(padded, fill)[:, empty:]
    fills = {"input_ids": padding, "attention_mask": 0, "position_ids": 0}
    inputs = {name: moved(value, fills[name]) if name in fills else value for name, value in batch.inputs.items()}
    kinds = moved(batch.tokens.kinds, KINDS.index("padding"))
    return replace(batch, inputs=inputs, tokens=TokenMap(kinds)), start - empty
