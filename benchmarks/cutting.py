"""Knockout and patching of the native mini, as the book does them, against one picture at a time with eager attention.

The book takes pictures in batches, under SDPA, and runs what a patch leaves as it is once.

    python benchmarks/cutting.py

What the model says, and the states' outputs, are compared first.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from common import keep, side_by_side

from peaks_and_gates.cache import digest
from peaks_and_gates.gate import pictures, vlm
from peaks_and_gates.gate.experiment import KNOCKOUTS, PROMPTS, apply_knockout
from peaks_and_gates.gate.patching import patched, patched_attention, read_states, single_position
from peaks_and_gates.gate.split import split_prompt

MODEL = "mini-native-0"
N, BATCH = 128, 64
N_NEW = 6  # tokens of an answer


def parts(items, size):
    """A list in parts of so many."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def questions(model, shown):
    """The prompts that ask each picture's question."""
    texts = [PROMPTS["scenes"]["questions"].format(question=picture.question) for picture in shown]
    return vlm.encode(model, [picture.image for picture in shown], texts)


def seeds(shown):
    """What the random cuts of each picture are drawn with."""
    return [int(digest(picture.key)[:8], 16) for picture in shown]


@torch.inference_mode()
def knocked_out(model, shown, size):
    """What the model answers with every cut of the knockout table: by cut, a list of texts."""
    said = [[] for _ in KNOCKOUTS]
    for part in parts(shown, size):
        batch = questions(model, part)
        prompt = split_prompt(model, batch, single_position(batch.tokens.where("gate")))
        for texts, knockout in zip(said, KNOCKOUTS.values(), strict=True):
            tokens, inputs = prompt.to_generate(knockout.targets)
            with apply_knockout(model, tokens, seeds(part), knockout, "zero"):
                ids = model.network.generate(**inputs, max_new_tokens=N_NEW, do_sample=False, num_beams=1)
            texts += model.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


@torch.inference_mode()
def plainly_knocked_out(model, shown, size):
    """The same by whole prompts, as one would write it."""
    said = [[] for _ in KNOCKOUTS]
    for part in parts(shown, size):
        batch = questions(model, part)
        for kept, cut in zip(said, KNOCKOUTS.values(), strict=True):
            with apply_knockout(model, batch.tokens, seeds(part), cut, "zero"):
                ids = model.network.generate(**batch.inputs, max_new_tokens=N_NEW, do_sample=False, num_beams=1)
            new = ids[:, batch.inputs["input_ids"].shape[1] :]
            kept += model.tokenizer.batch_decode(new, skip_special_tokens=True)
    return said


def prompts(model, shown):
    """The class prompts of some pictures."""
    return vlm.encode(model, [picture.image for picture in shown], [PROMPTS["scenes"]["classes"]] * len(shown))


def sweep(model):
    """Every step of the page on patching."""
    layers = range(model.n_layers)
    return [("none", 0), *(("residual", i) for i in (*layers, model.n_layers)), *(("attention", i) for i in layers)]


@torch.inference_mode()
def patched_logits(model, source, inputs, position):
    """Logits (B, steps, vocabulary) of prompts with others' end-of-image states.  inputs: called for each step."""
    run = lambda inputs: model.network(**inputs, logits_to_keep=1).logits[:, -1]
    with read_states(model, single_position(source.tokens.where("gate"))) as states:
        run(source.inputs | {"use_cache": False})
    logits = []
    for kind, layer in sweep(model):
        context = nullcontext()
        if kind == "residual":
            context = patched(model, states.residual[:, layer], position, layer)
        if kind == "attention":
            context = patched_attention(model, states.attention_input, position, layer)
        with context:
            logits.append(run(inputs()))
    return torch.stack(logits, 1)


def patched_outputs(model, shown, size):
    """The logits (N, steps, vocabulary) of each picture, with the next one's end-of-image state at every step."""
    found = []
    for mine, theirs in zip(parts(shown, size), parts(shown[1:] + shown[:1], size), strict=True):
        base, source = prompts(model, mine), prompts(model, theirs)
        prompt = split_prompt(model, base, single_position(base.tokens.where("gate")))
        found.append(patched_logits(model, source, prompt.inputs, prompt.position))
    return torch.cat(found)


@torch.inference_mode()
def plainly_patched_outputs(model, shown, size):
    """The same by whole prompts, as one would write it."""
    found = []
    for mine, theirs in zip(parts(shown, size), parts(shown[1:] + shown[:1], size), strict=True):
        base, source = prompts(model, mine), prompts(model, theirs)
        inputs = base.inputs | {"use_cache": False}
        found.append(
            patched_logits(model, source, lambda inputs=inputs: inputs, single_position(base.tokens.where("gate")))
        )
    return torch.cat(found)


ACTS = {"knockout": (knocked_out, plainly_knocked_out), "patching": (patched_outputs, plainly_patched_outputs)}


def main():
    """Print the table and keep it."""
    batched, single = (vlm.load(MODEL, attention=attention) for attention in ("sdpa", "eager"))
    shown, rows = pictures.load("questions", "scenes", N, 0), []
    print("             plain pictures/s  ours pictures/s  ratio")
    for name, (ours, plain) in ACTS.items():
        ours(batched, shown, BATCH), plain(single, shown, 1)  # the codes of the pictures are found here
        (fast, found), (slow, expected) = side_by_side(
            lambda ours=ours: ours(batched, shown, BATCH), lambda plain=plain: plain(single, shown, 1)
        )
        if name == "knockout":
            pairs = [pair for both in zip(found, expected, strict=True) for pair in zip(*both, strict=True)]
            same, asked = sum(ours == plain for ours, plain in pairs), len(pairs)
            assert same == asked, f"{asked - same} of {asked} answers differ"
            agreement = f"{same} of {asked} answers equal"
        else:
            off = float((found - expected).abs().max())
            assert off < 1e-3, f"logits differ by {off}"
            agreement = f"logits within {off:.0e}"
        row = {
            "benchmark": name,
            "setting": f"mini-native, batches of {BATCH}",
            "unit": "pictures/s",
            "agreement": agreement,
        }
        rows.append(row | {"ours": N / fast, "reference": N / slow, "ratio": slow / fast})
        print(f"{name:<12} {N / slow:>16.1f} {N / fast:>16.1f} {slow / fast:>6.1f}", flush=True)
    keep("cutting", rows)


if __name__ == "__main__":
    main()
