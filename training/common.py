"""What every training shares: how a file is written with its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from peaks_and_gates import store


def write_with_card(table: pd.DataFrame, path: Path, **card: Any) -> None:
    """Write a table as Parquet, and beside it its card, a JSON file: hash, rows, versions and what `card` says.

    The card is written last, so that a file with a fitting card is complete.  Raises StorageFull.
    """
    store.write_atomically(path, lambda temporary: table.to_parquet(temporary, index=False, compression="zstd"))
    about = {"sha256": store.file_sha256(path), "rows": len(table), "columns": list(table.columns)}
    store.write_json(path.with_suffix(".json"), card | about | {"environment": store.environment()})


def weights_folder(preset: str) -> Path:
    """`weights/` in the checkout for the book's own; a folder by preset in it for the others."""
    root = (store.project_folder() or Path.cwd()) / "weights"
    return root if preset == "laptop" else root / preset
