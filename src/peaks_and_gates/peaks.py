"""Names that pages and modules use which do not import `landscape.study` and `statistics` themselves yet."""

from __future__ import annotations

import pandas as pd

from . import statistics
from .landscape.study import CLASS_FRACTION, Study, condition_name, landscape_table

GEOMETRY = (
    "landscape.extraction",
    "models",
    "landscape.density_peaks",
    "landscape.neighbours",
    "statistics",
    "landscape.study",
)
__all__ = ["CLASS_FRACTION", "GEOMETRY", "Study", "condition_name", "landscape_table", "row", "select"]


def row(study: Study, condition: str, layer: int, depth: float, metric: str, setting: str, estimate) -> dict:
    """One row of a tidy table."""
    return statistics.row(condition, study.model, layer, depth, metric, setting, estimate)


def select(table: pd.DataFrame, metric: str, setting: str | None = None) -> pd.DataFrame:
    """The rows of one metric, in the order of the layers; `setting` as in `geometry`."""
    chosen = table[table["metric"] == metric]
    if setting is not None:
        chosen = chosen[chosen["setting"] == setting]
    return chosen.sort_values(["condition", "layer"])
