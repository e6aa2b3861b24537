"""What only runs elsewhere: workflows and forms are well formed, and call commands that there are."""

import re
import subprocess
import sys

import pytest
import yaml

from conftest import ROOT
from peaks_and_gates.book.cli import cli

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")


def checked(schema, *paths):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("schema", "paths"),
    [
        ("github-workflows", WORKFLOWS),
        ("github-issue-forms", FORMS),
        ("github-issue-config", [GITHUB / "ISSUE_TEMPLATE" / "config.yml"]),
    ],
)
def test_files_for_github_fit_its_schemas(schema, paths, tmp_path):
    assert paths
    done = checked(schema, *paths)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "broken.yml"
    broken.write_text(paths[0].read_text() + "\nnot-a-key: 1\n")
    assert checked(schema, broken).returncode == 1


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
    assert all(re.fullmatch(r"[\w./-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    assert all("timeout-minutes" in job or "environment" in job for job in workflow["jobs"].values())


def test_the_map_of_the_modules_names_modules():
    drawn = (ROOT / "CONTRIBUTING.md").read_text().split("```")[3]
    names = set(re.findall(r"[a-z_]{4,}", drawn))
    known = {path.stem for path in (ROOT / "src" / "peaks_and_gates").rglob("*.py")}
    assert {"extraction", "neighbours", "experiment", "patching"} <= names & known
    gone = {name for name in names if "_" in name} - known - {"_figures"}
    assert not gone
