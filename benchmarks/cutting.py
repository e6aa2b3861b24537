"""Knockout and patching of the native mini: batches under SDPA against one picture at a time with eager attention.

    python benchmarks/cutting.py

What the model says, and the states' outputs, are compared first.
"""

from __future__ import annotations

import torch
from common import keep, seconds

from peaks_and_gates import pictures, vlms
from peaks_and_gates.gate import PROMPTS
from peaks_and_gates.interventions import CUTS, cutting
from peaks_and_gates.patching import patched, recorded
from peaks_and_gates.tokens import only

MODEL = "mini-native-0"
N, BATCH = 64, 16
N_NEW = 6  # tokens of an answer


def parts(items, size):
    """A list in parts of so many."""
    return [items[start : start + size] for start in range(0, len(items), size)]


@torch.inference_mode()
def knocked_out(model, shown, size):
    """What the model answers without its end-of-image token."""
    said = []
    for part in parts(shown, size):
        texts = [PROMPTS["scenes"]["questions"].format(question=picture.question) for picture in part]
        batch = vlms.encode(model, [picture.image for picture in part], texts)
        with cutting(model, batch.tokens, [0] * len(part), CUTS["end → text"], "zero"):
            ids = model.network.generate(**batch.inputs, max_new_tokens=N_NEW, do_sample=False, num_beams=1)
        said += model.tokenizer.batch_decode(ids[:, batch.inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


@torch.inference_mode()
def patched_outputs(model, shown, size):
    """The logits (N, vocabulary) of each picture with the next one's end-of-image state, halfway up."""
    found, layer = [], model.n_layers // 2
    others = shown[1:] + shown[:1]
    for mine, theirs in zip(parts(shown, size), parts(others, size), strict=True):
        texts = [PROMPTS["scenes"]["classes"]] * len(mine)
        base = vlms.encode(model, [picture.image for picture in mine], texts)
        source = vlms.encode(model, [picture.image for picture in theirs], texts)
        run = lambda inputs: model.network(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1]
        with recorded(model, only(source.tokens.where("end"))) as states:
            run(source.inputs)
        with patched(model, states.residual[:, layer], only(base.tokens.where("end")), layer):
            found.append(run(base.inputs))
    return torch.cat(found)


def main():
    """Print the table and keep it."""
    batched, single = (vlms.load(MODEL, attention=attention) for attention in ("sdpa", "eager"))
    shown, rows = pictures.load("questions", "scenes", N, 0), []
    print("             plain pictures/s  ours pictures/s  ratio")
    for name, act in {"knockout": knocked_out, "patching": patched_outputs}.items():
        act(batched, shown[:BATCH], BATCH), act(single, shown[:2], 1)
        slow, expected = seconds(lambda act=act: act(single, shown, 1))
        fast, found = seconds(lambda act=act: act(batched, shown, BATCH))
        if name == "knockout":
            same = sum(a == b for a, b in zip(found, expected, strict=True))
            assert same == N, f"{N - same} of {N} answers differ"
            agreement = f"{same} of {N} answers equal"
        else:
            off = float((found - expected).abs().max())
            assert off < 1e-3, f"logits differ by {off}"
            agreement = f"logits within {off:.0e}"
        row = {"benchmark": name, "setting": f"batches of {BATCH}", "unit": "pictures/s", "agreement": agreement}
        rows.append(row | {"ours": N / fast, "reference": N / slow, "ratio": slow / fast})
        print(f"{name:<12} {N / slow:>16.1f} {N / fast:>16.1f} {slow / fast:>6.1f}", flush=True)
    keep("cutting", rows)


if __name__ == "__main__":
    main()
