"""Presets and parameters: what is refused, and what the message suggests."""

import pytest
import yaml

from peaks_and_gates.book import presets
from peaks_and_gates.errors import BadParameter, UnknownName


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_has_the_same_parameters_of_the_same_types(name):
    laptop = presets.load("laptop")
    assert presets.override(laptop, presets.load(name)).keys() == laptop.keys()


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_says_everything_once(name):
    """YAML takes the last of two equal keys without a word."""
    text = (presets.FOLDER / f"{name}.yml").read_text()
    keys = [key.value for key, _ in yaml.compose(text).value]
    assert len(keys) == len(set(keys))


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'laptop'"):
        presets.load("labtop")


def test_an_unknown_parameter_suggests_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'n_orders'"):
        presets.override(presets.load("laptop"), {"n_order": 1})


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
    "change", [{"n_orders": "many"}, {"shots": 5}, {"shots": ["five"]}, {"seed": True}, {"model": 3}]
)
def test_a_parameter_of_another_type_is_refused_by_name(change):
    (name,) = change
    with pytest.raises(BadParameter, match=name):
        presets.override(presets.load("laptop"), change)
