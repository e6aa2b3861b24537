"""Activation patching: read the state of a token in one run, put it into another run, see what the model says.

with recorded(model, position=only(other.tokens.where("end"))) as states:  # `only` is in `tokens`
    model.network(**other.inputs)
with patched(model, states.residual[:, 12], position=only(batch.tokens.where("end")), layer=12):
    logits = model.network(**batch.inputs).logits

Layers are counted as blocks: residual i is what block i reads, residual L what the final norm reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import BadParameter, BadStates
from .vlms import VisionLanguageModel


@dataclass
class States:
    """One token's states in one run.

    residual: (B, L + 1, D), the residual stream before block i, and after the last one.
    attention_input: (B, L, D), what the attention of block i reads: the normalised residual stream.
    """

    residual: Tensor
    attention_input: Tensor


@contextmanager
def recorded(model: VisionLanguageModel, position: Tensor) -> Iterator[States]:
    """Record the states of one token of every row, in the dtype of the model, while it runs once inside the context.

    position: (B,) int, where the token sits in each row, counted with the padding.
    Raises BadParameter: a position outside the prompt, other rows than the batch, a model that was not run.
    """
    _check_position(position)
    shape = (len(position), model.n_layers, model.hidden_size)
    empty = lambda n: torch.full((shape[0], n, shape[2]), torch.nan, dtype=model.dtype, device=model.device)
    states = States(empty(model.n_layers + 1), empty(model.n_layers))

    def keep(place: Tensor) -> Callable[[Tensor], None]:
        return lambda found: place.copy_(found)

    blocks = [keep(states.residual[:, i]) for i in range(model.n_layers + 1)]
    attentions = [keep(states.attention_input[:, i]) for i in range(model.n_layers)]
    with _on_prompts(model, position), ExitStack() as hooks:
        for module, use in zip([*model.layers, model.final_norm], blocks, strict=True):
            hooks.enter_context(_reading(module, position, use))
        for block, use in zip(model.layers, attentions, strict=True):
            hooks.enter_context(_reading(block.self_attn, position, use))
        yield states


@contextmanager
def patched(model: VisionLanguageModel, states: Tensor, position: Tensor, layer: int) -> Iterator[None]:
    """Replace the residual stream of one token of every row, while the model runs inside the context.

    Args:
        model: whose language model is patched.
        states: (B, D), of another example, from `recorded`, or between the two from `steered`.
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
    _check_position(position)
    _check_states(states, (len(position), model.hidden_size))
    with _on_prompts(model, position), _replacing([*model.layers, model.final_norm][layer], position, states):
        yield


@contextmanager
def patched_attention(model: VisionLanguageModel, states: Tensor, position: Tensor, first: int) -> Iterator[None]:
    """Replace what the attention of blocks first … L - 1 reads of one token of every row.

    The residual stream itself stays: only what the other tokens, and the token itself, read by attention changes.

    Args:
        model: whose language model is patched.
        states: (B, L, D), the attention inputs of all blocks of another example, from `recorded`.
        position: (B,) int, as in `patched`.
        first: 0 … L - 1.

    Raises: as `patched`.

    Source: Serra et al. 2025, sec. 4.3.
    """
    if first not in range(model.n_layers):
        raise BadParameter(f"first={first}: {model.name} has blocks 0 … {model.n_layers - 1}; give one of these.")
    _check_position(position)
    _check_states(states, (len(position), model.n_layers, model.hidden_size))
    with _on_prompts(model, position), ExitStack() as hooks:
        for i in range(first, model.n_layers):
            hooks.enter_context(_replacing(model.layers[i].self_attn, position, states[:, i]))
        yield


def steered(own: Tensor, other: Tensor, strength: float) -> Tensor:
    """A state moved towards another one: strength 0 keeps it, 1 is patching, more goes beyond.  Both (…, D)."""
    return own + strength * (other - own)


def _replacing(module: nn.Module, position: Tensor, states: Tensor):
    """While in the context, give a module another state of one token of every row to read."""

    def change(hidden_states: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        hidden_states = hidden_states.clone()
        hidden_states[rows, places] = states.to(hidden_states)
        return hidden_states

    return _hooked(module, position, change)


def _reading(module: nn.Module, position: Tensor, use: Callable[[Tensor], None]):
    """While in the context, hand the state of one token of every row that a module reads to `use`, as (B, D)."""

    def read(hidden_states: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        use(hidden_states[rows, places].detach())
        return hidden_states

    return _hooked(module, position, read)


@contextmanager
def _hooked(module: nn.Module, position: Tensor, act: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Let `act` see, and change, the hidden states (B, T, D) that a module reads when it runs over the prompt."""
    fired = False

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        nonlocal fired
        given = kwargs.get("hidden_states", args[0] if args else None)
        if not isinstance(given, Tensor) or given.ndim != 3:
            raise BadStates(f"{type(module).__name__} does not read hidden states (B, T, D) first.")
        if fired and given.shape[1] == 1:
            return args, kwargs  # a token generated from the cache
        _check_place(position, torch.ones(given.shape[:2], dtype=torch.bool))
        fired = True
        changed = act(given, torch.arange(len(given), device=given.device), position.to(given.device))
        if "hidden_states" in kwargs:
            return args, kwargs | {"hidden_states": changed}
        return (changed, *args[1:]), kwargs

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
    if not fired:
        raise BadParameter(f"No {type(module).__name__} was run, so nothing was read or patched: run the model inside.")


@contextmanager
def _on_prompts(model: VisionLanguageModel, position: Tensor) -> Iterator[None]:
    """While in the context, see before every run that no position is on padding, which the blocks cannot tell."""

    seen = False

    def look(network: nn.Module, args: tuple, inputs: dict) -> None:
        nonlocal seen
        mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            return
        n_tokens = mask.shape[1] if ids is None else ids.shape[1]  # run now: the mask also covers a cache
        if seen and n_tokens == 1:
            return  # a token generated from the cache
        _check_place(position, mask[:, -n_tokens:].bool().cpu())
        seen = True

    handle = model.network.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _check_position(position: Tensor) -> None:
    """Raises BadParameter if positions are not (B,) int."""
    if position.ndim != 1 or not len(position) or position.dtype == torch.bool or position.is_floating_point():
        raise BadParameter(
            f"position must be (B,) int, one place in each row, not {tuple(position.shape)} {position.dtype}. "
            "`tokens.only` makes it from a set of tokens."
        )


def _check_place(position: Tensor, prompts: Tensor) -> None:
    """Raises BadParameter if a position is not on a token of its prompt.  prompts: (B, T) bool, False on padding."""
    n_rows, n_tokens = prompts.shape
    if len(position) != n_rows:
        raise BadParameter(f"{len(position)} positions for a batch of {n_rows} rows: give one for each.")
    position = position.cpu()
    inside = (position >= 0) & (position < n_tokens)
    inside &= prompts[torch.arange(n_rows), position.clamp(0, n_tokens - 1)]
    if not inside.all():
        row = int((~inside).nonzero()[0])
        raise BadParameter(
            f"Position {int(position[row])} of row {row} is outside its prompt, or on padding: the row has {n_tokens} "
            "tokens with its padding. Take positions from the tokens of this batch, see `tokens.only`."
        )


def _check_states(states: Tensor, shape: tuple[int, ...]) -> None:
    """Raises BadStates."""
    if tuple(states.shape) != shape:
        raise BadStates(f"States of shape {tuple(states.shape)}, where {shape} are needed: one for each position.")
    if not torch.isfinite(states).all():
        raise BadStates("States that are not finite: was the model run inside `recorded`?")
