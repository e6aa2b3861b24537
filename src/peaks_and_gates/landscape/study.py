"""Paper 1 as tidy tables: the model reads the questions, and every layer's landscape becomes rows.

    study = Study("smollm2-135m-format-tuned-0", "wordnet", shots=[0, 1, 2, 5], n_orders=None)
    geometry_table(study)      # the landscape of its hidden states, layer by layer

Every row is one number with its interval:
    condition   "5-shot"
    model       name
    layer       1..L (0 where a number belongs to no layer);  depth = layer / L
    metric      "ari_subject", "n_peaks", ...
    setting     what else it depends on: the recipe, the neighbour ranks, the subject or the letter
    value, low, high              with its 95 % interval
    null, null_high, n            mean and 97.5 % quantile under shuffled labels; number of questions
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ..cache import SOURCE, cached, digest, file_sha256
from ..errors import TooFewPoints
from ..statistics import coded, over_seeds, row
from . import questions as question_sets
from .density_peaks import landscapes, redrawn_intervals
from .extraction import StoredStates, hidden_states
from .questions import Prompt, QuestionSet, build_prompts

# Neighbours of the label overlap, as a share of the class: the paper has 0.3 for subjects and plots 0.1 for letters.
CLASS_FRACTION = {"subject": 0.3, "answer": 0.1}
# A layer's table is kept until the code changes that it comes from.
CODE = ("statistics.py", *(f"landscape/{name}.py" for name in ("adp", "density_peaks", "neighbours", "study")))


@dataclass(frozen=True)
class Study:
    """Which model reads which questions behind how many shots.

    n_subjects, n_per_subject: how much of the question set; None for all of it.  selection: "paper" for the questions
    that the paper drew (see `questions.load`), "own" for the book's choice.  n_orders: seeded orders of the shots
    per subject; None for an own order per question, "paper" for the one that it has in the paper.  point: where the
    residual stream is read.  adapter: folder of a PEFT adapter to put on the model.  dtype: "bfloat16" or "float32";
    None lets the hardware decide.  with_header: begin every prompt with the line that names its subject.  split:
    "test", or "validation" where a setting is chosen or a training is followed.  every: all questions are read, and
    every second (2) or fourth (4) of them measured, to see how the width of intervals depends on their number.
    """

    model: str
    questions: str
    shots: Sequence[int] = (0, 1, 2, 5)
    n_subjects: int | None = None
    n_per_subject: int | None = None
    n_orders: int | str | None = 8
    seed: int = 0
    point: str = "norm"
    adapter: str | None = None
    dtype: str | None = None
    with_header: bool = True
    split: str = "test"
    selection: str = "own"
    every: int = 1

    def question_set(self) -> QuestionSet:
        """The questions, read or built."""
        return question_sets.load(self.questions, self.n_subjects, self.n_per_subject, self.selection)

    def prompts(self, questions: QuestionSet, n_shots: int) -> list[Prompt]:
        """One prompt per question."""
        return build_prompts(questions, n_shots, self.n_orders, self.seed, self.split, self.with_header)

    def read(self, prompts: Sequence[Prompt], title: str) -> StoredStates:
        """Hidden states of the prompts at both read points, extracted or read from the cache."""
        points = ("norm", "residual")
        return hidden_states(self.model, prompts, points, self.adapter, self.dtype, f"{self.model}, {title}")

    def states(self, questions: QuestionSet, n_shots: int) -> StoredStates:
        """Hidden states of the study's questions behind so many shots."""
        return self.read(self.prompts(questions, n_shots), condition_name(n_shots))


def condition_name(n_shots: int) -> str:
    """The paper's name of a prompt condition."""
    return f"{n_shots}-shot"


def geometry_table(study: Study) -> pd.DataFrame:
    """The landscape of the last-token states, for every condition, layer and recipe.

    metrics: `intrinsic_dimension` (setting: the two neighbour ranks compared; interval: Gride's standard error),
    `overlap_subject`, `overlap_answer` (setting: "neighbours"; interval: bootstrap over questions), and by recipe
    `n_peaks`, `core_fraction`, `ari_subject`, `ari_answer` (interval: everything again on new samples).
    """
    questions = study.question_set()
    return landscape_table(study, {condition_name(k): study.prompts(questions, k) for k in study.shots})


def landscape_table(
    study: Study, prompts: Mapping[str, Sequence[Prompt]], labels: Mapping[str, Sequence] | None = None
) -> pd.DataFrame:
    """The landscape of each condition's prompts, by its name: one cached table per condition and layer.

    labels: by name, one per prompt, beside or in place of the prompts' own "subject" and "answer".
    Raises BadParameter for another number of them, or NaN or None among them.
    """
    tables = []
    about = {"code": [file_sha256(SOURCE / name) for name in CODE], "point": study.point, "every": study.every}
    about["labels"] = digest({name: list(values) for name, values in (labels or {}).items()})
    for condition, of_condition in prompts.items():
        states = study.read(of_condition, condition)
        by_name = {"subject": states.subject, "answer": states.answer.tolist(), **(labels or {})}
        codes = {name: coded(v, len(of_condition), f"The labels '{name}'")[1] for name, v in by_name.items()}  # (n,)
        for layer in tqdm(range(1, states.n_layers + 1), desc=f"landscape, {condition}", unit="layer"):
            inputs = about | {"states": states.key, "layer": layer, "condition": condition}
            compute = partial(layer_table, study, condition, layer, states, codes)
            tables.append(cached("landscape", inputs, compute, "table"))
    return pd.concat(tables, ignore_index=True).assign(model=study.model)


def layer_table(
    study: Study, condition: str, layer: int, states: StoredStates, labels: dict[str, np.ndarray]
) -> pd.DataFrame:
    """Rows of one layer: one nearest-neighbour search serves every recipe."""
    where = f"{study.model}, {condition}, layer {layer}"
    hidden = states.layer(study.point, layer)[:: study.every]  # (n, D)
    labels = {name: values[:: study.every] for name, values in labels.items()}
    by_recipe = landscapes(hidden, labels, class_fraction=CLASS_FRACTION, where=where)
    first = next(iter(by_recipe.values()))  # neighbours and dimension are the same for every recipe
    estimates = {("intrinsic_dimension", f"{rank}-{2 * rank}"): e for rank, e in first.dimension_by_rank.items()}
    estimates |= {(f"overlap_{label}", "neighbours"): first.label_overlap[label] for label in labels}
    estimates |= redrawn_intervals(hidden, by_recipe)
    depth = layer / states.n_layers
    return pd.DataFrame([row(condition, study.model, layer, depth, m, s, e) for (m, s), e in estimates.items()])


def of_seeds(
    study: Study, models: Sequence[str], measure: Callable[[Study], pd.DataFrame], name: str | None = None
) -> pd.DataFrame:
    """A table of one model trained with several seeds.

    measure: `geometry_table`, or another table of a study.  name: of the condition, in place of the number of shots.
    Rows of each seed are named "fine-tuned, seed 0" and so on, in the order of `models`; rows named "fine-tuned" are
    their mean, with an interval that spans all the seeds' intervals.
    """
    tables = [measure(replace(study, model=model)) for model in models]
    tables = [table.assign(condition=name or table["condition"]) for table in tables]
    seeds = [table.assign(condition=table["condition"] + f", seed {i}") for i, table in enumerate(tables)]
    return pd.concat([over_seeds(tables), *seeds], ignore_index=True)


def seeds_of(study: Study, seeds: Sequence[str]) -> Sequence[str]:
    """The study's model, and behind it the other seeds of its training if it is one of them."""
    return [study.model, *(seed for seed in seeds if seed != study.model and study.model in seeds)]


def geometry_of_models(study: Study, seeds: Sequence[str], fine_tuned: Sequence[str]) -> pd.DataFrame:
    """`geometry_table` of the study's model (group "pretrained") and of those it became (group "fine-tuned").

    seeds: of the model, all of them read without shots and with the most, behind other numbers of shots the study's
    model alone.  fine_tuned: seeds, read without shots.  Conditions as in `of_seeds`.
    """
    ends, tables = (study.shots[0], study.shots[-1]), []
    for n_shots in study.shots:
        models = seeds_of(study, seeds) if n_shots in ends else [study.model]
        tables.append(of_seeds(replace(study, shots=[n_shots]), models, geometry_table).assign(group="pretrained"))
    tuned = of_seeds(replace(study, shots=[0]), fine_tuned, geometry_table, "fine-tuned")
    return pd.concat([*tables, tuned.assign(group="fine-tuned")], ignore_index=True)


def of_fewer(study: Study, measure: Callable[[Study], pd.DataFrame]) -> pd.DataFrame:
    """A study's table for every second and for every fourth question, by the column `every`.

    Without rows of so few questions that no recipe can be used.
    """
    tables = [pd.DataFrame(columns=["condition", "layer", "metric", "setting", "value", "group", "every"])]
    for every in (2, 4):
        with suppress(TooFewPoints):
            tables.append(measure(replace(study, every=every)).assign(every=every))
    return pd.concat(tables[1:] or tables, ignore_index=True)
