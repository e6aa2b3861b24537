"""What the benchmarks measured, as tables and figures; nothing is measured here.

table = speed.measured("benchmarks/measured")
speed.shown(table, "extraction")
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from IPython.display import HTML
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from . import estimate, figures
from .errors import MissingFile, UnknownName
from .models import in_checkout
from .store import read_json

COLUMNS = ["benchmark", "setting", "unit", "ours", "reference", "ratio", "limit", "agreement"]
SIDES = {"ours": ("#4477AA", "o", "the book"), "reference": ("#EE6677", "s", "DADApy's route")}  # Tol's bright palette
LINES = {576: "-", 4096: "--"}
PASSES = {"cold": ("#4477AA", "from nothing"), "with stored states": ("#CCBB44", "with stored states")}


def measured(folder: str) -> pd.DataFrame:
    """Every number that the benchmarks left in a folder.

    columns: file, benchmark, setting, unit, ours, reference (the plain way), ratio (how many times better ours is),
    limit (what the machine's matrix products allow), agreement (of the two results).  Raises MissingFile.
    """
    rows = [row | {"file": path.stem} for path, found in _files(folder) for row in found["rows"]]
    return pd.DataFrame(rows).reindex(columns=["file", *COLUMNS])


def machines(folder: str) -> HTML:
    """What each benchmark ran on, and when."""
    rows = []
    for path, found in _files(folder):
        machine = found["machine"]
        hardware = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
        versions = f"torch {machine['packages']['torch']}, numpy {machine['packages']['numpy']}"
        rows.append({"benchmark": f"{path.stem}.py", "on": hardware, "with": versions, "date": machine["date"]})
    return _table(pd.DataFrame(rows))


def _files(folder: str) -> list[tuple[Path, dict]]:
    paths = sorted(in_checkout(folder).glob("*.json"))
    if not paths:
        raise MissingFile(f"{folder} holds no measured numbers: make them with `make bench`.")
    return [(path, read_json(path)) for path in paths]


def shown(table: pd.DataFrame, *benchmarks: str) -> HTML:
    """The rows of some benchmarks; a sentence instead if they were not run."""
    rows = table[table["benchmark"].isin(benchmarks)]
    if rows.empty:
        return HTML(f"<p><strong>Not measured yet:</strong> {' and '.join(benchmarks)}.</p>")
    kept = pd.DataFrame({"": rows["setting"], "unit": rows["unit"], "the book": rows["ours"].map(number)})
    if rows["reference"].notna().any():
        kept["plain way"] = rows["reference"].map(number)
        kept["times better"] = rows["ratio"].map(number)
    if rows["limit"].notna().any():
        kept["the machine's limit"] = rows["limit"].map(number)
        kept["share of it"] = reached(rows).map(lambda share: "" if pd.isna(share) else f"{share:.0%}")
    if rows["agreement"].notna().any():
        kept["agreement"] = rows["agreement"].fillna("")
    return _table(kept)


def reached(rows: pd.DataFrame) -> pd.Series:
    """Which share of the machine's limit is reached: of a rate from below, of a time from above."""
    rate = rows["unit"].str.endswith("/s")
    return (rows["ours"] / rows["limit"]).where(rate, rows["limit"] / rows["ours"])


def number(value: float) -> str:
    """Three digits; nothing for what was not measured."""
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(frame: pd.DataFrame) -> HTML:
    return HTML(frame.to_html(classes="pg-table", border=0, index=False))


def sizes(table: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    """The rows of a benchmark whose settings are "points x dimensions", with both as numbers n and d."""
    rows = table[table["benchmark"] == benchmark]
    both = rows["setting"].str.replace(",", "").str.extract(r"(?P<n>\d+) x (?P<d>\d+)").astype(int)
    return rows.join(both).sort_values(["d", "n"])


def growth(table: pd.DataFrame) -> Figure:
    """Seconds and memory of one layer's landscape against the number of points, ours and DADApy's own route."""
    figure, axes = plt.subplots(2, 1, figsize=(6.6, 6.2), sharex=True, layout="constrained")
    for ax, benchmark in zip(axes, ("geometry", "geometry, memory"), strict=True):
        rows = sizes(table, benchmark)
        for d, part in rows.groupby("d"):
            for side, (colour, marker, label) in SIDES.items():
                line = {"color": colour, "marker": marker, "ls": LINES.get(d, ":"), "lw": 1.8, "ms": 5}
                ax.plot(part["n"], part[side], label=f"{label}, {d:,} dimensions", **line)
        ax.set(xscale="log", yscale="log", ylabel="seconds" if benchmark == "geometry" else "GB above the states")
        ax.set_xticks(sorted(rows["n"].unique()), [f"{n:,}" for n in sorted(rows["n"].unique())])
        ax.minorticks_off()
    axes[-1].set_xlabel("points in a layer")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def growth_summary(table: pd.DataFrame) -> str:
    """How many times less time and memory than DADApy's route, at every size, in one sentence each."""
    parts = []
    for benchmark, what in {"geometry": "Time", "geometry, memory": "Memory"}.items():
        found = [f"{row['setting']} {row['ratio']:.1f}" for _, row in sizes(table, benchmark).iterrows()]
        parts.append(f"{what} of DADApy's route in units of the book's, by points x dimensions: {', '.join(found)}.")
    return " ".join(parts)


def pages(table: pd.DataFrame) -> Figure:
    """Minutes of every page, from nothing and with stored hidden states."""
    shown = {name: table[table["benchmark"] == f"pages, {name}"].set_index("setting")["ours"] for name in PASSES}
    order = shown["cold"].sort_values().index
    figure, ax = plt.subplots(figsize=(6.6, 0.8 + 0.34 * len(order)), layout="constrained")
    for i, (name, (colour, label)) in enumerate(PASSES.items()):
        minutes = shown[name].reindex(order)
        ax.barh([at + 0.2 - 0.4 * i for at in range(len(order))], minutes, height=0.38, color=colour, label=label)
    ax.set_yticks(range(len(order)), order.str.replace("_", " "))
    ax.set(xlabel="minutes of a page, two running at a time")
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x")
    ax.legend(loc="lower right")
    return figure


def pages_shown(table: pd.DataFrame) -> HTML:
    """The bars of `pages`; a sentence instead if the book was not timed."""
    if "book" not in set(table["benchmark"]):
        return HTML("<p>Run <code>python benchmarks/whole_book.py</code> to see where the time goes.</p>")
    said = pages_summary(table)
    return figures.show(lambda: pages(table), alt=said, caption=f"Where the time goes. {said}")


def pages_summary(table: pd.DataFrame) -> str:
    """The whole book's minutes, and the pages that take most of them."""
    whole = table[table["benchmark"] == "book"].set_index("setting")["ours"]
    cold = table[table["benchmark"] == "pages, cold"].sort_values("ours", ascending=False)
    most = [f"{row['setting'].replace('_', ' ')} {row['ours']:.1f}" for _, row in cold.head(5).iterrows()]
    times = [f"{name} {minutes:.1f}" for name, minutes in whole.items()]
    return f"Minutes of the whole book: {', '.join(times)}. The longest pages: {', '.join(most)}."


def estimates(gpu: str, n_shots: int, n_orders: int | None, n_nodes: int = 4) -> HTML:
    """What reading MMLU takes with each of the paper's models on one kind of GPU: memory, GPUs and minutes.

    Raises UnknownName for a GPU that shapes.yml does not know.
    """
    if gpu not in estimate.KNOWN["hardware"]:
        raise UnknownName("GPU", gpu, estimate.KNOWN["hardware"])
    work, rows = estimate.few_shot(n_shots, n_orders), []
    for model in estimate.KNOWN["models"]:
        shape = estimate.shape(model)
        found = estimate.machines(shape, work, n_nodes).set_index("gpu").loc[gpu]
        minutes = lambda value: "–" if pd.isna(value) else f"{value:.1f}"
        rows.append(
            {
                "model": model,
                "memory (GiB)": f"{estimate.memory(shape) / estimate.GIB:,.0f}",
                f"{gpu.upper()}s at least": f"{found['least']:.0f}",
                "minutes on one": minutes(found["one"]),
                f"on a node of {estimate.PER_NODE}": minutes(found["node"]),
                f"on {n_nodes} nodes": minutes(found["nodes"]),
            }
        )
    return _table(pd.DataFrame(rows))
