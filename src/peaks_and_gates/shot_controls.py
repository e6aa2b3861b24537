"""What do the shots do?  Prompts that each take one explanation of the few-shot peaks away.

    study = peaks.Study("smollm2-135m-instruct", "wordnet", [0, 5], n_subjects=8, n_per_subject=50)
    table = shot_controls.shots(study)     # recorded; the conditions are those of `controls`

The questions of a subject share the header that names it and, but for the order, their shots.  A peak per subject may
therefore be owed to the name, to the repeated words, to the letters of the answers, or to meaning: of the shots or of
the question.  Every control keeps the questions and changes the prefix.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import record
from .errors import BadParameter, BadQuestions
from .landscape_figures import LABELS, LIMITS
from .peaks import Study, landscape_table, select
from .questions import Prompt, Question, QuestionSet, block, header
from .wordnet import generator

N_SHOTS = 5
REFERENCE = f"{N_SHOTS}-shot"
MIXED, MIXED_PRETRAINED = "mixed prefixes", "mixed prefixes, pretrained"
HALVES = ("first half", "second half")

# What is drawn: by name, the condition and the labels its peaks are held against; colours are Paul Tol's.
CURVES = {
    REFERENCE: (REFERENCE, "subject", None, "o"),
    "one order": ("one order", "subject", "#EE8866", "X"),
    "own shots": ("own shots", "subject", "#4477AA", "s"),
    "random text": ("random text", "subject", "#AA3377", "v"),
    "mixed, by prefix": (MIXED, "prefix", "#EE8866", "X"),
    "mixed, by question": (MIXED, "subject", "#4477AA", "s"),
    "no answers": ("no answers", "subject", "#EE8866", "X"),
    "wrong answers": ("wrong answers", "subject", "#4477AA", "s"),
    "no header": ("no header", "subject", "#AA3377", "v"),
    "0-shot": ("0-shot", "subject", "#EE8866", "X"),
    "bare question": ("0-shot, no header", "subject", "#4477AA", "s"),
    "pretrained, by prefix": (MIXED_PRETRAINED, "prefix", "#EE8866", "X"),
    "pretrained, by question": (MIXED_PRETRAINED, "subject", "#4477AA", "s"),
}
PANELS = {
    "Is it repetition?": (REFERENCE, "one order", "own shots", "random text"),
    "Whose subject is it?": (REFERENCE, "mixed, by prefix", "mixed, by question"),
    "Letters, or the name?": (REFERENCE, "no answers", "wrong answers", "no header"),
    "And without shots?": (REFERENCE, "0-shot", "bare question"),
    "The pretrained model": ("pretrained, by prefix", "pretrained, by question"),
}


def shots(study: Study, pretrained: str | None = None) -> pd.DataFrame:
    """The landscape of every control, layer by layer, recorded as "shots".

    study: its questions are asked behind every prefix; its `shots` and `with_header` are not used.
    pretrained: another model that reads the mixed prefixes too; None, or the study's own model, for none.

    metrics: those of `peaks.geometry`, and for the mixed prefixes also `ari_prefix` and `overlap_prefix`: agreement
    with the subject of the prefix, where `ari_subject` is that with the subject of the question.
    Raises BadParameter (fewer than two subjects), BadQuestions (too few questions to draw shots from).
    """
    return record.table("shots", asdict(study) | {"pretrained": pretrained}, lambda: shots_table(study, pretrained))


def shots_table(study: Study, pretrained: str | None) -> pd.DataFrame:
    """Compute what `shots` returns."""
    questions = study.question_set()
    prompts = controls(study, questions)
    crossed, asked = mixed_prefixes(prompts[REFERENCE])
    both = {"subject": asked, "prefix": [prompt.subject for prompt in crossed]}
    tables = [landscape_table(study, prompts), landscape_table(study, {MIXED: crossed}, both)]
    if pretrained not in (None, study.model):
        tables.append(landscape_table(replace(study, model=pretrained), {MIXED_PRETRAINED: crossed}, both))
    return pd.concat(tables, ignore_index=True)


def controls(study: Study, questions: QuestionSet) -> dict[str, list[Prompt]]:
    """The prompts of each condition; all ask the same questions in the same order, by subject.

    "5-shot" (the study's number of orders) and "one order"; "own shots": every question has shots of its own;
    "random text": a text a subject, in place of header and shots; "no answers", "wrong answers", "no header": the
    reference without these; "0-shot", "0-shot, no header".
    """
    study = replace(study, with_header=True)
    bare = replace(study, with_header=False)
    reference = study.prompts(questions, N_SHOTS)
    return {
        REFERENCE: reference,
        "one order": replace(study, n_orders=1).prompts(questions, N_SHOTS),
        "own shots": own_shots(questions, reference, study.seed),
        "random text": random_text(questions, reference, study.seed),
        "no answers": [replace(prompt, prefix=without_letters(prompt.prefix)) for prompt in reference],
        "wrong answers": study.prompts(with_wrong_answers(questions, study.seed), N_SHOTS),
        "no header": bare.prompts(questions, N_SHOTS),
        "0-shot": study.prompts(questions, 0),
        "0-shot, no header": bare.prompts(questions, 0),
    }


def pool(questions: QuestionSet, subject: str) -> list[Question]:
    """The questions of a subject that are never asked: dev, train and validation."""
    return [q for split in (questions.dev, questions.train, questions.validation) for q in split.get(subject, ())]


def own_shots(questions: QuestionSet, prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """Each prompt with shots of its own: drawn from its subject's pool for this question, without replacement.

    Raises BadQuestions if the pool of a subject has too few questions to draw different shots.
    """
    pools = {prompt.subject: pool(questions, prompt.subject) for prompt in prompts}
    for subject, others in pools.items():
        if len(others) <= N_SHOTS:
            raise BadQuestions(
                f"The subject '{subject}' has {len(others)} questions outside the test split; own shots for every "
                f"question need more than {N_SHOTS}. Leave the subject out, or take a question set with a train split."
            )
    found = []
    for i, prompt in enumerate(prompts):
        others = pools[prompt.subject]
        drawn = generator("own shots", seed, prompt.subject, i).choice(len(others), N_SHOTS, replace=False)
        shots = "".join(block(others[j], with_answer=True) for j in drawn)
        found.append(replace(prompt, prefix=header(prompt.subject) + shots))
    return found


def random_text(questions: QuestionSet, prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """Each prompt behind a text that all questions of its subject share and that is about nothing.

    The text is made of shuffled words from the questions of the other subjects, as many as the shots have words, marks
    and line ends (which is about as many tokens).  No header, no letters, no form: repetition is all there is.
    """
    asked = {s: [re.findall(r"\w+", question.text) for question in pool(questions, s)] for s in questions.subjects}
    # "Which term means": the words of the form, not of a question.
    form = set.intersection(*(set(words) for of_subject in asked.values() for words in of_subject))
    texts = {}
    for prompt in prompts:
        if prompt.subject not in texts:
            shots = prompt.prefix.removeprefix(header(prompt.subject))
            length = len(re.findall(r"\w+|[^\w\s]+|\n+", shots))
            elsewhere = [w for s in asked if s != prompt.subject for words in asked[s] for w in words if w not in form]
            drawn = generator("random text", seed, prompt.subject).choice(elsewhere, length)
            texts[prompt.subject] = " ".join(drawn) + "\n\n"
    return [replace(prompt, prefix=texts[prompt.subject]) for prompt in prompts]


def without_letters(prefix: str) -> str:
    """The prefix with every solved example left open."""
    return re.sub(r"\nAnswer: [A-D]\n\n", "\nAnswer:\n\n", prefix)


def with_wrong_answers(questions: QuestionSet, seed: int) -> QuestionSet:
    """The same set, with a wrong letter, drawn once and for all, for each question that serves as a shot."""
    dev = {}
    for subject, solved in questions.dev.items():
        away = generator("wrong answers", seed, subject).integers(1, 4, len(solved))
        dev[subject] = tuple(replace(q, answer=int(q.answer + a) % 4) for q, a in zip(solved, away, strict=True))
    return replace(questions, dev=dev)


def mixed_prefixes(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[str]]:
    """The same prefixes and the same questions, paired anew: no question is behind its own subject's prefix.

    Question j of a subject takes the place of question j of the subject 1 + j (mod subjects - 1) further on, so that
    every prefix is followed by questions of all other subjects, as evenly as can be.

    Returns the prompts, sorted by the subject of the prefix, which is their `subject`, and, in the same order, the
    subjects of the questions.  Raises BadParameter if there are fewer than two subjects.
    """
    by_subject: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_subject.setdefault(prompt.subject, []).append(prompt)
    subjects = list(by_subject)
    if len(subjects) < 2:
        raise BadParameter(f"Prefixes of {len(subjects)} subject cannot be mixed: give n_subjects of at least 2.")
    pairs = []
    for i, subject in enumerate(subjects):
        for j, asked in enumerate(by_subject[subject]):
            behind = by_subject[subjects[(i + 1 + j % (len(subjects) - 1)) % len(subjects)]]
            lent = behind[j % len(behind)]
            pairs.append((replace(asked, subject=lent.subject, prefix=lent.prefix), subject))
    pairs.sort(key=lambda pair: pair[0].subject)
    return [prompt for prompt, _ in pairs], [subject for _, subject in pairs]


# Reading and drawing the table


def curves(table: pd.DataFrame, measure: str, setting: str) -> pd.DataFrame:
    """The rows of each curve of CURVES that the table has, with its name as `condition` and `measure` as `metric`.

    measure: "ari" or "overlap".  setting: the recipe, or "neighbours".
    """
    rows = []
    for name, (condition, label, *_) in CURVES.items():
        chosen = select(table, f"{measure}_{label}", setting)
        rows.append(chosen[chosen["condition"] == condition].assign(condition=name, metric=measure))
    return pd.concat(rows, ignore_index=True)


def highest(table: pd.DataFrame, measure: str, setting: str) -> pd.DataFrame:
    """The highest value of each curve in each half of the layers, and its difference from the reference's highest.

    Columns: curve, half, layer, value, low, high (interval of that layer), difference, difference_low, difference_high
    (the two intervals added in squares).  The curves of another model have no reference: their difference is NaN.
    """
    named = curves(table, measure, setting)
    named["half"] = np.where(named["depth"] <= 0.5, *HALVES)
    top = named.loc[named.groupby(["half", "condition"], sort=False)["value"].idxmax()]
    top = top.rename(columns={"condition": "curve"}).sort_values("half", kind="stable").reset_index(drop=True)
    base = top[top["curve"] == REFERENCE].set_index("half").loc[top["half"]].reset_index()
    own = top["model"] == base["model"]
    top["difference"] = (top["value"] - base["value"]).where(own)
    top["difference_low"] = top["difference"] - np.hypot(top["value"] - top["low"], base["high"] - base["value"])
    top["difference_high"] = top["difference"] + np.hypot(top["high"] - top["value"], base["value"] - base["low"])
    return top[["curve", "half", "layer", "value", "low", "high", "difference", "difference_low", "difference_high"]]


def highest_to_print(table: pd.DataFrame, measure: str, setting: str) -> pd.DataFrame:
    """`highest` as a table to read: a row a curve, each number with its interval."""
    found = highest(table, measure, setting)
    with_interval = lambda value, low, high: "" if np.isnan(value) else f"{value:.2f} [{low:.2f}, {high:.2f}]"
    cells = {"highest": ["value", "low", "high"], "minus 5-shot": ["difference", "difference_low", "difference_high"]}
    for name, columns in cells.items():
        found[name] = [with_interval(*row) for row in found[columns].to_numpy()]
    found.loc[found["curve"] == REFERENCE, "minus 5-shot"] = ""
    wide = found.pivot(index="curve", columns="half", values=list(cells)).swaplevel(axis=1)
    order = [(half, name) for half in HALVES for name in cells]
    return wide.loc[found["curve"].unique(), order].rename_axis(
        index=LABELS[f"{measure}_subject"], columns=[None, None]
    )


def summary(table: pd.DataFrame, measure: str, setting: str) -> str:
    """The highest value of each curve in both halves of the layers, in sentences."""
    found = highest(table, measure, setting)
    named = curves(table, measure, setting)
    parts = []
    for half, rows in found.groupby("half", sort=False):
        values = ", ".join(f"{name} {value:.2f}" for name, value in zip(rows["curve"], rows["value"], strict=True))
        parts.append(f"{half} of the layers: {values}")
    return (
        f"{named['model'].iloc[0]}, N = {named['n'].max():,.0f}. Highest {LABELS[f'{measure}_subject']}, "
        f"{'; '.join(parts)}."
    )


def finding(table: pd.DataFrame, measure: str, setting: str) -> str:
    """Which curves lie above or below the reference in each half of the layers, by the interval of the difference."""
    found = highest(table, measure, setting)
    parts = []
    for half, rows in found.groupby("half", sort=False):
        reference = rows.loc[rows["curve"] == REFERENCE, "value"].item()
        rows = rows[(rows["curve"] != REFERENCE) & rows["difference"].notna()]
        above, below = rows["difference_low"] > 0, rows["difference_high"] < 0
        listed = lambda which, rows=rows: ", ".join(rows.loc[which, "curve"]) or "none"
        parts.append(
            f"{half.capitalize()} of the layers: the reference reaches {reference:.2f}; higher: {listed(above)}; "
            f"lower: {listed(below)}; not told apart: {listed(~(above | below))}."
        )
    return " ".join(parts)


def small_multiples(table: pd.DataFrame, measure: str, setting: str) -> Figure:
    """One panel per question asked of the shots; the reference, in ink, is in each panel of its model.

    Dotted: what 97.5 % of shuffled labels stay below.
    """
    named = curves(table, measure, setting)
    shown = {title: names for title, names in PANELS.items() if named["condition"].isin(names[1:]).any()}
    n_rows = math.ceil(len(shown) / 2)
    figure, axes = plt.subplots(
        n_rows, 2, figsize=(6.6, 0.4 + 3 * n_rows), sharex=True, sharey=True, layout="constrained"
    )
    for ax, (title, names) in zip(axes.flat, shown.items(), strict=False):
        for name in names:
            draw_curve(ax, named[named["condition"] == name], name)
        shuffled = named[named["condition"].isin(names)].groupby("depth")["null_high"].mean()
        ax.plot(shuffled.index, shuffled, ls=":", lw=1.2, color=plt.rcParams["text.color"])
        ax.set_title(title)
        ax.set(xlim=(0, 1.02), xticks=(0, 0.5, 1), ylim=LIMITS[f"{measure}_subject"])
        ax.tick_params(labelbottom=True)
        place = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.14), "borderaxespad": 0}
        ax.legend(**place, fontsize=10, handlelength=1.6, labelspacing=0.25)
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    figure.supylabel(LABELS[f"{measure}_subject"], fontsize=11)
    figure.supxlabel("relative depth (layer / number of layers)", fontsize=11)
    return figure


def draw_curve(ax: Axes, rows: pd.DataFrame, name: str) -> None:
    """One curve with its 95 % band."""
    *_, colour, marker = CURVES[name]
    colour = colour or plt.rcParams["text.color"]
    ax.plot(rows["depth"], rows["value"], color=colour, marker=marker, ms=4, mew=0, lw=1.6, label=name)
    ax.fill_between(rows["depth"], rows["low"], rows["high"], color=colour, alpha=0.1, lw=0)


def ranking(table: pd.DataFrame, recipe: str) -> Figure:
    """The highest ARI and label overlap of each curve in the two halves of the layers, with their intervals."""
    figure, axes = plt.subplots(1, 2, figsize=(6.6, 4.8), sharex=True, sharey=True, layout="constrained")
    marks = {("ari", recipe): ("#4477AA", "o", -0.15), ("overlap", "neighbours"): ("#EE8866", "D", 0.15)}
    for (measure, setting), (colour, marker, shift) in marks.items():
        found = highest(table, measure, setting)
        for ax, half in zip(axes, HALVES, strict=True):
            rows = found[found["half"] == half]
            value = rows["value"].to_numpy()
            spread = np.abs(rows[["low", "high"]].to_numpy().T - value)
            places = np.arange(len(rows)) + shift
            ax.errorbar(
                value, places, xerr=spread, fmt=marker, color=colour, capsize=2, label=LABELS[f"{measure}_subject"]
            )
            ax.axvline(value[0], color=colour, lw=0.8, ls="--")  # the reference
            ax.set(
                title=half + " of the layers", yticks=range(len(rows)), yticklabels=rows["curve"], xlim=(-0.05, 1.05)
            )
            ax.grid(True, axis="x")
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
