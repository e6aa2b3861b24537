"""The site of the record in a real browser: Debian's Chromium, driven by playwright, on this machine alone.

Every page: no error in the console, no request that leaves the machine, no violation that axe-core finds in light and
in dark, nothing wider than a phone. And the things that a reader works with: search, scorecard, slider, solutions.
"""

import functools
import http.server
import re
import shutil
import threading

import pytest

from conftest import copy_checkout
from peaks_and_gates import site, store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install it, for example with apt-get")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--no-first-run", "--disable-quic", "--disable-dev-shm-usage"]
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
PHONE, WIDE = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
THEMES = ("light", "dark")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site as `make site` builds it from what is committed, without a model."""
    folder = copy_checkout(tmp_path_factory.mktemp("site"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "project_folder", lambda: folder)
        patch.setenv("PG_CACHE", str(folder / "no-cache"))
        yield site.build("laptop")


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

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


class Visit:
    """A page in a tab, with what it said in the console and asked of others."""

    def __init__(self, chromium, address, theme="light", size=WIDE):
        self.context = chromium.new_context(viewport=size, reduced_motion="reduce", color_scheme=theme)
        self.context.add_init_script(
            f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')"
        )
        self.page, self.address, self.errors, self.asked = self.context.new_page(), address, [], []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, path):
        self.errors.clear(), self.asked.clear()
        self.page.goto(f"{self.address}/{path}", wait_until="networkidle")
        return self.page

    def outside(self):
        return [url for url in self.asked if not url.startswith((self.address, "data:", "blob:"))]


@pytest.fixture
def visit(chromium, address):
    tabs = []

    def start(**settings):
        tabs.append(Visit(chromium, address, **settings))
        return tabs[-1]

    yield start
    for tab in tabs:
        tab.context.close()


def pages(built):
    """Every page of the site, as a path."""
    found = (path.relative_to(built).as_posix() for path in built.rglob("*.html") if "_static" not in path.parts)
    return sorted(path for path in found if path not in ("search.html", "genindex.html"))


def named(violations):
    """What axe found, short enough to be read."""
    return [
        (each["id"], each["nodes"][0]["html"][:150], each["nodes"][0]["failureSummary"][:200]) for each in violations
    ]


@pytest.mark.parametrize("theme", THEMES)
def test_every_page_is_quiet_and_accessible(built, visit, theme):
    from axe_playwright_python.sync_playwright import Axe

    axe, wrong, tab = Axe(), {}, visit(theme=theme)
    for path in pages(built):
        page = tab.open(path)
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        found = axe.run(page, options={"runOnly": WCAG}).response["violations"]
        if problems := [*tab.errors, *tab.outside(), *named(found)]:
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


def test_every_figure_says_what_it_shows(built, visit):
    tab = visit()
    for path in pages(built):
        for alt, source in tab.open(path).evaluate("[...document.images].map(i => [i.alt, i.currentSrc.slice(-60)])"):
            assert len(alt.strip()) > 3 and not re.search(r"\.(png|svg|jpe?g)$", alt), (path, alt, source)


def test_search_finds_a_term(visit):
    page = visit().open("search.html?q=intrinsic+dimension")
    page.wait_for_selector("#search-results ul.search li a", timeout=20_000)
    found = page.locator("#search-results ul.search li a").all_inner_texts()
    assert any("Intrinsic dimension" in title for title in found)


def test_the_scorecard_filters_and_sorts_by_keyboard(visit):
    page = visit().open("book/scorecard.html")
    rows = lambda: page.locator(".pg-scorecard tbody tr:visible th").all_inner_texts()
    everything = rows()
    status = page.get_by_role("status").filter(has_text="claims shown")
    assert len(everything) > 10 and status.inner_text() == f"{len(everything)} of {len(everything)} claims shown."
    page.get_by_label("Show").focus()
    page.keyboard.press("ArrowDown")  # the first verdict
    kept = rows()
    assert 0 < len(kept) < len(everything) and status.inner_text().startswith(f"{len(kept)} of")
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


def test_a_folded_solution_opens(visit):
    page = visit().open("book/methods/comparing-partitions.html")
    solution = page.locator(".solution.dropdown, .solution .toggle, details").first
    button = page.locator(".solution .toggle-button, .solution summary, .solution.dropdown button").first
    hidden = solution.locator("p").last
    button.scroll_into_view_if_needed()
    assert not hidden.is_visible()
    button.focus()
    page.keyboard.press("Enter")
    hidden.wait_for(state="visible", timeout=5_000)
