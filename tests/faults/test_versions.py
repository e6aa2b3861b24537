"""The versions that are tested: the lock, and the oldest that `pyproject.toml` allows."""

import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [Requirement(line) for line in PROJECT["dependencies"]]


def pinned(path):
    """Versions by name, of a file with one `name==version` a line."""
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def least(requirement):
    """The oldest version that a requirement allows."""
    bounds = [each.version for each in requirement.specifier if each.operator in (">=", "==")]
    assert len(bounds) == 1, f"{requirement} has no oldest version"
    return bounds[0]


def test_the_lock_has_a_version_of_everything_that_is_allowed(report):
    lock = pinned(ROOT / "requirements.lock")
    for requirement in REQUIREMENTS:
        assert lock[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    report("versions", "requirements at the lock", len(REQUIREMENTS), f"allowed; {len(lock)} packages are pinned")


def test_the_oldest_versions_are_those_that_are_written_down(report):
    """`make test-oldest` installs these and runs the tests."""
    oldest = pinned(ROOT / "tests" / "oldest.txt")
    for requirement in REQUIREMENTS:
        assert Version(oldest[canonicalize_name(requirement.name)]) == Version(least(requirement)), requirement
    report("versions", "requirements at their oldest", len(REQUIREMENTS), "the oldest that is allowed is the one tested")
