"""Faults planted in the source one at a time: a test that has nothing to do with fault tests must fail for each.

The faults, and the tests that are to see them, are in planted_faults.yml.
"""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from subprocess import PIPE

import pytest
import yaml

from conftest import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")

TABLE = yaml.safe_load((ROOT / "tests" / "planted_faults.yml").read_text())
FAULTS = [{"module": module} | fault for module, faults in TABLE.items() for fault in faults]
FULL = os.environ.get("PG_FAULTS") == "full"  # `make test-faults`; else the first fault of a few modules


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The repository by links, with a source, notebooks and training of its own."""
    folder = tmp_path_factory.mktemp("planted")
    for name in (
        "_config.yml",
        "_toc.yml",
        "requirements-dev.lock",
        "benchmarks",
        "book",
        "data",
        "results",
        "weights",
    ):
        (folder / name).symlink_to(ROOT / name)
    for name in ("src", "notebooks", "training"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return folder


@pytest.fixture(scope="module")
def run(checkout, tmp_path_factory):
    """Call with a file and some of its tests for pytest's exit status and output, on the checkout."""
    settings = os.environ | {"PYTHONPATH": f"{checkout}/src", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    settings = {name: value for name, value in settings.items() if not name.startswith(("PG_FAULTS", "PYTEST_"))}
    output = tmp_path_factory.mktemp("output") / "output"
    command = [sys.executable, f"{ROOT}/tests/nursery.py"]
    with subprocess.Popen(command, env=settings, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True) as nursery:

        def tested(file, tests):
            path = ROOT / "tests" / file
            options = ["-x", "-q", "-p", "no:cacheprovider", "-o", f"pythonpath={checkout}"]
            arguments = [*options, f"{path.parent}/test_{path.name}.py", "-k", tests]
            print(json.dumps([arguments, str(output)]), file=nursery.stdin, flush=True)
            return int(nursery.stdout.readline()), output.read_text()

        yield tested
        nursery.stdin.close()


@contextmanager
def planted(checkout, module, old, new):
    """A module or YAML file of the copied source or training, or a notebook (where there is a slash), with a fault."""
    suffix = "" if module.endswith(".yml") else ".py"
    name = {"/": f"notebooks{module}.ipynb", "training/": f"{module}.py", "": f"src/peaks_and_gates/{module}{suffix}"}
    path = checkout / next(name[start] for start in name if module.startswith(start))
    if path.suffix == ".ipynb":
        old, new = json.dumps(old)[1:-1], json.dumps(new)[1:-1]
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {module}"
    path.write_text(text.replace(old, new))
    try:
        yield
    finally:
        path.write_text(text)


def test_every_fault_can_be_planted(checkout):
    for fault in FAULTS:
        with planted(checkout, fault["module"], fault["right"], fault["wrong"]):
            pass


@pytest.mark.parametrize("fault", FAULTS if FULL else FAULTS[::12], ids="{0[module]}: {0[fault]}".format)
def test_a_planted_fault_is_seen(fault, checkout, run):
    with planted(checkout, fault["module"], fault["right"], fault["wrong"]):
        status, output = run(*fault["test"].split(" ", 1))
    if " skipped" in output and " passed" not in output and " failed" not in output:
        pytest.skip("the test that is to see it needs DADApy")
    assert status == 1, f"survived\n{output[-2000:]}"  # 1: a test failed


def test_the_planting_takes_effect_and_the_source_as_it_is_passes(checkout, run):
    """Without a fault the tests pass on the copied source, and it is the copy that they run."""
    status, output = run("gate/tokens", "by_hand")
    assert status == 0, output
    with planted(checkout, "gate/tokens", 'KINDS = ("padding",', 'raise SystemError("this copy")\nKINDS = ("padding",'):
        assert "this copy" in run("gate/tokens", "by_hand")[1]
