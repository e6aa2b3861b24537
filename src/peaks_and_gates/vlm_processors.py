"""Processors of vision-language models, all without torchvision: images are prepared by PIL alone.

A reader with torchvision and one without get the same pixels, hence the same numbers.
"""

from __future__ import annotations

import transformers
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    ChameleonProcessor,
    Emu3Processor,
    Idefics3Processor,
    JanusProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from .errors import ModelUnavailable

# The two classes below have the names of the transformers classes that they stand in for: a model saved with one of
# them is read by the other.


class LlavaOnevisionProcessor(transformers.LlavaOnevisionProcessor):
    """The processor of LLaVA-OneVision without its video part, which alone needs torchvision."""

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_image_tokens=None,
        vision_feature_select_strategy=None,
        chat_template=None,
        image_token="<image>",
        video_token="<video>",
        vision_aspect_ratio="anyres_max_9",
    ):
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.num_image_tokens = num_image_tokens
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.image_token, self.video_token = image_token, video_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.vision_aspect_ratio = vision_aspect_ratio


class PixtralProcessor(ProcessorMixin):
    """A processor for Pixtral: transformers' own one cannot be imported without torchvision.

    An image is its rows of image tokens; every row but the last closes with the break token, the last one with the
    end token.
    """

    text_kwargs = {"return_tensors": "pt"}  # noqa: RUF012 - the form that the base class reads
    images_kwargs = {"return_tensors": "pt"}  # noqa: RUF012

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size=16,
        spatial_merge_size=1,
        chat_template=None,
        image_token="[IMG]",
        image_break_token="[IMG_BREAK]",
        image_end_token="[IMG_END]",
    ):
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


# By the key of the family in `tokens.FAMILIES`.
PROCESSORS: dict[str, type[ProcessorMixin]] = {
    "chameleon": ChameleonProcessor,
    "emu3": Emu3Processor,
    "janus": JanusProcessor,
    "llava": LlavaProcessor,
    "llava_onevision": LlavaOnevisionProcessor,
    "pixtral": PixtralProcessor,
    "idefics3": Idefics3Processor,
}


def load_processor(family: str, source: str, revision: str | None = None) -> ProcessorMixin:
    """The processor of a family with the settings stored beside a model.

    source: a folder, or a hub repository, then at the commit `revision`.
    Raises ModelUnavailable if what is stored is the processor of another family, and what transformers raises.
    """
    kind = PROCESSORS[family]
    settings, _ = kind.get_processor_dict(source, revision=revision)
    stored = settings.get("processor_class", kind.__name__)
    if stored != kind.__name__:
        raise ModelUnavailable(
            f"The model in {source} reads images as {kind.__name__} prepares them, but a {stored} is stored beside it. "
            "Put the processor's files of the same model there."
        )
    images = AutoImageProcessor.from_pretrained(source, revision=revision, backend="pil", trust_remote_code=False)
    # As transformers does: some of Pixtral's are stored under the name of Llama's class, which splits otherwise.
    tokenizers = PreTrainedTokenizerFast if family == "pixtral" else AutoTokenizer
    tokenizer = tokenizers.from_pretrained(source, revision=revision, trust_remote_code=False)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # any will do: padding is told by the mask
    return kind.from_args_and_dict([images, tokenizer], settings)
