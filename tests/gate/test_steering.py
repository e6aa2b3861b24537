"""The method of the page on steering, on a tiny model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from page_code import page_code
from peaks_and_gates.gate.experiment import KNOCKOUTS, Experiment, generate_answers
from tiny_vlms import close, tiny_vlm

STEERING = SimpleNamespace(**page_code("gate/steering"))


@pytest.fixture(scope="module")
def experiment():
    return Experiment(str(tiny_vlm("llava")), n_per_pair=2, new_tokens=(3, 4), batch_size=8, dtype="float32")


def test_strength_zero_writes_what_the_model_writes(experiment):
    trials = STEERING.make_trials(experiment)[1][:6]
    plain = generate_answers(experiment, "classes", [trial.own for trial in trials], [KNOCKOUTS["none"]])
    for towards in ("other class", "same class", "random direction"):
        texts = STEERING.steer(experiment, "classes", trials, towards, [1, 2, 3], [0.0, 100.0])
        assert texts[0.0] == plain[KNOCKOUTS["none"]] != texts[100.0]


def test_a_random_goal_is_as_far_as_the_other_picture_and_the_rows_own():
    own, goal = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    elsewhere = STEERING.random_goal(own, goal, [1, 2, 1])
    assert close((elsewhere - own).norm(dim=-1), (goal - own).norm(dim=-1))
    directions = torch.nn.functional.normalize(elsewhere - own, dim=-1)
    assert close(directions[0], directions[2]) and not close(directions[0], directions[1])


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        ("two small plain Red Circles, and", "red circle", True),
        ("three red crosses", "red cross", True),
        ("a red star left of a blue circle", "red circle", False),
        ("a red striped circle", "red circle", False),
        ("an infrared circle", "red circle", False),
    ],
)
def test_a_class_is_named_by_its_words_in_a_row(text, label, expected):
    assert STEERING.names(text, label) == expected


def test_an_answer_that_names_both_names_neither(experiment):
    trial = STEERING.make_trials(experiment)[0][0]
    own, other = trial.names
    texts = [own, f"{other}s", f"{own} {other}", "?"]
    shares = {name: values.tolist() for name, values in STEERING.shares("classes", texts, [trial] * 4).items()}
    assert shares["own"] == [True, False, False, False] and shares["other"] == [False, True, False, False]
    assert shares["neither"] == [False, False, True, True]
    assert np.sum([*STEERING.shares("captions", texts, [trial] * 4).values()], 1).tolist() == [2, 2]


def test_a_layer_that_only_breaks_the_answer_is_not_chosen():
    """All strengths count, names of the other class first, and of equals the first layer."""
    rows = lambda shares: [
        {"layer": layer, "metric": metric, "value": value}
        for layer, values in shares.items()
        for metric, value in zip(("own", "other", "neither"), values, strict=True)
    ]
    assert STEERING.best_layer(rows({1: (0.0, 0.2, 0.8), 2: (0.6, 0.4, 0.0)})) == 2
    assert STEERING.best_layer(rows({1: (0.6, 0.4, 0.0), 2: (0.2, 0.4, 0.4)})) == 2
    assert STEERING.best_layer(rows({1: (1.0, 0.0, 0.0), 2: (1.0, 0.0, 0.0)})) == 1


def test_a_picture_is_not_steered_towards_itself(experiment):
    with pytest.raises(ValueError, match="n_per_pair must be at least 2"):
        STEERING.make_trials(Experiment(experiment.model, n_per_pair=1, dtype="float32"))
