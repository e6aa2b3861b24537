"""Progress bars: a widget in JupyterLab, plain text where the runner forwards it to a terminal."""

from __future__ import annotations

import os
from typing import Any

from tqdm import tqdm
from tqdm.auto import tqdm as notebook_tqdm


def bar(**options: Any) -> tqdm:
    """A tqdm bar; `pg run` sets PG_RUNNER, since a widget cannot be drawn outside JupyterLab."""
    return tqdm(**options) if os.environ.get("PG_RUNNER") else notebook_tqdm(**options)
