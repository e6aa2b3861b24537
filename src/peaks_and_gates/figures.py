"""One style for every figure: light and dark, colour-blind safe, with alternative text made from the data.

tables = {"Raw model": raw, "Fine-tuned": tuned}
text = figures.summary(tables, "ari_subject", "figures")
figures.show(lambda: figures.curves(tables, "ari_subject", "figures", ["llama-3-8b"]), alt=text, caption=text)
"""

import base64
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
import yaml
from IPython.display import HTML, display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .cache import project_folder

DATA = yaml.safe_load((Path(__file__).parent / "figures.yml").read_bytes())
BLUE, CYAN, GREEN, YELLOW, RED, PURPLE, ORANGE, GREY = DATA["colours"].values()
PALETTE = {name: (colour, marker) for colour, marker, *names in DATA["looks"] for name in names}
LABELS = DATA["labels"]
SERIES = ((RED, "D"), (BLUE, "o"), (GREEN, "^"), (YELLOW, "P"), (PURPLE, "v"))  # of models side by side, in order
DEPTH = "relative depth (layer / number of layers)"
WIDE, NARROW = 6.6, 4.2  # of a figure, in inches; a phone shows the narrow one

THEMES = {"light": ("#1b1f24", "#d5d9de"), "dark": ("#e6e8eb", "#444b54")}  # text, grid
MARKS = DATA["marks"]  # what stands for these two while a picture is drawn
# One rule hides the dark picture in light mode and the reverse, in the book and in JupyterLab alike.
SWITCH = f"<style>{DATA['switch']}</style>"
GLUE = "application/papermill.record/"  # in front of what the site takes from an output and does not show


# A picture on a page


def show(draw: Callable[[], Figure], alt: str, caption: str) -> HTML:
    """Draw once and return a picture per theme, captioned, as HTML that shows the one that fits the page.

    alt: what the figure shows, for those who cannot see it.  caption: what it says.
    """
    return framed(pictures(draw, alt), caption)


def steps(frames: Mapping[str, tuple[Callable[[], Figure], str]], caption: str) -> HTML:
    """Pictures of which a slider shows one at a time: the site's steps.js does; elsewhere all of them stand there.

    frames: by what is set in it ("noise 0.1"), how a picture is drawn, and what it shows: alternative text, which is
    also read out, and written below the picture.
    """
    parts = []
    for label, (draw, alt) in frames.items():
        label, text = html.escape(label, quote=True), html.escape(alt)
        parts.append(f'<div class="pg-step" data-label="{label}">{pictures(draw, alt)}<p>{label}: {text}</p></div>')
    return framed("".join(parts), caption, "pg-figure pg-steps")


def framed(inside: str, caption: str, kind: str = "pg-figure") -> HTML:
    """Pictures above their caption.  kind: the class of the figure."""
    return HTML(f'{SWITCH}<figure class="{kind}">{inside}<figcaption>{html.escape(caption)}</figcaption></figure>')


def quoted(text: str) -> HTML:
    """A prompt as it is, line by line."""
    return HTML(f'<pre class="pg-quoted">{html.escape(text)}</pre>')


def pictures(draw: Callable[[], Figure], alt: str) -> str:
    """A picture for each theme and width, as HTML: between themes only the colours of text and grid differ."""
    text, wide, narrow = html.escape(alt, quote=True), as_svg(draw), as_svg(draw, NARROW)
    images = []
    for theme in THEMES:
        phone = f'<source media="(max-width: 600px)" srcset="{in_theme(narrow, theme)}">' * (narrow != wide)
        images.append(f'<picture class="pg-{theme}">{phone}<img alt="{text}" src="{in_theme(wide, theme)}"></picture>')
    return "".join(images)


def in_theme(svg: bytes, theme: str) -> str:
    """A picture in the colours of a theme, as an address that holds it."""
    for mark, colour in zip(MARKS, THEMES[theme], strict=True):
        svg = svg.replace(mark.encode(), colour.encode())
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def as_svg(draw: Callable[[], Figure], width: float = WIDE) -> bytes:
    """One picture as SVG, in no theme yet; the same data give the same bytes.  width: of `panels`, in inches."""
    with sns.axes_style(rc=DATA["style"]), matplotlib.rc_context(DATA["style"] | {"figure.figsize": (width, 4)}):
        figure = draw()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    return buffer.getvalue()


# What the papers measured


def reference(name: str) -> Path:
    """A file of the papers' own numbers: "landscape_curves.csv", "gate_table.csv", …"""
    return project_folder() / "book" / "reference" / name


@cache
def paper(quantity: str, model: str) -> pd.DataFrame:
    """One quantity of one of the papers' models, named as ours: condition, layer, depth, value, n; empty if not there.

    A number of no layer ("none", without a patch) has neither layer nor depth.
    quantity: a metric, or "progressive".  model: "llama-3-8b", "chameleon-7b", …
    """
    curves = pd.concat(pd.read_csv(reference(f"{paper}_curves.csv")) for paper in ("landscape", "gate"))
    curves = curves[(curves["quantity"] == quantity) & (curves["model"] == model)]
    # The later question set of the authors' rebuttal is another experiment; it would double every curve.
    curves = curves[~curves["source"].str.contains("rebuttal")]
    # At layer 1 the authors' code has a typed 1.0 for the dimension, where DADApy found none.
    curves = curves[(curves["quantity"] != "intrinsic_dimension") | (curves["layer"] > 1)]
    depth = curves["layer"] / curves["layer"].max()
    # The paper's axis of progressive knockouts begins with no cut at all; ours with a cut of everything.
    return curves.assign(depth=1 - depth if quantity == "progressive" else depth)


def paper_model(quantity: str, model: str) -> str:
    """Which of the landscape paper's models to draw beside one: its own curve if there is one, else Llama-3-8B's."""
    return "llama-3-8b" if paper(quantity, model).empty else model


def about_paper(quantity: str, *models: str) -> str:
    """For captions: how the landscape paper's curves were made, and the number of questions of each."""
    curves = {model: paper(quantity, model).drop_duplicates("condition") for model in models}
    sizes = {m: ", ".join(f"{c.n:,.0f} ({c.condition})" for c in rows.itertuples()) for m, rows in curves.items()}
    return " ".join([*(f"The paper's {model}: N = {n}." for model, n in sizes.items()), DATA["paper"]])


# What several pages draw


def select(table: pd.DataFrame, metric: str, setting: str | None = None) -> pd.DataFrame:
    """The rows of one metric, and of one setting if it is given, in the order of conditions and layers."""
    rows = table[(table["metric"] == metric) & ((table["setting"] == setting) if setting is not None else True)]
    return rows.sort_values(["condition", "layer"], kind="stable", ignore_index=True)


def by_group(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A page's table by the column `group` ("native", "gated", …), single seeds left out, in the table's order."""
    return {name: rows for name, rows in table.groupby("group", sort=False) if not is_seed(name)}


def is_seed(name: str) -> bool:
    """Whether a condition or group is one of several seeds of a model ("fine-tuned, seed 0")."""
    return ", seed " in name


def look(condition: str) -> tuple[str, str]:
    """Colour and marker of a condition, or of the control named behind its comma ("0-shot, no header")."""
    name, _, control = condition.partition(", ")
    return next((PALETTE[name] for name in (condition, control, name) if name in PALETTE), (GREY, "X"))


def panels(n: int, height: float, columns: int | None = None, **shared: bool | str) -> tuple[Figure, list[Axes]]:
    """n panels below each other; more than three in two columns, but on a phone.  height: of a row, in inches."""
    width = plt.rcParams["figure.figsize"][0]
    columns = 1 if width < WIDE else columns or (1 if n <= 3 else 2)
    rows = -(-n // columns)
    size = (width if columns == 1 else 9.0, 0.8 + height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **shared)
    for ax in axes.flat[n:]:
        ax.remove()
    return figure, list(axes.flat[:n])


def label_below(axes: Sequence[Axes], text: str) -> None:
    """Name the x axis under the lowest panel of each column; a label of the whole figure would lie on the legend."""
    for ax in axes[-axes[0].get_gridspec().ncols :]:
        ax.set_xlabel(text, fontsize=10)
        ax.tick_params(labelbottom=True)


def line(ax: Axes, rows: pd.DataFrame, condition: str, style: tuple[str, str] | None = None) -> Line2D:
    """One curve against relative depth, with its 95 % band if it has one; a number of no layer is a dashed line."""
    colour, marker = style or look(condition)
    if len(rows) == 1:
        return ax.axhline(rows["value"].item(), color=colour, ls="--", lw=1.2, label=condition)
    if "low" in rows:
        ax.fill_between(rows["depth"], rows["low"], rows["high"], color=colour, alpha=0.2, lw=0)
    return ax.plot(rows["depth"], rows["value"], color=colour, marker=marker, ms=4.5, mew=0, lw=1.7, label=condition)[0]


def null_line(ax: Axes, rows: pd.DataFrame) -> list[Line2D]:
    """What chance gives, mostly shuffled labels: its mean, dotted, and its 95 % band; nothing without a null."""
    null = rows.dropna(subset=["null"]).groupby("depth")[["null", "null_high"]].mean()
    if null.empty:
        return []
    ink, margin = plt.rcParams["text.color"], null["null_high"] - null["null"]
    ax.fill_between(null.index, null["null"] - margin, null["null_high"], color=ink, alpha=0.15, lw=0)
    label = DATA["nulls"].get(rows["metric"].iloc[0], "shuffled labels")
    return ax.plot(null.index, null["null"], ls=":", lw=1.2, color=ink, label=label)


def curves(
    tables: Mapping[str, pd.DataFrame],
    metric: str,
    setting: str | None = None,
    paper_models: Iterable[str] | Mapping[str, str] = (),
    quantity: str | None = None,
    limits: tuple[float, float | None] = (0, 1.03),
    behind: Mapping[str, pd.DataFrame] | None = None,
) -> Figure:
    """One metric against relative depth: a panel for each table by its title, and for each of the paper's models.

    A curve per condition with its 95 % band; single seeds are thin lines.  paper_models: after all tables, or by the
    title of each table on its right.  quantity: of the paper, if it is not `metric`; a model without a curve of it
    is left out.  limits: of the axis; (0, None): as the data ask.  The panels share it, but for the number of
    peaks, which grows with N, and beside the paper: see `scale_alike`.  behind: tables of the record that ships, by
    the same titles; their curves of the same conditions are drawn in grey.
    """
    beside = paper_models if isinstance(paper_models, Mapping) else {}
    names = [*beside.values()] or paper_models
    published = {model: rows for model in names if len(rows := paper(quantity or metric, model))}
    places = [place for title in tables for place in (title, beside[title])] if beside else [*tables, *published]
    together = metric != "n_peaks" and not beside
    figure, axes = panels(len(places), 2.5, 2 if beside else None, sharex=True, sharey=together)
    handles = {}
    for ax, place in zip(axes, places, strict=True):
        if place in published:
            for condition, curve in published[place].groupby("condition", sort=False):
                handles.setdefault(condition, line(ax, curve, condition))
            ax.set_title(f"the paper: {place}", fontsize=10)
        else:
            rows = select(tables[place], metric, setting)
            handles |= our_curves(ax, rows, select((behind or {}).get(place, rows[:0]), metric, setting))
            models = dict.fromkeys(rows.loc[~rows["condition"].map(is_seed), "model"])
            models = (", " if len(axes) <= 3 else ",\n").join(models)  # two columns have no room for two names
            ax.set_title(f"{place}: {models}, N = {rows['n'].max():,.0f}", fontsize=10)
        ax.set(xlim=(-0.02, 1.02), ylim=limits)
    for left, right in zip(axes[::2], axes[1::2], strict=True) if beside else ():
        scale_alike(left, right)
    figure.supylabel(LABELS[metric], fontsize=10)
    label_below(axes, DEPTH)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3)
    return figure


def our_curves(ax: Axes, rows: pd.DataFrame, shipped: pd.DataFrame) -> dict[str, Line2D]:
    """The curves of a table, those of the record in grey behind them, and chance: what stands for each in a legend."""
    handles = {}
    for condition, curve in shipped[shipped["condition"].isin(rows["condition"])].groupby("condition"):
        if not is_seed(condition):
            label = f"the record, N = {curve['n'].max():,.0f}"
            handles[label] = ax.plot(curve["depth"], curve["value"], color=GREY, lw=2.5, zorder=1)[0]
    for condition, curve in rows.groupby("condition", sort=False):
        if is_seed(condition):
            ax.plot(curve["depth"], curve["value"], color=look(condition)[0], lw=0.7, alpha=0.7)
        else:
            handles[condition] = line(ax, curve, condition)
    return handles | {null.get_label(): null for null in null_line(ax, rows)}


def scale_alike(left: Axes, right: Axes) -> None:
    """One y axis for two panels, ours and the paper's, if our curves fill a quarter of the paper's range.

    Otherwise each has its own, and a bar in the paper's panel shows how much of it the left one is.
    """
    spans = []
    for ax in (left, right):
        values = np.concatenate([np.asarray(curve.get_ydata(), float) for curve in ax.lines])
        spans.append((min(0, np.nanmin(values)), 1.08 * np.nanmax(values)))
    (low, high), theirs = spans
    if high - low >= (theirs[1] - theirs[0]) / 4:
        spans = [(min(low, theirs[0]), max(high, theirs[1]))] * 2
    else:
        right.plot([1.0, 1.0], spans[0], color=plt.rcParams["text.color"], alpha=0.5, lw=5, solid_capstyle="butt")
        right.annotate("the axis on the left", (0.98, high), ha="right", va="bottom", fontsize=9)
    for ax, span in zip((left, right), spans, strict=True):
        ax.set_ylim(span)


def bars(tables: Mapping[str, pd.DataFrame], measures: Mapping[tuple[str, str], str]) -> Figure:
    """Values with their 95 % intervals by condition, the tables side by side: a panel for each measure.

    measures: title of the panel by metric and setting.
    """
    every = pd.concat(tables.values())
    names = every.loc[every["metric"].isin([metric for metric, _ in measures]), "condition"].unique()
    conditions = [name for name in names if not is_seed(name)]
    size = (1.6 + 1.9 * len(measures), 1.2 + len(conditions) * (0.25 + 0.15 * len(tables)))
    figure, axes = plt.subplots(1, len(measures), figsize=size, sharey=True, squeeze=False, layout="constrained")
    handles, step = {}, min(0.22, 0.8 / len(tables))  # between two tables at one condition, a condition being 1
    for ax, ((metric, setting), title) in zip(axes[0], measures.items(), strict=True):
        for i, ((name, table), (colour, marker)) in enumerate(zip(tables.items(), SERIES, strict=False)):
            rows = select(table, metric, setting).set_index("condition").reindex(conditions)
            y = np.arange(len(conditions)) + (i - (len(tables) - 1) / 2) * step
            spread = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
            handles[name] = ax.errorbar(rows["value"], y, xerr=spread, fmt=marker, color=colour, ms=5, capsize=2)
        ax.set(yticks=range(len(conditions)), yticklabels=conditions, xlim=(0, None))
        ax.set_title(title, fontsize=10)
        ax.grid(axis="x")
    axes[0, 0].invert_yaxis()
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3)
    return figure


# The same in words


def interval(row: pd.Series) -> str:
    """A number with its interval, to two places; no zero is negative."""
    return f"{row['value']:z.2f} [{row['low']:z.2f}, {row['high']:z.2f}]"


def cite(table: pd.DataFrame, **columns: str | float) -> str:
    """The number, with its interval, of the row that has these values in these columns; a dash if none has them."""
    rows = table[(table[list(columns)] == list(columns.values())).all(axis=1)]
    return ", ".join(interval(row) for _, row in rows.iterrows()) or "–"


def top(table: pd.DataFrame, **columns: str | float) -> str:
    """The highest number of the rows that have these values in these columns, its interval and layer; or a dash."""
    rows = table[(table[list(columns)] == list(columns.values())).all(axis=1)]
    best = rows.dropna(subset=["value"]).nlargest(1, "value").iterrows()
    return next((f"{interval(row)} (layer {row['layer']:.0f})" for _, row in best), "–")


def glue(**texts: str) -> None:
    """Give texts to the page's prose by name: the site puts each where the prose says {glue:text}`name`.

    A notebook shows them below the cell; the site, by what myst-nb reads, in the prose alone.
    """
    for name, text in texts.items():
        about = {"scrapbook": {"name": name, "mime_prefix": GLUE}}
        display({f"{GLUE}text/plain": repr(text), "text/plain": f"{name}: {text}"}, raw=True, metadata=about)


def with_intervals(table: pd.DataFrame, index: str | list[str], columns: str | list[str]) -> pd.DataFrame:
    """A table to print: each value with its interval, rows in their order in `table`; a dash where there is none."""
    text = [interval(row) if pd.notna(row["value"]) else "–" for _, row in table.iterrows()]
    wide = table.assign(text=text).pivot(index=index, columns=columns, values="text").fillna("–")
    wide.columns.names = [None] * wide.columns.nlevels
    return wide.loc[table.set_index(index).index.drop_duplicates()]


def summary(tables: Mapping[str, pd.DataFrame], metric: str, setting: str | None = None) -> str:
    """The highest value of every condition and where it is, by table, in words; for captions and alternative text."""
    digits = {"n_peaks": 0, "intrinsic_dimension": 1}.get(metric, 2)
    sentences = []
    for title, table in tables.items():
        rows = select(table[~table["condition"].map(is_seed)], metric, setting)
        tops = rows.loc[rows.groupby("condition", sort=False)["value"].idxmax()]
        parts = [f"{top.condition} {top.value:z.{digits}f} (layer {top.layer:.0f})" for top in tops.itertuples()]
        sentences.append(f"{title}: {', '.join(parts)}.")
    return f"Highest {LABELS[metric]}. {' '.join(sentences)}{of_seeds(tables)}"


def of_seeds(tables: Mapping[str, pd.DataFrame]) -> str:
    """For captions: how several seeds of one model are shown, if there are any."""
    several = any(table["model"].str.endswith("seeds)").any() for table in tables.values())
    return " Of several seeds of one model: their mean, and an interval that spans theirs." if several else ""
