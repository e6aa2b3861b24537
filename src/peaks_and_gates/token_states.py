"""The states of some tokens of many prompts with an image, kept on the disk; and such prompts as batches.

states = token_states.read(study, pictures, texts, {"end": lambda tokens, seeds: tokens.where("end")}, "end")
states.layer("end", 12)      # (N, D)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import store
from .gate import vlm
from .gate.patching import read_states, single_position
from .gate.tokens import TokenMap
from .gate.vlm import Batch, VisionLanguageModel
from .pictures import Picture

if TYPE_CHECKING:
    from .gate.study import Study

CODE = ("token_states", *(f"gate.{name}" for name in ("attention", "inputs", "patching", "tokens", "vlm")))
SHARD = 64  # pictures an artifact holds: what a killed run may lose
Choice = Callable[[TokenMap, list[int]], Tensor]  # a token map and a seed a row, to one token a row, (B, T) bool


def batches(
    study: Study, shown: Sequence[Picture], texts: Sequence[str], title: str
) -> Iterator[tuple[VisionLanguageModel, Batch, list[int]]]:
    """The prompts as batches for the model, with a seed for each row, and a progress bar.

    A row's seed is its picture's and the study's alone: what is drawn with it does not depend on the batch.
    """
    model = study.network()
    with tqdm(total=len(shown), desc=f"{study.model}, {title}", unit="picture") as progress:
        for start in range(0, len(shown), study.batch_size):
            part = slice(start, start + study.batch_size)
            seeds = [int(store.digest([picture.key, study.seed])[:8], 16) for picture in shown[part]]
            yield model, vlm.encode(model, [picture.image for picture in shown[part]], texts[part]), seeds
            progress.update(len(shown[part]))


class TokenStates:
    """Residual streams of some tokens of many prompts, in shards on the disk; read layer by layer."""

    def __init__(self, shards: Sequence):
        self.shards = shards

    def layer(self, token: str, layer: int) -> Tensor:
        """(N, D) float32: the states of a token in all prompts.  layer: 0 … L."""
        return torch.cat([shard.get_slice(token)[:, layer] for shard in self.shards]).float()

    @property
    def n_layers(self) -> int:
        """L."""
        return self.shards[0].get_slice(next(iter(self.shards[0].keys()))).get_shape()[1] - 1


def read(
    study: Study,
    shown: Sequence[Picture],
    texts: Sequence[str],
    tokens: Mapping[str, Choice],
    title: str,
    inside: Callable[[VisionLanguageModel, TokenMap, list[int]], object] | None = None,
    inputs: Mapping[str, object] | None = None,
) -> TokenStates:
    """Residual streams, before every block and after the last one, of chosen tokens of every prompt.

    Args:
        study: of the model.
        shown: N pictures.
        texts: N prompts.
        tokens: by name, what picks one token a row from a token map and a seed a row, as a set (B, T) bool.
        title: of the progress bar.
        inside: a context to run the model in, such as a knockout; named in `inputs`.
        inputs: what else the states depend on, for the store's key.
    """
    described = vlm.describe(study.model) | {"dtype": study.dtype, "batch_size": study.batch_size}
    shards = []
    for start in range(0, len(shown), SHARD):
        part = slice(start, start + SHARD)

        def compute(part: slice = part) -> dict[str, Tensor]:
            found: dict[str, list[Tensor]] = {name: [] for name in tokens}
            for model, batch, seeds in batches(study, shown[part], texts[part], title):
                with ExitStack() as stack, torch.inference_mode():
                    if inside is not None:
                        stack.enter_context(inside(model, batch.tokens, seeds))
                    states = {
                        name: stack.enter_context(read_states(model, single_position(choose(batch.tokens, seeds))))
                        for name, choose in tokens.items()
                    }
                    model.network(**batch.inputs, logits_to_keep=1, use_cache=False)
                for name, read in states.items():
                    found[name].append(read.residual.cpu())
            return {name: torch.cat(parts) for name, parts in found.items()}

        key = {"model": described, "pictures": [p.key for p in shown[part]], "texts": list(texts[part])}
        shards.append(store.tensors("token_states", key | {"tokens": list(tokens)} | dict(inputs or {}), compute, CODE))
    return TokenStates(shards)
