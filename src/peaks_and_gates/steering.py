"""Steering: move the end-of-image token's state towards another picture's, and see what the model says then.

    study = gate.Study(model="mini-native-0")
    steering.steering(study)     # whose class is named, by strength
    steering.examples(study)     # what is said, to be read

Strength 0 leaves the state, 1 puts the other picture's in its place (patching), more goes beyond. Rows are those of
`gate`; setting is the strength, as "0.5".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import pictures as picture_sets
from . import record, store, token_states
from .errors import BadParameter
from .gate import study as gate
from .gate import vlm
from .gate.patching import patched, read_states, single_position, steered
from .gate.study import Study
from .gate.vlm import Batch, VisionLanguageModel
from .interventions import told_apart
from .peaks import row
from .pictures import Picture
from .scene_words import plural
from .statistics import bootstrap_mean
from .tails import tail

CODE = (*gate.CODE, "interventions", "tails", "steering")
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
TASKS = ("classes", "captions")


@dataclass(frozen=True)
class Trial:
    """A picture that is asked about, and what it may be moved towards.

    other: a picture of another class.  same: another picture of its own class.  names: its class and the other one.
    """

    own: Picture
    other: Picture
    same: Picture
    names: tuple[str, str]


@dataclass(frozen=True)
class Way:
    """Where the states of the end-of-image token are moved, and in which layers.

    towards: "other" or "same", that picture of a trial; or "random", as far as the other one, in a random direction.
    """

    towards: str
    layers: tuple[int, ...]

    def goal(self, trial: Trial) -> Picture:
        """The picture whose states are read; a random direction takes its length from the other one's."""
        return trial.same if self.towards == "same" else trial.other


def steering(
    study: Study, name: str = "steering", strengths: Sequence[float] = STRENGTHS, step: int = 1
) -> pd.DataFrame:
    """Whose class the model names when its end-of-image token is moved towards another picture.

    strengths: as in `patching.steered`.  step: of the layers 1 … L - 1 that are tried: at 0 the token is the same for
    all pictures, and after the last block nobody reads it.

    The layer is chosen on one half of the trials, by the class prompt, and the other half reports.

    condition: "each layer", by layer, on the half that chooses; on the other half, layer 0: "other class", "same class"
    and "random direction" at the chosen layer, and "all layers", towards the other class in layers 1 … L - 1 at once.
    metrics: `own`, `other`, `neither` (shares of the answers that name the own class, the other, or not just one of
    them); of "other class" also `caption_own`, `caption_other` (shares of the captions that name a class, maybe both),
    and `chosen_layer`.
    Raises BadParameter.
    """
    inputs = asdict(study) | {"strengths": list(strengths), "step": step}
    return record.table(name, inputs, lambda: steering_rows(study, strengths, step))


def steering_rows(study: Study, strengths: Sequence[float], step: int) -> pd.DataFrame:
    """Compute what `steering` returns."""
    choosing, reporting = halves(trials(study))
    sweep = swept(study, choosing, strengths, step)
    layer = best_layer(sweep)
    rows = [row(study, "other class", 0, 0.0, "chosen_layer", "", gate.exactly(layer, len(choosing)))]
    for condition, way in ways(layer, study.network().n_layers).items():
        # Captions take most of the time; the controls are about answers.
        for task in TASKS if condition == "other class" else TASKS[:1]:
            said = answers(study, task, reporting, way, strengths)
            for strength, texts in zip(strengths, said, strict=True):
                for metric, found in named(task, texts, reporting).items():
                    rows.append(row(study, condition, 0, 0.0, metric, f"{strength:g}", bootstrap_mean(found)))
    return pd.concat([sweep, pd.DataFrame(rows)], ignore_index=True)


def swept(study: Study, shown: Sequence[Trial], strengths: Sequence[float], step: int) -> pd.DataFrame:
    """The rows of "each layer": answers to the class prompt, steered in one layer at a time."""
    n_layers = study.network().n_layers
    rows = []
    for layer in range(1, n_layers, step):
        said = answers(study, "classes", shown, Way("other", (layer,)), strengths)
        for strength, texts in zip(strengths, said, strict=True):
            for metric, found in named("classes", texts, shown).items():
                estimate = bootstrap_mean(found)
                rows.append(row(study, "each layer", layer, layer / n_layers, metric, f"{strength:g}", estimate))
    return pd.DataFrame(rows)


def best_layer(sweep: pd.DataFrame) -> int:
    """The layer where most answers, over all strengths, name the other class; of equals the fewest the own, the first.

    sweep: as `swept` returns it.
    """
    shares = sweep.groupby(["layer", "metric"])["value"].mean().unstack()
    return int(max(shares.index, key=lambda layer: (shares["other"][layer], -shares["own"][layer])))


def ways(layer: int, n_layers: int) -> dict[str, Way]:
    """What the half that reports is asked, by condition."""
    return {
        "other class": Way("other", (layer,)),
        "same class": Way("same", (layer,)),
        "random direction": Way("random", (layer,)),
        "all layers": Way("other", tuple(range(1, n_layers))),
    }


def trials(study: Study) -> list[Trial]:
    """The pairs of `interventions.patching`, class by class; each picture's partner of its class is the next one.

    Raises BadParameter if a picture would be steered towards itself.
    """
    classes = told_apart(study.network(), picture_sets.pairs(study.source, study.n_per_pair, study.seed))
    found = []
    for each in classes:
        mine, theirs = each.pictures
        for i, (own, other) in enumerate(zip(mine, theirs, strict=True)):
            found.append(Trial(own, other, mine[(i + 1) % len(mine)], each.names))
    for trial in found:
        if trial.own.key in (trial.other.key, trial.same.key):
            raise BadParameter(f"{trial.own.key} would be steered towards itself: n_per_pair must be at least 2.")
    return found


def halves(found: Sequence[Trial]) -> tuple[list[Trial], list[Trial]]:
    """The trials that choose the layer and those that report; every second one, so that both have all classes."""
    return list(found[::2]), list(found[1::2])


def named(task: str, texts: Sequence[str], shown: Sequence[Trial]) -> dict[str, np.ndarray]:
    """Whether each text names the class of its picture, and that of the other: metric -> (N,) bool.

    Of answers, `own` and `other` are those that name one of the two and not both.
    """
    own, other = (np.array([names(text, t.names[i]) for text, t in zip(texts, shown, strict=True)]) for i in (0, 1))
    if task == "captions":
        return {"caption_own": own, "caption_other": other}
    return {"own": own & ~other, "other": other & ~own, "neither": own == other}


def names(text: str, label: str) -> bool:
    """Whether a text has the words of a class in a row, the last one as singular or plural."""
    words = f" {' '.join(re.findall('[a-z]+', text.lower()))} "
    return any(f" {form} " in words for form in (label, plural(label)))


def answers(study: Study, task: str, shown: Sequence[Trial], way: Way, strengths: Sequence[float]) -> list[list[str]]:
    """What the model says about each trial's own picture at each strength: a list of N texts a strength.

    Greedy, in shards that are kept.  Raises BadParameter for no strength, or one given twice.
    """
    if not strengths or len({f"{strength:g}" for strength in strengths}) < len(strengths):
        raise BadParameter(f"strengths={list(strengths)}: give at least one, and each only once.")
    described = vlm.describe(study.model) | {"dtype": study.dtype, "batch_size": study.batch_size}
    said: list[list[str]] = [[] for _ in strengths]
    for start in range(0, len(shown), token_states.SHARD):
        part = shown[start : start + token_states.SHARD]
        key = {"model": described, "pictures": [[trial.own.key, way.goal(trial).key] for trial in part]}
        key |= {"texts": [study.prompt(task, trial.own) for trial in part], "seed": study.seed}
        key |= {"way": asdict(way), "strengths": list(strengths), "n_new": study.new_tokens[task == "captions"]}
        compute = lambda part=part: generated(study, task, part, way, strengths)
        for texts, found in zip(said, store.document("steered_answers", key, compute, CODE), strict=True):
            texts += found
    return said


def generated(study: Study, task: str, shown: Sequence[Trial], way: Way, strengths: Sequence[float]) -> list[list[str]]:
    """Compute what `answers` returns.

    Only the end-of-image token of the prompt is moved. Tokens generated later read its keys and values from the cache,
    and are not moved themselves.
    """
    said: list[list[str]] = [[] for _ in strengths]
    sides = [[trial.own for trial in shown], [way.goal(trial) for trial in shown]]
    titles = (f"{task}, {way.towards} in {len(way.layers)} of the layers", "its goal")
    runs = (
        token_states.batches(study, side, [study.prompt(task, picture) for picture in side], title)
        for side, title in zip(sides, titles, strict=True)
    )
    for (model, batch, seeds), (_, source, _) in zip(*runs, strict=True):
        with torch.inference_mode():
            own, goal = end_states(model, batch), end_states(model, source)
            if way.towards == "random":
                goal = elsewhere(own, goal, seeds)
            rest = tail(model, batch, single_position(batch.tokens.where("end")))
            for texts, strength in zip(said, strengths, strict=True):
                with moved(model, steered(own, goal, strength), rest.position, way.layers):
                    ids = model.network.generate(
                        **rest.to_generate(),
                        max_new_tokens=study.new_tokens[task == "captions"],
                        do_sample=False,
                        num_beams=1,
                    )
                new = ids[:, rest.batch.inputs["input_ids"].shape[1] :]
                new = model.tokenizer.batch_decode(new, skip_special_tokens=True)
                texts += [text.strip() for text in new]
    return said


def end_states(model: VisionLanguageModel, batch: Batch) -> Tensor:
    """Residual streams of the end-of-image token of every row, (B, L + 1, D) float32."""
    with read_states(model, single_position(batch.tokens.where("end"))) as states:
        model.network(**batch.inputs, logits_to_keep=1, use_cache=False)
    return states.residual.float()


def elsewhere(own: Tensor, goal: Tensor, seeds: Sequence[int]) -> Tensor:
    """States as far from `own` as `goal` is, layer by layer, in a direction drawn by each row's seed.

    own, goal: (B, L + 1, D) float32.
    """
    drawn = [torch.randn(own.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    direction = torch.nn.functional.normalize(torch.stack(drawn), dim=-1).to(own)  # (B, L + 1, D), of length 1
    return own + direction * (goal - own).norm(dim=-1, keepdim=True)


@contextmanager
def moved(model: VisionLanguageModel, states: Tensor, position: Tensor, layers: Sequence[int]) -> Iterator[None]:
    """Put states (B, L + 1, D) into one token of every row, each at its layer, in the given layers only.

    position: (B,) int.  Raises as `patching.patched`.
    """
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(patched(model, states[:, layer], position, layer))
        yield


def examples(
    study: Study,
    name: str = "steering_examples",
    strengths: Sequence[float] = STRENGTHS,
    step: int = 1,
    n: int = 3,
) -> pd.DataFrame:
    """What the model says of a few pictures at every strength, at the chosen layer.

    n: pictures, the first that report of each class; nothing is picked by what is said.
    Columns: model, layer, example (0 … n - 1), own and other (classes), own_caption and other_caption (true ones of the
    two pictures, empty where the source has none), strength, answer, caption (what is said).
    """
    inputs = asdict(study) | {"strengths": list(strengths), "step": step, "n": n}
    return record.table(name, inputs, lambda: example_rows(study, strengths, step, n))


def example_rows(study: Study, strengths: Sequence[float], step: int, n: int) -> pd.DataFrame:
    """Compute what `examples` returns, from the answers that are kept of `steering`."""
    choosing, reporting = halves(trials(study))
    layer = best_layer(swept(study, choosing, strengths, step))
    said = {task: answers(study, task, reporting, Way("other", (layer,)), strengths) for task in TASKS}
    first: dict[tuple[str, str], int] = {}
    for i, trial in enumerate(reporting):
        first.setdefault(trial.names, i)
    rows = []
    for example, i in enumerate(list(first.values())[:n]):
        trial = reporting[i]
        about = {"model": study.model, "layer": layer, "example": example, "own": trial.names[0]}
        about |= {"other": trial.names[1], "own_caption": told(trial.own), "other_caption": told(trial.other)}
        for k, strength in enumerate(strengths):
            found = {"answer": said["classes"][k][i], "caption": said["captions"][k][i]}
            rows.append(about | {"strength": float(strength)} | found)
    return pd.DataFrame(rows)


def told(picture: Picture) -> str:
    """The first caption of a picture, or nothing."""
    return next(iter(picture.captions), "")


def examples_of(study: Study, models: Mapping[str, Sequence[str]], **settings: object) -> dict[str, pd.DataFrame]:
    """The examples of every role of `gate.roles`, of its first model, recorded as steering_examples_ROLE.

    settings: of `examples`.
    """
    return {
        role: examples(replace(study, model=one), f"steering_examples_{role}", **settings)
        for role, (one, *_) in models.items()
    }
