"""Train the grid of the study on narrow gates, so that a killed run resumes where it stopped.

    run("laptop")                    # leaves weights/study/CELL-SEED.json
    run("laptop", ["penalty-30"])

A model lives in the cache alone; its card is kept: what it was made from, what it lost with each cut, the course of
its loss.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peaks_and_gates.cache import cache_folder, digest, made_once, read_json, write_json
from peaks_and_gates.errors import UnknownName
from peaks_and_gates.gate.answers import vqa_accuracy
from peaks_and_gates.gate.experiment import KNOCKOUTS, Experiment, generate_answers
from peaks_and_gates.gate.pictures import Picture
from peaks_and_gates.statistics import Estimate, bootstrap_mean, share_lost
from training.common import Log, is_made_from, source_hash, write_card
from training.minis import models
from training.minis.image_tokenizer import side_of
from training.minis.train import build, save, train_loop
from training.scenes.build import png
from training.scenes.drawing import draw
from training.scenes.scene import sample
from training.scenes.words import questions

from .grid import Cell, cards_folder, grid, size

CUTS = {"accuracy": "none", "lost without end": "end → text", "lost without image": "image → text"}
EVERY = 20  # steps that a point of a card's loss is the mean of
ANSWER = 3  # new tokens: a word, the end of the text, and one more
TEST_SEED = 0  # all models are asked the same


def recipe(preset: str, cell: Cell | None, seed: int) -> dict[str, Any]:
    """All that one model is made from; with cell None the language model that an adapted one starts from.

    Raises UnknownName.
    """
    chosen = size(preset)
    changes = dict(cell.changes) if cell else chosen["text-only"]
    settings, shape = dict(chosen["base"]), dict(chosen["shape"])
    for key, value in changes.items():
        if key not in settings and key not in shape:
            raise UnknownName("setting of the study", key, [*settings, *shape])
        (settings if key in settings else shape)[key] = value
    tower = {"eyes": chosen["eyes"] | {"shape": shape}} if settings["kind"] == "adapted" else {}
    return settings | {"seed": seed, "shape": shape, "codebook": models.recipes(preset)["codebook"]} | tower


def run(preset: str, names: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Path]:
    """Train and measure cells, all if none is named, with each of their seeds or with those given; what has a card is
    skipped.  Returns the cards.

    Raises UnknownName, TrainingDiverged, StorageFull.
    """
    cells = grid(preset)
    for name in names:
        if name not in cells:
            raise UnknownName("cell of the study", name, cells)
    return [train(preset, cells[name], seed) for name in names or cells for seed in seeds or cells[name].seeds]


def train(preset: str, cell: Cell, seed: int) -> Path:
    """Train and measure one model, unless its card is there.  Returns the card."""
    path = cards_folder(preset) / f"{cell.name}-{seed}.json"
    settings = recipe(preset, cell, seed)
    start = {"start": recipe(preset, None, seed)} if settings["start"] else {}
    made_from = {"recipe": settings} | start | {key: size(preset)[key] for key in ("n_questions", "kinds")}
    if is_made_from(path, made_from):
        print(f"{path}: done", flush=True)
        return path
    folder, log = trained(preset, settings)
    pictures = ask_scenes(settings["n_image"], settings["most_things"], made_from["n_questions"], made_from["kinds"])
    measured = scores(pictures, answers(folder, pictures))
    write_card(
        path,
        made_from,
        cell=cell.name,
        seed=seed,
        command=f"python -m training.narrow_gates {cell.name} --seed {seed} --preset {preset}",
        scores={name: numbers(score) for name, score in measured.items()},
        log={
            "loss": [float(np.mean(log.loss[i : i + EVERY])) for i in range(0, len(log.loss), EVERY)],
            "every": EVERY,
            "seconds": log.seconds,
        },
    )
    print(f"{path}: {log.seconds / 60:.1f} minutes, accuracy {measured['accuracy'].value:.2f}", flush=True)
    return path


def numbers(estimate: Estimate) -> dict[str, float | None]:
    """An estimate for a card; what cannot be measured is null."""
    ends = {end: getattr(estimate, end) for end in ("value", "low", "high")}
    return {end: None if np.isnan(value) else value for end, value in ends.items()} | {"n": estimate.n}


def trained(preset: str, settings: Mapping[str, Any]) -> tuple[Path, Log]:
    """The folder of a trained model in the cache, trained if it is not there, and what was measured meanwhile."""
    before = recipe(preset, None, settings["seed"]) if settings["start"] else None
    inputs = {"recipe": settings, "start": before, "code": source_hash()}
    folder = cache_folder() / "study"
    work = folder / digest(inputs)

    def make(target: Path) -> None:
        start = trained(preset, before)[0] if before else None
        tower = folder / f"eyes-{digest([settings.get('eyes'), inputs['code']])}.safetensors"
        network, processor = build(settings, models.minis_folder(preset) / "codebook.safetensors", tower, start)
        log = train_loop(network, processor, settings, work)
        save(network, processor, target)
        write_json(target / "log.json", vars(log))

    model = made_once(work / "model", inputs, make)
    return model, Log(**read_json(model / "log.json"))


def ask_scenes(n_image: int, most_things: int, n: int, kinds: Sequence[str]) -> list[Picture]:
    """Up to n test scenes, drawn for so many image tokens, with a question of the kinds each, of several in turn."""
    pictures: list[Picture] = []
    for scene in sample("test", n, TEST_SEED, most_things):
        possible = [question for question in questions(scene) if question.kind in kinds]
        if possible:
            question = possible[len(pictures) % len(possible)]
            encoded = png(draw(scene, side_of(n_image)))
            key = f"study-{hashlib.sha256(encoded).hexdigest()[:16]}"
            pictures.append(Picture(encoded, key, None, (), question.text, (question.answer,), question.kind))
    return pictures


def answers(folder: Path, pictures: Sequence[Picture]) -> dict[str, list[str]]:
    """What a model answers with every cut, by the metric that is made from it."""
    experiment = Experiment(str(folder), new_tokens=(ANSWER, ANSWER), dtype="float32", batch_size=32)
    knockouts = {metric: KNOCKOUTS[name] for metric, name in CUTS.items()}
    texts = generate_answers(experiment, "questions", pictures, list(knockouts.values()))
    return {metric: texts[knockout] for metric, knockout in knockouts.items()}


def scores(pictures: Sequence[Picture], texts: Mapping[str, Sequence[str]]) -> dict[str, Estimate]:
    """Accuracy, a guesser's accuracy, what each cut takes of it, and the strength of the gate.

    The guesser sees no picture, and of each question's wording it knows the answer that is most often right here.
    The strength is the share lost without the end-of-image token less the share lost without the image: 1 is a gate
    that everything goes through, -1 a model whose text reads the image itself.
    """
    right = {metric: vqa_accuracy(list(answered), [p.answers for p in pictures]) for metric, answered in texts.items()}
    uncut, end, image = (right[metric] for metric in CUTS)
    by_wording = defaultdict(Counter)
    for picture in pictures:
        by_wording[picture.question][picture.answers[0]] += 1
    guesses = [by_wording[picture.question].most_common(1)[0][0] == picture.answers[0] for picture in pictures]
    # The difference of two shares of one total is itself a share of it; questions stay together in its interval.
    estimates = {"accuracy": bootstrap_mean(uncut), "guess": bootstrap_mean(np.array(guesses))}
    estimates |= {"lost without end": share_lost(uncut, end), "lost without image": share_lost(uncut, image)}
    return estimates | {"strength": share_lost(uncut, uncut + end - image)}
