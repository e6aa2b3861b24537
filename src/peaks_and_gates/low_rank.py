"""LoRA on a change whose rank is known: how much of it an adapter of each rank can learn.

numbers, learned = low_rank.recovered(seed=0)

No matrix of rank k is nearer to the wanted change than the sum of its k largest singular parts (Eckart and Young
1936). What the others weigh is the least that an adapter of rank k can leave: a known answer.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from . import record
from .uncertainty import at_least

SINGULAR_VALUES = (4.0, 3.0, 2.0, 1.0)  # of the wanted change
RANKS = (1, 2, 3, 4, 6)
STEPS, LEARNING_RATE = 600, 0.02


def recovered(seed: int = 0, size: int = 32, n_draws: int = 10) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What adapters of several ranks leave of a change of rank 4, and the changes that they learned.

    Numbers: rank, value: the share of the squared change that is left, mean of the draws (of the adapter's start), low
    and high, the smallest and the largest; least: the share that any matrix of that rank leaves; parameters: numbers
    that are trained; n, of the matrix.  Learned, of the first draw: rank (0: what is wanted), row, column, value.
    Recorded as `known_rank` and `known_rank_learned`.
    """
    at_least(1, n_draws=n_draws)
    inputs = {"seed": seed, "size": size, "n_draws": n_draws}
    wanted = change(size)
    found: dict[int, list[Tensor]] = {}

    def compute() -> dict[int, list[Tensor]]:
        if not found:
            draws = range(n_draws)
            found.update({rank: [adapted(wanted, rank, 1000 * seed + draw) for draw in draws] for rank in RANKS})
        return found

    def numbers() -> pd.DataFrame:
        rows = []
        for rank, changes in compute().items():
            left = [float(((one - wanted) ** 2).sum() / (wanted**2).sum()) for one in changes]
            row = {"rank": rank, "value": np.mean(left), "low": min(left), "high": max(left), "least": least(rank)}
            rows.append(row | {"parameters": 2 * rank * size, "n": size * size})
        return pd.DataFrame(rows)

    def learned() -> pd.DataFrame:
        tables = []
        for rank, matrix in {0: wanted, **{rank: changes[0] for rank, changes in compute().items()}}.items():
            rows, columns = np.indices(matrix.shape)
            columns = {"rank": rank, "row": rows.ravel(), "column": columns.ravel(), "value": matrix.numpy().ravel()}
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables, ignore_index=True)

    return record.table("known_rank", inputs, numbers), record.table("known_rank_learned", inputs, learned)


def change(size: int) -> Tensor:
    """The wanted change, (size, size): as many waves crossed with waves as it has singular values."""
    places = (torch.arange(size) + 0.5) * torch.pi / size
    waves = torch.stack([torch.cos(i * places) for i in range(1, len(SINGULAR_VALUES) + 1)])  # (rank, size)
    waves /= waves.norm(dim=1, keepdim=True)  # orthogonal already
    return waves.T @ torch.diag(torch.tensor(SINGULAR_VALUES)) @ waves.flip(1)


def least(rank: int) -> float:
    """The share of the squared change that no matrix of a rank can take away."""
    squares = np.square(SINGULAR_VALUES)
    return float(squares[rank:].sum() / squares.sum())


def adapted(wanted: Tensor, rank: int, seed: int) -> Tensor:
    """What a LoRA adapter on a layer learns if the layer's outputs should change by `wanted`; (size, size)."""
    torch.manual_seed(seed)
    layer = nn.Sequential(nn.Linear(*wanted.shape, bias=False))
    frozen = layer[0].weight.detach().clone()
    model = get_peft_model(layer, LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"]))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        inputs = torch.randn(256, wanted.shape[1])
        loss = ((model(inputs) - inputs @ (frozen + wanted).T) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.merge_and_unload()[0].weight.detach() - frozen
