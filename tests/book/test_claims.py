"""Claims: the measures on curves whose answer is known, the rules, and what the book states."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT
from peaks_and_gates import record
from peaks_and_gates.book import claims, runner
from peaks_and_gates.book.claims import Part, Verdict, judge, measure
from peaks_and_gates.errors import BadParameter, UnknownName
from peaks_and_gates.statistics import Estimate

LAYERS = np.arange(1, 11)
FLAT, EARLY = [0.1] * 10, [0.1, 0.4, 0.9, 0.8, 0.5, 0.3, 0.2, 0.1, 0.1, 0.1]


def table(curves, spread=0.01, metric="m", setting="s", **more):
    """A tidy table of up to ten layers from {condition: values}."""
    frames = [
        pd.DataFrame({
            "condition": condition, "layer": LAYERS[: len(values)], "depth": LAYERS[: len(values)] / 10,
            "metric": metric, "setting": setting, "value": values,
            "low": np.array(values) - spread, "high": np.array(values) + spread, "n": 100,
        })
        for condition, values in curves.items()
    ]  # fmt: skip
    return pd.concat(frames).assign(**more)


TABLES = {
    "geometry": table({"0-shot": FLAT, "10-shot": EARLY, "5-shot": np.array(EARLY) / 2}, null=0.0, null_high=0.85),
    "wide": table({"5-shot": EARLY}, spread=0.06),
    "falling": table({"5-shot": np.linspace(1.0, 0.1, 10)}, spread=0.02),
    "zero": table({"5-shot": [0.005] * 10}, spread=0.02),
    "cut": table({"none": [0.5, 0.8], "cut": [0.9, 0.2]}, n=50),
    "before": table({"none": [0.0, 1.0]}),
    "other": table({"2-shot": [0.6] * 10}),
    "empty": table({"5-shot": [np.nan] * 10}),
    "gap": table({"5-shot": [np.nan, *EARLY[1:]]}),
    "seeds": table({"5-shot": EARLY, "5-shot, seed 0": np.array(EARLY) - 0.2, "10-shot, seed 0": FLAT}),
    "groups": pd.concat([table({"none": [v]}, group=name) for name, v in (("native", 0.2), ("open", 0.8))]),
}


def part(kind, table="geometry", **more):
    defaults = {"says": "it", "why": "because", "table": table, "metric": "m", "setting": "s"}
    return defaults | {"condition": "most shots", "measure": kind, "at_least": 0} | more


CUT = {"table": "cut", "condition": "cut", "baseline": "none"}
LATE = 0.125  # mean of the last four layers
OPEN = {"table": "groups", "condition": "none", "group": "open"}


@pytest.mark.parametrize(
    ("asking", "expected"),
    [
        (part("maximum"), (0.9, 0.89, 0.91)),
        (part("lift", baseline="0-shot"), (0.8, 0.8 - 0.01 * 2**0.5, 0.8 + 0.01 * 2**0.5)),
        (part("lift", baseline="most shots", baseline_table="other"), (0.3, 0.3 - 0.01 * 2**0.5, 0.3 + 0.01 * 2**0.5)),
        (part("share lost", **CUT), (0.75, 1 - 0.21 / 0.79, 1 - 0.19 / 0.81)),
        (part("share lost", **CUT, baseline_table="before"), (0.8, 1 - 0.21 / 0.99, 1 - 0.19 / 1.01)),
        (part("depth of maximum"), (0.3, 0.3, 0.3)),
        (part("depth of maximum", "wide"), (0.3, 0.3, 0.4)),
        (part("late share"), (LATE / 0.9, (LATE - 0.01) / 0.91, (LATE + 0.01) / 0.89)),
        (part("late share", "zero"), (1, -0.015 / 0.025, np.inf)),
        (part("first layer", "falling"), (1.0, 0.98, 1.02)),
        (part("last over first", "falling"), (0.1, 0.08 / 1.02, 0.12 / 0.98)),
        (part("last over first", "zero"), (1, -0.015 / 0.025, np.inf)),
        (part("above chance"), (0.05, 0.04, 0.06)),
        (part("maximum", "seeds", condition="most shots, seed 0"), (0.7, 0.69, 0.71)),
        (part("first layer", **OPEN), (0.8, 0.79, 0.81)),
        (part("lift", **OPEN, baseline="none", baseline_group="native"), (0.6, 0.6 - 2**0.5 / 100, 0.6 + 2**0.5 / 100)),
    ],
)
def test_a_measure_gives_value_and_interval(asking, expected):
    estimate = measure(asking, TABLES).estimate
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(expected)
    assert estimate.n == (50 if asking["table"] == "cut" else 100)


@pytest.mark.parametrize("kind", claims.MEASURES)
def test_what_was_not_run_or_cannot_be_computed_is_untested(kind):
    for change in ({"table": "empty"}, {"table": "nowhere"}, {"metric": "other"}, {"condition": "fine-tuned"}):
        assert measure(part(kind) | change, TABLES).outcome == "untested"
    assert measure(part("lift", baseline="most shots", baseline_table="nowhere"), TABLES).outcome == "untested"
    assert measure(part("first layer", "gap"), TABLES).outcome == "untested"


WRONG = {
    "at_leas": part("maximum", at_leas=0.5), "grup": part("maximum", grup="raw"), "no bound": {"measure": "maximum"},
    "maximun": part("maximun"), "Str": part("maximum", at_least="0.5"), "baseline": part("lift"), "'measure'": {},
    "'group'": part("maximum", group="raw"), "several rows a layer": part("maximum", "groups", condition="none"),
}  # fmt: skip


def test_a_part_that_is_written_wrongly_is_refused_with_its_claim():
    for message, wrong in WRONG.items():
        with pytest.raises(BadParameter, match=f"L1.*{message}"):
            judge({"id": "L1", "parts": [wrong]}, TABLES)


@pytest.mark.parametrize(
    ("at_least", "at_most", "outcome"),
    [(0.5, 1, "met"), (0.895, 1, "undecided"), (0.5, 0.905, "undecided"), (0.95, 1, "missed"), (0.2, 0.5, "missed")],
)
def test_a_bound_is_compared_with_the_whole_interval(at_least, at_most, outcome):
    result = measure(part("maximum", at_least=at_least, at_most=at_most), TABLES)
    rule = f"maximum of m, most shots: at least {at_least} and at most {at_most}"
    assert (result.outcome, result.rule) == (outcome, rule)
    assert measure(part("maximum", at_least=at_least), TABLES).rule == rule.partition(" and")[0]


@pytest.mark.parametrize(
    ("widths", "says"),
    [
        ((0.4, 0.2, 0.1), r"0\.40 \(N = 25\), 0\.20 \(N = 50\), 0\.10 \(N = 100\); about 200 questions would decide"),
        ((0.06, 0.06, 0.06), "no number in reach would decide"),
        ((0.09, 0.08, 0.07), "about 640 questions would decide"),
        ((np.inf, 0.2, 0.1), r"Half-width 0\.20 \(N = 50\), 0\.10 \(N = 100\); about 200 questions would decide"),
        ((np.inf, 0.0, 0.1), "cannot be said from so few"),
    ],
)
def test_an_undecided_part_says_how_many_questions_would_decide_it(widths, says):
    """The value is .05 from the bound: an interval that halves with twice the questions needs twice as many again."""
    geometry = table({"5-shot": [0.5]}, widths[2])
    fewer = [table({"5-shot": [0.45]}, width, every=every) for width, every in zip(widths, (4, 2), strict=False)]
    tables = {"page.geometry": geometry, "page.fewer": pd.concat(fewer)}
    tables["page.fewer"]["n"] //= tables["page.fewer"]["every"]
    asking = part("maximum", "page.geometry", at_least=0.45)
    result = measure(asking, tables)
    assert result.outcome == "undecided" and re.search(says, result.undecided)
    against = asking | {"measure": "lift", "baseline": "5-shot", "baseline_table": "page.geometry", "at_least": 0}
    assert "N = 100" in measure(against, tables).undecided  # its baseline is looked up in the table of fewer, too
    shown = claims.as_html(Verdict({"id": "L1", "claim": "", "paper_value": ""}, (result,)))
    assert result.undecided in shown
    assert measure(asking | {"at_least": 0}, tables).undecided == ""
    assert measure(asking, {"page.geometry": geometry}).undecided == ""
    tables["page.fewer"]["n"] = 100  # counts what fewer questions leave as many, such as subjects
    assert measure(asking, tables).undecided.endswith("cannot be said from so few.")


OUTCOMES = {"met met": "holds", "met missed": "mixed", "met undecided": "mixed", "missed undecided": "undecided"}
OUTCOMES |= {"missed missed": "fails", "met untested": "not tested", "": "not tested"}
CONTROLS = {"met met": "pass", "met missed": "fail", "met undecided": "undecided", "missed": "fail"}


@pytest.mark.parametrize(("paper", "verdicts"), [("gate", OUTCOMES), ("control", CONTROLS)])
def test_verdicts_follow_from_the_parts(paper, verdicts):
    for outcomes, verdict in verdicts.items():
        parts = tuple(Part("", "", "", None, outcome) for outcome in outcomes.split())
        assert Verdict({"paper": paper}, parts).verdict == verdict
        assert f"</span> {verdict}</span>" in claims.badge(verdict)


def test_the_book_states_every_claim_with_source_rule_and_reason_and_measured_it():
    ids = [*(f"L{i}" for i in range(1, 10)), *(f"G{i}" for i in range(1, 8)), *(f"K{i}" for i in range(1, 5))]
    verdicts = claims.judge_all(ROOT / "results" / "laptop")
    assert [verdict.claim["id"] for verdict in verdicts] == ids
    for verdict in verdicts:
        assert verdict.claim["page"] in runner.notebooks()
        # A table, group or condition that a claim names and the record lacks would leave it untested.
        assert [part.rule for part in verdict.parts if part.outcome == "untested"] == []
    recorded = json.loads((ROOT / "results" / "laptop" / "scorecard.json").read_text())
    about = {key: recorded[0][key] for key in ("preset", "model", "seeds", "fine_tuned", "seed", "key")}
    assert json.loads(json.dumps(claims.scorecard(verdicts, about))) == recorded


def test_numbers_and_claims_are_shown_in_words():
    ends = {"0.00, 1.00": (-0.001, 1), "at least 0.25": (0.25, np.inf), "at most 0.75": (-np.inf, 0.75)}
    assert [claims.number(Estimate(0.5, *bounds, 3)) for bounds in ends.values()] == [f"0.50 [{text}]" for text in ends]
    assert claims.number(Estimate(np.inf, 0.25, np.inf, 3)) == "[at least 0.25]"
    assert claims.number(Estimate(0.5, np.nan, np.nan, 3)) == claims.number(Estimate(0.5, 0.5, 0.5, 3)) == "0.50"
    (row,) = claims.scorecard([judge(claims.load()[0], {})], {})
    assert row["verdict"] == "not tested" and row["parts"][0]["found"] is None
    first, second = claims.load()[:2]
    page = claims.show_claims([second["id"], first["id"]], {}).data
    with pytest.raises(UnknownName, match="claim 'L99'"):
        claims.show_claims(["L99"], {})
    assert page.index(second["claim"]) < page.index(first["claim"]) and "Found not measured; rule: lift of" in page


def test_two_records_are_compared_by_values_and_verdicts(tmp_path):
    for name, top, n in (("old", 0.9, 2), ("same", 0.9 + 1e-6, 2), ("moved", 0.2, 2), ("shorter", 0.9, 1)):
        curves = {"0-shot": [0.1] * n, "5-shot": [0.1, top][:n]}
        frame = table(curves, metric="ari_subject", setting="figures", group="pretrained", model=[None] * 2 * n)
        frame["text"] = [name[:1] if name == "moved" else "o"] * 2 * n
        record.write(tmp_path / "parts" / name / "geometry.parquet", frame, {})
        record.publish(tmp_path / "parts" / name, tmp_path / name / "subjects.parquet", {})
    compare = lambda name: claims.differences(tmp_path / "old", tmp_path / name, 1e-4)
    assert compare("same") == []
    names = [*(f"subjects.geometry, {column}" for column in ("value", "low", "high", "text")), "L1"]
    assert [line.partition(":")[0] for line in compare("moved")] == names
    assert "1 of 4 differ; 5-shot, ari_subject, figures, pretrained, o: 0.9 -> 0.2" in compare("moved")[0]
    assert "4 of 4 differ" in compare("moved")[3] and compare("moved")[4] == "L1: holds -> fails"
    assert compare("shorter")[0].startswith("subjects.geometry: 4 rows of")
    far = claims.distance(pd.Series([1.0, np.nan, np.nan]), pd.Series([1.5, np.nan, 2.0]), 0.1)
    assert far.tolist() == [0.5, 0, np.inf]
