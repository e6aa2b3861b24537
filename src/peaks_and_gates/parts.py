"""Parts of minis that are trained once and shared by several: a file of weights beside its card."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from . import store


def part(
    settings: Mapping[str, Any], path: Path, train: Callable[[], Mapping[str, Tensor]], code: Iterable[str]
) -> dict[str, Tensor]:
    """The weights in a file, float32; trained and written first unless they are there.

    settings: what the weights are made from.  path: a safetensors file; its card, a JSON file of the same name, says
    what it was made from.  code: the modules that make it.  Weights are rounded to bfloat16 before anything is made
    with them: what minis are trained on is what they read later.
    Raises StorageFull; MissingFile, HashMismatch if the file is not the one its card describes, or that is damaged.
    """
    card = path.with_suffix(".json")
    if path.is_file() and not card.is_file():
        warnings.warn(f"{path} has no {card.name}, so it was not finished: it is trained again.", stacklevel=2)
    if not card.is_file() or store.read_json(card)["made_from"] != json.loads(json.dumps(dict(settings))):
        start = time.perf_counter()
        weights = {name: tensor.bfloat16() for name, tensor in train().items()}
        card.unlink(missing_ok=True)
        store.write_atomically(path, lambda temporary: save_file(weights, temporary))
        about = {"made_from": dict(settings), "code": store.code_version(*code), "sha256": store.file_sha256(path)}
        seconds = time.perf_counter() - start
        store.write_json(card, about | {"seconds": seconds, "environment": store.environment()})
    store.check_files(path.parent, {path.name: store.read_json(card)["sha256"]})
    return {name: tensor.float() for name, tensor in load_file(path).items()}
