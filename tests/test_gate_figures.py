"""The gate pages' figures and tables: that what they show is what was measured, ours and the paper's."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from peaks_and_gates import gate_figures

TITLE = "gated"


def rows(metric, values, **more):
    """Rows of a table as `peaks.row` makes them, one for each condition and layer."""
    base = {"model": "mini-gated", "depth": 0.0, "layer": 0, "setting": "", "null": np.nan, "null_high": np.nan, "n": 9}
    found = [{"condition": name, "value": value, "low": value, "high": value} for name, value in values.items()]
    return pd.DataFrame([base | {"metric": metric} | more | each for each in found])


@pytest.mark.parametrize(
    ("model", "condition", "cut"),
    [("chameleon-7b", "end → text", "end of image"), ("pixtral-12b", "image → text", "image to text")],
)
def test_the_papers_progressive_curves_run_from_a_cut_of_everything_to_none(model, condition, cut):
    """They must meet the paper's own table at both ends."""
    table = gate_figures.reference("gate_table")
    table = table[(table["version"] == "v1") & (table["model"] == model) & (table["task"] == "ImageNet")]
    value = table.set_index("knockout")["value"]
    curve = gate_figures.paper_curve("progressive", model)
    curve = curve[curve["condition"] == condition].set_index("depth")["value"]
    assert curve[1.0] == pytest.approx(value["none"], abs=0.02)
    assert curve[0.0] == pytest.approx(value[cut], abs=0.02)


def test_a_table_says_nothing_where_nothing_was_measured():
    measured = pd.concat([rows("vqa", {"none": 0.8, "end → text": 0.3}), rows("vqa_lost", {"end → text": 0.625})])
    shown = gate_figures.table({TITLE: measured}).data
    assert "NaN" not in shown and "0.62 [0.62, 0.62]" in shown and "–" in shown


def test_a_panel_shows_every_condition_and_what_chance_gives():
    layers = [
        rows("class_overlap", {"end → text": 0.2 + i / 10}, layer=i, depth=i / 2, null=0.05, setting="zero")
        for i in range(3)
    ]
    figure = gate_figures.curves({TITLE: pd.concat(layers)}, "class_overlap", "zero", ["chameleon-7b"], "progressive")
    ours, theirs = figure.axes
    heights = [line.get_ydata() for line in ours.lines]
    assert any(np.allclose(y, [0.2, 0.3, 0.4]) for y in heights) and any(np.allclose(y, 0.05) for y in heights)
    assert len(theirs.lines) == 2 and "N = 9" in ours.get_title()
    plt.close(figure)


def test_a_caption_names_the_cuts_that_tell_a_gate():
    measured = rows("vqa", {"none": 0.8, "end → text": 0.3, "block → text": 0.2, "image → text": 0.7})
    assert gate_figures.loss_summary({TITLE: measured}, "vqa", brief=True) == (
        "VQA accuracy. gated: none 0.80, end → text 0.30, image → text 0.70."
    )


def test_a_caption_says_how_seeds_are_shown():
    measured = rows("vqa", {"none": 0.8, "end → text": 0.3})
    together = {TITLE: measured, "native": measured.assign(model="mini-native (3 seeds)")}
    note = "Of the seeds of native: their mean, and an interval that spans theirs."
    assert gate_figures.loss_summary(together, "vqa").endswith(note)
    assert gate_figures.summary(together, "vqa").endswith(note)
    assert note not in gate_figures.loss_summary({TITLE: measured}, "vqa")
