"""The six sizes of the book: one YAML file each, read, checked and overridden here."""

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ..errors import BadParameter, UnknownName

FOLDER = files("peaks_and_gates") / "presets"
VISITED = {"COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", "BINDER_SERVICE_HOST"}  # set where pages are guests
WORDS = {"n_orders": ("paper",)}  # what may stand for a whole number, besides None
NAMES = ("smoke", "quick", "laptop", "full", "colab", "paper")  # smallest first


def load(name: str) -> dict[str, Any]:
    """The parameters of a preset, by name.  Raises UnknownName."""
    if name not in NAMES:
        raise UnknownName("preset", name, NAMES)
    return yaml.safe_load((FOLDER / f"{name}.yml").read_bytes())


def fitting(page: dict[str, Any]) -> dict[str, Any]:
    """Values for the parameters of a page that was opened where it has to be quick: those of `quick`; elsewhere none.

    page: its variables; what is no longer the laptop's is the reader's, and stays.  Quick is asked for on Colab, Kaggle
    and Binder without a GPU, unless `pg` runs the page.
    """
    if not VISITED & os.environ.keys() or "PG_RECORD" in os.environ or page["preset"] != "laptop":
        return {}
    import torch

    if torch.cuda.is_available():
        return {}
    laptop, quick = load("laptop"), load("quick")
    values = {name: quick[name] for name in quick if name in page and page[name] == laptop[name] != quick[name]}
    print("Without a GPU here the page is made smaller, for about three minutes:", values or "it is quick already")
    return values | {"preset": "quick"}


def override(defaults: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`defaults` with `changes` put in; each must exist there and keep its type.

    A default of None takes a value of any type, and None may stand for any whole number, which then has no limit, as
    may a word of WORDS.  Raises UnknownName, BadParameter.
    """
    for name, value in changes.items():
        if name not in defaults:
            raise UnknownName("parameter", name, defaults)
        check_type(name, value, defaults[name])
    return defaults | changes


def check_type(name: str, value: Any, default: Any) -> None:
    """Raise BadParameter unless `value` can stand where `default` stands."""
    words = (None, *WORDS.get(name, ()))
    kind = int if default in words else type(default)
    anything = default is None and name not in WORDS
    if anything or (kind is int and value in words) or (kind is float and type(value) is int):
        return
    if type(value) is not kind:
        wrong = f"not the {type(value).__name__} {value!r}"
        raise BadParameter(f"Parameter '{name}' takes a {kind.__name__} such as {default!r}, {wrong}.")
    for item in value if kind is list and default else ():
        check_type(f"{name}[]", item, default[0])


def parse_assignment(text: str) -> tuple[str, Any]:
    """`key=value` from the command line, the value read as YAML.  Raises BadParameter."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise BadParameter(f"'{text}' is not of the form key=value, for example -p n_orders=1.")
    return name.strip(), read_yaml(value, f"The value of '{name}', {value[:80]!r},")


def read_yaml(text: str | Path, called: str) -> Any:
    """What a reader wrote as YAML.  text: or the file of it.  called: how a message calls it.

    Raises BadParameter for what is no file or no YAML, and for what JSON cannot hold, as which it will be written
    down: dates, sets, infinities, lists that hold themselves.
    """
    try:
        read = yaml.safe_load(text.read_bytes() if isinstance(text, Path) else text)
        json.dumps(read, ensure_ascii=False, allow_nan=False).encode()
    except Exception as error:  # PyYAML stumbles in many ways over what is no number, date or truth value
        reason = str(error).partition("\n")[0][:200]
        raise BadParameter(f"{called} is no YAML of plain data: {reason or type(error).__name__}.") from error
    return read
