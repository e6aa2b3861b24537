"""The record: the tables behind the figures, small enough to be committed, and read again to redraw the book.

`pg run` names a folder in PG_RECORD, and the page in PG_PAGE; a table that a notebook asks for is then also written
there. `pg site` sets PG_REDRAW as well: tables are read from the folder and nothing is computed, so a page can be
built without a model.
Outside both (a notebook opened in JupyterLab) tables are just computed, or read from the store.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from . import store
from .errors import BadParameter, BookError, HashMismatch, MissingFile


def recorded(function: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """Record what a function of a page returns: computed and written, or read back when the book is redrawn.

    The table is named PAGE.FUNCTION.  The function's arguments are its inputs: plain data or dataclasses of it.
    Raises what `table` raises.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> pd.DataFrame:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        name = f"{os.environ.get('PG_PAGE')}.{function.__name__}"
        inputs = json.loads(json.dumps(dict(bound.arguments), default=asdict))
        return table(name, inputs, lambda: function(*bound.args, **bound.kwargs))

    return call


def table(name: str, inputs: dict[str, Any], compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A notebook's table, computed and recorded, or read from the record when the book is redrawn.

    Raises MissingFile if the book is redrawn and the record holds no such table for these inputs; HashMismatch if the
    one it holds is damaged; StorageFull.
    """
    folder = os.environ.get("PG_RECORD")
    if folder is None:
        return compute()
    path = Path(folder) / f"{name}.parquet"
    if os.environ.get("PG_REDRAW"):
        recorded = checked(path)["inputs"]
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
    store.write_json(path.with_suffix(".json"), described | {"environment": store.environment()})
    return frame


def checked(path: Path) -> dict[str, Any]:
    """The description of a recorded table.

    Raises MissingFile; HashMismatch, naming the file, if the table is not the one its description was written for.
    """
    about = path.with_suffix(".json")
    for file in (path, about):
        if not file.is_file():
            raise MissingFile(f"{file} is not in the record. Run `pg run` first, it computes and records it.")
    described = store.read_json(about)
    if described["sha256"] != store.file_sha256(path):
        raise HashMismatch(f"{path} is damaged or was changed by hand. Restore it, or run `pg run` again.")
    return described


def whole(path: Path) -> bool:
    """Whether a table is there as it was recorded."""
    try:
        checked(path)
    except BookError:
        return False
    return True


def read(path: Path) -> pd.DataFrame:
    """A recorded table.  Raises MissingFile; HashMismatch if it is damaged."""
    checked(path)
    return pd.read_parquet(path)


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
