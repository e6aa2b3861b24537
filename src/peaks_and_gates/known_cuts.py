"""Cuts and patches on models whose wiring is known: what must hurt, and what cannot.

table = known_cuts.accuracies(study, ["mini-gated", "mini-open"])

In *gated*, text can read the image through the end-of-image token alone; in *open*, that token is blind to the image.
So in one the first cut must take every picture away from the answers and the second nothing, in the other the reverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import pandas as pd

from . import interventions, record, vqa
from .gate.study import Study
from .interventions import CUTS
from .statistics import bootstrap_mean

SHOWN = ("none", "end → text", "image → text", "block → text")


def accuracies(study: Study, models: Sequence[str]) -> pd.DataFrame:
    """Accuracy on questions about scenes with each of the SHOWN cuts.

    Columns: model, cut, value, low, high, n.  Recorded as `known_cuts`.
    """

    def compute() -> pd.DataFrame:
        rows = []
        for model in models:
            asked = study.pictures("questions")
            cuts = [CUTS[name] for name in SHOWN]
            said = interventions.answers_by_cut(replace(study, model=model), "questions", asked, cuts)
            for name, texts in zip(SHOWN, said, strict=True):
                estimate = bootstrap_mean(vqa.vqa_accuracy(texts, [picture.answers for picture in asked]))
                row = {"model": model, "cut": name, "value": estimate.value, "low": estimate.low}
                rows.append(row | {"high": estimate.high, "n": estimate.n})
        return pd.DataFrame(rows)

    return record.table("known_cuts", asdict(study) | {"models": list(models)}, compute)


def flips(study: Study, models: Sequence[str]) -> pd.DataFrame:
    """Share of answers that change sides when the end-of-image token gets another picture's state, by layer.

    Columns: those of `interventions.patching`.  Recorded as `known_flips`.
    """

    def compute() -> pd.DataFrame:
        tables = [interventions.patching_rows(replace(study, model=model), step=1) for model in models]
        rows = pd.concat(tables, ignore_index=True)
        return rows[(rows["metric"] == "flips") & (rows["condition"] == "residual")].reset_index(drop=True)

    return record.table("known_flips", asdict(study) | {"models": list(models)}, compute)
