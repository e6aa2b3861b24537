"""Train the vision tower of the adapted minis to tell what stands where in a picture, before it meets a language model.

A LLaVA gets a tower that can see already: CLIP's, which learned from captions (Radford et al. 2021).  Here a reader
must find in the tower's patches what stands in each cell, the very task that the image tokenizer of the native minis
had, so that neither architecture was taught more about pictures than the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from . import codebook, minis, parts, scenes, training_state
from .finetune import learning_rate
from .progress import bar

CODE = ("eyes", "minis", "training_state", *codebook.CODE)


def eyes(settings: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights of the vision tower, float32; see `parts.part`."""
    return parts.part(settings, path, lambda: train(settings), CODE)


def train(settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Train a tower of the shape in the settings; see `eyes`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        tower = minis.adapted(settings["shape"])[0].model.vision_tower.train()
        reader = codebook.Reader(settings["shape"]["eye_width"])
        learning = dict(nn.ModuleDict({"tower": tower, "reader": reader}).named_parameters())
        shown = scenes.sample("train", settings["n_scenes"], settings["seed"])
        images, contents = codebook.pixels(shown), codebook.cells(shown)
        optimizers = training_state.optimizers_of(learning)
        steps = settings["steps"]
        with bar(total=steps, desc="vision tower", unit="step") as progress:
            for step in range(steps):
                rate = learning_rate(step, steps, settings["learning_rate"], 0.05)
                chosen = torch.randint(len(images), (settings["batch"],))
                loss = codebook.reading_loss(reader(seen(tower, images[chosen])), contents[chosen])
                loss.backward()
                nn.utils.clip_grad_norm_(learning.values(), 1.0)
                training_state.step(optimizers, rate)
                progress.update()
                progress.set_postfix(read=f"{loss.item():.3f}")
    return {name: tensor.detach().contiguous() for name, tensor in tower.state_dict().items()}


def seen(tower: PreTrainedModel, images: Tensor) -> Tensor:
    """What the language model gets of images, bytes (B, 3, 64, 64): the states of the patches, (B, D, 8, 8)."""
    states = tower(codebook.scaled(images)).last_hidden_state[:, 1:]
    side = codebook.SIDE // codebook.PATCH
    return states.transpose(1, 2).reshape(len(images), -1, side, side)
