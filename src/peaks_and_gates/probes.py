"""Decodable is not the same as clustered: linear probes for subject and answer, beside the peaks' agreement with them.

    table = probes.probes(study, pretrained, fine_tuned, n_controls=30)

The probe is a ridge classifier: least squares from the standardised hidden state to one column a class; the largest
column wins.  It was chosen over logistic regression on validation questions, where it was the more accurate of the two,
and it has a solution in closed form: one factorisation serves both labels and all their shuffles, so that a null of
twenty shuffles is nearly free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from . import record, store
from .errors import BadParameter, TooFewPoints
from .extraction import StoredStates
from .neighbours import as_matrix
from .peaks import GEOMETRY, Study, condition_name, landscape_table, row
from .progress import bar
from .robustness import Case, cases, layers_of
from .uncertainty import PERCENTILES, Estimate, at_least, coded, mean_estimate

PENALTY = 100.0  # the best of 10 … 100,000 on 480 validation questions read by the raw model, see the page
N_FOLDS = 5
N_SHUFFLES = 20
Folds = Sequence[tuple[np.ndarray, np.ndarray]]  # (train, test) rows of each fold

BARE = "0-shot, no header"
UNSEEN = ", unseen order"


def probe(
    hidden_states: np.ndarray | torch.Tensor,
    labels: Mapping[str, np.ndarray],
    folds: Folds,
    penalty: float = PENALTY,
    n_shuffles: int = N_SHUFFLES,
    seed: int = 0,
    where: str = "the hidden states",
) -> dict[str, Estimate]:
    """Accuracy of a cross-validated ridge classifier, for several labels at once.

    Args:
        hidden_states: (n, D) float; standardised by the means and deviations of each training fold.
        labels: by name, (n,) integers or strings.
        folds: (train, test) rows; every row is in exactly one test part.
        penalty: of the squared weights, in units of a standardised feature's variance summed over one point.
        n_shuffles: shuffles of each label for the null.
        seed: of the shuffles and the bootstrap.
        where: named in messages.

    Returns:
        By name, the share of rows whose label is predicted by a probe that has not seen them.  Interval: bootstrap
        over rows with the probes fixed; null: the same folds with shuffled labels.

    Raises:
        BadParameter: no labels, or some of another length or with NaN; a penalty that is not positive and finite;
            folds that do not test every row once, by probes trained on others; no shuffles.
        BadStates: states that are not a matrix of finite floats, or exceed float32.

    Source: linear probes, Alain and Bengio 2016; least squares on class columns, Hastie et al. 2009, sec. 4.2.
    """
    states = as_matrix(hidden_states, where)
    if states.dtype == torch.float64:
        states = as_matrix(states.float(), f"{where}, in float32")
    states = states.float().cpu().numpy()
    at_least(1, n_shuffles=n_shuffles)
    _check_folds(folds, len(states))
    if not labels:
        raise BadParameter(f"{where}: a probe needs labels to predict, by their names.")
    if not 0 < penalty < np.inf:
        raise BadParameter(f"penalty={penalty} must be positive: without one the probe has no unique solution.")
    rng = np.random.default_rng(seed)
    codes = {}  # by label, (1 + n_shuffles, n): as they are, then shuffled
    for name, values in labels.items():
        own = coded(values, len(states), f"The labels '{name}'")[1]
        codes[name] = np.stack([own, *(rng.permutation(own) for _ in range(n_shuffles))])
    columns = np.hstack([one_hot(c) for of_label in codes.values() for c in of_label])  # (n, all classes)
    model = make_pipeline(StandardScaler(), Ridge(penalty))
    scores = cross_val_predict(model, states, columns, cv=folds)  # (n, all classes)

    found, start = {}, 0
    for name, of_label in codes.items():
        width = int(of_label.max()) + 1
        end = start + len(of_label) * width
        chosen = scores[:, start:end].reshape(len(states), len(of_label), width).argmax(2).T  # (1 + n_shuffles, n)
        hits, start = chosen == of_label, end
        null = hits[1:].mean(1)
        found[name] = replace(
            mean_estimate(hits[0], seed=seed),
            null=float(null.mean()),
            null_high=float(np.percentile(null, PERCENTILES[1])),
        )
    return found


def _check_folds(folds: Folds, n: int) -> None:
    tests = [test for _, test in folds]
    once = len(tests) > 0 and np.array_equal(np.sort(np.concatenate(tests)), np.arange(n))
    if not once or any(len(train) == 0 or np.isin(train, test).any() or max(train) >= n for train, test in folds):
        raise BadParameter(f"The folds must test each of the {n} rows once, and train on others; see `folds_of`.")


def one_hot(codes: np.ndarray) -> np.ndarray:
    """(n,) int as (n, classes) float32 of zeros and ones."""
    return np.eye(codes.max() + 1, dtype=np.float32)[codes]


def folds_of(subject: Sequence[str], prefixes: Sequence[str] | None = None, seed: int = 0) -> Folds:
    """Five folds with every subject's share in each.

    prefixes: (n,) header and shots of each prompt; prompts with the same ones then stay in one fold, so that a probe
    is tested behind orders of the shots that it was not trained on.

    Raises TooFewPoints if there are fewer prompts, or prefixes, than folds, or fewer in every subject; BadParameter
    unless there is one subject, and one prefix, a prompt.
    """
    largest = coded(subject, name="The subjects")[2].max()
    if prefixes is not None and len(prefixes) != len(subject):
        raise BadParameter(f"{len(prefixes)} prefixes were given for {len(subject)} prompts; give one a prompt.")
    units = len(subject) if prefixes is None else len(set(prefixes))
    if units < N_FOLDS:
        raise TooFewPoints(f"{N_FOLDS} folds cannot be made of {units}: give more questions or orders.")
    if largest < N_FOLDS:
        raise TooFewPoints(
            f"The largest subject has {largest} prompts, too few for {N_FOLDS} folds: give more questions."
        )
    if prefixes is None:
        return list(StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed).split(subject, subject))
    return list(StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=seed).split(subject, subject, prefixes))


def probes(study: Study, pretrained: str, fine_tuned: str, n_controls: int, every: int = 3) -> pd.DataFrame:
    """Probes and peaks of the same hidden states, at every third layer; recorded as "probes".

    conditions: those of `robustness.cases`; the study's model asked n_controls questions a subject without the header;
    its most shots with folds that hold out whole orders of the shots.
    metrics: `probe_subject`, `probe_answer` (setting: the penalty), `accuracy` of the model's own letter (layer 0),
    and `ari_subject`, `ari_answer` of the peaks by recipe, as in `peaks.geometry`.
    """
    asked = [
        (BARE, replace(study, shots=[0], n_per_subject=n_controls, with_header=False)),
        *cases(study, pretrained, fine_tuned),
    ]
    inputs = {"cases": [[condition, asdict(s)] for condition, s in asked], "every": every, "penalty": PENALTY}
    return record.table("probes", inputs, lambda: probes_table(asked, study.model, every))


def probes_table(asked: Iterable[Case], unseen_of: str, every: int = 3) -> pd.DataFrame:
    """Compute what `probes` returns.  unseen_of: the model whose shots are also held out by order."""
    tables = []
    for condition, study in asked:
        n_shots = study.shots[0]
        prompts = study.prompts(study.question_set(), n_shots)
        states = study.read(prompts, condition)
        layers = layers_of(states.n_layers, every)
        folds = {condition: folds_of(states.subject, seed=study.seed)}
        if n_shots and study.model == unseen_of:
            folds[condition + UNSEEN] = folds_of(states.subject, [p.prefix for p in prompts], study.seed)
        tables += [case_table(study, name, states, layers, split) for name, split in folds.items()]
        # Under this name the peaks have been found for other pages already, and are read from the store.
        peaks = landscape_table(study, {condition_name(n_shots): prompts}).assign(condition=condition)
        tables.append(peaks[peaks["layer"].isin(layers) & peaks["metric"].str.startswith("ari_")])
    return pd.concat(tables, ignore_index=True).astype({"null": float, "null_high": float})


def case_table(study: Study, condition: str, states: StoredStates, layers: Sequence[int], folds: Folds) -> pd.DataFrame:
    """Probes of one condition at some layers, each stored, and how often the model's own letter is right."""
    answer = states.answer.numpy()
    labels = {"subject": np.array(states.subject), "answer": answer}
    right = states.letter_logprobs.argmax(1).numpy() == answer
    tables = [pd.DataFrame([row(study, condition, 0, 0.0, "accuracy", "own letter", mean_estimate(right))])]
    for layer in bar(iterable=layers, desc=f"probes, {study.model}, {condition}", unit="layer"):
        inputs = {
            "states": states.key,
            "point": study.point,
            "layer": layer,
            "condition": condition,
            "seed": study.seed,
        }
        compute = lambda layer=layer: layer_table(study, condition, layer, states, labels, folds)
        tables.append(store.table("probes", inputs, compute, (*GEOMETRY, "peaks", "robustness", "probes")))
    return pd.concat(tables, ignore_index=True).assign(model=study.model)


def layer_table(
    study: Study,
    condition: str,
    layer: int,
    states: StoredStates,
    labels: Mapping[str, np.ndarray],
    folds: Folds,
) -> pd.DataFrame:
    """Rows of one layer."""
    where = f"{study.model}, {condition}, layer {layer}"
    found = probe(states.layer(study.point, layer), labels, folds, where=where)
    depth, setting = layer / states.n_layers, f"penalty {PENALTY:g}"
    return pd.DataFrame([row(study, condition, layer, depth, f"probe_{m}", setting, e) for m, e in found.items()])
