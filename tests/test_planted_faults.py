"""Faults planted in the source one at a time: a test that has nothing to do with fault tests must fail for each.

Of every fault the file and the tests that are to see it are named; what is reported is the test that did.
"""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from subprocess import PIPE

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "gate"))
import use_faults

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")

# ruff: noqa: E501 - a table of code as it stands
# module: (what is wrong, the right code, the wrong code, the test file, which of its tests)
FAULTS = {
    "landscape/extraction": [
        ("layers one too early", "output.hidden_states[1:]", "output.hidden_states[:-1]", "landscape/extraction", "plain_loop"),
        ("the token before the last", "len(item.rest) - 1 for", "len(item.rest) - 2 for", "landscape/extraction", "plain_loop"),
        ("prompts in another order", "torch.tensor(order).argsort()", "torch.tensor(order)", "landscape/extraction", "plain_loop"),
        ("the cache of one prompt for all", "row_of[item.prefix]", "0", "landscape/extraction", "plain_loop"),
        ("the norm of the block before", "zip(model.norms, residual", "zip((*model.norms[1:], model.norms[0]), residual", "landscape/extraction", "off_by_one"),
        ("log-probabilities not normalised", ".log_softmax(-1)", "", "landscape/extraction", "plain_loop"),
        ("the key without the questions", '"prompts": texts, ', "", "landscape/extraction", "other_inputs"),
        ("one layer for another when read", 'get_tensor(f"{point}.{layer}")', 'get_tensor(f"{point}.{max(1, layer - 1)}")', "landscape/extraction", "stored_states"),
    ],
    "landscape/neighbours": [
        ("no second look at doubtful rows", "errors = 4 *", "errors = 0 *", "landscape/neighbours", "equal_to_all"),
        ("neighbours of a part by their old numbers", "place[rows] = np.arange(len(rows))", "place[rows] = rows", "landscape/neighbours", "part"),
        ("one weight a point", "weights = 1 / sizes[codes]", "weights = np.ones(len(codes))", "landscape/density_peaks", "label_overlap"),
        ("shared neighbours counted twice", ".sum(1) / k\n\n\ndef class_neighbours", ".sum(1) / (2 * k)\n\n\ndef class_neighbours", "landscape/density_peaks", "point_overlap"),
    ],
    "landscape/density_peaks": [
        ("a dimension of another scale", "intrinsic_dimension[recipe.gride_scale]", "intrinsic_dimension[0]", "landscape/density_peaks", "dadapys_own_route"),
        ("labels of the rows before duplicates went", "[1][kept] for name", "[1][: len(kept)] for name", "landscape/density_peaks", "identical_rows"),
    ],
    "landscape/adp": [
        ("halo and core exchanged", "shifted >= highest", "shifted < highest", "landscape/density_peaks", "dadapys_own_route"),
        ("neighbours and their distances in another order", "np.hstack([own, neighbours])", "np.hstack([own, neighbours[:, ::-1]])", "landscape/density_peaks", "dadapys_own_route or far_clusters"),
        ("DADApy's labels are believed", "if in_range and np.array_equal(np.bincount(assignment), sizes):", "if True:", "landscape/density_peaks", "bad_labels"),
        ("a saddle where no point is nearest", "border = ~own.any(1) | (first == points)", "border = first == first", "landscape/density_peaks", "our_lines"),
    ],
    "landscape/dendrogram": [
        ("small peaks are leaves", "counts.sum(1) > least", "counts.sum(1) >= 0", "landscape/dendrogram", "more_points"),
        ("subjects of the rows before duplicates went", "np.asarray(subjects)[peaks.kept]", "np.asarray(subjects)[: peaks.n]", "landscape/dendrogram", "in_step"),
        ("another linkage", '"weighted") if', '"average") if', "landscape/dendrogram", "height_of_the_saddle"),
        ("a part with the bound of all questions", "round(tree.least * len(rows) / peaks.n)", "tree.least * 10", "landscape/dendrogram", "estimates_of_a_known"),
    ],
    "statistics": [
        ("subsets that share points differ enough", "size / (n - size)", "1", "landscape/statistics", "subsampling"),
        ("replicates not centred", "- resampled.mean()", "- value", "landscape/statistics", "centred"),
        ("the interval at half its width", "PERCENTILES = (2.5, 97.5)", "PERCENTILES = (25, 75)", "landscape/statistics", "covers or mean"),
        ("weights left out", "np.average(values, weights=weights)", "np.average(values)", "landscape/statistics", "mean"),
    ],
    "landscape/questions": [
        ("answers of the shots missing", "block(question, with_answer=True)", "block(question, with_answer=False)", "landscape/questions", "byte_for_byte"),
        ("the last dev items", "dev[:n_shots]", "dev[-n_shots:]", "landscape/questions", "first_dev or golden"),
    ],
    "gate/tokens": [
        ("the gate counted as text after it", '(self._group("end").int().cumsum(1) > 0)', '(self._group("image").int().cumsum(1) > 0)', "gate/tokens", "after_begins or by_hand"),
        ("the first token for the last", "(members.flip(1).int().cumsum(1).flip(1) == 1)", "(members.int().cumsum(1) == 1)", "gate/tokens", "by_hand"),
        ("the block begins one late", "first = begins[0] if begins else images[0]", "first = begins[0] + 1 if begins else images[0]", "gate/tokens", "layout"),
        ("the last image token is the end", "last = ends[-1] if ends else images[-1] + 1", "last = ends[-1] if ends else images[-1]", "gate/tokens", "layout"),
        ("padding counts as text", 'torch.full(mask.shape, KINDS.index("padding")', 'torch.full(mask.shape, KINDS.index("text")', "gate/tokens", "layout"),
        ("one seed for all rows", "np.random.default_rng(row_seed)", "np.random.default_rng(seeds[0])", "gate/tokens", "seed_per_row"),
        ("tokens drawn twice", "n, replace=False", "n, replace=True", "gate/tokens", "batch_mates"),
    ],
    "gate/inputs": [
        ("positions count the padding", "(mask.cumsum(1) - 1).clamp(min=0)", "torch.ones_like(mask).cumsum(1) - 1", "gate/vlm", "neither_padding"),
        ("codes depend on batch mates", "image = image[:, :height, :width]", "pass", "gate/vlm", "neither_padding"),
        ("the first image for all", "if key not in known:", "if not known:", "gate/vlm", "another_image or encoded_once"),
        ("the end of the text behind a prompt", '{"return_for_text_completion": True}', "{}", "gate/vlm", "text_ends"),
        ("the text opened twice", '"add_special_tokens": not opened', '"add_special_tokens": True', "gate/vlm", "opens_once"),
        ("photographs on their side", "upright = ImageOps.exif_transpose(opened)", "upright = opened", "gate/vlm", "upright"),
        ("what is transparent on black", '"white"', '"black"', "gate/vlm", "pixel"),
    ],
    "gate/vlm": [
        ("a hub model at its newest commit", '"revision": described.get("revision")', '"revision": None', "gate/vlm", "one_commit"),
        ("code of a repository is run", '"trust_remote_code": False', '"trust_remote_code": True', "gate/vlm", "one_commit"),
        ("pickles are read", '"use_safetensors": True', '"use_safetensors": False', "gate/vlm", "run_code"),
        ("the wiring is forgotten", 'if getattr(config, "wiring", None):', "if False:", "gate/attention", "carried"),
        ("any model will do", "    check(model)\n", "", "gate/vlm", "do_not_fit"),
        ("any head will do", "if not torch.allclose(logits[allowed], expected[allowed]", "if not torch.allclose(logits, logits", "gate/vlm", "take_hold"),
    ],
    "gate/attention": [
        ("keys for values", "silent = value.masked_fill(", "silent = key.masked_fill(", "gate/oracle", "knockout"),
        ("nothing is cut", "if layer not in run.layers:", "if True:", "gate/oracle", "knockout"),
        ("all blocks are cut", "if layer not in run.layers:", "if False:", "gate/oracle", "knockout"),
        ("the last block is left out", "if layer not in run.layers:", "if layer + 1 not in run.layers:", "gate/oracle", "knockout"),
        ("all heads are cut", "reading[:, rows, None, None] & chosen[:, None]", "reading[:, rows, None, None]", "gate/oracle", "knockout"),
        ("sources a token late", "blocked = _extend(sources, n_keys, False)", "blocked = _extend(sources.roll(1, 1), n_keys, False)", "gate/oracle", "knockout"),
        ("weights shared out again", 'if how == "mask":', "if True:", "gate/oracle", "knockout"),
        ("nothing is masked", "_mask_pairs(mask, pairs, check=True)", "mask", "gate/oracle", "knockout"),
        ("the rows of another prompt", "torch.where(taken, changed, output[:, rows])", "changed", "gate/attention", "is_its_rows"),
        ("one prompt's targets for all", "reading = _extend(targets, n_keys, generated)[:, seen:]", "reading = _extend(targets[:1].expand_as(targets), n_keys, generated)[:, seen:]", "gate/attention", "is_its_rows"),
        ("generated tokens go free", "_extend(targets, n_keys, generated)[:, seen:]", "_extend(targets, n_keys, False)[:, seen:]", "gate/attention", "generated_text"),
        ("the first queries for the last", "[:, seen:]", "[:, : n_keys - seen]", "gate/attention", "generated_text"),
        ("shares not divided by their queries", " / weights.sum(1)[:, None, None]", "", "gate/oracle", "shares"),
        ("shares of the block before", "shares.values[:, module.layer_idx]", "shares.values[:, module.layer_idx - 1]", "gate/oracle", "shares"),
        ("values for keys in the shares", "key.float(), indicators", "value.float(), indicators", "gate/oracle", "shares"),
        ("open and gated exchanged", '"gated": (("begin", "image", "special"), "after")', '"gated": (("begin", "image", "special"), "end")', "gate/attention", "always_on"),
        ("the wiring never looks", "if (ids == image).any():", "if False:", "gate/attention", "always_on"),
        ("the wiring lets generated text go", 'targets == "after")', "False)", "gate/attention", "holds_with_a_cache"),
        ("the wiring of the last prompt", "            _closed[id(config)] = None\n", "", "gate/attention", "text_alone"),
        ("wired queries taken from the front", "[:, n_keys - n_queries :]", "[:, :n_queries]", "gate/attention", "holds_with_a_cache"),
        ("the cache is not found", "isinstance(given, Cache)", "isinstance(given, str)", "gate/attention", "cache"),
        ("no mask where the kernel makes its own", '"allow_is_causal_skip": False', '"allow_is_causal_skip": True', "gate/attention", "always_on or untouched"),
    ],
    "gate/patching": [
        ("a layer late", "{_readers(model)[layer]: partial(", "{_readers(model)[layer - 1]: partial(", "gate/oracle", "patching"),
        ("nothing is patched", "= states.to(hidden_states)", "= hidden_states[rows, positions]", "gate/oracle", "patching"),
        ("the token before", "hidden_states[rows, positions] = states", "hidden_states[rows, positions - 1] = states", "gate/oracle", "patching"),
        ("the token before is read", "hidden_states[rows, positions].detach()", "hidden_states[rows, positions - 1].detach()", "gate/oracle", "patching"),
        ("a layer late when read", "states.residual[:, i]) for", "states.residual[:, i - 1]) for", "gate/oracle", "patching"),
        ("row 0 for all", "= states.to(hidden_states)", "= states[:1].to(hidden_states)", "gate/patching", "last_state"),
        ("the change of attention's input is lost", 'kwargs | {"hidden_states": changed}', "kwargs", "gate/oracle", "patching"),
        ("the change of a block's input is lost", "return (changed, *args[1:]), kwargs", "return args, kwargs", "gate/oracle", "patching"),
        ("the last block for the last state", "[*model.layers, model.final_norm]", "[*model.layers, model.layers[-1]]", "gate/oracle", "patching"),
        ("attention of all blocks", "range(first, model.n_layers)", "range(model.n_layers)", "gate/oracle", "patching"),
        ("steering at half its strength", "own + strength * (other - own)", "own + strength / 2 * (other - own)", "gate/oracle", "patching"),
    ],
    "cache": [
        ("a damaged file is believed", '["sha256"] == file_sha256(path)', '["sha256"] != ""', "book/cache", "damaged"),
        ("the key without the inputs", "digest([name, inputs])", "digest([name])", "book/cache", "other_inputs"),
        ("a half-made folder is believed", '["files"] == checksums(folder)', '["files"] != {}', "book/cache", "folder"),
    ],
    "record": [
        ("tables of other inputs are drawn", 'if about[name]["inputs"] != inputs:', "if False:", "book/record", "same_inputs"),
        ("rows of another table", "rows.filter(pa.array(names == name))", "rows.filter(pa.array(names != name))", "book/record", "come_back"),
        ("a damaged record is read", 'if about["sha256"] != cache.file_sha256(path):', "if False:", "book/record", "damaged"),
    ],
    "book/keys": [
        ("what a module imports does not count", "modules = modules.union(*(module(name).imports for name in new))", "modules = modules | set()", "book/keys", "nothing_else"),
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
    "models": [
        ("adapters are forgotten", "network = merged(network, adapter_path, root)", "pass", "landscape/models", "adapter"),
        ("the last state is normalised already", "tie_last_hidden_states = False", "tie_last_hidden_states = True", "landscape/models", "normalised or saved"),
    ],
}  # fmt: skip
TABLES = (FAULTS, use_faults.FAULTS)
PLANTED = [(module, *fault) for table in TABLES for module, faults in table.items() for fault in faults]
FULL = os.environ.get("PG_FAULTS") == "full"  # `make test-faults`; else the first fault of a few modules


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The repository by links, with a source and notebooks of its own."""
    folder = tmp_path_factory.mktemp("planted")
    for name in ("_config.yml", "_toc.yml", "requirements.lock", "benchmarks", "book", "data", "results", "weights"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("src", "notebooks"):
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
            arguments = ["-x", "-q", "-p", "no:cacheprovider", f"{path.parent}/test_{path.name}.py", "-k", tests]
            print(json.dumps([arguments, str(output)]), file=nursery.stdin, flush=True)
            return int(nursery.stdout.readline()), output.read_text()

        yield tested
        nursery.stdin.close()


@contextmanager
def planted(checkout, module, old, new):
    """A module of the copied source, or a notebook where its name begins with a slash, with a fault in it."""
    notebook = module.startswith("/")
    path = checkout / (f"notebooks{module}.ipynb" if notebook else f"src/peaks_and_gates/{module}.py")
    if notebook:
        old, new = json.dumps(old)[1:-1], json.dumps(new)[1:-1]
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {module}"
    path.write_text(text.replace(old, new))
    try:
        yield
    finally:
        path.write_text(text)


@pytest.mark.parametrize("fault", PLANTED if FULL else PLANTED[::12], ids=lambda fault: f"{fault[0]}: {fault[1]}")
def test_a_planted_fault_is_seen(fault, checkout, run):
    module, wrong, old, new, file, tests = fault
    with planted(checkout, module, old, new):
        status, output = run(file, tests)
    assert status == 1, f"{module}: {wrong}: survived\n{output[-2000:]}"  # 1: a test failed


def test_the_planting_takes_effect_and_the_source_as_it_is_passes(checkout, run):
    """Without a fault the tests pass on the copied source, and it is the copy that they run."""
    status, output = run("gate/tokens", "by_hand")
    assert status == 0, output
    with planted(checkout, "gate/tokens", 'KINDS = ("padding",', 'raise SystemError("this copy")\nKINDS = ("padding",'):
        assert "this copy" in run("gate/tokens", "by_hand")[1]
