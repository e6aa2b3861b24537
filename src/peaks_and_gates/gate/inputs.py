"""What goes into a vision-language model: images and texts as a batch, by its processor, without torchvision.

batch = encode(model, ["a.png"], ["<image> What is it?"])      # batch.inputs, batch.tokens

Images are prepared by PIL alone, so a reader with torchvision and one without get the same pixels and numbers.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from packaging.version import Version
from PIL import Image, ImageOps
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..errors import BadImage, BadParameter, ModelUnavailable
from .model import VisionLanguageModel
from .tokens import FAMILIES, TokenMap, token_map

ImageSource = Image.Image | bytes | str | Path  # bytes: of a file
PLACEHOLDER = "<image>"
# Before 5.23 processors wrote other tokens around a prompt than their models were trained with.
OLD_PROCESSORS = Version(transformers.__version__) < Version("5.23")
# What a processor must be told so that it writes the prompt and nothing after it.
PROMPT_ONLY = {"chameleon": {"return_for_text_completion": True}}
SMALLEST = 4  # pixels: processors take a side of 1 or 3 for the colour channels
EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}


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
    model: VisionLanguageModel, images: Sequence[ImageSource] | None, texts: Sequence[str], padding_side: str = "left"
) -> Batch:
    """Prompts of one image and a text each, or of text alone, as a batch.

    images: B PIL images or files, see `open_image`; None for text alone.  texts: B texts, each with "<image>" once
    where the image belongs, without it where there is none; the model's template goes around them.
    padding_side: left or right.  Positions count from each prompt's first token, so neither side nor batch mates
    change what a model computes.
    Raises BadImage, BadParameter.
    """
    if isinstance(texts, str) or (images is not None and len(images) != len(texts)):
        raise BadParameter(f"Give a list of texts, and one image for each; got {images!r:.60} and {texts!r:.60}.")
    written = [_write(model, text, images is not None, row) for row, text in enumerate(texts)]
    given = {} if images is None else {"images": [open_image(image, f"Image {i}") for i, image in enumerate(images)]}
    # A template may open with the token that the tokenizer would put there too.
    opened = model.tokenizer.bos_token is not None and model.template.startswith(model.tokenizer.bos_token)
    settings = {"padding": True, "padding_side": padding_side, "add_special_tokens": not opened, "return_tensors": "pt"}
    prompt_only = PROMPT_ONLY.get(model.network.config.model_type, {})
    inputs = model.processor(text=list(written), **given, **settings, **prompt_only)
    inputs = {name: value for name, value in inputs.items() if name != "token_type_ids"}
    ids, mask = inputs["input_ids"], inputs["attention_mask"]  # (B, T)
    for row, (row_ids, prompt) in enumerate(zip(ids, mask.bool(), strict=True)):
        if row_ids[prompt][:2].tolist() == [model.tokenizer.bos_token_id] * 2:
            raise BadParameter(f"Text {row} begins with {model.tokenizer.bos_token} twice: leave it to the processor.")
    # No family counts positions from the mask by itself in a plain forward pass.
    inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)  # (B, T)
    place = lambda value: value.to(model.device, model.network.dtype if value.is_floating_point() else None)
    inputs = {name: place(value) for name, value in inputs.items()}
    tokens = token_map(model.family, model.processor, model.network.config, ids.to(model.device), mask, bool(given))
    return Batch(inputs, tokens, tuple(written))


def _write(model: VisionLanguageModel, text: str, with_image: bool, row: int) -> str:
    """A text in the model's template, its placeholder replaced by image token and marks.  Raises BadImage."""
    count = text.count(PLACEHOLDER)
    if count != with_image:
        raise BadImage(f"Text {row} has {count} {PLACEHOLDER}, where {int(with_image)} belongs: {text!r}.")
    processor, image = model.processor, model.processor.image_token
    if model.family.marks:
        image = f"{processor.image_start_token}{image}{processor.image_end_token}"
    return model.template.replace("{prompt}", text.replace(PLACEHOLDER, image))


def open_image(image: ImageSource, name: str) -> Image.Image:
    """An image, its bytes or file, as RGB: upright, grey and palettes spread to colours, what is transparent on white.

    name: of the image, for an error.
    Raises BadImage: not there, not readable, animated, not of eight bits, a side below 4 pixels.
    """
    try:
        file = io.BytesIO(image) if isinstance(image, bytes) else image
        opened = image if isinstance(image, Image.Image) else Image.open(file)
        opened.load()
        upright = ImageOps.exif_transpose(opened)
    except Exception as error:  # of a damaged file, decoders raise whatever they stumble over
        raise BadImage(f"{name} cannot be read ({error}). Check the path, or save it anew as PNG or JPEG.") from error
    frames = getattr(opened, "n_frames", 1)
    if min(opened.size) < SMALLEST or frames > 1 or opened.mode not in EIGHT_BITS:
        size = f"{opened.width} x {opened.height} pixels of the kind {opened.mode}, {frames} frames"
        advice = f"save it as one frame, RGB of 8 bits a channel, at least {SMALLEST} pixels a side"
        raise BadImage(f"{name} has {size}: {advice}.")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    return upright.convert("RGB")


# The two classes below have the names of the transformers classes that they stand in for: a model saved with one of
# them is read by the other.


class LlavaOnevisionProcessor(transformers.LlavaOnevisionProcessor):
    """The processor of LLaVA-OneVision without its video part, which alone needs torchvision.

    image_start_token, image_end_token: the chat marks that the paper's code writes around the image.
    """

    image_start_token, image_end_token = "<|im_start|>", "<|im_end|>"

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Names of the parts."""
        return ["image_processor", "tokenizer"]


class PixtralProcessor(ProcessorMixin):
    """A processor for Pixtral: transformers' own one cannot be imported without torchvision.

    An image is its rows of image tokens; every row but the last closes with the break token, the last one with the
    end token.
    """

    text_kwargs = {"return_tensors": "pt"}  # noqa: RUF012 - the form that the base class reads
    images_kwargs = {"return_tensors": "pt"}  # noqa: RUF012

    def __init__(
        self, image_processor=None, tokenizer=None, patch_size=16, spatial_merge_size=1, chat_template=None,
        image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]",
    ):  # fmt: skip
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token, self.image_break_token, self.image_end_token = image_token, image_break_token, image_end_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

    def _process_images(self, images, **kwargs):
        return super()._process_images(images, **kwargs | {"patch_size": self.patch_size * self.spatial_merge_size})

    def replace_image_token(self, image_inputs, image_idx, **kwargs) -> str:
        """The text that stands for one image, from the size in pixels that it was brought to."""
        side = self.patch_size * self.spatial_merge_size
        height, width = (int(pixels) // side for pixels in image_inputs["image_sizes"][image_idx])
        rows = [self.image_token * width] * height
        return self.image_break_token.join(rows) + self.image_end_token


def processor_class(family: str) -> type[ProcessorMixin]:
    """The class that prepares a family's images.  family: a key of `tokens.FAMILIES`."""
    name = FAMILIES[family].processor
    return globals().get(name) or getattr(transformers, name)


def load_processor(family: str, source: str, revision: str | None = None) -> ProcessorMixin:
    """The processor of a family with the settings stored beside a model.

    source: a folder, or a hub repository, then at the commit `revision`.
    Raises ModelUnavailable if what is stored is the processor of another family, and what transformers raises.
    """
    if family == "emu3" and OLD_PROCESSORS:
        advice = "update it (pip install --upgrade transformers), or take another model"
        raise ModelUnavailable(f"{source} is not read aright by transformers {transformers.__version__}: {advice}.")
    kind = processor_class(family)
    settings, _ = kind.get_processor_dict(source, revision=revision)
    stored = settings.get("processor_class", kind.__name__)
    if stored != kind.__name__:
        raise ModelUnavailable(f"{source} holds a {stored}, where its model needs a {kind.__name__}.")
    images = AutoImageProcessor.from_pretrained(source, revision=revision, backend="pil", trust_remote_code=False)
    # As transformers does: some of Pixtral's are stored under the name of Llama's class, which splits otherwise.
    tokenizers = PreTrainedTokenizerFast if family == "pixtral" else AutoTokenizer
    tokenizer = tokenizers.from_pretrained(source, revision=revision, trust_remote_code=False)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # any will do: the mask says what is padding
    if family == "chameleon" and OLD_PROCESSORS:
        tokenizer.sep_token = ""  # is written behind every prompt, whatever PROMPT_ONLY asks for
    return kind.from_args_and_dict([images, tokenizer], settings)


def encode_once(network: PreTrainedModel) -> None:
    """Keep the codes of every image that a network has seen; a network without an image tokenizer is left as it is.

    Once, because the methods here ask many things about one image, and encoding it takes longer than reading it.
    Alone, because codes must not depend on batch mates: Emu3 pads the images of a batch to the largest, and the norms
    of its encoder see the padding; and the last bit of a convolution, which can turn a code, depends on the batch.
    Raises ModelUnavailable, when it runs, if a code is not embedded as the vocabulary's token of its number: numbers of
    the codebook are ids of other tokens, mostly of other codes, so nothing else would show it.
    """
    encode = getattr(network.model, "get_image_tokens", None)
    if encode is None:
        return
    known: dict[str, Tensor] = {}
    mapping, embed = network.model.vocabulary_mapping, network.get_input_embeddings()

    def codes(image: Tensor, size: Tensor | None) -> Tensor:
        """(n,) int64.  image: (3, H, W).  size: of Emu3, (1, 2), height and width without the padding."""
        if size is not None:
            height, width = size[0].tolist()
            image = image[:, :height, :width]
        key = hashlib.sha256(image.contiguous().view(torch.uint8).numpy(force=True)).hexdigest() + str(image.shape)
        if key not in known:
            image = image.to(next(network.model.vqmodel.parameters()).device)  # of a model on several devices
            outputs = []
            with network.model.vqmodel.quantize.register_forward_hook(lambda *parts: outputs.append(parts[-1])):
                ids = encode(image[None], *[] if size is None else [size]).flatten().to(embed.weight.device)
            numbers = outputs[0][-1] if isinstance(outputs[0], tuple) else outputs[0]  # in the codebook
            expected = [mapping.img2bpe[number] for number in numbers.flatten().tolist()]
            if ids[ids != getattr(mapping, "eol_token_id", -1)].tolist() != expected:  # without Emu3's ends of rows
                raise ModelUnavailable("The codes of an image are not embedded as the image tokens of the vocabulary.")
            known[key] = ids
        return known[key]

    def get_image_features(pixel_values: Tensor, image_sizes: Tensor | None = None, **_) -> BaseModelOutputWithPooling:
        """As transformers' own, but for what only training needs."""
        sizes = [None] * len(pixel_values) if image_sizes is None else image_sizes.split(1)
        features = [embed(codes(*one)) for one in zip(pixel_values, sizes, strict=True)]  # B x (n, D)
        return BaseModelOutputWithPooling(pooler_output=features if image_sizes is not None else torch.stack(features))

    network.model.get_image_features = get_image_features
