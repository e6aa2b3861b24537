"""A rule that nobody can know: made-up words with made-up meanings, to be learned from the examples in the prompt.

table = lookup.measured("smollm2-135m-instruct")

What is right is known on both sides: a word that was shown can be looked up, so a model that reads its examples is
always right; one that was not shown can only be guessed, so that no model is right more often than half of the time.
"""

from __future__ import annotations

from itertools import takewhile

import numpy as np
import pandas as pd
import torch

from . import record
from .errors import BadParameter
from .models import LanguageModel, dtype_named, load
from .uncertainty import mean_estimate

LABELS = ("red", "blue")
SHOTS = (1, 2, 4, 8, 16)
SOUNDS = (("bl", "dr", "fl", "gr", "kl", "pr", "st", "tr", "v", "z"), "aeiou", ("b", "ck", "ft", "m", "nd", "p", "x"))


def measured(model: str, n_rules: int = 50, seed: int = 0, dtype: str | None = None) -> pd.DataFrame:
    """Accuracy for words that were among the examples and for words that were not, by number of examples.

    Columns: shots, asked ("shown", "new"), value with low and high over the rules, n; prompt, one of them.
    Recorded as `known_lookup`.  Raises BadParameter if the labels are the same to the model's tokenizer.
    """
    inputs = {"model": model, "n_rules": n_rules, "seed": seed, "dtype": dtype}

    def compute() -> pd.DataFrame:
        network = load(model, dtype=dtype_named(dtype))
        rows = []
        for n_shots in SHOTS:
            for asked in ("shown", "new"):
                prompts = [prompt(n_shots, asked == "shown", [seed, i, n_shots]) for i in range(n_rules)]
                right = [chosen(network, text) == label for text, label in prompts]
                estimate = mean_estimate(np.array(right), seed=seed)
                row = {"shots": n_shots, "asked": asked, "value": estimate.value, "low": estimate.low}
                rows.append(row | {"high": estimate.high, "n": estimate.n, "prompt": prompts[0][0]})
        return pd.DataFrame(rows)

    return record.table("known_lookup", inputs, compute)


def prompt(n_shots: int, shown: bool, seed: list[int]) -> tuple[str, int]:
    """A rule's examples and a word to be labelled, and the label's place in LABELS.

    shown: whether the word is one of the examples.  A label is the toss of a coin, whatever the word and the others'.
    """
    rng = np.random.default_rng(seed)
    words = [word(rng)]
    while len(words) < n_shots + 1:
        if (new := word(rng)) not in words:
            words.append(new)
    labels = rng.integers(0, len(LABELS), len(words))
    asked = int(rng.integers(0, n_shots)) if shown else n_shots
    examples = "".join(f"{words[i]}: {LABELS[labels[i]]}\n" for i in range(n_shots))
    return f"{examples}{words[asked]}:", int(labels[asked])


def word(rng: np.random.Generator) -> str:
    """Two syllables that mean nothing."""
    return "".join(str(rng.choice(list(sounds))) for sounds in SOUNDS[:2] + SOUNDS)


@torch.inference_mode()
def chosen(model: LanguageModel, text: str) -> int:
    """The label, as its place in LABELS, that is likelier after the text, by its first token that tells."""
    ids = [model.tokenizer.encode(f" {label}", add_special_tokens=False) for label in LABELS]
    # What both begin with, such as a space that is a token of its own, goes with the prompt.
    pairs = zip(*ids, strict=False)
    shared = [a for a, b in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    if len(shared) == min(map(len, ids)):
        raise BadParameter(f"{model.name} cannot tell {' and '.join(LABELS)} apart: their tokens are {ids}.")
    prompt_ids = torch.tensor([model.tokenizer.encode(text) + shared], device=model.device)
    logits = model.network(prompt_ids, logits_to_keep=1).logits[0, -1]
    return int(logits[[label[len(shared)] for label in ids]].argmax())
