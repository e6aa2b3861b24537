"""Robustness: the settings, their landscapes from one search, halves of questions, and verdicts by setting."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from conftest import make_questions
from peaks_and_gates import claims, questions, robustness, table_figures
from peaks_and_gates.clustering import RECIPES
from peaks_and_gates.errors import BadParameter, MissingFile
from peaks_and_gates.geometry import landscape, landscapes
from peaks_and_gates.peaks import Study
from peaks_and_gates.robustness import by_settings, cases, halved, highest, highest_as_text, layers_of, settings
from peaks_and_gates.uncertainty import adjusted_rand_index


def clusters(n_clusters=5, size=50, d=30, seed=0):
    """Well separated Gaussian clusters; labels by cluster."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(n_clusters), size)
    centres = 30 * np.linalg.qr(rng.standard_normal((d, n_clusters)))[0].T
    return centres[subject] + rng.standard_normal((len(subject), 4)) @ rng.standard_normal((4, d)), subject


@pytest.fixture(scope="module")
def layer():
    """A layer with its labels: subjects as clusters, answers unrelated."""
    points, subject = clusters()
    points[7] = points[3]  # a duplicate, so that kept points and questions are numbered differently
    labels = {"subject": subject, "answer": np.random.default_rng(1).integers(0, 4, len(subject))}
    return points, labels


def test_settings_vary_one_choice_at_a_time():
    found, centre = settings(), RECIPES["figures"]
    assert found["figures"] == centre and found["released"] == RECIPES["released"]
    assert len(set(found.values())) == len(found) == 12
    for name, recipe in found.items():
        if name != "released":
            changed = [f for f in ("gride_scale", "z", "k") if getattr(recipe, f) != getattr(centre, f)]
            assert len(changed) == (name != "figures")
            if changed:
                assert float(name.split()[-1]) == getattr(recipe, changed[0])


def test_each_setting_gives_what_a_search_of_its_own_gives(monkeypatch):
    rng = np.random.default_rng(0)
    points = rng.random((400, 3))  # no clusters: how many peaks there are is a matter of the setting
    points[7] = points[3]
    labels = {"subject": np.repeat(np.arange(8), 50), "answer": rng.integers(0, 4, 400)}
    found = by_settings(landscape(points, labels, "figures"), labels, "here")
    assert list(found) == list(settings())
    monkeypatch.setattr("peaks_and_gates.geometry.RECIPES", settings())
    alone = landscapes(points, labels, tuple(settings()))
    for name, described in found.items():
        np.testing.assert_array_equal(described.assignment, alone[name].assignment)
        np.testing.assert_array_equal(described.core, alone[name].core)
        assert described.n_peaks == alone[name].n_peaks
        for label in labels:
            assert described.adjusted_rand_index[label].value == alone[name].adjusted_rand_index[label].value
    assert found["Z = 0"].n_peaks > found["figures"].n_peaks >= found["Z = 4"].n_peaks


def test_a_setting_that_the_points_do_not_suffice_for_is_left_out():
    points, subject = clusters(2, 30)
    found = by_settings(landscape(points, {"subject": subject}, "figures"), {"subject": subject}, "here")
    assert set(settings()) - set(found) == {"Gride scale 5"}  # needs 64 neighbours of 60 points


def test_halves_share_no_question_and_are_measured_by_themselves(layer):
    points, labels = layer
    whole = landscape(points, labels, "figures")
    found = halved(whole, labels, n_splits=2)
    names = {setting for _, setting in found}
    assert names == {f"split {s}, half {h}" for s in (1, 2) for h in "ab"}
    for split in (1, 2):
        sizes = [found["n_peaks", f"split {split}, half {half}"].n for half in "ab"]
        assert sum(sizes) == whole.n == len(points) - 1 and abs(sizes[0] - sizes[1]) <= 1
    assert all(found["ari_subject", name].value > 0.5 for name in names)
    assert all(abs(found["ari_answer", name].value) < 0.1 for name in names)


def test_a_half_equals_a_landscape_of_its_questions_alone(monkeypatch):
    rng = np.random.default_rng(0)
    points = rng.random((400, 3))  # with Z = 0 every bump is a peak, so that one wrong point shows
    points[7] = points[3]  # points and questions are numbered differently from here on
    labels = {"subject": np.repeat(np.arange(8), 50), "answer": rng.integers(0, 4, 400)}
    half, other = np.arange(0, 400, 2), np.arange(1, 400, 2)
    split = SimpleNamespace(split=lambda *_: iter([(half, other), (other, half)]))
    monkeypatch.setattr(robustness, "StratifiedKFold", lambda *_, **__: split)
    monkeypatch.setattr("peaks_and_gates.geometry.RECIPES", settings())
    found = halved(landscape(points, labels, "Z = 0"), labels, n_splits=1)
    alone = landscape(points[half], {name: values[half] for name, values in labels.items()}, "Z = 0")
    assert found["n_peaks", "split 1, half a"].value == alone.n_peaks > 1
    for label in labels:
        expected = adjusted_rand_index(alone.assignment, labels[label][half]).value
        assert found[f"ari_{label}", "split 1, half a"].value == pytest.approx(expected)


def test_layers_end_with_the_last():
    assert layers_of(30) == list(range(3, 31, 3))
    assert layers_of(4) == [1, 4]
    for every in (0, 4):
        with pytest.raises(BadParameter, match="choose 1 to 3"):
            layers_of(4, every)


def test_cases_ask_every_model_once():
    study = Study("raw", "wordnet", [0, 1, 2, 5])
    named = [(condition, s.model, s.shots) for condition, s in cases(study, "tuned base", "tuned")]
    assert named == [
        ("0-shot", "raw", [0]),
        ("5-shot", "raw", [5]),
        ("0-shot", "tuned base", [0]),
        ("5-shot", "tuned base", [5]),
        ("fine-tuned", "tuned", [0]),
    ]
    assert [condition for condition, _ in cases(study, "raw", "tuned")] == ["0-shot", "5-shot", "fine-tuned"]


def test_tables_are_stored_and_redrawn_without_a_model(own_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "load", lambda *_, **__: make_questions(3, 20))
    monkeypatch.setenv("PG_RECORD", str(tmp_path / "record"))
    study = Study("tiny-llama", "made", [0, 2], dtype="float32")
    table = robustness.settings_varied(study, "tiny-llama", "tiny-llama")
    halves = robustness.halves(study, "tiny-llama", "tiny-llama")
    orders = robustness.orders_varied(study, (1, None))
    assert set(table["condition"]) == {"0-shot", "2-shot", "fine-tuned"} and set(table["layer"]) == {1, 4}
    assert set(table["setting"]) <= set(settings()) and not halves["setting"].isin(settings()).any()
    assert set(halves["metric"]) == {"n_peaks", "ari_subject", "ari_answer"}
    assert table["low"].notna().all() and table.index.is_unique
    assert list(dict.fromkeys(orders["condition"])) == ["1 order", "an order per question"]

    monkeypatch.setenv("PG_REDRAW", "1")
    monkeypatch.setattr(robustness, "computed", None)
    pd.testing.assert_frame_equal(robustness.settings_varied(study, "tiny-llama", "tiny-llama"), table)
    pd.testing.assert_frame_equal(robustness.halves(study, "tiny-llama", "tiny-llama"), halves)
    with pytest.raises(MissingFile, match="other parameters"):
        robustness.settings_varied(replace(study, seed=1), "tiny-llama", "tiny-llama")


def tidy(curves, metric="ari_subject", n_layers=10):
    """A tidy table from {(model, condition, setting): values}, interval ± .01."""
    frames = []
    for (model, condition, setting), values in curves.items():
        layer = np.arange(1, n_layers + 1)
        frames.append(
            pd.DataFrame({
                "condition": condition, "model": model, "layer": layer, "depth": layer / n_layers, "metric": metric,
                "setting": setting, "value": values, "low": np.array(values) - 0.01,
                "high": np.array(values) + 0.01, "null": 0.0, "null_high": 0.0, "n": 100,
            })
        )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


FLAT, EARLY, LATE = [0.1] * 10, [0.1, 0.5, 0.9, *[0.1] * 7], [*[0.1] * 8, 0.6, 0.2]
CURVES = {("raw", "0-shot", s): FLAT for s in ("figures", "Z = 4")} | {
    ("raw", "5-shot", "figures"): EARLY,
    ("raw", "5-shot", "Z = 4"): LATE,
    ("base", "0-shot", "figures"): FLAT,
    ("base", "5-shot", "figures"): FLAT,
    ("tuned", "fine-tuned", "figures"): EARLY,
}


def test_highest_says_where_and_with_how_many_peaks():
    peaks = tidy({key: np.arange(10) + 20 for key in CURVES}, "n_peaks")
    table = pd.concat([tidy(CURVES), peaks], ignore_index=True)
    tops = highest(table, "ari_subject").set_index(["model", "condition", "setting"])
    assert tops.loc[("raw", "5-shot", "figures"), ["value", "layer", "n_peaks"]].tolist() == [0.9, 3, 22]
    assert tops.loc[("raw", "5-shot", "Z = 4"), ["value", "layer", "n_peaks"]].tolist() == [0.6, 9, 28]
    text = highest_as_text(table, "ari_subject")
    assert text.loc["figures", ("raw", "5-shot")] == "0.90 @ 3 (22)"
    assert list(text.index) == ["figures", "Z = 4"]


def test_verdicts_follow_the_setting_the_model_and_the_books_own_bounds():
    cells = table_figures.held(tidy(CURVES), "raw", "base")
    of = lambda model, setting, start: cells[
        (cells["model"] == model) & (cells["setting"] == setting) & cells["column"].str.startswith(start)
    ].iloc[0]
    lift = of("raw", "figures", "L1")
    bound = claims.load()[0]["parts"][0]["at_least"]
    assert lift["column"].endswith(f"≥ {bound:g}")
    assert (lift["value"], lift["outcome"]) == (pytest.approx(0.8), "met")
    assert of("raw", "Z = 4", "L1")["value"] == pytest.approx(0.5)
    assert [of("raw", setting, "L2")["outcome"] for setting in ("figures", "Z = 4")] == ["met", "missed"]
    assert of("base", "figures", "L1")["outcome"] == "missed"
    assert of("base", "figures", "L4")["outcome"] == "missed"  # the fine-tuned model's .9 is far above the bound
    assert of("base", "Z = 4", "L4")["outcome"] == "untested"
    assert not cells.loc[cells["model"] == "raw", "column"].str.contains("L4").any()
    assert not cells["column"].str.contains("L5").any()  # no table of answers was given
    said = table_figures.verdict_summary(cells)
    assert "raw: the same verdict under all 2 settings: L1" in said and "not the same: L2" in said


def test_bounds_are_read_when_the_map_is_drawn(monkeypatch):
    stricter = claims.load()
    stricter[0]["parts"][0]["at_least"] = 0.85
    monkeypatch.setattr(claims, "load", lambda: stricter)
    cells = table_figures.held(tidy(CURVES), "raw", "base")
    lift = cells[(cells["model"] == "raw") & cells["column"].str.startswith("L1") & (cells["setting"] == "figures")]
    assert lift["outcome"].tolist() == ["missed"]


def test_figures_show_every_number_they_are_given():
    cells = table_figures.held(tidy(CURVES), "raw", "base")
    figure = table_figures.verdict_map(cells)
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert len(texts) == len(cells)
    assert sorted(t.split()[-1] for t in texts) == sorted(table_figures.OUTCOMES[o][0] for o in cells["outcome"])
    curves = {key: values for key, values in CURVES.items() if key[2] == "figures"}
    peaks = lambda source: tidy({key: FLAT for key in source}, "n_peaks")
    table = pd.concat([tidy(curves), peaks(curves)], ignore_index=True)
    parts = {(m, c, f"split 1, half {h}"): np.array(v) / 2 for (m, c, _), v in curves.items() for h in "ab"}
    halves = pd.concat([tidy(parts), peaks(parts)], ignore_index=True)
    drawn = table_figures.halves_map(table, halves, ["ari_subject"])
    assert len(drawn.axes[0].get_yticklabels()) == 5
    said = table_figures.halves_summary(table, halves, "ari_subject")
    assert "5-shot of raw 0.90, halves 0.45 to 0.45" in said
