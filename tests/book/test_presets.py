"""Presets and parameters: what is refused, and what the message suggests."""

import pytest
import yaml

from peaks_and_gates.book import presets, runner
from peaks_and_gates.errors import BadParameter, UnknownName


@pytest.mark.parametrize("name", presets.names())
def test_presets_have_the_same_parameters_each_once_and_each_used(name):
    laptop, text = presets.load("laptop"), (presets.FOLDER / f"{name}.yml").read_text()
    assert presets.override(laptop, presets.load(name)).keys() == laptop.keys()
    keys = [key.value for key, _ in yaml.compose(text).value]  # YAML takes the last of two equal keys without a word
    declared = {name for page in runner.notebooks().values() for name in runner.declared(page)}
    assert len(keys) == len(set(keys)) and set(keys) == declared - {"preset"} | {"resources"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n_orders=1", ("n_orders", 1)),
        ("n_orders=null", ("n_orders", None)),
        ("shots=[0, 5]", ("shots", [0, 5])),
        ("model=owner/name", ("model", "owner/name")),
    ],
)
def test_assignments_are_read_and_fit(text, expected):
    name, value = presets.parse_assignment(text)
    assert (name, value) == expected
    assert presets.override(presets.load("laptop"), {name: value})[name] == value


@pytest.mark.parametrize("text", ["n_orders", "=3", "shots=[0, "])
def test_assignments_that_cannot_be_read(text):
    with pytest.raises(BadParameter):
        presets.parse_assignment(text)


@pytest.mark.parametrize(
    "change", [{"n_order": 1}, {"n_orders": "many"}, {"shots": 5}, {"shots": ["five"]}, {"seed": True}, {"model": 3}]
)
def test_a_parameter_that_does_not_fit_is_refused_by_name(change):
    (name,) = change
    with pytest.raises((BadParameter, UnknownName), match=name):
        presets.override(presets.load("laptop"), change)
