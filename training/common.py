"""What every training shares: cards, and a loop of steps that a killed run resumes.

log = train_loop(network, optimizers, loss_of_step, settings, n_steps, work)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from peaks_and_gates.cache import check_files, environment, file_sha256, read_json, write_atomically, write_json
from peaks_and_gates.errors import BookError, UnknownName

ROOT = Path(__file__).parents[1]  # the checkout

SAVE_EVERY = 20  # steps between two states: what a killed run loses at most
DIVERGED = 2.0  # times the first losses' mean
WINDOW = 10  # steps a loss is averaged over before it is judged


class TrainingDiverged(BookError):
    """A fine-tuning run whose loss grew or stopped being a number."""


@dataclass
class Log:
    """What a run measured.  loss: a mean per step.  validation: rows of step, shots, accuracy.  seconds: in all."""

    loss: list[float] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


# Files and cards


def read_recipes(file: Path, preset: str) -> dict[str, Any]:
    """What a YAML file says for a preset.  Raises UnknownName."""
    known = yaml.safe_load(file.read_text())
    if preset not in known:
        raise UnknownName("preset with recipes", preset, known)
    return known[preset]


def command_line(prog: str, text: str) -> argparse.Namespace:
    """The arguments of a command: names, preset, seed (a list)."""
    parser = argparse.ArgumentParser(prog=f"python -m training.{prog}", description=text)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--seed", type=int, action="append", default=[], help="of the recipe; may be repeated")
    return parser.parse_args()


def weights_folder(preset: str) -> Path:
    """`weights/` in the checkout for the book's own; a folder by preset in it for the others."""
    return ROOT / "weights" if preset == "laptop" else ROOT / "weights" / preset


def write_data(name: str, table: pd.DataFrame) -> None:
    """Write a table into `data/` as Parquet or CSV, and then its card, a JSON file: what cards.yml says of it, hash,
    rows and versions.  Raises StorageFull.
    """
    path = ROOT / "data" / name
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        write_atomically(path, lambda temporary: table.to_parquet(temporary, index=False, compression="zstd"))
    card = yaml.safe_load(Path(__file__).with_name("cards.yml").read_text())[name]
    about = {"sha256": file_sha256(path), "rows": len(table), "columns": list(table.columns)}
    write_json(path.with_suffix(".json"), card | about | {"environment": environment()})


def is_made_from(card: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether a card is there and says that its weights were made from this."""
    return card.is_file() and read_json(card).get("made_from") == json.loads(json.dumps(made_from))


def write_card(card: Path, made_from: Mapping[str, Any], **about: Any) -> None:
    """Write the card of weights; after them, so that weights with a fitting card are complete."""
    origin = {
        "made_from": made_from,
        "code": source_hash(),
        "environment": environment(),
        "licence": "MIT, as the book",
    }
    write_json(card, origin | about)


def load_or_train(
    settings: Mapping[str, Any], path: Path, train: Callable[[Mapping[str, Any]], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The weights in a safetensors file, float32; trained by the settings and written first, unless they are there.

    Weights are rounded to bfloat16 before anything is made with them: what minis are trained on is what they read
    later.  Raises StorageFull, MissingFile, HashMismatch.
    """
    card = path.with_suffix(".json")
    if not is_made_from(card, settings):
        start = time.perf_counter()
        weights = {name: tensor.bfloat16() for name, tensor in train(settings).items()}
        card.unlink(missing_ok=True)
        write_atomically(path, lambda temporary: save_file(weights, temporary))
        write_card(card, settings, sha256=file_sha256(path), seconds=time.perf_counter() - start)
    check_files(path.parent, {path.name: read_json(card)["sha256"]})
    return {name: tensor.float() for name, tensor in load_file(path).items()}


@cache
def source_hash() -> str:
    """Hash of all code in `training`: a run that was begun by other code is not resumed."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


# Steps


def learning_rate(step: int, n_steps: int, highest: float, warmup: float) -> float:
    """Linear from 0 over the first share `warmup` of the steps, then a half cosine down to 0."""
    first = max(1, round(warmup * n_steps))
    if step < first:
        return highest * (step + 1) / first
    return highest * 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, n_steps - first)))


def check_loss(losses: Sequence[float], uniform: float, work: Path) -> None:
    """Raise TrainingDiverged if the loss is not finite, or its running mean far above where it began, or if it rose to
    `uniform`, the loss of a model that knows nothing, or stays there to the digit: huge steps end so, not at infinity,
    because norms saturate.  work: the folder of checkpoints, the last of which the message names.
    """
    first, recent = losses[:WINDOW], losses[-WINDOW:]
    began, mean = sum(first) / len(first), sum(recent) / len(recent)
    rose = mean > 0.95 * uniform > 1.1 * began  # a model that knew nothing at first cannot fall back to it
    dead = len(losses) > WINDOW and all(abs(loss - uniform) < 1e-4 * uniform for loss in recent)
    if math.isfinite(losses[-1]) and not (rose or dead or mean > DIVERGED * began):
        return
    checkpoints = sorted(work.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    where = f"The last good checkpoint is {checkpoints[-1]}." if checkpoints else "There is no checkpoint yet."
    raise TrainingDiverged(
        f"The loss became {losses[-1]:.3g} at step {len(losses)}, it began at {losses[0]:.3g}. {where} "
        "Lower `learning_rate` in the recipe and run the same command again."
    )


def build_optimizers(weights: Mapping[str, Tensor]) -> list[Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all the rest; one learning rate serves both.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025, whose scaling makes its steps as large as AdamW's.  At this size
    it needs about two thirds of the steps that AdamW alone does.
    """
    # Chameleon's norms of queries and keys have a row for each head, and are no matrices for that.
    matrices = {name for name, p in weights.items() if p.ndim == 2 and ".layers." in name and "norm" not in name}
    return [
        torch.optim.Muon(
            [weights[n] for n in weights if n in matrices], weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW([weights[n] for n in weights if n not in matrices], weight_decay=0.0),
    ]


def take_step(optimizers: Sequence[Optimizer], rate: float) -> None:
    """One step down the gradients there are, which are then gone.  rate: the learning rate."""
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()


def train_loop(
    network: nn.Module,
    optimizers: Sequence[Optimizer],
    loss_of_step: Callable[[int], tuple[Tensor, float]],
    settings: Mapping[str, Any],
    n_steps: int,
    work: Path,
    *,
    vocabulary: int,
    clip: float = math.inf,
    knows: float = 0.0,
    after_step: Callable[[int, Log], None] = lambda done, log: None,
) -> Log:
    """All steps, from the state in the folder `work` on if there is one.  Returns what was measured.

    loss_of_step: the loss of a step, from 0, and the number that stands for it in the log; what it shows must depend on
    the step alone.  vocabulary: tokens among which the loss is taken.  clip: the longest gradient.  knows: a loss below
    this share of that of a model that knows nothing counts as this share where it is judged.  after_step: called with
    the number of steps done, and the log, before the state is stored.  Raises TrainingDiverged, StorageFull.
    """
    weights = {name: p for name, p in network.named_parameters() if p.requires_grad}
    log, done = restore_state(weights, optimizers, work / "state.safetensors")
    uniform = math.log(vocabulary)
    with tqdm(total=n_steps, initial=done, desc="training", unit="step") as progress:
        for step in range(done, n_steps):
            start = time.perf_counter()
            network.train()
            loss, measured = loss_of_step(step)
            loss.backward()
            nn.utils.clip_grad_norm_(weights.values(), clip)
            log.loss.append(measured)
            check_loss([max(loss, knows * uniform) for loss in log.loss], uniform, work)
            take_step(optimizers, learning_rate(step, n_steps, settings["learning_rate"], settings["warmup"]))
            network.eval()
            after_step(step + 1, log)
            log.seconds += time.perf_counter() - start
            progress.update()
            progress.set_postfix(loss=f"{sum(log.loss[-20:]) / len(log.loss[-20:]):.3f}")
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == n_steps:
                save_state(weights, optimizers, log, step + 1, work / "state.safetensors")
    return log


# A state to resume from: one file, complete or not there


def save_state(weights: Mapping[str, Tensor], optimizers: Sequence[Optimizer], log: Log, done: int, path: Path) -> None:
    """Write the weights, all that the optimizers remember of each, and what was measured in `done` steps."""
    tensors = {f"weight/{name}": p.detach().cpu().contiguous() for name, p in weights.items()}
    for name, p in weights.items():
        for optimizer in optimizers:
            state = optimizer.state.get(p, {})
            tensors |= {f"{key}/{name}": value.cpu().contiguous() for key, value in state.items()}
    about = {"done": str(done), "log": json.dumps(vars(log))}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=about))


def restore_state(weights: Mapping[str, Tensor], optimizers: Sequence[Optimizer], path: Path) -> tuple[Log, int]:
    """Put a stored state back, if there is one.  Returns what was measured, and how many steps are done."""
    if not path.is_file():
        return Log(), 0
    with safe_open(path, framework="pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    owner = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    with torch.no_grad():
        for place, tensor in tensors.items():
            key, name = place.split("/", 1)
            if key == "weight":
                weights[name].copy_(tensor)
            else:
                owner[weights[name]].state[weights[name]][key] = (
                    tensor if key == "step" else tensor.to(weights[name].device)
                )
    return Log(**json.loads(about["log"])), int(about["done"])
