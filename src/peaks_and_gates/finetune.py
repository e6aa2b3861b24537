"""Fine-tune a model with LoRA, so that it can be killed and goes on where it was.

    train(recipe("laptop", "fine-tuned", seed=0), Path("weights/fine-tuned-0"))

A step's texts, and its dropout, depend on seed and step alone. The state (weights, both moments of Adam) is written
whole or not at all; a resumed run therefore ends with the same weights as an uninterrupted one.
Source: Doimo et al. 2024, sec. 2 and appendix (the `paper` recipe); LoRA, Hu et al. 2022.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from . import models, store
from .errors import BadParameter, BookError, HashMismatch, MissingFile, TrainingDiverged, UnknownName
from .extraction import extract
from .models import ADAPTER, LanguageModel
from .progress import bar
from .questions import build_prompts
from .training_sets import Text, TrainingSet, build

CODE = ("finetune", "training_sets", "format_tasks", "models", "questions", "wordnet")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SAVE_EVERY = 20  # steps between two states: what a killed run loses at most
DIVERGED = 2.0  # times the first losses' mean
WINDOW = 10  # steps a loss is averaged over before it is judged
VALIDATION, TESTED = 256, 1200  # questions; what a card says is a check, the notebooks measure


def recipes(preset: str) -> dict[str, dict[str, Any]]:
    """The recipes of a preset by name, in the order in which they build on each other.  Raises UnknownName."""
    known = yaml.safe_load((Path(__file__).parent / "finetune.yml").read_text())
    if preset not in known:
        raise UnknownName("preset with fine-tuning recipes", preset, known)
    return known[preset]


def recipe(preset: str, name: str, **changes: Any) -> dict[str, Any]:
    """One recipe, with changes put in (seed=1, base=...).  Raises UnknownName."""
    known = recipes(preset)
    if name not in known:
        raise UnknownName("recipe", name, known)
    for key in changes:
        if key not in known[name]:
            raise UnknownName("setting", key, known[name])
    return known[name] | changes


@dataclass
class Log:
    """What a run measured.  loss: a mean per step.  validation: rows of step, shots, accuracy.  seconds: in all."""

    loss: list[float] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def learning_rate(step: int, n_steps: int, highest: float, warmup: float) -> float:
    """Linear from 0 over the first share `warmup` of the steps, then a half cosine down to 0."""
    first = max(1, round(warmup * n_steps))
    if step < first:
        return highest * (step + 1) / first
    return highest * 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, n_steps - first)))


def checkpoint_steps(n_steps: int, n: int) -> list[int]:
    """About n steps from 1 to the last, evenly spaced in their logarithm, each once."""
    if n == 0:
        return []
    return sorted({round(n_steps ** (i / (n - 1))) for i in range(n)}) if n > 1 else [n_steps]


def with_lora(model: LanguageModel, settings: Mapping[str, Any]) -> Any:
    """The model with trainable float32 adapters in its seven projections, drawn from the recipe's seed."""
    config = LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=list(PROJECTIONS),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings["seed"])
        return get_peft_model(model.network, config)


def encode(model: LanguageModel, texts: Sequence[Text]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token ids (B, T) padded on the right, and of each answer its row, the position it is predicted at, its token.

    Raises BadParameter if the token after a solved question's "Answer:" is not that of its letter: the loss would
    then be taken at a wrong place, and nothing else would show it.
    """
    batch = model.tokenizer([text.text for text in texts], return_offsets_mapping=True)
    width = max(map(len, batch["input_ids"]))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch["input_ids"]])
    rows, positions, targets = [], [], []
    for row, (text, offsets) in enumerate(zip(texts, batch["offset_mapping"], strict=True)):
        last_at = {stop: i for i, (_, stop) in enumerate(offsets)}
        for end, answer in zip(text.ends, text.answers, strict=True):
            position, token = last_at.get(end, -1), int(model.letter_tokens[answer])
            follows = position + 1 < len(offsets)
            if position < 0 or (follows and int(ids[row, position + 1]) != token):
                raise BadParameter(f"{model.name}: the tokenizer joins the answer with what stands before it.")
            rows.append(row)
            positions.append(position)
            targets.append(token)
    return ids, torch.tensor(rows), torch.tensor(positions), torch.tensor(targets)


def loss_of(model: LanguageModel, texts: Sequence[Text]) -> Tensor:
    """Mean cross-entropy of the answers' tokens over the whole vocabulary; the head runs at their places alone."""
    ids, rows, positions, targets = (part.to(model.device) for part in encode(model, texts))
    hidden = model.network.get_decoder()(ids, use_cache=False).last_hidden_state  # (B, T, D), after the final norm
    logits = model.network.get_output_embeddings()(hidden[rows, positions])  # (answers, vocabulary)
    return cross_entropy(logits.float(), targets)


@contextmanager
def mixed_precision(model: LanguageModel) -> Iterator[None]:
    """Products in the model's dtype, also those of adapters, whose weights stay float32."""
    half = model.dtype in (torch.bfloat16, torch.float16)
    with torch.autocast(model.device.type, model.dtype, enabled=half), disable_input_dtype_casting(model.network, half):
        yield


def accuracy(model: LanguageModel, questions, n_shots: int, split: str, most: int | None = None) -> float:
    """Share of the questions whose right letter has the highest probability of the four; header, one order of shots.

    most: about so many questions, evenly spaced.
    """
    prompts = build_prompts(questions, n_shots, n_orders=1, split=split)
    if most is not None and len(prompts) > most:
        prompts = prompts[:: math.ceil(len(prompts) / most)]
    with mixed_precision(model):
        states = extract(model, prompts, points=())
    return float((states.letter_logprobs.argmax(1) == states.answer).double().mean())


def train_all(preset: str, name: str, seeds: Sequence[int] = ()) -> list[Path]:
    """Train a recipe with each of its seeds, or with those given.  Returns the adapters' folders."""
    settings = recipe(preset, name)
    folders = []
    for seed in seeds or settings["seeds"]:
        one = {key: value for key, value in settings.items() if key != "seeds"} | {"seed": seed}
        label = f"{name}-{seed}" if len(settings["seeds"]) > 1 else name
        folder = weights_folder(preset) / label
        train(one, folder)
        folders.append(folder)
    return folders


def weights_folder(preset: str) -> Path:
    """`weights/` in the checkout for the book's own; a folder by preset in it for the others."""
    root = store.project_folder() or Path.cwd()
    return root / "weights" if preset == "laptop" else root / "weights" / preset


def train(settings: Mapping[str, Any], target: Path, dtype: torch.dtype | None = None) -> Log:
    """Train by a recipe and leave adapter, checkpoints and card in `target`; goes on with a run that was killed.

    Raises TrainingDiverged (the last good checkpoint is kept and named), BadQuestions, BadParameter, HashMismatch.
    """
    card = target / "card.json"
    wanted = {"recipe": dict(settings), "base": models.fingerprint(settings["base"]), "dtype": str(dtype)}
    known = store.read_json(card) if card.is_file() else {}
    if known.get("made_from") == json.loads(json.dumps(wanted)):
        store.check_files(target, known["files"])
        print(f"{target}: done")
        return Log(**known["log"])
    model = models.load(settings["base"], dtype=dtype)
    data = build(settings)
    network = with_lora(model, settings)
    print(f"{target.name}: {data.n_steps} steps of {settings['batch']} questions")
    work = store.cache_folder() / "finetune" / store.digest(wanted | {"code": store.code_version(*CODE)})
    log = descend(model, network, data, settings, work)
    if settings["keep"] == "best":
        scores: dict[int, float] = {}
        for row in log.validation:
            scores[row["step"]] = scores.get(row["step"], 0.0) + row["accuracy"]
        load_state(network, kept_adapter(work / f"step-{max(scores, key=scores.get)}") / ADAPTER[1])
    publish(model, network, data, settings, wanted, log, work, target)
    return log


def descend(model: LanguageModel, network, data: TrainingSet, settings: Mapping[str, Any], work: Path) -> Log:
    """The steps themselves, from the stored state on if there is one."""
    weights = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), weight_decay=0.0)
    log, done = restore(weights, optimizer, work / "state.safetensors")
    checkpoints = set(checkpoint_steps(data.n_steps, settings["checkpoints"])) | {data.n_steps}
    start = time.perf_counter() - log.seconds
    with bar(total=data.n_steps, initial=done, desc="fine-tuning", unit="step") as progress:
        for step in range(done, data.n_steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, data.n_steps, settings["learning_rate"], settings["warmup"])
            torch.manual_seed(int(store.digest(["dropout", settings["seed"], step]), 16) % 2**63)
            network.train()
            with mixed_precision(model):
                loss = loss_of(model, data.batch(step))
            loss.backward()
            log.loss.append(loss.item())
            check_loss(log.loss, math.log(model.network.config.vocab_size), work)
            optimizer.step()
            optimizer.zero_grad()
            network.eval()
            done, log.seconds = step + 1, time.perf_counter() - start
            progress.update()
            progress.set_postfix(loss=f"{sum(log.loss[-WINDOW:]) / len(log.loss[-WINDOW:]):.3f}")
            validated = done % settings["validate_every"] == 0 or done == data.n_steps
            if validated:
                for shots in (0, 5):
                    found = accuracy(model, data.questions, shots, "validation", VALIDATION)
                    log.validation.append({"step": done, "shots": shots, "accuracy": found})
                    progress.write(f"step {done}, {shots} shots: validation accuracy {found:.3f}")
            if done in checkpoints or (validated and settings["keep"] == "best"):
                keep_adapter(network, settings["base"], work / f"step-{done}")
            if done in checkpoints or validated or done % SAVE_EVERY == 0:
                keep_state(weights, optimizer, log, done, work / "state.safetensors")
    return log


def check_loss(losses: Sequence[float], uniform: float, work: Path) -> None:
    """Raise TrainingDiverged if the loss is not finite, or its running mean far above where it began, or if it rose to
    `uniform`, the loss of a model that knows nothing, or stays there to the digit: huge steps end so, not at infinity,
    since norms saturate."""
    first, recent = losses[:WINDOW], losses[-WINDOW:]
    began, mean = sum(first) / len(first), sum(recent) / len(recent)
    rose = mean > 0.95 * uniform > 1.1 * began  # a model that knew nothing at first cannot fall back to it
    dead = len(losses) > WINDOW and all(abs(loss - uniform) < 1e-4 * uniform for loss in recent)
    if math.isfinite(losses[-1]) and not (rose or dead or mean > DIVERGED * began):
        return
    kept = sorted(work.glob("step-*"), key=lambda path: int(path.name.split("-")[1]))
    where = f"The last good checkpoint is {kept[-1]}." if kept else "There is no checkpoint yet."
    raise TrainingDiverged(
        f"The loss became {losses[-1]:.3g} at step {len(losses)}, it began at {losses[0]:.3g}. {where} "
        "Lower `learning_rate` in the recipe and run the same command again."
    )


def keep_state(weights: dict[str, Tensor], optimizer, log: Log, done: int, path: Path) -> None:
    """Write everything a resumed run needs in one file."""
    tensors = {f"weight.{name}": p.detach() for name, p in weights.items()}
    for name, p in weights.items():
        moments = optimizer.state[p]
        tensors |= {f"{key}.{name}": moments[key] for key in ("exp_avg", "exp_avg_sq", "step")}
    store.keep_state(path, tensors, {"done": str(done), "log": json.dumps(vars(log))})


def restore(weights: dict[str, Tensor], optimizer, path: Path) -> tuple[Log, int]:
    """Put a stored state back; a damaged one counts, with a warning, as none."""
    kept = store.kept_state(path)
    if kept is None:
        return Log(), 0
    tensors, about = kept
    log, done = Log(**json.loads(about["log"])), int(about["done"])
    with torch.no_grad():
        for name, p in weights.items():
            p.copy_(tensors[f"weight.{name}"])
            state = {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step")}
            optimizer.state[p] = {k: v if k == "step" else v.to(p.device) for k, v in state.items()}
    return log, done


def save_adapter(network, base: str, folder: Path) -> None:
    """A PEFT adapter in bfloat16, which says in its metadata which base it was trained on."""
    tensors = get_peft_model_state_dict(network, save_embedding_layers=False)
    tensors = {name: tensor.detach().bfloat16().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"format": "pt", "base": base, "base_fingerprint": models.fingerprint(base)}
    config = copy.copy(network.peft_config["default"])
    config.base_model_name_or_path = base
    config.target_modules = list(PROJECTIONS)  # a set would be written in another order by every process
    with store.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
    store.write_atomically(folder / ADAPTER[1], lambda path: save_file(tensors, path, metadata=about))


def keep_adapter(network, base: str, folder: Path) -> None:
    """An adapter that the training itself reads later, with the checksums of its files."""
    save_adapter(network, base, folder)
    store.write_json(folder / ".files.json", {"files": store.checksums(folder)})


def kept_adapter(folder: Path) -> Path:
    """The folder, if it holds what `keep_adapter` put there.  Raises HashMismatch."""
    try:
        store.check_files(folder, store.read_json(folder / ".files.json")["files"])
    except BookError as error:
        raise HashMismatch(f"{error} To train anew, delete {folder.parent} and run the same command again.") from None
    return folder


def load_state(network, path: Path) -> None:
    """Put an adapter's weights into a network that has adapters."""
    with safe_open(path, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping, a file
    set_peft_model_state_dict(network, tensors)


def publish(model, network, data, settings, wanted, log: Log, work: Path, target: Path) -> None:
    """Write the adapter, its checkpoints and its card; the card last, so that a folder with one is complete."""
    with store.writing(target):
        (target / "card.json").unlink(missing_ok=True)
    shutil.rmtree(target / "checkpoints", ignore_errors=True)  # another recipe's are at other steps
    save_adapter(network, settings["base"], target)
    load_state(network, target / ADAPTER[1])  # what is scored is what is stored
    for step in checkpoint_steps(data.n_steps, settings["checkpoints"]):
        for name in ADAPTER:
            content = (kept_adapter(work / f"step-{step}") / name).read_bytes()
            store.write_atomically(
                target / "checkpoints" / f"step-{step}" / name, lambda p, c=content: p.write_bytes(c)
            )
    tested = {shots: accuracy(model, data.questions, shots, "test", TESTED) for shots in (0, 5)}
    scores = {f"{shots}-shot": round(found, 4) for shots, found in tested.items()}
    card = {
        "made_from": wanted,
        "command": "pg finetune",
        "data": data.about,
        "code": store.code_version(*CODE),
        "sha256": store.file_sha256(target / ADAPTER[1]),
        "files": store.checksums(target),
        "test_accuracy": scores,
        "log": vars(log),
        "environment": store.environment(),
    }
    store.write_json(target / "card.json", card)
    print(f"{target}: test accuracy {scores}, {log.seconds / 60:.1f} minutes")


@cache
def check_card(folder: Path) -> dict[str, Any]:
    """The card of a shipped adapter.  Raises MissingFile, HashMismatch if a file is not the one that it describes."""
    card = folder / "card.json"
    if not card.is_file():
        raise MissingFile(f"{folder} has no card.json: its training was not finished. Run `pg finetune` to finish it.")
    about = store.read_json(card)
    store.check_files(folder, about["files"])
    return about
