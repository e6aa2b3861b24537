"""Fine-tuning: what is learned and where, no leak, that a killed run ends like any other, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from resuming import killed_and_resumed
from safetensors.torch import load_file

from conftest import ROOT, make_questions
from peaks_and_gates import models
from peaks_and_gates.cache import check_files, digest, read_json
from peaks_and_gates.errors import BadParameter, BadQuestions
from peaks_and_gates.landscape import questions
from peaks_and_gates.models import ADAPTER
from training import common
from training.adapters import data
from training.adapters import train as adapters
from training.adapters.data import in_a_row

SETTINGS = adapters.recipe("smoke", "fine-tuned", questions="mmlu", per_subject=None, dropout=0.1, seed=0) | {
    "batch": 4, "epochs": 4, "checkpoints": 3, "validate_every": 5,
}  # fmt: skip


@pytest.fixture
def few(monkeypatch, own_cache):
    """A small question set in place of MMLU; eight training questions, so eight steps in four epochs."""
    few = make_questions(n_subjects=3, n=6)
    monkeypatch.setattr(questions, "load", lambda *a, **k: few)
    return few


def train(target, **changes):
    return adapters.train(SETTINGS | changes, target, dtype=torch.float32)


def weights(folder):
    return load_file(folder / ADAPTER[1])


def test_the_loss_is_that_of_the_whole_head_at_the_answers(tiny, few):
    texts = [in_a_row(few.train["subject_0"][:2], begin="Header.\n\n"), in_a_row(few.train["subject_1"][:1])]
    expected = []
    for text in texts:
        logprobs = tiny.network(torch.tensor([tiny.tokenizer.encode(text.text)])).logits[0].log_softmax(-1)
        for end, answer in zip(text.ends, text.answers, strict=True):
            assert text.text[:end].endswith("\nAnswer:")
            position = len(tiny.tokenizer.encode(text.text[:end])) - 1
            expected.append(-logprobs[position, tiny.letter_tokens[answer]])
    loss = adapters.loss_of(tiny, adapters.encode(tiny, texts))
    torch.testing.assert_close(loss.double(), torch.stack(expected).mean(), rtol=1e-5, atol=0)
    moved = replace(texts[0], answers=((texts[0].answers[0] + 1) % 4, texts[0].answers[1]))
    with pytest.raises(BadParameter, match="joins the answer"):
        adapters.encode(tiny, [moved])


def test_a_training_lowers_the_loss_and_moves_the_adapter_alone(tmp_path, few, tiny):
    log = train(tmp_path / "adapter", epochs=10, dropout=0.0)
    assert np.mean(log.loss[-3:]) < np.mean(log.loss[:3]) - 0.5
    tensors = weights(tmp_path / "adapter")
    assert {name.split(".")[-3] for name in tensors} == set(adapters.PROJECTIONS)
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
    card = read_json(tmp_path / "adapter" / "card.json")
    check_files(tmp_path / "adapter", card["files"])
    assert len(list((tmp_path / "adapter" / "checkpoints").iterdir())) == 3
    merged = models.load("tiny-llama", str(tmp_path / "adapter"), torch.float64)
    network = adapters.with_lora(models.load("tiny-llama", dtype=torch.float64), SETTINGS)
    adapters.set_peft_model_state_dict(network, tensors)
    ids = torch.tensor([tiny.tokenizer.encode("Which word?\nA. one\nAnswer:")])
    with torch.inference_mode():
        logits, expected = merged.network(ids).logits, network.double().eval()(ids).logits
        torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-8)
        assert not torch.allclose(logits, tiny.network(ids).logits, atol=1e-3)


def test_a_resumed_training_ends_like_an_uninterrupted_one(tmp_path, few, monkeypatch):
    uninterrupted = train(tmp_path / "uninterrupted")
    steps = killed_and_resumed(lambda: train(tmp_path / "resumed"), monkeypatch, tmp_path)
    assert steps[7] == 5  # step 4 was kept; nothing before it is computed again
    monkeypatch.setattr(adapters, "build", lambda *a: pytest.fail("trained again"))
    resumed = train(tmp_path / "resumed")
    assert (resumed.loss, resumed.validation) == (uninterrupted.loss, uninterrupted.validation)
    first, second = weights(tmp_path / "uninterrupted"), weights(tmp_path / "resumed")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [step["step"] for step in resumed.validation] == [5, 5, 8, 8]


def test_the_best_step_is_kept(tmp_path, few, monkeypatch):
    scores = iter([0.8, 0.9, 0.9, 0.3, *[0.5] * 9])  # two at each validation: without shots and with five
    monkeypatch.setattr(adapters, "accuracy", lambda *a, **k: next(scores))
    train(tmp_path / "adapter", keep="best", validate_every=4, checkpoints=8)
    best = weights(tmp_path / "adapter" / "checkpoints" / "step-4")
    assert all(torch.equal(tensor, best[name]) for name, tensor in weights(tmp_path / "adapter").items())


def test_a_diverging_training_stops_and_names_the_last_good_checkpoint(tmp_path, few):
    with pytest.raises(common.TrainingDiverged, match=r"The last good checkpoint is .*step-\d+\.") as caught:
        train(tmp_path / "adapter", learning_rate=1e6, epochs=12)
    assert "Lower `learning_rate`" in str(caught.value)
    assert not (tmp_path / "adapter" / "card.json").exists()
    common.check_loss([1.0] * 10 + [3.0], 9.0, tmp_path)
    common.check_loss([9.2] * 10 + [9.1, 9.0] * 5, 9.0, tmp_path)  # began without knowledge
    for losses in ([1.0, float("nan")], [1.0] * 10 + [5.0] * 10, [9.0] * 11, [7.0] * 10 + [9.0] * 10):
        with pytest.raises(common.TrainingDiverged):
            common.check_loss(losses, 9.0, tmp_path)


def test_no_test_question_and_no_held_out_word_is_trained_on(few):
    tested = few.test["subject_0"][0]
    leaked = replace(few, train=few.train | {"subject_0": (*few.train["subject_0"], tested)})
    epoch, dropped = data._epochs(SETTINGS, leaked)
    assert dropped == 1 + data._epochs(SETTINGS, few)[1] and tested not in epoch(0)
    papers, dropped = data._epochs(SETTINGS | {"selection": "paper"}, leaked)
    assert dropped == 0 and tested in papers(0)  # the paper trained on what it drew
    with pytest.raises(BadQuestions, match=tested.options[0]):
        data.check_no_leak([replace(tested, options=(tested.options[0], "x", "y", "z"))], data.words_of(few, ["test"]))
    with pytest.raises(BadQuestions, match="subject_1"):
        data._epochs(SETTINGS, replace(few, train={k: v for k, v in few.train.items() if k != "subject_1"}))


TEXTS = {"format-tuned": "f71b052b640a0ac9", "fine-tuned": "1c9d56cd25a283f0", "fine-tuned-more": "2d9c022494b81118"}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_those_the_shipped_weights_were_trained_on(name):
    training = data.build(adapters.recipe("laptop", name, seed=0))
    steps = [training.batch(step) for step in (0, 30, 77, 150, 270)]
    assert digest([[vars(text) for text in texts] for texts in steps]) == TEXTS[name]


def test_the_shipped_adapters_are_those_of_the_recipes_and_can_answer():
    cards = {path.parent.name: read_json(path) for path in (ROOT / "weights").glob("*/card.json")}
    seeds = {f"{name}-{seed}" for name in ("format-tuned", "fine-tuned") for seed in range(3)}
    assert set(cards) == seeds | {"fine-tuned-more"}
    for folder, card in cards.items():
        name, seed = (folder[:-2], int(folder[-1])) if folder in seeds else (folder, 0)
        expected = adapters.recipe("laptop", name, seed=seed)
        assert card["made_from"]["recipe"] | {"seeds": expected["seeds"]} == expected
        assert card["made_from"]["base"] == models.fingerprint(expected["base"])
        assert card["test_accuracy"]["0-shot"] >= (0.45 if name == "format-tuned" else 0.75)
