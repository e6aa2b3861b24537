"""What a page was made from: every change of it is seen, and a recorded number can be computed again."""

import json
import shutil

import nbformat
import pytest

from conftest import copy_checkout, size
from peaks_and_gates import freshness, site, store, verify
from peaks_and_gates.book import runner as book

PAGE = "known_agreement"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout with a source of its own, in which a page was run."""
    folder = copy_checkout(tmp_path_factory.mktemp("provenance"))
    source = shutil.copytree(store.SOURCE, folder / "src" / "peaks_and_gates")
    patch = pytest.MonkeyPatch()
    patch.setattr(store, "project_folder", lambda: folder)
    patch.setattr(store, "SOURCE", source)
    (job,) = book.plan("laptop", [PAGE])
    book.perform(job)
    yield folder
    patch.undo()


def state(name=PAGE):
    store.code_version.cache_clear()
    (job,) = book.plan("laptop", [name])
    return job.state


def notebook(folder):
    path = folder / "notebooks" / "methods" / f"{PAGE}.ipynb"
    read = nbformat.read(path, as_version=4)
    code = next(cell for cell in read.cells if "synthetic" in cell.source)
    code.source += "\nseed + 1"
    nbformat.write(read, path)
    return path


def appended(path, text):
    path.write_text(path.read_text() + text)
    return path


CHANGES = {
    "a cell of the notebook": notebook,
    "the module that computes": lambda folder: appended(folder / "src/peaks_and_gates/synthetic.py", "\nEXTRA = 1\n"),
    "a module that this imports": lambda folder: appended(
        folder / "src/peaks_and_gates/neighbours.py", "\nEXTRA = 1\n"
    ),
    "a version in the lock": lambda folder: locked(folder, "dadapy==0.3.4", "dadapy==0.3.5"),
}
HARMLESS = {
    "a comment": lambda folder: appended(folder / "src/peaks_and_gates/synthetic.py", "\n# nothing\n"),
    "a module that draws": lambda folder: appended(folder / "src/peaks_and_gates/known_figures.py", "\nEXTRA = 1\n"),
    "a module of other pages": lambda folder: appended(folder / "src/peaks_and_gates/steering.py", "\nEXTRA = 1\n"),
    "a version that no number depends on": lambda folder: locked(folder, "click==", "click==0.0.1\nclick2=="),
}


def locked(folder, old, new):
    path = folder / "requirements.lock"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    return path


@pytest.mark.parametrize("what", [*CHANGES, *HARMLESS])
def test_a_change_makes_a_page_stale_if_it_can_change_a_number(what, checkout, report):
    assert state() == "done"
    before = {path: path.read_bytes() for path in checkout.rglob("*") if path.suffix in (".py", ".ipynb", ".lock")}
    changed = (CHANGES | HARMLESS)[what](checkout)
    expected = "stale" if what in CHANGES else "done"
    try:
        assert state() == expected
        (job,) = book.plan("laptop", [PAGE])
        assert ("Stale" in site.run_box(job)) == (what in CHANGES)  # the page says so, too
    finally:
        changed.write_bytes(before[changed])
    assert state() == "done"
    report("provenance", f"changed: {what}", 1, expected if what in CHANGES else "not stale: no number depends on it")


def test_weights_and_data_make_their_pages_stale(checkout, report):
    """Of shipped weights the pages that read them; questions are pinned by hashes in the source."""
    (job,) = book.plan("laptop", ["patching"])
    path = next(path for path in freshness.weights(job.parameters) if path.suffix == ".safetensors")
    data, key = path.read_bytes(), job.key
    other = book.plan("laptop", [PAGE])[0].key
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    try:
        assert book.plan("laptop", ["patching"])[0].key != key
        assert book.plan("laptop", [PAGE])[0].key == other
    finally:
        path.write_bytes(data)
    assert book.plan("laptop", ["patching"])[0].key == key
    report("provenance", "changed: a byte of shipped weights", 1, "stale, the pages that read them alone")


def test_every_figure_carries_the_key_of_its_run(checkout, report):
    (job,) = book.plan("laptop", [PAGE])
    shown = [output["data"]["text/html"] for cell in site.page(job).cells for output in cell.get("outputs", [])
             if "text/html" in output.get("data", {})]  # fmt: skip
    figures = sum(text.count("<figure") for text in shown)
    keyed = sum(text.count(f'<figure data-run-key="{job.manifest["run_key"]}"') for text in shown)
    assert figures == keyed >= 2 and job.manifest["run_key"] == job.key
    report("provenance", f"figures of {PAGE}", figures, "each carries the key of its run")


def test_every_recorded_page_says_what_it_was_made_from(checkout, report):
    manifests = [json.loads(path.read_text()) for path in (checkout / "results/laptop/notebooks").glob("*.json")]
    assert len(manifests) == len(book.notebooks())
    for manifest in manifests:
        assert manifest["run_key"] and manifest["parameters"] and manifest["environment"]["packages"]["torch"]
    report("provenance", "recorded pages", len(manifests), "each with key, parameters, versions and machine")


def test_recorded_numbers_are_computed_again(checkout, report):
    """From nothing, on this machine: pages of a few seconds; `pg verify` does it for all of them."""
    names = [PAGE, "known_peaks", "narrow_gates"][: size(3, 1)]
    found = list(verify.pages(book.plan("laptop", names)))
    assert all(one.holds for one in found), verify.report(found)
    n, far = sum(one.n for one in found), max(one.deviation for one in found)
    report("provenance", f"numbers of {', '.join(names)} computed again", n, f"largest difference {far:.1g}")
