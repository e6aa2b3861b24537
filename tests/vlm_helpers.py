"""What the tests of interventions share: tiny models, pictures, and modules with a planted fault."""

import sys
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from peaks_and_gates.gate import vlm
from tiny_vlms import tiny_vlm

FAMILIES = ["chameleon", "emu3", "janus", "llava", "llava_onevision", "pixtral", "idefics3"]
TEXTS = ["<image> What is this?", "<image> Red, or rather a dark shade of green?", "<image> How many?"]
_models = {}


def load(family, implementation="sdpa", dtype=torch.float32):
    """A tiny model, made once."""
    key = family, implementation, dtype
    if key not in _models:
        _models[key] = vlm.load(str(tiny_vlm(family)), dtype, "cpu", implementation)
    return _models[key]


def picture(seed, size=(64, 64)):
    """Noise in blocks, so that no processor's resizing makes two of them alike."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def encoded(model, n=3, side="left", first=0):
    """Pictures and prompts of other lengths."""
    return vlm.encode(model, [picture(first + i) for i in range(n)], TEXTS[:n], side)


def logits(model, batch):
    """(B, T, V)."""
    with torch.inference_mode():
        return model.network(**batch.inputs).logits.float()


def generated(model, batch, cached=True):
    """Logits (B, 6, V) of six tokens generated greedily; never an image token, which the models refuse to read."""
    with torch.inference_mode():
        out = model.network.generate(
            **batch.inputs,
            max_new_tokens=6,
            min_new_tokens=6,
            suppress_tokens=[model.network.config.image_token_id],
            do_sample=False,
            use_cache=cached,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return torch.stack(out.logits, 1)


def close(a, b, tolerance=1e-4):
    """Whether two tensors are alike everywhere."""
    return (a - b).abs().max().item() < tolerance


@contextmanager
def broken(module, old, new):
    """A copy of a module with a fault planted in its text."""
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1, f"{old!r} no longer fits the code"
    copy = types.ModuleType("peaks_and_gates.broken")
    copy.__package__ = "peaks_and_gates"
    sys.modules[copy.__name__] = copy  # dataclasses look their module up
    try:
        exec(compile(source.replace(old, new), copy.__name__, "exec"), copy.__dict__)
        yield copy
    finally:
        del sys.modules[copy.__name__]
