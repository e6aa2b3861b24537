"""What a trained mini can do, for its card."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from peaks_and_gates.gate.answers import cider, vqa_accuracy
from peaks_and_gates.gate.experiment import KNOCKOUTS, Experiment, generate_answers
from peaks_and_gates.gate.pictures import Picture
from peaks_and_gates.statistics import bootstrap_mean
from training.scenes.build import scene_rows


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
    captions = cider(texts["captions"], [list(picture.captions) for picture in by_task["captions"]])  # (m,)
    return {
        "questions": {kind: asdict(bootstrap_mean(np.array(values))) for kind, values in sorted(by_kind.items())},
        "all questions": asdict(bootstrap_mean(np.array(right))),
        "classes": asdict(bootstrap_mean(np.array(correct, float))),
        "cider_ptb": asdict(bootstrap_mean(captions)),
    }


def pictures(n: int) -> list[Picture]:
    """The first n test scenes as pictures with a question and captions; 24 in a row are of 24 classes."""
    return [
        Picture(row.png, row.key, row.label, tuple(row.captions), row.question, (row.answer,), row.kind)
        for row in scene_rows("test", n, 0).itertuples()
    ]
