"""Paper 1 with the settings of the `paper` preset, from training to figures, on a small Llama and questions as MMLU."""

import datasets
import numpy as np
import pytest
import torch

from peaks_and_gates import record
from peaks_and_gates.book import jobs, presets, runner
from training.adapters import data
from training.adapters import train as finetune
from training.tiny_llama import save

SUBJECTS = [f"subject_{letter}" for letter in "abcdefgh"]
SIZES = {"dev": 5, "validation": 30, "test": 12}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model, its questions, and an adapter trained on them by the paper's recipe."""
    folder = tmp_path_factory.mktemp("paper")
    model, questions = folder / "llama", folder / "mmlu"
    save(model, seed=5)
    draw = np.random.default_rng(0)
    for split, n in SIZES.items():
        rows = []
        for subject in SUBJECTS:
            for i in range(n):
                text = f"In {subject}, item {i} of {split}, what is {draw.integers(1000)}?"
                choices = [f"{subject[-4:]} {letter} {draw.integers(1000)}" for letter in "pqrs"]
                rows += [{"question": text, "subject": subject, "choices": choices, "answer": int(draw.integers(4))}]
        (questions / "all").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(questions / "all" / f"{split}-00000-of-00001.parquet")
    of_curves, settings = (
        finetune.recipe("paper", name, base=str(model), questions=str(questions))
        for name in ("fine-tuned", "fine-tuned-tree")
    )
    # All 35 questions of a subject, eight epochs of 18 steps; and the paper's 20 of them, four epochs of ten.
    assert data.build(of_curves | {"seed": 0}).n_steps == 144
    settings = {key: value for key, value in settings.items() if key != "seeds"} | {"seed": 0}
    log = finetune.train(settings, folder / "adapter", dtype=torch.float32)
    assert len(log.loss) == 40
    return {"model": str(model), "questions": str(questions), "adapter": str(folder / "adapter")}


def test_the_paper_preset_draws_what_the_paper_drew():
    preset = presets.load("paper")
    assert (preset["selection"], preset["n_orders"], preset["n_patched"]) == ("paper", "paper", 1000)
    trees = preset["fine_tuned_tree"] + [preset["checkpoints"].rpartition("/")[2]]
    assert trees == ["llama-3-8b-fine-tuned-tree", "fine-tuned-tree"]
    for recipe in finetune.recipes("paper").values():
        assert (recipe["selection"], recipe["splits"]) == ("paper", ["train"])


def test_the_landscape_of_the_paper_preset_runs(folders, checkout):
    changes = dict.fromkeys(("n_subjects", "n_dynamics_subjects"), len(SUBJECTS))
    changes |= dict.fromkeys(("n_per_subject", "n_controls", "n_between"), SIZES["test"])
    changes |= {"model": folders["model"], "raw": folders["model"], "fine_tuned": [folders["adapter"]]}
    changes |= {"checkpoints": folders["adapter"], "questions": folders["questions"], "dtype": "float32"}
    pages = ["accuracy", "subjects", "fine_tuning_dynamics", "probes", "landscape_map"]
    planned = runner.plan("paper", pages, changes)
    assert jobs.run(planned) == []
    table = record.read(next(job.record for job in planned if job.name == "subjects"))["geometry"]
    pretrained = table[table["group"] == "pretrained"]
    conditions = {f"{k}-shot{seed}" for k in (0, 1, 2, 5) for seed in ("", ", seed 0")}
    assert set(pretrained["condition"]) == conditions
    assert set(table["n"]) == {len(SUBJECTS) * SIZES["test"]}
    dynamics = record.read(next(job.record for job in planned if job.name == "fine_tuning_dynamics"))["dynamics"]
    assert set(dynamics["n"]) == {len(SUBJECTS) * 20}  # those that were trained on
    overlap = table[table["metric"] == "overlap_answer"].set_index("condition")["value"]
    assert (overlap["fine-tuned"].to_numpy() != overlap["0-shot"].to_numpy()).any()  # the adapter is in the model
