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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import DynamicCache

from . import models, store
from .errors import BadParameter, BadStates
from .grouped import grouped_attention
from .models import LanguageModel
from .packing import Encoded, batches, groups, packed
from .progress import bar
from .questions import Prompt

POINTS = ("residual", "norm")
FEWEST_TOKENS, MOST_TOKENS = 4096, 65_536  # of one forward pass: on a CPU more gain nothing
CODE = ("extraction", "packing", "grouped", "models", "tiny")


@dataclass(frozen=True)
class States:
    """What one pass over n prompts leaves.

    hidden: by point, (n, L, D) in the model's dtype; hidden[point][:, l - 1] is layer l.
    letter_logprobs: (n, 4) float32, log-probabilities of " A".." D" as next token, over the whole vocabulary.
    subject: n names.  answer: (n,) int64, the right letter.
    """

    hidden: dict[str, Tensor]
    letter_logprobs: Tensor
    subject: list[str]
    answer: Tensor


def encode(model: LanguageModel, prompts: Sequence[Prompt]) -> list[Encoded]:
    """Token ids of each prompt, tokenised whole and cut after the last token that lies in its prefix.

    Tokenising prefix and question apart would be wrong: a tokenizer may join characters across the cut.
    """
    encoded = []
    texts = [prompt.prefix + prompt.question for prompt in prompts]
    batch = model.tokenizer(texts, return_offsets_mapping=True)
    for index, (ids, offsets) in enumerate(zip(batch["input_ids"], batch["offset_mapping"], strict=True)):
        end = len(prompts[index].prefix)
        cut = sum(stop <= end for _, stop in offsets[:-1])  # at least one token stays in the rest
        encoded.append(Encoded(index, tuple(ids[:cut]), tuple(ids[cut:])))
    return encoded


@torch.inference_mode()
def extract(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    points: Sequence[str] = POINTS,
    batch_tokens: int | None = None,
    progress: tqdm | None = None,
) -> States:
    """Hidden states of the last token of each prompt, and its letter log-probabilities, in one pass.

    batch_tokens: upper bound on rows x (prefix + question) tokens in one forward pass; bounds the memory. By default
    4096 on a CPU, on a GPU what half of its free memory has room for.
    Raises BadParameter (unknown point), BadStates (not finite; names the model and the layer).
    """
    if unknown := set(points) - set(POINTS):
        raise BadParameter(f"Unknown point {sorted(unknown)}; the residual stream is read at {POINTS}.")
    batch_tokens = batch_tokens or room(model)
    letters = model.letter_tokens  # indices stay on the CPU: a split model's tensors lie on several devices
    read: list[tuple[dict[str, Tensor], Tensor]] = []
    order: list[int] = []
    with grouped_attention(model.network):
        for prefixes, group in groups(encode(model, prompts), batch_tokens):
            keys_values = shared_cache(model, prefixes)
            for batch in batches(packed(group, len(prefixes[0])), len(prefixes[0]), batch_tokens):
                found, logprobs = forward(model, keys_values, prefixes, batch, points)
                read.append((found, logprobs[:, letters]))
                here = [item.index for row in batch for item in row]
                order += here
                if progress is not None:
                    progress.update(len(here))
    place = torch.tensor(order).argsort()
    # Copied to the CPU at the end, since a GPU that is waited for after every batch idles in between.
    hidden = {point: torch.cat([found[point] for found, _ in read]).cpu()[place] for point in points}
    for point in points:
        require_finite(hidden[point], f"{model.name}, {point}")
    return States(
        hidden,
        torch.cat([logprobs for _, logprobs in read]).float().cpu()[place],
        [prompt.subject for prompt in prompts],
        torch.tensor([prompt.answer for prompt in prompts]),
    )


def room(model: LanguageModel) -> int:
    """Tokens of one forward pass: few on a CPU, on a GPU what half of its free memory has room for."""
    if model.device.type == "cpu":
        return FEWEST_TOKENS
    config = model.network.config
    kv_width = config.hidden_size * config.num_key_value_heads // config.num_attention_heads
    numbers = numbers_per_token(config.num_hidden_layers, config.hidden_size, kv_width, config.intermediate_size)
    # What torch keeps of tensors that are gone is free, too.
    kept = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    half = (torch.cuda.mem_get_info(model.device)[0] + kept) // 2
    return min(MOST_TOKENS, max(FEWEST_TOKENS, half // (model.dtype.itemsize * numbers)))


def numbers_per_token(blocks: int, width: int, kv_width: int, inner: int) -> int:
    """Numbers that a token of a batch takes at most: keys and values twice, every block's state, the widest product."""
    return 4 * blocks * kv_width + (blocks + 1) * width + 3 * inner


def shared_cache(model: LanguageModel, prefixes: list[tuple[int, ...]]) -> DynamicCache | None:
    """Keys and values of the prefixes, one row each; None if they are empty."""
    if not prefixes[0]:
        return None
    ids = torch.tensor(prefixes, device=model.device)  # (G, P)
    return model.network.get_decoder()(ids, use_cache=True).past_key_values


def forward(
    model: LanguageModel,
    keys_values: DynamicCache | None,
    prefixes: list[tuple[int, ...]],
    batch: list[list[Encoded]],
    points: Sequence[str],
) -> tuple[dict[str, Tensor], Tensor]:
    """One batch behind its prefixes: states by point (N, L, D) and log-probabilities (N, vocabulary) of its prompts."""
    if keys_values is not None:
        row_of = {prefix: row for row, prefix in enumerate(prefixes)}
        wanted = torch.tensor([row_of[row[0].prefix] for row in batch], device=model.device)
        keys_values = rows_of(keys_values, wanted)
    # Padded on the right with token 0: what comes after the last token cannot be seen by it.
    rests = [[torch.tensor(item.rest) for item in row] for row in batch]
    ids = pad_sequence([torch.cat(row) for row in rests], batch_first=True)  # (B, T)
    alone = all(len(row) == 1 for row in batch)  # then plain causal attention is right
    own = {} if alone else own_pasts(rests, ids.shape[1], len(batch[0][0].prefix), model)
    decoder = model.network.get_decoder()
    output = decoder(
        ids.to(model.device),
        past_key_values=keys_values,
        use_cache=keys_values is not None,
        output_hidden_states=True,
        **own,
    )
    ends = [(row, end - 1) for row, parts in enumerate(rests) for end in accumulate(len(part) for part in parts)]
    last = at(output.hidden_states[1:], torch.tensor(ends))  # L x (N, D)
    # A split model leaves each state where its block is, and the norm may be elsewhere; else nothing is moved.
    normed = [norm(state.to(norm.weight.device)) for norm, state in zip(model.norms, last, strict=True)]
    logits = model.network.get_output_embeddings()(normed[-1])  # (N, vocabulary)
    hidden = {"residual": last, "norm": normed}
    place = normed[-1].device
    stacked = {p: torch.stack([state.to(place) for state in hidden[p]], dim=1) for p in points}  # (N, L, D)
    return stacked, logits.float().log_softmax(-1)


def own_pasts(rests: list[list[Tensor]], width: int, prefix_length: int, model: LanguageModel) -> dict[str, Tensor]:
    """Positions and mask with which each prompt of a row sees the prefix and itself, as if it were alone.

    position_ids: (B, T).  attention_mask: (B, 1, T, prefix + T), 0 where a token looks, else the lowest number.
    """
    place = lambda row: torch.cat([torch.arange(len(part)) for part in row])
    number = lambda row: torch.cat([torch.full((len(part),), i) for i, part in enumerate(row)])
    positions = pad_sequence([place(row) for row in rests], batch_first=True)
    of = pad_sequence([number(row) for row in rests], batch_first=True, padding_value=-1).to(model.device)  # (B, T)
    causal = torch.ones(width, width, dtype=torch.bool, device=model.device).tril()
    hidden = torch.nn.functional.pad(~((of[:, :, None] == of[:, None, :]) & causal), (prefix_length, 0))
    mask = torch.zeros(hidden.shape, dtype=model.dtype, device=model.device)
    mask = mask.masked_fill_(hidden, torch.finfo(model.dtype).min)
    return {"position_ids": (positions + prefix_length).to(model.device), "attention_mask": mask[:, None]}


def at(states: Sequence[Tensor], ends: Tensor) -> list[Tensor]:
    """The states (B, T, D) of each block at the tokens in ends (N, 2), as (N, D)."""
    there = {device: ends.to(device).unbind(1) for device in {state.device for state in states}}
    return [state[there[state.device]] for state in states]


def rows_of(keys_values: DynamicCache, rows: Tensor) -> DynamicCache:
    """A copy of a cache that holds the given rows, in that order; the original is left as it is."""
    chosen = copy.copy(keys_values)
    chosen.layers = [copy.copy(layer) for layer in keys_values.layers]
    chosen.batch_select_indices(rows)
    return chosen


def require_finite(hidden: Tensor, what: str) -> None:
    """Raise BadStates if any of the (n, L, D) states is NaN or infinite, naming the first such layer."""
    bad = ~torch.isfinite(hidden).all(dim=2)  # (n, L)
    if bad.any():
        layer = int(bad.any(dim=0).nonzero()[0]) + 1
        raise BadStates(
            f"{what}: {int(bad[:, layer - 1].sum())} of {len(hidden)} hidden states are NaN or infinite from layer "
            f"{layer} on. {hidden.dtype} may overflow here: load the model in float32 (dtype=float32)."
        )


@dataclass(frozen=True)
class StoredStates:
    """The states of a whole question set, read from the store one layer at a time.

    letter_logprobs: (n, 4) float32.  subject: n names.  answer: (n,) int64.  n_layers: L.
    key: hash of everything the states were made from.
    """

    parts: tuple[Any, ...]
    subject: list[str]
    answer: Tensor
    letter_logprobs: Tensor
    n_layers: int
    key: str

    def layer(self, point: str, layer: int) -> Tensor:
        """Hidden states of one layer, 1..L, (n, D), in the dtype of the forward pass."""
        if not 1 <= layer <= self.n_layers:
            raise BadParameter(f"There is no layer {layer}: layers are 1 to {self.n_layers}.")
        return torch.cat([part.get_tensor(f"{point}.{layer}") for part in self.parts])


def hidden_states(
    model_name: str,
    prompts: Sequence[Prompt],
    points: Sequence[str] = ("norm",),
    adapter: str | None = None,
    dtype: str | None = None,
    title: str = "hidden states",
) -> StoredStates:
    """Many prompts through a model, stored subject by subject: a killed run goes on where it was.

    The order is by subject, as in `build_prompts`.  Memory is bounded by the largest subject, not by the number of
    prompts.  The model is loaded only if some subject is not stored yet.  dtype: a torch dtype name; by hardware if
    None.  title: of the progress bar.  Raises what `models.load` and `extract` raise.
    """
    by_subject: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_subject[prompt.subject].append(prompt)
    precision = dtype or str(models.best_dtype(models.best_device())).removeprefix("torch.")
    described = models.describe(model_name, adapter)

    @cache
    def model() -> LanguageModel:
        return models.load(model_name, adapter, models.dtype_named(precision))

    parts, made_from = [], []
    with bar(total=len(prompts), desc=title, unit="question") as progress:
        for subject, group in by_subject.items():
            inputs = {
                "model": described,
                "dtype": precision,
                "points": sorted(points),
                "subject": subject,
                "prompts": store.digest([(p.prefix, p.question, p.answer) for p in group]),
            }
            done = progress.n
            compute = lambda group=group: flat(extract(model(), group, points, progress=progress))
            parts.append(store.tensors("states", inputs, compute, CODE))
            made_from.append(inputs)
            progress.update(len(group) - (progress.n - done))  # a stored subject counts all at once
    return StoredStates(
        tuple(parts),
        [prompt.subject for group in by_subject.values() for prompt in group],
        torch.cat([part.get_tensor("answer") for part in parts]),
        torch.cat([part.get_tensor("letter_logprobs") for part in parts]),
        sum(key.startswith(f"{points[0]}.") for key in parts[0].keys()),  # noqa: SIM118 - no mapping, a file
        store.digest(made_from),
    )


def flat(states: States) -> dict[str, Tensor]:
    """States as one tensor per point and layer, so that a layer can be read alone."""
    layers = {
        f"{point}.{layer}": hidden[:, layer - 1]
        for point, hidden in states.hidden.items()
        for layer in range(1, hidden.shape[1] + 1)
    }
    return layers | {"letter_logprobs": states.letter_logprobs, "answer": states.answer}
