"""Hidden states of the last prompt token, at every layer, for many prompts at the cost of few tokens.

    prompts = build_prompts(load("wordnet"), n_shots=5)
    states = extract(model, prompts)                # in memory
    states = hidden_states(model_name, prompts)     # stored, and read again one layer at a time

Prompts that begin alike share the forward pass of that beginning. Cut at their empty lines they form a tree: the
header of a subject, its first shots, the second ones behind each, and so on to the questions. The keys and values of
each node are computed once, behind those of its parent, and reused by everything behind it (as in RadixAttention, Zheng
et al. 2024). Causal attention makes that exact: a token never sees what follows it. For the same reason a batch may be
padded on the right without a mask. That a model keeps to this, and that its logits are its head's, is compared with its
own forward pass before its states are used.

The two points at which the residual stream is read, after block l = 1..L:
    residual    the block's output
    norm        that output through the next norm (the next block's first one; after block L the final norm),
                which is what the landscape paper analyses
Layer 0, the embedding of the last token, is left out: every prompt ends in the same token, so it is one point.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby, pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .. import models
from ..cache import STATES, cached, digest
from ..errors import BadParameter, BadStates, ModelUnavailable, one_line
from ..models import LanguageModel, residual_stream
from .prefixes import Encoded, Node, batches, branches, grouped
from .questions import LETTERS, Prompt

POINTS = ("residual", "norm")
EMPTY_LINE = re.compile("\n\n")
FEWEST_TOKENS, MOST_TOKENS = 4096, 65_536  # of one forward pass: on a CPU more gain nothing
KEPT_BATCHES = 8  # of the tree, on a CPU: a subject's 150 questions in orders of their own behind five shots
# Two prompts behind two shots, short and of unlike length, by which a model is compared with its own forward pass.
SHOTS = "Oslo?\nAnswer: A\n\nRome?\nAnswer: B\n\n"
SAMPLE = [Prompt("", SHOTS, question, 0) for question in ("Lima?\nAnswer:", "Accra, Cairo or Dakar?\nAnswer:")]
ADVICE = "It cannot be read by shared prefixes: take a model of another family, or float32 if it is in half precision."
Level = tuple[int, Any, list[Node]]  # tokens up to the nodes' ends; keys and values, a row each; they
say_once = cache(print)
compared: WeakKeyDictionary[LanguageModel, int] = WeakKeyDictionary()  # tokens of the longest prompt that passed


def encode(model: LanguageModel, prompts: Sequence[Prompt]) -> list[Encoded]:
    """Token ids of each prompt, tokenised as one text and cut behind every empty line of its prefix, and its end.

    Tokenising the pieces apart would be wrong: a tokenizer may join characters across a cut.  Tokens that it
    appends of its own (end of text, separator) are left out: the last one is the last of the prompt's text.
    Raises BadParameter for a prompt of more tokens than the model was made for: farther on it returns noise.
    Raises ModelUnavailable for a tokenizer that does not reach a prompt's end, or knows tokens that the model does not.
    """
    encoded, config = [], model.network.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None) or math.inf
    # Beyond this length such a model turns all tokens by other angles, also those of a prefix that was shorter.
    if (rope := getattr(config, "rope_parameters", None) or {}).get("rope_type") == "longrope":
        most = rope["original_max_position_embeddings"]
    batch = model.tokenizer([prompt.text for prompt in prompts], return_offsets_mapping=True)
    for n, (prompt, ids, offsets) in enumerate(zip(prompts, batch["input_ids"], batch["offset_mapping"], strict=True)):
        ids = ids[: max((i for i, (start, end) in enumerate(offsets, 1) if start < end == len(prompt.text)), default=0)]
        if not ids or max(ids) >= len(model.network.get_input_embeddings().weight):
            raise ModelUnavailable(f"{model.name} has a tokenizer that cuts prompts, or another model's. Replace it.")
        if len(ids) > most:
            raise BadParameter(f"{model.name}: prompt {n} has {len(ids)} tokens; {most} fit. Take fewer shots.")
        places = [*(line.end() for line in EMPTY_LINE.finditer(prompt.prefix)), len(prompt.prefix)]
        # A token at least stays in the question.
        cuts = {sum(end <= place for _, end in offsets[: len(ids) - 1]) for place in places} - {0}
        encoded.append(Encoded(n, tuple(tuple(ids[a:b]) for a, b in pairwise([0, *sorted(cuts), len(ids)]))))
    return encoded


def walk(
    model: LanguageModel, level: list[Level], batch_tokens: int, room: int
) -> Iterator[tuple[DynamicCache | None, list[Node]]]:
    """Batches of prompts' rests, with the keys and values that each is read behind: level by level, each node once.

    Nodes of nearly one length are cut to the shortest, and what is left of the others is read with what follows. So
    the nodes of a level stand together, as do the questions behind them: few are read alone.  batch_tokens: most in a
    batch.  room: for so many tokens of nodes, all levels together, half of it for the next one; where that is too
    little, a part of a level goes on to its end before the rest is read.  At least one node a level is kept.
    """
    read, total = [], 0
    for length, keys_values, nodes in level:
        below = [branch for row, node in enumerate(nodes) for branch in branches(row, node)]
        for batch in batches([node for node in below if len(node.prompts) == 1], length, batch_tokens):
            yield keys_values, batch
        shared = [node for node in below if len(node.prompts) > 1]
        for alike in grouped(shared, lambda group, node: len(node.ids) <= 1.25 * len(group[0].ids)):
            size = len(alike[0].ids)
            for part in batches(alike, length, min(batch_tokens, room // 2)):
                tokens = len(part) * (length + size)
                if total and total + tokens > room // 2:
                    say_once(f"{model.name}: only some of the prompts' beginnings are kept at a time, to save memory.")
                    yield from walk(model, together(read), batch_tokens, room - total)
                    read, total = [], 0
                behind = read_nodes(model, [replace(node, ids=node.ids[:size]) for node in part], keys_values)
                read.append((length + size, behind, [replace(node, ids=node.ids[size:]) for node in part]))
                total += tokens
    if read:
        yield from walk(model, together(read), batch_tokens, room - total)


def together(read: list[Level]) -> list[Level]:
    """The same nodes, those of a length in one, unless a layer of their cache holds more than keys and values."""
    level = []
    for length, alike in groupby(sorted(read, key=lambda item: item[0]), lambda item: item[0]):
        (_, keys_values, nodes), *others = alike
        if others and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in keys_values.layers):
            for layer, *theirs in zip(keys_values.layers, *(cache.layers for _, cache, _ in others), strict=True):
                layer.keys = torch.cat([layer.keys, *(other.keys for other in theirs)])  # (G, heads, length, D / heads)
                layer.values = torch.cat([layer.values, *(other.values for other in theirs)])
            nodes, others = sum((theirs for _, _, theirs in others), nodes), []
        level += [(length, keys_values, nodes), *others]
    return level


@torch.inference_mode()
def extract(
    model: LanguageModel, prompts: Sequence[Prompt], points: Sequence[str] = POINTS, batch_tokens: int | None = None
) -> dict[str, Tensor]:
    """Hidden states of the last token of each prompt, and its letter log-probabilities, in one pass.

    Returns by point (n, L, D) in the model's dtype, [:, l - 1] being layer l; "letter_logprobs" (n, 4) float32, of
    " A".." D" as next token, over the whole vocabulary; "top_letter" (n,) int64, the letter that the likeliest token of
    all is, whatever blanks stand around it, -1 if it is no letter; "answer" (n,) int64, the right letter.
    batch_tokens: upper bound on rows x tokens of a prompt in one forward pass, and on those of the tree that are kept
    at a time; bounds the memory. By default 4096 on a CPU, on a GPU as many as half of its free memory has room for;
    of the tree eight times as many on a CPU.
    Raises BadParameter (a prompt longer than the model reads), BadStates (not finite; names the model and the layer),
    ModelUnavailable (see `encode` and `compare`).
    """
    encoded = encode(model, prompts)
    compare(model, encoded)
    states = run(model, encoded, points, batch_tokens)
    for point in points:
        require_finite(states[point], f"{model.name}, {point}")
    tops = [model.tokenizer.decode(token).strip() for token in states.pop("top_token").tolist()]
    top_letter = torch.tensor([LETTERS.index(top) if top in LETTERS else -1 for top in tops])
    return states | {"top_letter": top_letter, "answer": torch.tensor([prompt.answer for prompt in prompts])}


def run(model: LanguageModel, encoded: list[Encoded], points: Sequence[str], limit: int | None) -> dict[str, Tensor]:
    """What `extract` returns of states and letters, and "top_token" (n,) int64, the likeliest; nothing is checked.

    limit: as `batch_tokens` there.
    """
    # Indices stay on the CPU: a split model's tensors lie on several devices.
    parts, order, letters = [], [], model.letter_tokens
    room = limit or max_batch_tokens(model) * (KEPT_BATCHES if model.device.type == "cpu" else 1)
    limit = limit or max_batch_tokens(model)
    for keys_values, batch in walk(model, [(0, None, [Node(0, (), 0, encoded)])], limit, room):
        states, logprobs = forward(model, keys_values, batch)
        # (B, L, D) of each point, (B, 4), (B,)
        of_letters = {"letter_logprobs": logprobs[:, letters], "top_token": logprobs.argmax(-1)}
        parts.append({point: states[point] for point in points} | of_letters)
        order += [node.prompts[0].index for node in batch]
    # Copied to the CPU at the end: a GPU that is waited for after every batch idles in between.
    return {name: torch.cat([part[name] for part in parts]).cpu()[torch.tensor(order).argsort()] for name in parts[0]}


def compare(model: LanguageModel, encoded: list[Encoded]) -> None:
    """Read three prompts as `extract` does, by a tree of two levels and whole, and by the model's own forward pass.

    Short ones when a model is used for the first time; whenever some prompt is longer than all before, this one and
    the shortest question behind the same shots, and behind the first piece: many a model reads otherwise beyond some
    length.  At every layer the states at both points, and at the end the letters' log-probabilities, agree to 1e-4 of
    their norm, in half precision to 16 roundings.  It is for `require_finite` to say where the model's own are not
    finite.
    Raises ModelUnavailable with the first layer that does not, and the size of the difference.
    """
    longest = max(encoded, key=lambda item: len(item.ids))
    pairs = [] if model in compared else [encode(model, SAMPLE)]
    if (length := len(longest.ids)) > compared.get(model, 0):
        pairs.append([longest, min(encoded, key=lambda item: len(item.pieces[-1]))])
    for pair in pairs:
        *before, question = pair[0].pieces
        other, letters = pair[1].pieces[-1], model.letter_tokens
        prompts = [(*before, question), (*before, other), (*before[:1], other)]  # two behind all, one behind the first
        both = [*prompts, *((sum(pieces, ()),) for pieces in prompts)]
        try:
            ours = by_layer(run(model, [Encoded(index, pieces) for index, pieces in enumerate(both)], POINTS, None))
            own = by_layer(own_forward(model, [text for (text,) in both[3:]], letters))
        except Exception as error:  # an architecture that cannot be read so leads to errors of many kinds
            raise ModelUnavailable(f"{model.name} fails on three prompts: {one_line(error)}. {ADVICE}") from error
        for name, expected in own.items():  # (3, D) of a point and layer, (3, 4) of the letters
            difference = ours[name].double().unflatten(0, (2, 3)) - expected.double()  # by the tree or not, prompt,
            error = float((difference.norm(dim=-1) / expected.double().norm(dim=-1).clamp(min=1e-30)).max())
            if not error <= max(1e-4, 16 * torch.finfo(model.network.dtype).eps) and expected.isfinite().all():
                where = f"{model.name}: {name.replace('.', ' of layer ')}"
                raise ModelUnavailable(f"{where} is off the model's own by {error:.2g} of its norm. {ADVICE}")
    compared[model] = max(length, compared.get(model, 0))


def own_forward(model: LanguageModel, texts: list[tuple[int, ...]], letters: Tensor) -> dict[str, Tensor]:
    """What the model itself computes of each of n prompts alone: (n, L, D) at both points, "letter_logprobs" (n, 4).

    Unpadded, without a cache, and read by hooks: nothing of `forward` is used.
    """
    outputs, logprobs = [], []
    record = lambda module, ins, out: outputs.append((ins[0][0, -1], out[0, -1])) if module in model.norms else None
    with register_module_forward_hook(record):
        for ids in texts:
            logits = model.network(torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1]
            logprobs.append(torch.log_softmax(logits.float(), -1)[letters].cpu())
    # (n, L, residual and normed, D)
    states = torch.stack([torch.stack(pair).cpu() for pair in outputs]).unflatten(0, (len(texts), model.n_layers))
    return {"residual": states[:, :, 0], "norm": states[:, :, 1], "letter_logprobs": torch.stack(logprobs)}


def max_batch_tokens(model: LanguageModel) -> int:
    """Tokens of one forward pass: few on a CPU, on a GPU as many as half of its free memory has room for."""
    if model.device.type == "cpu":
        return FEWEST_TOKENS
    config = model.network.config.get_text_config()
    kv_width = config.hidden_size * config.num_key_value_heads // config.num_attention_heads
    # Of a token of a batch at most: keys and values twice, every block's state, the widest product.
    blocks = config.num_hidden_layers
    numbers = 4 * blocks * kv_width + (blocks + 1) * config.hidden_size + 3 * config.intermediate_size
    # Memory that torch keeps of tensors that are gone is free, too.
    reserved = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    half = (torch.cuda.mem_get_info(model.device)[0] + reserved) // 2
    return min(MOST_TOKENS, max(FEWEST_TOKENS, half // (model.network.dtype.itemsize * numbers)))


def rows_of(keys_values: DynamicCache | None, nodes: list[Node]) -> DynamicCache | None:
    """A copy of keys and values with the row that each node stands behind; None at the root."""
    if keys_values is None:
        return None
    keys_values = copy.copy(keys_values)  # the original serves the next batch
    keys_values.layers = [copy.copy(layer) for layer in keys_values.layers]
    keys_values.batch_select_indices(torch.tensor([node.row for node in nodes]))
    return keys_values


def read_nodes(model: LanguageModel, nodes: list[Node], keys_values: DynamicCache | None) -> DynamicCache:
    """Keys and values up to the end of nodes of equal length, one row each."""
    ids = torch.tensor([node.ids for node in nodes], device=model.device)  # (G, T)
    return model.network.get_decoder()(ids, past_key_values=rows_of(keys_values, nodes), use_cache=True).past_key_values


def forward(
    model: LanguageModel, keys_values: DynamicCache | None, batch: list[Node]
) -> tuple[dict[str, Tensor], Tensor]:
    """One batch of rests: states of their last tokens by point (B, L, D) and log-probabilities (B, vocabulary)."""
    # Padded on the right with token 0: the last token of a prompt cannot see what comes after it.
    ids = pad_sequence([torch.tensor(node.ids) for node in batch], batch_first=True).to(model.device)  # (B, T)
    before = rows_of(keys_values, batch)
    states, _ = residual_stream(model, ids, past_key_values=before, use_cache=before is not None)
    ends = torch.tensor([len(node.ids) - 1 for node in batch])  # (B,)
    residual = [state[torch.arange(len(ends)), ends] for state in states[1:]]  # L x (B, D)
    # A split model leaves each state where its block is, and the norm may be elsewhere; else nothing is moved.  Some
    # norms have no weight.
    normed = [norm(h.to(getattr(norm, "weight", h).device)) for norm, h in zip(model.norms, residual, strict=True)]
    logits = model.network.get_output_embeddings()(normed[-1])  # (B, vocabulary)
    stack = lambda states: torch.stack([state.to(logits.device) for state in states], dim=1)  # (B, L, D)
    return {"residual": stack(residual), "norm": stack(normed)}, logits.float().log_softmax(-1)


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

    @cache
    def model() -> LanguageModel:
        loaded = models.load(model_name, adapter, models.dtype_named(precision))
        compare(loaded, encode(loaded, prompts))  # once, not whenever a subject has a longer prompt than those before
        return loaded

    common = {"model": models.describe(model_name, adapter), "dtype": precision, "points": sorted(points)}
    parts, keys = [], []
    groups = [list(together) for _, together in groupby(prompts, lambda prompt: prompt.subject)]
    for group in tqdm(groups, desc=title, unit="subject"):
        texts = digest([(prompt.prefix, prompt.question, prompt.answer) for prompt in group])
        inputs = common | {"subject": group[0].subject, "prompts": texts, "version": STATES}
        parts.append(cached("states", inputs, lambda group=group: by_layer(extract(model(), group, points))))
        keys.append(inputs)
    row_of: dict[str, int] = {}
    first = torch.tensor([row_of.setdefault(prompt.text, row) for row, prompt in enumerate(prompts)])  # (n,)
    together = lambda name: torch.cat([part.get_tensor(name) for part in parts])
    scores = together("letter_logprobs")[first], together("top_letter")[first]
    n_layers = sum(key.startswith(f"{points[0]}.") for key in parts[0].keys())  # noqa: SIM118 - no mapping, a file
    return StoredStates(parts, [p.subject for p in prompts], together("answer"), *scores, n_layers, digest(keys), first)


def by_layer(states: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `extract` returns, with one tensor per point and layer, so that a layer can be read alone."""
    stacked = {name: values.unbind(1) for name, values in states.items() if values.ndim == 3}  # L of (n, D)
    layers = {f"{name}.{layer}": hidden for name, all in stacked.items() for layer, hidden in enumerate(all, 1)}
    return layers | {name: values for name, values in states.items() if name not in stacked}
