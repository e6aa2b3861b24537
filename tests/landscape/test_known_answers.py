"""The pages where the answer is known: the tables must say it."""

from functools import cache

import numpy as np
import pytest

from page_code import page_code


@cache
def page(name):
    return page_code(f"methods/{name}")


@pytest.fixture(scope="module")
def dimensions():
    return page("known_dimension")["dimensions"](seed=1, n=600, width=200, n_draws=2)


@pytest.fixture(scope="module")
def peaks():
    return page("known_peaks")["numbers"](seed=1, n_draws=4), page("known_peaks")["first_draw"](seed=1)


@pytest.fixture(scope="module")
def agreements():
    return page("known_agreement")["agreements"](seed=1), page("known_agreement")["counts"](seed=1)


def test_a_cloud_has_its_dimensions_and_its_noise():
    cloud, rng = page("known_dimension")["cloud"], np.random.default_rng(0)
    flat = cloud(3, 500, 50, 0.0, rng)
    assert np.linalg.matrix_rank(flat, tol=1e-8) == 3
    assert np.linalg.svd(flat, compute_uv=False)[:3] / np.sqrt(500) == pytest.approx(np.ones(3), abs=0.15)
    noise = cloud(1, 500, 50, 0.3, np.random.default_rng(1)) - cloud(1, 500, 50, 0.0, np.random.default_rng(1))
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
    labels = page("known_agreement")["LABELS"]
    rng = np.random.default_rng(0)
    moved = [np.mean(page("known_agreement")["dealt_anew"](share, rng) != labels) for _ in range(10)]
    assert np.mean(moved) == pytest.approx(share * 7 / 8, abs=0.02)
