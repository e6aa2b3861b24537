"""The record: the tables behind a page, in one Parquet file beside one JSON manifest, and read again to redraw it.

    @recorded
    def agreement(model, shots):       # the arguments are the table's inputs: plain data
        return table                   # a DataFrame

`pg run` names a folder in PG_RECORD to which tables are written, and makes the page's file of them when the page has
finished.  When PG_REDRAW is set tables are read from results/PRESET and nothing is computed: a page is redrawn without
a model.  Without both (a notebook in JupyterLab) a recorded function is just called.
"""

import dataclasses
import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from . import cache
from .errors import BadParameter, MissingFile

SHIPPED, SMALLER = "full", ("quick", "laptop")  # the size of the record that ships; the same with fewer questions


def recorded(function: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """Record what a function of a page returns, under the function's name.

    Its arguments must be plain data or dataclasses, else TypeError, and a page may call it once.  Raises as `table`.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> pd.DataFrame:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return table(function.__name__, dict(bound.arguments), lambda: function(*bound.args, **bound.kwargs))

    return call


def table(name: str, inputs: dict[str, Any], compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table of a page: computed and recorded, or read from the record when the page is redrawn.

    Raises MissingFile if the page is redrawn and the record holds no such table for these inputs; HashMismatch if it is
    damaged; BadParameter if it was recorded before; StorageFull.
    """
    if "PG_RECORD" not in os.environ:
        return compute()
    folder, page = Path(os.environ["PG_RECORD"]), os.environ["PG_PAGE"]
    inputs = json.loads(json.dumps(inputs, default=dataclasses.asdict))  # as the manifest holds them
    if os.environ.get("PG_REDRAW"):
        return redrawn(folder / f"{page}.parquet", name, inputs)
    if (path := folder / f"{name}.parquet").exists():
        raise BadParameter(f"The page {page} calls {name} twice, but may record a table once.")
    return write(path, compute(), inputs)


def write(path: Path, frame: pd.DataFrame, inputs: dict[str, Any]) -> pd.DataFrame:
    """Write one table of a page that is being run, for `publish`.  Returns it as it will be read."""
    columns = {str(column): str(dtype) for column, dtype in frame.dtypes.items()}
    numbers = {name: "int8" for name, dtype in columns.items() if dtype == "bool"}  # may share another table's column
    rows = pa.Table.from_pandas(frame.astype(numbers), preserve_index=False).replace_schema_metadata(None)
    cache.write_atomically(path, lambda temporary: pq.write_table(rows, temporary))
    cache.write_json(path.with_suffix(".json"), {"columns": columns, "rows": len(frame), "inputs": inputs})
    return restored(rows, columns)


def redrawn(path: Path, name: str, inputs: dict[str, Any]) -> pd.DataFrame:
    """A table of a page's record that was made from these inputs.  Raises MissingFile, HashMismatch."""
    about = manifest(path)["tables"]
    if name not in about or about[name]["inputs"] != inputs:
        raise MissingFile(f"{path} has no table {name} that was made from {inputs}. Run `pg run` to record it.")
    return read(path)[name]


def publish(parts: Path, path: Path, about: Mapping[str, Any]) -> None:
    """Make the record of a page from the tables that it left in a folder.

    path: of the page's Parquet file; its manifest, with what `about` says of the run, stands beside it.  Raises
    ArrowException if two tables have a column of one name with values of two kinds; StorageFull.
    """
    files = sorted(parts.glob("*.parquet"), key=lambda file: file.stat().st_mtime_ns)
    tables = {file.stem: cache.read_json(file.with_suffix(".json")) for file in files}
    name_of = lambda file: pa.array([file.stem] * tables[file.stem]["rows"], pa.string())
    named_rows = [pq.read_table(file).add_column(0, "table", name_of(file)) for file in files]
    rows = pa.concat_tables(named_rows, promote_options="permissive")
    cache.write_atomically(path, lambda temporary: pq.write_table(rows, temporary, compression="zstd"))
    sha256 = cache.file_sha256(path)
    cache.write_json(path.with_suffix(".json"), {**about, "page": path.stem, "tables": tables, "sha256": sha256})


def manifest(path: Path) -> dict[str, Any]:
    """The manifest of a page's Parquet file.  Raises MissingFile; HashMismatch if the file is not the one described."""
    about = cache.read_json(path.with_suffix(".json"))
    cache.check_files(path.parent, {path.name: about.get("sha256") if "tables" in about else None})
    return about


def read(path: Path) -> dict[str, pd.DataFrame]:
    """The tables of a page, by name, with the columns and dtypes that were recorded.  Raises what `manifest` raises."""
    tables = manifest(path)["tables"]
    rows = pq.read_table(path)
    names = rows["table"].to_pandas()
    return {name: restored(rows.filter(pa.array(names == name)), about["columns"]) for name, about in tables.items()}


def read_all(folder: Path) -> dict[str, pd.DataFrame]:
    """Every table of a record, as PAGE.NAME.  Raises what `manifest` raises."""
    return {f"{path.stem}.{name}": frame for path in pages(folder) for name, frame in read(path).items()}


def shipped(name: str, preset: str) -> pd.DataFrame:
    """The table PAGE.NAME of the book's own record, to draw it behind that of a smaller run; no rows for any other run.

    Raises what `manifest` raises.
    """
    page, _, name = name.partition(".")
    path = cache.project_folder() / "results" / SHIPPED / f"{page}.parquet"
    return read(path)[name] if path.is_file() and preset in SMALLER else pd.DataFrame({"group": []})


def pages(folder: Path) -> list[Path]:
    """The Parquet files of a record's pages, a page of which the file or its manifest is gone included."""
    files = [path for path in folder.glob("[!.]*") if path.suffix in (".json", ".parquet") and path.stem != "scorecard"]
    return sorted({path.with_suffix(".parquet") for path in files})


def restored(rows: pa.Table, columns: Mapping[str, str]) -> pd.DataFrame:
    """Rows as a table of these columns and dtypes."""
    frame = pd.DataFrame(index=range(len(rows)))
    for name, dtype in columns.items():
        if dtype == "object":
            frame[name] = pd.Series(rows[name].to_pylist(), dtype=object)
        else:
            frame[name] = rows[name].to_pandas().astype("object" if dtype == "str" and pd.__version__ < "3" else dtype)
    return frame
