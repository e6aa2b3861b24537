"""What only runs elsewhere: workflows call commands that there are."""

import re

import pytest
import yaml

from conftest import ROOT
from peaks_and_gates.book.cli import cli

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_what_there_is(path):
    workflow = yaml.safe_load(path.read_text())
    targets = " ".join(re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)).split()
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    lines = [line.strip() for step in steps for line in step.get("run", "").splitlines()]
    for line in lines:
        if made := re.search(r"\bmake ([\w-]+)", line):
            assert made[1] in targets
        if called := re.search(r"\bpg ([\w-]+)", line):
            assert called[1] in cli.commands
        if line.startswith("."):
            assert (ROOT / line.split()[0]).is_file() or line.startswith(".venv/")
    assert workflow["permissions"] == {"contents": "read"}  # a job that needs more says so
    assert all(re.fullmatch(r"[\w./-]+@(release/)?v\d+", step["uses"]) for step in steps if "uses" in step)
    assert all("timeout-minutes" in job or "environment" in job for job in workflow["jobs"].values())
