"""Claims: the measures on curves whose answer is known, the rules, and what the book states."""

from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest

from peaks_and_gates import record
from peaks_and_gates.book import claims
from peaks_and_gates.book import runner as book
from peaks_and_gates.book.claims import Part, Verdict, judge, measure
from peaks_and_gates.errors import BadParameter, UnknownName

ROOT = Path(__file__).parents[2]
LAYERS = np.arange(1, 11)


def table(curves, spread=0.01, metric="m", setting="s"):
    """A tidy table of ten layers from {condition: values}."""
    frames = [
        pd.DataFrame({
            "condition": condition, "layer": LAYERS[: len(values)], "depth": LAYERS[: len(values)] / 10,
            "metric": metric, "setting": setting,
            "value": values, "low": np.array(values) - spread, "high": np.array(values) + spread, "n": 100,
        })
        for condition, values in curves.items()
    ]  # fmt: skip
    return pd.concat(frames)


EARLY = [0.1, 0.4, 0.9, 0.8, 0.5, 0.3, 0.2, 0.1, 0.1, 0.1]
FLAT = [0.1] * 10
CURVES = {"geometry": table({"0-shot": FLAT, "1-shot": np.array(EARLY) / 2, "5-shot": EARLY})}


def part(kind, **more):
    defaults = {"says": "it", "why": "because", "table": "geometry", "metric": "m", "setting": "s"}
    return defaults | {"condition": "most shots", "measure": kind} | more


def test_maximum_is_that_of_the_condition_with_most_shots():
    found = measure(part("maximum", at_least=0.5), CURVES).found
    assert (found.value, found.n) == (0.9, 100)
    assert (found.low, found.high) == pytest.approx((0.89, 0.91))


def test_lift_subtracts_and_adds_the_intervals_in_squares():
    found = measure(part("lift", baseline="0-shot", at_least=0.5), CURVES).found
    assert found.value == pytest.approx(0.8)
    assert found.high - found.value == pytest.approx(0.01 * np.sqrt(2))


def test_a_baseline_may_stand_in_another_table():
    tables = CURVES | {"other": table({"2-shot": [0.6] * 10})}
    found = measure(part("lift", baseline="most shots", baseline_table="other", at_least=0), tables).found
    assert found.value == pytest.approx(0.3)
    alone = part("lift", baseline="most shots", baseline_table="nowhere", at_least=0)
    assert measure(alone, tables).outcome == "untested"


def test_share_lost_is_what_a_condition_lacks_of_a_baseline():
    tables = {"geometry": table({"none": [0.8], "cut": [0.2]}), "before": table({"none": [1.0]})}
    asked = part("share lost", condition="cut", baseline="none", at_least=0.5)
    found = measure(asked, tables).found
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 1 - 0.21 / 0.79, 1 - 0.19 / 0.81))
    assert measure(asked | {"baseline_table": "before"}, tables).found.value == pytest.approx(0.8)


def test_first_layer_and_the_last_as_its_share():
    falling = {"geometry": table({"5-shot": np.linspace(1.0, 0.1, 10)}, spread=0.02)}
    first = measure(part("first layer", at_least=0.9), falling)
    assert (first.found.value, first.outcome) == (1.0, "met")
    share = measure(part("last over first", at_most=0.5), falling).found
    assert share.value == pytest.approx(0.1)
    assert (share.low, share.high) == pytest.approx((0.08 / 1.02, 0.12 / 0.98))


def test_above_chance_is_over_the_upper_end_of_the_shuffled():
    shuffled = {"geometry": CURVES["geometry"].assign(null=0.0, null_high=0.85)}
    found = measure(part("above chance", at_least=0), shuffled)
    assert found.found.value == pytest.approx(0.05)
    assert found.outcome == "met"
    assert measure(part("above chance", condition="0-shot", at_least=0), shuffled).outcome == "missed"


def test_a_number_that_could_not_be_computed_is_untested():
    empty = {"geometry": table({"5-shot": [np.nan, *EARLY[1:]]})}
    assert measure(part("first layer", at_least=0), empty).outcome == "untested"
    nothing = {"geometry": table({"5-shot": [np.nan] * 10})}
    for kind in claims.MEASURES:
        assert measure(part(kind, at_least=0, baseline="5-shot"), nothing).outcome == "untested", kind


def test_depth_of_maximum_spans_the_layers_not_told_apart():
    sharp = measure(part("depth of maximum", at_most=0.5), CURVES).found
    assert (sharp.value, sharp.low, sharp.high) == (0.3, 0.3, 0.3)
    wide = measure(part("depth of maximum", at_most=0.5), {"geometry": table({"5-shot": EARLY}, spread=0.06)}).found
    assert (wide.value, wide.low, wide.high) == (0.3, 0.3, 0.4)


def test_late_share_compares_the_last_third_with_the_top_before_it():
    found = measure(part("late share", at_most=0.5), CURVES).found
    assert found.value == pytest.approx(np.mean([0.2, 0.1, 0.1, 0.1]) / 0.9)
    assert found.low < found.value < found.high


def test_late_share_of_a_top_that_may_be_zero_has_no_upper_end():
    unsure = measure(part("late share", at_most=0.5), {"geometry": table({"5-shot": EARLY}, spread=1.0)})
    assert unsure.found.high == np.inf
    assert unsure.outcome == "unclear"


@pytest.mark.parametrize(
    ("bounds", "outcome"),
    [
        ({"at_least": 0.8}, "met"),
        ({"at_least": 0.95}, "missed"),
        ({"at_least": 0.9}, "unclear"),
        ({"at_most": 0.95}, "met"),
        ({"at_most": 0.5}, "missed"),
        ({"at_least": 0.2, "at_most": 0.95}, "met"),
        ({"at_least": 0.2, "at_most": 0.5}, "missed"),
    ],
)
def test_a_bound_is_held_against_the_whole_interval(bounds, outcome):
    assert measure(part("maximum", **bounds), CURVES).outcome == outcome


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        (["met", "met"], "holds"),
        (["met", "missed"], "partly"),
        (["met", "unclear"], "partly"),
        (["unclear"], "partly"),
        (["missed", "missed"], "fails"),
        (["met", "untested"], "not tested"),
        ([], "not tested"),
    ],
)
def test_verdicts_follow_from_the_parts(outcomes, verdict):
    parts = tuple(Part("", "", "", None, outcome) for outcome in outcomes)
    assert Verdict({}, parts).verdict == verdict


def test_what_was_not_run_is_not_tested():
    assert measure(part("maximum", condition="fine-tuned", at_least=0), CURVES).outcome == "untested"
    assert measure(part("maximum", table="elsewhere", at_least=0), CURVES).outcome == "untested"
    assert measure(part("maximum", metric="other", at_least=0), CURVES).outcome == "untested"


def test_broken_rules_are_refused():
    with pytest.raises(UnknownName, match="Did you mean 'maximum'"):
        measure(part("maximun", at_least=0), CURVES)
    with pytest.raises(BadParameter, match="neither"):
        measure(part("maximum"), CURVES)
    with pytest.raises(UnknownName, match="claim"):
        claims.show_claims(["L99"], {})


TEXT = {"type": "string", "minLength": 1}
PART = {
    "type": "object",
    "required": ["says", "why", "table", "measure", "metric", "condition"],
    "properties": {"at_least": {"type": "number"}, "at_most": {"type": "number"}},
    "additionalProperties": TEXT,
}
CLAIM = {
    "type": "object",
    "required": ["id", "page", "paper", "figure", "claim", "paper_value", "paper_source"],
    "properties": {"parts": {"type": "array", "items": PART}},
    "additionalProperties": TEXT,
}


def test_the_book_states_every_claim_with_source_rule_and_reason():
    stated = claims.load()
    ids = [*(f"L{i}" for i in range(1, 10)), *(f"G{i}" for i in range(1, 8)), *(f"K{i}" for i in range(1, 5))]
    assert [claim["id"] for claim in stated] == ids
    for claim in stated:
        jsonschema.validate(claim, CLAIM)
        assert claim["page"] in book.notebooks()
        for stated_part in claim.get("parts", ()):
            assert measure(stated_part, {}).outcome == "untested"


def test_every_claim_was_measured_on_the_record():
    """A table, group or condition that a claim names and the record lacks would leave it untested."""
    verdicts = claims.judge_all(ROOT / "results" / "laptop")
    untested = [(v.claim["id"], part.rule) for v in verdicts for part in v.parts if part.outcome == "untested"]
    assert untested == []


def test_a_part_may_look_at_one_group_of_models():
    groups = pd.concat([table({"none": [0.2]}).assign(group="native"), table({"none": [0.8]}).assign(group="open")])
    look = part("first layer", table="page.gap", condition="none", group="open", at_least=0.5)
    assert measure(look, {"page.gap": groups}).found.value == 0.8
    lift = look | {"measure": "lift", "baseline": "none", "baseline_group": "native"}
    assert measure(lift, {"page.gap": groups}).found.value == pytest.approx(0.6)


def test_two_records_are_compared_by_numbers_and_verdicts(tmp_path):
    for name, top, n in (("old", 0.9, 2), ("same", 0.9 + 1e-6, 2), ("moved", 0.2, 2), ("shorter", 0.9, 1)):
        curves = {"0-shot": [0.1] * n, "5-shot": [0.1, top][:n]}
        frame = table(curves, metric="ari_subject", setting="figures").assign(group="raw model", model=[None] * 2 * n)
        record.keep(tmp_path / "parts" / name / "geometry.parquet", frame, {})
        record.publish(tmp_path / "parts" / name, tmp_path / name / "subjects.parquet", {})
    compare = lambda name: claims.differences(tmp_path / "old", tmp_path / name, 1e-4)
    assert compare("same") == []
    assert [line.partition(":")[0] for line in compare("moved")] == [
        "subjects.geometry, value", "subjects.geometry, low", "subjects.geometry, high", "L1",
    ]  # fmt: skip
    assert "5-shot, ari_subject, figures, raw model: 0.9 -> 0.2" in compare("moved")[0]
    assert compare("shorter")[0].startswith("subjects.geometry: 4 rows of")


def test_the_scorecard_is_plain_data_with_the_agreed_fields():
    claim = claims.load()[0]
    early = table({"0-shot": FLAT, "5-shot": EARLY}, metric="ari_subject", setting="figures")
    curves = {"subjects.geometry": early.assign(group="raw model")}
    (row,) = claims.scorecard([judge(claim, curves)], {"preset": "p", "model": "m", "key": "k", "seeds": [0]})
    wanted = "id paper figure claim paper_value paper_source verdict value low high n seeds preset model key"
    assert set(wanted.split()) <= row.keys()
    assert (row["id"], row["verdict"]) == ("L1", "holds")
    assert row["value"] == pytest.approx(0.8)
    assert row["low"] < row["value"] < row["high"]


def test_badges_say_the_verdict_in_words():
    for verdict in claims.VERDICTS:
        assert f"</span> {verdict}</span>" in claims.badge(verdict)
