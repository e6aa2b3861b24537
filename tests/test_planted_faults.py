"""Faults planted in the source one at a time: a test that has nothing to do with fault tests must fail for each.

Of every fault the file and the tests that are to see it are named; what is reported is the test that did.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from subprocess import PIPE

import pytest

from conftest import FULL, ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")

# ruff: noqa: E501 - a table of code as it stands
# module: (what is wrong, the right code, the wrong code, the test file, which of its tests)
FAULTS = {
    "landscape/extraction": [
        ("layers one too early", "output.hidden_states[1:]", "output.hidden_states[:-1]", "landscape/extraction", "plain_loop"),
        ("the token before the last", "len(item.rest) - 1 for", "len(item.rest) - 2 for", "landscape/extraction", "plain_loop"),
        ("prompts in another order", "torch.tensor(order).argsort()", "torch.tensor(order)", "landscape/extraction", "plain_loop"),
        ("the cache of one prompt for all", "row_of[item.prefix]", "0", "landscape/extraction", "plain_loop"),
        ("the norm of the block before", "zip(model.norms, residual", "zip((*model.norms[1:], model.norms[0]), residual",
         "landscape/extraction", "off_by_one"),
        ("log-probabilities not normalised", ".log_softmax(-1)", "", "landscape/extraction", "plain_loop"),
        ("the key without the questions", '"prompts": texts, ', "", "landscape/extraction", "other_inputs"),
        ("one layer for another when read", 'get_tensor(f"{point}.{layer}")', 'get_tensor(f"{point}.{max(1, layer - 1)}")',
         "landscape/extraction", "stored_states"),
    ],
    "landscape/neighbours": [
        ("no second look at doubtful rows", "errors = 4 *", "errors = 0 *", "landscape/neighbours", "equal_to_all"),
        ("neighbours of a part by their old numbers", "place[rows] = np.arange(len(rows))", "place[rows] = rows",
         "landscape/neighbours", "part"),
        ("one weight a point", "weights = 1 / sizes[codes]", "weights = np.ones(len(codes))", "landscape/density_peaks", "label_overlap"),
        ("shared neighbours counted twice", ".sum(1) / k\n\n\ndef class_neighbours", ".sum(1) / (2 * k)\n\n\ndef class_neighbours",
         "landscape/density_peaks", "point_overlap"),
    ],
    "landscape/density_peaks": [
        ("a dimension of another scale", "intrinsic_dimension[recipe.gride_scale]", "intrinsic_dimension[0]",
         "landscape/density_peaks", "dadapys_own_route"),
        ("halo and core exchanged", "shifted >= highest", "shifted < highest", "landscape/density_peaks", "dadapys_own_route"),
        ("neighbours and their distances in another order", "np.hstack([own, neighbours])", "np.hstack([own, neighbours[:, ::-1]])",
         "landscape/density_peaks", "dadapys_own_route or far_clusters"),
        ("labels of the rows before duplicates went", "[1][kept] for name", "[1][: len(kept)] for name",
         "landscape/density_peaks", "identical_rows"),
    ],
    "statistics": [
        ("the interval at half its width", "PERCENTILES = (2.5, 97.5)", "PERCENTILES = (25, 75)", "landscape/statistics", "covers or mean"),
        ("weights left out", "np.average(values, weights=weights)", "np.average(values)", "landscape/statistics", "mean"),
    ],
    "landscape/questions": [
        ("answers of the shots missing", "block(question, with_answer=True)", "block(question, with_answer=False)",
         "landscape/questions", "byte_for_byte"),
        ("the last dev items", "dev[:n_shots]", "dev[-n_shots:]", "landscape/questions", "first_dev or golden"),
    ],
    "tokens": [
        ("the gate counted as text after it", '(self._group("end").int().cumsum(1) > 0)',
         '(self._group("image").int().cumsum(1) > 0)', "tokens", "after_begins or by_hand"),
        ("the first token for the last", "(members.flip(1).int().cumsum(1).flip(1) == 1)", "(members.int().cumsum(1) == 1)",
         "tokens", "by_hand"),
    ],
    "attention": [
        ("keys for values", "silent = value.masked_fill(", "silent = key.masked_fill(", "attention", "slow_reference"),
        ("nothing is cut", "if layer not in run.layers:", "if True:", "attention", "blind"),
        ("generated tokens go free", "grown(targets, n_keys, generated)", "grown(targets, n_keys, False)", "attention", "generated"),
    ],
    "patching": [
        ("a layer late", "[*model.layers, model.final_norm][layer]",
         "[*model.layers[1:], model.final_norm, model.final_norm][layer]", "patching", "test_every_family"),
        ("nothing is patched", "hidden_states[rows, places] = states", "hidden_states[rows, places]", "patching", "test_every_family"),
    ],
    "wiring": [
        ("open and gated exchanged", '"gated": (("begin", "image", "special"), "after")',
         '"gated": (("begin", "image", "special"), "end")', "wiring", "test_wiring"),
        ("generated tokens read the image", "closed.targets, n_keys, closed.later", "closed.targets, n_keys, False",
         "wiring", "test_wiring"),
        ("the cache is not found", "isinstance(given, Cache)", "isinstance(given, str)", "wiring", "cached_is_uncached"),
    ],
    "cache": [
        ("a damaged file is believed", '["sha256"] == file_sha256(path)', '["sha256"] != ""', "book/cache", "damaged"),
        ("the key without the inputs", "digest([name, inputs])", "digest([name])", "book/cache", "other_inputs"),
        ("a half-made folder is believed", '["files"] == checksums(folder)', '["files"] != {}', "book/cache", "folder"),
    ],
    "record": [
        ("tables of other inputs are drawn", 'if about[name]["inputs"] != inputs:', "if False:", "book/record", "same_inputs"),
        ("rows of another table", "rows.filter(pa.array(names == name))", "rows.filter(pa.array(names != name))",
         "book/record", "come_back"),
        ("a damaged record is read", 'if about["sha256"] != cache.file_sha256(path):', "if False:", "book/record", "damaged"),
    ],
    "book/keys": [
        ("what a module imports does not count", "modules = modules.union(*(module(name).imports for name in new))",
         "modules = modules | set()", "book/keys", "nothing_else"),
        ("data do not count", "if strings & {path.name, path.stem}", "if False", "book/keys", "nothing_else"),
        ("docstrings count", 'fields["body"] = node.body[1:]', "pass", "book/keys", "nothing_else"),
    ],
    "book/runner": [
        ("a page that failed has a record", "except BookError as error:\n        return str(error)\n",
         "except BookError:\n        pass\n", "book/runner", "failing_page"),
    ],
    "book/claims": [
        ("a bound is held against the value alone", "if at_least <= low and high <= at_most:",
         "if at_least <= value.value <= at_most:", "book/claims", "whole_interval"),
    ],
    "vqa": [("one person is enough", "ENOUGH = 3", "ENOUGH = 1", "vqa", "scale")],
    "models": [
        ("adapters are forgotten", "network = merged(network, adapter_path, root)", "pass", "landscape/models", "adapter"),
        ("the last state is normalised already", "tie_last_hidden_states = False", "tie_last_hidden_states = True",
         "landscape/models", "normalised or saved"),
    ],
}  # fmt: skip
PLANTED = [(module, *fault) for module, faults in FAULTS.items() for fault in faults]
# What `make test` plants: the first fault of a few modules.
FEW = [(module, *faults[0]) for module, faults in list(FAULTS.items())[::7]]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The repository by links, with a source of its own."""
    folder = tmp_path_factory.mktemp("planted")
    for name in (
        "_config.yml",
        "_toc.yml",
        "requirements.lock",
        "benchmarks",
        "book",
        "notebooks",
        "results",
        "weights",
    ):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return folder


@pytest.fixture(scope="module")
def nursery(checkout):
    """A process that runs pytest on the source of the checkout."""
    settings = os.environ | {"PYTHONPATH": f"{checkout}/src", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    settings = {name: value for name, value in settings.items() if not name.startswith(("PG_FAULTS", "PYTEST_"))}
    command = [sys.executable, f"{ROOT}/tests/faults/nursery.py"]
    with subprocess.Popen(command, env=settings, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def run(nursery, tmp_path):
    """Call with a file and some of its tests for pytest's exit status, and its output."""

    def tested(file, tests):
        folder, _, name = file.rpartition("/")
        path = f"{ROOT}/tests/{folder}/test_{name}.py"
        arguments = ["-x", "-q", "-p", "no:cacheprovider", path, "-k", tests]
        print(json.dumps([arguments, f"{tmp_path}/output"]), file=nursery.stdin, flush=True)
        return int(nursery.stdout.readline()), (tmp_path / "output").read_text()

    return tested


@pytest.mark.parametrize("fault", PLANTED if FULL else FEW, ids=lambda fault: f"{fault[0]}: {fault[1]}")
def test_a_planted_fault_is_seen(fault, checkout, run, report):
    module, wrong, old, new, file, tests = fault
    source = checkout / "src" / "peaks_and_gates" / f"{module}.py"
    text = source.read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {module}"
    try:
        source.write_text(text.replace(old, new))
        status, output = run(file, tests)
    finally:
        source.write_text(text)
    assert status == 1, f"{module}: {wrong}: survived\n{output[-2000:]}"  # 1: a test failed
    killer = re.search(r"^FAILED \S+::(\S+)", output, re.M)[1]
    report("mutations", f"{module}: {wrong}", 1, f"seen by {file}: {killer}")


def test_the_planting_takes_effect_and_the_source_as_it_is_passes(checkout, run):
    """Without a fault the tests pass on the copied source, and it is the copy that they run."""
    status, output = run("vqa", "scale")
    assert status == 0, output
    source = checkout / "src" / "peaks_and_gates" / "vqa.py"
    text = source.read_text()
    source.write_text(text + "\nraise SystemError('this copy')\n")
    try:
        assert "this copy" in run("vqa", "scale")[1]
    finally:
        source.write_text(text)
