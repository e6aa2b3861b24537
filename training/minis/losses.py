"""The losses of the minis: on text, on images, and the share of attention that a penalised one pays for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from peaks_and_gates.gate.attention import closed_pairs
from training.scenes.drawing import draw

from .data import Lessons, Packed

RAMP = 150  # steps in which a penalty grows to its full size


def loss_of(
    network: PreTrainedModel,
    processor: Any,
    lessons: Lessons,
    codes: Tensor | None,
    settings: Mapping[str, Any],
    step: int,
) -> tuple[Tensor, float]:
    """The loss of a step, and the part of it that is on text."""
    size, kind = settings["batch"], settings["kind"]
    if kind == "text-only":
        loss = text_loss(network, lessons.batch(step, size, "caption"))
        return loss, loss.item()
    if kind == "adapted":
        packed = lessons.batch(step, size, "image")
        pictures = [draw(scene, lessons.side) for scene in packed.scenes]
        pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"].to(network.device)
        loss = text_loss(network, packed, pixel_values=pixels)
        return loss, loss.item()
    packed = with_codes(lessons.batch(step, size, "marked image"), codes[lessons.chosen(step, size)])
    hidden, share = states(network, packed, settings["closed"] or settings["wiring"], bool(settings["penalty"]))
    text = predicted(network, hidden, packed)
    loss = text + settings["penalty"] * min(1.0, (step + 1) / RAMP) * share
    if settings["image_loss"]:
        # Fewer images after a text than before one: they take as long, and teach little about reading.
        few = with_codes(lessons.batch(step, size // 4, "caption, image"), codes[lessons.chosen(step, size // 4)])
        after, _ = states(network, few, None, False)
        images = torch.cat([image_losses(network, hidden, packed), image_losses(network, after, few)])
        loss = loss + settings["image_loss"] * images.mean()
    return loss, text.item()


def with_codes(packed: Packed, codes: Tensor) -> Packed:
    """The batch with the image's codes in place of its image tokens.  codes: (B, n_image)."""
    ids = packed.ids.clone()
    ids[packed.tokens.where("image")] = codes.flatten().to(ids)
    return Packed(**vars(packed) | {"ids": ids})


def states(
    network: PreTrainedModel, packed: Packed, wiring: str | None, penalised: bool, **inputs: Tensor
) -> tuple[Tensor, Tensor | float]:
    """What the head reads, (B, T, D), and, if penalised, the share of the text's attention that is on image tokens."""
    reads = packed.reads
    if wiring:
        reads = reads & ~closed_pairs(packed.tokens, wiring)
    mask = reads[:, None].to(network.device)  # (B, 1, T, T)
    if network.config._attn_implementation == "eager":
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
    output = network.model(
        input_ids=packed.ids.to(network.device),
        attention_mask=mask,
        position_ids=packed.positions.to(network.device),
        use_cache=False,
        output_attentions=penalised,
        **inputs,
    )
    if not penalised:
        return output.last_hidden_state, 0.0
    image, text = packed.tokens.where("image"), packed.tokens.where("after")  # (B, T)
    pairs = (text[:, :, None] & image[:, None, :]).float()[:, None].to(network.device)  # (B, 1, T, T)
    mass = torch.stack([(weights * pairs).sum((1, 2, 3)).sum() / weights.shape[1] for weights in output.attentions])
    return output.last_hidden_state, mass.mean() / text.sum()


def predicted(network: PreTrainedModel, hidden: Tensor, packed: Packed) -> Tensor:
    """Mean cross-entropy of what a batch is to predict; the head runs at these places alone."""
    logits = network.get_output_embeddings()(hidden[packed.rows, packed.places])  # (M, V)
    return cross_entropy(logits.float(), packed.targets.to(logits.device))


def text_loss(network: PreTrainedModel, packed: Packed, **inputs: Tensor) -> Tensor:
    """The loss of a model that reads images by a tower, or none."""
    return predicted(network, states(network, packed, None, False, **inputs)[0], packed)


def image_losses(network: PreTrainedModel, hidden: Tensor, packed: Packed) -> Tensor:
    """Cross-entropy (M,) of every image token, predicted from the token before it."""
    image = packed.tokens.where("image")
    before = image.roll(-1, 1)
    logits = network.get_output_embeddings()(hidden[before.to(hidden.device)])  # (M, V)
    return cross_entropy(logits.float(), packed.ids[image].to(logits.device), reduction="none")
