"""What the site's builder is given: settings, words that are explained."""

import base64
import re

import pytest
import yaml

from conftest import ROOT
from peaks_and_gates import faults, site, store, trim
from peaks_and_gates.errors import HashMismatch

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())


def test_nothing_leads_outside_unless_a_repository_is_named():
    made = site.settings(CONFIG, "2026-01-02")
    assert made["repository"]["url"] == "" and made["launch_buttons"] == {"thebe": False}
    assert not any(made["html"][f"use_{what}_button"] for what in ("edit_page", "issues", "repository"))
    assert "results of 2026-01-02" in made["html"]["extra_footer"] and re.search(
        r"\d\.\d", made["html"]["extra_footer"]
    )
    assert CONFIG["launch_buttons"]["colab_url"]  # the book's own settings are as they were


def test_one_setting_brings_the_buttons():
    named = CONFIG | {"repository": {"url": "https://github.com/owner/peaks-and-gates", "branch": "main"}}
    made = site.settings(named, "")
    assert {"colab_url", "binderhub_url"} <= set(made["launch_buttons"]) and not made["launch_buttons"]["thebe"]
    assert all(made["html"][f"use_{what}_button"] for what in ("edit_page", "issues", "repository"))


def test_words_are_taken_from_the_glossary():
    words = site.terms((ROOT / "book" / "glossary.md").read_text())
    by_name = {word["name"]: word for word in words}
    assert by_name["intrinsic dimension"]["anchor"] == "term-intrinsic-dimension" and len(words) > 20
    lengths = [len(word["name"]) for word in words]
    assert lengths == sorted(lengths, reverse=True)
    assert not any(re.search(r"[{}`\[\]]|See ", word["says"]) for word in words)
    assert not by_name.keys() & site.ORDINARY


HEAD = """<head><link href="../_static/styles/theme.css?digest=1" rel="stylesheet" />
<link rel="stylesheet" type="text/css" href="../_static/custom.css?v=1" />
<script src="_static/documentation_options.js?v=1"></script>
<script src="_static/doctools.js"></script><script defer="defer" src="_static/glossary.js"></script>
<script defer src="_static/scripts/fontawesome.js?digest=1"></script>
<script>window.MathJax = {"a": {}}</script>
<script defer="defer" src="_static/mathjax/tex-svg-full.js?v=1"></script>
<script src="_static/searchtools.js"></script><script src="./searchindex.js"></script></head>"""


@pytest.fixture
def static(tmp_path):
    """A site's static files, in small."""
    folder = tmp_path / "_static"
    (folder / "styles").mkdir(parents=True)
    (folder / "styles" / "theme.css").write_text('@charset "UTF-8";\n@import "../basic.css";\na{b:url(../f.woff2)}')
    (folder / "basic.css").write_text("i{background:url(file.png)}")
    (folder / "custom.css").write_text("p{background:url(data:x)}")
    return folder


def test_all_style_sheets_come_in_one_file_in_their_order(static):
    text = trim.lighter(HEAD, static, False)
    (link,) = re.findall(r'<link rel="stylesheet" href="\.\./_static/styles/(\w+\.css)">', text)
    assert text.count("stylesheet") == 1
    said = (static / "styles" / link).read_text()
    assert said.split() == ["i{background:url(../file.png)}", "a{b:url(../f.woff2)}", "p{background:url(data:x)}"]
    assert trim.lighter(text, static, False) == text  # a page that was not built anew
    assert trim.lighter("<head></head>", static, False) == "<head></head>"


def test_a_page_loads_what_it_uses_and_nothing_holds_it_up(static):
    plain = trim.lighter(HEAD, static, False)
    formulas = trim.lighter(HEAD + '<div class="math notranslate">', static, False)
    assert "MathJax" not in plain and "tex-svg-full" not in plain and "search" not in plain
    assert "MathJax" in formulas and formulas.count("tex-svg-full.js") == 1
    assert "fontawesome" not in formulas and '<script src="_static/documentation_options.js' in plain
    assert '<script defer src="_static/doctools.js">' in plain
    assert plain.count('<script defer="defer" src="_static/glossary.js">') == 1  # as it was
    listed = '<div role="list" class="citation-list"><div class="citation" role="doc-biblioentry">x</div></div>'
    assert trim.lighter(listed, static, False) == '<div class="citation-list"><div class="citation">x</div></div>'
    searching = trim.lighter(HEAD, static, True)
    assert '<script defer src="_static/searchtools.js">' in searching and "searchindex.js" in searching


def test_pictures_come_from_files_when_they_are_looked_at(static):
    svg = b'<svg xmlns="x" width="75pt" height="150.0pt" viewBox="0 0 75 150"></svg>'
    image = f'<img class="pg-dark" alt="two" src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}">'
    text = trim.lighter(f'<html data-content_root="../../">{image}{image}</html>', static, False)
    (file,) = (static / "pictures").iterdir()
    assert file.read_bytes() == svg
    shown = f'alt="two" src="../../_static/pictures/{file.name}" loading="lazy" width="100" height="200">'
    assert text.count(shown) == 2 and trim.lighter(text, static, False) == text


def test_what_an_earlier_build_wrote_is_kept_while_a_page_asks_for_it(tmp_path, static):
    def built(name, number):
        encoded = base64.b64encode(f'<svg width="1pt" height="{number}pt"></svg>'.encode()).decode()
        page = HEAD.replace("../_static", "_static") + f'<img src="data:image/svg+xml;base64,{encoded}">'
        (tmp_path / name).write_text(f'<html data-content_root="./">{page}</html>')

    def stored():
        return {file.name for folder in ("pictures", "styles") for file in (static / folder).iterdir()}

    built("left.html", 1)
    built("anew.html", 2)
    trim.trim(tmp_path)
    before = stored()
    built("anew.html", 3)
    (static / "custom.css").write_text("another")
    trim.trim(tmp_path)
    assert len(before) == 2 + 2 and "theme.css" in before
    assert len(stored() - before) == 2 and len(before - stored()) == 1  # its picture and sheet; its former picture
    asked = "".join(page.read_text() for page in tmp_path.glob("*.html"))
    assert all(name in asked for name in stored() - {"theme.css"})
    built("left.html", 3)
    trim.trim(tmp_path)
    assert len(stored()) == 1 + 2  # one picture and one sheet for both pages


@pytest.mark.parametrize("text", ["", "# Glossary\n\nNothing yet.\n", "```{glossary}\n```\n"])
def test_a_glossary_without_words_has_none(text):
    assert site.terms(text) == []


RUN = {
    "created": "2026-11-27",
    "environment": {"cores": 2, "python": "3.11.7", "packages": {"torch": "2.13.0+cpu", "transformers": "5.23.0"}},
    **{"passed": 1700, "failed": 0, "skipped": 10},
}


def test_what_the_fault_tests_measured_is_told(tmp_path):
    assert "make test-faults" in faults.tried_html(tmp_path / "figures.json")
    figures = [
        {"kind": "kills", "tried": "extraction", "cases": 1200, "outcome": "<b>equal</b>"},
        {"kind": "kills", "tried": "pages", "cases": 34, "outcome": "equal"},
    ]
    store.write_json(tmp_path / "figures.json", RUN | {"figures": figures})
    shown = faults.tried_html(tmp_path / "figures.json")
    assert '<th scope="row">kills</th><td>1,234</td><td>2</td>' in shown
    assert '<th scope="row">soak</th><td>0</td><td>0</td>' in shown  # what was not tried is not left out
    assert "1,700 passed, 0 failed, 10 skipped" in shown and "&lt;b&gt;equal" in shown and "<b>" not in shown
    text = (tmp_path / "figures.json").read_text()
    (tmp_path / "figures.json").write_text(text.replace("1200", "9999"))
    with pytest.raises(HashMismatch):
        faults.tried_html(tmp_path / "figures.json")


def test_the_versions_of_all_runs_stand_side_by_side(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("# pins\nPyYAML==6.0.3\ntorch==2.13.0\n")
    assert "make test-oldest" in faults.versions_html(tmp_path, lock)
    said = {"kind": "versions", "tried": "transformers 5.24.0 = 5.23.0 (llama)", "cases": 1, "outcome": "1e-7"}
    for name, version in (("oldest", "2.12.0"), ("newest", "2.13.1+cpu")):
        requirements = {"pyyaml": "6.0.1", "torch": version}
        store.write_json(tmp_path / f"{name}.json", RUN | {"figures": [said], "requirements": requirements})
    shown = faults.versions_html(tmp_path, lock)
    assert '<th scope="row">torch</th><td>2.12.0</td><td>2.13.0</td><td>2.13.1</td>' in shown
    assert '<th scope="row">pyyaml</th><td>6.0.1</td><td>6.0.3</td><td>6.0.1</td>' in shown
    assert "At the oldest versions. Run on 2026-11-27" in shown and "5.24.0 = 5.23.0" in shown
    assert "1e\N{NON-BREAKING HYPHEN}7" in shown  # not broken at its hyphen
