"""The minis before training: their recipes, their tokenizer, and networks with random weights.

    network, processor = native(shape, n_codes=512)      # Chameleon: an image is 64 codes of the vocabulary
    network, processor = adapted(shape)                  # LLaVA: 64 patches through a vision tower and a projector

All read 64 x 64 pixels as 8 x 8 image tokens, unless told to read larger or smaller pictures as more or fewer, and text
as whole words.  How they are trained is in `train`, the recipes in recipes.yml.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from peaks_and_gates.errors import UnknownName
from training.common import read_recipes, weights_folder
from training.scenes import words as scene_words

from .image_tokenizer import N_IMAGE, PATCH, side_of, vq_settings

MARKS = {"image_token": "<image>", "boi_token": "<begin>", "eoi_token": "<end>"}


def recipes(preset: str) -> dict[str, Any]:
    """What recipes.yml says for a preset: the codebook, the shape, the minis by name.  Raises UnknownName."""
    return read_recipes(Path(__file__).with_name("recipes.yml"), preset)


def settings_of(preset: str, name: str) -> dict[str, Any]:
    """A mini's own settings, put into the defaults.  Raises UnknownName."""
    known = recipes(preset)
    if name not in known["minis"]:
        raise UnknownName("mini", name, known["minis"])
    return known["defaults"] | known["minis"][name]


def recipe(preset: str, name: str, seed: int = 0) -> dict[str, Any]:
    """All that one mini is made from.  Raises UnknownName."""
    known, settings = recipes(preset), settings_of(preset, name)
    del settings["seeds"]
    own = {"seed": seed, "shape": known["shape"], "codebook": known["codebook"]}
    if settings["kind"] == "adapted":
        own["eyes"] = known["eyes"] | {"shape": known["shape"]}
    return settings | own


def minis_folder(preset: str) -> Path:
    """Where minis are kept: `weights/minis/` in the checkout for the book's own; a folder by preset for the others."""
    return weights_folder(preset) / "minis"


def tokenizer(n_codes: int) -> PreTrainedTokenizerFast:
    """One token per word, punctuation mark and line break; per image code, if there are any, one more.

    Case does not count.  Every text begins with "<s>".
    """
    special = ["<pad>", "<s>", "</s>", "<unk>", *MARKS.values()]
    words = [*special, "\n", *scene_words.vocabulary(), *code_names(n_codes)]
    by_word = Tokenizer(tokenizer_models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    by_word.normalizer = normalizers.Lowercase()
    by_word.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(Regex("[^A-Za-z]"), "isolated")]
    )
    by_word.decoder = decoders.WordPiece("##", cleanup=True)  # spaces between words, none before a full stop
    by_word.add_special_tokens([*special, *code_names(n_codes)])
    by_word.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    names = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>"}
    special_tokens = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=by_word, **special_tokens, extra_special_tokens=MARKS)


def code_names(n: int) -> list[str]:
    """The tokens of image codes, named as Chameleon wants them: "IMGIMG", digits written as letters, "Z"."""
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    return [f"IMGIMG{str(code).translate(letters)}Z" for code in range(n)]


def text_settings(shape: Mapping[str, Any], words: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The settings of a language model of a shape that reads these words."""
    ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    return {
        "hidden_size": shape["width"],
        "intermediate_size": shape["inner"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["heads"],
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "vocab_size": len(words),
        **ids,
    }


def native(
    shape: Mapping[str, Any], codebook: Mapping[str, Any], n_image: int = N_IMAGE
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A Chameleon with random weights: images are codes in the vocabulary of its words, n_image of them."""
    side = side_of(n_image)
    words = tokenizer(codebook["n_codes"])
    config = transformers.ChameleonConfig(
        **text_settings(shape, words), vocabulary_map=words.get_vocab(), vq_config=vq_settings(codebook)
    )
    images = transformers.ChameleonImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, rescale_factor=1 / 127.5
    )  # pixels from -1 to 1
    processor = transformers.ChameleonProcessor(images, words, image_seq_length=n_image)
    return _quiet(transformers.ChameleonForConditionalGeneration(config), processor)


def language_model(shape: Mapping[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A Llama with random weights: what an adapted mini is before it gets a vision tower."""
    words = tokenizer(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**text_settings(shape, words))), words


def adapted(shape: Mapping[str, Any], n_image: int = N_IMAGE) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A LLaVA with random weights: a language model, a vision tower and a projector; an image is n_image patches."""
    side = side_of(n_image)
    words = tokenizer(0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=shape["eye_width"],
        intermediate_size=4 * shape["eye_width"],
        num_hidden_layers=shape["eye_layers"],
        num_attention_heads=shape["eye_heads"],
        image_size=side,
        patch_size=PATCH,
    )
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**text_settings(shape, words)),
        vision_config=vision,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=n_image,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    images = transformers.CLIPImageProcessorPil(**size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    settings = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return _quiet(
        transformers.LlavaForConditionalGeneration(config), transformers.LlavaProcessor(images, words, **settings)
    )


def _quiet(network: PreTrainedModel, processor: ProcessorMixin) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The network, kept from writing an image token, for which it would have no features, into an answer."""
    network.generation_config.suppress_tokens = [processor.tokenizer.convert_tokens_to_ids(processor.image_token)]
    return network, processor
