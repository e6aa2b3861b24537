"""The residual stream taken apart: what every block writes, and what the model would say if it stopped there.

lengths, said = stream.taken_apart("smollm2-135m-instruct", n_questions=32)

The state after block l is the embedding plus all that attention and feed-forward layers have written so far. This is
how the models are built, so it is a known answer: the sum of the parts must be the state.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from . import questions, record
from .errors import BadStates, ModelUnavailable
from .models import LanguageModel, dtype_named, load
from .uncertainty import mean_estimate

WRITERS = {"attention": "self_attn", "feed-forward": "mlp"}  # of a block, in the order in which they write
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}  # of the sum, relative to the state
N_SAID = 5


def taken_apart(
    model: str, n_questions: int = 32, n_shots: int = 2, seed: int = 0, dtype: str | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What is written into the last token of WordNet questions, and what the first of them would be answered.

    Lengths: layer, part ("state", "attention", "feed-forward"), value with low and high over the questions, n;
    deviation: the largest of the state from the sum of its parts, relative to its length.
    Said: layer, token, probability of the N_SAID likeliest, if what comes after that block were skipped; right: the
    answer's letter; prompt.  Recorded as `stream_lengths` and `stream_said`.

    Raises ModelUnavailable (another layout of blocks), BadStates (the parts do not add up to the state).

    Source: Elhage et al. 2021 (residual stream); nostalgebraist 2020 (logit lens).
    """
    inputs = {"model": model, "n_questions": n_questions, "n_shots": n_shots, "seed": seed, "dtype": dtype}
    found: list[pd.DataFrame] = []

    def compute() -> list[pd.DataFrame]:
        if not found:
            found.extend(tables(load(model, dtype=dtype_named(dtype)), n_questions, n_shots, seed))
        return found

    lengths = record.table("stream_lengths", inputs, lambda: compute()[0])
    return lengths, record.table("stream_said", inputs, lambda: compute()[1])


def tables(model: LanguageModel, n_questions: int, n_shots: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compute what `taken_apart` returns."""
    prompts = questions.build_prompts(questions.load("wordnet"), n_shots, seed=seed)
    # Evenly from all subjects; which one is first was not chosen by what it is answered.
    asked = prompts[:: max(1, len(prompts) // n_questions)][:n_questions]
    lengths: dict[str, list[np.ndarray]] = {part: [] for part in ("state", *WRITERS)}
    deviation = 0.0
    for number, prompt in enumerate(asked):
        states, parts = read(model, prompt.text)
        deviation = max(deviation, check(model, states, parts))
        lengths["state"].append(states[1:].norm(dim=1).numpy())
        for part, written in parts.items():
            lengths[part].append(written.norm(dim=1).numpy())
        if number == 0:
            said = spoken(model, states).assign(right="ABCD"[prompt.answer], prompt=prompt.text)
    rows = []
    for part, values in lengths.items():
        for layer, column in enumerate(np.array(values).T, 1):  # (layers, questions)
            estimate = mean_estimate(column, seed=seed)
            row = {"layer": layer, "part": part, "value": estimate.value, "low": estimate.low, "high": estimate.high}
            rows.append(row | {"n": estimate.n, "deviation": deviation})
    return pd.DataFrame(rows), said


@torch.inference_mode()
def read(model: LanguageModel, text: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Of the last token of a text: the embedding and the state after every block, (L + 1, D), and what attention and
    feed-forward layers write, (L, D) each; float32 or float64, on the CPU.

    Raises ModelUnavailable for blocks without `self_attn` and `mlp`.
    """
    decoder = model.network.get_decoder()
    written: dict[str, list[Tensor]] = {part: [] for part in WRITERS}

    def note(part: str):
        def hook(module: nn.Module, args: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
            hidden = output[0] if isinstance(output, tuple) else output  # attention also returns its pattern
            written[part].append(wide(hidden[0, -1]))

        return hook

    with ExitStack() as hooks:
        for block in decoder.layers:
            for part, name in WRITERS.items():
                if not hasattr(block, name):
                    raise ModelUnavailable(f"The blocks of {model.name} have no `{name}`; see `stream.WRITERS`.")
                hooks.callback(getattr(block, name).register_forward_hook(note(part)).remove)
        ids = torch.tensor([model.tokenizer.encode(text)], device=model.device)
        states = decoder(ids, output_hidden_states=True).hidden_states
    return torch.stack([wide(state[0, -1]) for state in states]), {k: torch.stack(v) for k, v in written.items()}


def check(model: LanguageModel, states: Tensor, parts: dict[str, Tensor]) -> float:
    """The largest distance of a state from the sum of its parts, relative to its length.  Raises BadStates."""
    sums = states[0] + sum(parts.values()).cumsum(0)  # (L, D)
    deviation = float(((sums - states[1:]).norm(dim=1) / states[1:].norm(dim=1)).max())
    if not deviation < TOLERANCE[model.dtype]:
        raise BadStates(
            f"{model.name}: embedding and writes differ from the state by {deviation:.1g} of its length. Its blocks do "
            "not simply add what attention and feed-forward layers return; take a model built like Llama."
        )
    return deviation


@torch.inference_mode()
def spoken(model: LanguageModel, states: Tensor) -> pd.DataFrame:
    """The likeliest next tokens if the state after each block went straight to the final norm and the head."""
    stream = states[1:].to(model.device, model.dtype)  # (L, D)
    logits = model.network.get_output_embeddings()(model.norms[-1](stream))
    top = logits.double().softmax(-1).topk(N_SAID, dim=-1)
    rows = []
    for layer, (values, ids) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True), 1):
        for probability, token in zip(values, ids, strict=True):
            rows.append({"layer": layer, "token": model.tokenizer.decode([token]), "probability": probability})
    return pd.DataFrame(rows)


def wide(vector: Tensor) -> Tensor:
    """In float32 at least, on the CPU: half precision would blur the sum."""
    return vector.to("cpu", torch.float64 if vector.dtype == torch.float64 else torch.float32)
