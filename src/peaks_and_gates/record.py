"""The record: the tables behind the figures, small enough to be committed, and read again to redraw the book.

`pg run` names a folder in PG_RECORD, and the page in PG_PAGE; a table that a notebook asks for is then also written
there. `pg site` sets PG_REDRAW as well: tables are read from the folder and nothing is computed, so a page can be
built without a model.
Outside both (a notebook opened in JupyterLab) tables are just computed, or read from the store.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from . import store
from .errors import BadParameter, MissingFile


def table(name: str, inputs: dict[str, Any], compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A notebook's table, computed and recorded, or read from the record when the book is redrawn.

    Raises MissingFile if the book is redrawn and the record holds no such table for these inputs.
    """
    folder = os.environ.get("PG_RECORD")
    if folder is None:
        return compute()
    path = Path(folder) / f"{name}.parquet"
    about = path.with_suffix(".json")
    if os.environ.get("PG_REDRAW"):
        if not path.is_file() or not about.is_file():
            raise MissingFile(f"{path} is not in the record. Run `pg run` first, it computes and records it.")
        recorded = json.loads(about.read_text())["inputs"]
        if recorded != json.loads(json.dumps(inputs)):
            raise MissingFile(f"{path} was made with other parameters: {recorded}. Run `pg run` to record these.")
        return pd.read_parquet(path)
    frame = compute()
    store.write_atomically(path, lambda temporary: frame.to_parquet(temporary, index=False))
    described = {
        "page": os.environ.get("PG_PAGE"),
        "inputs": inputs,
        "sha256": store.file_sha256(path),
        "rows": len(frame),
    }
    store.write_json(about, described | {"environment": store.environment()})
    return frame


def over_seeds(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Mean over the tables of like models, with an interval from the lowest low to the highest high.

    Raises BadParameter if the tables do not hold the same rows.
    """
    together = pd.concat(tables)
    how = {"value": "mean", "low": "min", "high": "max", "null": "mean", "null_high": "mean", "n": "min"}
    keys = ["condition", "layer", "depth", "metric", "setting"]
    if together.groupby(keys).size().ne(len(tables)).any():
        raise BadParameter("Models taken together must have as many layers, and the same tokens around an image.")
    mean = together.groupby(keys, sort=False, as_index=False).agg(how)
    name = together["model"].iloc[0]
    label = f"{name.rstrip('0123456789').rstrip('-')} ({len(tables)} seeds)" if len(tables) > 1 else name
    return mean.assign(model=label)[list(together.columns)]
