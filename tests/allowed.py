"""Print what to install of each requirement of `pyproject.toml`: the oldest version that it allows, or the newest."""

import re
import sys
import tomllib
from pathlib import Path

REQUIREMENTS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["dependencies"]


def oldest() -> list[str]:
    """`name==version` of each requirement."""
    return ["==".join(re.match(r"([\w-]+)[>=]=([\d.]+)", line).groups()) for line in REQUIREMENTS]


if __name__ == "__main__":
    print("\n".join({"oldest": oldest(), "newest": REQUIREMENTS}[sys.argv[1]]))
