"""What the pages of paper 2 share: models, pictures as batches, knockouts by name, answers and states.

experiment = Experiment("mini-native-0", n_questions=300, how="mask")
questions = experiment.pictures("questions")
for model, batch, seeds in experiment.batches("questions", questions):
    with apply_knockout(model, batch.tokens, seeds, KNOCKOUTS["end → text"], experiment.how):
        logits = model.network(**batch.inputs).logits
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from torch import Tensor
from tqdm.auto import tqdm

from ..cache import digest
from ..errors import BadParameter
from ..models import MODELS, dtype_named
from ..statistics import Estimate, over_seeds
from . import measures, vlm
from . import pictures as picture_sets
from .attention import knockout as knockout_attention
from .inputs import Batch
from .model import VisionLanguageModel
from .patching import read_states, single_position
from .pictures import Pair, Picture
from .split import split_prompt
from .tokens import TokenMap

TEMPLATED = {"questions", "captions"}  # the tasks whose prompts go into a chat template, as in the paper's code
PROMPTS = yaml.safe_load(Path(__file__).with_name("prompts.yml").read_bytes())  # by source and task


@dataclass(frozen=True)
class Experiment:
    """Which model looks at which pictures.

    source: "scenes", the book's own, or "paper", the paper's data sets. n_gap, n_per_class, n_questions, n_captions,
    n_per_pair: pictures, per class or pair where the name says so; n_classes: classes.  how: the knockout's semantics.
    n_random: image tokens of the random knockout; n_repeats: draws of them.  new_tokens: at most, of an answer and of
    a caption.  dtype: "bfloat16" or "float32"; None lets the hardware decide.
    """

    model: str
    source: str = "scenes"
    n_gap: int = 1000
    n_classes: int = 16
    n_per_class: int = 20
    n_questions: int = 300
    n_captions: int = 300
    n_per_pair: int = 20
    how: str = "zero"
    n_random: int = 10
    n_repeats: int = 3
    new_tokens: tuple[int, int] = (20, 60)
    batch_size: int = 16
    seed: int = 0
    dtype: str | None = None

    def load(self) -> VisionLanguageModel:
        """The model, loaded once."""
        return _loaded(self.model, dtype_named(self.dtype))

    def pictures(self, task: str, source: str | None = None) -> list[Picture]:
        """The pictures of a task: "classes", "questions" or "captions"; "gap" has captions, too.

        source: a data set, in place of the experiment's.
        """
        n = {"classes": self.n_per_class, "questions": self.n_questions, "captions": self.n_captions, "gap": self.n_gap}
        name = "captions" if task == "gap" else task
        return picture_sets.load(name, source or self.source, n[task], self.seed, self.n_classes)

    def pairs(self) -> list[Pair]:
        """Pairs of classes whose words begin with different tokens.  Raises BadParameter if there are none."""
        model, pairs = self.load(), picture_sets.pairs(self.source, self.n_per_pair, self.seed)
        different = [pair for pair in pairs if first_token(model, pair.words[0]) != first_token(model, pair.words[1])]
        print(f"{self.model} begins the two words with different tokens in {len(different)} of {len(pairs)} pairs.")
        if not different:
            raise BadParameter(f"All {len(pairs)} pairs of words begin with one token of {self.model}: nothing flips.")
        return different

    def n_new(self, task: str) -> int:
        """Tokens to be written at most."""
        return self.new_tokens[task == "captions"]

    @property
    def k(self) -> int:
        """Neighbours of the class overlap: the paper's 30, or as many as the classes allow."""
        return min(30, self.n_per_class - 1)

    def batches(
        self, task: str, pictures: Sequence[Picture], texts: Sequence[str] | None = None
    ) -> Iterator[tuple[VisionLanguageModel, Batch, list[int]]]:
        """Pictures with the prompts of a task as batches for the model, with a seed for each row, and a progress bar.

        A chat template goes around questions and captions only: "This animal is a" must end in "a".

        texts: prompts in place of the task's.  A row's seed is its picture's and the experiment's alone: what is drawn
        with it does not depend on the batch.
        """
        repo = MODELS.get(self.model, {}).get("repo", self.model.partition("@")[0])
        model, prompts = self.load(), PROMPTS[self.source] | PROMPTS.get(f"{self.source}, {repo}", {})
        reader = model if task in TEMPLATED else replace(model, template="{prompt}")
        texts = [prompts[task].format(question=picture.question) for picture in pictures] if texts is None else texts
        with tqdm(total=len(pictures), desc=f"{self.model}, {task}", unit="picture") as progress:
            for start in range(0, len(pictures), self.batch_size):
                part = slice(start, start + self.batch_size)
                seeds = [int(digest([picture.key, self.seed])[:8], 16) for picture in pictures[part]]
                yield model, vlm.encode(reader, [picture.image for picture in pictures[part]], texts[part]), seeds
                progress.update(len(pictures[part]))


_loaded = lru_cache(maxsize=1)(vlm.load)  # models are big: only the last one stays in memory


def first_token(model: VisionLanguageModel, word: str) -> int:
    """The first token of a word in the middle of a text."""
    ids = model.tokenizer.encode(f" {word}", add_special_tokens=False)
    # Tokenizers of the SentencePiece kind may write the space as a token of its own.
    return next(i for i in ids if model.tokenizer.decode([i]).strip())


# Several models side by side


def group_models(native: Sequence[str], adapted: Sequence[str], controls: Sequence[str] = ()) -> dict[str, list[str]]:
    """The models of a page by group: the native and the adapted ones, which count as seeds of one model, and each
    control for itself, by its name without "mini-".  A group without a model is left out.

    Raises BadParameter if there is no model at all.
    """
    models = {"native": list(native), "adapted": list(adapted)}
    models |= {name.removeprefix("mini-"): [name] for name in controls}
    models = {group: names for group, names in models.items() if names}
    if not models:
        raise BadParameter("This page needs a vision-language model: name one with --model or -p native=[NAME].")
    return models


def run_models(
    measure: Callable[[Experiment], Iterable[dict]], models: Mapping[str, Sequence[str]], settings: Mapping[str, object]
) -> pd.DataFrame:
    """One table of what an experiment measures with every model, with a column `group`.

    measure: from an Experiment to tidy rows.  models: by group, see `group_models`.  settings: of every Experiment.
    A group of several models is their mean, with an interval that spans all of theirs; each one's own rows are the
    groups "GROUP, seed 0" and so on.
    """
    tables = []
    for group, names in models.items():
        seeds = [pd.DataFrame(measure(Experiment(name, **settings))) for name in names]
        tables.append(over_seeds(seeds).assign(group=group))
        if len(seeds) > 1:
            tables += [table.assign(group=f"{group}, seed {i}") for i, table in enumerate(seeds)]
    return pd.concat(tables, ignore_index=True)


# Knockouts


@dataclass(frozen=True)
class Knockout:
    """Which tokens are not read by which: groups of tokens, as `TokenMap.where` names them.

    n_random: only so many tokens of the sources, drawn with `seed`; below 1, that part of them, one token at least.
    rank: only the token of this rank among the sources, 0 for the first; of fewer, the last one.
    first: the first block it is done in.
    """

    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ("after",)
    n_random: float | None = None
    rank: int | None = None
    seed: int = 0
    first: int = 0

    def source_tokens(self, tokens: TokenMap, seeds: Sequence[int]) -> Tensor | None:
        """The sources in a batch, (B, T) bool; None if there are none.  seeds: one per row, for what is drawn."""
        if not self.sources:
            return None
        members = tokens.where(*self.sources)  # (B, T)
        if self.rank is not None:
            place = members.sum(1, keepdim=True).clamp(max=self.rank + 1)  # the last of an image that has fewer
            return members & (members.cumsum(1) == place)
        if self.n_random is None:
            return members
        count = lambda n: self.n_random if self.n_random >= 1 else max(1, round(self.n_random * n))
        rows = zip(tokens.kinds, members.sum(1).tolist(), seeds, strict=True)
        return torch.cat([TokenMap(row[None]).random(*self.sources, count(n), self.seed + s) for row, n, s in rows])

    def draws(self, experiment: Experiment) -> list[Knockout]:
        """A knockout of random tokens once for every draw of the experiment; any other once."""
        if self.n_random is None:
            return [self]
        n = experiment.n_random if self.n_random >= 1 else self.n_random
        return [replace(self, n_random=n, seed=experiment.seed + draw) for draw in range(experiment.n_repeats)]


# Table 1: the end-of-image token hidden from the text; the image itself; a few image tokens; all of it.  The paper's 10
# random tokens are 1 % of an image of 1,024.  Single tokens are controls: one may draw attention and carry nothing.
KNOCKOUTS = {
    "none": Knockout(),
    "end → text": Knockout(("end",)),
    "image → text": Knockout(("begin", "image", "special")),
    "random image → text": Knockout(("image",), n_random=10),
    "random 1 % → text": Knockout(("image",), n_random=0.01),
    "last image → text": Knockout(("last image",)),
    "first token → text": Knockout(("prompt",), rank=0),
    "block → text": Knockout(("block",)),
    "image → image": Knockout(("image",), targets=("image",)),
}


def apply_knockout(
    model: VisionLanguageModel, tokens: TokenMap, seeds: Sequence[int], knockout: Knockout, how: str
) -> AbstractContextManager[None]:
    """Run the model with a knockout.  Without sources it is not changed, yet runs through the same code.

    tokens, seeds: of the batch that is run.  how: as in `attention.knockout`.
    """
    layers = range(knockout.first, model.n_layers)
    sources, targets = knockout.source_tokens(tokens, seeds), tokens.where(*knockout.targets)
    settings = {"generated": "after" in knockout.targets, "mean_of": tokens.where("image") if how == "mean" else None}
    return knockout_attention(model, sources, targets, how, layers, **settings)


@torch.inference_mode()
def generate_answers(
    experiment: Experiment, task: str, pictures: Sequence[Picture], knockouts: Sequence[Knockout]
) -> dict[Knockout, list[str]]:
    """What the model writes about each picture with each knockout, greedily; N texts per knockout."""
    texts = {knockout: [] for knockout in knockouts}
    for model, batch, seeds in experiment.batches(task, pictures):
        prompt = split_prompt(model, batch, single_position(batch.tokens.where("gate")))
        for knockout in texts:
            tokens, inputs = prompt.to_generate(knockout.targets)
            with apply_knockout(model, tokens, seeds, knockout, experiment.how):
                ids = model.network.generate(**inputs, max_new_tokens=experiment.n_new(task), do_sample=False)
            texts[knockout] += written(model, ids[:, inputs["input_ids"].shape[1] :])  # (B, new) to B texts
    return texts


def mean_of_draws(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates on the same pictures; its interval is the mean of theirs."""
    ends = {name: float(np.mean([getattr(one, name) for one in estimates])) for name in ("value", "low", "high")}
    return replace(estimates[0], **ends)


def written(model: VisionLanguageModel, ids: Tensor) -> list[str]:
    """Generated ids (B, new) as texts."""
    return [text.strip() for text in model.tokenizer.batch_decode(ids, skip_special_tokens=True)]


# States

Choice = Callable[[TokenMap, list[int]], Tensor]  # a token map and a seed per row, to tokens of every row, (B, T) bool


@torch.inference_mode()
def token_states(
    experiment: Experiment,
    task: str,
    pictures: Sequence[Picture],
    tokens: Mapping[str, Choice],
    knockout: Knockout | None = None,
    texts: Sequence[str] | None = None,
    means: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Residual streams of chosen tokens of every prompt, before every block and after the last one.

    tokens: by name, what picks one token per row, or, for a name in `means`, tokens of which the mean is taken.
    texts: prompts in place of the task's.
    Returns (N, L + 1, D) by name, on the CPU, in the dtype of the model.
    """
    residual: dict[str, list[Tensor]] = {name: [] for name in tokens}
    for model, batch, seeds in experiment.batches(task, pictures, texts):
        chosen = {name: choose(batch.tokens, seeds) for name, choose in tokens.items()}  # (B, T) each
        positions = {name: some if name in means else single_position(some) for name, some in chosen.items()}
        cut = knockout and apply_knockout(model, batch.tokens, seeds, knockout, experiment.how)
        with cut or nullcontext(), ExitStack() as stack:
            states = {name: stack.enter_context(read_states(model, place)) for name, place in positions.items()}
            model.network(**batch.inputs, logits_to_keep=1, use_cache=False)
        for name, read in states.items():
            residual[name].append(read.residual.cpu())  # (B, L + 1, D)
    return {name: torch.cat(parts) for name, parts in residual.items()}


def output_overlap(experiment: Experiment, knockout: Knockout) -> Estimate:
    """Class overlap of the last prompt token after the last block, with a knockout: χ^{out,gt}."""
    pictures = experiment.pictures("classes")
    last = {"last text": lambda tokens, seeds: tokens.where("last")}
    states = token_states(experiment, "classes", pictures, last, knockout)["last text"][:, -1]  # (N, D)
    labels = np.array([picture.label for picture in pictures])
    return measures.class_overlap(states, labels, experiment.k, where=f"{experiment.model}, {knockout}")
