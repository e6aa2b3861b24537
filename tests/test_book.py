"""The whole way at the smallest size: every notebook runs, the record redraws the book, the site has no dead link."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest
import torch

from peaks_and_gates import claims, freshness, models, site, store
from peaks_and_gates.book import cli
from peaks_and_gates.book import runner as book
from peaks_and_gates.errors import BadParameter, BookError, HashMismatch, MissingFile, UnknownName

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def smoke(checkout):
    """Every notebook, run at the smoke size."""
    jobs = book.plan("smoke")
    assert book.run(jobs) == []
    return jobs


def test_every_notebook_runs_and_leaves_a_record(smoke):
    assert [job.name for job in smoke] == list(book.notebooks())
    for job in smoke:
        assert job.state == "done"
        assert job.manifest["parameters"].get("model", "tiny-llama") == "tiny-llama"  # one page is synthetic
        assert job.manifest["environment"]["packages"]["torch"]
        assert job.name in ("cartoon", "scenes") or job.manifest["tables"]
    for name in ("accuracy.accuracy", "subjects.geometry"):
        table = pd.read_parquet(smoke[0].record / f"{name}.parquet")
        assert {"condition", "model", "layer", "metric", "value", "low", "high", "n"} <= set(table.columns)
        assert set(table["condition"]) >= {"0-shot", "1-shot", "2-shot", "5-shot", "fine-tuned"}
        assert table["value"].notna().all()
        assert (table["n"] > 0).all()


def test_what_is_done_is_not_run_again(smoke, monkeypatch):
    monkeypatch.setattr(book, "execute", lambda *a, **k: pytest.fail("a notebook that is done was run again"))
    assert book.run(book.plan("smoke")) == []


def test_a_record_made_elsewhere_is_shown_but_run_again_when_asked(smoke, monkeypatch):
    job = smoke[0]
    job.marker.unlink()  # as in a fresh clone, where only the record came along
    assert job.state == "recorded"
    ran = []
    monkeypatch.setattr(book, "execute", ran.append)
    book.run([job])
    assert ran == [job]
    assert job.state == "done"


def test_the_scorecards_key_is_of_all_that_is_recorded_not_of_the_pages_run_last(smoke, monkeypatch):
    def key(jobs):
        book.write_scorecard(jobs)
        return json.loads((smoke[0].record / "scorecard.json").read_text())[0]["run_key"]

    whole = key(smoke)
    assert key(smoke[:1]) == whole
    monkeypatch.setattr(book.Job, "manifest", property(lambda job: {"run_key": job.name}))
    assert key(smoke[:1]) != whole


def test_only_the_weights_that_a_page_reads_count(tmp_path, monkeypatch):
    source = book.notebooks()["fine_tuning_dynamics"]
    monkeypatch.setattr(freshness, "root", lambda: tmp_path)
    key = lambda: freshness.run_key(source, {"checkpoints": "weights/a", "fine_tuned": ["smollm2-135m-fine-tuned-1"]})
    keys = [key()]
    for path in ("a/checkpoints/step-1", "fine-tuned-1", "fine-tuned-1/checkpoints/step-1", "b"):
        (tmp_path / "weights" / path).mkdir(parents=True, exist_ok=True)
        (tmp_path / "weights" / path / "x.safetensors").write_text(path)
        keys.append(key())
    assert len(set(keys[:3])) == 3
    assert keys[2] == keys[3] == keys[4]  # another training's steps, another page's model


def test_a_page_depends_on_what_it_imports_and_that_imports():
    assert freshness.imported("from peaks_and_gates import cartoon") >= {"cartoon", "geometry", "neighbours", "store"}
    assert "finetune" not in freshness.imported("from peaks_and_gates import cartoon")
    assert freshness.imported("import peaks_and_gates as pg") >= {"__init__", "peaks", "extraction"}
    assert freshness.imported("from peaks_and_gates.glosses import is_unwanted") == {"glosses"}
    assert freshness.imported("import numpy, pandas as pd") == set()


def edited(path, old, new, look):
    """What `look` sees while a file has one text replaced by another."""
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new))
    try:
        return look()
    finally:
        path.write_text(before)


def test_a_change_that_makes_numbers_is_stale_and_one_that_only_shows_is_not(smoke, checkout, monkeypatch):
    path = checkout / "notebooks" / "landscape" / "answers.ipynb"
    look = lambda: {job.name: (job.state, job.drawn) for job in book.plan("smoke")}
    same = look()
    assert set(same.values()) == {("done", True)}
    called = "table = geometry(study, pretrained, fine_tuned)"
    assert edited(path, called, f"{called} ", look)["answers"] == ("stale", False)
    assert edited(path, "Do any peaks", "Do some peaks", look) == same | {"answers": ("done", False)}
    lock = checkout / "requirements.lock"
    assert edited(lock, "torch==", "torch ==", look)["accuracy"] == ("stale", True)
    assert edited(lock, "jupyterlab==", "jupyterlab ==", look) == same  # it makes no number
    for module, expected in {"landscape.density_peaks": ("stale", False), "figures": ("done", False)}.items():
        version = lambda *names, module=module: "changed" if module in names else "as it was"
        monkeypatch.setattr(store, "code_version", lambda *names: "as it was")
        before = {job.key for job in book.plan("smoke")}
        monkeypatch.setattr(store, "code_version", version)
        assert (before == {job.key for job in book.plan("smoke")}) == (expected[0] == "done")
        assert {job.drawn for job in book.plan("smoke")} == {False}


def test_figures_are_drawn_in_both_themes_with_alternative_text(smoke):
    for job in smoke:
        pictures = re.findall(r'<img class="pg-(\w+)" alt="([^"]+)"', all_html(job.output))
        assert pictures
        assert [theme for theme, _ in pictures].count("light") == [theme for theme, _ in pictures].count("dark")
        assert all(len(alt) > 40 for _, alt in pictures)


def all_html(path):
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.data.get("text/html", "") for output in outputs if "data" in output)


def test_the_record_alone_redraws_the_same_figures(smoke, monkeypatch, tmp_path):
    job = smoke[2]
    drawn = all_html(job.output)
    job.output.unlink()
    assert not job.drawn
    monkeypatch.setenv("PG_CACHE", str(tmp_path))  # nothing stored: whatever is computed would have to be computed
    book.execute(job, redraw=True)
    book.stamp(job)
    assert job.drawn
    assert not list(tmp_path.rglob("*.safetensors"))
    assert all_html(job.output) == drawn


def test_a_page_without_a_model_is_left_out_until_it_is_given_one(capsys):
    jobs = book.plan("paper", ["knockout_table"], {"native": [], "adapted": []})
    assert book.run(jobs) == []
    assert "no vision-language model" in capsys.readouterr().out
    for name, role in {"chameleon-7b": "native", "llava-1.5-7b": "adapted"}.items():
        (job,) = book.plan("paper", ["knockout_table"], book.model_parameters(name))
        assert {role: job.parameters[role] for role in ("native", "adapted", "controls")} == (
            {"native": [], "adapted": [], "controls": []} | {role: [name]}
        )
        assert job.runnable
    assert book.model_parameters("llama-3-8b") == {"model": "llama-3-8b"}


def test_a_changed_parameter_runs_beside_the_record(checkout):
    (job,) = book.plan("laptop", ["subjects"], {"n_orders": 1})
    assert "results" not in job.record.relative_to(checkout).parts[:1]
    assert job.parameters["n_orders"] == 1
    assert job.key != book.plan("laptop", ["subjects"])[0].key


def test_names_that_do_not_exist():
    with pytest.raises(UnknownName, match="Did you mean 'subjects'"):
        book.plan("smoke", ["subject"])
    with pytest.raises(BadParameter, match="recipe"):
        book.check_parameters(book.plan("smoke", ["accuracy"], {"recipe": "released"}), {"recipe": "released"})


def test_a_failing_notebook_is_one_message_and_the_others_are_kept(checkout):
    failures = book.run(book.plan("smoke", ["accuracy", "subjects"], {"model": "smollm2-135m-instrct"}))
    assert len(failures) == 2
    assert "Did you mean 'smollm2-135m-instruct'" in failures[0]
    assert "Traceback" not in "".join(failures)


@pytest.fixture(scope="module")
def built(smoke, checkout):
    """The site of the smoke record."""
    return site.build("smoke")


class Links(HTMLParser):
    """Targets and anchors of one page."""

    def __init__(self, path):
        super().__init__()
        self.path, self.targets, self.anchors, self.images = path, [], set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if "id" in found:
            self.anchors.add(found["id"])
        if tag == "a" and "href" in found:
            self.targets.append(found["href"])
        if tag in ("script", "img", "iframe", "source") and found.get("src"):
            self.targets.append(found["src"])
        if tag == "link" and found.get("href") and found.get("rel") not in ("canonical",):
            self.targets.append(found["href"])
        if tag == "img":
            self.images.append(found)


def test_no_internal_link_is_broken(built):
    pages = {path.resolve(): Links(path) for path in built.rglob("*.html") if "_static" not in path.parts}
    assert len(pages) > 10
    broken = []
    for page in pages.values():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or not (parts.path or parts.fragment) or target.startswith("#!"):
                continue
            path = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path.resolve()
            anchors = pages[path].anchors if path in pages else None
            if not path.exists() or (parts.fragment and anchors is not None and parts.fragment not in anchors):
                broken.append(f"{page.path.relative_to(built)}: {target}")
    assert broken == []


def test_no_page_asks_the_network_for_anything(built):
    asked = []
    for path in built.rglob("*.html"):
        text = path.read_text()
        for tag in re.findall(r"<(?:script|img|iframe|source|link)\b[^>]*>", text):
            if re.search(r'\b(?:src|href)="(?:https?:)?//', tag) and 'rel="canonical"' not in tag:
                asked.append(f"{path.relative_to(built)}: {tag[:120]}")
    for path in built.rglob("*.css"):
        asked += [f"{path.name}: {url}" for url in re.findall(r"url\(['\"]?(?:https?:)?//[^)]*", path.read_text())]
    assert asked == []


def test_every_image_says_what_it_shows(built):
    for path in built.rglob("*.html"):
        for image in Links(path).images:
            assert image.get("alt", "").strip(), (path, image.get("src", "")[:80])


def test_pages_carry_their_run_and_the_scorecard_its_verdicts(built):
    for name, path in book.notebooks().items():
        text = (built / "notebooks" / path.parent.name / f"{name}.html").read_text()
        assert f"pg run --preset smoke --only {name}" in text
        assert "question/s" not in text, "console output belongs in the terminal"
    scorecard = json.loads((built / "scorecard.json").read_text())
    assert [row["id"] for row in scorecard] == [claim["id"] for claim in claims.load()]
    page = (built / "book" / "scorecard.html").read_text()
    for row in scorecard:
        assert f'<th scope="row">{row["id"]}</th>' in page
        assert row["verdict"] in claims.VERDICTS


@pytest.mark.parametrize("damage", ["flip", "no description"])
def test_a_damaged_record_is_not_shown(smoke, damage):
    table = smoke[0].record / "accuracy.parquet"
    about = table.with_suffix(".json")
    data, description = table.read_bytes(), about.read_text()
    site.check_record(table.parent)
    if damage == "flip":
        table.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    else:
        about.unlink()
    told = r"accuracy\.(parquet is damaged|json is not in the record)"
    try:
        with pytest.raises((HashMismatch, MissingFile), match=told):
            site.build("smoke")
    finally:
        table.write_bytes(data)
        about.write_text(description)


def run_cli(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return stop.value.code, capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--preset", "labtop"], "Did you mean 'laptop'"),
        (["run", "--only", "subject"], "Did you mean 'subjects'"),
        (["run", "-p", "n_order=1"], "Did you mean 'n_orders'"),
        (["run", "-p", "n_orders=many"], "n_orders"),
        (["run", "-p", "n_orders"], "key=value"),
        (["status", "--preset", "huge"], "Known: colab"),
    ],
)
def test_the_command_line_answers_bad_input_with_one_message(arguments, message, capsys):
    code, output = run_cli(arguments, capsys)
    assert code != 0
    assert message in output.err
    assert "Traceback" not in output.err


def test_kernels_that_run_at_once_do_not_share_their_sockets():
    with book.kernel() as one, book.kernel() as other:
        assert one.KernelManager.transport == "ipc"
        assert one.KernelManager.ip != other.KernelManager.ip
        assert len(f"{one.KernelManager.ip}-65535") < 100  # the longest path that a socket may have is 107


def test_a_page_says_the_precision_that_its_models_run_in(monkeypatch):
    monkeypatch.setattr(models, "best_dtype", lambda device: torch.bfloat16)
    minis = {"native": ["mini-native-0"], "adapted": ["mini-adapted-0"], "controls": []}
    assert book.precision(minis | {"dtype": None}) == "float32"  # see vlms.load
    assert book.precision(minis | {"dtype": "bfloat16"}) == "bfloat16"
    assert book.precision({"native": ["tiny-chameleon"]}) == "bfloat16"
    assert book.precision({"model": "smollm2-135m-instruct"}) == "bfloat16"


def test_the_run_box_counts_what_is_behind_its_own_page(smoke):
    boxes = {job.name: site.run_box(job) for job in smoke}
    pictures = {
        job.name: job.parameters["n_classes"] * job.parameters["n_per_class"]
        for job in smoke
        if "n_per_class" in job.parameters
    }
    assert f"up to {pictures['class_overlap']}" in boxes["class_overlap"]
    assert "mini-gated" in boxes["minis"]


def test_a_table_without_rows_counts_nothing(tmp_path):
    path = tmp_path / "none.parquet"
    pd.DataFrame({"n": [], "value": []}).to_parquet(path)
    store.write_json(path.with_suffix(".json"), {"sha256": store.file_sha256(path)})
    assert site.recorded_n(SimpleNamespace(manifest={"tables": ["none"]}, record=tmp_path)) == 0


def test_status_and_doctor(smoke, capsys):
    code, output = run_cli(["status", "--preset", "smoke"], capsys)
    assert code == 0
    assert output.out.count("done") == len(book.notebooks())
    code, output = run_cli(["doctor"], capsys)
    assert "GiB memory" in output.out
    assert "models run on" in output.out


def test_a_page_without_a_marker_is_an_error(tmp_path):
    (tmp_path / "page.md").write_text("# Page\n")
    with pytest.raises(BookError, match="no line"):
        site.fill(tmp_path / "page.md", "<!-- x -->", "")
