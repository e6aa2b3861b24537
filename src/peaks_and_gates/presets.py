"""The four sizes of the book: one YAML file each, read, checked and overridden here."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml

from .errors import BadParameter, UnknownName

FOLDER = files(__package__) / "presets"


def names() -> list[str]:
    """The presets there are, smallest first."""
    return ["smoke", "laptop", "colab", "paper"]


def load(name: str) -> dict[str, Any]:
    """The parameters of a preset, by name.  Raises UnknownName."""
    if name not in names():
        raise UnknownName("preset", name, names())
    return yaml.safe_load((FOLDER / f"{name}.yml").read_text())


def override(defaults: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`defaults` with `changes` put in; each must exist there and keep its type.

    A default of None takes a value of any type, and any parameter that may be None in the prompt form
    (`n_orders`) takes None.  Raises UnknownName, BadParameter.
    """
    for name, value in changes.items():
        if name not in defaults:
            raise UnknownName("parameter", name, defaults)
        check_type(name, value, defaults[name])
    return defaults | changes


def check_type(name: str, value: Any, default: Any) -> None:
    """Raise BadParameter unless `value` can stand where `default` stands."""
    if default is None or value is None:
        return
    kind = type(default)
    if kind is float and type(value) is int:
        return
    if type(value) is not kind:
        raise BadParameter(
            f"Parameter '{name}' takes a {kind.__name__} such as {default!r}, not the {type(value).__name__} {value!r}."
        )
    if kind is list and default:
        for item in value:
            check_type(f"{name}[]", item, default[0])


def parse_assignment(text: str) -> tuple[str, Any]:
    """`key=value` from the command line, the value read as YAML.  Raises BadParameter."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise BadParameter(f"'{text}' is not of the form key=value, for example -p n_orders=1.")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadParameter(f"The value of '{name}' cannot be read: {value!r}.") from error
