"""Train the minis, so that a killed run resumes where it stopped.

    train("laptop", "gated", seed=0)      # leaves weights/minis/gated-0 and its card

A step's images and texts depend on the recipe's seed and the step alone; state and weights are written atomically.  A
batch holds, for the native minis, images with texts after them, and texts with an image after them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from peaks_and_gates import cache
from peaks_and_gates.errors import MissingFile, UnknownName
from peaks_and_gates.gate.answers import cider, vqa_accuracy
from peaks_and_gates.gate.attention import closed_pairs
from peaks_and_gates.gate.experiment import KNOCKOUTS, Experiment, generate_answers
from peaks_and_gates.gate.pictures import Picture
from peaks_and_gates.models import best_device
from peaks_and_gates.statistics import bootstrap_mean
from training import common
from training.common import SAVE_EVERY, Log, check_files, is_made_from
from training.scenes.build import scene_rows
from training.scenes.drawing import draw

from . import image_tokenizer, models
from .data import Lessons, Packed
from .vision_tower import vision_tower

ENCODED = 256  # images that are turned into codes at a time
CLIP = 1.0  # the longest step of a gradient
RAMP = 150  # steps in which a penalty grows to its full size
KNOWS = 0.5  # a start below this share of the loss of a model that knows nothing counts as this share


def train(preset: str, name: str, seed: int | None = None, **changes: Any) -> Path:
    """Train one mini by its recipe, unless it is there.  Returns its folder.

    Raises UnknownName, MissingFile (the mini it starts from), HashMismatch, TrainingDiverged, StorageFull.
    """
    settings = models.recipe(preset, name, seed, **changes)
    folder = models.minis_folder(preset)
    target = folder / f"{name}-{settings['seed']}"
    start = start_folder(preset, settings) if settings["start"] else None
    made_from = {"recipe": settings} | ({"start": cache.file_sha256(start / "model.safetensors")} if start else {})
    card, n_scored = target.with_suffix(".json"), models.recipes(preset)["n_scored"]
    if is_made_from(card, made_from):
        about = cache.read_json(card)
        check_files(target, about["files"])
        if about.get("n_scored") != n_scored:
            cache.write_json(card, about | scored(target, settings, n_scored))
        print(f"{target}: done")
        return target
    network, processor = build(settings, folder / "codebook.safetensors", folder / "eyes.safetensors", start)
    work = cache.cache_folder() / "minis" / cache.digest(made_from | {"code": common.source_hash()})
    log = train_loop(network, processor, settings, work)
    card.unlink(missing_ok=True)
    save(network, processor, target)
    about = {
        "made_from": made_from,
        "command": f"python -m training.minis {name} --seed {settings['seed']}",
        "code": common.source_hash(),
        "sha256": cache.file_sha256(target / "model.safetensors"),
        "files": cache.checksums(target),
        "parameters": sum(p.numel() for p in network.parameters()),
        "log": vars(log),
        "environment": cache.environment(),
    }
    cache.write_json(card, about | scored(target, settings, n_scored))  # last, so that a mini with a card is complete
    print(f"{target}: {log.seconds / 60:.1f} minutes, loss {np.mean(log.loss[-50:]):.3f}")
    return target


def train_all(preset: str, names: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Path]:
    """Train minis, all of a preset if none is named, with each of their seeds or with those given."""
    known = models.recipes(preset)
    for name in names:
        if name not in known["minis"]:
            raise UnknownName("mini", name, known["minis"])
    return [
        train(preset, name, seed)
        for name in names or known["minis"]
        for seed in seeds or (known["defaults"] | known["minis"][name])["seeds"]
    ]


def start_folder(preset: str, settings: Mapping[str, Any]) -> Path:
    """The folder of the mini that a recipe starts from: of its own seed, or of that mini's only one.

    Raises MissingFile, HashMismatch if a file of it is not the one its card describes.
    """
    name, known = settings["start"], models.recipes(preset)
    seeds = (known["defaults"] | known["minis"][name])["seeds"]
    seed = settings["seed"] if settings["seed"] in seeds else seeds[0]
    folder = models.minis_folder(preset) / f"{name}-{seed}"
    if not folder.with_suffix(".json").is_file():
        raise MissingFile(f"There is no {folder}, which this mini starts from: run `python -m training.minis {name}`.")
    check_files(folder, cache.read_json(folder.with_suffix(".json"))["files"])
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
        if settings["kind"] == "words":
            network, processor = models.language_model(settings["shape"])
        elif settings["kind"] == "adapted":
            network, processor = models.adapted(settings["shape"], n_image)
        else:
            network, processor = models.native(settings["shape"], settings["codebook"], n_image)
    if settings["kind"] == "native":
        weights = image_tokenizer.codebook(settings["codebook"], tokenizer_file)
        vq = {name.removeprefix("vq."): tensor for name, tensor in weights.items() if name.startswith("vq.")}
        network.model.vqmodel.load_state_dict(vq)
        network.model.vqmodel.requires_grad_(False)
        network.config.wiring = settings["wiring"]
        place_codes(network, processor, settings)
    if settings["kind"] == "adapted":
        network.model.vision_tower.load_state_dict(vision_tower(settings["eyes"], tower_file))
        network.model.vision_tower.requires_grad_(False)  # as in LLaVA: learning on would first unlearn to see
    if start:
        weights = load_file(start / "model.safetensors")
        part = network.model.language_model if settings["kind"] == "adapted" else network
        if part is not network:
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
    words = processor if settings["kind"] == "words" else processor.tokenizer
    keys = ("n_scenes", "seed", "captions", "direct", "n_image", "most_things")  # the last two have a default
    lessons = Lessons(words, **{key: settings[key] for key in keys if key in settings})
    codes = image_codes(network, processor, lessons) if settings["kind"] == "native" else None
    if settings["penalty"]:
        network.set_attn_implementation("eager")  # the only one that shows its weights
    weights = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizers = common.build_optimizers(weights)
    log, done = common.restore_state(weights, optimizers, work / "state.safetensors")
    uniform = math.log(len(words))
    network.train()
    with tqdm(total=settings["steps"], initial=done, desc="training", unit="step") as progress:
        for step in range(done, settings["steps"]):
            before = progress.format_dict["elapsed"]
            loss, loss_on_text = loss_of(network, processor, lessons, codes, settings, step)
            loss.backward()
            nn.utils.clip_grad_norm_(weights.values(), CLIP)
            log.loss.append(loss_on_text)
            # A trained model that is given a new wiring or a price may forget for a while all it could do.
            common.check_loss([max(loss, KNOWS * uniform) for loss in log.loss], uniform)
            rate = common.learning_rate(step, settings["steps"], settings["learning_rate"], settings["warmup"])
            common.take_step(optimizers, rate)
            log.seconds += progress.format_dict["elapsed"] - before
            progress.update()
            progress.set_postfix(loss=f"{np.mean(log.loss[-20:]):.3f}")
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == settings["steps"]:
                common.save_state(weights, optimizers, log, step + 1, work / "state.safetensors")
    if settings["penalty"]:
        network.set_attn_implementation("sdpa")
    network.eval()
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


def loss_of(
    network: PreTrainedModel,
    processor: Any,
    lessons: Lessons,
    codes: Tensor | None,
    settings: Mapping[str, Any],
    step: int,
) -> tuple[Tensor, float]:
    """The loss of a step, and the part of it that is on text."""
    size, kind = settings["batch"], settings["kind"]
    if kind == "words":
        loss = text_loss(network, lessons.batch(step, size, "caption"))
        return loss, loss.item()
    if kind == "adapted":
        packed = lessons.batch(step, size, "image")
        pictures = [draw(scene, lessons.side) for scene in packed.scenes]
        pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"].to(network.device)
        loss = text_loss(network, packed, pixel_values=pixels)
        return loss, loss.item()
    packed = with_codes(lessons.batch(step, size, "marked image"), codes[lessons.chosen(step, size)])
    hidden, share = states(network, packed, settings["closed"] or settings["wiring"], bool(settings["penalty"]))
    text = predicted(network, hidden, packed)
    loss = text + settings["penalty"] * min(1.0, (step + 1) / RAMP) * share
    if settings["image_loss"]:
        # Fewer images after a text than before one: they take as long, and teach little about reading.
        few = with_codes(lessons.batch(step, size // 4, "caption, image"), codes[lessons.chosen(step, size // 4)])
        after, _ = states(network, few, None, False)
        images = torch.cat([image_losses(network, hidden, packed), image_losses(network, after, few)])
        loss = loss + settings["image_loss"] * images.mean()
    return loss, text.item()


def with_codes(packed: Packed, codes: Tensor) -> Packed:
    """The batch with the image's codes in place of its image tokens.  codes: (B, n_image)."""
    ids = packed.ids.clone()
    ids[packed.tokens.where("image")] = codes.flatten().to(ids)
    return Packed(**vars(packed) | {"ids": ids})


def states(
    network: PreTrainedModel, packed: Packed, wiring: str | None, penalised: bool, **inputs: Tensor
) -> tuple[Tensor, Tensor | float]:
    """What the head reads, (B, T, D), and, if penalised, the share of the text's attention that is on image tokens."""
    reads = packed.reads
    if wiring:
        reads = reads & ~closed_pairs(packed.tokens, wiring)
    mask = reads[:, None].to(network.device)  # (B, 1, T, T)
    if network.config._attn_implementation == "eager":
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
    output = network.model(
        input_ids=packed.ids.to(network.device),
        attention_mask=mask,
        position_ids=packed.positions.to(network.device),
        use_cache=False,
        output_attentions=penalised,
        **inputs,
    )
    if not penalised:
        return output.last_hidden_state, 0.0
    image, text = packed.tokens.where("image"), packed.tokens.where("after")  # (B, T)
    pairs = (text[:, :, None] & image[:, None, :]).float()[:, None].to(network.device)  # (B, 1, T, T)
    mass = torch.stack([(weights * pairs).sum((1, 2, 3)).sum() / weights.shape[1] for weights in output.attentions])
    return output.last_hidden_state, mass.mean() / text.sum()


def predicted(network: PreTrainedModel, hidden: Tensor, packed: Packed) -> Tensor:
    """Mean cross-entropy of what a batch is to predict; the head runs at these places alone."""
    logits = network.get_output_embeddings()(hidden[packed.rows, packed.places])  # (M, V)
    return cross_entropy(logits.float(), packed.targets.to(logits.device))


def text_loss(network: PreTrainedModel, packed: Packed, **inputs: Tensor) -> Tensor:
    """The loss of a model that reads images by a tower, or none."""
    return predicted(network, states(network, packed, None, False, **inputs)[0], packed)


def image_losses(network: PreTrainedModel, hidden: Tensor, packed: Packed) -> Tensor:
    """Cross-entropy (M,) of every image token, predicted from the token before it."""
    image = packed.tokens.where("image")
    before = image.roll(-1, 1)
    logits = network.get_output_embeddings()(hidden[before.to(hidden.device)])  # (M, V)
    return cross_entropy(logits.float(), packed.ids[image].to(logits.device), reduction="none")


def save(network: PreTrainedModel, processor: Any, target: Path) -> None:
    """Write a mini into a folder, in bfloat16.  Raises StorageFull."""
    with cache.writing(target):
        target.mkdir(parents=True, exist_ok=True)
        network.to(torch.bfloat16).save_pretrained(target)
        processor.save_pretrained(target)


def scored(target: Path, settings: Mapping[str, Any], n_scored: int) -> dict[str, Any]:
    """What a card says of what a mini can do: nothing of one that sees no images."""
    return {"n_scored": n_scored, "scores": {} if settings["kind"] == "words" else scores(target, n_scored)}


def scores(model: Path, n: int) -> dict[str, Any]:
    """Accuracy of answers by kind of question, of classes, and CIDEr of captions, each as an Estimate's fields.

    n: questions; a quarter as many captions, and about as many scenes for the classes.
    """
    fewer = -(-n // 4)
    experiment = Experiment(str(model), batch_size=64, dtype="float32")
    scenes = pictures(n)
    by_task = {"questions": scenes, "classes": scenes[: 24 * -(-fewer // 24)], "captions": scenes[:fewer]}
    uncut = KNOCKOUTS["none"]
    texts = {task: generate_answers(experiment, task, part, [uncut])[uncut] for task, part in by_task.items()}
    by_kind = defaultdict(list)
    right = vqa_accuracy(texts["questions"], [picture.answers for picture in scenes])  # (n,)
    for picture, score in zip(scenes, right, strict=True):
        by_kind[picture.kind].append(score)
    correct = [text == picture.label for text, picture in zip(texts["classes"], by_task["classes"], strict=True)]
    captions = cider(texts["captions"], [list(picture.captions) for picture in by_task["captions"]])[1]
    return {
        "questions": {kind: asdict(bootstrap_mean(np.array(values))) for kind, values in sorted(by_kind.items())},
        "all questions": asdict(bootstrap_mean(np.array(right))),
        "classes": asdict(bootstrap_mean(np.array(correct, float))),
        "cider_ptb": asdict(captions),
    }


def pictures(n: int) -> list[Picture]:
    """The first n test scenes as pictures with a question and captions; 24 in a row are of 24 classes."""
    return [
        Picture(row.png, row.key, row.label, tuple(row.captions), row.question, (row.answer,), row.kind)
        for row in scene_rows("test", n, 0).itertuples()
    ]
