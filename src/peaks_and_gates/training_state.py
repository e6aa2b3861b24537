"""The optimizers of a training, and what it needs to go on after it was killed: one file, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import store
from .finetune import Log


def optimizers_of(weights: Mapping[str, Tensor]) -> list[Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all the rest; one learning rate serves both.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025, whose scaling makes its steps as large as AdamW's.  At this size
    it needs about two thirds of the steps that AdamW alone does.
    """
    # Chameleon's norms of queries and keys have a row for each head, and are no matrices for that.
    matrices = {name for name, p in weights.items() if p.ndim == 2 and ".layers." in name and "norm" not in name}
    blocks, rest = ([p for name, p in weights.items() if (name in matrices) == chosen] for chosen in (True, False))
    return [
        torch.optim.Muon(blocks, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, weight_decay=0.0),
    ]


def step(optimizers: Sequence[Optimizer], rate: float) -> None:
    """One step down the gradients there are, which are then gone.  rate: the learning rate."""
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()


def keep(weights: Mapping[str, Tensor], optimizers: Sequence[Optimizer], log: Log, done: int, path: Path) -> None:
    """Write the weights, all that the optimizers remember of each, and what was measured in `done` steps.

    Raises StorageFull.
    """
    tensors = {f"weight/{name}": p.detach() for name, p in weights.items()}
    for name, p in weights.items():
        for optimizer in optimizers:
            if p in optimizer.state:
                tensors |= {f"{key}/{name}": value for key, value in optimizer.state[p].items()}
    store.keep_state(path, tensors, {"done": str(done), "log": json.dumps(vars(log))})


def restore(weights: Mapping[str, Tensor], optimizers: Sequence[Optimizer], path: Path) -> tuple[Log, int]:
    """Put a stored state back; a damaged one counts, with a warning, as none."""
    kept = store.kept_state(path)
    if kept is None:
        return Log(), 0
    tensors, about = kept
    log, done = Log(**json.loads(about["log"])), int(about["done"])
    owner = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    with torch.no_grad():
        for place, tensor in tensors.items():
            key, name = place.split("/", 1)
            p = weights[name]
            if key == "weight":
                p.copy_(tensor)
            else:
                owner[p].state[p][key] = tensor if key == "step" else tensor.to(p.device)
    return log, done
