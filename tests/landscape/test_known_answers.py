"""The pages where the answer is known, and methods of pages that can be had another way."""

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from conftest import make_questions
from page_code import page_code
from peaks_and_gates.landscape.questions import build_prompts

page = cache(page_code)


@pytest.fixture(scope="module")
def agreements():
    return page("methods/known_agreement")["agreements"](seed=1)


def test_known_dimensions_are_found_without_noise_and_hidden_from_near_by_it():
    dimensions = page("methods/known_dimension")["dimensions"](seed=1, n=600, width=200, n_draws=2)
    at = dimensions.set_index(["true", "noise", "rank"])["value"]
    assert at[2, 0.0].to_numpy() == pytest.approx(np.full(7, 2.0), rel=0.1)
    assert at[5, 0.0, 1] == pytest.approx(5, rel=0.15)
    assert at[20, 0.0, 64] < at[20, 0.0, 1] < 20  # few points in many dimensions
    assert at[2, 0.2, 1] > 5 * at[2, 0.0, 1] and at[2, 0.2, 64] < at[2, 0.2, 1] / 2


def test_significance_trades_false_peaks_for_merged_ones():
    peaks = page("methods/known_peaks")["numbers"](seed=1, n_draws=4)
    at = peaks.set_index(["true", "z"])
    assert at.loc[(1, 0.0), "value"] > 3 and at.loc[(5, 0.0), "value"] > 6
    assert at.loc[(1, 1.6), "value"] == pytest.approx(1, abs=0.3)
    assert at.loc[(5, 1.6), "value"] == pytest.approx(5, abs=0.5) and at.loc[(5, 1.6), "ari"] > 0.9


def test_the_adjusted_index_is_the_square_of_the_share_in_place(agreements):
    rows = agreements[(agreements["what"] == "shuffled") & (agreements["index"] == "ari")]
    assert rows["value"].to_numpy() == pytest.approx((1 - rows["x"].to_numpy()) ** 2, abs=0.06)
    random = agreements[agreements["what"] == "random"].pivot(index="x", columns="index", values="value")
    assert random["ari"].abs().max() < 0.02
    assert random["rand"].iloc[-1] > 0.8 and random["homogeneity"].iloc[-1] > 0.3  # for nothing


def test_overlap_begins_at_what_shuffled_labels_give(agreements):
    rows = agreements[agreements["what"] == "apart"]
    first, last = rows.iloc[0], rows.iloc[-1]
    assert abs(first["value"] - first["null"]) < 0.03 and last["value"] > 0.9
    assert (rows["value"].diff().dropna() > -0.02).all()


def test_a_probe_of_several_labels_equals_scikit_learns_classifier_of_each():
    """On noise in which the subjects' means lie in directions of little variance."""
    rng, subject = np.random.default_rng(0), np.repeat(np.arange(6), 40)
    means = np.hstack([np.zeros((6, 5)), rng.standard_normal((6, 15))])
    noise = rng.standard_normal((240, 20)) * np.repeat([50.0, 1.0], [5, 15])
    points = (noise + 0.6 * means[subject]).astype(np.float32)
    folds = page("landscape/probes")["folds_of"](subject)
    labels = {"answer": rng.integers(0, 4, 240), "subject": subject}
    estimates = page("landscape/probes")["probe"](points, labels, folds)
    for name, values in labels.items():
        classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=page("landscape/probes")["PENALTY"]))
        right = cross_val_predict(classifier, points, values, cv=folds) == values
        assert estimates[name].value == pytest.approx(right.mean(), abs=1.5 / 240)  # float32 may turn a tie
        assert estimates[name].null == pytest.approx(1 / len(np.unique(values)), abs=0.03)


def test_the_parts_of_the_stream_add_up_and_its_end_is_what_the_model_says(tiny):
    stream = page_code("methods/known_stream", language_model=lambda: tiny)
    prompts = build_prompts(make_questions(1, 3), n_shots=1)
    states, writes = stream["read"](prompts[0].text)
    assert stream["deviation_of_sum"](states, writes) < 1e-6
    assert stream["deviation_of_sum"](states, writes | {"attention": writes["attention"].roll(1, 0)}) > 1e-2
    stream["questions"] = lambda n_shots, seed: prompts
    last = stream["logit_lens"]("tiny-llama", 0, None).groupby("layer").first().loc[tiny.n_layers]
    probabilities = tiny.network(torch.tensor([tiny.tokenizer.encode(prompts[0].text)])).logits[0, -1].softmax(-1)
    assert last["token"] == tiny.tokenizer.decode([int(probabilities.argmax())])
    assert last["probability"] == pytest.approx(float(probabilities.max()), rel=1e-4)
