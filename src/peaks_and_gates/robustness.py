"""Do the findings depend on the analyst's choices? The landscape under other settings, shot orders and questions.

    table = robustness.settings_varied(study, pretrained, fine_tuned)   # Z, k and Gride scale, one at a time
    halves = robustness.halves(study, pretrained, fine_tuned)           # each half of the questions by itself
    orders = robustness.orders_varied(study)                            # one order of the shots, eight, one a question

Tables are tidy, as in `peaks`; `setting` says what was varied.  The layers are every third one, the last among them:
a highest value over them may miss a narrower one between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import StratifiedKFold

from . import record, store
from .clustering import RECIPES, Recipe
from .errors import BadParameter
from .extraction import StoredStates
from .geometry import Landscape, clustered, landscape, reclustered
from .peaks import CLASS_FRACTION, GEOMETRY, Study, condition_name, landscape_table, row, select
from .progress import bar
from .uncertainty import Estimate, adjusted_rand_index

CENTRE = "figures"  # the recipe around which one setting at a time is varied
PART = 0.9  # of the points in each re-clustering
REPEATS = 4  # re-clusterings an interval rests on: half of the other pages', since there are twelve settings
Case = tuple[str, Study]  # a condition's name, and the study that asks for it alone


def settings() -> dict[str, Recipe]:
    """The settings compared, by name: both recipes, and each choice of the first varied by itself.

    Source: the values the paper's code computes or its figures show, and one step beyond to either side.
    """
    centre = RECIPES[CENTRE]
    varied = {name: RECIPES[name] for name in (CENTRE, *RECIPES)}
    varied |= {f"Z = {z:g}": replace(centre, z=z) for z in (0.0, 1.0, 1.6, 2.1, 4.0)}
    varied |= {f"k = {k}": replace(centre, k=k) for k in (8, 32)}
    varied |= {f"Gride scale {s}": replace(centre, gride_scale=s) for s in (2, 4, 5)}
    return varied


def cases(study: Study, pretrained: str, fine_tuned: str) -> list[Case]:
    """No and most shots for the study's model and for `pretrained` (once if they are one), and the fine-tuned model."""
    models = dict.fromkeys([study.model, pretrained])
    shots = dict.fromkeys([0, max(study.shots)])
    few = [(condition_name(k), replace(study, model=model, shots=[k])) for model in models for k in shots]
    return [*few, ("fine-tuned", replace(study, model=fine_tuned, shots=[0]))]


def layers_of(n_layers: int, every: int = 3) -> list[int]:
    """Every so many layers, counted back from the last.  Raises BadParameter if that leaves a single one."""
    layers = list(range(n_layers, 0, -every))[::-1] if every > 0 else []
    if len(layers) < 2:
        raise BadParameter(f"every={every} leaves {len(layers)} of {n_layers} layers; choose 1 to {n_layers - 1}.")
    return layers


def settings_varied(study: Study, pretrained: str, fine_tuned: str, every: int = 3) -> pd.DataFrame:
    """Peaks, core fraction and ARIs under each of `settings`; recorded as "robustness".

    metrics: `n_peaks`, `core_fraction`, `ari_subject`, `ari_answer`; interval: clustered again on 90 % of the
    questions, four times.  A setting that needs more points than there are is left out.
    """
    asked = cases(study, pretrained, fine_tuned)
    compute = lambda: _of(computed(asked, every), halves=False)
    return record.table("robustness", _inputs(asked, every), compute)


def halves(study: Study, pretrained: str, fine_tuned: str, every: int = 3) -> pd.DataFrame:
    """The same by the recipe of the figures for halves of every subject's questions; recorded as "robustness_halves".

    setting: "split 1, half a" and so on; five random splits.  The halves of a split share no question, so they differ
    as two samples of that size do; `low`, `high` are not set.
    """
    asked = cases(study, pretrained, fine_tuned)
    compute = lambda: _of(computed(asked, every), halves=True)
    return record.table("robustness_halves", _inputs(asked, every), compute)


def orders_varied(study: Study, n_orders: Sequence[int | None] = (1, 8, None)) -> pd.DataFrame:
    """The landscape behind the most shots, in so many orders a subject; recorded as "robustness_orders".

    The questions are the same for each.  conditions: "1 order", "8 orders", "an order per question" (None: the
    paper's).  metrics and intervals as in `peaks.geometry`.
    """

    def compute() -> pd.DataFrame:
        questions = study.question_set()
        prompts = {
            orders_name(n): replace(study, n_orders=n).prompts(questions, max(study.shots)) for n in n_orders
        }  # by condition
        return landscape_table(study, prompts)

    return record.table("robustness_orders", {"study": asdict(study), "n_orders": list(n_orders)}, compute)


def orders_name(n_orders: int | None) -> str:
    """What a number of shot orders a subject is called."""
    return "an order per question" if n_orders is None else f"{n_orders} order{'s' * (n_orders > 1)}"


def _inputs(asked: Sequence[Case], every: int) -> dict:
    return {"cases": [[condition, asdict(study)] for condition, study in asked], "every": every}


def _of(table: pd.DataFrame, halves: bool) -> pd.DataFrame:
    """The rows of halves of the questions, or the rows of all of them."""
    return table[table["setting"].str.startswith("split") == halves].reset_index(drop=True)


def computed(asked: Sequence[Case], every: int = 3) -> pd.DataFrame:
    """Settings and halves of every case: one stored table, and one search for neighbours, per case and layer."""
    tables = []
    for condition, study in asked:
        states = study.states(study.question_set(), study.shots[0])
        title = f"robustness, {study.model}, {condition}"
        for layer in bar(iterable=layers_of(states.n_layers, every), desc=title, unit="layer"):
            inputs = {"states": states.key, "point": study.point, "layer": layer, "condition": condition}
            compute = lambda study=study, condition=condition, layer=layer, states=states: layer_table(
                study, condition, layer, states
            )
            table = store.table("robustness", inputs, compute, (*GEOMETRY, "peaks", "robustness"))
            tables.append(table.assign(model=study.model))  # two names may be one model, stored once
    return pd.concat(tables, ignore_index=True)


def layer_table(study: Study, condition: str, layer: int, states: StoredStates) -> pd.DataFrame:
    """Rows of one layer."""
    where = f"{study.model}, {condition}, layer {layer}"
    labels = {"subject": np.unique(states.subject, return_inverse=True)[1], "answer": states.answer.numpy()}
    hidden = states.layer(study.point, layer)  # (n, D)
    whole = landscape(hidden, labels, CENTRE, class_fraction=CLASS_FRACTION, where=where)
    estimates = reclustered(by_settings(whole, labels, where), labels, REPEATS, PART)
    estimates |= halved(whole, labels)
    depth = layer / states.n_layers
    return pd.DataFrame([row(study, condition, layer, depth, m, s, e) for (m, s), e in estimates.items()])


def by_settings(whole: Landscape, labels: Mapping[str, np.ndarray], where: str) -> dict[str, Landscape]:
    """A layer's landscape under each of `settings` that its points suffice for, from the neighbours already found.

    whole: the layer by any recipe.  labels: by name, (n,), of all its rows, identical ones too.
    """
    enough = lambda recipe: max(2 ** (recipe.gride_scale + 1), recipe.k) < round(PART * whole.n)  # of a part, too
    found = clustered(whole, {name: recipe for name, recipe in settings().items() if enough(recipe)}, where=where)
    agreement = lambda part: {label: adjusted_rand_index(part.assignment, v[whole.kept]) for label, v in labels.items()}
    return {name: replace(part, adjusted_rand_index=agreement(part)) for name, part in found.items()}


def halved(
    whole: Landscape, labels: Mapping[str, np.ndarray], n_splits: int = 5, seed: int = 0
) -> dict[tuple[str, str], Estimate]:
    """Number of peaks and ARIs of each half of the questions, every subject split in two, by metric and half.

    The split is one of the questions, not of the points: a question is in the same half at every layer.
    """
    estimates = {}
    for split in range(n_splits):
        folds = StratifiedKFold(2, shuffle=True, random_state=seed + split)
        for half, (questions, _) in zip("ab", folds.split(labels["subject"], labels["subject"]), strict=True):
            rows = np.flatnonzero(np.isin(whole.kept, questions))  # ascending places among the kept points
            part = clustered(whole, {CENTRE: whole.recipe}, rows, "half of the questions")[CENTRE]
            numbers = {"n_peaks": part.n_peaks}
            for label, values in labels.items():
                numbers[f"ari_{label}"] = adjusted_rand_score(values[part.kept], part.assignment)
            name = f"split {split + 1}, half {half}"
            estimates |= {(m, name): Estimate(float(v), np.nan, np.nan, len(rows)) for m, v in numbers.items()}
    return estimates


def highest(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The highest value over the layers of each setting, condition and model, and where it lies.

    Returns columns model, condition, setting, value, low, high, layer, depth, n_peaks (there), n.
    """
    rows = select(table, metric)
    tops = rows.loc[rows.groupby(["model", "condition", "setting"], sort=False)["value"].idxmax()]
    peaks = select(table, "n_peaks").rename(columns={"value": "n_peaks"})
    keys = ["model", "condition", "setting", "layer"]
    columns = ["model", "condition", "setting", "value", "low", "high", "layer", "depth", "n_peaks", "n"]
    return tops.merge(peaks[[*keys, "n_peaks"]], on=keys)[columns]


def highest_as_text(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The same to print: a row a setting, a column a model and condition, "ARI @ layer (peaks)"."""
    tops = highest(table, metric)
    # Where nothing agrees at any layer, the layer of the highest value says nothing.
    at = lambda top: f" @ {top.layer:.0f} ({top.n_peaks:.0f})" if round(top.value, 2) > 0 else ""
    told = [f"{top.value:.2f}{at(top)}" for top in tops.itertuples()]
    wide = tops.assign(told=told).pivot(index="setting", columns=["model", "condition"], values="told")
    return wide.reindex([name for name in settings() if name in wide.index]).rename_axis(columns=[None, None])
