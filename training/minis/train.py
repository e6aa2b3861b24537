"""Train the minis, so that a killed run resumes where it stopped.

    train("laptop", "gated", seed=0)      # leaves weights/minis/gated-0 and its card

A step's images and texts depend on the recipe's seed and the step alone; state and weights are written atomically.  A
batch holds, for the native minis, images with texts after them, and texts with an image after them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from peaks_and_gates import cache
from peaks_and_gates.errors import MissingFile
from peaks_and_gates.models import best_device
from training import common
from training.common import Log, is_made_from, load_or_train
from training.scenes.drawing import draw

from . import image_tokenizer, models, vision_tower
from .data import Lessons
from .losses import loss_of
from .scores import scores

ENCODED = 256  # images that are turned into codes at a time
CLIP = 1.0  # the longest step of a gradient
KNOWS = 0.5  # a trained model that is given a new wiring or a price may forget for a while all it could do


def train(preset: str, name: str, seed: int = 0) -> Path:
    """Train one mini by its recipe, unless it is there.  Returns its folder.

    Raises UnknownName, MissingFile (the mini it starts from), HashMismatch, TrainingDiverged, StorageFull.
    """
    settings, folder = models.recipe(preset, name, seed), models.minis_folder(preset)
    target = folder / f"{name}-{seed}"
    card = target.with_suffix(".json")
    start = start_folder(preset, settings) if settings["start"] else None
    made_from = {"recipe": settings} | ({"start": cache.file_sha256(start / "model.safetensors")} if start else {})
    if is_made_from(card, made_from):
        cache.check_files(target, cache.read_json(card)["files"])
        print(f"{target}: done")
        return target
    network, processor = build(settings, folder / "codebook.safetensors", folder / "eyes.safetensors", start)
    work = cache.cache_folder() / "minis" / cache.digest(made_from | {"code": common.source_hash()})
    log = train_loop(network, processor, settings, work)
    card.unlink(missing_ok=True)
    save(network, processor, target)
    n_scored = models.recipes(preset)["n_scored"]
    common.write_card(
        card,
        made_from,
        command=f"python -m training.minis {name} --seed {seed}",
        sha256=cache.file_sha256(target / "model.safetensors"),
        files=cache.checksums(target),
        parameters=sum(p.numel() for p in network.parameters()),
        log=vars(log),
        n_scored=n_scored,
        scores={} if settings["kind"] == "text-only" else scores(target, n_scored),
    )
    print(f"{target}: {log.seconds / 60:.1f} minutes, loss {np.mean(log.loss[-50:]):.3f}")
    return target


def train_all(preset: str, names: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Path]:
    """Train minis, all of a preset if none is named, with each of their seeds or with those given."""
    return [
        train(preset, name, seed)
        for name in names or models.recipes(preset)["minis"]
        for seed in seeds or models.settings_of(preset, name)["seeds"]
    ]


def start_folder(preset: str, settings: Mapping[str, Any]) -> Path:
    """The folder of the mini that a recipe starts from: of its own seed, or of that mini's only one.

    Raises MissingFile, HashMismatch if a file of it is not the one its card describes.
    """
    name = settings["start"]
    seeds = models.settings_of(preset, name)["seeds"]
    folder = models.minis_folder(preset) / f"{name}-{settings['seed'] if settings['seed'] in seeds else seeds[0]}"
    if not folder.with_suffix(".json").is_file():
        raise MissingFile(f"There is no {folder}, which this mini starts from: run `python -m training.minis {name}`.")
    cache.check_files(folder, cache.read_json(folder.with_suffix(".json"))["files"])
    return folder


def build(
    settings: Mapping[str, Any], tokenizer_file: Path, tower_file: Path, start: Path | None = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The network before the first step, in float32, and its processor.

    tokenizer_file, tower_file: weights of the image tokenizer of a native mini and of the vision tower of an adapted
    one, trained if they are not there.  start: folder of the mini that training begins with.
    """
    n_image = settings.get("n_image", image_tokenizer.N_IMAGE)
    with torch.random.fork_rng():
        torch.manual_seed(settings["seed"])
        if settings["kind"] == "text-only":
            network, processor = models.language_model(settings["shape"])
        elif settings["kind"] == "adapted":
            network, processor = models.adapted(settings["shape"], n_image)
        else:
            network, processor = models.native(settings["shape"], settings["codebook"], n_image)
    if settings["kind"] == "native":
        weights = load_or_train(settings["codebook"], tokenizer_file, image_tokenizer.train)
        vq = {name.removeprefix("vq."): tensor for name, tensor in weights.items() if name.startswith("vq.")}
        network.model.vqmodel.load_state_dict(vq)
        network.model.vqmodel.requires_grad_(False)
        network.config.wiring = settings["wiring"]
        place_codes(network, processor, settings)
    if settings["kind"] == "adapted":
        network.model.vision_tower.load_state_dict(load_or_train(settings["eyes"], tower_file, vision_tower.train))
        network.model.vision_tower.requires_grad_(False)  # as in LLaVA: learning on would first unlearn to see
    if start:
        weights = load_file(start / "model.safetensors")
        part = network
        if settings["kind"] == "adapted":
            part = network.model.language_model
            weights = {key.removeprefix("model."): tensor for key, tensor in weights.items() if key != "lm_head.weight"}
        keys = part.load_state_dict({key: tensor.float() for key, tensor in weights.items()}, strict=False)
        if keys.unexpected_keys or set(keys.missing_keys) - {"lm_head.weight"}:
            raise MissingFile(f"{start} is of another shape: {keys}. Train it again.")
    network.tie_weights()
    return network.to(best_device()), processor


@torch.no_grad()
def place_codes(network: PreTrainedModel, processor: ProcessorMixin, settings: Mapping[str, Any]) -> None:
    """Begin with codes that look alike near each other: a random projection of the codebook, as large as words."""
    codes = network.model.vqmodel.quantize.embedding.weight
    codes = (codes - codes.mean(0)) / codes.std()
    table = network.get_input_embeddings().weight
    rows = processor.tokenizer.convert_tokens_to_ids(models.code_names(len(codes)))
    generator = torch.Generator().manual_seed(settings["seed"])
    projection = torch.randn(codes.shape[1], table.shape[1], generator=generator) / codes.shape[1] ** 0.5
    table[rows] = table.std() * codes @ projection  # (codes, D)


def train_loop(network: PreTrainedModel, processor: Any, settings: Mapping[str, Any], work: Path) -> Log:
    """All steps, from the stored state on if there is one."""
    words = processor if settings["kind"] == "text-only" else processor.tokenizer
    keys = ("n_scenes", "seed", "captions", "direct", "n_image", "most_things")  # the last two have a default
    lessons = Lessons(words, **{key: settings[key] for key in keys if key in settings})
    codes = image_codes(network, processor, lessons) if settings["kind"] == "native" else None
    if settings["penalty"]:
        network.set_attn_implementation("eager")  # the only one that shows its weights
    optimizers = common.build_optimizers({name: p for name, p in network.named_parameters() if p.requires_grad})
    loss_of_step = lambda step: loss_of(network, processor, lessons, codes, settings, step)
    limits = {"vocabulary": len(words), "clip": CLIP, "knows": KNOWS}
    log = common.train_loop(network, optimizers, loss_of_step, settings, settings["steps"], work, **limits)
    if settings["penalty"]:
        network.set_attn_implementation("sdpa")
    return log


def image_codes(network: PreTrainedModel, processor: ProcessorMixin, lessons: Lessons) -> Tensor:
    """The image tokens of all training scenes, (N, n_image) int64, made once for all minis with one image tokenizer."""

    @torch.inference_mode()
    def encode() -> dict[str, Tensor]:
        codes = []
        for start in tqdm(range(0, len(lessons.pool), ENCODED), desc="images to codes", unit="batch"):
            pictures = [draw(scene, lessons.side) for scene in lessons.pool[start : start + ENCODED]]
            pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]  # (B, 3, side, side)
            codes.append(network.model.get_image_tokens(pixels.to(network.device)).cpu())  # (B, n_image)
        return {"codes": torch.cat(codes)}

    inputs = {"image tokenizer": image_tokenizer.identity(network.model.vqmodel)}
    inputs |= {key: getattr(lessons, key) for key in ("n_scenes", "n_image", "most_things")}
    return cache.cached("mini_codes", inputs, encode).get_tensor("codes")


def save(network: PreTrainedModel, processor: Any, target: Path) -> None:
    """Write a mini into a folder, in bfloat16.  Raises StorageFull."""
    with cache.writing(target):
        target.mkdir(parents=True, exist_ok=True)
        network.to(torch.bfloat16).save_pretrained(target)
        processor.save_pretrained(target)
