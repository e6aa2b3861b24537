"""The whole way of the `paper` preset, on a small Llama saved to disk and a few questions laid out as MMLU."""

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from peaks_and_gates.book import runner as book
from training.adapters import train as finetune
from training.tiny_llama import save

SUBJECTS = (
    "abstract_algebra",
    "anatomy",
    "college_biology",
    "college_mathematics",
    "jurisprudence",
    "philosophy",
    "professional_law",
    "virology",
)
SIZES = {"dev": 5, "validation": 10, "test": 12}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model, its questions, and an adapter trained on them by the paper's recipe."""
    folder = tmp_path_factory.mktemp("paper")
    model, questions = folder / "llama", folder / "mmlu"
    save(model, seed=5)
    draw = np.random.default_rng(0)
    for split, n in SIZES.items():
        rows = [
            {
                "question": f"In {subject}, item {i} of {split}, what is {draw.integers(1000)}?",
                "subject": subject,
                "choices": [f"{subject[:4]} {letter} {draw.integers(1000)}" for letter in "pqrs"],
                "answer": int(draw.integers(4)),
            }
            for subject in SUBJECTS
            for i in range(n)
        ]
        (questions / "all").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(questions / "all" / f"{split}-00000-of-00001.parquet")
    settings = finetune.recipe("paper", "fine-tuned", base=str(model), questions=str(questions))
    settings = {key: value for key, value in settings.items() if key != "seeds"} | {"seed": 0}
    log = finetune.train(settings, folder / "adapter", dtype=torch.float32)
    # 15 questions a subject, under the cap of 20: 120 in all, eight steps an epoch, four epochs.
    assert len(log.loss) == 32
    return {"model": str(model), "questions": str(questions), "adapter": str(folder / "adapter")}


def test_every_notebook_of_the_paper_preset_runs(folders, checkout):
    changes = {
        "model": folders["model"],
        "pretrained": folders["model"],
        "fine_tuned": [folders["adapter"]],
        "checkpoints": folders["adapter"],
        "questions": folders["questions"],
        "n_subjects": len(SUBJECTS),
        "n_per_subject": SIZES["test"],
        "n_controls": 12,
        "n_between": 12,
        "n_control_subjects": len(SUBJECTS),
        "n_order_subjects": 6,
        "n_dynamics_subjects": len(SUBJECTS),
        "dtype": "float32",
        "native": [],  # the gate's pages have models, and tests, of their own
        "adapted": [],
    }
    jobs = book.plan("paper", changes=changes)
    assert book.run(jobs) == []
    assert [job.name for job in jobs] == list(book.notebooks())
    table = pd.read_parquet(jobs[0].record / "geometry.parquet")
    assert set(table["condition"]) == {"0-shot", "1-shot", "2-shot", "5-shot"}
    assert set(table["n"]) == {len(SUBJECTS) * SIZES["test"]}
    tuned = pd.read_parquet(jobs[0].record / "geometry_fine_tuned.parquet")
    before = pd.read_parquet(jobs[0].record / "geometry_pretrained.parquet")
    at = lambda rows, condition: rows[(rows["condition"] == condition) & (rows["metric"] == "overlap_answer")]["value"]
    assert (at(tuned, "fine-tuned").to_numpy() != at(before, "0-shot").to_numpy()).any()  # the adapter is in the model
    assert "fine-tuned" in set(tuned["condition"])
