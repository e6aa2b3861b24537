"""Paper 2, *The narrow gate*, as tidy tables: what a vision-language model's states and attention show.

    study = gate.Study(model="chameleon-7b", source="paper")
    gate.modality_gap(study)       # are image and text apart?
    gate.cross_attention(study)    # where does text look?
    gate.class_overlap(study)      # which token knows the class?

Rows are those of `peaks`; here
    condition   which token, or what was knocked out
    layer       0 … L: the residual stream that block `layer` reads (L: the final norm); for attention the block
    setting     what else the number depends on: the published setting, the head
What changes the model while it runs is in `interventions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import modality, pictures, record, scene_words, token_states
from ..errors import BadParameter
from ..models import dtype_named
from ..peaks import row
from ..pictures import Picture
from ..statistics import Estimate, bootstrap_mean, over_seeds
from . import vlm
from .attention import attention_shares
from .tokens import TokenMap
from .vlm import VisionLanguageModel

# The paper's prompts, and those of the drawn scenes. The image comes first, except where it is to follow the text.
PROMPTS = {
    "paper": {
        "classes": "<image> This animal is a",
        "questions": "<image>{question}\nAnswer the question using a single word or phrase. Answer:",
        "captions": "<image>Provide a one-sentence caption for the provided image.",
    },
    "scenes": {
        "classes": f"<image> {scene_words.CLASS_QUESTION}",
        "questions": "<image> {question}",
        "captions": f"<image> {scene_words.REQUEST}",
    },
}
CODE = ("gate.study", "pictures", "picture_rows", "scenes", "scene_words", "scene_drawing", *token_states.CODE)
K = 30  # neighbours of the class overlap


@dataclass(frozen=True)
class Study:
    """Which model looks at which pictures.

    source: "scenes", drawn on the spot, or "paper", the paper's data sets. n_gap, n_per_class, n_questions, n_captions,
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

    def network(self) -> VisionLanguageModel:
        """The model, loaded once."""
        return _loaded(self.model, self.dtype)

    def pictures(self, task: str, source: str | None = None) -> list[Picture]:
        """The pictures of a task: "classes", "questions" or "captions"; "gap" has captions, too.

        source: of pictures.yml, in place of the study's.
        """
        n = {"classes": self.n_per_class, "questions": self.n_questions, "captions": self.n_captions, "gap": self.n_gap}
        name = "captions" if task == "gap" else task
        return pictures.load(name, source or self.source, n[task], self.seed, n_classes=self.n_classes)

    def prompt(self, task: str, picture: Picture) -> str:
        """What the model is asked about a picture."""
        return PROMPTS[self.source][task].format(question=picture.question)


@lru_cache(maxsize=1)  # models are big: only the last one stays in memory
def _loaded(name: str, dtype: str | None) -> VisionLanguageModel:
    return vlm.load(name, dtype_named(dtype))


def roles(native: Sequence[str], adapted: Sequence[str], controls: Sequence[str] = ()) -> dict[str, list[str]]:
    """The models of a page by the part they play: the native and the adapted ones, which count as seeds of one model,
    and each control for itself, by its name without "mini-".  A role without a model is left out.

    Raises BadParameter if there is no model at all, or a name stands for a list.
    """
    if any(isinstance(names, str) for names in (native, adapted, controls)):
        raise BadParameter("native, adapted and controls are lists of models: write native=[NAME].")
    given = {"native": list(native), "adapted": list(adapted)}
    given |= {name.removeprefix("mini-"): [name] for name in controls}
    given = {role: names for role, names in given.items() if names}
    if not given:
        raise BadParameter("This page needs a vision-language model: name one with --model or -p native=[NAME].")
    return given


def each(
    study: Study, models: Mapping[str, Sequence[str]], table: Callable[..., pd.DataFrame], name: str, **settings: object
) -> dict[str, pd.DataFrame]:
    """One table for every role of `roles`, recorded as NAME_ROLE.

    Of several models, each one's table is recorded as NAME_ROLE_0 and so on; the role's is their mean, with an
    interval that spans all of theirs.
    """
    found = {}
    for role, names in models.items():
        if len(names) == 1:
            found[role] = table(replace(study, model=names[0]), f"{name}_{role}", **settings)
            continue
        tables = [table(replace(study, model=one), f"{name}_{role}_{i}", **settings) for i, one in enumerate(names)]
        inputs = asdict(study) | settings | {"models": list(names)}
        found[role] = record.table(f"{name}_{role}", inputs, lambda tables=tables: over_seeds(tables))
    return found


def named(tables: Mapping[str, pd.DataFrame], name: str) -> dict[str, pd.DataFrame]:
    """The tables of `each` by the names they are recorded under, as the claims name them."""
    return {f"{name}_{role}": table for role, table in tables.items()}


def modality_gap(study: Study, name: str = "modality_gap") -> pd.DataFrame:
    """Whether the states of image tokens and of text tokens lie apart, layer by layer (Fig 2).

    A random image token of "caption, then image" and a random text token of "image, then caption" for every picture.

    metrics: `cosine` (median |cos| between the two kinds, its quartiles as rows with setting "quartile 1" and
    "quartile 3"), `homogeneity` of density peaks with regard to modality, by published setting.
    """
    return record.table(name, asdict(study), lambda: modality_gap_table(study))


def modality_gap_table(study: Study) -> pd.DataFrame:
    """Compute what `modality_gap` returns."""
    shown = study.pictures("gap")
    # All captions of a picture together, as in the paper; of a scene one, since the minis never read more in a row.
    n_told = 1 if study.source == "scenes" else None
    told = [" ".join(picture.captions[:n_told]) for picture in shown]
    pick = lambda group: lambda tokens, seeds: tokens.random(group, 1, seeds)
    image_first = [f"<image>{text}" for text in told]
    text_first = [f"{text}<image>\n" for text in told]  # what follows cannot be seen by the image
    words = token_states.read(study, shown, image_first, {"text": pick("after")}, "image, then text")
    patches = token_states.read(study, shown, text_first, {"image": pick("image")}, "text, then image")
    rows = []
    for layer in range(words.n_layers + 1):
        depth = layer / words.n_layers
        text, image = words.layer("text", layer), patches.layer("image", layer)
        where = f"{study.model}, layer {layer}"
        gap = modality.cosine_gap(text, image, seed=study.seed, where=where)
        cosines = {"median": gap.median, "quartile 1": exactly(gap.lower_quartile, gap.median.n)}
        cosines |= {"quartile 3": exactly(gap.upper_quartile, gap.median.n)}
        rows += [row(study, "image, text", layer, depth, "cosine", *found) for found in cosines.items()]
        if layer:  # what block 0 reads are the embeddings, the same for every token of a kind
            mixing = modality.modality_homogeneity(text, image, seed=study.seed, where=where)
            rows += [row(study, "image, text", layer, depth, "homogeneity", *found) for found in mixing.items()]
    return pd.DataFrame(rows)


def exactly(value: float, n: int) -> Estimate:
    """A number that describes the data at hand, without an interval."""
    return Estimate(value, value, value, n)


def cross_attention(study: Study, name: str = "cross_attention") -> pd.DataFrame:
    """How the attention of text after the image falls on the tokens of the image's block, by block and head (Fig 3).

    metrics: `share` by condition (the group of tokens): of the attention that the block gets, which part goes to the
    group, as in the paper; and `mass`: of all attention, which part goes to the block.  setting: "all heads", or
    "head h". Intervals resample pictures.
    """
    return record.table(name, asdict(study), lambda: cross_attention_table(study))


def groups(tokens: TokenMap) -> dict[str, Tensor]:
    """The tokens of the block, told apart as in the paper: its ends, the last image token, the rest."""
    last = tokens.where("last image")
    kinds = {"begin": tokens.where("begin"), "end": tokens.where("end"), "special": tokens.where("special")}
    return kinds | {"last image": last, "image": tokens.where("image") & ~last}


def cross_attention_table(study: Study) -> pd.DataFrame:
    """Compute what `cross_attention` returns."""
    shown = study.pictures("classes")
    texts = [study.prompt("classes", picture) for picture in shown]
    parts = []
    for model, batch, _ in token_states.batches(study, shown, texts, "attention"):
        measured = attention_shares(model, groups(batch.tokens), batch.tokens.where("after"))
        with measured as shares, torch.inference_mode():
            model.network(**batch.inputs, logits_to_keep=1, use_cache=False)
        parts.append(shares.values)
    values = torch.cat(parts).double().numpy()  # (N, L, H, G)
    rows = []
    n_layers, _n_heads = values.shape[1:3]
    for layer in range(n_layers):
        for setting, mass in heads_of(values[:, layer]):  # (N, G)
            block = mass.sum(1)
            rows.append(row(study, "block", layer, layer / n_layers, "mass", setting, bootstrap_mean(block)))
            for i, group in enumerate(shares.groups):
                # Means of the shares' two parts: a picture that hardly draws attention must not count as one that does.
                found = bootstrap_mean(mass[:, i] / block, weights=block, seed=study.seed)
                rows.append(row(study, group, layer, layer / n_layers, "share", setting, found))
    return pd.DataFrame(rows)


def heads_of(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(N, H, G) as (N, G): the mean over heads, then each head, by name."""
    yield "all heads", values.mean(1)
    for head in range(values.shape[1]):
        yield f"head {head}", values[:, head]


# The tokens whose states are read for the class, by name.
TOKENS: dict[str, token_states.Choice] = {
    "end": lambda tokens, seeds: tokens.where("end"),
    "last image": lambda tokens, seeds: tokens.where("last image"),
    "random image": lambda tokens, seeds: tokens.random("image", 1, seeds),
    "last text": lambda tokens, seeds: tokens.where("last"),
}


def class_overlap(study: Study, name: str = "class_overlap") -> pd.DataFrame:
    """Which tokens' states have neighbours of the same class, layer by layer (Fig 4).

    metrics: `class_overlap`, by condition (the token) and setting (the neighbours: "k = 30", or fewer where the
    classes are smaller). Null: shuffled classes.
    """
    return record.table(name, asdict(study), lambda: class_overlap_table(study))


def class_overlap_table(study: Study) -> pd.DataFrame:
    """Compute what `class_overlap` returns."""
    states, overlap = class_states(study, TOKENS, "states")
    setting = f"k = {neighbours_of(study)}"
    rows = []
    for token in TOKENS:
        for layer in range(states.n_layers + 1):
            found = overlap(token, layer)
            rows.append(row(study, token, layer, layer / states.n_layers, "class_overlap", setting, found))
    return pd.DataFrame(rows)


def neighbours_of(study: Study) -> int:
    """Neighbours of the class overlap: the paper's 30, or as many as the classes allow."""
    return min(K, study.n_per_class - 1)


def class_states(
    study: Study, tokens: Mapping[str, token_states.Choice], title: str, **settings: object
) -> tuple[token_states.TokenStates, Callable[[str, int], Estimate]]:
    """States of the pictures of classes, and what gives the class overlap of a token at a layer.

    settings: of `token_states.read`.
    """
    shown = study.pictures("classes")
    texts = [study.prompt("classes", picture) for picture in shown]
    states = token_states.read(study, shown, texts, tokens, title, **settings)
    labels = np.array([picture.label for picture in shown])
    k = neighbours_of(study)

    def overlap(token: str, layer: int) -> Estimate:
        where = f"{study.model}, {title}, {token}, layer {layer}"
        return modality.class_overlap(states.layer(token, layer), labels, k, where=where)

    return states, overlap
