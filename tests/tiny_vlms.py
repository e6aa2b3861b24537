"""Vision-language models made on the spot, random weights in real architectures, and what the tests of the gate share.

model = load("chameleon")
logits(model, encoded(model))     # (B, T, V), three pictures with texts of other lengths
"""

from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as tokenizer_models

from peaks_and_gates.cache import cache_folder, made_once
from peaks_and_gates.gate import vlm
from peaks_and_gates.gate.inputs import OLD_PROCESSORS, processor_class

SIDE, PATCH = 32, 8  # pixels: an image, or a tile of one, is 4 x 4 tokens
N_CODES = 256  # size of the codebook of the families that write images as tokens
# Of the weights: large enough that different images give clearly different logits.
SPREAD = {"initializer_range": 0.2}
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "max_position_embeddings": 2048}
TEXT = SIZES | SPREAD | {"num_attention_heads": 4, "num_key_value_heads": 2}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= SPREAD | {"image_size": SIDE}
# The codes' encoder, 32 channels because its norms have 32 groups.
CODES = {"base_channels": 32, "num_res_blocks": 1}
EDGE, SQUARE = {"shortest_edge": SIDE}, {"height": SIDE, "width": SIDE}
TEXTS = ["<image> What is this?", "<image> Red, or rather a dark shade of green?", "<image> How many?"]


def tiny_vlm(family):
    """The folder of a random four-layer model of a family and its processor, made at the first call.

    family: a key of `tokens.FAMILIES`, or chameleon-34b.  float32, about 0.3 M parameters, a byte-level tokenizer, 16
    image tokens per image or tile.
    """

    if family == "emu3" and OLD_PROCESSORS:
        pytest.skip(f"transformers {hf.__version__} does not read it aright")

    def save(folder):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network, processor = MAKERS[family]()
        # A random model would write image tokens, for which there are no features, into its answers.
        image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        network.generation_config.suppress_tokens = [image]
        network.save_pretrained(folder)
        processor.save_pretrained(folder)

    source = sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    folder = cache_folder() / "models" / f"tiny-{family.replace('_', '-')}-{source}"
    return made_once(folder, {"family": family}, save)


@cache
def load(family, implementation="sdpa", dtype=torch.float32):
    """A tiny model, loaded once."""
    return vlm.load(str(tiny_vlm(family)), dtype, "cpu", implementation)


def picture(seed, size=(64, 64)):
    """Noise in blocks, so that no processor's resizing makes two of them alike."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def encoded(model, n=3, side="left", first=0):
    """Pictures and prompts of other lengths."""
    return vlm.encode(model, [picture(first + i) for i in range(n)], TEXTS[:n], side)


@torch.inference_mode()
def logits(model, batch):
    """(B, T, V)."""
    return model.network(**batch.inputs).logits.float()


@torch.inference_mode()
def generated(model, batch, cached=True, inputs=None):
    """Logits (B, 6, V) of six tokens generated greedily; never an image token, which the models refuse to read."""
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "use_cache": cached}
    settings |= {"suppress_tokens": [model.network.config.image_token_id]}
    inputs = inputs or batch.inputs
    output = model.network.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    return torch.stack(output.logits, 1)


def close(a, b, tolerance=1e-4):
    """Whether two tensors are alike everywhere."""
    return (a - b).abs().max().item() < tolerance


def byte_tokenizer(special, bos, names=None):
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
    roles = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles, extra_special_tokens=names or {})


def text_settings(tokenizer):
    """The settings of a language model that go with a tokenizer."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    return TEXT | ids | {"vocab_size": len(tokenizer)}


def chameleon(swin_norm=False):
    """Chameleon: images as codes of the vocabulary, queries and keys normalised.

    swin_norm: as in Chameleon-34B, whose blocks normalise what they write, not what they read.
    """
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    codes = [f"IMGIMG{str(code).translate(letters)}Z" for code in range(N_CODES)]
    names = {"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
    tokenizer = byte_tokenizer([*names.values(), *codes], bos=True, names=names)
    vision = CODES | SPREAD | {"num_embeddings": N_CODES, "embed_dim": 16, "latent_channels": 16, "resolution": SIDE}
    vision |= {"channel_multiplier": [1, 1, 1, 1]}  # halved three times: 8 pixels a code
    settings = text_settings(tokenizer) | {"vocabulary_map": tokenizer.get_vocab(), "vq_config": vision}
    settings |= {"swin_norm": swin_norm}
    images = hf.ChameleonImageProcessorPil(size=EDGE, crop_size=SQUARE)
    processor = processor_class("chameleon")(images, tokenizer, image_seq_length=16)
    return hf.ChameleonForConditionalGeneration(hf.ChameleonConfig(**settings)), processor


def emu3():
    """Emu3: images as codes of the vocabulary, their size in tokens written before them."""
    names = {"image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>"}
    names |= {"image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>"}
    codes = [f"<|visual token {code:06d}|>" for code in range(N_CODES)]
    tokenizer = byte_tokenizer([*names.values(), "<|extra_200|>", *codes], bos=False, names=names)
    vision = CODES | {"codebook_size": N_CODES, "channel_multiplier": [1, 1, 1, 1], "attn_resolutions": [3]}
    vision |= {"hidden_size": CODES["base_channels"]}
    text, vocabulary = text_settings(tokenizer), tokenizer.get_vocab()
    config = hf.Emu3Config(text_config=text, vq_config=vision, vocabulary_map=vocabulary)
    images = hf.Emu3ImageProcessor(min_pixels=SIDE**2, max_pixels=SIDE**2, spatial_factor=PATCH)
    return hf.Emu3ForConditionalGeneration(config), processor_class("emu3")(images, tokenizer)


def janus():
    """Janus: image features between a begin and an end token; it writes images by codes that it does not read."""
    names = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = byte_tokenizer([*names.values()], bos=True, names=names)
    width = TEXT["hidden_size"]
    vision = VISION | {"patch_size": PATCH, "projection_dim": width, "num_image_tokens": 16, "mlp_ratio": 2.0}
    codes = CODES | {"num_embeddings": N_CODES, "channel_multiplier": [1, 1], "latent_channels": 16}
    codes |= {"projection_dim": width, "image_token_embed_dim": width}
    settings = {"text_config": hf.LlamaConfig(**text_settings(tokenizer)).to_dict(), "tie_word_embeddings": False}
    settings |= {"vision_config": vision, "vq_config": codes, "image_token_id": tokenizer.image_token_id}
    images = hf.JanusImageProcessorPil(size=SQUARE, min_size=PATCH)
    processor = processor_class("janus")(images, tokenizer, num_image_tokens=16)
    return hf.JanusForConditionalGeneration(hf.JanusConfig(**settings)), processor


def llava():
    """LLaVA: image features and nothing around them."""
    tokenizer = byte_tokenizer(["<image>"], bos=True)
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**text_settings(tokenizer)),
        vision_config=hf.CLIPVisionConfig(**VISION, patch_size=PATCH),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    images = hf.CLIPImageProcessorPil(size=EDGE, crop_size=SQUARE)
    settings = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return hf.LlavaForConditionalGeneration(config), processor_class("llava")(images, tokenizer, **settings)


def llava_onevision():
    """LLaVA-OneVision: the image and its tiles, every row of them with one more feature; in a pair of chat marks."""
    tokenizer = byte_tokenizer(["<image>", "<video>", "<|im_start|>", "<|im_end|>"], bos=False)
    grid = {"image_grid_pinpoints": [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE]]}
    config = hf.LlavaOnevisionConfig(
        text_config=hf.Qwen2Config(**text_settings(tokenizer)),
        vision_config=hf.SiglipVisionConfig(**VISION, patch_size=PATCH, vision_use_head=False),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        **grid,
    )
    images = hf.LlavaOnevisionImageProcessorPil(size=SQUARE, **grid)
    settings = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    processor = processor_class("llava_onevision")(images, tokenizer, **settings)
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def pixtral():
    """Pixtral: rows of image features with a break token between them and an end token after the last."""
    tokenizer = byte_tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]"], bos=True)
    config = hf.LlavaConfig(
        text_config=hf.MistralConfig(**text_settings(tokenizer), sliding_window=None),
        vision_config=hf.PixtralVisionConfig(**VISION, patch_size=PATCH),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        multimodal_projector_bias=True,
    )
    images = hf.PixtralImageProcessorPil(size={"longest_edge": SIDE}, patch_size={"height": PATCH, "width": PATCH})
    return hf.LlavaForConditionalGeneration(config), processor_class("pixtral")(images, tokenizer, patch_size=PATCH)


def idefics3():
    """Idefics3: the tiles of the image, each behind a tag with its row and column, and then the whole image."""
    tags = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    marks = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    tokenizer = byte_tokenizer([*marks, *tags], bos=False)
    config = hf.Idefics3Config(
        text_config=hf.LlamaConfig(**text_settings(tokenizer)),
        vision_config=VISION | {"patch_size": PATCH // 2},  # four patches are shuffled into one token
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    images = hf.Idefics3ImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    return hf.Idefics3ForConditionalGeneration(config), processor_class("idefics3")(images, tokenizer, image_seq_len=16)


MAKERS = {maker.__name__: maker for maker in (chameleon, emu3, janus, llava, llava_onevision, pixtral, idefics3)}
FAMILIES = list(MAKERS)
MAKERS["chameleon-34b"] = partial(chameleon, swin_norm=True)
