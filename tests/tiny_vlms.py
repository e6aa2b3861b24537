"""Vision-language models made on the spot: random weights, real architectures, a family each.

model = vlm.load(str(tiny_vlm("chameleon")), torch.float32, "cpu")
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessorPil,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    MistralConfig,
    PixtralImageProcessorPil,
    PixtralVisionConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2Config,
    SiglipVisionConfig,
)

from peaks_and_gates.cache import cache_folder, made_once
from peaks_and_gates.gate.inputs import processor_class

SIDE, PATCH = 32, 8  # pixels: an image, or a tile of one, is 4 x 4 tokens
N_CODES = 256  # size of the codebook of the families that write images as tokens
SPREAD = 0.2  # of the weights, large enough that different images give clearly different logits
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": SPREAD,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "initializer_range": SPREAD,
}
# The codes' encoder, 32 channels because its norms have 32 groups.
CODES = {"base_channels": 32, "num_res_blocks": 1}


def tiny_vlm(family: str, seed: int = 0) -> Path:
    """The folder of a random four-layer model of a family and its processor, made at the first call.

    family: a key of `tokens.FAMILIES`.  float32, about 0.3 M parameters, a byte-level tokenizer, 16 image tokens per
    image or tile.
    """

    def save(folder: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, processor = MAKERS[family]()
        # A random model would write image tokens, for which there are no features, into its answers.
        image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        network.generation_config.suppress_tokens = [image]
        network.save_pretrained(folder)
        processor.save_pretrained(folder)

    source = sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    folder = cache_folder() / "models" / f"tiny-{family.replace('_', '-')}-{seed}-{source}"
    return made_once(folder, {"family": family, "seed": seed}, save)


def byte_tokenizer(special: list[str], bos: bool, names: dict[str, str] | None = None) -> PreTrainedTokenizerFast:
    """One token per byte, and the special tokens.

    bos: whether "<s>" is put before every text.  names: attributes of the tokenizer that name a special token.
    """
    special = ["<pad>", "<s>", "</s>", *special]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*special, *symbols])}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        extra_special_tokens=names or {},
    )


def text_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    """The settings of a language model that go with a tokenizer."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    return TEXT | ids | {"vocab_size": len(tokenizer)}


def chameleon() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Chameleon: images as codes of the vocabulary, queries and keys normalised."""
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    codes = [f"IMGIMG{str(code).translate(letters)}Z" for code in range(N_CODES)]
    names = {"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
    tokenizer = byte_tokenizer([*names.values(), *codes], bos=True, names=names)
    config = ChameleonConfig(
        **text_settings(tokenizer),
        vocabulary_map=tokenizer.get_vocab(),
        vq_config={
            **CODES,
            "num_embeddings": N_CODES,
            "embed_dim": 16,
            "latent_channels": 16,
            "resolution": SIDE,
            "channel_multiplier": [1, 1, 1, 1],  # halved three times: 8 pixels a code
            "initializer_range": SPREAD,
        },
    )
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    processor = processor_class("chameleon")(ChameleonImageProcessorPil(**size), tokenizer, image_seq_length=16)
    return ChameleonForConditionalGeneration(config), processor


def emu3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Emu3: images as codes of the vocabulary, their size in tokens written before them."""
    names = {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
    }
    codes = [f"<|visual token {code:06d}|>" for code in range(N_CODES)]
    tokenizer = byte_tokenizer([*names.values(), "<|extra_200|>", *codes], bos=False, names=names)
    vision = {
        **CODES,
        "codebook_size": N_CODES,
        "channel_multiplier": [1, 1, 1, 1],
        "attn_resolutions": [3],
        "hidden_size": CODES["base_channels"],
    }
    config = Emu3Config(text_config=text_settings(tokenizer), vq_config=vision, vocabulary_map=tokenizer.get_vocab())
    images = Emu3ImageProcessor(min_pixels=SIDE**2, max_pixels=SIDE**2, spatial_factor=PATCH)
    return Emu3ForConditionalGeneration(config), processor_class("emu3")(images, tokenizer)


def janus() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Janus: image features between a begin and an end token; it writes images by codes that it does not read."""
    names = {
        "image_token": "<image_placeholder>",
        "boi_token": "<begin_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = byte_tokenizer([*names.values()], bos=True, names=names)
    width = TEXT["hidden_size"]
    vision = VISION | {"patch_size": PATCH, "projection_dim": width, "num_image_tokens": 16, "mlp_ratio": 2.0}
    codes = {
        **CODES,
        "num_embeddings": N_CODES,
        "channel_multiplier": [1, 1],
        "latent_channels": 16,
        "projection_dim": width,
        "image_token_embed_dim": width,
    }
    config = JanusConfig(
        text_config=LlamaConfig(**text_settings(tokenizer)).to_dict(),
        vision_config=vision,
        vq_config=codes,
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    images = JanusImageProcessorPil(size={"height": SIDE, "width": SIDE}, min_size=PATCH)
    return JanusForConditionalGeneration(config), processor_class("janus")(images, tokenizer, num_image_tokens=16)


def llava() -> tuple[PreTrainedModel, ProcessorMixin]:
    """LLaVA: image features and nothing around them."""
    tokenizer = byte_tokenizer(["<image>"], bos=True)
    config = LlavaConfig(
        text_config=LlamaConfig(**text_settings(tokenizer)),
        vision_config=CLIPVisionConfig(**VISION, patch_size=PATCH),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    settings = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaForConditionalGeneration(config), processor_class("llava")(images, tokenizer, **settings)


def llava_onevision() -> tuple[PreTrainedModel, ProcessorMixin]:
    """LLaVA-OneVision: the image and its tiles, every row of them with one more feature."""
    tokenizer = byte_tokenizer(["<image>", "<video>"], bos=False)
    grid = [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    config = LlavaOnevisionConfig(
        text_config=Qwen2Config(**text_settings(tokenizer)),
        vision_config=SiglipVisionConfig(**VISION, patch_size=PATCH, vision_use_head=False),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    images = LlavaOnevisionImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=grid)
    processor = processor_class("llava_onevision")(
        images, tokenizer, num_image_tokens=16, vision_feature_select_strategy="full"
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def pixtral() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Pixtral: rows of image features with a break token between them and an end token after the last."""
    tokenizer = byte_tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]"], bos=True)
    config = LlavaConfig(
        text_config=MistralConfig(**text_settings(tokenizer), sliding_window=None),
        vision_config=PixtralVisionConfig(**VISION, patch_size=PATCH),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        multimodal_projector_bias=True,
    )
    images = PixtralImageProcessorPil(size={"longest_edge": SIDE}, patch_size={"height": PATCH, "width": PATCH})
    return LlavaForConditionalGeneration(config), processor_class("pixtral")(images, tokenizer, patch_size=PATCH)


def idefics3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Idefics3: the tiles of the image, each behind a tag with its row and column, and then the whole image."""
    tags = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    marks = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    tokenizer = byte_tokenizer([*marks, *tags], bos=False)
    config = Idefics3Config(
        text_config=LlamaConfig(**text_settings(tokenizer)),
        vision_config=VISION | {"patch_size": PATCH // 2},  # four patches are shuffled into one token
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    images = Idefics3ImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    return Idefics3ForConditionalGeneration(config), processor_class("idefics3")(images, tokenizer, image_seq_len=16)


MAKERS = {maker.__name__: maker for maker in (chameleon, emu3, janus, llava, llava_onevision, pixtral, idefics3)}
