"""Train the grid of the study on narrow gates, so that it can be killed and goes on where it was.

    run("laptop")                    # leaves weights/study/CELL-SEED.json
    run("laptop", ["penalty-30"])

A model lives in the cache alone; what is kept of it is its card: what it was made from, what it lost with each cut, the
course of its loss.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import interventions, mini_data, mini_training, minis, scene_table, scene_words, store, vqa
from .codebook import side_of
from .errors import BadParameter, BookError, UnknownName
from .finetune import Log
from .gate import study as gate
from .gate_study import Cell, grid, size
from .pictures import Picture
from .scene_drawing import draw
from .uncertainty import Estimate, mean_estimate

CODE = ("study_training", "scene_table", *mini_training.CODE)
MEASURED = ("study_training", "scene_table", *interventions.CODE)
CUTS = {"accuracy": "none", "lost without end": "end → text", "lost without image": "image → text"}
EVERY = 20  # steps that a point of a card's loss is the mean of
ANSWER = 3  # new tokens: a word, the end of the text, and one more
TEST_SEED = 0  # all models are asked the same


def recipe(preset: str, cell: Cell | None, seed: int) -> dict[str, Any]:
    """All that one model is made from; with cell None the language model that an adapted one starts from.

    Raises UnknownName.
    """
    chosen = size(preset)
    changes = dict(cell.changes) if cell else chosen["words"]
    settings, shape = dict(chosen["base"]), dict(chosen["shape"])
    for key, value in changes.items():
        if key not in settings and key not in shape:
            raise UnknownName("setting of the study", key, [*settings, *shape])
        (settings if key in settings else shape)[key] = value
    tower = {"eyes": chosen["eyes"] | {"shape": shape}} if settings["kind"] == "adapted" else {}
    return settings | {"seed": seed, "shape": shape, "codebook": minis.recipes(preset)["codebook"]} | tower


def cards_folder(preset: str) -> Path:
    """Where the cards are kept, beside the minis."""
    return minis.minis_folder(preset).with_name("study")


def wanted(preset: str, cell: Cell, seed: int) -> dict[str, Any]:
    """What a model's numbers are made from, as its card says it."""
    settings = recipe(preset, cell, seed)
    start = {"start": recipe(preset, None, seed)} if settings["start"] else {}
    return {"recipe": settings} | start | {key: size(preset)[key] for key in ("n_questions", "kinds")}


def run(preset: str, only: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Path]:
    """Train and measure cells, all if none is named, with each of their seeds or with those given; what has a card is
    skipped.  Returns the cards.

    Raises UnknownName, TrainingDiverged, StorageFull.
    """
    cells = grid(preset)
    for name in only:
        if name not in cells:
            raise UnknownName("cell of the study", name, cells)
    todo = [(cells[name], seed) for name in only or cells for seed in seeds or cells[name].seeds]
    return [card(preset, cell, seed, f"[{i}/{len(todo)}]") for i, (cell, seed) in enumerate(todo, 1)]


def card(preset: str, cell: Cell, seed: int, title: str = "") -> Path:
    """Train and measure one model, unless its card is there.  Returns the card."""
    path = cards_folder(preset) / f"{cell.name}-{seed}.json"
    made_from = wanted(preset, cell, seed)
    if path.is_file() and store.read_json(path).get("made_from") == json.loads(json.dumps(made_from)):
        print(f"{title} {path}: done", flush=True)
        return path
    print(f"{title} {path}", flush=True)
    settings = made_from["recipe"]
    folder, log = made(preset, settings)
    shown = asked(settings["n_image"], settings["most_things"], made_from["n_questions"], made_from["kinds"])
    loss = [float(np.mean(log.loss[i : i + EVERY])) for i in range(0, len(log.loss), EVERY)]
    about = {
        "made_from": made_from,
        "cell": cell.name,
        "seed": seed,
        "command": f"pg study --preset {preset} --only {cell.name} --seed {seed}",
        "code": store.code_version(*sorted({*CODE, *MEASURED})),
        "scores": {name: numbers(found) for name, found in scores(shown, answers(folder, shown)).items()},
        "log": {"loss": loss, "every": EVERY, "seconds": log.seconds},
        "environment": store.environment(),
    }
    store.write_json(path, about)
    print(f"{path}: {log.seconds / 60:.1f} minutes, accuracy {about['scores']['accuracy']['value']:.2f}", flush=True)
    return path


def numbers(found: Estimate) -> dict[str, float | None]:
    """An estimate for a card; what cannot be measured is null."""
    ends = {end: getattr(found, end) for end in ("value", "low", "high")}
    return {end: None if np.isnan(value) else value for end, value in ends.items()} | {"n": found.n}


def made(preset: str, settings: Mapping[str, Any]) -> tuple[Path, Log]:
    """The folder of a trained model in the cache, trained if it is not there, and what was measured meanwhile."""
    before = recipe(preset, None, settings["seed"]) if settings["start"] else None
    inputs = {"recipe": settings, "start": before, "code": store.code_version(*CODE)}
    folder = store.cache_folder() / "study"
    work = folder / store.digest(inputs)
    log = finished(work)
    if log is None:
        start = made(preset, before)[0] if before else None
        tower = folder / f"eyes-{store.digest([settings.get('eyes'), inputs['code']])}.safetensors"
        network, processor = mini_training.begin(settings, mini_training.codebook_file(preset), tower, start)
        log = mini_training.descend(network, processor, settings, work)
        mini_training.save(network, processor, work / "model")
        store.write_json(work / "log.json", {"log": vars(log), "files": store.checksums(work / "model")})
        (work / "state.safetensors").unlink(missing_ok=True)
    return work / "model", log


def finished(work: Path) -> Log | None:
    """What was measured of a finished model; None if there is none or, with a warning, if a file of it is damaged."""
    about = work / "log.json"
    if not about.is_file():
        return None
    try:
        known = store.read_json(about)
        store.check_files(work / "model", known["files"])
    except BookError as error:
        warnings.warn(f"{error} It is trained anew now.", stacklevel=2)
        return None
    return Log(**known["log"])


def asked(n_image: int, most_things: int, n: int, kinds: Sequence[str]) -> list[Picture]:
    """Up to n test scenes, drawn for so many image tokens, with a question of the kinds each, of several in turn.

    Raises UnknownName, BadParameter.
    """
    for kind in kinds:
        if kind not in scene_words.KINDS:
            raise UnknownName("kind of question", kind, scene_words.KINDS)
    found = []
    for scene in mini_data.sample("test", n, TEST_SEED, most_things):
        possible = [question for question in scene_words.questions(scene) if question.kind in kinds]
        if not possible:
            continue
        question = possible[len(found) % len(possible)]
        written = io.BytesIO()
        draw(scene, side_of(n_image)).save(written, "PNG")
        key = f"study-{hashlib.sha256(written.getvalue()).hexdigest()[:16]}"
        found.append(Picture(written.getvalue(), key, None, (), question.text, (question.answer,), question.kind))
    if not found:
        raise BadParameter(f"None of {n} test scenes has a question of the kinds {', '.join(kinds)}.")
    return found


def answers(folder: Path, shown: Sequence[Picture]) -> dict[str, list[str]]:
    """What a model answers with every cut, by the metric that is made from it."""
    study = gate.Study(str(folder), new_tokens=(ANSWER, ANSWER), dtype="float32", batch_size=32)
    say = lambda cut: interventions.answers(study, "questions", shown, interventions.CUTS[cut])
    return {metric: say(cut) for metric, cut in CUTS.items()}


def scores(shown: Sequence[Picture], said: Mapping[str, Sequence[str]]) -> dict[str, Estimate]:
    """Accuracy, a guesser's accuracy, what each cut takes of it, and the strength of the gate.

    The guesser sees no picture, and of each question's wording it knows the answer that is most often right here.
    The strength is the share lost without the end-of-image token less the share lost without the image: 1 is a gate
    that everything goes through, -1 a model whose text reads the image itself.
    """
    right = {metric: vqa.vqa_accuracy(list(texts), [p.answers for p in shown]) for metric, texts in said.items()}
    whole, end, image = (right[metric] for metric in CUTS)
    questions = [scene_words.Question(p.kind, p.question, p.answers[0]) for p in shown]
    guessed = scene_table.hits(questions, scene_table.commonest(questions, "text"), "text")
    lost = interventions.share_lost
    # The difference of two shares of one whole is itself a share of it; questions stay together in its interval.
    found = {"accuracy": mean_estimate(whole), "guess": mean_estimate(guessed)}
    found |= {"lost without end": lost(whole, end), "lost without image": lost(whole, image)}
    return found | {"strength": lost(whole, whole + end - image)}
