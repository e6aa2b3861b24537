"""Hidden states of the last prompt token, at every layer, for many prompts at the cost of few tokens.

    prompts = build_prompts(load("wordnet"), n_shots=5)
    states = extract(model, prompts)                # in memory
    states = hidden_states(model_name, prompts)     # stored, and read again one layer at a time

Prompts that begin alike (the header and shots of a subject) share the forward pass of that beginning: its keys and
values are computed once and reused by every question behind it. Causal attention makes that exact: a token never
sees what follows it. For the same reason a batch may be padded on the right without a mask.

The two points at which the residual stream is read, after block l = 1..L:
    residual    the block's output
    norm        that output through the next norm (the next block's first one; after block L the final norm),
                which is what the landscape paper analyses
Layer 0, the embedding of the last token, is left out: every prompt ends in the same token, so it is one point.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import DynamicCache

from .. import models
from ..cache import STATES, cached, digest
from ..errors import BadParameter, BadStates
from ..models import LanguageModel, residual_stream
from .questions import LETTERS, Prompt

POINTS = ("residual", "norm")
FEWEST_TOKENS, MOST_TOKENS = 4096, 65_536  # of one forward pass: on a CPU more gain nothing


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt, split where its shared beginning ends."""

    index: int
    prefix: tuple[int, ...]
    rest: tuple[int, ...]


def encode(model: LanguageModel, prompts: Sequence[Prompt]) -> list[Encoded]:
    """Token ids of each prompt, tokenised as one text and cut after the last token that lies in its prefix.

    Tokenising prefix and question apart would be wrong: a tokenizer may join characters across the cut.
    Raises BadParameter for a prompt of more tokens than the model was made for: farther on it returns noise.
    """
    encoded = []
    batch = model.tokenizer([prompt.text for prompt in prompts], return_offsets_mapping=True)
    for index, (ids, offsets) in enumerate(zip(batch["input_ids"], batch["offset_mapping"], strict=True)):
        if len(ids) > (most := getattr(model.network.config, "max_position_embeddings", len(ids))):
            raise BadParameter(f"{model.name}: prompt {index} has {len(ids)} tokens; {most} fit. Take fewer shots.")
        cut = sum(stop <= len(prompts[index].prefix) for _, stop in offsets[:-1])  # a token at least stays in the rest
        encoded.append(Encoded(index, tuple(ids[:cut]), tuple(ids[cut:])))
    return encoded


def prefix_groups(encoded: list[Encoded], batch_tokens: int) -> Iterator[tuple[list[tuple[int, ...]], list[Encoded]]]:
    """(prefixes of one length, the prompts behind them): one forward pass for the prefixes, without padding.

    A prefix that only one prompt has is not shared: it stays part of that prompt.
    """
    by_prefix: dict[tuple[int, ...], list[Encoded]] = defaultdict(list)
    for item in encoded:
        by_prefix[item.prefix].append(item)
    shared = {prefix: items for prefix, items in by_prefix.items() if prefix and len(items) > 1}
    if alone := [item for item in encoded if item.prefix not in shared]:
        yield [()], [Encoded(item.index, (), item.prefix + item.rest) for item in alone]
    for length, prefixes in groupby(sorted(shared, key=len), len):
        while chunk := list(islice(prefixes, max(1, batch_tokens // length))):
            yield chunk, [item for prefix in chunk for item in shared[prefix]]


def batches(group: list[Encoded], prefix_length: int, batch_tokens: int) -> list[list[Encoded]]:
    """Prompts of like length together, as many at once as the token bound allows; at least one."""
    batched: list[list[Encoded]] = []
    for item in sorted(group, key=lambda item: (len(item.rest), item.index)):
        if batched and (len(batched[-1]) + 1) * (prefix_length + len(item.rest)) <= batch_tokens:
            batched[-1].append(item)
        else:
            batched.append([item])
    return batched


@torch.inference_mode()
def extract(
    model: LanguageModel, prompts: Sequence[Prompt], points: Sequence[str] = POINTS, batch_tokens: int | None = None
) -> dict[str, Tensor]:
    """Hidden states of the last token of each prompt, and its letter log-probabilities, in one pass.

    Returns by point (n, L, D) in the model's dtype, [:, l - 1] being layer l; "letter_logprobs" (n, 4) float32, of
    " A".." D" as next token, over the whole vocabulary; "top_letter" (n,) int64, the letter that the likeliest token of
    all is, whatever blanks stand around it, -1 if it is no letter; "answer" (n,) int64, the right letter.
    batch_tokens: upper bound on rows x (prefix + question) tokens in one forward pass; bounds the memory. By default
    4096 on a CPU, on a GPU as many as half of its free memory has room for.
    Raises BadParameter (a prompt longer than the model reads), BadStates (not finite; names the model and the layer).
    """
    batch_tokens = batch_tokens or max_batch_tokens(model)
    letters = model.letter_tokens  # indices stay on the CPU: a split model's tensors lie on several devices
    hidden: dict[str, list[Tensor]] = {point: [] for point in points}
    letter_logprobs, top_tokens, order = [], [], []
    for prefixes, group in prefix_groups(encode(model, prompts), batch_tokens):
        keys_values = prefix_cache(model, prefixes)
        for batch in batches(group, len(prefixes[0]), batch_tokens):
            states, logprobs = forward(model, keys_values, prefixes, batch)
            for point in points:
                hidden[point].append(states[point])  # (B, L, D)
            letter_logprobs.append(logprobs[:, letters])  # (B, 4)
            top_tokens.append(logprobs.argmax(-1))  # (B,)
            order += [item.index for item in batch]
    place = torch.tensor(order).argsort()
    # Copied to the CPU at the end: a GPU that is waited for after every batch idles in between.
    stacked = {point: torch.cat(parts).cpu()[place] for point, parts in hidden.items()}  # (n, L, D)
    for point, states in stacked.items():
        require_finite(states, f"{model.name}, {point}")
    stacked["letter_logprobs"] = torch.cat(letter_logprobs).float().cpu()[place]
    tops = [model.tokenizer.decode(token).strip() for token in torch.cat(top_tokens).cpu()[place].tolist()]
    stacked["top_letter"] = torch.tensor([LETTERS.index(top) if top in LETTERS else -1 for top in tops])
    return stacked | {"answer": torch.tensor([prompt.answer for prompt in prompts])}


def max_batch_tokens(model: LanguageModel) -> int:
    """Tokens of one forward pass: few on a CPU, on a GPU as many as half of its free memory has room for."""
    if model.device.type == "cpu":
        return FEWEST_TOKENS
    config = model.network.config
    kv_width = config.hidden_size * config.num_key_value_heads // config.num_attention_heads
    # Of a token of a batch at most: keys and values twice, every block's state, the widest product.
    blocks = config.num_hidden_layers
    numbers = 4 * blocks * kv_width + (blocks + 1) * config.hidden_size + 3 * config.intermediate_size
    # Memory that torch keeps of tensors that are gone is free, too.
    reserved = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    half = (torch.cuda.mem_get_info(model.device)[0] + reserved) // 2
    return min(MOST_TOKENS, max(FEWEST_TOKENS, half // (model.dtype.itemsize * numbers)))


def prefix_cache(model: LanguageModel, prefixes: list[tuple[int, ...]]) -> DynamicCache | None:
    """Keys and values of the prefixes, one row each; None if they are empty."""
    if not prefixes[0]:
        return None
    ids = torch.tensor(prefixes, device=model.device)  # (G, P)
    return model.network.get_decoder()(ids, use_cache=True).past_key_values


def forward(
    model: LanguageModel, keys_values: DynamicCache | None, prefixes: list[tuple[int, ...]], batch: list[Encoded]
) -> tuple[dict[str, Tensor], Tensor]:
    """One batch behind its prefixes: states by point (B, L, D) and log-probabilities (B, vocabulary)."""
    if keys_values is not None:
        row_of = {prefix: row for row, prefix in enumerate(prefixes)}
        rows = torch.tensor([row_of[item.prefix] for item in batch], device=model.device)
        keys_values = select_cache_rows(keys_values, rows)
    # Padded on the right with token 0: the last token of a prompt cannot see what comes after it.
    ids = pad_sequence([torch.tensor(item.rest) for item in batch], batch_first=True)  # (B, T)
    settings = {"past_key_values": keys_values, "use_cache": keys_values is not None}
    states, _ = residual_stream(model, ids.to(model.device), **settings)
    ends = torch.tensor([len(item.rest) - 1 for item in batch])  # (B,)
    residual = [state[torch.arange(len(ends)), ends] for state in states[1:]]  # L x (B, D)
    # A split model leaves each state where its block is, and the norm may be elsewhere; else nothing is moved.
    normed = [norm(state.to(norm.weight.device)) for norm, state in zip(model.norms, residual, strict=True)]
    logits = model.network.get_output_embeddings()(normed[-1])  # (B, vocabulary)
    device = normed[-1].device
    stack = lambda states: torch.stack([state.to(device) for state in states], dim=1)  # (B, L, D)
    return {"residual": stack(residual), "norm": stack(normed)}, logits.float().log_softmax(-1)


def select_cache_rows(keys_values: DynamicCache, rows: Tensor) -> DynamicCache:
    """A copy of a cache with the given rows, in that order; the original is left as it is."""
    chosen = copy.copy(keys_values)
    chosen.layers = [copy.copy(layer) for layer in keys_values.layers]
    chosen.batch_select_indices(rows)
    return chosen


def require_finite(hidden: Tensor, name: str) -> None:
    """Raise BadStates if any of the (n, L, D) states is NaN or infinite, naming the first such layer."""
    bad = ~torch.isfinite(hidden).all(dim=2)  # (n, L)
    if bad.any():
        layer = int(bad.any(dim=0).nonzero()[0]) + 1
        number = f"{int(bad[:, layer - 1].sum())} of {len(hidden)}"
        advice = f"{hidden.dtype} may overflow here: load the model in float32 (dtype=float32)."
        raise BadStates(f"{name}: {number} hidden states are NaN or infinite from layer {layer} on. {advice}")


@dataclass(frozen=True)
class StoredStates:
    """The states of a question set, read from the cache one layer at a time.

    letter_logprobs: (n, 4) float32.  top_letter: (n,) int64.  subject: n names.  answer: (n,) int64.  n_layers: L.
    key: hash of everything the states were made from.  first: (n,) int64, the row of the first prompt with the same
    text, whose states are those of all of them: computed in another batch they would differ in their last digits.
    """

    parts: list[Any]
    subject: list[str]
    answer: Tensor
    letter_logprobs: Tensor
    top_letter: Tensor
    n_layers: int
    key: str
    first: Tensor

    def layer(self, point: str, layer: int) -> Tensor:
        """Hidden states of one layer, 1..L, (n, D), in the dtype of the forward pass."""
        return torch.cat([part.get_tensor(f"{point}.{layer}") for part in self.parts])[self.first]


def hidden_states(
    model_name: str,
    prompts: Sequence[Prompt],
    points: Sequence[str] = ("norm",),
    adapter: str | None = None,
    dtype: str | None = None,
    title: str = "hidden states",
) -> StoredStates:
    """Many prompts through a model, stored subject by subject: an interrupted run resumes where it stopped.

    The states come in the order of the prompts.  Those of one subject must stand together, as in `build_prompts`, to be
    stored together.  Memory is bounded by the largest subject, not by the number of prompts.  The model is loaded only
    if some subject is not stored yet.  dtype: a torch dtype name; by hardware if None.  title: of the progress bar.
    Raises what `models.load` and `extract` raise.
    """
    precision = dtype or str(models.best_dtype(models.best_device())).removeprefix("torch.")
    model = cache(lambda: models.load(model_name, adapter, models.dtype_named(precision)))
    common = {"model": models.describe(model_name, adapter), "dtype": precision, "points": sorted(points)}
    parts, keys = [], []
    groups = [list(together) for _, together in groupby(prompts, lambda prompt: prompt.subject)]
    for group in tqdm(groups, desc=title, unit="subject"):
        texts = digest([(prompt.prefix, prompt.question, prompt.answer) for prompt in group])
        inputs = common | {"subject": group[0].subject, "prompts": texts, "version": STATES}
        compute = lambda group=group: by_layer(extract(model(), group, points))
        parts.append(cached("states", inputs, compute))
        keys.append(inputs)
    row_of: dict[str, int] = {}
    first = torch.tensor([row_of.setdefault(prompt.text, row) for row, prompt in enumerate(prompts)])  # (n,)
    together = lambda name: torch.cat([part.get_tensor(name) for part in parts])
    scores = together("letter_logprobs")[first], together("top_letter")[first]
    n_layers = sum(key.startswith(f"{points[0]}.") for key in parts[0].keys())  # noqa: SIM118 - no mapping, a file
    return StoredStates(parts, [p.subject for p in prompts], together("answer"), *scores, n_layers, digest(keys), first)


def by_layer(states: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `extract` returns, with one tensor per point and layer, so that a layer can be read alone."""
    tensors = {}
    for name, values in states.items():
        layers = values.unbind(1) if values.ndim == 3 else ()  # (n, D) each
        tensors |= {f"{name}.{layer}": hidden for layer, hidden in enumerate(layers, 1)} or {name: values}
    return tensors
