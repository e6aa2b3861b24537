"""Probes: known separations, what must stay at chance, and folds that hold out what they say."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from conftest import make_questions
from peaks_and_gates import figures, probes, questions, table_figures
from peaks_and_gates.errors import BadParameter, BadStates, TooFewPoints
from peaks_and_gates.peaks import Study
from peaks_and_gates.probes import PENALTY, folds_of, probe

N, D = 240, 20
SUBJECT = np.repeat(np.arange(6), N // 6)
FOLDS = folds_of(SUBJECT)


def states(signal, seed=0):
    """Noise, with the subject's class mean of the given size in directions of little variance."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((N, D)) * np.array([50.0] * 5 + [1.0] * (D - 5))  # the large directions say nothing
    means = np.hstack([np.zeros((6, 5)), rng.standard_normal((6, D - 5))])
    return noise + signal * means[SUBJECT]


def test_a_direction_of_little_variance_is_found():
    found = probe(states(4.0), {"subject": SUBJECT}, FOLDS)["subject"]
    assert found.value > 0.95 and found.low <= found.value <= found.high and found.n == N
    assert found.null == pytest.approx(1 / 6, abs=0.03) and found.null < found.null_high < 0.3


def test_noise_stays_at_chance():
    found = probe(states(0.0), {"subject": SUBJECT}, FOLDS)["subject"]
    assert abs(found.value - 1 / 6) < 0.08


def test_more_dimensions_than_points_do_not_leak():
    noise = np.random.default_rng(0).standard_normal((N, 2 * N))
    found = probe(noise, {"subject": SUBJECT}, FOLDS)["subject"]
    assert abs(found.value - 1 / 6) < 0.08  # a probe judged on what it was trained on would reach 1


def test_all_labels_at_once_equal_scikit_learns_classifier_for_each():
    rng = np.random.default_rng(3)
    points = states(0.6)
    labels = {"answer": rng.integers(0, 4, N), "subject": np.array([f"s{s}" for s in SUBJECT])}
    found = probe(points, labels, FOLDS, n_shuffles=3)
    for name, values in labels.items():
        model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=PENALTY))
        expected = cross_val_predict(model, points, values, cv=FOLDS) == values
        assert found[name].value == pytest.approx(expected.mean(), abs=1.5 / N)  # float32 may turn a tie


def test_the_scale_of_a_feature_does_not_matter():
    points = states(0.6)
    scaled = points * np.logspace(-3, 3, D)
    value = lambda x: probe(x, {"subject": SUBJECT}, FOLDS, n_shuffles=1)["subject"].value
    assert value(points) == pytest.approx(value(scaled), abs=1.5 / N)


def test_bfloat16_states_are_taken():
    found = probe(torch.tensor(states(4.0), dtype=torch.bfloat16), {"subject": SUBJECT}, FOLDS, n_shuffles=1)
    assert found["subject"].value > 0.95


def test_bad_input_is_named():
    with pytest.raises(BadParameter, match="'answer' have 3 entries for 240"):
        probe(states(1.0), {"answer": np.zeros(3)}, FOLDS)
    with pytest.raises(BadParameter, match="penalty=0"):
        probe(states(1.0), {"subject": SUBJECT}, FOLDS, penalty=0)
    with pytest.raises(BadStates, match="layer 3"):
        probe(np.full((N, D), np.nan), {"subject": SUBJECT}, FOLDS, where="layer 3")
    with pytest.raises(TooFewPoints, match="of 2"):
        folds_of(["a"] * 10, ["one", "two"] * 5)


def test_folds_test_every_question_once_and_hold_every_subject():
    tested = np.concatenate([test for _, test in FOLDS])
    assert sorted(tested) == list(range(N))
    for train, test in FOLDS:
        assert not set(train) & set(test)
        assert set(SUBJECT[test]) == set(SUBJECT[train]) == set(range(6))


def test_unseen_orders_are_not_trained_on():
    prefixes = np.array([f"{s}, order {i % 8}" for i, s in enumerate(SUBJECT)])
    folds = folds_of(SUBJECT, prefixes)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(N))
    for train, test in folds:
        assert not set(prefixes[train]) & set(prefixes[test])
        assert set(SUBJECT[test]) <= set(SUBJECT[train])


def test_holding_out_orders_takes_away_what_only_the_order_tells():
    prefixes = np.array([f"{s}, order {i % 8}" for i, s in enumerate(SUBJECT)])
    which = np.unique(prefixes, return_inverse=True)[1]
    by_order = np.random.default_rng(0).standard_normal((48, 200))[which]  # every order anywhere, its subject nowhere
    points = by_order + 0.1 * np.random.default_rng(1).standard_normal((N, 200))
    seen = probe(points, {"subject": SUBJECT}, FOLDS, n_shuffles=1)["subject"].value
    unseen = probe(points, {"subject": SUBJECT}, folds_of(SUBJECT, prefixes), n_shuffles=1)["subject"].value
    assert seen > 0.95 and unseen < 0.35


def test_probes_stand_beside_the_peaks_of_the_same_layers(own_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "load", lambda *_, **__: make_questions(4, 20))
    monkeypatch.setenv("PG_RECORD", str(tmp_path / "record"))
    study = Study("tiny-llama", "made", [0, 2], dtype="float32")
    table = probes.probes(study, "tiny-llama", "tiny-llama", n_controls=20)
    assert list(dict.fromkeys(table["condition"])) == [
        "0-shot, no header", "0-shot", "2-shot", "2-shot, unseen order", "fine-tuned",
    ]  # fmt: skip
    for metric in ("probe_subject", "probe_answer", "ari_subject", "ari_answer"):
        assert set(table.loc[table["metric"] == metric, "layer"]) == {1, 4}
    assert (table.loc[table["metric"] == "accuracy", "layer"] == 0).all()
    prompts = study.prompts(study.question_set(), 2)
    states = study.read(prompts, "2-shot")
    subject = np.array(states.subject)
    for condition, prefixes in (("2-shot", None), ("2-shot, unseen order", [p.prefix for p in prompts])):
        expected = probe(states.layer("norm", 4), {"subject": subject}, folds_of(subject, prefixes))["subject"]
        rows = table[(table["condition"] == condition) & (table["metric"] == "probe_subject")]
        assert rows.loc[rows["layer"] == 4, "value"].tolist() == [expected.value] * len(rows[rows["layer"] == 4])

    beside = table_figures.beside(table, "subject", "figures").set_index("condition")
    assert beside.loc["2-shot, unseen order", "highest_ari"] == beside.loc["2-shot", "highest_ari"]
    said = table_figures.beside_summary(table, "subject", "figures")
    assert all(condition in said for condition in table["condition"].unique())
    panels = {"probe_answer": None, "ari_answer": "figures"}
    svg = figures.drawn(lambda: table_figures.layer_curves(table, panels, "tiny"))
    assert svg.startswith(b"<?xml")

    monkeypatch.setenv("PG_REDRAW", "1")
    monkeypatch.setattr(probes, "probes_table", None)
    again = probes.probes(study, "tiny-llama", "tiny-llama", n_controls=20)
    pd.testing.assert_frame_equal(again, table)
