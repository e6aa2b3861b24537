"""Peaks & Gates: the landscape of hidden states, and the narrow gate between image and text.

from peaks_and_gates.landscape.study import Study, geometry_table

study = Study(model="smollm2-135m-format-tuned-0", questions="wordnet", n_per_subject=150, n_orders=None)
table = geometry_table(study)
"""

import importlib
from typing import Any

# Functions, and the modules that they stand in.
_PLACES = {"recorded": "record", "shipped": "record", "show_claims": "book.claims"}
__all__ = ["figures", "gate", "landscape", "recorded", "shipped", "show_claims"]


def __getattr__(name: str) -> Any:
    """Import a part when it is first used: `pg --help` needs none."""
    if name in _PLACES:
        return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
