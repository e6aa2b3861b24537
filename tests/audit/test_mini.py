"""A model in the page: in a browser its probabilities are Python's, a broken mask shows, and a reader can use it."""

import runpy
import shutil

import numpy as np
import pandas as pd
import pytest
from test_browser import PHONE, THEMES, WCAG, address, chromium  # noqa: F401 - fixtures, of which one serves `built`

from conftest import ROOT

ANSWERED = pd.read_parquet(ROOT / "data/page-answers.parquet").groupby(["model", "task", "knockout"])
PAGE = """<!doctype html><html lang=en><title>A mini</title><meta charset=utf-8><link rel=stylesheet href=custom.css>
<meta name=viewport content=width=device-width><div class=pg-mini></div><script src="mini.js"></script>"""
# Of every scene: the answer, and the probability of each word to be its first.  66 is the end-of-image token's place.
ANSWERS = """async ([name, task, knockout]) => (await pgMini.ready(name), pgMini.scenes.map(({question}, scene) => {
  const [text, hidden] = [{classes: 'what is the largest thing?'}[task] ?? question, {none: []}[knockout] ?? [66]]
  const words = pgMini.answer(name, {scene, text, hidden})
  return [words.slice(0, -1).map(({word}) => word).join(' '), [...words[0].probabilities]]
}))"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A page with nothing but the mini, and the scripts that the site writes."""
    without = shutil.ignore_patterns("plotly", "mathjax")
    folder = shutil.copytree(ROOT / "book/_static", tmp_path_factory.mktemp("site") / "html", ignore=without)
    runpy.run_path(ROOT / "book/_ext/page_minis.py")["write_minis"](folder / "mini")
    (folder / "index.html").write_text(PAGE)
    return folder


@pytest.fixture(scope="module", params=["file", "http"])
def tab(request, built, address, chromium):  # noqa: F811
    tab, folder = chromium.new_page(viewport=PHONE), {"file": built.as_uri(), "http": address}[request.param]
    tab.goto(f"{folder}/index.html")
    return tab


def difference(tab, model, *condition):
    """The largest between the probabilities of browser and Python, and the answers of both."""
    rows = ANSWERED.get_group((f"{model}-0", *condition)).sort_values("i")
    texts, words = zip(*tab.evaluate(ANSWERS, [model, *condition]), strict=True)
    return np.abs(np.array(words) - np.stack(rows["probabilities"])).max(), texts, tuple(rows["answer"])


@pytest.mark.parametrize("model", ["native", "gated", "reopened", "penalised"])
def test_the_browser_computes_what_python_computed(tab, model):
    for condition in sorted((key[1:] for key in ANSWERED.groups if key[0].startswith(model)), reverse=True):
        largest, here, there = difference(tab, model, *condition)
        assert largest < 1e-4 and here == there
    # Last come the classes, without the end-of-image token.
    right = np.mean(tab.evaluate("pgMini.scenes.map(({label}) => label)") == np.array(here))
    assert right < 0.1 if model in ("gated", "penalised") else right > 0.9


def test_a_reader_restores_the_answer_by_keyboard(tab):
    from axe_playwright_python.sync_playwright import Axe

    status = tab.get_by_role("status")
    tab.get_by_role("button", name="Run the gated mini").press("Enter")
    status.filter(has_text="answers “pink star” (probability .85). Wrong: it is “green diamond”").wait_for()
    tab.keyboard.press("Enter")  # the button that restores the answer has the focus
    status.filter(has_text="answers “green diamond” (probability 1.00). That is right. Nothing is hidden.").wait_for()
    tab.get_by_label("Strength").press("End")
    tab.get_by_label("hide the image token in row 1, column 1").press("ArrowDown")
    tab.keyboard.press("Space")
    status.filter(has_text="answers “red star”").filter(has_text="1 image token").wait_for()
    for theme in THEMES:
        tab.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        assert Axe().run(tab, options={"runOnly": WCAG, "preload": False}).response["violations"] == []
    assert tab.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("right", ["hidden.has(key)", 'model.wiring === "gated"', "key <= query"])
def test_a_broken_mask_is_seen(chromium, built, right):  # noqa: F811
    script = (built / "mini.js").read_text()
    (built / "broken.js").write_text(script.replace(right, str(right == "key <= query").lower()))
    (built / "broken.html").write_text(PAGE.replace("mini.js", "broken.js"))
    (tab := chromium.new_page()).goto(f"{built.as_uri()}/broken.html")
    assert script.count(right) == 1 and difference(tab, "gated", "classes", "end → text")[0] > 1e-2
