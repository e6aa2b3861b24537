"""Nothing that came as data is run: downloads are pinned, YAML makes plain data; the linter refuses unsafe calls."""

import re

import pytest

from conftest import ROOT
from peaks_and_gates.book import presets
from peaks_and_gates.errors import BookError


def test_no_code_of_a_repository_is_run_and_every_download_is_pinned():
    """Hub repositories by commit (or looked up and recorded, where a gated one names none), requirements by version."""
    files = [path for folder in ("src", "training", "notebooks") for path in (ROOT / folder).rglob("*.*")]
    read = lambda *suffixes: "\n".join(path.read_text() for path in files if path.suffix in suffixes)
    settings = re.findall(r"\b(?:trust_remote_code|allow_pickle)\W+(\w+)", read(".py", ".ipynb"))
    assert len(settings) > 1 and set(settings) == {"False"}
    revisions = re.findall(r"revision: *['\"]?(\w+)", read(".yml"))
    assert len(revisions) > 10 and all(re.fullmatch(r"[0-9a-f]{40}|null", revision) for revision in revisions)
    locks = [(ROOT / name).read_text().replace("\\\n", "") for name in ("requirements.lock", "requirements-dev.lock")]
    pinned = re.compile(r"[a-z0-9.-]+==[\w.+!-]+ (; [^#]+ )?( +--hash=sha256:[0-9a-f]{64})+")
    assert all(pinned.fullmatch(line.rstrip()) for lock in locks for line in lock.splitlines())


NO_DATA = ["!!python/object/apply:os.system ['touch out']", "!!python/name:os.system", "&a [*a]", "2020-01-01"]


@pytest.mark.parametrize("value", NO_DATA)
def test_a_yaml_tag_makes_nothing(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BookError, match="no YAML"):
        presets.parse_assignment(f"seed={value}")
    assert not any(tmp_path.iterdir())


def test_shipped_files_are_safetensors_parquet_json_or_text():
    paths = [path for folder in ("weights", "results", "data") for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert {path.suffix for path in paths} <= {".safetensors", ".parquet", ".json", ".md", ".csv", ".txt", ".yml"}
