"""Drawings of the trees of peaks, from the tables that `dendrogram.trees` records."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle

from .dendrogram import Trees
from .errors import MissingFile
from .hierarchy import ruler, wordnet_tree
from .store import project_folder
from .wordnet import subjects as wordnet_subjects

# Paul Tol's bright palette without its red, which marks mixed peaks. Six colours and seven markers come back to the
# same pair only after 42 groups.
COLOURS = ("#4477AA", "#EE8866", "#228833", "#66CCEE", "#AA3377", "#CCBB44")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MIXED = ("#CC3311", "H")
NO_GROUP = ("#888888", "o")
PAPER = {"5-shot": "5shot", "0-shot": "0shot", "fine-tuned": "ft"}  # names in the paper's files
GROUPS = list(dict.fromkeys(subject.group for subject in wordnet_subjects()))
HEIGHT = "log density (0: top of the highest peak)"
SETTINGS = ("Z = 0", "Z = 1.6", "Z = 4")


def one(table: pd.DataFrame, condition: str) -> pd.DataFrame:
    """The rows of one tree."""
    return table[table["condition"] == condition].reset_index(drop=True)


def group_look(group: str) -> tuple[str, str]:
    """Colour and marker of a group of subjects."""
    if group not in GROUPS:
        return NO_GROUP
    i = GROUPS.index(group)
    return COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]


def leaf_look(leaf: pd.Series) -> tuple[str, str]:
    """Colour and marker of a leaf: those of its largest subject's group, or the mark of a mixed peak."""
    return MIXED if leaf["mixed"] else group_look(leaf["group"])


def plain(name: str, longest: int = 24) -> str:
    """A subject's name without underscores, cut where it is too long for a figure."""
    return name.replace("_", " ") if len(name) <= longest else name[: longest - 1].replace("_", " ").rstrip() + "…"


def short_name(name: str) -> str:
    """A leaf's name for a figure: its two largest subjects, and how many more there are."""
    parts = name.split(", ")
    more = f" + {len(parts) - 2}" if len(parts) > 2 else ""
    longest = 24 if len(parts) > 1 else 40
    return ", ".join(plain(part, longest) for part in parts[:2]) + more


def leaf_order(links: np.ndarray, rank: np.ndarray) -> list[int]:
    """The leaves of a tree from one side to the other; at every join the branch of lower mean rank comes first.

    links: (m - 1, 4) scipy's linkage.  rank: (m,) float.  A tree may be turned at any join without being changed.
    `np.argsort` of the answer gives the row of each leaf.
    """
    branches = {leaf: [leaf] for leaf in range(len(rank))}
    for step, (left, right, *_) in enumerate(links):
        pair = [branches.pop(int(left)), branches.pop(int(right))]
        first, second = sorted(pair, key=lambda leaves: rank[leaves].mean())
        branches[len(rank) + step] = first + second
    return [leaf for leaves in branches.values() for leaf in leaves]


def draw_branches(ax: Axes, links: np.ndarray, rows: np.ndarray, tips: np.ndarray, lw: float = 1.2) -> None:
    """A tree lying on its side: leaf i has its tip at tips[i], rows[i], a join lies at minus its height."""
    # Nothing here is clipped: a clipped line names its axes' size to the last digit, which the layout does not repeat.
    ink = plt.rcParams["text.color"]
    x, y = [*tips], [*rows]
    for left, right, height, _ in links:
        a, b = int(left), int(right)
        ax.plot([x[a], -height, -height, x[b]], [y[a], y[a], y[b], y[b]], color=ink, lw=lw, clip_on=False)
        x.append(-height)
        y.append((y[a] + y[b]) / 2)
    if len(tips) == 1:  # nothing to join: the peak alone
        ax.plot([tips[0] - 1, tips[0]], [rows[0]] * 2, color=ink, lw=lw, clip_on=False)


def linkage_of(links: pd.DataFrame) -> np.ndarray:
    """A recorded tree as scipy's linkage, (m - 1, 4)."""
    return links[["left", "right", "height", "size"]].to_numpy(dtype=float)


def no_tree(title: str, why: str = "no peak is large enough to be drawn") -> Figure:
    """What is drawn where there is no tree."""
    figure, ax = plt.subplots(figsize=(6.6, 1.2))
    ax.text(0.5, 0.5, why, ha="center", va="center", transform=ax.transAxes)
    ax.set_title(title)
    ax.set_axis_off()
    return figure


def tips_of(leaves: pd.DataFrame) -> np.ndarray:
    """Log density of each leaf's peak below the highest, (m,) float."""
    return (leaves["log_density"] - leaves["log_density"].max()).to_numpy()


def title_of(trees: Trees, condition: str) -> str:
    """Condition, model, layer, N."""
    about = one(trees.numbers, condition).iloc[0]
    layers = round(about["layer"] / about["depth"])
    n = one(trees.numbers, condition)["n"].max()
    return f"{condition}: {about['model']}, layer {about['layer']:.0f} of {layers}, N = {n:,.0f}"


def dendrogram(trees: Trees, condition: str) -> Figure:
    """One tree: leaves are rows, named on the right by subject and number of questions, densest peaks first."""
    leaves, links = one(trees.leaves, condition), linkage_of(one(trees.links, condition))
    if leaves.empty:
        return no_tree(title_of(trees, condition))
    tips = tips_of(leaves)
    order = leaf_order(links, -tips)
    figure, ax = plt.subplots(figsize=(6.6, 1.7 + 0.24 * len(leaves)), layout="constrained")
    draw_branches(ax, links, np.argsort(order), tips)
    low = -links[:, 2].max() if len(links) else tips.min() - 1
    right = 0.06 * -low
    for place, leaf in enumerate(order):
        colour, marker = leaf_look(leaves.loc[leaf])
        ax.plot([tips[leaf], right], [place, place], color=plt.rcParams["grid.color"], lw=0.8, zorder=0, clip_on=False)
        ax.plot(right, place, marker, color=colour, ms=7, clip_on=False)
    names = [f"{short_name(leaves.loc[leaf, 'name'])} ({leaves.loc[leaf, 'n_points']})" for leaf in order]
    ax.grid(False)
    ax.set(yticks=range(len(order)), yticklabels=names, xlim=(1.04 * low, right), ylim=(len(order) - 0.5, -0.5))
    ax.set_xlabel(HEIGHT)
    figure.suptitle(title_of(trees, condition), x=0, ha="left", fontsize=12)
    ax.yaxis.tick_right()
    ax.tick_params(axis="y", length=0, pad=8)
    ax.spines[["left", "right"]].set_visible(False)
    group_legend(figure, leaves.loc[~leaves["mixed"], "group"], leaves["mixed"].any())
    return figure


def group_legend(figure: Figure, groups: Sequence[str], with_mixed: bool) -> None:
    """The groups that are drawn, under the figure."""
    looks = {group: group_look(group) for group in sorted(set(groups)) if group}
    if with_mixed:
        looks["mixed (more than four subjects)"] = MIXED
    handles = [Line2D([], [], ls="", color=c, marker=MarkerStyle(m), label=label) for label, (c, m) in looks.items()]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=3)


def side_by_side(trees: Trees, conditions: Sequence[str]) -> Figure:
    """Several trees without names, so that their shapes can be compared: one leaf a mark."""
    figure, axes = plt.subplots(1, len(conditions), figsize=(6.6, 5), squeeze=False, layout="constrained", sharex=True)
    for ax, condition in zip(axes.flat, conditions, strict=True):
        leaves, links = one(trees.leaves, condition), linkage_of(one(trees.links, condition))
        about = one(trees.numbers, condition).iloc[0]
        ax.set_title(f"{about['setting']}\nleaves: {len(leaves)}, mixed: {leaves['mixed'].sum()}")
        ax.set(yticks=[])
        ax.spines["left"].set_visible(False)
        ax.grid(False)
        if leaves.empty:
            continue
        tips = tips_of(leaves)
        order = leaf_order(links, -tips)
        draw_branches(ax, links, np.argsort(order), tips, lw=0.9)
        for place, leaf in enumerate(order):
            colour, marker = leaf_look(leaves.loc[leaf])
            ax.plot(tips[leaf], place, marker, color=colour, ms=4.5, clip_on=False)
        ax.set(ylim=(max(len(order), 8) - 0.5, -0.5))
    axes[0, len(conditions) // 2].set_xlabel(HEIGHT)
    shown = trees.leaves[trees.leaves["condition"].isin(conditions)]
    group_legend(figure, shown.loc[~shown["mixed"], "group"], shown["mixed"].any())
    return figure


def tanglegram(trees: Trees, condition: str, steps: pd.DataFrame) -> Figure:
    """WordNet's tree of the subjects face to face with a tree of peaks.

    A line leads from a subject to the leaf that holds most of its questions; a subject without a line has its
    questions on a peak too small for a leaf.  The tree of peaks is turned at its joins so that few lines cross.
    """
    leaves, links = one(trees.leaves, condition), linkage_of(one(trees.links, condition))
    if steps.empty:
        return no_tree(title_of(trees, condition), "these questions have no tree in WordNet")
    if leaves.empty:
        return no_tree(title_of(trees, condition))
    names, wordnet_links = wordnet_tree(steps)
    subjects = one(trees.subjects, condition).set_index("subject").loc[names]
    row = np.argsort(leaf_order(wordnet_links, np.unique(subjects["group"], return_inverse=True)[1]))
    home = subjects["leaf"].to_numpy()
    rank = [row[home == leaf].mean() if (home == leaf).any() else len(names) / 2 for leaf in range(len(leaves))]
    place = np.argsort(leaf_order(links, np.array(rank)))
    height = (place + 0.5) * len(names) / len(leaves) - 0.5  # both trees get the whole height

    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(6.6, 1.5 + 0.25 * len(names)), width_ratios=(1.5, 3.6, 1.6), sharey=True, layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0, wspace=0)
    draw_branches(left, wordnet_links, row, np.zeros(len(names)))
    tips = tips_of(leaves)
    draw_branches(right, links, height, tips)
    far, near = right.get_xlim()
    right.hlines(height, tips, near, color=plt.rcParams["grid.color"], lw=0.8, zorder=0, clip_on=False)
    right.set_xlim(near, far)
    for name, y, leaf, group in zip(names, row, home, subjects["group"], strict=True):
        colour, marker = group_look(group)
        middle.text(0.02, y, plain(name, 26), va="center", fontsize=10)
        middle.plot(0.60, y, marker, color=colour, ms=6, clip_on=False)
        if leaf >= 0:
            middle.plot([0.62, 1], [y, height[leaf]], color=colour, lw=1.4, clip_on=False)
    middle.set(xlim=(0, 1))
    for ax in (left, middle, right):
        ax.set(ylim=(len(names) - 0.5, -0.5))
        ax.set_axis_off()
    left.set_title("WordNet")
    right.set_title("peaks", loc="right")
    group_legend(figure, subjects["group"], False)
    return figure


def value(trees: Trees, condition: str, metric: str, digits: int = 2) -> str:
    """A measured number with its interval, as text."""
    found = one(trees.numbers, condition).set_index("metric").loc[metric]
    ends = "" if np.isnan(found["low"]) else f" [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
    return f"{found['value']:.{digits}f}{ends}"


def summary(trees: Trees, condition: str) -> str:
    """What one tree consists of, in two sentences; for captions and alternative text."""
    leaves, numbers = one(trees.leaves, condition), one(trees.numbers, condition).set_index("metric")
    least = numbers.loc["least_points", "value"]
    start = f"{title_of(trees, condition)} questions, {numbers['setting'].iloc[0]}."
    if leaves.empty:
        return f"{start} No peak has more than {least:.0f} questions."
    largest = leaves.loc[leaves["n_points"].idxmax()]
    purity, mixed = numbers.loc["purity"], numbers.loc["mixed_share"]
    return (
        f"{start} Peaks with more than {least:.0f} questions: {len(leaves)} "
        f"[{numbers.loc['n_leaves', 'low']:.0f}, {numbers.loc['n_leaves', 'high']:.0f}], holding "
        f"{leaves['n_points'].sum():,} questions; mixed: {leaves['mixed'].sum()} "
        f"(share {value(trees, condition, 'mixed_share')}, {mixed['null']:.2f} if subjects are shuffled). "
        f"The largest subject of a peak makes up {value(trees, condition, 'purity')} of it on average "
        f"({purity['null']:.2f} if shuffled). Largest peak: {largest['name'].replace('_', ' ')}, "
        f"{largest['n_points']} questions."
    )


def agreement(trees: Trees, condition: str) -> str:
    """How far a tree of peaks agrees with WordNet's, in two sentences."""
    numbers = one(trees.numbers, condition).set_index("metric")
    if not {"cophenetic_correlation", "same_group_nearer"} <= set(numbers.index):
        return f"{title_of(trees, condition)}. Too few subjects and leaves to compare the two trees' distances."
    rank, near = numbers.loc["cophenetic_correlation"], numbers.loc["same_group_nearer"]
    return (
        f"{title_of(trees, condition)}; {rank['n']:.0f} subjects compared. "
        f"Rank correlation of the two trees' distances {value(trees, condition, 'cophenetic_correlation')}; "
        f"with permuted names 97.5 % stay below {rank['null_high']:.2f} "
        f"(p = {numbers.loc['cophenetic_correlation_p', 'value']:.3f}). A pair of one group is nearer than a pair of "
        f"two with probability {value(trees, condition, 'same_group_nearer')} (permuted: below "
        f"{near['null_high']:.2f}; p = {numbers.loc['same_group_nearer_p', 'value']:.3f})."
    )


def left_out(trees: Trees, condition: str, steps: pd.DataFrame) -> HTML:
    """Which subjects the comparison with WordNet lacks, and how good a ruler it is, as a paragraph."""
    homes = one(trees.subjects, condition)
    if steps.empty:
        text = (
            "These questions are not WordNet's: there is no true tree of their subjects, so nothing is compared here."
        )
    else:
        unknown = set(homes["subject"]) - {*steps["subject"], *steps["other"]}
        reasons = {
            "no place in WordNet's tree": unknown,
            "peak too small": set(homes.loc[homes["leaf"] < 0, "subject"]),
        }
        parts = [f"{reason}: {', '.join(map(plain, sorted(names))) or 'none'}" for reason, names in reasons.items()]
        own = ruler(steps, homes.set_index("subject")["group"])
        text = (
            f"Of {len(homes)} subjects ({condition}), left out of the comparison: {'; '.join(parts)}. In WordNet's own "
        )
        text += f"distances a pair of one group is nearer than a pair of two with probability {own.value:.2f}."
    return HTML(f"<p>{html.escape(text)}</p>")


def numbers(trees: Trees) -> pd.DataFrame:
    """What was measured on every tree, as a table to print."""
    rows = trees.numbers[~trees.numbers["metric"].str.endswith(("_p", "_points"))]
    table = rows.sort_values("metric", kind="stable").set_index(["metric", "condition"])
    return (
        table[["value", "low", "high", "null", "null_high", "n"]]
        .rename(columns={"null_high": "97.5 % of null"})
        .round(2)
    )


def composition(trees: Trees, condition: str) -> HTML:
    """What each leaf of a tree holds, largest leaf first, as a table that can be unfolded."""
    leaves = one(trees.leaves, condition).sort_values("n_points", ascending=False)
    table = pd.DataFrame(
        {
            "peak": leaves["name"].str.replace("_", " "),
            "questions": leaves["n_points"],
            "largest subject": leaves["purity"].map("{:.0%}".format),
            "questions by subject": leaves["composition"].str.replace("_", " "),
        }
    )
    head = f"What each peak holds ({condition}, {len(table)} in all)"
    return HTML(f"<details><summary>{head}</summary>{table.to_html(index=False)}</details>")


def paper_leaves() -> dict[str, list[str]]:
    """The names of the leaves of the paper's trees, by "model-prompt-Z".  Raises MissingFile."""
    root = project_folder()
    path = root / "book" / "reference" / "landscape_dendrogram_leaves.json" if root else None
    if path is None or not path.is_file():
        raise MissingFile("The paper's leaves are in book/reference of the repository: clone it to compare with them.")
    return json.loads(path.read_text())


def beside_paper(trees: Trees, model: str = "llama-3-8b") -> pd.DataFrame:
    """Number of leaves, mixed ones and examples of leaves with several subjects, the paper's rows above ours."""
    rows = []
    for condition, prompt in PAPER.items():
        for setting in SETTINGS:
            names = paper_leaves()[f"{model}-{prompt}-{setting.replace(' ', '')}"]
            rows.append(compared(f"paper, {model}", condition, setting, pd.Series(names)))
    for condition, about in trees.numbers.groupby("condition", sort=False).first().iterrows():
        if condition != "fine-tuned":  # the mean over seeds, which is no tree
            names = one(trees.leaves, condition)["name"]
            rows.append(compared(f"here, {about['model']}", condition.split(", Z")[0], about["setting"], names))
    return pd.DataFrame(rows).set_index(["where", "prompt", "Z"])


def compared(where: str, condition: str, setting: str, names: pd.Series) -> dict[str, object]:
    """One row of `beside_paper`."""
    sizes = names.str.extract(r"^mix of (\d+) subjects$")[0].dropna().astype(int)
    shared = names[names.str.contains(", ")].drop_duplicates().str.replace("_", " ")
    found = {"where": where, "prompt": condition, "Z": setting.removeprefix("Z = "), "peaks": len(names)}
    mixed = {"mixed": len(sizes), "subjects in the largest mix": str(sizes.max()) if len(sizes) else ""}
    return found | mixed | {"subjects that share a peak, for example": "; ".join(shared.head(2))}
