"""What all figures share: a picture for each theme, the papers' numbers beside ours, and words."""

import base64
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from peaks_and_gates import figures


def rows(metric, values, **more):
    """Rows of a table, one for each condition."""
    base = {"model": "mini-gated", "depth": 0.0, "layer": 0, "setting": "", "null": np.nan, "null_high": np.nan, "n": 9}
    return pd.DataFrame([
        base | {"metric": metric, "condition": name, "value": value, "low": value, "high": value} | more
        for name, value in values.items()
    ])  # fmt: skip


def layers(metric, values, **more):
    """A table of as many layers as a condition has values."""
    n = len(next(iter(values.values())))
    parts = [
        rows(metric, {k: v[i] for k, v in values.items()}, layer=i + 1, depth=(i + 1) / n, **more) for i in range(n)
    ]
    return pd.concat(parts, ignore_index=True)


def with_ink(calls):
    """A figure whose title has the theme's colour, and a word that has the light theme's wherever it is."""
    calls.append(1)
    figure, ax = plt.subplots()
    ax.set_title("theme")
    ax.text(0.5, 0.5, "always", color=figures.THEMES["light"][0])
    return figure


def test_a_figure_is_drawn_once_and_shown_in_both_themes():
    calls = []
    page = figures.show(lambda: with_ink(calls), 'a "title"', "all & more").data
    pattern = r'class="pg-(\w+)" alt="a &quot;title&quot;" src="data:image/svg\+xml;base64,([^"]+)"'
    light, dark = (base64.b64decode(dict(re.findall(pattern, page))[theme]).decode() for theme in ("light", "dark"))
    assert calls == [1] and "<figcaption>all &amp; more</figcaption>" in page
    for picture in (light, dark):
        assert not any(mark in picture for mark in figures.MARKS)
    for own, other in zip(figures.THEMES["dark"], figures.THEMES["light"], strict=True):
        assert own in dark and own not in light and other in light
    assert dark.count(figures.THEMES["light"][0]) == 1  # the word; nothing else keeps the colours of light


def test_the_same_data_give_the_same_bytes():
    table = {"here": layers("ari_subject", {"0-shot": [0.1, 0.3], "fine-tuned, seed 0": [0.2, 0.2]}, null=0.0)}
    first, second = (figures.as_svg(lambda: figures.curves(table, "ari_subject")) for _ in range(2))
    assert first == second


def test_steps_show_every_picture_with_its_words():
    frames = {f"noise {i}": (lambda: plt.figure(), f"peaks {i} & more") for i in range(2)}
    page = figures.steps(frames, "all").data
    assert page.count('class="pg-step"') == 2 and 'data-label="noise 1"' in page and "peaks 1 &amp; more</p>" in page
    assert "http" not in page  # no other server is asked


@pytest.mark.parametrize(
    ("model", "condition", "cut"),
    [("chameleon-7b", "end → text", "end of image"), ("pixtral-12b", "image → text", "image to text")],
)
def test_the_papers_progressive_curves_run_from_a_cut_of_everything_to_none(model, condition, cut):
    """They must meet the paper's own table at both ends."""
    table = pd.read_csv(figures.reference("gate_table.csv"))
    table = table[(table["version"] == "v1") & (table["model"] == model) & (table["task"] == "ImageNet")]
    value = table.set_index("knockout")["value"]
    curve = figures.paper("progressive", model)
    curve = curve[curve["condition"] == condition].set_index("depth")["value"]
    assert curve[1.0] == pytest.approx(value["none"], abs=0.02)
    assert curve[0.0] == pytest.approx(value[cut], abs=0.02)


def test_the_papers_baseline_without_a_patch_is_a_dashed_line():
    for model, value in (("chameleon-7b", 0.109), ("chameleon-34b", 0.361)):
        curve = figures.paper("similarity", model).set_index("condition")["value"]
        assert curve["none"] == value == pytest.approx(curve["residual"].min(), abs=0.02)
    table = layers("similarity", {"residual": [0.2, 0.3, 0.4]}, setting="")
    _, theirs = figures.curves({"gated": table}, "similarity", None, ["chameleon-7b"]).axes
    (dashed,) = [line for line in theirs.lines if line.get_linestyle() == "--"]
    assert np.allclose(dashed.get_ydata(), 0.109)


def test_the_papers_numbers_are_those_that_the_claims_quote():
    highest = lambda quantity, model: figures.paper(quantity, model).groupby("condition")["value"].max()
    lowest = figures.paper("signed_cosine", "chameleon-7b")["value"].min()
    assert (lowest, highest("signed_cosine", "chameleon-7b").item()) == (-0.007, 0.076)
    assert highest("sign_changes", "chameleon-7b")["residual"] == pytest.approx(0.887)
    for model, end, mean in (
        ("chameleon-7b", 0.475, 0.2),
        ("chameleon-34b", 0.58, 0.239),
        ("pixtral-12b", 0.339, 0.445),
    ):
        tops = highest("class_overlap", model)
        assert tops[["end", "mean image"]].tolist() == pytest.approx([end, mean], abs=0.006)


def test_the_record_is_drawn_in_grey_behind_the_same_conditions():
    own = layers("ari_subject", {"5-shot": [0.2, 0.3, 0.4]})
    record = layers(
        "ari_subject", {"5-shot": [0.5, 0.6, 0.7], "5-shot, seed 0": [0.0] * 3, "1-shot": [0.9] * 3}, n=4800
    )
    figure = figures.curves({"a": own, "b": own}, "ari_subject", behind={"a": record})
    with_record, without = figure.axes
    grey = [line for line in with_record.lines if line.get_color() == figures.GREY]
    assert [line.get_ydata().tolist() for line in grey] == [[0.5, 0.6, 0.7]]
    assert [text.get_text() for text in figure.legends[0].get_texts()].count("the record, N = 4,800") == 1
    assert len(without.lines) == len(with_record.lines) - 1


def test_chance_is_called_what_it_is():
    for metric, label in (("cosine", "random directions"), ("class_overlap", "shuffled labels")):
        table = layers(metric, {"end": [0.2, 0.3, 0.4]}, null=0.06, null_high=0.07, setting="")
        labels = [text.get_text() for text in figures.curves({"gated": table}, metric).legends[0].get_texts()]
        assert labels == ["end", label]


def test_the_papers_landscape_is_what_its_text_says():
    curves = figures.paper("ari_subject", "llama-3-8b")
    highest = curves.groupby("condition")["value"].max()
    assert highest["5-shot"] == pytest.approx(0.873) and highest["0-shot"] == pytest.approx(0.25)
    assert curves["depth"].max() == 1 and not curves["source"].str.contains("rebuttal").any()
    assert figures.paper("overlap_subject", "llama-3-8b").empty  # the paper draws none


def test_the_papers_curves_follow_the_model_that_a_page_is_run_with():
    assert figures.paper_model("ari_subject", "mistral-7b") == "mistral-7b"
    assert figures.paper_model("ari_subject", "smollm2-135m-instruct") == "llama-3-8b"
    assert figures.paper_model("overlap_pretrained", "llama-3-70b") == "llama-3-8b"  # the paper has no such curve
    for page in (figures.project_folder() / "notebooks" / "landscape").glob("*.ipynb"):
        assert '[\\"llama-3-8b\\"]' not in page.read_text(), page.stem


@pytest.mark.parametrize("model", ["llama-2-7b", "llama-3-8b", "llama-3-70b", "mistral-7b"])
def test_the_dimension_of_the_first_layer_is_not_the_papers(model):
    """Its code has a 1.0 typed there."""
    curves = figures.paper("intrinsic_dimension", model)
    assert curves["layer"].min() == 2 and curves["depth"].max() == 1 and curves["value"].min() > 3
    assert figures.paper("ari_subject", model)["layer"].min() == 1


def test_a_caption_says_of_how_many_questions_the_papers_curves_are():
    few = "9,164 (0-shot), 9,164 (1-shot), 9,174 (2-shot), "
    text = figures.about_paper("ari_answer", "llama-3-8b", "llama-3-70b")
    assert f"The paper's llama-3-8b: N = {few}9,181 (5-shot), 9,164 (fine-tuned). The paper's llama-3-70b" in text
    assert f"{few}9,180 (4-shot), 9,164 (fine-tuned). Its curves have the recipe figures" in text
    assert "14,015 (fine-tuned)" in figures.about_paper("core_fraction", "llama-3-8b")
    assert "14,013 (fine-tuned)" in figures.about_paper("n_peaks", "llama-2-70b")
    assert "means of three layers" in text


def test_a_panel_shows_every_condition_what_chance_gives_and_the_paper():
    values = {"end → text": [0.2, 0.3, 0.4], "image → text, seed 0": [0.6, 0.6, 0.6]}
    table = layers("class_overlap", values, null=0.05, null_high=0.1, setting="zero")
    figure = figures.curves({"gated": table}, "class_overlap", "zero", ["chameleon-7b"], "progressive")
    ours, theirs = figure.axes
    heights = [line.get_ydata() for line in ours.lines]
    for expected in ([0.2, 0.3, 0.4], [0.6, 0.6, 0.6], [0.05, 0.05, 0.05]):
        assert any(np.allclose(y, expected) for y in heights)
    assert len(theirs.lines) == 2 and ours.get_title() == "gated: mini-gated, N = 9"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["end → text", "shuffled labels", "image → text"]
    plt.close(figure)


def test_bars_put_every_model_at_its_condition():
    tables = {
        "gated": rows("vqa", {"none": 0.8, "end → text": 0.3}, setting="zero"),
        "open": rows("vqa", {"none": 0.7, "image → text": 0.4}, setting="zero"),
    }
    (ax,) = (figure := figures.bars(tables, {("vqa", "zero"): "VQA"})).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["none", "end → text", "image → text"]
    gated, opened = (np.asarray(bar.lines[0].get_xdata(), dtype=float) for bar in ax.containers)
    assert np.allclose(gated, [0.8, 0.3, np.nan], equal_nan=True)
    assert np.allclose(opened, [0.7, np.nan, 0.4], equal_nan=True)
    plt.close(figure)


def test_looks_go_by_the_control_then_by_the_condition():
    assert figures.look("5-shot, one order") == figures.PALETTE["one order"]
    assert figures.look("fine-tuned, seed 2") == figures.PALETTE["fine-tuned"]
    assert figures.look("an unknown token") == (figures.GREY, "X")


def test_groups_leave_single_seeds_out():
    table = pd.DataFrame({"group": ["native", "native, seed 0", "gated"], "value": [1, 2, 3]})
    by_group = {name: part["value"].tolist() for name, part in figures.by_group(table).items()}
    assert by_group == {"native": [1], "gated": [3]}


def test_words_say_the_highest_value_and_where():
    table = layers("ari_subject", {"0-shot": [0.1, 0.25], "5-shot": [0.9, -0.001], "5-shot, seed 0": [1.0, 1.0]})
    text = figures.summary({"raw": table}, "ari_subject")
    assert text == "Highest ARI of peaks with subject. raw: 0-shot 0.25 (layer 2), 5-shot 0.90 (layer 1)."
    seeds = {"raw": table.assign(model="tuned (3 seeds)")}
    assert figures.summary(seeds, "ari_subject").endswith("their mean, and an interval that spans theirs.")


def test_a_printed_table_says_nothing_where_nothing_was_measured():
    measured = pd.concat([rows("vqa", {"none": -0.001, "end → text": 0.3}), rows("vqa_lost", {"end → text": 0.625})])
    table = figures.with_intervals(measured, "condition", "metric")
    assert table.index.tolist() == ["none", "end → text"] and table.loc["none", "vqa_lost"] == "–"
    assert table.loc["none", "vqa"] == "0.00 [0.00, 0.00]"
    assert table.loc["end → text", "vqa_lost"] == "0.62 [0.62, 0.62]"
