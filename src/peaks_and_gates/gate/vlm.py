"""Vision-language models by name, from the hub or a folder, checked before they are used; prompts as batches.

model = vlm.load("mini-native-0")
batch = vlm.encode(model, ["a.png", "b.png"], ["<image> This animal is a", "<image> What is it?"])
logits = model.network(**batch.inputs).logits
batch.tokens.where("gate")         # see `tokens`
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import logging as transformers_logging

from .. import models
from ..cache import check_files, read_json
from ..errors import BookError, ModelUnavailable
from .attention import knockout, wire
from .inputs import encode, encode_once, load_processor
from .model import VisionLanguageModel
from .tokens import FAMILIES, family_of

# Of the next token's logits between two images, in standard deviations of the logits: every model tried has above 0.7,
# and 0 if it is not given its images.
LEAST_DIFFERENCE = 0.01


def describe(name: str) -> dict[str, Any]:
    """What identifies a model's weights and prompts, without loading them.

    name: as in `models.describe`.  A repository that the book knows is read with its template at any commit.
    Raises UnknownName, MissingFile, HashMismatch (a mini that is not what its card describes), ModelUnavailable.
    """
    repo = name.partition("@")[0]
    known = [entry for entry in models.MODELS.values() if "family" in entry and entry.get("repo") == repo]
    described = (known[0] if known else {}) | models.describe(name)
    if described["provider"] == "mini":
        folder = models.in_checkout(described["folder"])
        check_files(folder, read_json(folder.with_suffix(".json"))["files"])
    if described.get("revision", "") is None:
        described["revision"] = models.hub_revision(described["repo"])
    return described


def load(
    name: str, dtype: torch.dtype | None = None, device: torch.device | str | None = None, attention: str = "sdpa"
) -> VisionLanguageModel:
    """Load a model by name (see `describe`), its processor without torchvision, its wiring if it has one, and check it.

    dtype, device: chosen by hardware if None (of minis the dtype is float32); a model that one GPU cannot hold is split
    over all of them.  attention: sdpa or eager.
    Raises UnknownName, MissingFile, ModelUnavailable.
    """
    described = describe(name)
    device = torch.device(device) if device else models.best_device()
    # The minis are small, and the codes of an image can turn on the last bit: they run in float32 everywhere.
    dtype = dtype or (torch.float32 if described["provider"] == "mini" else models.best_dtype(device))
    if described["provider"] in ("wheel", "adapter"):
        raise ModelUnavailable(f"{name} reads no pictures: give a vision-language model.")
    transformers_logging.disable_progress_bar()
    source = described["repo"] if described["provider"] == "hub" else str(models.in_checkout(described["folder"]))
    pinned = {"revision": described.get("revision"), "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **pinned)
        key = family_of(config)
        processor = load_processor(key, source, pinned["revision"])
        settings = {"dtype": dtype, "attn_implementation": attention, **models.CHECKED}
        settings |= models.device_map(AutoModelForImageTextToText, config, dtype, device)
        network, info = AutoModelForImageTextToText.from_pretrained(source, config=config, **pinned, **settings)
    except BookError:
        raise
    except Exception as error:
        on_hub, advice = described["provider"] == "hub", f"{name} could not be loaded from {source}: {error}"
        raise ModelUnavailable(models.hub_advice(source, error) if on_hub else advice) from error
    network = models.placed(network, name, device, dtype)
    models.require_complete(network, info, name)
    encode_once(network)
    if getattr(config, "wiring", None):
        wire(network, processor, FAMILIES[key])
    model = VisionLanguageModel(name, network, processor, FAMILIES[key], described.get("template", "{prompt}"))
    check(model)
    print(f"{name}: {network.num_parameters() / 1e6:.1f} M parameters, {model.n_layers} layers, {dtype}, {device}")
    return model


@torch.inference_mode()
def check(model: VisionLanguageModel) -> None:
    """Two short forward passes with small images: what the tools of the book take hold of is where they look for it.

    Raises ModelUnavailable: blocks or attention modules not found, not run once each, not sharing one config; an
    attention other than SDPA or eager, or one that cannot be replaced; a final norm that is not what the head reads; a
    processor of another family; image tokens that do not fit the image's features; logits that are not finite; images
    that make no difference; codes of an image that are not image tokens of the vocabulary.
    """
    blame = lambda reason: ModelUnavailable(f"{model.name} ({type(model.network).__name__}) cannot be used: {reason}")
    decoder = model.network.get_decoder()
    blocks, norm = getattr(decoder, "layers", None) or [], getattr(decoder, "norm", None)
    attentions = [getattr(block, "self_attn", None) for block in blocks]
    configs = {id(config): config for config in (getattr(module, "config", None) for module in attentions)}
    if norm is None or [getattr(config, "num_hidden_layers", 0) for config in configs.values()] != [len(blocks)]:
        raise blame("its blocks are not at `layers[i].self_attn`, which share one config, and `norm`, as Llama's are.")
    called, normed = [], []
    hooks = [module.register_forward_hook(lambda module, *_: called.append(module)) for module in attentions]
    hooks.append(norm.register_forward_hook(lambda module, inputs, output: normed.append(output)))
    try:
        images = [Image.linear_gradient("L"), ImageOps.invert(Image.radial_gradient("L"))]
        batch = encode(model, images, ["<image> What is this?"] * 2)
        logits = model.network(**batch.inputs).logits  # (2, T, V)
    except Exception as error:  # a processor of another model leads to errors of many kinds
        raise blame(f"a prompt with an image fails, so its processor may be of another model: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if [id(module) for module in called] != [id(module) for module in attentions] or len(normed) != 1:
        ran = f"{len(called)} attention modules ran for {len(blocks)} blocks, and its final norm {len(normed)} times"
        raise blame(f"{ran}: each must run once, in order.")
    if not torch.isfinite(logits).all():
        raise blame(f"its logits are not finite in {model.network.dtype}; try float32.")
    allowed = logits > torch.finfo(logits.dtype).min  # Chameleon forbids its image codes in this way
    expected = model.network.get_output_embeddings()(normed[0]).to(logits.device)
    if not torch.allclose(logits[allowed], expected[allowed], rtol=1e-2, atol=1e-2):
        raise blame("its head does not read the output of its final norm.")
    if (logits[0, -1] - logits[1, -1]).abs().max() < LEAST_DIFFERENCE * logits[allowed].float().std():
        raise blame("two images lead to the same logits, so it is not shown any. Try another version of transformers.")
    try:
        with knockout(model, None, batch.tokens.where("prompt")):
            model.network(**batch.inputs)
    except Exception as error:
        how = "Its blocks must take it from transformers' ALL_ATTENTION_FUNCTIONS, as Llama's do"
        raise blame(f"its attention cannot be changed or measured. {how}: {error}") from error
