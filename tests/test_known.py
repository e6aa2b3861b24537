"""The pages where the answer is known: the tables must say it, and must not when something is broken."""

import numpy as np
import pytest

from peaks_and_gates import figures, known_cuts, known_figures, synthetic
from peaks_and_gates.gate import study as gate


@pytest.fixture(scope="module")
def dimensions():
    return synthetic.dimensions(seed=1, n=600, width=200, n_draws=2)


@pytest.fixture(scope="module")
def peaks():
    return synthetic.peaks(seed=1, n_draws=4)


@pytest.fixture(scope="module")
def agreements():
    return synthetic.agreements(seed=1)


def test_a_cloud_has_its_dimensions_and_its_noise():
    rng = np.random.default_rng(0)
    flat = synthetic.cloud(3, 500, 50, 0.0, rng)
    assert np.linalg.matrix_rank(flat, tol=1e-8) == 3
    assert np.linalg.svd(flat, compute_uv=False)[:3] / np.sqrt(500) == pytest.approx(np.ones(3), abs=0.15)
    noise = synthetic.cloud(1, 500, 50, 0.3, np.random.default_rng(1)) - synthetic.cloud(
        1, 500, 50, 0.0, np.random.default_rng(1)
    )
    assert np.linalg.norm(noise, axis=1).mean() == pytest.approx(0.3, rel=0.05)


def test_known_dimensions_are_found_without_noise_and_hidden_from_near_by_it(dimensions):
    at = dimensions.set_index(["true", "noise", "rank"])["value"]
    assert at[2, 0.0].to_numpy() == pytest.approx(np.full(7, 2.0), rel=0.1)
    assert at[5, 0.0, 1] == pytest.approx(5, rel=0.15)
    assert at[20, 0.0, 64] < at[20, 0.0, 1] < 20  # few points in many dimensions
    assert at[2, 0.2, 1] > 5 * at[2, 0.0, 1] and at[2, 0.2, 64] < at[2, 0.2, 1] / 2


def test_significance_trades_false_peaks_for_merged_ones(peaks):
    numbers, drawn = peaks
    at = numbers.set_index(["true", "z"])
    assert at.loc[(1, 0.0), "value"] > 3 and at.loc[(5, 0.0), "value"] > 6
    assert at.loc[(1, 1.6), "value"] == pytest.approx(1, abs=0.3)
    assert at.loc[(5, 1.6), "value"] == pytest.approx(5, abs=0.5) and at.loc[(5, 1.6), "ari"] > 0.9
    assert (numbers["low"] <= numbers["value"]).all() and (numbers["value"] <= numbers["high"]).all()
    assert set(drawn.groupby("z").size()) == {1000}
    core = drawn.groupby("z")["core"].mean()
    assert core[4.0] == 1 > core[1.6] > core[0.0]  # peaks that are far apart have no saddle


def test_the_adjusted_index_is_the_square_of_the_share_in_place(agreements):
    numbers, counted = agreements
    rows = numbers[(numbers["what"] == "shuffled") & (numbers["index"] == "ari")]
    assert rows["value"].to_numpy() == pytest.approx((1 - rows["x"].to_numpy()) ** 2, abs=0.06)
    in_place = counted[counted["label"] == counted["group"]].groupby("x")["n"].sum() / 400
    assert in_place.to_numpy() == pytest.approx(1 - 7 / 8 * in_place.index.to_numpy(), abs=0.05)
    assert (counted.groupby(["x", "label"])["n"].sum() == 50).all()
    random = numbers[numbers["what"] == "random"].pivot(index="x", columns="index", values="value")
    assert random["ari"].abs().max() < 0.02
    assert random["rand"].iloc[-1] > 0.8 and random["homogeneity"].iloc[-1] > 0.3  # for nothing


def test_overlap_begins_at_what_shuffled_labels_give(agreements):
    numbers, _ = agreements
    rows = numbers[numbers["what"] == "apart"]
    first, last = rows.iloc[0], rows.iloc[-1]
    assert abs(first["value"] - first["null"]) < 0.03 and last["value"] > 0.9
    assert (rows["value"].diff().dropna() > -0.02).all()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_is_dealt_anew(share):
    labels = np.repeat(np.arange(8), 500)
    groups = synthetic.shuffled(labels, share, np.random.default_rng(0))
    assert np.mean(groups != labels) == pytest.approx(share * 7 / 8, abs=0.02)


@pytest.fixture(scope="module")
def cut_table(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PG_CACHE", str(tmp_path_factory.mktemp("cache")))
        study = gate.Study("", n_questions=60, batch_size=30)
        yield known_cuts.accuracies(study, ["mini-gated", "mini-open"])


def test_cuts_hurt_where_the_wiring_says(cut_table):
    at = cut_table.set_index(["model", "cut"])["value"]
    gated, opened = at["mini-gated"], at["mini-open"]
    assert gated["image → text"] == gated["none"] > gated["end → text"] + 0.2
    # Hiding a token that carries no picture still takes its share of the attention away: an answer or two may change.
    assert opened["end → text"] == pytest.approx(opened["none"], abs=0.05)
    assert opened["none"] > opened["image → text"] + 0.2
    assert gated["block → text"] == gated["end → text"] and opened["block → text"] < opened["none"] - 0.2


def test_the_drawn_masks_are_those_of_the_models():
    gated, opened = (known_figures.reading(model, "none") for model in ("mini-gated", "mini-open"))
    end, text, image = known_figures.TOKENS.index("end"), 10, 4
    assert gated[text, image] == 2 and gated[end, image] == 1 and gated[text, end] == 1
    assert opened[text, image] == 1 and opened[end, image] == 2 and opened[text, end] == 1
    assert known_figures.reading("mini-gated", "end → text")[text, end] == 3
    assert known_figures.reading("mini-open", "image → text")[text, image] == 3
    assert (np.triu(gated, 1) == 0).all() and (np.diag(gated) == 1).all()


def test_every_frame_can_be_drawn_and_says_something(dimensions, peaks, agreements, cut_table):
    sets = {
        "noise 0": known_figures.dimension_frames(dimensions),
        "Z = 1.6": known_figures.peak_frames(*peaks),
        "40% shuffled": known_figures.agreement_frames(*agreements),
        "cut end → text": known_figures.cut_frames(cut_table),
    }
    for label, frames in sets.items():
        draw, said = frames[label]
        assert said[0].isalnum() and said.endswith(".") and figures.drawn(draw).startswith(b"<?xml")


def test_steps_hold_every_picture_twice_with_its_words():
    from matplotlib import pyplot as plt

    frames = {f"step {i}": (lambda: plt.figure(figsize=(1, 1)), f"it is <{i}>.") for i in range(3)}
    page = figures.steps(frames, "all & more").data
    assert page.count("<img") == 6 and page.count('alt="it is &lt;1&gt;."') == 2
    assert page.count('class="pg-step"') == 3 and 'data-label="step 2"' in page and "all &amp; more" in page
    assert "_static/steps.js" in page and "http" not in page
