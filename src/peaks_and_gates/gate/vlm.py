"""Vision-language models by name, from the hub or a folder, checked before they are used; prompts as batches.

model = vlm.load("mini-native-0")
batch = vlm.encode(model, ["a.png", "b.png"], ["<image> This animal is a", "<image> What is it?"])
logits = model.network(**batch.inputs).logits
batch.tokens.where("end")          # the gate, see `tokens`
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import logging as transformers_logging

from ..cache import check_files, digest, read_json
from ..errors import BadParameter, BookError, MissingFile, ModelUnavailable, UnknownName
from ..models import best_device, best_dtype, folder_sha256, hub_advice, hub_revision, in_checkout
from .attention import OURS, knockout, wire
from .inputs import Batch, encode, encode_once, load_processor, open_image
from .tokens import FAMILIES, Family, family_of

__all__ = ["VLMS", "Batch", "VisionLanguageModel", "check", "describe", "encode", "load", "open_image"]

VLMS: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "vlms.yml").read_text())
ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class VisionLanguageModel:
    """A vision-language model ready to be read.

    template: what a text is put into, at "{prompt}".  fingerprint: identifies the weights, the same on every machine.
    """

    name: str
    network: PreTrainedModel
    processor: ProcessorMixin
    family: Family
    template: str
    fingerprint: str

    @property
    def layers(self) -> nn.ModuleList:
        """The L blocks of the language model; each has its attention at `self_attn`."""
        return self.network.get_decoder().layers

    @property
    def final_norm(self) -> nn.Module:
        """What normalises the residual stream after the last block, before the head."""
        return self.network.get_decoder().norm

    @property
    def text_config(self) -> PreTrainedConfig:
        """The config that all attention modules of the blocks hold, and ask for their implementation."""
        return self.layers[0].self_attn.config

    @property
    def n_layers(self) -> int:
        """Number of blocks L."""
        return len(self.layers)

    @property
    def n_heads(self) -> int:
        """Number of attention heads of a block, those of the queries."""
        return self.text_config.num_attention_heads

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.text_config.hidden_size

    @property
    def device(self) -> torch.device:
        """Where the embeddings are, hence where the inputs go."""
        return self.network.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the forward pass runs in."""
        return self.network.dtype

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's tokenizer."""
        return self.processor.tokenizer


def is_native(name: str) -> bool:
    """Whether a model of vlms.yml was trained to produce images too.  Raises UnknownName."""
    if name not in VLMS:
        raise UnknownName("vision-language model", name, VLMS)
    return FAMILIES[VLMS[name]["family"]].native


def describe(name: str) -> dict[str, Any]:
    """What identifies a model's weights and prompts, without loading them: goes into the key of what is made from it.

    name: a name in VLMS, `owner/name` or `owner/name@commit` on the hub, or a local folder.
    Raises UnknownName, MissingFile, HashMismatch (a mini that is not what its card describes), ModelUnavailable.
    """
    return dict(_described(name))


@cache
def _described(name: str) -> dict[str, Any]:
    if name in VLMS:
        entry = dict(VLMS[name])
        if entry["provider"] == "mini":
            folder = mini_folder(entry["folder"])
            check_files(folder, read_json(folder.with_suffix(".json"))["files"])
            entry["sha256"] = folder_sha256(folder)
        elif entry["revision"] is None:
            entry["revision"] = hub_revision(entry["repo"])
        return entry
    if Path(name).is_dir():
        return {"provider": "path", "folder": str(Path(name).resolve()), "sha256": folder_sha256(Path(name))}
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        repo, _, commit = name.partition("@")
        known = next((entry for entry in VLMS.values() if entry.get("repo") == repo), {})
        return {**known, "provider": "hub", "repo": repo, "revision": commit or hub_revision(repo)}
    if "/" in name:
        raise MissingFile(f"There is no model folder {name}. Give a folder with config.json and safetensors files.")
    raise UnknownName("vision-language model", name, VLMS)


def mini_folder(folder: str) -> Path:
    """The folder of a mini that the book ships.  Raises MissingFile."""
    path = in_checkout(folder)
    if not path.with_suffix(".json").is_file():
        raise MissingFile(f"{path} is not there, or was not finished: train it again, see training/.")
    return path


def load(
    name: str,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    attention: str = "sdpa",
) -> VisionLanguageModel:
    """Load a model by name (see `describe`), its processor without torchvision, its wiring if it has one, and check it.

    dtype, device: chosen by hardware if None (of minis the dtype is float32).  attention: sdpa or eager.
    Raises UnknownName, MissingFile, ModelUnavailable, BadParameter.
    """
    if attention not in ATTENTION:
        raise BadParameter(f"attention must be one of {', '.join(ATTENTION)}, not '{attention}'.")
    described = describe(name)
    device = torch.device(device) if device else best_device()
    # The minis are small, and the codes of an image can turn on the last bit: they run in float32 everywhere.
    dtype = dtype or (torch.float32 if described["provider"] == "mini" else best_dtype(device))
    transformers_logging.disable_progress_bar()
    source = described["repo"] if described["provider"] == "hub" else str(in_checkout(described["folder"]))
    pinned = {"revision": described.get("revision"), "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **pinned)
        key = family_of(config)
        processor = load_processor(key, source, pinned["revision"])
        settings = {"dtype": dtype, "attn_implementation": attention, "use_safetensors": True}
        network = AutoModelForImageTextToText.from_pretrained(source, config=config, **pinned, **settings)
    except BookError:
        raise
    except Exception as error:
        if described["provider"] == "hub":
            raise ModelUnavailable(hub_advice(described["repo"], error)) from error
        raise ModelUnavailable(f"{name} could not be loaded from {source}: {error}") from error
    network = network.to(device).eval().requires_grad_(False)
    encode_once(network)
    if getattr(config, "wiring", None):
        wire(network, processor, FAMILIES[key])
    fingerprint = digest({part: value for part, value in described.items() if part != "folder"})
    template = described.get("template", "{prompt}")
    model = VisionLanguageModel(name, network, processor, FAMILIES[key], template, fingerprint)
    check(model)
    parameters = sum(p.numel() for p in network.parameters())
    print(f"{name}: {parameters / 1e6:.1f} M parameters, {model.n_layers} layers, {dtype}, {device}")
    return model


def check(model: VisionLanguageModel) -> None:
    """Two short forward passes with a small image: what the tools of the book take hold of is where they look for it.

    Raises ModelUnavailable: blocks or attention modules not found, not run once each, not sharing one config; an
    attention other than SDPA or eager, or one that cannot be replaced; a final norm that is not what the head reads; a
    processor of another family; image tokens that do not fit the image's features; logits that are not finite.
    """
    blame = lambda reason: ModelUnavailable(f"{model.name} ({type(model.network).__name__}) cannot be used: {reason}")
    decoder = model.network.get_decoder()
    blocks, norm = getattr(decoder, "layers", None), getattr(decoder, "norm", None)
    attentions = [getattr(block, "self_attn", None) for block in blocks or []]
    if norm is None or not attentions or any(getattr(module, "config", None) is None for module in attentions):
        raise blame("its language model's blocks are not at `layers[i].self_attn` and `norm`, as Llama's are.")
    config = attentions[0].config
    if any(module.config is not config for module in attentions) or config.num_hidden_layers != len(attentions):
        raise blame("its attention modules do not share one config with as many layers as there are blocks.")
    if config._attn_implementation not in (*ATTENTION, *OURS.values()):
        raise blame(f"its attention is '{config._attn_implementation}'. Load it with attention='sdpa' or 'eager'.")
    called, normed = [], []
    hooks = [module.register_forward_hook(lambda module, *_: called.append(module)) for module in attentions]
    hooks.append(norm.register_forward_hook(lambda module, inputs, output: normed.append(output)))
    try:
        batch = encode(model, [Image.linear_gradient("L")], ["<image> What is this?"])
        with torch.inference_mode():
            logits = model.network(**batch.inputs).logits  # (1, T, V)
    except Exception as error:  # a processor of another model leads to errors of many kinds
        raise blame(f"a prompt with an image fails, so its processor may be of another model: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if [id(module) for module in called] != [id(module) for module in attentions]:
        raise blame(f"{len(called)} attention modules ran for {len(attentions)} blocks; each must run once, in order.")
    if len(normed) != 1:
        raise blame(f"its final norm ran {len(normed)} times in one pass; it must run once, after the last block.")
    if not torch.isfinite(logits).all():
        raise blame(f"its logits are not finite in {model.dtype}; try float32.")
    allowed = logits > torch.finfo(logits.dtype).min  # Chameleon forbids its image codes in this way
    with torch.inference_mode():
        expected = model.network.get_output_embeddings()(normed[0])
    if not torch.allclose(logits[allowed], expected[allowed], rtol=1e-2, atol=1e-2):
        raise blame("its head does not read the output of its final norm.")
    try:
        with knockout(model, None, batch.tokens.where("prompt")), torch.inference_mode():
            model.network(**batch.inputs)
    except Exception as error:
        raise blame(
            "its attention cannot be changed or measured. Its blocks must take it from transformers' "
            f"ALL_ATTENTION_FUNCTIONS, by the name in their config, as Llama's do. What was seen: {error}"
        ) from error
