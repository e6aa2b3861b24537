"""Train the minis, so that a run can be killed and goes on where it was.

    train("laptop", "gated", seed=0)      # leaves weights/minis/gated-0 and its card

A step's images and texts depend on the recipe's seed and the step alone; state and weights are written whole or not at
all.  A batch holds, for the native minis, images with texts after them, and texts with an image after them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, ProcessorMixin

from . import codebook, eyes, mini_scores, minis, store, training_state
from .errors import MissingFile, UnknownName
from .finetune import SAVE_EVERY, Log, check_loss, learning_rate
from .mini_data import Lessons, Packed
from .models import best_device
from .progress import bar
from .scene_drawing import draw
from .scenes import MOST_THINGS
from .wiring import closed_pairs

CODE = ("mini_training", "mini_data", "wiring", "scene_words", *eyes.CODE)
ENCODED = 256  # images that are turned into codes at a time
CLIP = 1.0  # the longest step of a gradient
RAMP = 150  # steps in which a penalty grows to its full size
KNOWS = 0.5  # a start below this share of the loss of a model that knows nothing counts as this share


def label(settings_name: str, seed: int) -> str:
    """The name of one mini: "native-0"."""
    return f"{settings_name}-{seed}"


def train(preset: str, name: str, seed: int | None = None, **changes: Any) -> Path:
    """Train one mini by its recipe, unless it is there.  Returns its folder.

    Raises UnknownName, MissingFile (the mini it starts from), HashMismatch, TrainingDiverged, StorageFull.
    """
    settings = minis.recipe(preset, name, seed, **changes)
    target = minis.minis_folder(preset) / label(name, settings["seed"])
    start = start_folder(preset, settings) if settings["start"] else None
    wanted = {"recipe": settings} | ({"start": store.file_sha256(start / "model.safetensors")} if start else {})
    card, n_scored = target.with_suffix(".json"), minis.recipes(preset)["n_scored"]
    known = store.read_json(card) if card.is_file() else {}
    if known.get("made_from") == json.loads(json.dumps(wanted)):
        store.check_files(target, known["files"])
        if known.get("n_scored") != n_scored:
            store.write_json(card, known | scored(target, settings, n_scored))
        print(f"{target}: done")
        return target
    network, processor = begin(settings, codebook_file(preset), eyes_file(preset), start)
    work = store.cache_folder() / "minis" / store.digest(wanted | {"code": store.code_version(*CODE)})
    log = descend(network, processor, settings, work)
    publish(network, processor, settings, wanted, log, target, n_scored)
    return target


def train_all(preset: str, names: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Path]:
    """Train minis, all of a preset if none is named, with each of their seeds or with those given."""
    known = minis.recipes(preset)
    for name in names:
        if name not in known["minis"]:
            raise UnknownName("mini", name, known["minis"])
    return [
        train(preset, name, seed)
        for name in names or known["minis"]
        for seed in seeds or (known["defaults"] | known["minis"][name])["seeds"]
    ]


def codebook_file(preset: str) -> Path:
    """The image tokenizer that the native minis of a preset share."""
    return minis.minis_folder(preset) / "codebook.safetensors"


def eyes_file(preset: str) -> Path:
    """The vision tower that the adapted minis of a preset begin with."""
    return minis.minis_folder(preset) / "eyes.safetensors"


def start_folder(preset: str, settings: Mapping[str, Any]) -> Path:
    """The folder of the mini that a recipe starts from: of its own seed, or of that mini's only one.

    Raises MissingFile, HashMismatch if a file of it is not the one its card describes.
    """
    name, known = settings["start"], minis.recipe(preset, settings["start"])
    seeds = (minis.recipes(preset)["defaults"] | minis.recipes(preset)["minis"][name])["seeds"]
    seed = settings["seed"] if settings["seed"] in seeds else known["seed"]
    folder = minis.minis_folder(preset) / label(name, seed)
    if not folder.with_suffix(".json").is_file():
        raise MissingFile(f"There is no {folder}, which this mini starts from: run `pg train mini-{name}` first.")
    store.check_files(folder, store.read_json(folder.with_suffix(".json"))["files"])
    return folder


def begin(
    settings: Mapping[str, Any], tokenizer: Path, tower: Path, start: Path | None = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The network before the first step, in float32.

    tokenizer, tower: files of the image tokenizer of a native mini and the vision tower of an adapted one, made if they
    are not there.  start: folder of the mini that training begins with.
    """
    n_image = settings.get("n_image", codebook.N_IMAGE)
    with torch.random.fork_rng():
        torch.manual_seed(settings["seed"])
        if settings["kind"] == "words":
            network, processor = minis.language_model(settings["shape"])
        elif settings["kind"] == "adapted":
            network, processor = minis.adapted(settings["shape"], n_image)
        else:
            network, processor = minis.native(settings["shape"], settings["codebook"], n_image)
    if settings["kind"] == "native":
        weights = codebook.codebook(settings["codebook"], tokenizer)
        vq = {name.removeprefix("vq."): tensor for name, tensor in weights.items() if name.startswith("vq.")}
        network.model.vqmodel.load_state_dict(vq)
        network.model.vqmodel.requires_grad_(False)
        network.config.wiring = settings["wiring"]
        place_codes(network, processor, settings)
    if settings["kind"] == "adapted":
        network.model.vision_tower.load_state_dict(eyes.eyes(settings["eyes"], tower))
        network.model.vision_tower.requires_grad_(False)  # as in LLaVA: learning on would first unlearn to see
    if start:
        weights = load_file(start / "model.safetensors")
        part = network.model.language_model if settings["kind"] == "adapted" else network
        if part is not network:
            weights = {key.removeprefix("model."): tensor for key, tensor in weights.items() if key != "lm_head.weight"}
        found = part.load_state_dict({key: tensor.float() for key, tensor in weights.items()}, strict=False)
        if found.unexpected_keys or set(found.missing_keys) - {"lm_head.weight"}:
            raise MissingFile(f"{start} is of another shape: {found}. Train it again.")
    network.tie_weights()
    return network.to(best_device()), processor


@torch.no_grad()
def place_codes(network: PreTrainedModel, processor: ProcessorMixin, settings: Mapping[str, Any]) -> None:
    """Begin with codes that look alike near each other: a random projection of the codebook, as large as words."""
    codes = network.model.vqmodel.quantize.embedding.weight
    codes = (codes - codes.mean(0)) / codes.std()
    table = network.get_input_embeddings().weight
    rows = processor.tokenizer.convert_tokens_to_ids(minis.code_names(len(codes)))
    generator = torch.Generator().manual_seed(settings["seed"])
    projection = torch.randn(codes.shape[1], table.shape[1], generator=generator) / codes.shape[1] ** 0.5
    table[rows] = table.std() * codes @ projection


def descend(network: PreTrainedModel, processor: Any, settings: Mapping[str, Any], work: Path) -> Log:
    """The steps themselves, from the stored state on if there is one."""
    words = processor if settings["kind"] == "words" else processor.tokenizer
    # What only some recipes say has a default.
    said = {key: settings[key] for key in ("n_image", "most_things") if key in settings}
    lessons = Lessons(words, *(settings[key] for key in ("n_scenes", "seed", "captions", "direct")), **said)
    codes = codes_of(network, processor, lessons) if settings["kind"] == "native" else None
    if settings["penalty"]:
        network.set_attn_implementation("eager")  # the only one that shows its weights
    weights = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizers = training_state.optimizers_of(weights)
    log, done = training_state.restore(weights, optimizers, work / "state.safetensors")
    uniform = math.log(len(words))
    network.train()
    with bar(total=settings["steps"], initial=done, desc="training", unit="step") as progress:
        for step in range(done, settings["steps"]):
            rate = learning_rate(step, settings["steps"], settings["learning_rate"], settings["warmup"])
            before = progress.format_dict["elapsed"]
            loss, told = loss_of(network, processor, lessons, codes, settings, step)
            loss.backward()
            nn.utils.clip_grad_norm_(weights.values(), CLIP)
            log.loss.append(told)
            # A trained model that is given a new wiring or a price may forget for a while all it could do.
            check_loss([max(each, KNOWS * uniform) for each in log.loss], uniform, work)
            training_state.step(optimizers, rate)
            log.seconds += progress.format_dict["elapsed"] - before
            progress.update()
            progress.set_postfix(loss=f"{sum(log.loss[-20:]) / len(log.loss[-20:]):.3f}")
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == settings["steps"]:
                training_state.keep(weights, optimizers, log, step + 1, work / "state.safetensors")
    if settings["penalty"]:
        network.set_attn_implementation("sdpa")
    network.eval()
    return log


def codes_of(network: PreTrainedModel, processor: ProcessorMixin, lessons: Lessons) -> Tensor:
    """The image tokens of all training scenes, (N, n_image) int64, made once for all minis with one image tokenizer."""

    @torch.inference_mode()
    def encode() -> dict[str, Tensor]:
        found = []
        for start in bar(iterable=range(0, len(lessons.pool), ENCODED), desc="images to codes", unit="batch"):
            drawn = [draw(scene, lessons.side) for scene in lessons.pool[start : start + ENCODED]]
            pixels = processor.image_processor(drawn, return_tensors="pt")["pixel_values"]
            found.append(network.model.get_image_tokens(pixels.to(network.device)).cpu())
        return {"codes": torch.cat(found)}

    made = codebook.identity(network.model.vqmodel)
    inputs = {"image tokenizer": made, "n_scenes": lessons.n_scenes}
    unusual = {"n_image": codebook.N_IMAGE, "most_things": MOST_THINGS}
    inputs |= {key: getattr(lessons, key) for key, usual in unusual.items() if getattr(lessons, key) != usual}
    return store.tensors("mini_codes", inputs, encode, codebook.DRAWING).get_tensor("codes")


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
        found = text_loss(network, lessons.batch(step, size, "caption"))
        return found, found.item()
    if kind == "adapted":
        packed = lessons.batch(step, size, "image")
        drawn = [draw(scene, lessons.side) for scene in packed.scenes]
        pixels = processor.image_processor(drawn, return_tensors="pt")["pixel_values"].to(network.device)
        found = text_loss(network, packed, pixel_values=pixels)
        return found, found.item()
    chosen = lessons.chosen(step, size)
    packed = with_codes(lessons.batch(step, size, "marked image"), codes[chosen])
    hidden, share = states(network, packed, settings["closed"] or settings["wiring"], bool(settings["penalty"]))
    text = predicted(network, hidden, packed)
    found = text + settings["penalty"] * min(1.0, (step + 1) / RAMP) * share
    if settings["image_loss"]:
        # Fewer images after a text than before one: they take as long, and teach little about reading.
        few = with_codes(lessons.batch(step, size // 4, "caption, image"), codes[lessons.chosen(step, size // 4)])
        after, _ = states(network, few, None, False)
        images = torch.cat([image_losses(network, hidden, packed), image_losses(network, after, few)])
        found = found + settings["image_loss"] * images.mean()
    return found, text.item()


def with_codes(packed: Packed, codes: Tensor) -> Packed:
    """The batch with the image's codes in place of its image tokens.  codes: (B, n_image)."""
    ids = packed.ids.clone()
    ids[packed.tokens.where("image")] = codes.flatten().to(ids)
    return Packed(**vars(packed) | {"ids": ids})


def states(
    network: PreTrainedModel, packed: Packed, wiring: str | None, penalised: bool, **inputs: Tensor
) -> tuple[Tensor, Tensor | float]:
    """What the head reads, (B, T, D), and the share of the text's attention that goes to image tokens, if asked for."""
    reads = packed.reads
    if wiring:
        reads = reads & ~closed_pairs(packed.tokens, wiring)
    mask = reads[:, None].to(network.device)
    if network.config._attn_implementation == "eager":
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
    found = network.model(
        input_ids=packed.ids.to(network.device),
        attention_mask=mask,
        position_ids=packed.positions.to(network.device),
        use_cache=False,
        output_attentions=penalised,
        **inputs,
    )
    if not penalised:
        return found.last_hidden_state, 0.0
    image, text = packed.tokens.where("image"), packed.tokens.where("after")
    pairs = (text[:, :, None] & image[:, None, :]).float()[:, None].to(network.device)
    mass = torch.stack([(weights * pairs).sum((1, 2, 3)).sum() / weights.shape[1] for weights in found.attentions])
    return found.last_hidden_state, mass.mean() / text.sum()


def predicted(network: PreTrainedModel, hidden: Tensor, packed: Packed) -> Tensor:
    """Mean cross-entropy of what a batch is to predict; the head runs at these places alone."""
    logits = network.get_output_embeddings()(hidden[packed.rows, packed.places])
    return cross_entropy(logits.float(), packed.targets.to(logits.device))


def text_loss(network: PreTrainedModel, packed: Packed, **inputs: Tensor) -> Tensor:
    """The loss of a model that reads images by a tower, or none."""
    return predicted(network, states(network, packed, None, False, **inputs)[0], packed)


def image_losses(network: PreTrainedModel, hidden: Tensor, packed: Packed) -> Tensor:
    """Cross-entropy (M,) of every image token, predicted from the token before it."""
    image = packed.tokens.where("image")
    before = image.roll(-1, 1)
    logits = network.get_output_embeddings()(hidden[before.to(hidden.device)])
    return cross_entropy(logits.float(), packed.ids[image].to(logits.device), reduction="none")


def publish(
    network: PreTrainedModel,
    processor: Any,
    settings: Mapping[str, Any],
    wanted: Mapping[str, Any],
    log: Log,
    target: Path,
    n_scored: int,
) -> None:
    """Write the mini in bfloat16 and its card; the card last, so that a mini with one is complete."""
    card = target.with_suffix(".json")
    with store.writing(card):
        card.unlink(missing_ok=True)
    save(network, processor, target)
    about = {
        "made_from": wanted,
        "command": f"pg train mini-{target.name.rpartition('-')[0]} --seed {settings['seed']}",
        "code": store.code_version(*CODE),
        "sha256": store.file_sha256(target / "model.safetensors"),
        "files": store.checksums(target),
        "parameters": sum(p.numel() for p in network.parameters()),
        "log": vars(log),
        "environment": store.environment(),
    }
    store.write_json(card, about | scored(target, settings, n_scored))
    print(f"{target}: {log.seconds / 60:.1f} minutes, loss {sum(log.loss[-50:]) / len(log.loss[-50:]):.3f}")


def scored(target: Path, settings: Mapping[str, Any], n_scored: int) -> dict[str, Any]:
    """What a card says of what a mini can do: nothing of one that sees no images."""
    return {"n_scored": n_scored, "scores": {} if settings["kind"] == "words" else mini_scores.scores(target, n_scored)}


def save(network: PreTrainedModel, processor: Any, target: Path) -> None:
    """Write a mini into a folder, in bfloat16.  Raises StorageFull."""
    with store.writing(target):
        target.mkdir(parents=True, exist_ok=True)
        network.to(torch.bfloat16).save_pretrained(target)
        processor.save_pretrained(target)
