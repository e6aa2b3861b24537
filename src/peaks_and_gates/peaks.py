"""The landscape's tables, recorded under names of their own: what pages call that do not record their own yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import pandas as pd

from . import record
from .landscape import study as studies
from .landscape.study import (
    CLASS_FRACTION,
    GEOMETRY,
    Study,
    accuracy_table,
    condition_name,
    geometry_table,
    landscape_table,
    row,
)

__all__ = ["CLASS_FRACTION", "GEOMETRY", "Study", "condition_name", "landscape_table", "row"]


def accuracy(study: Study, name: str = "accuracy") -> pd.DataFrame:
    """`accuracy_table`, recorded under `name`."""
    return record.table(name, asdict(study), lambda: accuracy_table(study))


def geometry(study: Study, name: str = "geometry") -> pd.DataFrame:
    """`geometry_table`, recorded under `name`."""
    return record.table(name, asdict(study), lambda: geometry_table(study))


def of_seeds(
    study: Study, models: Sequence[str], measure: Callable[[Study], pd.DataFrame], name: str, condition="fine-tuned"
) -> pd.DataFrame:
    """`study.of_seeds`, recorded under `name`."""
    inputs = {"study": asdict(study), "models": list(models)}
    return record.table(name, inputs, lambda: studies.of_seeds(study, models, measure, condition))


def as_control(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """A table with its conditions renamed after a control, so that it can be drawn beside another."""
    return table.assign(condition=table["condition"] + ", " + name)


def select(table: pd.DataFrame, metric: str, setting: str | None = None) -> pd.DataFrame:
    """The rows of one metric, in the order of the layers; `setting` as in `geometry`."""
    chosen = table[table["metric"] == metric]
    if setting is not None:
        chosen = chosen[chosen["setting"] == setting]
    return chosen.sort_values(["condition", "layer"])
