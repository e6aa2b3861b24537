"""What all figures share: a picture for each theme, with words."""

import base64
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from peaks_and_gates import figures


def with_ink(calls):
    """A figure whose title has the theme's colour, and a word that has the light theme's wherever it is."""
    calls.append(1)
    figure, ax = plt.subplots()
    ax.set_title("theme")
    ax.text(0.5, 0.5, "always", color=figures.THEMES["light"][0])
    return figure


def test_a_figure_is_drawn_once_and_shown_in_both_themes():
    calls = []
    shown = figures.pictures(lambda: with_ink(calls), 'a "title"')
    found = dict(
        re.findall(r'class="pg-(\w+)" alt="a &quot;title&quot;" src="data:image/svg\+xml;base64,([^"]+)"', shown)
    )
    light, dark = (base64.b64decode(found[theme]).decode() for theme in ("light", "dark"))
    assert calls == [1] and found.keys() == figures.THEMES.keys()
    for picture in (light, dark):
        assert not any(mark in picture for mark in figures.MARKS)
    for own, other in zip(figures.THEMES["dark"], figures.THEMES["light"], strict=True):
        assert own in dark and own not in light and other in light
    assert dark.count(figures.THEMES["light"][0]) == 1  # the word; nothing else keeps the colours of light
    assert figures.in_theme(figures.drawn(lambda: with_ink(calls)), "dark").decode() == dark


@pytest.mark.parametrize("mark", figures.MARKS)
def test_no_figure_uses_the_colours_that_stand_for_a_themes(mark):
    modules = (path for path in Path(figures.__file__).parent.glob("*.py") if path.name != "figures.py")
    assert not any(mark in path.read_text().lower() for path in modules)
