"""How long the book takes: cold, with stored states, and the site alone.

    python benchmarks/whole_book.py [FOLDER]

In a clone of what is committed, with an empty cache, which is kept if it is given a folder. The time of the
installation is not in it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from common import HERE, keep

LOCAL = ["--executor", "local"]  # as `make book` does
STEPS = {"cold": ["run", *LOCAL], "with stored states": ["run", "--force", *LOCAL], "site alone": ["site"]}


def pages(record: Path, name: str) -> list[dict[str, Any]]:
    """Minutes of each page in its last run.  record: the folder of their manifests."""
    manifests = {path.stem: path.with_suffix(".json") for path in sorted(record.glob("*.parquet"))}
    found = {page: json.loads(path.read_text())["seconds"] / 60 for page, path in manifests.items()}
    row = {"benchmark": f"pages, {name}", "unit": "minutes"}
    return [row | {"setting": page, "ours": minutes} for page, minutes in found.items()]


def main() -> None:
    """Print the times and keep them, those of each page, too."""
    rows = []
    with nullcontext(sys.argv[1]) if sys.argv[1:] else tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", str(HERE.parent), folder], check=True)
        settings = os.environ | {"PYTHONPATH": f"{folder}/src", "PG_CACHE": f"{folder}/.cache"}
        for name, arguments in STEPS.items():
            command = [sys.executable, "-m", "peaks_and_gates", *arguments, "--preset", "laptop"]
            start = time.perf_counter()
            subprocess.run(command, cwd=folder, env=settings, check=True)
            minutes = (time.perf_counter() - start) / 60
            rows.append({"benchmark": "book", "setting": name, "unit": "minutes", "ours": minutes})
            print(f"{name}: {minutes:.1f} minutes", flush=True)
            if "run" in arguments:
                rows += pages(Path(folder, "results", "laptop"), name)
            if name == "cold":
                shutil.copytree(Path(folder, "results", "laptop"), Path(folder, "cold"))
            keep("whole_book", rows)
        # As a record the cold run is kept: it says how long a page takes a reader who has nothing stored.
        shutil.copytree(Path(folder, "cold"), Path(folder, "results", "laptop"), dirs_exist_ok=True)


if __name__ == "__main__":
    main()
