"""How fine-tuning changes the landscape, checkpoint by checkpoint (paper 1, the figure of its dynamics).

table = dynamics(study, "weights/fine-tuned-0")
"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import torch

from . import models, record, store
from .errors import MissingFile, TooFewPoints
from .extraction import StoredStates
from .geometry import first_of_identical, landscape, reclustered
from .neighbours import nearest_neighbours, point_overlap
from .peaks import CLASS_FRACTION, GEOMETRY, Study, row
from .progress import bar
from .questions import Prompt, build_prompts
from .uncertainty import mean_estimate

NEIGHBOURS = 30  # the paper's k
RECIPE = "figures"


def checkpoints(folder: str) -> dict[int, str]:
    """Folders of the checkpoints of an adapter by step, in order.

    Raises MissingFile if there are none, or if the training was interrupted before it wrote its card.
    """
    path = models.in_checkout(folder)
    steps = sorted(int(p.name.removeprefix("step-")) for p in path.glob("checkpoints/step-*"))
    found = {step: f"{folder}/checkpoints/step-{step}" for step in steps}
    if not found:
        raise MissingFile(f"{folder} holds no checkpoints: `pg finetune` makes them.")
    if not (path / "card.json").is_file():
        raise MissingFile(f"{folder} has no card.json: its training was interrupted. Run `pg finetune`, it goes on.")
    return found


def prompts(study: Study) -> list[Prompt]:
    """The questions a training is followed on: dev and validation, without shots, with header, as in the paper."""
    questions = study.question_set()
    parts = [build_prompts(questions, 0, split=split, with_header=study.with_header) for split in ("dev", "validation")]
    return [prompt for part in parts for prompt in part]


def dynamics(
    study: Study, folder: str, name: str = "dynamics", only_last: bool = False, against: str | None = None
) -> pd.DataFrame:
    """Every checkpoint of an adapter against the model it started from, layer by layer.

    study: its model is the one the adapter was trained on.  folder: of the adapter, with its checkpoints.
    name: of the table in the record.  only_last: the last checkpoint alone.  against: a model to compare with in place
    of the study's own, whose step 0 is then no longer 1.

    conditions: "step 0" (the model itself), "step 6", …, and "fine-tuned", the last step again, for claims.
    metrics: `overlap_pretrained` (share of a question's 30 nearest neighbours that are so in the model before;
    interval: bootstrap over questions), `overlap_answer`, `ari_answer` (recipe "figures"), `accuracy` (layer 0).
    """
    found = checkpoints(folder)
    if only_last:
        found = dict([max(found.items())])
    inputs = {"study": asdict(study), "checkpoints": list(found.values()), "against": against}
    return record.table(name, inputs, lambda: dynamics_table(study, found, against))


def dynamics_table(study: Study, found: dict[int, str], against: str | None = None) -> pd.DataFrame:
    """Compute what `dynamics` returns."""
    asked = prompts(study)
    before = replace(study, model=against or study.model).read(asked, "before")
    tables = []
    for step, folder in {0: None, **found}.items():
        states = replace(study, adapter=folder).read(asked, f"step {step}")
        inputs = {"before": before.key, "states": states.key, "point": study.point, "step": step}
        compute = lambda states=states, step=step: step_table(study, f"step {step}", before, states)
        tables.append(store.table("dynamics", inputs, compute, (*GEOMETRY, "peaks", "dynamics")))
    last = tables[-1].assign(condition="fine-tuned")
    return pd.concat([*tables, last], ignore_index=True).assign(model=study.model)


def step_table(study: Study, condition: str, before: StoredStates, states: StoredStates) -> pd.DataFrame:
    """Rows of one checkpoint.  Raises TooFewPoints."""
    if len(states.subject) <= NEIGHBOURS:
        raise TooFewPoints(f"{len(states.subject)} questions have no {NEIGHBOURS} neighbours each; take more subjects.")
    right = states.letter_logprobs.argmax(1) == states.answer
    rows = [row(study, condition, 0, 0.0, "accuracy", "", mean_estimate(right.double().numpy()))]
    answer = states.answer.numpy()
    layers = range(1, states.n_layers + 1)
    for layer in bar(iterable=layers, desc=condition, unit="layer"):
        depth = layer / states.n_layers
        here, there = states.layer(study.point, layer), before.layer(study.point, layer)
        overlap = mean_estimate(overlap_of(there, here))
        rows.append(row(study, condition, layer, depth, "overlap_pretrained", f"k={NEIGHBOURS}", overlap))
        where = f"{study.model}, {condition}, layer {layer}"
        labels = {"answer": answer}
        found = landscape(here, labels, RECIPE, class_fraction=CLASS_FRACTION, where=where)
        agreement = reclustered({RECIPE: found}, labels)["ari_answer", RECIPE]
        rows.append(row(study, condition, layer, depth, "overlap_answer", "neighbours", found.label_overlap["answer"]))
        rows.append(row(study, condition, layer, depth, "ari_answer", RECIPE, agreement))
    return pd.DataFrame(rows)


def overlap_of(before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    """Share of each question's nearest neighbours that two (n, D) sets of states have in common, (m,) in [0, 1].

    A question whose state equals an earlier one's, in either set, is left out of both, as in the paper.
    """
    kept = np.intersect1d(first_of_identical(before), first_of_identical(after))
    neighbours = [nearest_neighbours(states[kept], NEIGHBOURS)[1] for states in (before, after)]
    return point_overlap(*neighbours, NEIGHBOURS)
