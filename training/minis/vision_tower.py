"""Train the vision tower of the adapted minis to tell what stands where in a picture, before it meets a language model.

A LLaVA gets a tower that can see already: CLIP's, which learned from captions (Radford et al. 2021), and whose patches
tell of themselves what they show and where they are.  Here a linear reader must find in every patch alone what stands
in its cell of the grid, and which cell that is.  The image tokenizer of the native minis was taught the first as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from training.common import build_optimizers, learning_rate, take_step
from training.scenes.scene import sample

from . import image_tokenizer, models
from .image_tokenizer import SIZES, reading_loss

N_CELLS = 9  # of the grid that things stand in


def train(settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a tower of the shape in the settings, trained on scenes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        tower = models.adapted(settings["shape"])[0].model.vision_tower.train()
        sizes = [N_CELLS, *SIZES]
        reader = nn.Linear(settings["shape"]["eye_width"], sum(sizes))
        learning = dict(nn.ModuleDict({"tower": tower, "reader": reader}).named_parameters())
        scenes = sample("train", settings["n_scenes"], settings["seed"])
        images, contents = image_tokenizer.pixels(scenes), image_tokenizer.cells(scenes)
        optimizers = build_optimizers(learning)
        for step in tqdm(range(settings["steps"]), desc="vision tower", unit="step"):
            batch = torch.randint(len(images), (settings["batch"],))
            loss = reading_loss(reader(patch_states(tower, images[batch])), targets(contents[batch]), sizes)
            loss.backward()
            nn.utils.clip_grad_norm_(learning.values(), 1.0)
            take_step(optimizers, learning_rate(step, settings["steps"], settings["learning_rate"], 0.05))
    return {name: tensor.detach().contiguous() for name, tensor in tower.state_dict().items()}


def patch_states(tower: PreTrainedModel, images: Tensor) -> Tensor:
    """What the language model gets of images, bytes (B, 3, 64, 64): the states of the patches, (B, 64, D), by rows."""
    return tower(image_tokenizer.scaled(images)).last_hidden_state[:, 1:]


def targets(contents: Tensor) -> Tensor:
    """(B, 64, 5) int64: the cell of each patch, and what stands there, by attribute.

    contents: (B, 9, 4), see `image_tokenizer.cells`.
    """
    place = cell_of_patches()
    return torch.cat([place.expand(len(contents), -1)[..., None], contents[:, place]], 2)


def cell_of_patches() -> Tensor:
    """(64,) int64: the cell of the grid that the middle of each patch is in, by rows as the cells are."""
    side = image_tokenizer.SIDE // image_tokenizer.PATCH
    third = (2 * torch.arange(side) + 1) * 3 // (2 * side)
    return (3 * third[:, None] + third).flatten()
