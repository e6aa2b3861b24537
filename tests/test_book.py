"""The whole way at the smallest size: every notebook runs, the record redraws the book, the site has no dead link."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest

from peaks_and_gates import site
from peaks_and_gates.book import claims
from peaks_and_gates.book import runner as book
from peaks_and_gates.errors import BookError, HashMismatch

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


def test_the_run_box_counts_what_is_behind_its_own_page(smoke):
    boxes = {job.name: site.run_box(job) for job in smoke}
    pictures = {
        job.name: job.parameters["n_classes"] * job.parameters["n_per_class"]
        for job in smoke
        if "n_per_class" in job.parameters
    }
    assert f"up to {pictures['class_overlap']}" in boxes["class_overlap"]
    assert "mini-gated" in boxes["minis"]


def test_the_record_alone_redraws_the_same_figures(smoke, monkeypatch, tmp_path):
    job = smoke[2]
    figures = all_html(job.output)
    monkeypatch.setenv("PG_CACHE", str(tmp_path))  # nothing stored: whatever is computed would have to be computed
    book.execute(job)
    book.stamp(job)
    assert job.drawn
    assert not list(tmp_path.rglob("*.safetensors"))
    assert all_html(job.output) == figures


def test_a_damaged_record_is_not_shown(smoke):
    path = smoke[1].record
    data = path.read_bytes()
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    try:
        with pytest.raises(HashMismatch, match=r"accuracy\.parquet is damaged"):
            site.build("smoke")
    finally:
        path.write_bytes(data)


def test_a_page_without_a_marker_is_an_error(tmp_path):
    (tmp_path / "page.md").write_text("# Page\n")
    with pytest.raises(BookError, match="no line"):
        site.fill(tmp_path / "page.md", "<!-- x -->", "")
