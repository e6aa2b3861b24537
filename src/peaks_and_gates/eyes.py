"""Train the vision tower of the adapted minis to tell what stands where in a picture, before it meets a language model.

A LLaVA gets a tower that can see already: CLIP's, which learned from captions (Radford et al. 2021), and whose patches
tell of themselves what they show and where they are.  Here a linear reader must find in every patch alone what stands
in its cell of the grid, and which cell that is.  The image tokenizer of the native minis was taught the first as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from . import codebook, minis, parts, scenes, training_state
from .finetune import learning_rate
from .progress import bar

N_CELLS = 9  # of the grid that things stand in
CODE = ("eyes", "minis", "training_state", *codebook.CODE)


def eyes(settings: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights of the vision tower, float32; see `parts.part`."""
    return parts.part(settings, path, lambda: train(settings), CODE)


def train(settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Train a tower of the shape in the settings; see `eyes`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        tower = minis.adapted(settings["shape"])[0].model.vision_tower.train()
        reader = nn.Linear(settings["shape"]["eye_width"], N_CELLS + sum(map(len, codebook.ATTRIBUTES)))
        learning = dict(nn.ModuleDict({"tower": tower, "reader": reader}).named_parameters())
        shown = scenes.sample("train", settings["n_scenes"], settings["seed"])
        images, contents = codebook.pixels(shown), codebook.cells(shown)
        optimizers = training_state.optimizers_of(learning)
        steps = settings["steps"]
        with bar(total=steps, desc="vision tower", unit="step") as progress:
            for step in range(steps):
                rate = learning_rate(step, steps, settings["learning_rate"], 0.05)
                chosen = torch.randint(len(images), (settings["batch"],))
                loss = reading_loss(reader(seen(tower, images[chosen])), contents[chosen])
                loss.backward()
                nn.utils.clip_grad_norm_(learning.values(), 1.0)
                training_state.step(optimizers, rate)
                progress.update()
                progress.set_postfix(read=f"{loss.item():.3f}")
    return {name: tensor.detach().contiguous() for name, tensor in tower.state_dict().items()}


def seen(tower: PreTrainedModel, images: Tensor) -> Tensor:
    """What the language model gets of images, bytes (B, 3, 64, 64): the states of the patches, (B, 64, D), by rows."""
    return tower(codebook.scaled(images)).last_hidden_state[:, 1:]


def reading_loss(scores: Tensor, wanted: Tensor) -> Tensor:
    """Mean cross-entropy of a patch's scores, (B, 64, n): of its cell, and of what stands there, by attribute.

    wanted: (B, 9, 4), see `codebook.cells`.
    """
    place = cell_of_patches()
    targets = torch.cat([place.expand(len(scores), -1)[..., None], wanted[:, place]], 2)  # (B, 64, 5)
    parts = scores.split([N_CELLS, *map(len, codebook.ATTRIBUTES)], dim=2)
    return sum(cross_entropy(part.flatten(0, 1), targets[..., i].flatten()) for i, part in enumerate(parts))


def cell_of_patches() -> Tensor:
    """(64,) int64: the cell of the grid that the middle of each patch is in, by rows as the cells are."""
    side = codebook.SIDE // codebook.PATCH
    third = (2 * torch.arange(side) + 1) * 3 // (2 * side)
    return (3 * third[:, None] + third).flatten()
