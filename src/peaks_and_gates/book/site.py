"""Build the website from executed notebooks and the record; nothing is computed here.

The pages themselves are made by Sphinx with book/_ext/peaks_book.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

from ..errors import BookError
from . import runner
from .keys import root


def build(preset: str) -> Path:
    """Build the site of a preset's record; returns the folder with index.html.

    A page that was run here is shown as it ran; one that is only recorded is redrawn from its tables; one that is
    neither is shown without results, and says so.  Raises HashMismatch if a recorded table is damaged, BookError if
    the builder reports a warning or an error.
    """
    jobs = runner.plan(preset)
    if jobs[0].record.parent.is_dir():
        runner.write_scorecard(jobs)
    for job in jobs:
        if job.state != "missing" and not job.is_drawn:
            try:
                runner.execute(job)
                runner.stamp(job)
            except BookError as error:
                warnings.warn(f"{job.name} is shown without results: {error}", stacklevel=2)
    target = root() / "_build" / "html"
    shutil.rmtree(target, ignore_errors=True)  # pages that are gone would stay
    builder = Path(sys.executable).with_name("jupyter-book")  # the script of this environment
    command = [builder, "build", root(), "--path-output", root(), "--all", "--warningiserror", "--keep-going"]
    environment = os.environ | {"PG_PRESET": preset}
    finished = subprocess.run(command, cwd=root(), env=environment, capture_output=True, text=True, check=False)
    log = root() / "_build" / "site.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text(finished.stdout + finished.stderr)
    if finished.returncode != 0:
        lines = [line for line in log.read_text().splitlines() if "WARNING" in line or "ERROR" in line]
        raise BookError("\n".join(["The site could not be built:", *lines[:10], f"The log is {log}."]))
    return target
