"""Images and texts as a batch that a vision-language model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from .errors import BadImage, BadParameter, ModelUnavailable
from .tokens import TokenMap, family_of, token_map
from .vlm_images import open_image
from .vlm_model import VisionLanguageModel
from .vlm_processors import PROCESSORS

PLACEHOLDER = "<image>"
# What a processor must be told so that it writes the prompt and nothing after it.
PROMPT_ONLY = {"chameleon": {"return_for_text_completion": True}}


@dataclass(frozen=True)
class Batch:
    """Prompts ready for a forward pass.

    inputs: what the network takes, on its device, floats in its dtype; B rows of T tokens.  tokens: what they are.
    texts: the B texts as they were written out, image token and template included.
    """

    inputs: dict[str, Tensor]
    tokens: TokenMap
    texts: tuple[str, ...]


def encode(
    model: VisionLanguageModel,
    images: Sequence[Image.Image | str | Path] | None,
    texts: Sequence[str],
    padding_side: str = "left",
) -> Batch:
    """Prompts of one image and a text each, or of text alone, as a batch.

    images: B PIL images or files, see `vlm_images.open_image`; None for text alone.  texts: B texts, each with
    "<image>" once where the image belongs, without it where there is none; the model's template goes around them.
    padding_side: left or right.  Positions count from each prompt's first token, so neither side nor batch mates
    change what a model computes.
    Raises BadImage, BadParameter; ModelUnavailable if the processor is of another family than the network.
    """
    if padding_side not in ("left", "right"):
        raise BadParameter(f"padding_side must be left or right, not '{padding_side}'.")
    if isinstance(texts, str) or not len(texts):
        raise BadParameter("Give a list of at least one text.")
    if images is not None and (isinstance(images, str | Path | Image.Image) or len(images) != len(texts)):
        raise BadParameter(f"Give a list of as many images as texts, one for each; there are {len(texts)} texts.")
    key = _family_of_both(model)
    token = model.processor.image_token
    written = [_write(model.template, text, token, images is not None, row) for row, text in enumerate(texts)]
    given = {} if images is None else {"images": [open_image(image, f"Image {i}") for i, image in enumerate(images)]}
    # A template may open with the token that the tokenizer would put there too.
    opened = model.tokenizer.bos_token is not None and model.template.startswith(model.tokenizer.bos_token)
    try:
        inputs = model.processor(
            text=list(written),
            **given,
            padding=True,
            padding_side=padding_side,
            add_special_tokens=not opened,
            return_tensors="pt",
            **PROMPT_ONLY.get(key, {}),
        )
    except ValueError as error:
        sizes = ", ".join(f"{image.width} x {image.height}" for image in given.get("images", []))
        raise BadImage(
            f"The processor of {model.name} refuses this batch: {error}. Its images, in pixels: {sizes or 'none'}. "
            "A cause may be an image that is far longer than wide, or far wider than long: cut it."
        ) from error
    inputs = {name: value for name, value in inputs.items() if name != "token_type_ids"}
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for row, (row_ids, prompt) in enumerate(zip(ids, mask.bool(), strict=True)):
        if row_ids[prompt][:2].tolist() == [model.tokenizer.bos_token_id] * 2:
            raise BadParameter(f"Text {row} begins with {model.tokenizer.bos_token} twice: leave it to the processor.")
    # No family counts positions from the mask by itself in a plain forward pass.
    inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    place = lambda value: value.to(model.device, model.dtype if value.is_floating_point() else None)
    inputs = {name: place(value) for name, value in inputs.items()}
    tokens = token_map(model.family, model.processor, model.network.config, ids.to(model.device), mask, bool(given))
    return Batch(inputs, tokens, tuple(written))


def _family_of_both(model: VisionLanguageModel) -> str:
    """The key in FAMILIES of a model, network and processor.  Raises ModelUnavailable if they are of two families.

    By the names of the classes, which those of `vlm_processors` share with the ones they stand in for.
    """
    key = family_of(model.network.config)
    wanted, found = PROCESSORS[key].__name__, type(model.processor).__name__
    if found != wanted:
        raise ModelUnavailable(
            f"{model.name} is of the family {model.family.name}, whose images {wanted} prepares, but it was given a "
            f"{found}. Take the processor of the same model, as `vlms.load` does."
        )
    return key


def _write(template: str, text: str, token: str, with_image: bool, row: int) -> str:
    """A text in the model's template, the placeholder replaced by the processor's image token.

    Raises BadImage, BadParameter.
    """
    found = text.count(PLACEHOLDER)
    if with_image and found == 0:
        raise BadImage(f"Text {row} has no {PLACEHOLDER}, but an image was given: {text!r}. Put it where it belongs.")
    if with_image and found > 1:
        raise BadImage(
            f"Text {row} has {found} {PLACEHOLDER}; the methods here are for one image a prompt, so keep one: {text!r}."
        )
    if not with_image and found:
        raise BadImage(
            f"Text {row} has {PLACEHOLDER}, but no images were given: {text!r}. Give an image for every text, or leave "
            f"{PLACEHOLDER} out."
        )
    if token != PLACEHOLDER and token in text:
        raise BadParameter(f"Text {row} has {token} in it: write {PLACEHOLDER} for the image, whatever the model.")
    return template.replace("{prompt}", text.replace(PLACEHOLDER, token))
