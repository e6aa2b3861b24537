"""The versions that are tested: those of the lock, which `pyproject.toml` must allow."""

import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [Requirement(line) for line in PROJECT["dependencies"]]


def pinned(path):
    """Versions by name, of a file with one `name==version` a line."""
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def test_the_lock_has_a_version_of_everything_that_is_allowed(report):
    lock = pinned(ROOT / "requirements.lock")
    for requirement in REQUIREMENTS:
        assert lock[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    report("versions", "requirements at the lock", len(REQUIREMENTS), f"allowed; {len(lock)} packages are pinned")
