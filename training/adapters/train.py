"""Fine-tune a model with LoRA (peft); a killed run resumes where it stopped.

    train(recipe("laptop", "fine-tuned", seed=0), Path("weights/fine-tuned-0"))

A step's texts, and its dropout, depend on seed and step alone, so a resumed run ends with the same weights as an
uninterrupted one.
Source: Doimo et al. 2024, sec. 2 and appendix (the `paper` recipe); LoRA, Hu et al. 2022.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from peaks_and_gates import cache, models
from peaks_and_gates.errors import BadParameter, UnknownName
from peaks_and_gates.landscape.extraction import extract
from peaks_and_gates.landscape.questions import QuestionSet, build_prompts
from peaks_and_gates.models import ADAPTER, LanguageModel
from training import common
from training.common import Log

from .data import Text, build

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHOTS = (0, 5)  # that a model is validated with
LICENCE = "MIT, as far as it is the book's to give; the base, SmolLM2-135M-Instruct, is Apache 2.0"
VALIDATION, TESTED = 256, 1200  # questions; what a card says is a check, the notebooks measure


def recipes(preset: str) -> dict[str, dict[str, Any]]:
    """The recipes of a preset by name, in the order in which they build on each other.  Raises UnknownName."""
    return common.read_recipes(Path(__file__).with_name("recipes.yml"), preset)


def recipe(preset: str, name: str, **changes: Any) -> dict[str, Any]:
    """One recipe, with changes put in (seed=1, base=...).  Raises UnknownName."""
    known = recipes(preset)
    if name not in known:
        raise UnknownName("recipe", name, known)
    return known[name] | changes


def checkpoint_steps(n_steps: int, n: int) -> list[int]:
    """About n steps from 1 to the last, evenly spaced in their logarithm, each once."""
    return sorted({round(n_steps ** (i / (n - 1))) for i in range(n)})


def with_lora(model: LanguageModel, settings: Mapping[str, Any]) -> Any:
    """The model with trainable float32 adapters in its seven projections, drawn from the recipe's seed."""
    sizes = {"r": settings["rank"], "lora_alpha": settings["alpha"], "lora_dropout": settings["dropout"]}
    config = LoraConfig(**sizes, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(settings["seed"])
        return get_peft_model(model.network, config)


def encode(model: LanguageModel, texts: Sequence[Text]) -> dict[str, Tensor]:
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
    answers = {"rows": rows, "positions": positions, "targets": targets}
    return {"ids": ids} | {name: torch.tensor(values) for name, values in answers.items()}


def loss_of(model: LanguageModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the answers' tokens over the whole vocabulary; the head runs at their places alone."""
    ids, rows, positions, targets = (batch[name].to(model.device) for name in ("ids", "rows", "positions", "targets"))
    hidden = model.network.get_decoder()(ids, use_cache=False).last_hidden_state  # (B, T, D), after the final norm
    logits = model.network.get_output_embeddings()(hidden[rows, positions])  # (answers, vocabulary)
    return cross_entropy(logits.float(), targets)


@contextmanager
def mixed_precision(model: LanguageModel) -> Iterator[None]:
    """Products in the model's dtype, also those of adapters, whose weights stay float32."""
    half = model.network.dtype in (torch.bfloat16, torch.float16)
    with (
        torch.autocast(model.device.type, model.network.dtype, enabled=half),
        disable_input_dtype_casting(model.network, half),
    ):
        yield


def accuracy(model: LanguageModel, questions: QuestionSet, n_shots: int, split: str, most: int) -> float:
    """Share of the questions whose right letter has the highest probability of the four; header, one order of shots.

    most: about so many questions, evenly spaced.
    """
    prompts = build_prompts(questions, n_shots, n_orders=1, split=split)
    prompts = prompts[:: math.ceil(len(prompts) / most)]
    with mixed_precision(model):
        states = extract(model, prompts, points=())
    return float((states["letter_logprobs"].argmax(1) == states["answer"]).double().mean())


def train(settings: Mapping[str, Any], target: Path, dtype: torch.dtype | None = None) -> Log:
    """Train by a recipe and leave adapter, checkpoints and card in `target`; resumes a run that was killed.

    Raises TrainingDiverged (the last good checkpoint is kept and named), BadQuestions, BadParameter, HashMismatch.
    """
    card, base = target / "card.json", settings["base"]
    made_from = {"recipe": dict(settings), "base": models.fingerprint(base), "dtype": str(dtype)}
    if common.is_made_from(card, made_from):
        about = cache.read_json(card)
        cache.check_files(target, about["files"])
        print(f"{target}: done")
        return Log(**about["log"])
    on_cpu = models.best_device().type == "cpu"
    model = models.load(base, dtype=dtype or (torch.float32 if on_cpu else None))  # as the book's were
    data = build(settings)
    network = with_lora(model, settings)
    work = cache.cache_folder() / "finetune" / cache.digest(made_from | {"code": common.source_hash()})
    checkpoints, best = checkpoint_steps(data.n_steps, settings["checkpoints"]), settings["keep"] == "best"

    def loss_of_step(step: int) -> tuple[Tensor, float]:
        torch.manual_seed(int(cache.digest(["dropout", settings["seed"], step]), 16) % 2**63)
        with mixed_precision(model):
            loss = loss_of(model, encode(model, data.batch(step)))
        return loss, loss.item()

    def after_step(done: int, log: Log) -> None:
        validates = done % settings["validate_every"] == 0 or done == data.n_steps
        if validates:
            scores = {n: accuracy(model, data.questions, n, "validation", VALIDATION) for n in SHOTS}
            log.validation += [{"step": done, "shots": n, "accuracy": score} for n, score in scores.items()]
        if done in checkpoints or (validates and best):
            save_adapter(network, base, work / f"step-{done}")

    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], weight_decay=0.0)
    vocabulary = model.network.config.vocab_size
    log = common.train_loop(
        network, [optimizer], loss_of_step, settings, data.n_steps, work, vocabulary=vocabulary, after_step=after_step
    )
    if best:
        scores = Counter()
        for row in log.validation:
            scores[row["step"]] += row["accuracy"]
        step = max(scores, key=scores.get)  # the first of equals
        set_peft_model_state_dict(network, load_file(work / f"step-{step}" / ADAPTER[1]))
    card.unlink(missing_ok=True)
    shutil.rmtree(target / "checkpoints", ignore_errors=True)  # another recipe's are at other steps
    save_adapter(network, base, target)
    set_peft_model_state_dict(network, load_file(target / ADAPTER[1]))  # what is scored is what is stored
    for step in checkpoints:
        shutil.copytree(work / f"step-{step}", target / "checkpoints" / f"step-{step}")
    scores = {f"{n}-shot": round(accuracy(model, data.questions, n, "test", TESTED), 4) for n in SHOTS}
    sha256, files = cache.file_sha256(target / ADAPTER[1]), cache.checksums(target)
    about = {"data": data.about, "sha256": sha256, "files": files, "test_accuracy": scores, "log": vars(log)}
    common.write_card(card, made_from, command="python -m training.adapters", **about, licence=LICENCE)
    print(f"{target}: test accuracy {scores}, {log.seconds / 60:.1f} minutes")
    return log


def train_all(preset: str, name: str, seeds: Sequence[int] = ()) -> list[Path]:
    """Train a recipe with each of its seeds, or with those given.  Returns the adapters' folders."""
    settings = recipe(preset, name)
    folders = []
    for seed in seeds or settings["seeds"]:
        own = {key: value for key, value in settings.items() if key != "seeds"} | {"seed": seed}
        folders.append(common.weights_folder(preset) / (f"{name}-{seed}" if len(settings["seeds"]) > 1 else name))
        train(own, folders[-1])
    return folders


def save_adapter(network: Any, base: str, folder: Path) -> None:
    """A PEFT adapter in bfloat16, which says in its metadata which base it was trained on."""
    tensors = get_peft_model_state_dict(network, save_embedding_layers=False)
    tensors = {name: tensor.detach().bfloat16().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"format": "pt", "base": base, "base_fingerprint": models.fingerprint(base)}
    config = copy.copy(network.peft_config["default"])
    config.base_model_name_or_path = base
    config.target_modules = list(PROJECTIONS)  # a set would be written in another order by every process
    with cache.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
    cache.write_atomically(folder / ADAPTER[1], lambda path: save_file(tensors, path, metadata=about))
