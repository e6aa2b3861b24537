"""What a mini can do on test scenes, as its card says it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from . import captions, interventions, vqa
from .gate import study as gate
from .uncertainty import mean_estimate


def scores(model: str | Path, n: int, dtype: str = "float32") -> dict[str, Any]:
    """Accuracy of answers by kind of question, of classes, and CIDEr of captions, each as an Estimate's fields.

    model: as `vlms.load` takes it.  n: questions; a quarter as many captions, and about as many scenes for the classes.
    """
    fewer = -(-n // 4)
    sizes = {"n_questions": n, "n_captions": fewer, "n_classes": 24, "n_per_class": -(-fewer // 24)}
    study = gate.Study(str(model), **sizes, batch_size=64, dtype=dtype)
    asked = study.pictures("questions")
    said = interventions.answers(study, "questions", asked, interventions.CUTS["none"])
    right = vqa.vqa_accuracy(said, [picture.answers for picture in asked])
    by_kind = defaultdict(list)
    for picture, score in zip(asked, right, strict=True):
        by_kind[picture.kind].append(score)
    shown = study.pictures("classes")
    named = interventions.answers(study, "classes", shown, interventions.CUTS["none"])
    told = study.pictures("captions")
    written = interventions.answers(study, "captions", told, interventions.CUTS["none"])
    cider = captions.cider(written, [list(picture.captions) for picture in told])[1]
    correct = np.array([text == picture.label for text, picture in zip(named, shown, strict=True)], float)
    return {
        "questions": {kind: asdict(mean_estimate(np.array(found))) for kind, found in sorted(by_kind.items())},
        "all questions": asdict(mean_estimate(np.array(right))),
        "classes": asdict(mean_estimate(correct)),
        "cider_ptb": asdict(cider),
    }
