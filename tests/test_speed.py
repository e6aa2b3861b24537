"""The pages on speed and on scaling up show what the benchmarks left, all of it, and judge it the right way round."""

import re

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from peaks_and_gates import estimate, speed, store
from peaks_and_gates.errors import MissingFile, UnknownName

MACHINE = {"gpu": None, "cpu": "A chip", "threads": 2, "date": "2026-01-31", "packages": {"torch": "2", "numpy": "1"}}


def row(benchmark, setting, unit, ours, reference=None, limit=None, agreement=None):
    ratio = None if reference is None else ours / reference if unit.endswith("/s") else reference / ours
    values = {"ours": ours, "reference": reference, "ratio": ratio, "limit": limit, "agreement": agreement}
    return {"benchmark": benchmark, "setting": setting, "unit": unit} | values


ROWS = [
    row("extraction", "5-shot, 1 order", "questions/s", 20.0, 4.0, 25.0, "lowest cosine 1.000000"),
    row("geometry", "2,500 x 576", "s", 2.0, 4.0, 0.5),
    row("geometry", "9,181 x 576", "s", 6.0, 9.0, 1.5),
    row("geometry", "2,500 x 4,096", "s", 3.0, 9.0, 1.0),
    row("geometry, memory", "2,500 x 576", "GB above the states", 0.2, 0.1),
    row("geometry, memory", "2,500 x 4,096", "GB above the states", 0.2, 0.4),
    row("book", "cold", "minutes", 50.0),
    row("pages, cold", "subjects", "minutes", 7.0),
    row("pages, cold", "shots", "minutes", 12345.6),
    row("pages, with stored states", "subjects", "minutes", 1.0),
]


@pytest.fixture
def table(tmp_path):
    store.write_json(tmp_path / "made.json", {"machine": MACHINE, "rows": ROWS})
    return speed.measured(str(tmp_path))


def cells(shown):
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", line) for line in shown.data.split("<tr")][1:]


def test_the_limit_of_a_rate_is_above_and_of_a_time_below(table):
    assert speed.reached(table[table["benchmark"] == "extraction"]).tolist() == [0.8]
    assert speed.reached(table[table["benchmark"] == "geometry"]).tolist() == pytest.approx([0.25, 0.25, 1 / 3])


def test_a_table_has_the_columns_that_were_measured(table):
    line = cells(speed.shown(table, "extraction"))[-1]
    assert line == ["5-shot, 1 order", "questions/s", "20", "4", "5", "25", "80%", "lowest cosine 1.000000"]
    assert cells(speed.shown(table, "pages, cold"))[-1] == ["shots", "minutes", "12,346"]
    assert "Not measured yet:</strong> knockout and patching" in speed.shown(table, "knockout", "patching").data


def test_points_and_dimensions_are_read_as_numbers(table):
    found = speed.sizes(table, "geometry")
    assert found[["n", "d"]].values.tolist() == [[2500, 576], [9181, 576], [2500, 4096]]


def test_the_figures_hold_what_was_measured(table):
    figure = speed.growth(table)
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines]
    assert ([2500, 9181], [2.0, 6.0]) in lines and ([2500, 9181], [4.0, 9.0]) in lines
    assert re.findall(r"x 576 ([\d.]+)", speed.growth_summary(table)) == ["2.0", "1.5", "0.5"]
    bars = speed.pages(table).axes[0]
    widths = [bar.get_width() for bar in bars.patches]
    assert widths[:2] == [7.0, 12345.6] and widths[2] == 1.0  # the longest on top
    assert [label.get_text() for label in bars.get_yticklabels()] == ["subjects", "shots"]
    assert speed.pages_summary(table).endswith("The longest pages: shots 12345.6, subjects 7.0.")
    assert "<figure" in speed.pages_shown(table).data
    assert "whole_book.py" in speed.pages_shown(table[table["benchmark"] != "book"]).data
    plt.close("all")


def test_the_machine_is_named(table, tmp_path):
    assert cells(speed.machines(str(tmp_path)))[-1] == [
        "made.py",
        "A chip, 2 threads",
        "torch 2, numpy 1",
        "2026-01-31",
    ]
    with pytest.raises(MissingFile, match="make bench"):
        speed.measured(str(tmp_path / "nothing"))


def test_estimates_are_those_of_the_command():
    lines = cells(speed.estimates("h100", 5, 8))
    assert [line[0] for line in lines[1:]] == list(estimate.KNOWN["models"])
    found = estimate.machines(estimate.shape("llama-3-8b"), estimate.few_shot(5, 8)).set_index("gpu").loc["h100"]
    (line,) = [line for line in lines if line[0] == "llama-3-8b"]
    assert line[2:] == [f"{found['least']:.0f}", *(f"{found[where]:.1f}" for where in ("one", "node", "nodes"))]
    (large,) = [line for line in lines if line[0] == "llama-3-70b"]
    assert large[3] == "–" and float(large[4]) > 0
    with pytest.raises(UnknownName, match="h100"):
        speed.estimates("h10", 5, 8)


def test_what_the_repository_holds_is_complete():
    table = speed.measured("benchmarks/measured")
    assert table["ours"].notna().all() and (table["ours"] > 0).all()
    assert table["ratio"].dropna().gt(0).all() and not table.duplicated(["benchmark", "setting", "unit"]).any()
    compared = table.dropna(subset=["reference"])
    better = (compared["ours"] / compared["reference"]).where(
        compared["unit"].str.endswith("/s"), compared["reference"] / compared["ours"]
    )
    pd.testing.assert_series_equal(better, compared["ratio"], check_names=False)
