"""One style for every figure: light and dark, colour-blind safe, with alternative text made from the data.

figures.show(lambda: landscape_figures.curves(table, "ari_subject", "figures"), alt="...", caption="...")
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping

import matplotlib
import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

THEMES = {"light": ("#1b1f24", "#d5d9de"), "dark": ("#e6e8eb", "#444b54")}  # text, grid
MARKS = ("#010203", "#040506")  # what stands for these two while a picture is drawn; nothing else has these colours
# One rule hides the dark picture in light mode and the reverse, in the book and in JupyterLab alike.
SWITCH = (
    "<style>.pg-dark{display:none}"
    'html[data-theme="dark"] .pg-dark,body[data-jp-theme-light="false"] .pg-dark{display:block}'
    'html[data-theme="dark"] .pg-light,body[data-jp-theme-light="false"] .pg-light{display:none}'
    ".pg-figure img{max-width:100%;height:auto}</style>"
)


def show(draw: Callable[[], Figure], alt: str, caption: str) -> HTML:
    """Draw once per theme and return both pictures, captioned, as HTML that shows the one that fits the page.

    alt: what the figure shows, for those who cannot see it.  caption: what it says.
    """
    caption = html.escape(caption)
    return HTML(f'{SWITCH}<figure class="pg-figure">{pictures(draw, alt)}<figcaption>{caption}</figcaption></figure>')


def steps(frames: Mapping[str, tuple[Callable[[], Figure], str]], caption: str) -> HTML:
    """Pictures of which a slider shows one at a time; where there is no script, all of them.

    frames: by what is set in it ("noise 0.1"), how a picture is drawn, and what it shows: alternative text, which is
    also read out, and written below the picture.
    """
    parts = []
    for label, (draw, said) in frames.items():
        label, text = html.escape(label, quote=True), html.escape(said)
        parts.append(f'<div class="pg-step" data-label="{label}">{pictures(draw, said)}<p>{label}: {text}</p></div>')
    caption = html.escape(caption)
    inside = f"{''.join(parts)}<figcaption>{caption}</figcaption>"
    return HTML(f'{SWITCH}<figure class="pg-figure pg-steps">{inside}</figure>{script("steps.js")}')


def quoted(text: str) -> HTML:
    """A prompt as it is, line by line."""
    return HTML(f'<pre class="pg-quoted">{html.escape(text)}</pre>')


def pictures(draw: Callable[[], Figure], alt: str) -> str:
    """A picture for each theme, as HTML."""
    text, svg = html.escape(alt, quote=True), drawn(draw)
    images = []
    for theme in THEMES:
        data = base64.b64encode(in_theme(svg, theme)).decode()
        images.append(f'<img class="pg-{theme}" alt="{text}" src="data:image/svg+xml;base64,{data}">')
    return "".join(images)


def script(name: str) -> str:
    """Load a script of the book's own site; elsewhere (in JupyterLab) nothing is loaded, and no other server is asked.

    Sphinx writes the way to the site's root into every page.
    """
    return f"""<script>{{
  const root = document.documentElement.dataset.content_root;
  if (root !== undefined) {{
    const script = document.createElement("script");
    script.src = root + "_static/{name}";
    document.head.append(script);
  }}
}}</script>"""


def in_theme(svg: bytes, theme: str) -> bytes:
    """A picture in the colours of a theme: only those of text and grid differ, so it is drawn once for all."""
    for mark, colour in zip(MARKS, THEMES[theme], strict=True):
        svg = svg.replace(mark.encode(), colour.encode())
    return svg


def drawn(draw: Callable[[], Figure]) -> bytes:
    """One picture as SVG, in no theme yet; the same data give the same bytes."""
    text, grid = MARKS
    style = {
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "text.color": text,
        "axes.labelcolor": text,
        "axes.edgecolor": text,
        "xtick.color": text,
        "ytick.color": text,
        "grid.color": grid,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "svg.hashsalt": "peaks-and-gates",
        "svg.fonttype": "path",
    }
    with sns.axes_style(rc=style), matplotlib.rc_context(style):
        figure = draw()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    return buffer.getvalue()


def interval(row: pd.Series) -> str:
    """A number with its interval, to two places; no zero is negative."""
    return f"{row['value']:z.2f} [{row['low']:z.2f}, {row['high']:z.2f}]"
