"""The cartoon: its pictures must show what their words say, measured by the book's own landscape."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from peaks_and_gates import cartoon, figures
from peaks_and_gates.errors import BadParameter


@pytest.fixture(scope="module")
def table():
    return cartoon.points(seed=0)


@pytest.fixture(scope="module")
def found(table):
    return cartoon.measured(table).set_index(["stage", "condition"])


def test_the_same_seed_gives_the_same_points(table):
    pd.testing.assert_frame_equal(table, cartoon.points(seed=0))
    assert not np.allclose(table["x"], cartoon.points(seed=1)["x"])


def test_every_panel_shows_the_same_questions_with_letters_dealt_evenly(table):
    panels = [rows[["subject", "answer"]].reset_index(drop=True) for _, rows in table.groupby(["stage", "condition"])]
    assert len(panels) == 6 and all(panel.equals(panels[0]) for panel in panels)
    assert set(panels[0].value_counts("answer")) == {120} and set(panels[0].value_counts("subject")) == {80}


@pytest.mark.parametrize("share", [0.25, 0.6, 1.0])
def test_a_share_of_the_questions_sits_in_its_own_cloud_and_the_others_spread_evenly(share):
    panel = replace(cartoon.PANELS[-1], apart=50.0, share=share)  # so far apart that the nearest cloud is certain
    table = cartoon.points(seed=3, n_per_subject=800, panels=[panel])
    distance = ((table[["x", "y"]].to_numpy()[:, None] - panel.centres) ** 2).sum(2)  # (n, 4)
    cloud, own = distance.argmin(1), table["answer"].map("ABCD".index).to_numpy()
    assert np.mean(cloud == own) == pytest.approx(share, abs=0.02)
    assert np.bincount((cloud - own) % 4, minlength=4)[1:] / len(own) == pytest.approx((1 - share) / 3, abs=0.02)


def test_the_panels_show_no_half_and_full_agreement(found):
    value = found["value"]
    assert value["early", "few-shot"] > 0.9 and found["n_peaks"]["early", "few-shot"] == len(cartoon.SUBJECTS)
    assert 0.2 < value["early", "0-shot"] < 0.5  # peaks of whole families
    assert 0.4 < value["late", "fine-tuned"] < 0.6
    assert value["late", "0-shot"] < found["null_high"]["late", "0-shot"]
    assert value["early", "fine-tuned"] < 0.05


def test_the_index_of_four_clouds_follows_from_the_share():
    panel = replace(cartoon.PANELS[-1], apart=5.0, share=0.8)  # the exercise's formula, for clouds that do not touch
    found = cartoon.measured(cartoon.points(seed=1, n_per_subject=300, panels=[panel])).iloc[0]
    assert found["n_peaks"] == 4
    assert found["low"] < ((4 * 0.8 - 1) / 3) ** 2 < found["high"]


def test_the_contours_are_the_density_of_the_points():
    panel = cartoon.PANELS[0]
    x = np.linspace(-25, 25, 501)
    heights = cartoon.density(panel, *np.meshgrid(x, x))
    assert heights.sum() * (x[1] - x[0]) ** 2 == pytest.approx(1)
    table = cartoon.points(seed=2, n_per_subject=2000, panels=[panel])
    above = cartoon.density(panel, table["x"], table["y"]) > 0.4 * heights.max()  # inside one of the contours
    assert above.mean() == pytest.approx(heights[heights > 0.4 * heights.max()].sum() / heights.sum(), abs=0.02)


def test_too_few_questions_are_refused():
    with pytest.raises(BadParameter, match="n_per_subject=5"):
        cartoon.points(n_per_subject=5)


def test_the_figure_names_every_label_and_number(table, found):
    rows = found.reset_index()
    said = cartoon.summary(rows)
    assert said.count("[") == 6 and "-0.00" not in said
    assert figures.drawn(lambda: cartoon.drawing(table, rows)).startswith(b"<?xml")
    figure = cartoon.drawing(table, rows)
    for ax, (_, row) in zip([ax for half in figure.subfigs for ax in half.axes], rows.iterrows(), strict=True):
        assert cartoon.number(row["value"]) in ax.get_xlabel() and f"{row['n_peaks']} peak" in ax.get_xlabel()
    assert [text.get_text() for text in figure.subfigs[0].legends[0].texts] == list(cartoon.SUBJECTS)
