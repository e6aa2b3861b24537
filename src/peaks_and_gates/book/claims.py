"""Did it hold? Each claim of the papers, measured on the recorded tables by a rule written down beforehand.

`book/claims.yml` states the claims. A claim has one or more parts; a part names a measure of this module, the metric
and condition it looks at, and a bound. A part is *met* if its whole interval satisfies the bound, *missed* if none of
it does, *undecided* in between, *untested* if the table lacks what it needs. A claim is not tested if a part is
untested, holds if all its parts are met, is mixed if some are, fails if all are missed, and is undecided otherwise. A
control, a claim of the book about its own tools, passes or fails.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML

from .. import record
from ..errors import BadParameter, MissingFile, UnknownName
from ..statistics import Estimate
from .keys import root
from .presets import read_yaml

Tables = Mapping[str, pd.DataFrame]  # by PAGE.NAME, as recorded
BASELINE = {"baseline": "condition", "baseline_table": "table", "baseline_group": "group"}  # what a part compares with
LOOK = {"table", "metric", "condition", "setting", "group", "every"}  # which rows
KEYS = {"says", "why", "measure", "at_least", "at_most", *LOOK, *BASELINE}
VERDICTS = ("holds", "mixed", "fails", "undecided", "not tested")
SYMBOLS = {"holds": "✓", "mixed": "◐", "fails": "✗", "undecided": "~", "not tested": "○", "pass": "✓", "fail": "✗"}


@dataclass(frozen=True)
class Part:
    """One measured part of a claim: what it says, its measure, and whether the bound was met."""

    says: str
    rule: str
    why: str
    estimate: Estimate | None
    outcome: str
    undecided: str = ""  # how sure it is with fewer questions, and how many would decide


@dataclass(frozen=True)
class Verdict:
    """A claim with its parts measured."""

    claim: Mapping[str, Any]
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> str:
        """One of VERDICTS; of a control "pass" or "fail" if its parts are decided."""
        control, outcomes = self.claim.get("paper") == "control", {part.outcome for part in self.parts} or {"untested"}
        if "untested" in outcomes:
            return "not tested"
        if "met" in outcomes and not (control and len(outcomes) > 1):
            return "pass" if control else "holds" if len(outcomes) == 1 else "mixed"
        if "missed" in outcomes and (control or len(outcomes) == 1):
            return "fail" if control else "fails"
        return "undecided"


def load() -> list[dict[str, Any]]:
    """The claims, as written in book/claims.yml.  Raises MissingFile, BadParameter."""
    path = root() / "book" / "claims.yml"
    return read_yaml(path, str(path))


def curve(tables: Tables, part: Mapping[str, Any]) -> pd.DataFrame | None:
    """The rows a part looks at, by layer; `most shots` is the condition with the most, which a seed may follow.

    None if there are none, or nothing to measure: no answer right that a cut could take.  Raises BadParameter.
    """
    rows, condition = tables.get(part["table"]), part["condition"]
    if rows is None:
        return None
    for column in ("metric", "setting", "group", "every"):
        rows = rows[rows[column] == part[column]] if column in part else rows
    if condition.startswith("most shots"):
        few_shot = [name for name in rows["condition"].unique() if name.endswith("-shot")]
        most = max(few_shot, key=lambda name: int(name.removesuffix("-shot")), default="")
        condition = condition.replace("most shots", most)
    rows = rows[rows["condition"] == condition].sort_values("layer", ignore_index=True)
    if rows["layer"].duplicated().any():
        raise BadParameter(f"{part['table']} has several rows a layer for it, which setting or group must tell apart")
    return None if rows["value"].isna().all() else rows


def as_estimate(row: pd.Series) -> Estimate:
    """One row of a table as an estimate."""
    return Estimate(row["value"], row["low"], row["high"], int(row["n"]))


def maximum(rows: pd.DataFrame) -> Estimate:
    """The highest value over the layers."""
    return as_estimate(rows.loc[rows["value"].idxmax()])


def lift(rows: pd.DataFrame, baseline: pd.DataFrame) -> Estimate:
    """Highest value of one condition minus that of a baseline; intervals add in squares."""
    top, base = maximum(rows), maximum(baseline)
    value = top.value - base.value
    below = np.hypot(top.value - top.low, base.high - base.value)
    above = np.hypot(top.high - top.value, base.value - base.low)
    return Estimate(value, value - below, value + above, top.n)


def ratio(value: pd.Series, base: pd.Series) -> Estimate:
    """One row's value as a share of another's; ends from the ends of the two, none above a base that may be zero."""
    top, base = as_estimate(value), as_estimate(base)
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing has no share
        high = np.inf if base.low <= 0 else top.high / base.low
        return Estimate(top.value / base.value, top.low / base.high, high, min(top.n, base.n))


def share_lost(rows: pd.DataFrame, baseline: pd.DataFrame) -> Estimate:
    """Which part of a baseline's last value a condition lacks."""
    rest = ratio(rows.iloc[-1], baseline.iloc[-1])
    return Estimate(1 - rest.value, 1 - rest.high, 1 - rest.low, rest.n)


def depth_of_maximum(rows: pd.DataFrame) -> Estimate:
    """Relative depth of the highest value; the interval spans the layers not told apart from it by their own."""
    top = rows.loc[rows["value"].idxmax()]
    alike = rows.loc[np.fmax(rows["high"], rows["value"]) >= np.fmin(top["low"], top["value"]), "depth"]
    return Estimate(top["depth"], alike.min(), alike.max(), int(top["n"]))


def late_share(rows: pd.DataFrame) -> Estimate:
    """Mean over the last third of the layers, as a share of the highest value before it."""
    late, before = rows[rows["depth"] > 2 / 3], rows[rows["depth"] <= 2 / 3]
    top = before.loc[before["value"].idxmax()]
    low = late["low"].fillna(late["value"]).mean() / np.fmax(top["high"], top["value"])
    # A top that may be zero leaves the share without an upper end.
    smallest = np.fmin(top["low"], top["value"])
    high = late["high"].fillna(late["value"]).mean() / smallest if smallest > 0 else np.inf
    return Estimate(late["value"].mean() / top["value"], low, high, int(top["n"]))


def above_chance(rows: pd.DataFrame) -> Estimate:
    """The highest value minus what 97.5 % of shuffled labels stay below."""
    highest, chance = maximum(rows), rows.loc[rows["value"].idxmax(), "null_high"]
    return Estimate(highest.value - chance, highest.low - chance, highest.high - chance, highest.n)


FUNCTIONS = maximum, lift, share_lost, depth_of_maximum, late_share, above_chance
MEASURES = {function.__name__.replace("_", " "): function for function in FUNCTIONS}
MEASURES["first layer"] = lambda rows: as_estimate(rows.iloc[0])
MEASURES["last over first"] = lambda rows: ratio(rows.iloc[-1], rows.iloc[0])


def measure(part: Mapping[str, Any], tables: Tables) -> Part:
    """Measure one part and compare it with its bounds.  Raises what `judge` gives a name."""
    unknown = part.keys() - KEYS | {part["measure"]} - MEASURES.keys()
    if unknown or not {"at_least", "at_most"} & part.keys():
        raise BadParameter(f"a part has {unknown or 'no bound'}; known are {', '.join(sorted(KEYS | MEASURES.keys()))}")
    at_least, at_most = part.get("at_least", -np.inf), part.get("at_most", np.inf)
    bounds = [f"at least {at_least}"] * ("at_least" in part) + [f"at most {at_most}"] * ("at_most" in part)
    compared = f" over {part['baseline']}" if "baseline" in part else ""
    rule = f"{part['measure']} of {part['metric']}, {part['condition']}{compared}: {' and '.join(bounds)}"
    baseline = [{**part} | {new: part[old] for old, new in BASELINE.items() if old in part}] * ("baseline" in part)
    curves = [curve(tables, look) for look in (part, *baseline)]
    value = None if any(rows is None for rows in curves) else MEASURES[part["measure"]](*curves)
    if value is None or np.isnan(value.value):
        return Part(part["says"], rule, part["why"], None, "untested")
    low, high = np.minimum(value.low, value.value), np.maximum(value.high, value.value)  # NaN decides nothing
    if at_least <= low and high <= at_most:
        outcome = "met"
    else:
        outcome = "missed" if high < at_least or low > at_most else "undecided"
    bounds = [bound for bound in (at_least, at_most) if np.isfinite(bound)]
    more = what_would_decide(part, tables, value, bounds) if outcome == "undecided" else ""
    return Part(part["says"], rule, part["why"], value, outcome, more)


def what_would_decide(part: Mapping[str, Any], tables: Tables, value: Estimate, bounds: list[float]) -> str:
    """Half-widths of an undecided part's interval with fewer questions, and the number that would decide.

    The page's table "fewer" has the same of every fourth and every second question.  A power of N through the
    half-widths is followed until the interval ends at the bounds that it reaches over.
    """
    fewer = {key: part[key].partition(".")[0] + ".fewer" for key in ("table", "baseline_table") if key in part}
    if fewer["table"] not in tables or "every" in part:
        return ""
    parts = [measure({**part, **fewer, "every": every}, tables).estimate for every in (4, 2)]
    sizes = [(e.n, (e.high - e.low) / 2) for e in (*parts, value) if e and 0 < e.high - e.low < np.inf]
    text = f"Half-width {', '.join(f'{width:.2f} (N = {n:,})' for n, width in sizes)}; " if sizes else ""
    sides = [(value.value - value.low if b <= value.value else value.high - value.value, b) for b in bounds]
    too_wide = [side / max(1e-9, abs(value.value - b)) for side, b in sides if value.low <= b <= value.high]
    if len(dict(sizes)) < 2 or not too_wide:  # subjects, which fewer questions leave as many, have one N
        return f"{text}how many questions would decide cannot be said from so few."
    power = -np.polyfit(*np.log(sizes).T, 1)[0]
    needed = value.n * max(too_wide) ** (1 / power) if power > 0.05 else np.inf
    decides = f"about {needed:,.0f} questions would decide" if needed < 1e6 else "no number in reach would decide"
    return f"{text}{decides}."


def judge(claim: Mapping[str, Any], tables: Tables) -> Verdict:
    """Measure a claim's parts.  tables: by name, as recorded; a table that is not there leaves its parts untested.

    Raises BadParameter, which names the claim, for a part that is written wrongly or does not fit its table.
    """
    try:
        return Verdict(claim, tuple(measure(part, tables) for part in claim["parts"]))
    except (BadParameter, KeyError, TypeError, ValueError) as error:  # of a column that is not there, of no baseline
        raise BadParameter(f"Claim {claim['id']} in book/claims.yml has a wrong part: {error}.") from error


def judge_all(folder: Path) -> list[Verdict]:
    """Every claim, on the tables recorded in a folder.  Raises MissingFile, HashMismatch: see `record.read`."""
    tables = record.read_all(folder)
    return [judge(claim, tables) for claim in load()]


def judged(ids: Sequence[str], tables: Tables) -> list[Verdict]:
    """Some claims, by their names, on a page's tables by PAGE.NAME.  Raises UnknownName."""
    claims = {claim["id"]: claim for claim in load()}
    if unknown := [name for name in ids if name not in claims]:
        raise UnknownName("claim", unknown[0], claims)
    return [judge(claims[name], tables) for name in ids]


def show_claims(ids: Sequence[str], tables: Tables) -> HTML:
    """What a page's tables say about claims, as HTML.  Arguments as of `judged`."""
    return HTML("".join(as_html(verdict) for verdict in judged(ids, tables)))


def show_answer(text: str, ids: Sequence[str] = (), tables: Tables | None = None) -> HTML:
    """A page's answer, which the site puts under its title, with verdicts.  ids, tables: as of `judged`."""
    verdicts = {verdict.claim["id"]: badge(verdict.verdict) for verdict in judged(ids, tables or {})}
    chips = [f'<a href="../../book/scorecard.html#{name}">{name} {chip}</a>' for name, chip in verdicts.items()]
    return HTML(f'<p class="pg-answer">{html.escape(text)} {" ".join(chips)}</p>')


def badge(verdict: str) -> str:
    """A verdict as a badge: symbol and word, not colour alone."""
    symbol = f'<span aria-hidden="true">{SYMBOLS[verdict]}</span>'
    return f'<span class="pg-verdict pg-{verdict.replace(" ", "-")}">{symbol} {verdict}</span>'


def number(value: Estimate | None) -> str:
    """A value with its interval, as text; an end or a value without bounds is left out."""
    if value is None:
        return "not measured"
    text, low, high = (f"{end:z.2f}" for end in (value.value, value.low, value.high))
    if np.isnan(value.low) or value.low == value.high:
        return text
    end = f"at least {low}" if value.high == np.inf else f"at most {high}" if value.low == -np.inf else f"{low}, {high}"
    return f"{text} [{end}]".removeprefix("inf ").removeprefix("-inf ")


def as_html(verdict: Verdict) -> str:
    """One claim with its parts, for the page of the figure it bears on."""
    claim = verdict.claim
    text = lambda part: f"{part.says}. Found {number(part.estimate)}; rule: {part.rule}. <em>{part.why}</em>"
    parts = "".join(f"<li><strong>{p.outcome}</strong>: {text(p)} {p.undecided}</li>" for p in verdict.parts)
    about = f"<strong>{claim['id']}</strong> {claim['claim']} <em>The paper: {claim['paper_value']}.</em>"
    return f'<section class="pg-claim"><p>{badge(verdict.verdict)} {about}</p><ul>{parts}</ul></section>'


def scorecard(verdicts: list[Verdict], about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The verdicts as plain data, for `scorecard.json`.  about: preset, models, seed and key of the run."""
    text = lambda part: part.estimate and number(part.estimate)
    part_row = lambda p: {"says": p.says, "rule": p.rule, "outcome": p.outcome, "found": text(p)}
    claim_row = lambda v: dict(v.claim) | {"verdict": v.verdict, "parts": [part_row(p) for p in v.parts]}
    return [claim_row(verdict) | dict(about) for verdict in verdicts]


def count(verdicts: list[Verdict]) -> str:
    """How many claims hold, are mixed and so on, and how many controls pass: the line a run ends with."""
    kinds = [verdict.verdict for verdict in verdicts if verdict.claim["paper"] != "control"]
    controls = [verdict.verdict for verdict in verdicts if verdict.claim["paper"] == "control"]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in VERDICTS)
    return f"{counts}; {controls.count('pass')} of {len(controls)} controls pass"


def differences(before: Path, after: Path, tolerance: float) -> list[str]:
    """What differs between two records: tables, rows, values (the largest difference of a column) and verdicts.

    tolerance: relative to a number, absolute below 1.  Raises MissingFile, HashMismatch.
    """
    old, new = record.read_all(before), record.read_all(after)
    if not old and not new:
        raise MissingFile(f"Neither {before} nor {after} holds the record of a page, such as results/laptop does.")
    lines = [f"{name}: only in {before if name in old else after}" for name in sorted(old.keys() ^ new.keys())]
    for name in sorted(old.keys() & new.keys()):
        a, b = old[name], new[name]
        if list(a) != list(b) or len(a) != len(b):
            lines.append(f"{name}: {len(a)} rows of {', '.join(a)} before, {len(b)} rows of {', '.join(b)} after")
            continue
        labels = [column for column in a if not pd.api.types.is_numeric_dtype(a[column])]
        for column in a:
            far = distance(a[column], b[column], tolerance)
            if far.any():
                x, y = a[column][far.idxmax()], b[column][far.idxmax()]
                row = ", ".join(str(label) for label in a.loc[far.idxmax(), labels].dropna())
                lines.append(f"{name}, {column}: {far.astype(bool).sum()} of {len(a)} differ; {row}: {x} -> {y}")
    verdicts = [{claim["id"]: judge(claim, tables).verdict for claim in load()} for tables in (old, new)]
    return lines + [f"{id}: {v} -> {verdicts[1][id]}" for id, v in verdicts[0].items() if v != verdicts[1][id]]


def distance(before: pd.Series, after: pd.Series, tolerance: float) -> pd.Series:
    """How far the values of two columns are apart, 0 within the tolerance; 1 where what is no number differs."""
    if not all(map(pd.api.types.is_numeric_dtype, (before, after))):
        return ((before != after) & ~(before.isna() & after.isna())).astype(float)
    x, y = before.astype(float), after.astype(float)
    return (x - y).abs().fillna(np.inf).mask(np.isclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True), 0)
