"""The site of the record, built without a model: no dead link, no request, alternative text, every run and verdict."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from peaks_and_gates.book import claims, runner, site
from peaks_and_gates.errors import HashMismatch

LINKING = {"a": "href", "link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}


@pytest.fixture(scope="module")
def built(checkout):
    """The site as `make site` builds it from what is committed; or PG_SITE, a site that was built."""
    if os.environ.get("PG_SITE"):
        return Path(os.environ["PG_SITE"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PG_CACHE", str(checkout / "no-cache"))
        target = site.build("laptop")
    assert not list((checkout / "no-cache").rglob("*.safetensors")), "a model was needed to build the site"
    return target


class Page(HTMLParser):
    """Targets, anchors and images of one page."""

    def __init__(self, path):
        super().__init__()
        self.path, self.targets, self.anchors, self.images = path, [], set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors.add(values.get("id"))
        if values.get(LINKING.get(tag)) and values.get("rel") != "canonical":
            self.targets.append(values[LINKING[tag]])
        if tag == "img":
            self.images.append(values)


@pytest.fixture(scope="module")
def pages(built):
    """Every page of the site, by its path."""
    paths = [path.resolve() for path in built.rglob("*.html") if "_static" not in path.parts]
    return {path: Page(path) for path in paths}


def test_no_internal_link_is_broken(built, pages):
    assert len(pages) > 40
    broken = []
    for page in pages.values():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or not (parts.path or parts.fragment) or target.startswith("#!"):
                continue
            path = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            anchors = pages[path].anchors if path in pages else None
            if not path.exists() or (parts.fragment and anchors is not None and parts.fragment not in anchors):
                broken.append(f"{page.path.relative_to(built.resolve())}: {target}")
    assert broken == []


def test_no_page_asks_the_network_for_anything(built):
    outside = r"<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^>]*>"
    requests = []
    for path in built.rglob("*.html"):
        requests += [tag[:120] for tag in re.findall(outside, path.read_text()) if 'rel="canonical"' not in tag]
    for path in built.rglob("*.css"):
        requests += re.findall(r"url\(['\"]?(?:https?:)?//[^)]*", path.read_text())
    assert requests == []


def test_every_image_says_what_it_shows(pages):
    for page in pages.values():
        for image in page.images:
            assert image.get("alt", "").strip(), (page.path, image.get("src", "")[:80])


def test_the_committed_record_is_that_of_the_code(built):
    """Every page shows its run and is neither stale nor without results; the scorecard has every verdict."""
    for name, path in runner.notebooks().items():
        text = (built / "notebooks" / path.parent.name / f"{name}.html").read_text()
        assert "Stale" not in text and "Not run at this size" not in text, f"{name}: run `make book` and commit"
        assert f"pg run --preset laptop --only {name}" in text
    scorecard = json.loads((built / "scorecard.json").read_text())
    assert [row["id"] for row in scorecard] == [claim["id"] for claim in claims.load()]
    page = (built / "book" / "scorecard.html").read_text()
    for row in scorecard:
        assert f'<th scope="row">{row["id"]}</th>' in page and row["verdict"] in claims.VERDICTS
    assert re.search(r"[1-9][\d,]* questions, last run", (built / "book" / "index.html").read_text())


def test_words_of_the_glossary_are_linked_and_docstrings_are_read(built):
    text = (built / "book" / "methods" / "density-peaks.html").read_text()
    assert re.search(r'<a class="reference internal" href="\.\./glossary\.html#term-intrinsic-dimension"', text)
    reference = (built / "book" / "api" / "gate.html").read_text()
    assert "knockout" in reference and "Raises" in reference


def test_the_site_is_light(built):
    files = [path for path in built.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60e6
    front = (built / "book" / "index.html").read_text()
    assert len(front.encode()) < 1.5e6 and "tex-svg-full" not in front and "base64" not in front


def test_a_damaged_record_is_not_shown(checkout):
    path = runner.plan("laptop")[1].record
    data = path.read_bytes()
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    try:
        with pytest.raises(HashMismatch, match=r"accuracy\.parquet is damaged"):
            site.build("laptop")
    finally:
        path.write_bytes(data)
