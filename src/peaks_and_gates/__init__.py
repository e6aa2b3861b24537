"""Peaks & Gates: the landscape of hidden states, and the narrow gate between image and text.

from peaks_and_gates.landscape.study import Study, geometry_table

study = Study(model="smollm2-135m-instruct", questions="wordnet", n_subjects=32, n_per_subject=50)
table = geometry_table(study)
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["claims", "figures", "gate", "landscape", "peaks", "recorded"]


def __getattr__(name: str) -> Any:
    """Import a part when it is first used: `pg --help` needs none."""
    if name == "recorded":
        return importlib.import_module(".record", __name__).recorded
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
