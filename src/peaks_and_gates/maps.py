"""Maps of the hidden states: every question a point, in the plane that keeps most of a layer's spread.

    found = maps.landscape_map(maps.views(study, pretrained, fine_tuned), recipe)
    found.points, found.questions, found.landscape      # three recorded tables

The plane is that of the first two principal components. Peaks are those of all the questions in all the dimensions: a
map shows them, it does not find them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA

from . import record, store, wordnet
from .extraction import StoredStates
from .geometry import landscape
from .peaks import GEOMETRY, Study, condition_name, row
from .progress import bar
from .questions import LETTERS, QuestionSet
from .uncertainty import Estimate, adjusted_rand_index

UNIT = 100  # coordinates are recorded as whole hundredths of a layer's spread
TEXT = 90  # characters of a question that are recorded


@dataclass(frozen=True)
class Map:
    """What a map is drawn from.

    Attributes:
        points: condition, model, layer, question (number in `questions`), x, y (hundredths of the layer's root mean
            square distance from its centre), peak (0 is the largest; -1 for a state identical to another's), n.
        questions: question, subject, group, text, answer (the letter), option (what it stands for), n.
        landscape: tidy, see `peaks`: `ari_subject`, `ari_answer` (interval: bootstrap over questions, peaks kept),
            `n_peaks`, `explained` (share of the variance that lies in the plane).
    """

    points: pd.DataFrame
    questions: pd.DataFrame
    landscape: pd.DataFrame


def views(study: Study, pretrained: str, fine_tuned: str) -> dict[str, Study]:
    """What there is to compare: the raw model with the most shots and without, the pretrained one, the fine-tuned."""
    shots = max(study.shots)
    found = {condition_name(shots): replace(study, shots=[shots]), condition_name(0): replace(study, shots=[0])}
    if pretrained != study.model:
        found[f"pretrained, {condition_name(shots)}"] = replace(study, model=pretrained, shots=[shots])
    return found | {"fine-tuned": replace(study, model=fine_tuned, shots=[0])}


def landscape_map(asked: Mapping[str, Study], recipe: str = "figures", n_shown: int = 10, seed: int = 0) -> Map:
    """The recorded tables "map", "map_questions" and "map_landscape".

    asked: studies of one number of shots each, on the same questions, by condition.  n_shown: questions a subject that
    are recorded; peaks, planes and numbers are those of all.
    """
    inputs = {"asked": {name: asdict(study) for name, study in asked.items()}, "recipe": recipe, "seed": seed}
    shown = inputs | {"n_shown": n_shown}
    return Map(
        points=record.table("map", shown, lambda: points_table(asked, recipe, n_shown, seed)),
        questions=record.table("map_questions", shown, lambda: questions_table(asked, n_shown, seed)),
        landscape=record.table("map_landscape", inputs, lambda: numbers_table(asked, recipe, seed)),
    )


def points_table(asked: Mapping[str, Study], recipe: str, n_shown: int, seed: int) -> pd.DataFrame:
    """Compute `Map.points`."""
    tables = []
    for condition, study in asked.items():
        questions = study.question_set()
        rows = chosen(questions, n_shown, seed)
        planes = layer_planes(study, questions, condition, recipe, seed)[1]
        turned = aligned([plane[["x", "y"]].to_numpy() for plane in planes.values()])
        for (layer, plane), place in zip(planes.items(), turned, strict=True):
            x, y = (UNIT * place[rows]).round().astype(np.int16).T
            peak = plane["peak"].to_numpy()[rows]
            columns = {"condition": condition, "model": study.model, "layer": layer, "question": np.arange(len(rows))}
            tables.append(pd.DataFrame(columns | {"x": x, "y": y, "peak": peak, "n": len(plane)}))
    return pd.concat(tables, ignore_index=True)


def questions_table(asked: Mapping[str, Study], n_shown: int, seed: int) -> pd.DataFrame:
    """Compute `Map.questions`."""
    questions = next(iter(asked.values())).question_set()
    everything = [question for subject in questions.subjects for question in questions.test[subject]]
    groups = {subject.name: subject.group for subject in wordnet.subjects()}
    rows = []
    for number, index in enumerate(chosen(questions, n_shown, seed)):
        question = everything[index]
        text = question.text if len(question.text) <= TEXT else question.text[: TEXT - 1].rstrip() + "…"
        subject, answer = question.subject.replace("_", " "), LETTERS[question.answer]
        # A question set without groups of subjects (MMLU): every subject is a group of its own.
        group = groups.get(question.subject, subject)
        rows.append((number, subject, group, text, answer, question.options[question.answer], len(everything)))
    return pd.DataFrame(rows, columns=["question", "subject", "group", "text", "answer", "option", "n"])


def numbers_table(asked: Mapping[str, Study], recipe: str, seed: int) -> pd.DataFrame:
    """Compute `Map.landscape`."""
    rows = []
    for condition, study in asked.items():
        states, planes = layer_planes(study, study.question_set(), condition, recipe, seed)
        labels = {"subject": np.array(states.subject), "answer": states.answer.numpy()}
        for layer, plane in planes.items():
            peak = plane["peak"].to_numpy()
            kept = peak >= 0
            alone = lambda value, kept=kept: Estimate(float(value), np.nan, np.nan, int(kept.sum()))
            found = {"n_peaks": alone(peak.max() + 1), "explained": alone(plane["explained"].iloc[0])}
            for label, values in labels.items():
                found[f"ari_{label}"] = adjusted_rand_index(peak[kept], values[kept], seed=seed)
            depth = layer / states.n_layers
            rows += [row(study, condition, layer, depth, metric, recipe, e) for metric, e in found.items()]
    return pd.DataFrame(rows)


def chosen(questions: QuestionSet, n_shown: int, seed: int) -> np.ndarray:
    """Ascending numbers of at most n_shown questions of each subject, among all in the order of the prompts."""
    rng = np.random.default_rng(seed)
    found, start = [], 0
    for subject in questions.subjects:
        size = len(questions.test[subject])
        found.append(start + np.sort(rng.choice(size, min(n_shown, size), replace=False)))
        start += size
    return np.concatenate(found)


def mapped_layers(n_layers: int, most: int = 16) -> list[int]:
    """Evenly spaced layers, as many as a slider has places for; the last is always one of them."""
    step = -(-n_layers // most)
    return list(range(n_layers, 0, -step))[::-1]


def layer_planes(
    study: Study, questions: QuestionSet, condition: str, recipe: str, seed: int
) -> tuple[StoredStates, dict[int, pd.DataFrame]]:
    """The states of a study and the plane of each mapped layer, one stored table a layer, see `plane`."""
    states = study.states(questions, study.shots[0])
    planes = {}
    for layer in bar(iterable=mapped_layers(states.n_layers), desc=f"map, {condition}", unit="layer"):
        inputs = {"states": states.key, "point": study.point, "layer": layer, "recipe": recipe, "seed": seed}
        where = f"{study.model}, {condition}, layer {layer}"
        compute = lambda layer=layer, where=where: plane(states.layer(study.point, layer), recipe, seed, where)
        planes[layer] = store.table("map", inputs, compute, (*GEOMETRY, "maps"))
    return states, planes


def plane(hidden: torch.Tensor, recipe: str, seed: int = 0, where: str = "the hidden states") -> pd.DataFrame:
    """Where each question lies in the plane of the first two principal components, and in which peak of the whole.

    hidden: (n, D).  Columns: x, y (float, centred), peak (0 is the one with most questions; -1 for a state identical to
    an earlier one), explained (share of the variance in the plane, the same in every row).  Raises as `landscape`.
    """
    found = landscape(hidden, {}, recipe, where=where)
    by_size = np.argsort(-np.bincount(found.assignment), kind="stable")
    peak = np.full(len(hidden), -1, dtype=np.int16)
    peak[found.kept] = np.argsort(by_size)[found.assignment]
    components = PCA(n_components=2, random_state=seed)
    x, y = components.fit_transform(hidden.float().cpu().numpy()).T
    return pd.DataFrame({"x": x, "y": y, "peak": peak, "explained": components.explained_variance_ratio_.sum()})


def aligned(places: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Give every layer the same spread, and turn or mirror it until its points lie nearest to those of the one before.

    places: one (n, 2) a layer, the same questions.  Principal components have no sign, and two of like size no order:
    without this a map would spin from layer to layer.  Distances within a layer are kept, but for one factor.
    Source: orthogonal Procrustes, Schönemann 1966.
    """
    turned: list[np.ndarray] = []
    for place in places:
        place = place - place.mean(0)
        place = place / np.sqrt((place**2).sum(1).mean())
        turned.append(place @ orthogonal_procrustes(place, turned[-1])[0] if turned else place)
    return turned
