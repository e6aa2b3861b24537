"""Attention, changed or measured while a model runs: knockout, and the shares of groups of tokens.

with knockout(model, sources=tokens.where("end"), targets=tokens.where("text"), how="zero"):
    logits = model.network(**batch.inputs).logits

Both go through an attention function registered with transformers, so no model is forked and no weights are touched.
It calls the attention the model had before (SDPA or eager) and needs no pattern of its own: a weight set to zero after
the softmax is the same as a value set to zero, and the share of a group is attention over values that are 1 in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from .errors import BadParameter, ModelUnavailable
from .vlm_model import VisionLanguageModel
from .wiring import WIRED, attend_by, full_mask, grown, without

# The attention a model has, and the name under which it is called by ours.
IMPLEMENTATIONS = {"sdpa": "peaks_and_gates_sdpa", "eager": "peaks_and_gates_eager"}
KINDS = {name: kind for kind in IMPLEMENTATIONS for name in (kind, WIRED[kind])}


@dataclass
class Run:
    """An intervention under way.

    n_rows, n_tokens: of the token sets.  layers: the blocks it is for.  fired: those that called it.
    seen: keys so far.
    """

    act: Callable[..., Tensor]
    base: str
    n_rows: int
    n_tokens: int
    layers: set[int]
    fired: set[int] = field(default_factory=set)
    seen: dict[int, int] = field(default_factory=dict)


@dataclass
class Shares:
    """Where attention goes.

    groups: names of the G groups.  values: (B, L, H, G) float32, mean over each row's queries of the attention weight
    that falls on a group; NaN before the model has run.
    """

    groups: tuple[str, ...]
    values: Tensor


_running: dict[int, Run] = {}  # by the id of the config that the model's attention modules hold


@contextmanager
def knockout(
    model: VisionLanguageModel,
    sources: Tensor | None,
    targets: Tensor,
    how: str = "zero",
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    generated: bool = True,
) -> Iterator[None]:
    """Let some tokens not read some others while the model runs inside the context.

    Args:
        model: whose language model is changed; its vision tower is not.
        sources: (B, T) bool, the tokens not to be read; None for none, which changes nothing.
        targets: (B, T) bool, the tokens that do not read them.
        how: "zero" sets the weights to 0 after the softmax and does not share them out again, as the paper's code
            does; "mask" leaves the sources out of the softmax.
        layers: blocks, 0 … L - 1; None for all.
        heads: query heads, 0 … H - 1; None for all.
        generated: whether tokens after the first T, generated later, are targets too. They never are sources.

    Raises:
        BadParameter: a set of the wrong shape, or empty in a row; a layer or head out of range; an unknown `how`;
            a token left with nothing to read; a batch of other rows (beam search repeats them) or of other length; a
            cache whose length is not its content (static or sliding); the model was not run inside the context.
        ModelUnavailable: the model's attention is neither SDPA nor eager, or its masks are not made by transformers.

    Source: Serra et al. 2025, sec. 3, "zero" as in their code; "mask" as in Geva et al. 2023.
    """
    if how not in ("zero", "mask"):
        raise BadParameter(f"how='{how}': give 'zero' (after the softmax) or 'mask' (before it).")
    _check_set("targets", targets, targets.shape)
    if sources is None:
        sources = torch.zeros_like(targets)
    else:
        _check_set("sources", sources, targets.shape)
    sources, targets = sources.to(model.device), targets.to(model.device)
    chosen = torch.ones(model.n_heads, dtype=torch.bool)
    if heads is not None:
        chosen = torch.zeros(model.n_heads, dtype=torch.bool)
        chosen[_within("heads", heads, model.n_heads, model.name)] = True
    chosen = chosen.to(model.device)

    def act(attend: Callable[..., Tensor], module, query, key, value, mask, seen: int) -> Tensor:
        n_keys = key.shape[2]
        reading = grown(targets, n_keys, generated)[:, seen:]  # (B, Q)
        blocked = grown(sources, n_keys, False)  # (B, K)
        if how == "mask":
            pairs = (reading[:, :, None] & blocked[:, None, :])[:, None] & chosen[:, None, None]  # (B, H, Q, K)
            return attend(query, key, value, _without(mask, pairs))
        output = attend(query, key, value, mask)  # (B, Q, H, D)
        rows = reading.any(0).nonzero().flatten()  # of any example; the others keep what they have
        if len(rows):
            silent = value.masked_fill(blocked[:, None, :, None], 0)
            changed = attend(query[:, :, rows], key, silent, mask[:, :, rows])
            taken = reading[:, rows, None, None] & chosen[:, None]
            output = output.index_copy(1, rows, torch.where(taken, changed, output[:, rows]))
        return output

    blocks = range(model.n_layers) if layers is None else _within("layers", layers, model.n_layers, model.name)
    with _intervening(model, act, targets.shape, blocks):
        yield


@contextmanager
def attention_shares(model: VisionLanguageModel, groups: Mapping[str, Tensor], queries: Tensor) -> Iterator[Shares]:
    """Measure how much of the attention of some tokens goes to groups of tokens, while the model runs inside.

    Args:
        model: whose language model is measured.
        groups: (B, T) bool by name; they may overlap, and may leave tokens out. At most as many as a head has
            dimensions.
        queries: (B, T) bool, the tokens whose attention is measured; at least one in every row.

    Yields:
        Shares, filled when the model has run. A model is run once inside.

    Raises: as `knockout`.

    Source: Serra et al. 2025, fig. 3, which shows text queries, means over heads, and shares of the image's part.
    """
    _check_set("queries", queries, queries.shape)
    for name, group in groups.items():
        _check_set(name, group, queries.shape, empty=True)
    queries = queries.to(model.device)
    ones = torch.stack([group.to(model.device) for group in groups.values()], -1).float()  # (B, T, G)
    shares = Shares(tuple(groups), torch.full((len(queries), model.n_layers, model.n_heads, len(groups)), torch.nan))

    def act(attend: Callable[..., Tensor], module, query, key, value, mask, seen: int) -> Tensor:
        n_keys, size = key.shape[2], value.shape[3]
        if seen or n_keys != queries.shape[1]:
            raise BadParameter("Attention shares are measured in one pass over the prompt, not while generating.")
        if len(groups) > size:
            raise BadParameter(f"{len(groups)} groups, but a head has {size} dimensions: measure them in parts.")
        rows = queries.any(0).nonzero().flatten()
        # As wide as the values are, so that the kernel that never stores a pattern is used here, too.
        indicators = torch.nn.functional.pad(ones, (0, size - len(groups)))[:, None].expand(-1, key.shape[1], -1, -1)
        mass = attend(query[:, :, rows].float(), key.float(), indicators, mask[:, :, rows])[..., : len(groups)]
        weights = queries[:, rows].float()
        mean = torch.einsum("bqhg,bq->bhg", mass, weights) / weights.sum(1)[:, None, None]
        shares.values[:, module.layer_idx] = mean.cpu()
        return attend(query, key, value, mask)

    with _intervening(model, act, queries.shape, range(model.n_layers)):
        yield shares


@contextmanager
def _intervening(model: VisionLanguageModel, act: Callable[..., Tensor], shape: torch.Size, layers: Iterable[int]):
    """Put an intervention between a model's blocks and their attention, and take it away again.

    act: (attend, module, query (B, H, Q, D), key (B, KV, K, D), value, mask (B, 1, Q, K), queries before these) to the
    output (B, Q, H, D), where attend is the attention that the model had.  shape: (B, T), that of the token sets.
    """
    config = model.text_config
    base = config._attn_implementation
    if base in IMPLEMENTATIONS.values():
        raise BadParameter("Interventions on attention do not nest: leave one context before entering the next.")
    if base not in KINDS:
        raise ModelUnavailable(
            f"The attention of {model.name} is '{base}', which keeps its weights to itself. Load the model with "
            "attention='sdpa' or 'eager'."
        )
    run = _running[id(config)] = Run(act, base, *shape, set(layers))
    config._attn_implementation_internal = IMPLEMENTATIONS[KINDS[base]]  # of the language model alone
    try:
        yield
    finally:
        config._attn_implementation_internal = base
        del _running[id(config)]
    if silent := run.layers - run.fired:
        raise BadParameter(
            f"Blocks {sorted(silent)} of {model.name} never asked for attention, so nothing was changed or measured: "
            "run the model inside the context."
        )


def _attention(module, query, key, value, attention_mask, **settings) -> tuple[Tensor, None]:
    """The attention function that transformers calls; see `AttentionInterface`."""
    run, layer = _running[id(module.config)], module.layer_idx

    def attend(query, key, value, mask) -> Tensor:
        return attend_by(KINDS[run.base], module, query, key, value, mask, **settings)[0]

    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 4:
        raise ModelUnavailable(
            f"Block {layer} got no mask (B, 1, Q, K), so its attention cannot be changed or measured: its model must "
            "make masks with transformers' create_causal_mask."
        )
    n_queries, n_keys = query.shape[2], key.shape[2]
    # What is first run may be the end of the prompts, behind a cache with all that comes before, see `tails`.
    before = 0 if n_keys == n_queries else run.seen.get(layer, run.n_tokens - n_queries)
    if before + n_queries != n_keys:
        raise BadParameter(
            f"Block {layer} got {n_keys} keys after {before + n_queries} tokens: a static or sliding cache. "
            "Generate with the default (dynamic) cache."
        )
    if query.shape[0] != run.n_rows:
        raise BadParameter(
            f"The token sets have {run.n_rows} rows, the model runs {query.shape[0]}. Beam search and several samples "
            "a prompt repeat rows: generate greedily, one sample a prompt."
        )
    if layer not in run.seen and n_keys != run.n_tokens:
        raise BadParameter(
            f"The token sets have {run.n_tokens} tokens a row, the model runs {n_keys}: they are of another batch. "
            "Take them from the tokens of this one."
        )
    run.seen[layer] = n_keys
    run.fired.add(layer)
    if layer not in run.layers:
        return attend(query, key, value, attention_mask), None
    return run.act(attend, module, query, key, value, attention_mask, before), None


for kind, name in IMPLEMENTATIONS.items():
    AttentionInterface.register(name, _attention)
    AttentionMaskInterface.register(name, partial(full_mask, kind))


def _without(mask: Tensor, pairs: Tensor) -> Tensor:
    """A mask (boolean, or added to the scores) without some pairs.  Raises BadParameter if a token reads nothing."""
    allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    left = allowed & ~pairs
    if (allowed.any(-1) & ~left.any(-1)).any():
        raise BadParameter(
            "With how='mask', a target would have nothing left to read, not even itself. Keep a token of what it sees "
            "out of the sources, or use how='zero'."
        )
    return without(mask, pairs)


def _check_set(name: str, chosen: Tensor, shape: torch.Size, empty: bool = False) -> None:
    """Raises BadParameter if a set of tokens has another shape, or none in a row unless it may be empty."""
    if chosen.dtype != torch.bool or chosen.ndim != 2 or chosen.shape != shape:
        raise BadParameter(f"{name} must be (B, T) bool like the others, not {tuple(chosen.shape)} {chosen.dtype}.")
    if not empty and not chosen.any(1).all():
        rows = (~chosen.any(1)).nonzero().flatten().tolist()
        raise BadParameter(
            f"{name} is empty in rows {rows} of the batch: there is nothing to act on. A prompt without an image has "
            "none of its tokens: choose groups that all rows have, or leave these rows out."
        )


def _within(name: str, wanted: Iterable[int], n: int, model: str) -> list[int]:
    """The indices asked for.  Raises BadParameter for one that does not exist, and for none."""
    wanted = sorted(set(wanted))
    if not wanted or wanted[0] < 0 or wanted[-1] >= n:
        raise BadParameter(f"{name}={wanted}: {model} has {name} 0 … {n - 1}; give at least one of them.")
    return wanted
