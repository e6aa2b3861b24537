"""Paper 2, *The narrow gate*, as tidy tables: what a vision-language model does when its wiring is cut or patched.

    study = gate.Study(model="chameleon-7b", source="paper")
    interventions.knockout_table(study)        # who must not read whom, and what is lost
    interventions.progressive_knockout(study)  # from which depth on
    interventions.patching(study)              # another picture's state, put into the end-of-image token

Rows are those of `gate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import captions, record, similarity, store, token_states, vqa
from . import pictures as picture_sets
from .errors import BadParameter
from .gate import study as gate
from .gate import vlm
from .gate.attention import knockout
from .gate.patching import patched, patched_attention, read_states, single_position
from .gate.study import Study
from .gate.tokens import TokenMap
from .gate.vlm import Batch, VisionLanguageModel
from .peaks import row
from .pictures import Pair, Picture
from .statistics import Estimate, bootstrap_mean
from .tails import tail

CODE = (*gate.CODE, "interventions", "tails")
CAPTIONED = {"scenes": ("scenes",), "paper": ("flickr30k", "coco")}


@dataclass(frozen=True)
class Cut:
    """Who must not read whom: groups of tokens, as `TokenMap.where` names them.

    n_random: only so many tokens of the sources, drawn with `seed`.  first: the first block it is done in.
    """

    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ("after",)
    n_random: int | None = None
    seed: int = 0
    first: int = 0

    def of(self, tokens: TokenMap, seeds: Sequence[int]) -> Tensor:
        """The sources in a batch, (B, T) bool.  seeds: one a row, for what is drawn."""
        if self.n_random is None:
            return tokens.where(*self.sources)
        return tokens.random(*self.sources, self.n_random, [self.seed + seed for seed in seeds])


# Table 1: the end-of-image token hidden from the text; the image itself; a few image tokens; all of it.
CUTS = {
    "none": Cut(),
    "end → text": Cut(("end",)),
    "image → text": Cut(("begin", "image", "special")),
    "random image → text": Cut(("image",), n_random=10),
    "block → text": Cut(("block",)),
    "image → image": Cut(("image",), ("image",)),
}


@contextmanager
def cutting(model: VisionLanguageModel, tokens: TokenMap, seeds: Sequence[int], cut: Cut, how: str) -> Iterator[None]:
    """Run the model with a cut.  Without sources it is not changed, yet runs through the same code."""
    sources = cut.of(tokens, seeds) if cut.sources else None
    layers = range(cut.first, model.n_layers)
    with knockout(model, sources, tokens.where(*cut.targets), how, layers, generated="after" in cut.targets):
        yield


def repeated(study: Study, cut: Cut) -> list[Cut]:
    """A cut of random tokens once for every draw; any other once."""
    if cut.n_random is None:
        return [cut]
    return [replace(cut, n_random=study.n_random, seed=study.seed + i) for i in range(study.n_repeats)]


def answers(study: Study, task: str, shown: Sequence[Picture], cut: Cut) -> list[str]:
    """What the model says about each picture with a cut."""
    return answers_by_cut(study, task, shown, [cut])[0]


def answers_by_cut(study: Study, task: str, shown: Sequence[Picture], cuts: Sequence[Cut]) -> list[list[str]]:
    """What the model says about each picture with each cut: N texts a cut, greedy, in shards that are kept."""
    texts = [study.prompt(task, picture) for picture in shown]
    n_new = study.new_tokens[task == "captions"]
    described = vlm.describe(study.model) | {"dtype": study.dtype, "batch_size": study.batch_size}
    said: list[list[str]] = [[] for _ in cuts]
    title = f"{task}, {name_of(cuts[0]) if len(cuts) == 1 else f'{len(cuts)} cuts'}"
    for start in range(0, len(shown), token_states.SHARD):
        part = slice(start, start + token_states.SHARD)

        def compute(part: slice = part) -> list[list[str]]:
            found: list[list[str]] = [[] for _ in cuts]
            for model, batch, seeds in token_states.batches(study, shown[part], texts[part], title):
                for new, kept in zip(spoken(model, batch, seeds, cuts, study.how, n_new), found, strict=True):
                    kept += new
            return found

        key = {"model": described, "pictures": [p.key for p in shown[part]], "texts": texts[part], "how": study.how}
        key |= {"cuts": [asdict(cut) for cut in cuts], "n_new": n_new}
        for texts_of_cut, new in zip(said, store.document("vlm_answers", key, compute, CODE), strict=True):
            texts_of_cut += [text.strip() for text in new]
    return said


@torch.inference_mode()
def spoken(
    model: VisionLanguageModel, batch: Batch, seeds: Sequence[int], cuts: Sequence[Cut], how: str, n_new: int
) -> Iterator[list[str]]:
    """Cut by cut, what the model goes on to say, B texts of n_new tokens.

    What comes before the end-of-image token is run once for all cuts that leave it as it is.
    """
    rest = tail(model, batch, single_position(batch.tokens.where("end")))
    for cut in cuts:
        touched = rest.batch.tokens.where(*cut.targets)[:, : rest.start].any()
        tokens, inputs = (batch.tokens, batch.inputs) if touched else (rest.batch.tokens, rest.to_generate())
        with cutting(model, tokens, seeds, cut, how):
            ids = model.network.generate(**inputs, max_new_tokens=n_new, do_sample=False, num_beams=1)
        new = ids[:, inputs["input_ids"].shape[1] :]
        yield model.tokenizer.batch_decode(new, skip_special_tokens=True)


def name_of(cut: Cut) -> str:
    """A cut's name for a progress bar."""
    return f"{', '.join(cut.sources)} hidden" if cut.sources else "nothing hidden"


def knockout_table(study: Study, name: str = "knockout_table") -> pd.DataFrame:
    """What is lost when tokens are hidden from the text (Table 1).

    metrics: `vqa` (accuracy by the VQAv2 rule), `vqa_lost` (the share of the uncut accuracy that a cut takes away, by
    the same questions), `cider_ptb` and `cider_whitespace`, `class_overlap` of the last prompt
    token after the last block.  condition: the cut.  setting: of CIDEr the data set, else the knockout's semantics.
    Random cuts are means over their draws.
    """
    return record.table(name, asdict(study), lambda: knockout_rows(study))


def knockout_rows(study: Study) -> pd.DataFrame:
    """Compute what `knockout_table` returns."""
    asked = study.pictures("questions")
    captioned = {data: study.pictures("captions", data) for data in CAPTIONED[study.source]}
    draws = {condition: repeated(study, cut) for condition, cut in CUTS.items()}
    cuts = [cut for several in draws.values() for cut in several]
    by_cut = lambda task, shown: dict(zip(cuts, answers_by_cut(study, task, shown, cuts), strict=True))
    answered = by_cut("questions", asked)
    described = {data: by_cut("captions", shown) for data, shown in captioned.items()}
    rows = []
    for condition, several in draws.items():
        right = [vqa.vqa_accuracy(answered[cut], [p.answers for p in asked]) for cut in several]
        scores = np.mean(right, 0)
        rows.append(row(study, condition, 0, 0.0, "vqa", study.how, bootstrap_mean(scores)))
        if condition == "none":
            whole = scores
        else:
            rows.append(row(study, condition, 0, 0.0, "vqa_lost", study.how, share_lost(whole, scores, study.seed)))
        for data, shown in captioned.items():
            said = [described[data][cut] for cut in several]
            references = [list(picture.captions) for picture in shown]
            for tokenizer in ("ptb", "whitespace"):
                scores = np.mean([captions.cider(texts, references, tokenizer)[0] for texts in said], 0)
                rows.append(row(study, condition, 0, 0.0, f"cider_{tokenizer}", data, bootstrap_mean(scores)))
        overlap = averaged([output_overlap(study, cut) for cut in several])
        rows.append(row(study, condition, 0, 0.0, "class_overlap", study.how, overlap))
    return pd.DataFrame(rows)


def share_lost(whole: np.ndarray, left: np.ndarray, seed: int = 0, n_bootstrap: int = 200) -> Estimate:
    """Which share of a mean score is lost, with an interval that resamples questions; both scores of one question stay
    together, so that equal scores are a loss of exactly 0.

    whole, left: (N,) scores before and after.  NaN where there was nothing to lose.
    """
    n = len(whole)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_bootstrap)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = 1 - (counts @ left) / (counts @ whole)
        value = 1 - left.sum() / whole.sum()
    if not np.isfinite(value):
        return Estimate(np.nan, np.nan, np.nan, n)
    low, high = np.nanquantile(found[np.isfinite(found)], [0.025, 0.975])
    return Estimate(float(value), float(low), float(high), n)


def averaged(found: Sequence[Estimate]) -> Estimate:
    """The mean of estimates on the same pictures, its interval the mean of theirs."""
    ends = {name: float(np.mean([getattr(e, name) for e in found])) for name in ("value", "low", "high")}
    return replace(found[0], **ends)


def output_overlap(study: Study, cut: Cut) -> Estimate:
    """Class overlap of the last prompt token after the last block, with a cut."""
    inside = lambda model, tokens, seeds: cutting(model, tokens, seeds, cut, study.how)
    last, made = {"last text": gate.TOKENS["last text"]}, {"cut": asdict(cut), "how": study.how}
    states, overlap = gate.class_states(study, last, f"states, {name_of(cut)}", inside=inside, inputs=made)
    return overlap("last text", states.n_layers)


def progressive_knockout(study: Study, name: str = "progressive_knockout", step: int = 1) -> pd.DataFrame:
    """Class overlap of the output when a cut is made from block x to the last (Fig A3).

    step: of x.  layer: x; L stands for no cut.  condition: the cut.
    """
    return record.table(name, asdict(study) | {"step": step}, lambda: progressive_rows(study, step))


def progressive_rows(study: Study, step: int) -> pd.DataFrame:
    """Compute what `progressive_knockout` returns."""
    n_layers = study.network().n_layers
    untouched = output_overlap(study, CUTS["none"])
    rows = []
    for condition in ("end → text", "image → text"):
        for first in range(0, n_layers, step):
            found = output_overlap(study, replace(CUTS[condition], first=first))
            rows.append(row(study, condition, first, first / n_layers, "class_overlap", study.how, found))
        rows.append(row(study, condition, n_layers, 1.0, "class_overlap", study.how, untouched))
    return pd.DataFrame(rows)


def patching(study: Study, name: str = "patching", step: int = 1) -> pd.DataFrame:
    """What the model says next when its end-of-image token gets another picture's state (Fig 5).

    step: of the layers.  metrics: `similarity` of the patched output to the other picture's; `flips` (all pairs) and
    `flips_of_right` (those where the unpatched model prefers its own picture's word): how often the preference of
    the own word over the other's changes sides.  condition: "residual" at a layer; "attention" from a block on;
    "none" is the unpatched output (layer 0).
    """
    return record.table(name, asdict(study) | {"step": step}, lambda: patching_rows(study, step))


def patching_rows(study: Study, step: int) -> pd.DataFrame:
    """Compute what `patching` returns."""
    model = study.network()
    classes = told_apart(model, picture_sets.pairs(study.source, study.n_per_pair, study.seed))
    pairs = [both for each in classes for both in zip(*each.pictures, strict=True)]
    words = [tuple(first_token(model, name) for name in each.names) for each in classes for _ in each.pictures[0]]
    for a, b in pairs:
        if a.key == b.key:
            raise BadParameter(f"The picture {a.key} would be patched with itself.")
    ids = torch.tensor(words)
    steps = [("none", 0)]
    steps += [("residual", layer) for layer in range(0, model.n_layers + 1, step)]
    steps += [("attention", first) for first in range(0, model.n_layers, step)]
    base, other = (list(side) for side in zip(*pairs, strict=True))
    asked = lambda side: [study.prompt("classes", picture) for picture in side]
    both = zip(
        token_states.batches(study, base, asked(base), "patching"),
        token_states.batches(study, other, asked(other), "patched from"),
        strict=True,
    )
    found = [outputs(model, batch, source, steps) for (_, batch, _), (_, source, _) in both]
    target = torch.cat([theirs for theirs, _ in found])
    patched_logits = {step: torch.cat([ours[step] for _, ours in found]) for step in steps}
    untouched = patched_logits["none", 0]
    rows = []
    for (kind, layer), logits in patched_logits.items():
        depth = layer / model.n_layers
        alike = bootstrap_mean(similarity.similarity(logits, target).numpy())
        rows.append(row(study, kind, layer, depth, "similarity", "", alike))
        flips = similarity.flips(untouched, logits, ids[:, 0], ids[:, 1])
        counted = {"flips": flips.of_all, "flips_of_right": flips.of_right, "sign_changes": flips.sign_changes}
        rows += [row(study, kind, layer, depth, metric, "", found) for metric, found in counted.items() if found]
        if kind == "none":
            rows.append(row(study, kind, layer, depth, "base_right", "", flips.base_right))
    return pd.DataFrame(rows)


@torch.inference_mode()
def outputs(
    model: VisionLanguageModel, batch: Batch, source: Batch, steps: Sequence[tuple[str, int]]
) -> tuple[Tensor, dict[tuple[str, int], Tensor]]:
    """What is said next by prompts, and by others whose end-of-image tokens get the states of these, (B, V) each.

    batch: the prompts that are patched.  source: those whose states they get.  steps: ("none", 0), or "residual" and a
    layer, or "attention" and the first block.  Returns the logits of `source`, and those of `batch` by step.
    """
    run = lambda inputs: model.network(**inputs, logits_to_keep=1).logits[:, -1].float().cpu()
    with read_states(model, single_position(source.tokens.where("end"))) as states:
        theirs = run(source.inputs | {"use_cache": False})
    rest = tail(model, batch, single_position(batch.tokens.where("end")))
    found = {}
    for kind, layer in steps:
        match kind:
            case "none":
                context = nullcontext()
            case "residual":
                context = patched(model, states.residual[:, layer], rest.position, layer)
            case _:
                context = patched_attention(model, states.attention_input, rest.position, layer)
        with context:
            found[kind, layer] = run(rest.inputs())
    return theirs, found


def told_apart(model: VisionLanguageModel, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose names begin with different tokens; says which do not.  Raises BadParameter if none do."""
    kept = [pair for pair in pairs if first_token(model, pair.names[0]) != first_token(model, pair.names[1])]
    if not kept:
        raise BadParameter(f"All {len(pairs)} pairs of names begin with one token of {model.name}: nothing can flip.")
    if left := [" and ".join(pair.names) for pair in pairs if pair not in kept]:
        print(f"Left out, since {model.name} begins both names with one token: {', '.join(left)}.")
    return kept


def first_token(model: VisionLanguageModel, word: str) -> int:
    """The first token of a word in the middle of a text."""
    ids = model.tokenizer.encode(f" {word}", add_special_tokens=False)
    # Tokenizers of the SentencePiece kind may write the space as a token of its own.
    return next(i for i in ids if model.tokenizer.decode([i]).strip())
