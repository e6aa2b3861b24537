"""The site of the record, built without a model: no dead link, no request, alternative text, every run and verdict."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

from conftest import ROOT
from peaks_and_gates import figures, record
from peaks_and_gates.book import claims, runner, site
from peaks_and_gates.errors import HashMismatch

LINKING = {"a": "href", "link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """Targets, anchors and images of one page."""

    def __init__(self, path):
        super().__init__()
        self.targets, self.anchors, self.images = [], set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors.add(values.get("id"))
        target = values.get(LINKING.get(tag))
        if target and values.get("rel") != "canonical" and not target.startswith("#!"):
            self.targets.append((tag, target))
        if tag == "img":
            self.images.append(values)


def test_no_link_is_dead_nothing_is_asked_of_the_network_and_every_picture_has_its_words(built):
    paths = [path.resolve() for path in built.rglob("*.html") if "_static" not in path.parts]
    pages = {path: Page(path) for path in paths}
    assert len(pages) > 40
    broken, requests = [], []
    for page, content in pages.items():
        for tag, target in content.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                requests += [(page, target)] if tag != "a" and parts.scheme != "data" else []
            elif parts.path or parts.fragment:
                path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
                anchors = pages[path].anchors if path in pages else {parts.fragment}
                if not path.exists() or (parts.fragment and parts.fragment not in anchors):
                    broken.append((page, target))
        for image in content.images:
            assert len(image.get("alt", "").strip()) > 3, (page, image.get("src", "")[:80])
    for path in built.rglob("*.css"):
        requests += re.findall(r"url\(['\"]?(?:https?:)?//[^)]*", path.read_text())
    assert (broken, requests) == ([], [])


def test_the_committed_record_is_that_of_the_code(built):
    """Every page shows its run and is neither stale nor without results; the scorecard has every verdict."""
    for name, path in runner.notebooks().items():
        text = (built / "notebooks" / path.parent.name / f"{name}.html").read_text()
        assert "Stale" not in text and "Not run at this size" not in text, f"{name}: run `make book` and commit"
        assert f"pg run --preset laptop --only {name}" in text
    scorecard = json.loads((built / "scorecard.json").read_text())
    assert [row["id"] for row in scorecard] == [claim["id"] for claim in claims.load()]
    page, numbers = ((built / "book" / name).read_text() for name in ("scorecard.html", "reproduce.html"))
    assert len(re.findall(r'"In the record">[\d.-]+ \(N = [\d,]+\)</td>', numbers)) == 10  # each is one row of a table
    assert all(f'<th scope="row">{row["id"]}</th>' in page for row in scorecard)
    assert re.search(r"[1-9][\d,]* questions, last run", (built / "book" / "index.html").read_text())


def test_prose_has_its_numbers_from_the_record_and_a_name_without_one_stops_the_build(built, tmp_path):
    table = record.read(ROOT / "results" / "laptop" / "opening_the_gate.parquet")["opening"]
    lost = figures.cite(table, group="unmasked", condition="end → text", metric="vqa_lost")
    page = (built / "notebooks" / "gate" / "opening_the_gate.html").read_text()
    assert f'<span class="pasted-text">{lost}</span>' in page and "papermill.record" not in page
    (tmp_path / "conf.py").write_text('extensions = ["myst_nb"]')
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A\n\n{glue:text}`nowhere`")]), tmp_path / "index.ipynb")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", tmp_path, tmp_path / "site"]
    build = subprocess.run(command, capture_output=True, text=True, check=False)
    assert build.returncode and "No key 'nowhere' found in glue data" in build.stderr


def test_the_site_is_light_and_describes_itself(built):
    assert sum(path.stat().st_size for path in built.rglob("*") if path.is_file()) < 60e6
    for path in (built / "book").rglob("*.html"):
        text = path.read_text()
        assert len(text.encode()) < 3e6 and '<meta name="description"' in text and "Version " in text, path
    front, api = ((built / "book" / name).read_text() for name in ("index.html", "api/gate.html"))
    assert "tex-svg-full" not in front and "base64" not in front and "knockout" in api and "Raises" in api


def test_a_damaged_record_is_not_shown(checkout):
    path = runner.plan("laptop")[1].record
    path.write_bytes(path.read_bytes()[:-1])  # in a copy that no later test reads
    with pytest.raises(HashMismatch, match=r"accuracy\.parquet is damaged"):
        site.build("laptop")
