"""The site of the record, built without a model, in a real browser: Debian's Chromium, driven by playwright.

Every page: no error in the console, no request that leaves the machine, no violation that axe-core finds in light and
in dark, nothing wider than a phone. And the things that a reader works with: search, scorecard, slider, solutions.
"""

import contextlib
import functools
import http.server
import io
import os
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--no-first-run", "--disable-quic", "--disable-dev-shm-usage"]
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
PHONE, WIDE = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
THEMES = ("light", "dark")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address(built):
    """Where the site is served: a port of this machine."""
    handler = functools.partial(Quiet, directory=str(built))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.skip("no Chromium: install it, for example with apt-get")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


class Visit:
    """A page in a tab, with what it wrote in the console and requested of others."""

    def __init__(self, chromium, address, theme="light", size=WIDE):
        self.context = chromium.new_context(viewport=size, reduced_motion="reduce", color_scheme=theme)
        mode = f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')"
        self.context.add_init_script(mode)
        self.page, self.address, self.errors, self.requests = self.context.new_page(), address, [], []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path):
        self.errors.clear(), self.requests.clear()
        self.page.goto(f"{self.address}/{path}", wait_until="networkidle")
        return self.page

    def problems(self):
        return self.errors + [url for url in self.requests if not url.startswith((self.address, "data:", "blob:"))]


@pytest.fixture
def visit(chromium, address):
    """Call for a tab."""
    with contextlib.ExitStack() as tabs:

        def start(**settings):
            tab = Visit(chromium, address, **settings)
            tabs.callback(tab.context.close)
            return tab

        yield start


def pages(built):
    """Every page of the site, as a path."""
    paths = (path.relative_to(built).as_posix() for path in built.rglob("*.html") if "_static" not in path.parts)
    return sorted(path for path in paths if path not in ("index.html", "search.html", "genindex.html"))


@pytest.mark.parametrize("theme", THEMES)
def test_every_page_is_quiet_and_accessible(built, visit, theme):
    from axe_playwright_python.sync_playwright import Axe

    axe, wrong, tab = Axe(), {}, visit(theme=theme)
    for path in pages(built):
        page = tab.open(path)
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        problems = tab.problems()  # before axe, which asks for style sheets itself, at wrong places
        for violation in axe.run(page, options={"runOnly": WCAG, "preload": False}).response["violations"]:
            node = violation["nodes"][0]
            problems.append((violation["id"], node["html"][:150], node["failureSummary"][:200]))
        if problems:
            wrong[path] = problems
    assert wrong == {}


def test_no_page_is_wider_than_a_phone(built, visit):
    tab, wide = visit(size=PHONE), {}
    for path in pages(built):
        page = tab.open(path)
        width = page.evaluate("document.scrollingElement.scrollWidth")
        if width > PHONE["width"]:
            wide[path] = width
    assert wide == {}


def test_search_finds_a_term(visit):
    page = visit().open("search.html?q=intrinsic+dimension")
    page.wait_for_selector("#search-results ul.search li a", timeout=20_000)
    titles = page.locator("#search-results ul.search li a").all_inner_texts()
    assert any("Intrinsic dimension" in title for title in titles)


def test_the_scorecard_filters_and_sorts_by_keyboard(visit):
    page = visit().open("book/scorecard.html")
    rows = lambda: page.locator(".pg-scorecard tbody tr:visible th").all_inner_texts()
    everything = rows()
    status = page.get_by_role("status").filter(has_text="claims shown")
    assert len(everything) > 10 and status.inner_text() == f"{len(everything)} of {len(everything)} claims shown."
    page.get_by_label("Show").focus()
    page.keyboard.press("ArrowDown")  # the first verdict
    assert 0 < len(rows()) < len(everything) and status.inner_text().startswith(f"{len(rows())} of")
    assert set(page.locator(".pg-scorecard tbody tr:visible .pg-verdict").all_inner_texts()) == {"✓ holds"}
    page.keyboard.press("ArrowUp")
    page.get_by_label("in the order").focus()
    page.keyboard.press("ArrowDown")
    assert rows() != everything and sorted(rows()) == sorted(everything)
    page.get_by_label("with the words").focus()
    page.keyboard.type("fine-tun")
    assert 0 < len(rows()) < len(everything)


def test_the_slider_of_the_map_works_by_keyboard(visit):
    page = visit().open("notebooks/beyond/landscape_map.html")
    slider = page.locator("input[type=range]").first
    slider.scroll_into_view_if_needed()
    slider.focus()
    before = slider.input_value()
    page.keyboard.press("ArrowRight")
    assert slider.input_value() != before


def test_a_figure_of_steps_works_by_keyboard_and_says_where_it_is(visit):
    page = visit().open("notebooks/methods/known_peaks.html")
    slider = page.locator(".pg-steps input[type=range]")
    labels = lambda: page.locator(".pg-step:visible").evaluate_all("steps => steps.map(s => s.dataset.label)")
    first = labels()
    assert len(first) == 1 and first[0].startswith("Z = ")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert len(labels()) == 1 and labels() != first
    assert slider.get_attribute("aria-valuetext").startswith(labels()[0])
    page.keyboard.press("End")
    assert labels()[0] == "Z = 4"


def test_a_word_of_the_glossary_leads_to_its_place_by_keyboard(visit):
    page = visit().open("book/methods/density-peaks.html")
    word = page.locator("article a", has=page.locator("abbr.pg-term"), has_text="intrinsic dimension").first
    assert "directions a cloud" in word.locator("abbr").get_attribute("title")
    word.press("Enter")
    page.wait_for_url("**/book/glossary.html#term-intrinsic-dimension")
    assert page.locator("#term-intrinsic-dimension").count() == 1


# ---- screenshots: small copies are kept, for they are compared with a tolerance anyway ----

GOLDEN = ROOT / "tests" / "golden" / "screens"
SCREENS = {
    "front": "book/index.html",
    "scorecard": "book/scorecard.html",
    "figure": "notebooks/landscape/subjects.html",
}
LOOKS = {"light": {}, "dark": {"theme": "dark"}, "phone": {"size": PHONE}}
SMALLER = 8
# The same letters on every machine; `fonts-dejavu-core` has them.
FONTS = "* { font-family: 'DejaVu Sans' !important } code, pre, pre * { font-family: 'DejaVu Sans Mono' !important }"
# The figure at the top, at once, with its pictures: each is fetched when it comes into view.
SHOW_FIGURE = """async () => {
  const show = () => document.querySelector('.pg-figure').scrollIntoView({block: 'start', behavior: 'instant'})
  const seen = ({top, bottom, width}) => width > 0 && bottom > 0 && top < innerHeight
  await document.fonts.ready
  show()
  const pictures = [...document.images].filter(picture => seen(picture.getBoundingClientRect()))
  await Promise.all(pictures.map(picture => picture.decode()))
  show()
}"""
OFF, TOLERANCE = 32, 0.05  # a place is off by so much of 255; at most this share of all places may be


def screenshot(page):
    """What is seen once it stands still, smaller: (rows, columns, 3) int."""
    before, now = None, page.screenshot()
    while before != now:
        before, now = now, page.screenshot()
    picture = Image.open(io.BytesIO(now)).convert("RGB")
    return np.asarray(picture.resize([side // SMALLER for side in picture.size], Image.Resampling.BOX), dtype=int)


def share_off(a, b):
    return np.mean(np.abs(a - b).max(2) > OFF)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", SCREENS)
def test_pages_look_as_they_did(visit, name, look):
    """PG_KEEP_SCREENS=1 keeps what is seen now; look at the pages before that."""
    page = visit(**LOOKS[look]).open(SCREENS[name])
    page.add_style_tag(content=FONTS)
    if name == "figure":
        page.evaluate(SHOW_FIGURE)
    screen, path = screenshot(page), GOLDEN / f"{name}-{look}.png"
    if os.environ.get("PG_KEEP_SCREENS"):
        Image.fromarray(screen.astype(np.uint8)).save(path, optimize=True)
    golden = np.asarray(Image.open(path).convert("RGB"), dtype=int)
    assert share_off(screen, golden) < TOLERANCE
    page.add_style_tag(content="article { transform: translate(40px, 60px) }")  # a fault that must be seen
    assert share_off(screenshot(page), golden) > TOLERANCE
