"""Activation patching: read the state of a token in one run, put it into another run, see what the model says.

    with read_states(model, single_position(other.tokens.where("gate"))) as states:
        model.network(**other.inputs)
    with patched(model, states.residual[:, 12], single_position(batch.tokens.where("gate")), layer=12):
        logits = model.network(**batch.inputs).logits

Layers are counted as blocks: residual i is what block i reads, residual L what the final norm reads.  Every context
takes its hooks away again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import BadParameter, BadStates
from .model import VisionLanguageModel

Act = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden states (B, T, D), rows (B,), positions (B,) to (B, T, D)


@dataclass
class States:
    """One token's states in one run.

    residual: (B, L + 1, D), the residual stream before block i, and after the last one.
    attention_input: (B, L, D), what the attention of block i reads: the normalised residual stream.
    """

    residual: Tensor
    attention_input: Tensor


def single_position(chosen: Tensor) -> Tensor:
    """Positions (B,) int of a set (B, T) bool that has exactly one token in every row.  Raises BadParameter."""
    counts = chosen.sum(1)  # (B,)
    if (counts != 1).any():
        row = int((counts != 1).nonzero()[0])
        raise BadParameter(f"Row {row} has {int(counts[row])} tokens in the set, where one is needed: has it an image?")
    return chosen.int().argmax(1)


@contextmanager
def read_states(model: VisionLanguageModel, position: Tensor) -> Iterator[States]:
    """Read the states of one token of every row, in the dtype of the model, while it runs once inside the context.

    position: (B,) int, where the token sits in each row, counted with the padding; or (B, T) bool, a set of tokens,
    whose mean state is read (taken in float32).
    Raises BadParameter: a row without a token; a position outside the prompt, other rows than the batch, a model that
    was not run.
    """
    shape = (len(position), model.n_layers + 1, model.text_config.hidden_size)
    empty = torch.full(shape, torch.nan, dtype=model.network.dtype, device=model.device)
    states = States(empty, empty[:, 1:].clone())
    if position.ndim == 2 and not position.any(1).all():
        raise BadParameter("A set of tokens has none in some row, so it has no mean state: has every prompt an image?")
    acts = {block: partial(_read, states.residual[:, i]) for i, block in enumerate(_readers(model))}
    acts |= {block.self_attn: partial(_read, states.attention_input[:, i]) for i, block in enumerate(model.layers)}
    with _hooked(model, position, acts):
        yield states


def patched(model: VisionLanguageModel, states: Tensor, position: Tensor, layer: int) -> AbstractContextManager[None]:
    """Replace the residual stream of one token of every row, while the model runs inside the context.

    Args:
        model: whose language model is patched.
        states: (B, D), of another example, from `read_states`, or between the two.
        position: (B,) int, where the token sits in each row, counted with the padding. Only the prompt is patched: a
            cache carries it on to the tokens generated.
        layer: 0 … L; the state goes into block `layer`, or with L into the final norm.

    Raises:
        BadParameter: a layer out of range, a position outside the prompt, other rows than the batch, a model that was
            not run.
        BadStates: states of the wrong shape or not finite.

    Source: Serra et al. 2025, sec. 4.3; their code patches what a block reads.
    """
    if layer not in range(model.n_layers + 1):
        raise BadParameter(f"layer={layer}: {model.name} has residual streams 0 … {model.n_layers}; give one of these.")
    _check_states(states, (len(position), model.text_config.hidden_size))
    return _hooked(model, position, {_readers(model)[layer]: partial(_replace, states)})


def patched_attention(
    model: VisionLanguageModel, states: Tensor, position: Tensor, first: int
) -> AbstractContextManager[None]:
    """Replace what the attention of blocks first … L - 1 reads of one token of every row.

    The residual stream itself stays: only what the other tokens, and the token itself, read by attention changes.

    Args:
        model: whose language model is patched.
        states: (B, L, D), the attention inputs of all blocks of another example, from `read_states`.
        position: (B,) int, as in `patched`.
        first: 0 … L - 1.

    Raises: as `patched`.

    Source: Serra et al. 2025, sec. 4.3.
    """
    if first not in range(model.n_layers):
        raise BadParameter(f"first={first}: {model.name} has blocks 0 … {model.n_layers - 1}; give one of these.")
    _check_states(states, (len(position), model.n_layers, model.text_config.hidden_size))
    blocks = range(first, model.n_layers)
    return _hooked(model, position, {model.layers[i].self_attn: partial(_replace, states[:, i]) for i in blocks})


def _readers(model: VisionLanguageModel) -> list[nn.Module]:
    """The modules that read residual 0 … L."""
    return [*model.layers, model.final_norm]


def _read(place: Tensor, hidden_states: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    if positions.ndim == 2:  # a set of tokens: its mean
        summed = hidden_states.float().where(positions[..., None], 0).sum(1)  # (B, D)
        place.copy_((summed / positions.sum(1, keepdim=True)).detach())
    else:
        place.copy_(hidden_states[rows, positions].detach())  # (B, D)
    return hidden_states


def _replace(states: Tensor, hidden_states: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    hidden_states = hidden_states.clone()
    hidden_states[rows, positions] = states.to(hidden_states)  # (B, D)
    return hidden_states


@contextmanager
def _hooked(model: VisionLanguageModel, position: Tensor, acts: Mapping[nn.Module, Act]) -> Iterator[None]:
    """Let `acts` see, and change, the hidden states (B, T, D) that modules read when the model runs over the prompt."""
    fired: set[nn.Module] = set()

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        given = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]  # (B, T, D)
        if module in fired and given.shape[1] == 1:
            return args, kwargs  # a token generated from the cache
        fired.add(module)
        changed = acts[module](given, torch.arange(len(given), device=given.device), position.to(given.device))
        if "hidden_states" in kwargs:
            return args, kwargs | {"hidden_states": changed}
        return (changed, *args[1:]), kwargs

    def look(network: nn.Module, args: tuple, inputs: dict) -> None:
        """Before every run: no position is on padding, which the blocks cannot tell."""
        n_tokens = inputs["input_ids"].shape[1]
        if not fired or n_tokens > 1:
            mask = inputs.get("attention_mask")  # it covers a cache, too
            mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask[:, -n_tokens:]
            if (position.ndim, position.dtype) != (2, torch.bool):
                _check_place(position.cpu(), mask.bool().cpu())

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in acts]
    handles.append(model.network.register_forward_pre_hook(look, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if len(fired) != len(acts):
        raise BadParameter("Some blocks were not run, so nothing was read or patched there: run the model inside.")


def _check_place(position: Tensor, prompts: Tensor) -> None:
    """Raises BadParameter if a position is not on a token of its prompt.  prompts: (B, T) bool, False on padding."""
    n_rows, n_tokens = prompts.shape
    if position.shape != (n_rows,) or position.dtype != torch.int64:
        form = f"{tuple(position.shape)} positions of {position.dtype}"
        raise BadParameter(f"{form} for a batch of {n_rows} rows: give one whole number for each.")
    inside = (position >= 0) & (position < n_tokens)  # (B,)
    inside &= prompts[torch.arange(n_rows), position.clamp(0, n_tokens - 1)]
    if not inside.all():
        row = int((~inside).nonzero()[0])
        raise BadParameter(f"Position {int(position[row])} of row {row} is outside its prompt, or on padding.")


def _check_states(states: Tensor, shape: tuple[int, ...]) -> None:
    """Raises BadStates."""
    if tuple(states.shape) != shape:
        raise BadStates(f"States of shape {tuple(states.shape)}, where {shape} are needed: one for each position.")
    if not torch.isfinite(states).all():
        raise BadStates("States that are not finite: was the model run inside `read_states`?")
