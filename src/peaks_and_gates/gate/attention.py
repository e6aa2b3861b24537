"""Attention, changed or measured while a model runs: knockout, the shares of groups of tokens, and wirings.

with knockout(model, sources=tokens.where("end"), targets=tokens.where("text"), how="zero"):
    logits = model.network(**batch.inputs).logits

All go through an attention function registered with transformers, so no model is forked and no weights are touched.
It calls the attention the model had before (SDPA or eager) and needs no pattern of its own: a weight set to zero after
the softmax is the same as a value set to zero, and the share of a group is attention over values that are 1 in it.

A wiring is a knockout that is always on: a mini trained under such a mask has never learned to do without, so the
mask is named in its config and `vlm.load` puts it back.  Knockout and shares come on top of it.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel, ProcessorMixin
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..errors import BadParameter, ModelUnavailable, UnknownName
from .model import VisionLanguageModel
from .tokens import Family, TokenMap, token_map

# The attention of a model, and the name under which ours calls it.
OURS = {"sdpa": "peaks_and_gates_sdpa", "eager": "peaks_and_gates_eager"}
# Sources and targets of a wiring, as groups of tokens.  "gated": the text sees the image through the end-of-image
# token alone.  "open": the end-of-image token is blind to the image, the text sees the image itself.
# "hidden": the text cannot read the end-of-image token.
WIRINGS = {
    "gated": (("begin", "image", "special"), "after"),
    "open": (("begin", "image", "special"), "end"),
    "hidden": (("end",), "after"),
}


@dataclass
class Run:
    """An intervention under way.

    n_rows, n_tokens: of the token sets.  layers: the blocks it is for.  seen: keys so far, by block that was run.
    """

    act: Callable[..., Tensor]
    n_rows: int
    n_tokens: int
    layers: set[int]
    seen: dict[int, int] = field(default_factory=dict)


Shares = dict[str, Tensor]  # by name, see `attention_shares`
# By the id of the config that a model's attention modules hold: its intervention; the tokens that its wiring closes in
# the present prompt, as sources (B, T), targets (B, T) and whether generated tokens are targets.
_running: dict[int, Run] = {}
_closed: dict[int, tuple[Tensor, Tensor, bool] | None] = {}


def knockout(
    model: VisionLanguageModel,
    sources: Tensor | None,
    targets: Tensor,
    how: str = "zero",
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    generated: bool = True,
    mean_of: Tensor | None = None,
) -> AbstractContextManager[None]:
    """Let some tokens not read some others while the model runs inside the context.

    Args:
        model: whose language model is changed; its vision tower is not.
        sources: (B, T) bool, the tokens not to be read; None for none, which changes nothing.
        targets: (B, T) bool, the tokens that do not read them.
        how: "zero" sets the weights to 0 after the softmax and does not share them out again, as the paper's code
            does; "mask" leaves the sources out of the softmax; "mean" keeps the weights, and has each source's value
            replaced by the mean value of the tokens in `mean_of`, in each block and head: what is read at the source
            is no longer its own, yet neither missing nor of another size.
        layers: blocks, 0 … L - 1; None for all.
        heads: query heads, 0 … H - 1; None for all.
        generated: whether tokens after the first T, generated later, are targets too. They never are sources.
        mean_of: (B, T) bool, of "mean"; the image tokens, say, of which the mean over a row still says what they have
            in common.

    Raises:
        BadParameter: sets of two shapes, not bool, or one empty in a row; a layer or head out of range, or none; an
            unknown `how`, or "mean" without `mean_of`; a token left with nothing to read; a batch of other rows (beam
            search repeats them) or of other length; a cache whose length is not its content (static or sliding); the
            model was not run inside the context.
        ModelUnavailable: the model's attention is neither SDPA nor eager, or its masks are not made by transformers.

    Source: Serra et al. 2025, sec. 3, "zero" as in their code; "mask" as in Geva et al. 2023; a mean in place of zero,
    against self-repair and sinks, as in Wang et al. 2023 (mean ablation), there over examples.
    """
    if how not in ("zero", "mask", "mean") or (how == "mean" and mean_of is None):
        raise BadParameter(f"how='{how}': give 'zero' (after the softmax), 'mask' (before it), or 'mean' with mean_of.")
    sets = {"targets": targets, "sources": sources, "mean_of": mean_of}
    _check_sets({name: chosen for name, chosen in sets.items() if chosen is not None})
    sources = torch.zeros_like(targets) if sources is None else sources
    every = range(model.text_config.num_attention_heads)
    heads, layers = list(every if heads is None else heads), list(range(model.n_layers) if layers is None else layers)
    if not heads or not set(heads) <= set(every) or any(np.asarray(of).dtype == bool for of in (heads, layers)):
        of_all = f"0 … {every[-1]} and of 0 … {model.n_layers - 1}"
        raise BadParameter(f"heads={heads}, layers={layers}: give some of the numbers {of_all}.")
    in_heads = torch.tensor([head in heads for head in every], device=model.device)  # (H,)

    def act(attend: Callable[..., Tensor], module, query, key, value, mask, seen: int) -> Tensor:
        n_keys = key.shape[2]
        reading = _extend(targets, n_keys, generated)[:, seen:].to(key.device)  # (B, Q)
        blocked = _extend(sources, n_keys, False).to(key.device)  # (B, K)
        chosen = in_heads.to(key.device)  # (H,)
        if how == "mask":
            pairs = reading[:, None, :, None] & blocked[:, None, None, :] & chosen[:, None, None]  # (B, H, Q, K)
            return attend(query, key, value, _mask_pairs(mask, pairs, check=True))
        output = attend(query, key, value, mask)  # (B, Q, H, D)
        rows = reading.any(0).nonzero().flatten()  # of any example; the others keep what they have
        if len(rows):
            instead = 0
            if how == "mean":
                members = _extend(mean_of, n_keys, False)[:, None, :, None].to(key.device)  # (B, 1, K, 1)
                instead = value.where(members, 0).sum(2, keepdim=True) / members.sum(2, keepdim=True)  # (B, KV, 1, D)
            replaced = torch.where(blocked[:, None, :, None], instead, value)  # (B, KV, K, D)
            changed = attend(query[:, :, rows], key, replaced, mask[:, :, rows])  # (B, Q', H, D)
            taken = reading[:, rows, None, None] & chosen[:, None]  # (B, Q', H, 1)
            output = output.index_copy(1, rows, torch.where(taken, changed, output[:, rows]))
        return output

    return _intervening(model, act, targets.shape, layers)


@contextmanager
def attention_shares(model: VisionLanguageModel, groups: Mapping[str, Tensor], queries: Tensor) -> Iterator[Shares]:
    """Measure how much of the attention of some tokens goes to groups of tokens, while the model runs inside.

    Args:
        model: whose language model is measured.
        groups: (B, T) bool by name; they may overlap, and may leave tokens out.
        queries: (B, T) bool, the tokens whose attention is measured; at least one in every row.

    Yields:
        Means over each row's queries, (B, L, H, G) float32, NaN before the model has run, which it does once inside:

        - weights: the attention weights that fall on a group.
        - contributions: the same, each weight times the length of what it brings: of the key token's value behind the
          head's part of the output projection.

    Raises: as `knockout`.

    Source: Serra et al. 2025, fig. 3, which shows text queries, means over heads, and shares of the image's part;
    weights by the length of the projected value, Kobayashi et al. 2020, are in their code, too.
    """
    _check_sets({"queries": queries, **groups}, ["queries"])
    ones = torch.stack([*groups.values()], -1).float()  # (B, T, G)
    shape = (len(queries), model.n_layers, model.text_config.num_attention_heads, len(groups))
    shares = {name: torch.full(shape, torch.nan) for name in ("weights", "contributions")}

    def act(attend: Callable[..., Tensor], module, query, key, value, mask, seen: int) -> Tensor:
        if seen or key.shape[2] != queries.shape[1]:
            raise BadParameter("Attention shares are measured in one pass over the prompt.")
        asking, (_, n_kv, _, size) = queries.to(key.device), value.shape
        rows = asking.any(0).nonzero().flatten()
        # In parts as wide as values are, so that the kernel that never stores a pattern is used here, too.
        parts = torch.nn.functional.pad(ones.to(value.device), (0, -len(groups) % size)).split(size, -1)  # (B, K, D)

        def summed(length: Tensor) -> Tensor:
            """Attention over values that are `length`, (B, KV, K), in a group and 0 outside: (B, Q', H, G)."""
            read = lambda values: attend(query[:, :, rows].float(), key.float(), values, mask[:, :, rows])
            return torch.cat([read(part[:, None] * length[..., None]) for part in parts], -1)[..., : len(groups)]

        project = module.o_proj.weight.float().unflatten(1, (n_kv, -1, size))  # (M, KV, R, D), R heads per key head
        square = torch.einsum("mkri,mkrj->krij", project, project)  # of a projected value's length: v' square v
        lengths = torch.einsum("bkti,krij,bktj->rbkt", value.float(), square, value.float()).clamp(min=0).sqrt()
        # Of every R heads the r-th, with the lengths of its own projection.
        contributions = [summed(of_head)[:, :, r :: len(lengths)] for r, of_head in enumerate(lengths)]
        sums = (summed(torch.ones_like(lengths[0])), torch.stack(contributions, 3).flatten(2, 3))  # (B, Q', H, G) each
        weights = asking[:, rows].float()
        for share, of_query in zip(shares.values(), sums, strict=True):
            mean = torch.einsum("bqhg,bq->bhg", of_query, weights) / weights.sum(1)[:, None, None]
            share[:, module.layer_idx] = mean.cpu()
        return attend(query, key, value, mask)

    with _intervening(model, act, queries.shape, range(model.n_layers)):
        yield shares


def closed_pairs(tokens: TokenMap, wiring: str) -> Tensor:
    """(B, T, T) bool: whether a wiring keeps a query (row) from reading a key (column).  wiring: a key of WIRINGS."""
    sources, targets = WIRINGS[wiring]
    return tokens.where(targets)[:, :, None] & tokens.where(*sources)[:, None, :]


def wire(network: PreTrainedModel, processor: ProcessorMixin, family: Family) -> None:
    """Make the wiring named in a network's config part of every forward pass, cached or not.

    A prompt without an image is not touched.  Raises UnknownName.
    """
    image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    config = network.get_decoder().layers[0].self_attn.config
    if network.config.wiring not in WIRINGS:
        raise UnknownName("wiring", network.config.wiring, WIRINGS)
    sources, targets = WIRINGS[network.config.wiring]

    def look(module, args, inputs) -> None:
        """Before a forward pass: see where the image and the text are, or that the text grows."""
        ids = inputs["input_ids"]  # (B, T)
        if cached_tokens(inputs) == 0:
            _closed[id(config)] = None
            if (ids == image).any():
                mask = inputs.get("attention_mask")
                mask = torch.ones_like(ids) if mask is None else mask
                tokens = token_map(family, processor, network.config, ids, mask)
                _closed[id(config)] = (tokens.where(*sources), tokens.where(targets), targets == "after")

    network.register_forward_pre_hook(look, with_kwargs=True)
    weakref.finalize(network, _closed.pop, id(config), None)  # the id may be another config's one day
    config._attn_implementation_internal = OURS[config._attn_implementation]


def cached_tokens(inputs: Mapping[str, object]) -> int:
    """Number of tokens in the cache that a forward pass is given, 0 if it is given none.

    The cache is found by its type: transformers 5.24 gave it another name, and a name that finds none unwires a model
    from its second token on.
    """
    return max((given.get_seq_length() for given in inputs.values() if isinstance(given, Cache)), default=0)


@contextmanager
def _intervening(model: VisionLanguageModel, act: Callable[..., Tensor], shape: torch.Size, layers: Iterable[int]):
    """Put an intervention between a model's blocks and their attention, and take it away again.

    act: (attend, module, query (B, H, Q, D), key (B, KV, K, D), value, mask (B, 1, Q, K), queries before these) to the
    output (B, Q, H, D), where attend is the attention that the model had.  shape: (B, T), that of the token sets.
    """
    config = model.text_config
    base = config._attn_implementation
    if id(config) in _running:
        raise BadParameter("Interventions on attention do not nest: leave one context before entering the next.")
    if base not in (*OURS, *OURS.values()):
        raise ModelUnavailable(f"The attention of {model.name} is '{base}': load it with attention='sdpa' or 'eager'.")
    run = _running[id(config)] = Run(act, *shape, set(layers))
    config._attn_implementation_internal = OURS.get(base, base)  # of the language model alone
    try:
        yield
    finally:
        config._attn_implementation_internal = base
        del _running[id(config)]
    if (silent := run.layers - run.seen.keys()) or not run.layers:
        advice = f"Run the model inside the context, and give some of its blocks, 0 … {model.n_layers - 1}."
        where = f"Blocks {sorted(silent)} of {model.name} never asked for attention"
        raise BadParameter(f"{where}, so nothing was changed or measured. {advice}")


def _attention(kind: str, module, query, key, value, attention_mask, **settings) -> tuple[Tensor, None]:
    """The attention function that transformers calls, see `AttentionInterface`.  kind: sdpa or eager."""
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if kind == "eager":
        own = sys.modules[type(module).__module__].eager_attention_forward
    attend = lambda *args: own(module, *args, **settings)[0]
    run, layer = _running.get(id(module.config)), module.layer_idx
    if run is None:  # a wired model, whose mask says all
        return attend(query, key, value, attention_mask), None
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 4:
        raise ModelUnavailable(f"Block {layer} got no mask (B, 1, Q, K), as transformers' create_causal_mask makes it.")
    n_queries, n_keys = query.shape[2], key.shape[2]
    # What is run first may be the end of the prompts, behind a cache with all that comes before.
    before = 0 if n_keys == n_queries else run.seen.get(layer, run.n_tokens - n_queries)
    # Each run is over the prompts, or has one token more than the last.
    longer = run.seen.get(layer, run.n_tokens - 1) + 1
    other_prompts = query.shape[0] != run.n_rows or n_keys not in (run.n_tokens, longer)
    if other_prompts or before + n_queries != n_keys:
        sizes = f"{run.n_rows} rows of {run.n_tokens} tokens, the model runs {query.shape[0]} of {n_keys}"
        advice = "take them from this batch's tokens; generate greedily, one sample a prompt, with the default cache"
        raise BadParameter(f"The token sets have {sizes}: {advice} (neither static nor sliding).")
    run.seen[layer] = n_keys
    if layer not in run.layers:
        return attend(query, key, value, attention_mask), None
    return run.act(attend, module, query, key, value, attention_mask, before), None


def _full_mask(kind: str, *args, **settings) -> Tensor:
    """The mask of SDPA or eager, (B, 1, Q, K), always made (transformers leaves it out where the kernel can make a
    causal one itself), without what the model's wiring closes."""
    make = {"sdpa": sdpa_mask, "eager": eager_mask}[kind]
    mask = make(*args, **settings | {"allow_is_causal_skip": False})
    closed = _closed.get(id(settings["config"]))
    if closed is None:
        return mask
    sources, targets, generated = closed
    n_queries, n_keys = mask.shape[2:]
    reading = _extend(targets, n_keys, generated)[:, n_keys - n_queries :]  # (B, Q)
    return _mask_pairs(mask, reading[:, None, :, None] & _extend(sources, n_keys, False)[:, None, None, :])


for _kind, _name in OURS.items():
    AttentionInterface.register(_name, partial(_attention, _kind))
    AttentionMaskInterface.register(_name, partial(_full_mask, _kind))


def _extend(chosen: Tensor, n_keys: int, generated: bool) -> Tensor:
    """A set over the prompt (B, T) as one over the n_keys tokens there are now; generated: whether it has new ones."""
    missing = n_keys - chosen.shape[1]
    return torch.nn.functional.pad(chosen, (0, missing), value=generated) if missing > 0 else chosen[:, :n_keys]


def _mask_pairs(mask: Tensor, pairs: Tensor, check: bool = False) -> Tensor:
    """A mask, boolean or added to the scores, without some pairs.

    check: raise BadParameter if a token is left with nothing to read.
    """
    allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    if check and (allowed.any(-1) & ~(allowed & ~pairs).any(-1)).any():
        raise BadParameter("With how='mask', a target would have nothing left to read, not even itself: use 'zero'.")
    return mask & ~pairs if mask.dtype == torch.bool else mask.masked_fill(pairs, torch.finfo(mask.dtype).min)


def _check_sets(sets: Mapping[str, Tensor], filled: Iterable[str] | None = None) -> None:
    """Raises BadParameter if sets of tokens are not bool and of one shape (B, T), or one has none in a row.

    filled: those that need a token in every row, since else nothing would be done; all by default.
    """
    forms = {name: (*chosen.shape, chosen.dtype) for name, chosen in sets.items()}
    if len(set(forms.values())) > 1 or next(iter(forms.values()))[2:] != (torch.bool,):
        raise BadParameter(f"Sets of tokens must be bool and have one shape (B, T), got {forms}.")
    for name in sets if filled is None else filled:
        if rows := (~sets[name].any(1)).nonzero().flatten().tolist():
            raise BadParameter(f"{name} is empty in rows {rows}, so nothing would be done: has every prompt an image?")
