"""A model in the page: in a real browser its probabilities are Python's, a broken mask shows, and a reader can use it."""

import functools
import http.server
import importlib.util
import shutil
import threading

import numpy as np
import pandas as pd
import pytest
from test_browser import PHONE, THEMES, WCAG, Quiet, chromium  # noqa: F401

from conftest import ROOT

HEAD = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
LINKS = "<title>A mini</title><link rel='stylesheet' href='custom.css'><main class='bd-article'><h1>A mini</h1>"
PAGE = f"{HEAD}{LINKS}<div class='pg-mini'></div></main><script src='mini.js'></script></html>"
END = [66]  # the end-of-image token's place
# The greedy answer and the probability of each word to be its first, for the first n scenes.
ANSWERS = """async ([name, question, hidden, n]) => {
  await pgMini.ready(name)
  return pgMini.scenes.slice(0, n).map((about, scene) => {
    const words = pgMini.answer(name, {scene, text: question ?? about.question, hidden})
    const text = words.map(({word}) => word).filter(word => word !== '</s>').join(' ')
    return [text, [...words[0].probabilities]]
  })
}"""
FAULTS = {"hidden.has(key)": "false", 'model.wiring === "gated"': "false", "key <= query": "true"}  # in the mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page with nothing but the mini, and the scripts that the site writes."""
    spec = importlib.util.spec_from_file_location("peaks_book", ROOT / "book/_ext/peaks_book.py")
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    folder = tmp_path_factory.mktemp("mini")
    extension.write_minis(folder / "mini")
    for name in ("mini.js", "mini.css", "custom.css"):
        shutil.copy2(ROOT / "book/_static" / name, folder)
    (folder / "index.html").write_text(PAGE)
    return folder


@pytest.fixture(params=["file", "http"])
def address(request, folder):
    if request.param == "file":
        return (folder / "index.html").as_uri()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    request.addfinalizer(server.shutdown)
    return f"http://127.0.0.1:{server.server_port}/index.html"


def difference(page, model, knockout, task, n=50):
    """Between browser and Python, of all probabilities, the largest; and the browser's answers, of which none differs."""
    rows = pd.read_parquet(ROOT / "data/page-answers.parquet").query(f"model == '{model}-0' and i < {n}")
    rows = rows[(rows["knockout"] == knockout) & (rows["task"] == task)].sort_values("i")
    question = "what is the largest thing?" if task == "classes" else None
    texts, ours = zip(*page.evaluate(ANSWERS, [model, question, END * (knockout != "none"), n]), strict=True)
    return np.abs(np.array(ours) - np.stack(rows["probabilities"])).max(), rows.assign(here=texts)


@pytest.mark.parametrize("model", ["native", "gated", "reopened", "penalised"])
def test_the_browser_computes_what_python_computed(chromium, address, model):  # noqa: F811
    page = chromium.new_page()
    page.goto(address)
    labels = pd.read_parquet(ROOT / "data/scenes.parquet", filters=[("split", "==", "test"), ("seed", "==", 0)])["label"]
    for knockout in ("none", "end → text"):
        for task in ("questions", "classes"):
            largest, rows = difference(page, model, knockout, task)
            assert largest < 1e-4 and rows["here"].tolist() == rows["answer"].tolist()
        right = np.mean(rows["here"].to_numpy() == labels[:50].to_numpy())
        gate = model in ("gated", "penalised") and knockout != "none"
        assert right < 0.1 if gate else right > 0.9
    page.close()


@pytest.mark.parametrize("right", FAULTS)
def test_a_broken_mask_is_seen(chromium, folder, right):  # noqa: F811
    script = (folder / "mini.js").read_text()
    assert script.count(right) == 1
    (folder / "broken.js").write_text(script.replace(right, FAULTS[right]))
    (folder / "broken.html").write_text(PAGE.replace("mini.js", "broken.js"))
    page = chromium.new_page()
    page.goto((folder / "broken.html").as_uri())
    assert difference(page, "gated", "end → text", "classes", 5)[0] > 1e-2
    page.close()


@pytest.mark.parametrize("theme", THEMES)
def test_a_reader_restores_the_answer_by_keyboard(chromium, address, folder, theme):  # noqa: F811
    from axe_playwright_python.sync_playwright import Axe

    page = chromium.new_page(viewport=PHONE, reduced_motion="reduce")
    page.goto(address)
    page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    page.get_by_role("button", name="Run the gated mini").press("Enter")
    status = page.get_by_role("status").filter(has_text="The gated mini answers “pink star”")
    assert "Wrong: it is “green diamond”" in status.inner_text()
    page.keyboard.press("Enter")  # the button that restores it has the focus
    status = page.get_by_role("status").filter(has_text="answers “green diamond”")
    assert "That is right. Nothing is hidden." in status.inner_text()
    page.get_by_label("Strength").press("End")
    page.get_by_role("status").filter(has_text="answers “red star”").wait_for()
    page.get_by_label("hide the image token in row 1, column 1").press("ArrowDown")
    page.keyboard.press("Space")
    assert "1 image token" in page.get_by_role("status").inner_text()
    assert page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"]
    violations = Axe().run(page, options={"runOnly": WCAG, "preload": False}).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in violations] == []
    assert sum(path.stat().st_size for path in folder.glob("mini/*.js")) < 20e6
    page.close()
