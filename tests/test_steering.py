"""Steering on tiny models: what is put where, who chooses the layer, and what a fault would look like."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from peaks_and_gates import record, steering, steering_figures
from peaks_and_gates.errors import BadParameter
from peaks_and_gates.gate import patching, vlm
from peaks_and_gates.gate import study as gate
from peaks_and_gates.gate.study import Study
from tiny_vlms import tiny_vlm
from vlm_helpers import broken, close, encoded, generated, load

STUDY = Study(str(tiny_vlm("llava")), n_per_pair=2, new_tokens=(3, 4), batch_size=8, dtype="float32")
MODELS = [str(tiny_vlm("llava")), str(tiny_vlm("chameleon"))]
STRENGTHS = [0.0, 1.0, 2.5]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def prompts(study, pictures):
    """A batch of class prompts, and where the end-of-image tokens are."""
    texts = [study.prompt("classes", picture) for picture in pictures]
    batch = vlm.encode(study.network(), [picture.image for picture in pictures], texts)
    return batch, patching.single_position(batch.tokens.where("end"))


def run(study, pictures):
    """The states of the end-of-image token and the last logits, of class prompts left alone."""
    batch, end = prompts(study, pictures)
    with patching.read_states(study.network(), end) as states, torch.inference_mode():
        logits = study.network().network(**batch.inputs).logits[:, -1]
    return states.residual, logits


def seen(tools, study, shown, way):
    """States and last logits of the prompts at every strength, at the moment when the model is to generate."""
    network, found = study.network().network, []
    batch, end = prompts(study, [trial.own for trial in shown])

    def look(**inputs):
        known = inputs["past_key_values"].get_seq_length()
        rest = {"input_ids": inputs["input_ids"][:, known:], "position_ids": batch.inputs["position_ids"][:, known:]}
        with patching.read_states(study.network(), end - known) as states:
            logits = network(**inputs | rest).logits[:, -1]
        found.append((states.residual, logits))
        return inputs["input_ids"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "generate", look)
        tools.generated(study, "classes", shown, way, STRENGTHS)
    return found


def the_states_lie_on_a_line(tools, study):
    shown = tools.trials(study)[:4]
    own, before = run(study, [trial.own for trial in shown])
    for towards, layers in [("other", (2,)), ("same", (2,)), ("other", (1, 2, 3))]:
        way = tools.Way(towards, layers)
        goal, _ = run(study, [getattr(trial, towards) for trial in shown])
        found = seen(tools, study, shown, way)
        assert len(found) == len(STRENGTHS)
        for strength, (states, logits) in zip(STRENGTHS, found, strict=True):
            assert torch.equal(states[:, 0], own[:, 0])
            for layer in layers:
                assert close(states[:, layer], own[:, layer] + strength * (goal - own)[:, layer], 1e-5)
            assert close(logits, before, 1e-5) == (strength == 0)


def strength_one_is_patching(tools, study):
    shown = tools.trials(study)[:4]
    theirs, _ = run(study, [trial.other for trial in shown])
    batch, end = prompts(study, [trial.own for trial in shown])
    model = study.network()
    for layer in (1, 2, model.n_layers):
        with patching.patched(model, theirs[:, layer], end, layer), torch.inference_mode():
            expected = model.network(**batch.inputs).logits[:, -1]
        (_, before), (_, found), _ = seen(tools, study, shown, tools.Way("other", (layer,)))
        assert close(found, expected, 1e-5)
        # After the last block nobody reads the end-of-image token any more.
        assert close(found, before, 1e-6) == (layer == model.n_layers)


def a_random_direction_is_as_far(tools, study):
    shown = tools.trials(study)[:4]
    own, _ = run(study, [trial.own for trial in shown])
    other, _ = run(study, [trial.other for trial in shown])
    _, (found, _), _ = seen(tools, study, shown, tools.Way("random", (2,)))
    step, wish = (found - own)[:, 2], (other - own)[:, 2]
    assert torch.allclose(step.norm(dim=1), wish.norm(dim=1), rtol=1e-4)
    assert torch.cosine_similarity(step, wish).abs().max() < 0.9
    assert torch.cosine_similarity(step[:1], step[1:]).abs().max() < 0.9  # a direction for each picture
    alone = seen(tools, replace(study, batch_size=1), shown[2:3], tools.Way("random", (2,)))[1][0]
    assert close(alone[0, 2], found[2, 2], 1e-4)  # whatever the batch


def the_partners_are_others(tools, study):
    for trial in tools.trials(replace(study, n_per_pair=3)):
        assert trial.own.label == trial.same.label == trial.names[0]
        assert trial.other.label == trial.names[1] != trial.names[0]
        assert trial.own.key != trial.same.key


def the_halves_share_no_trial(tools, study):
    found = tools.trials(study)
    choosing, reporting = tools.halves(found)
    assert {trial.own.key for trial in choosing}.isdisjoint(trial.own.key for trial in reporting)
    assert {trial.other.key for trial in choosing}.isdisjoint(trial.other.key for trial in reporting)
    assert {trial.names for trial in choosing} == {trial.names for trial in reporting}
    assert len(choosing) + len(reporting) == len(found)


def answering(best_of_choosing, best_of_reporting):
    """Answers in place of a model's: by half, the layer in which the other class takes over from strength 1 on."""
    choosing = {trial.own.key for trial in steering.halves(steering.trials(STUDY))[0]}

    def say(study, task, shown, way, strengths):
        best = best_of_choosing if shown[0].own.key in choosing else best_of_reporting
        turned = way.towards == "other" and best in way.layers
        return [[f"a {t.names[turned and strength >= 1]} ." for t in shown] for strength in strengths]

    return say


def the_layer_is_chosen_on_the_other_half(tools, study):
    """Where the reporting half would choose layer 3, layer 2 is chosen all the same, and reports what it does there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tools, "answers", answering(2, 3))
        table = tools.steering_rows(study, STRENGTHS, 1)
        told = tools.example_rows(study, STRENGTHS, 1, 2)
    assert table[table["metric"] == "chosen_layer"]["value"].item() == 2
    assert set(told["layer"]) == {2}
    share = table[table["metric"] == "other"].set_index(["condition", "layer", "setting"])["value"]
    assert share["each layer", 2, "1"] == 1
    assert share["each layer", 3, "1"] == 0
    assert share["other class", 0, "1"] == 0
    assert share["all layers", 0, "1"] == 1


CHECKS = [
    the_states_lie_on_a_line,
    strength_one_is_patching,
    a_random_direction_is_as_far,
    the_partners_are_others,
    the_halves_share_no_trial,
    the_layer_is_chosen_on_the_other_half,
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_both_kinds_of_model(check, model):
    check(steering, replace(STUDY, model=model))


FAULTS = {
    "towards itself": ("end_states(model, source)", "end_states(model, batch)", strength_one_is_patching),
    "towards the other where its own class is asked for": (
        'trial.same if self.towards == "same" else trial.other',
        "trial.other",
        the_states_lie_on_a_line,
    ),
    "a layer early": ("states[:, layer], position", "states[:, layer - 1], position", the_states_lie_on_a_line),
    "the strength is not used": ("steered(own, goal, strength)", "steered(own, goal, 1.0)", the_states_lie_on_a_line),
    "only the last of the layers": ("for layer in layers:", "for layer in layers[-1:]:", the_states_lie_on_a_line),
    "a random direction of any length": (
        "direction * (goal - own).norm(dim=-1, keepdim=True)",
        "direction",
        a_random_direction_is_as_far,
    ),
    "one random direction for all": ("manual_seed(seed)", "manual_seed(0)", a_random_direction_is_as_far),
    "a partner that is the picture itself": ("mine[(i + 1) % len(mine)]", "mine[i]", the_partners_are_others),
    "halves that overlap": ("list(found[::2])", "list(found)", the_halves_share_no_trial),
    "the layer is chosen where it is reported": (
        "sweep = swept(study, choosing,",
        "sweep = swept(study, reporting,",
        the_layer_is_chosen_on_the_other_half,
    ),
    "examples of another layer": (
        "layer = best_layer(swept(study, choosing,",
        "layer = best_layer(swept(study, reporting,",
        the_layer_is_chosen_on_the_other_half,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault):
    old, new, check = FAULTS[fault]
    with broken(steering, old, new) as copy, pytest.raises((AssertionError, BadParameter)):
        check(copy, STUDY)


def test_the_prompt_alone_is_moved():
    """With a cache and without, what is generated goes on from the steered prompt."""
    model = load("llava")
    batch, other = encoded(model), encoded(model, first=10)
    with torch.inference_mode():
        own, goal = (steering.end_states(model, each) for each in (batch, other))
    end = patching.single_position(batch.tokens.where("end"))
    runs = []
    for cached in (True, False):
        with steering.moved(model, patching.steered(own, goal, 2.0), end, (1, 2, 3)):
            runs.append(generated(model, batch, cached))
    assert close(*runs)
    assert not close(runs[0], generated(model, batch), 1e-3)


def test_strength_zero_says_what_the_model_says(monkeypatch):
    shown = steering.trials(STUDY)[:4]
    batch, _ = prompts(STUDY, [trial.own for trial in shown])
    model = STUDY.network()
    with torch.inference_mode():
        ids = model.network.generate(**batch.inputs, max_new_tokens=3, do_sample=False)[:, -3:]
    plain = [text.strip() for text in model.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    untouched, *_, far = steering.answers(STUDY, "classes", shown, steering.Way("random", (2,)), [0.0, 1.0, 100.0])
    assert untouched == plain
    assert far != plain
    monkeypatch.setattr(steering, "generated", lambda *a: pytest.fail("what is kept was generated again"))
    assert steering.answers(STUDY, "classes", shown, steering.Way("random", (2,)), [0.0, 1.0, 100.0])[0] == plain
    with pytest.raises(pytest.fail.Exception):
        steering.answers(STUDY, "classes", shown, steering.Way("random", (1,)), [0.0, 1.0, 100.0])


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        ("a large striped red circle on a white background.", "red circle", True),
        ("two small plain Red Circles, and", "red circle", True),
        ("three red crosses", "red cross", True),
        ("a red star left of a blue circle", "red circle", False),
        ("a red striped circle", "red circle", False),
        ("an infrared circle", "red circle", False),
        ("", "red circle", False),
    ],
)
def test_a_class_is_named_by_its_words_in_a_row(text, label, expected):
    assert steering.names(text, label) == expected


def test_an_answer_that_names_both_names_neither():
    (trial, *_) = steering.trials(STUDY)
    own, other = trial.names
    texts = [own, f"{other}s", f"{own} {other}", "?"]
    found = steering.named("classes", texts, [trial] * 4)
    assert {metric: values.tolist() for metric, values in found.items()} == {
        "own": [True, False, False, False], "other": [False, True, False, False], "neither": [False, False, True, True],
    }  # fmt: skip
    both = steering.named("captions", texts, [trial] * 4)
    assert np.array(list(both.values()), int).sum(1).tolist() == [2, 2]


def test_a_layer_that_only_breaks_the_answer_is_not_chosen():
    """All strengths count, names of the other class first, and of equals the first layer."""
    sweep = lambda shares: pd.DataFrame([
        {"layer": layer, "metric": metric, "value": value}
        for layer, found in shares.items() for metric, value in zip(("own", "other", "neither"), found, strict=True)
    ])  # fmt: skip
    assert steering.best_layer(sweep({1: (0.0, 0.2, 0.8), 2: (0.6, 0.4, 0.0)})) == 2
    assert steering.best_layer(sweep({1: (0.6, 0.4, 0.0), 2: (0.2, 0.4, 0.4)})) == 2
    assert steering.best_layer(sweep({1: (1.0, 0.0, 0.0), 2: (1.0, 0.0, 0.0)})) == 1


def test_what_cannot_be_steered():
    with pytest.raises(BadParameter, match="n_per_pair must be at least 2"):
        steering.trials(replace(STUDY, n_per_pair=1))
    for strengths in ([], [1.0, 1]):
        with pytest.raises(BadParameter, match="strengths="):
            steering.answers(STUDY, "classes", [], steering.Way("other", (1,)), strengths)


@pytest.fixture(scope="module")
def page(cache):
    """Tables and examples of a page with two seeds of one role, recorded nowhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steering, "answers", answering(1, 1))
        patch.setattr(record, "table", lambda name, inputs, compute: compute())
        roles = gate.roles([str(tiny_vlm("chameleon")), str(tiny_vlm("chameleon"))], [str(tiny_vlm("llava"))])
        settings = {"strengths": STRENGTHS, "step": 2}  # layers 1 and 3
        tables = gate.each(STUDY, roles, steering.steering, "steering", **settings)
        yield tables, steering.examples_of(STUDY, roles, **settings, n=2)


def test_the_table_has_every_condition_metric_and_strength(page):
    tables, _ = page
    for table in tables.values():
        assert not table.duplicated(["condition", "layer", "metric", "setting"]).any()
        assert table[["value", "low", "high"]].notna().all().all()
        parts = table[table["metric"].isin(["own", "other", "neither"])]
        assert np.allclose(parts.groupby(["condition", "layer", "setting"])["value"].sum(), 1)
        assert set(table["condition"]) == {"each layer", "other class", "same class", "random direction", "all layers"}
        assert set(table[table["condition"] == "each layer"]["layer"]) == {1, 3}
        for metric in ("caption_own", "caption_other"):
            assert set(table[table["metric"] == metric]["condition"]) == {"other class"}


def test_the_figures_say_what_they_show(page):
    tables, examples = page
    assert "native: layer 1 chosen" in steering_figures.layer_summary(tables)
    said = steering_figures.strength_summary(tables, steering_figures.ANSWERS, "Answers")
    assert "its own class 1.00 [1.00, 1.00] at 0, 0.00 [0.00, 0.00] at 1, 0.00 [0.00, 0.00] at 2.5" in said
    assert len(steering_figures.by_layer(tables).axes) == 2
    for curves in (steering_figures.ANSWERS, steering_figures.CONTROLS, steering_figures.CAPTIONS):
        assert len(steering_figures.by_strength(tables, curves, "share").axes) == 2
    page = steering_figures.reading(examples).data
    assert page.count("<table") == page.count("<caption>") == 2
    assert page.count('scope="rowgroup"') == 4
    assert page.count('scope="row"') == 4 * len(STRENGTHS)


def test_what_a_model_says_cannot_break_the_page():
    (trial, *_) = steering.trials(STUDY)
    own, other = trial.names
    row = pd.Series({"own": own, "other": other})
    found = steering_figures.marked(f"<b> {own} & two {other}s", row)
    assert found == f"&lt;b&gt; <em>{own}</em> &amp; two <strong>{other}s</strong>"
