"""Fine-tune a model with LoRA, on `transformers.Trainer` and peft; a killed run resumes where it stopped.

    train(recipe("laptop", "fine-tuned", seed=0), Path("weights/fine-tuned-0"))

A step's texts, and its dropout, depend on seed and step alone, so a resumed run ends with the same weights as an
uninterrupted one.
Source: Doimo et al. 2024, sec. 2 and appendix (the `paper` recipe); LoRA, Hu et al. 2022.
"""

from __future__ import annotations

import copy
import math
import shutil
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
from torch.utils.data import Dataset, SequentialSampler
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from peaks_and_gates import cache, models
from peaks_and_gates.errors import BadParameter, UnknownName
from peaks_and_gates.landscape.extraction import extract
from peaks_and_gates.landscape.questions import QuestionSet, build_prompts
from peaks_and_gates.models import ADAPTER, LanguageModel
from training import common
from training.common import SAVE_EVERY, Log, check_loss

from .data import Text, TrainingSet, build

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHOTS = (0, 5)  # that a model is validated with
VALIDATION, TESTED = 256, 1200  # questions; what a card says is a check, the notebooks measure


def recipes(preset: str) -> dict[str, dict[str, Any]]:
    """The recipes of a preset by name, in the order in which they build on each other.  Raises UnknownName."""
    return common.read_recipes(Path(__file__).with_name("recipes.yml"), preset)


def recipe(preset: str, name: str, **changes: Any) -> dict[str, Any]:
    """One recipe, with changes put in (seed=1, base=...).  Raises UnknownName."""
    known = recipes(preset)
    if name not in known:
        raise UnknownName("recipe", name, known)
    for key in changes:
        if key not in known[name] and key != "seed":
            raise UnknownName("setting", key, known[name])
    return known[name] | changes


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
    half = model.dtype in (torch.bfloat16, torch.float16)
    with torch.autocast(model.device.type, model.dtype, enabled=half), disable_input_dtype_casting(model.network, half):
        yield


def accuracy(model: LanguageModel, questions: QuestionSet, n_shots: int, split: str, most: int) -> float:
    """Share of the questions whose right letter has the highest probability of the four; header, one order of shots.

    most: about so many questions, evenly spaced.
    """
    prompts = build_prompts(questions, n_shots, n_orders=1, split=split)
    prompts = prompts[:: math.ceil(len(prompts) / most)]
    with mixed_precision(model):
        states = extract(model, prompts, points=())
    return float((states.letter_logprobs.argmax(1) == states.answer).double().mean())


class Steps(Dataset):
    """The batches of a training set, encoded: item i is what step i shows."""

    def __init__(self, model: LanguageModel, data: TrainingSet):
        self.model, self.data = model, data

    def __len__(self) -> int:
        """All steps."""
        return self.data.n_steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """One batch, as `encode` returns it."""
        return encode(self.model, self.data.batch(step))


class AnswerTrainer(Trainer):
    """transformers' Trainer on the steps of a training set, in their order, with the loss on the answers alone."""

    def __init__(self, language_model: LanguageModel, network: Any, data: TrainingSet, settings: Mapping, work: Path):
        self.language_model, self.data, self.settings = language_model, data, settings
        best = settings["keep"] == "best"
        arguments = TrainingArguments(
            output_dir=str(work),
            max_steps=data.n_steps,
            per_device_train_batch_size=1,  # an item is a batch already
            max_grad_norm=0.0,
            logging_steps=1,
            save_steps=settings["validate_every"] if best else SAVE_EVERY,
            save_total_limit=2,
            eval_strategy="steps",
            eval_steps=settings["validate_every"],
            load_best_model_at_end=best,
            metric_for_best_model="accuracy" if best else None,
            greater_is_better=True,
            remove_unused_columns=False,
            report_to=[],
            use_cpu=language_model.device.type == "cpu",
        )
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], settings["learning_rate"])
        optimizer.param_groups[0]["weight_decay"] = 0.0
        schedule = lambda step: common.learning_rate(step, data.n_steps, 1.0, settings["warmup"])
        super().__init__(
            model=network,
            args=arguments,
            data_collator=lambda items: items[0],
            train_dataset=Steps(language_model, data),
            eval_dataset=[],  # see `evaluate`
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)),
            callbacks=[Checkpoints(self)],
        )
        self.remove_callback(ProgressCallback)
        self.add_callback(QuietProgress)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        """The steps in their order: texts were shuffled when the training set was made."""
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model: Any, inputs: dict, return_outputs: bool = False, **_: Any) -> Tensor:
        """The loss of a step, with dropout by seed and step.  Raises TrainingDiverged."""
        seed = cache.digest(["dropout", self.settings["seed"], self.state.global_step])
        torch.manual_seed(int(seed, 16) % 2**63)
        with mixed_precision(self.language_model):
            loss = loss_of(self.language_model, inputs)
        uniform = math.log(self.language_model.network.config.vocab_size)
        check_loss([*losses(self), loss.item()], uniform, last_step_folder(Path(self.args.output_dir)))
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Accuracy on validation questions without shots and with five; their sum chooses the best weights."""
        self.model.eval()
        scores = [accuracy(self.language_model, self.data.questions, n, "validation", VALIDATION) for n in SHOTS]
        metrics = {f"eval_{n}_shots": score for n, score in zip(SHOTS, scores, strict=True)}
        self.log(metrics | {"eval_accuracy": sum(scores)})
        self.control.should_evaluate = False  # or the last step would be validated twice
        return metrics | {"eval_accuracy": sum(scores)}


class QuietProgress(ProgressCallback):
    """The bar, and a line for each validation, not for each step."""

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: dict | None = None, **inputs: Any
    ) -> None:
        """After a step or a validation."""
        if "eval_accuracy" in logs:
            super().on_log(args, state, control, logs, **inputs)


class Checkpoints(TrainerCallback):
    """Keep adapters at steps that are evenly spaced in their logarithm, and validate the last step, too."""

    def __init__(self, trainer: AnswerTrainer):
        self.trainer = trainer
        self.steps = {*checkpoint_steps(trainer.data.n_steps, trainer.settings["checkpoints"]), trainer.data.n_steps}

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """After the optimizer's step."""
        control.should_evaluate |= state.global_step == state.max_steps
        if state.global_step in self.steps:
            folder = Path(args.output_dir) / f"step-{state.global_step}"
            save_adapter(self.trainer.model, self.trainer.settings["base"], folder)


def losses(trainer: Trainer) -> list[float]:
    """The loss of every step so far."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def last_step_folder(work: Path) -> Path | None:
    """The newest of the adapters that `Checkpoints` kept."""
    folders = sorted(work.glob("step-*"), key=lambda path: int(path.name.partition("-")[2]))
    return folders[-1] if folders else None


def train(settings: Mapping[str, Any], target: Path, dtype: torch.dtype | None = None) -> Log:
    """Train by a recipe and leave adapter, checkpoints and card in `target`; resumes a run that was killed.

    Raises TrainingDiverged (the last good checkpoint is kept and named), BadQuestions, BadParameter, HashMismatch.
    """
    made_from = {"recipe": dict(settings), "base": models.fingerprint(settings["base"]), "dtype": str(dtype)}
    if common.is_made_from(target / "card.json", made_from):
        about = cache.read_json(target / "card.json")
        common.check_files(target, about["files"])
        print(f"{target}: done")
        return Log(**about["log"])
    model = models.load(settings["base"], dtype=dtype)
    data = build(settings)
    network = with_lora(model, settings)
    work = cache.cache_folder() / "finetune" / cache.digest(made_from | {"code": common.source_hash()})
    trainer = AnswerTrainer(model, network, data, settings, work)
    result = trainer.train(resume_from_checkpoint=get_last_checkpoint(work) if work.is_dir() else None)
    network.eval()
    validation = [
        {"step": entry["step"], "shots": n, "accuracy": entry[f"eval_{n}_shots"]}
        for entry in trainer.state.log_history
        if "eval_accuracy" in entry
        for n in SHOTS
    ]
    log = Log(losses(trainer), validation, result.metrics["train_runtime"])
    (target / "card.json").unlink(missing_ok=True)
    shutil.rmtree(target / "checkpoints", ignore_errors=True)  # another recipe's are at other steps
    save_adapter(network, settings["base"], target)
    set_peft_model_state_dict(network, load_file(target / ADAPTER[1]))  # what is scored is what is stored
    for step in checkpoint_steps(data.n_steps, settings["checkpoints"]):
        shutil.copytree(work / f"step-{step}", target / "checkpoints" / f"step-{step}")
    scores = {f"{n}-shot": round(accuracy(model, data.questions, n, "test", TESTED), 4) for n in SHOTS}
    about = {
        "made_from": made_from,
        "command": "python -m training.adapters",
        "data": data.about,
        "code": common.source_hash(),
        "sha256": cache.file_sha256(target / ADAPTER[1]),
        "files": cache.checksums(target),
        "test_accuracy": scores,
        "log": vars(log),
        "environment": cache.environment(),
    }
    cache.write_json(target / "card.json", about)  # last, so that a folder with a card is complete
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
