"""The tables of the gate's pages, on a tiny native and a tiny adapted model."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from peaks_and_gates import interventions, peaks, pictures, token_states
from peaks_and_gates.errors import BadParameter
from peaks_and_gates.gate import study as gate
from peaks_and_gates.gate import vlm
from peaks_and_gates.gate.study import Study
from peaks_and_gates.statistics import Estimate, over_seeds
from tiny_vlms import tiny_vlm

STUDY = Study(
    str(tiny_vlm("llava")), n_gap=24, n_classes=4, n_per_class=5, n_questions=4, n_captions=4, n_per_pair=1, n_random=3,
    n_repeats=2, new_tokens=(3, 4), batch_size=8, dtype="float32",
)  # fmt: skip
MODELS = [str(tiny_vlm("llava")), str(tiny_vlm("chameleon"))]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("model", MODELS)
def test_shares_of_the_block_add_up_to_one(model):
    table = gate.cross_attention_table(replace(STUDY, model=model))
    shares = table[table["metric"] == "share"]
    assert np.allclose(shares.groupby(["layer", "setting"])["value"].sum(), 1)
    heads = table[(table["metric"] == "mass") & table["setting"].str.startswith("head ")]
    means = table[(table["metric"] == "mass") & (table["setting"] == "all heads")].set_index("layer")["value"]
    assert np.allclose(heads.groupby("layer")["value"].mean(), means)
    assert set(shares["n"]) == {20}


def test_states_are_kept_and_read_again_without_the_model(monkeypatch):
    first = gate.class_overlap_table(STUDY)
    monkeypatch.setattr(vlm, "encode", lambda *a: pytest.fail("the model was run again"))
    assert gate.class_overlap_table(STUDY).equals(first)
    with pytest.raises(pytest.fail.Exception):
        gate.class_overlap_table(replace(STUDY, seed=1))


def test_what_is_drawn_does_not_depend_on_the_batch():
    shown = STUDY.pictures("questions")
    draws = []
    for size in (1, 3):
        study = replace(STUDY, batch_size=size)
        texts = [study.prompt("questions", picture) for picture in shown]
        found = []
        for _, batch, seeds in token_states.batches(study, shown, texts, "draws"):
            chosen = interventions.Cut(("image",), n_random=3).of(batch.tokens, seeds)
            first = batch.tokens.where("image").int().argmax(1, keepdim=True)
            found += [(row.nonzero().flatten() - at).tolist() for row, at in zip(chosen, first, strict=True)]
        draws.append(found)
    assert draws[0] == draws[1]
    assert len({tuple(row) for row in draws[0]}) > 1  # pictures have draws of their own


@pytest.mark.parametrize("model", MODELS)
def test_a_cut_that_comes_too_late_is_no_cut(model):
    table = interventions.progressive_rows(replace(STUDY, model=model), step=2)
    assert set(table["layer"]) == {0, 2, 4}
    last = table[table["layer"] == 4].set_index("condition")["value"]
    untouched = interventions.output_overlap(replace(STUDY, model=model), interventions.CUTS["none"])
    assert set(last) == {untouched.value}


def test_the_knockout_table_has_every_cut_and_metric():
    table = interventions.knockout_rows(STUDY)
    assert set(table["metric"]) == {"vqa", "vqa_lost", "cider_ptb", "cider_whitespace", "class_overlap"}
    assert list(dict.fromkeys(table["condition"])) == list(interventions.CUTS)
    measured = table[table["metric"] != "vqa_lost"]  # a random model has nothing to lose
    assert measured[["value", "low", "high"]].notna().all().all()


def test_a_share_lost_is_of_the_same_questions():
    rng = np.random.default_rng(0)
    whole = (rng.random(400) < 0.8).astype(float)
    assert interventions.share_lost(whole, whole) == Estimate(0.0, 0.0, 0.0, 400)
    half = whole * (rng.random(400) < 0.5)
    found = interventions.share_lost(whole, half)
    assert found.value == pytest.approx(1 - half.sum() / whole.sum())
    assert 0.03 < found.high - found.value < 0.1 and 0.03 < found.value - found.low < 0.1
    assert interventions.share_lost(half, whole).value < 0
    assert np.isnan(interventions.share_lost(np.zeros(9), np.zeros(9)).value)


def test_several_models_play_one_role():
    """The role's table is the mean over its models, its interval spans theirs, and each one's is kept."""
    found = {"mini-a-0": Estimate(0.2, 0.1, 0.3, 9), "mini-a-1": Estimate(0.4, 0.35, 0.45, 9)}
    row = lambda name: peaks.row(replace(STUDY, model=name), "end", 1, 0.5, "share", "", found[name])
    tables = {name: pd.DataFrame([row(name)]) for name in found}
    kept = []
    table = lambda study, name: kept.append(name) or tables[study.model]
    found = gate.each(STUDY, gate.roles(list(tables), [], ["mini-gated"]) | {"gated": ["mini-a-0"]}, table, "t")
    assert kept == ["t_native_0", "t_native_1", "t_gated"]
    row = found["native"].iloc[0]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.3, 0.1, 0.45))
    assert row["model"] == "mini-a (2 seeds)"
    with pytest.raises(BadParameter, match=r"native=\[NAME\]"):
        gate.roles("mini-a-0", [])
    with pytest.raises(BadParameter, match="as many layers"):
        over_seeds([tables["mini-a-0"], tables["mini-a-1"].assign(layer=2)])


def test_a_cut_changes_what_is_said():
    shown = STUDY.pictures("captions")
    said = {name: interventions.answers(STUDY, "captions", shown, cut) for name, cut in interventions.CUTS.items()}
    assert said["none"] != said["block → text"]
    assert said["end → text"] != said["block → text"]


@pytest.mark.parametrize("model", MODELS)
def test_patching_has_its_floor_and_its_ends(model):
    table = interventions.patching_rows(replace(STUDY, model=model), step=1)
    alike = table[table["metric"] == "similarity"].set_index(["condition", "layer"])["value"]
    # After the last block nobody reads the end-of-image token any more: patching it there is no patch.
    assert alike["residual", 4] == pytest.approx(alike["none", 0], abs=1e-5)
    assert (alike.drop([("none", 0), ("residual", 4), ("residual", 0)]) - alike["none", 0]).abs().max() > 1e-6
    assert alike.between(0, 1).all()


def test_a_picture_is_not_patched_with_itself(monkeypatch):
    real = pictures.pairs
    alike = lambda *a: [replace(pair, pictures=(pair.pictures[0], pair.pictures[0])) for pair in real(*a)]
    monkeypatch.setattr(pictures, "pairs", alike)
    with pytest.raises(BadParameter, match="patched with itself"):
        interventions.patching_rows(STUDY, step=2)


def test_names_that_begin_alike_are_left_out(monkeypatch, capsys):
    kept = interventions.told_apart(STUDY.network(), pictures.pairs("scenes", 1, 0))
    assert all(pair.names[0][0] != pair.names[1][0] for pair in kept)  # a byte is a token here
    monkeypatch.setattr(interventions, "first_token", lambda model, word: 7)
    with pytest.raises(BadParameter, match="nothing can flip"):
        interventions.told_apart(STUDY.network(), kept)


def test_a_page_needs_a_model():
    with pytest.raises(BadParameter, match="--model"):
        gate.roles([], [])
