"""The landscape as tidy tables: what is measured on made-up states, kept by what it depends on, and recorded."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from page_code import page_code
from peaks_and_gates.errors import BadParameter, TooFewPoints
from peaks_and_gates.landscape import study as studies
from peaks_and_gates.landscape.questions import Prompt, Question, QuestionSet
from peaks_and_gates.landscape.study import Study, landscape_table, of_seeds
from peaks_and_gates.statistics import Estimate, row, with_means

STUDY = Study("tiny-llama", "wordnet", [0, 5])


def stored(subject, answer, layers=None, letter_logprobs=None, top_letter=None):
    """States of made-up prompts, as they are read from the cache."""
    read = lambda point, layer: layers[layer]
    return SimpleNamespace(
        subject=subject,
        answer=answer,
        layer=read,
        letter_logprobs=letter_logprobs,
        top_letter=top_letter,
        n_layers=2,
        key="made up",
    )


def grouped_by(names):
    """States in far groups, (n, 6) float32."""
    centres = 20 * np.eye(6)[np.unique(names, return_inverse=True)[1]]
    return torch.tensor(centres + np.random.default_rng(0).normal(size=(len(names), 6)), dtype=torch.float32)


@pytest.fixture
def crossed(own_cache, monkeypatch):
    """Prompts whose prefix and question have different subjects, the latter's names, and states that show both."""
    pairs = [((i + 1 + j % 5) % 6, i, j) for i in range(6) for j in range(40)]
    prompts = [Prompt(f"subject {p}", f"prefix {p}, ", f"question {q} {j}", j % 4) for p, q, j in sorted(pairs)]
    of_question = [f"subject {prompt.question.split()[1]}" for prompt in prompts]

    def read(study, prompts, title):
        subject, answer = [p.subject for p in prompts], torch.tensor([p.answer for p in prompts])
        # The first layer groups by the subject of the prefix, the second by that of the question.
        return stored(subject, answer, {1: grouped_by(subject), 2: grouped_by(of_question)})

    monkeypatch.setattr(Study, "read", read)
    return prompts, of_question


def test_a_layer_is_compared_with_every_label(crossed):
    prompts, of_question = crossed
    labels = {"subject": of_question, "prefix": [prompt.subject for prompt in prompts]}
    table = landscape_table(STUDY, {"mixed": prompts}, labels)
    value = table[table["setting"].isin(["figures", "neighbours"])].set_index(["metric", "layer"])["value"]
    for measure in ("ari", "overlap"):
        assert value[f"{measure}_prefix", 1] > 0.95 and value[f"{measure}_subject", 2] > 0.95
        # Of the five subjects that can be on the other side each has a fifth.
        assert value[f"{measure}_prefix", 2] < 0.25 and value[f"{measure}_subject", 1] < 0.25
    assert value["n_peaks", 1] == value["n_peaks", 2] == 6
    assert set(table["condition"]) == {"mixed"} and set(table["model"]) == {"tiny-llama"}
    assert table.groupby("metric")["setting"].nunique()["ari_subject"] == 2  # both recipes
    with pytest.raises(BadParameter, match="'subject' have"):
        landscape_table(STUDY, {"mixed": prompts}, {"subject": [np.nan, *of_question[1:]]})


def test_a_layers_table_is_kept_by_what_it_depends_on(crossed, monkeypatch):
    prompts, of_question = crossed
    first = landscape_table(STUDY, {"mixed": prompts})
    computed = []
    layer_table = studies.layer_table
    monkeypatch.setattr(studies, "layer_table", lambda *a: computed.append(a) or layer_table(*a))
    again = landscape_table(replace(STUDY, model="a copy"), {"mixed": prompts})  # the same states by another name
    assert not computed and set(again["model"]) == {"a copy"} and (again["value"] == first["value"]).all()
    others = landscape_table(STUDY, {"mixed": prompts}, {"subject": of_question})
    assert len(computed) == 2 and not others.equals(first)
    landscape_table(replace(STUDY, point="residual"), {"mixed": prompts})
    landscape_table(STUDY, {"another": prompts})
    assert len(computed) == 6
    monkeypatch.setattr(studies, "CODE", ("figures.py",))
    landscape_table(STUDY, {"mixed": prompts})
    assert len(computed) == 8


def test_accuracy_by_hand(monkeypatch):
    of_letters = [[0.6, 0.1, 0.1, 0.1], [0.5, 0.3, 0.05, 0.05], [0.5, 0.05, 0.3, 0.05], [0.5, 0.05, 0.3, 0.05]]
    subject, answer = ["birds", "birds", "birds", "law"], torch.tensor([0, 1, 2, 2])
    top_letter = torch.tensor([-1, 1, 0, 2])  # a word, right, another letter, right
    states = stored(subject, answer, letter_logprobs=torch.tensor(of_letters).log(), top_letter=top_letter)
    monkeypatch.setattr(Study, "question_set", lambda self: SimpleNamespace(subjects=["birds", "law"]))
    monkeypatch.setattr(Study, "states", lambda self, questions, n_shots: states)
    table = page_code("landscape/accuracy")["accuracy_table"](replace(STUDY, shots=[5]))
    value = (table := table.set_index(["metric", "setting"]))["value"]
    assert value["accuracy_micro", ""] == 0.25 and value["letter_share", "A"] == 1  # always A: right once
    assert value["accuracy_macro", ""] == pytest.approx((1 / 3 + 0) / 2)
    assert value["accuracy", "birds"] == pytest.approx(1 / 3) and value["accuracy", "law"] == 0
    assert value["accuracy_any_token", ""] == 0.5
    assert value["accuracy_calibrated", ""] == 0.75  # the preference for A is subtracted
    assert value["letter_mass", ""] == pytest.approx(0.9, abs=1e-4)
    assert set(table["condition"]) == {"5-shot"} and (table["low"] <= value).all() and (value <= table["high"]).all()


@pytest.mark.parametrize(("selection", "splits"), [("paper", {"train"}), ("own", {"dev", "validation"})])
def test_a_training_is_followed_on_the_questions_that_the_paper_followed_it_on(monkeypatch, selection, splits):
    class Followed(Exception):
        pass

    def read(self, prompts, title):
        raise Followed({prompt.question.split()[0] for prompt in prompts})

    of = lambda split: {"law": (Question("law", f"{split} question", tuple("abcd"), 0),)}
    questions = QuestionSet("mmlu", {}, *map(of, ("dev", "train", "validation", "test")))
    monkeypatch.setattr(Study, "question_set", lambda self: questions)
    monkeypatch.setattr(Study, "read", read)
    follow = page_code("landscape/fine_tuning_dynamics")["follow"]
    with pytest.raises(Followed) as caught:
        follow(replace(STUDY, selection=selection), {}, "start")
    assert caught.value.args[0] == splits


def one_row(study, condition, value):
    """A table of one row."""
    estimate = Estimate(value, value - 1, value + 1, sum(study.shots), 0.0, 0.1)  # n: here the sum of the shots
    return pd.DataFrame([row(condition, study.model, 1, 1.0, "n_peaks", "figures", estimate)])


def test_the_mean_of_seeds_spans_them():
    measure = lambda study: one_row(study, "0-shot", float(study.model[-1]))
    for name, condition in ((None, "0-shot"), ("fine-tuned", "fine-tuned")):
        table = of_seeds(STUDY, ["tuned-1", "tuned-2", "tuned-6"], measure, name).set_index("condition")
        mean = table.loc[condition]
        assert (mean["value"], mean["low"], mean["high"], mean["model"]) == (3, 0, 7, "tuned (3 seeds)")
        assert table.loc[f"{condition}, seed 2", "value"] == 6 and len(table) == 4


def test_means_stand_behind_the_seeds_and_leave_out_what_a_seed_lacks():
    rows = [("a, seed 0", 1, "n"), ("a, seed 0", 3, "m"), ("a, seed 1", 2, "n"), ("b, seed 0", 5, "n"), ("c", 9, "n")]
    table = pd.concat([one_row(STUDY, condition, value).assign(metric=metric) for condition, value, metric in rows])
    means = with_means(table).iloc[len(table) :][["condition", "metric", "value", "low", "high"]]
    assert means.to_numpy().tolist() == [["a", "n", 1.5, 0, 3], ["b", "n", 5, 4, 6]]


def test_models_are_read_by_group_behind_the_shots_they_need(monkeypatch):
    monkeypatch.setattr(studies, "geometry_table", lambda study: one_row(study, f"{study.shots[0]}-shot", 1.0))
    study = replace(STUDY, model="answers-0", shots=[0, 1, 5])
    table = studies.geometry_of_models(study, ["answers-0", "answers-1"], ["tuned-0"])
    asked = [tuple(rows) for rows in table[["group", "condition", "model", "n"]].to_numpy().tolist()]
    assert asked == [
        ("pretrained", "0-shot", "answers (2 seeds)", 0),
        ("pretrained", "0-shot, seed 0", "answers-0", 0),
        ("pretrained", "0-shot, seed 1", "answers-1", 0),
        ("pretrained", "1-shot", "answers-0", 1),
        ("pretrained", "1-shot, seed 0", "answers-0", 1),
        ("pretrained", "5-shot", "answers (2 seeds)", 5),
        ("pretrained", "5-shot, seed 0", "answers-0", 5),
        ("pretrained", "5-shot, seed 1", "answers-1", 5),
        ("fine-tuned", "fine-tuned", "tuned-0", 0),
        ("fine-tuned", "fine-tuned, seed 0", "tuned-0", 0),
    ]
    other = studies.geometry_of_models(replace(study, model="another"), ["answers-0"], ["tuned-0"])
    assert set(other.loc[other["group"] == "pretrained", "model"]) == {"another"}
    assert studies.seeds_of(replace(STUDY, model="b"), ["a", "b", "c"]) == ["b", "a", "c"]


def test_too_few_questions_to_take_a_part_of_leave_that_part_out():
    least = 4

    def geometry(study):
        if study.every >= least:
            raise TooFewPoints("too few")
        return one_row(study, "5-shot", 1.0)

    assert studies.of_fewer(STUDY, geometry)["every"].tolist() == [2]
    least = 2
    assert studies.of_fewer(STUDY, geometry).empty


def test_a_landscape_of_fewer_questions_is_that_of_every_so_many_th(monkeypatch, own_cache):
    seen = []
    monkeypatch.setattr(studies, "landscapes", lambda h, labels, **k: seen.append((h, labels)) or 1 / 0)
    states = SimpleNamespace(layer=lambda point, layer: torch.arange(10.0)[:, None], n_layers=1)
    with pytest.raises(ZeroDivisionError):
        studies.layer_table(replace(STUDY, every=4), "5-shot", 1, states, {"subject": np.arange(10)})
    (hidden, labels) = seen[0]
    assert hidden.flatten().tolist() == [0, 4, 8] == labels["subject"].tolist()
