"""Fine-tuning: what is learned from, that a killed run ends like any other, and what is refused."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import make_questions
from peaks_and_gates import (
    fetch,
    finetune,
    models,
    questions,
    training_sets,
    wordnet,
)
from peaks_and_gates.errors import (
    BadParameter,
    BadQuestions,
    HashMismatch,
    MissingFile,
    ModelUnavailable,
    TrainingDiverged,
)
from peaks_and_gates.models import ADAPTER
from peaks_and_gates.training_sets import in_a_row

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "base": "tiny-llama", "data": "answers", "questions": "mmlu", "n_subjects": None, "splits": ["train"],
    "per_subject": None, "rank": 2, "alpha": 4, "dropout": 0.1, "learning_rate": 0.01, "warmup": 0.05, "batch": 4,
    "epochs": 4, "checkpoints": 3, "validate_every": 5, "keep": "last", "seed": 0,
}  # fmt: skip


@pytest.fixture
def made(monkeypatch, own_cache):
    """A small question set in place of MMLU; eight training questions, so eight steps in four epochs."""
    asked = make_questions(n_subjects=3, n=6)
    monkeypatch.setattr(questions, "load", lambda *a, **k: asked)
    monkeypatch.setattr(finetune, "SAVE_EVERY", 4)
    return asked


def train(target, **changes):
    return finetune.train(SETTINGS | changes, target, dtype=torch.float32)


def weights(folder):
    return load_file(folder / ADAPTER[1])


def test_every_answer_is_learned_at_the_token_before_it(tiny, made):
    text = in_a_row([q for asked in made.train.values() for q in asked][:3], begin="Header.\n\n")
    ids, rows, positions, targets = finetune.encode(tiny, [text, in_a_row(made.train["subject_0"][:1])])
    assert rows.tolist() == [0, 0, 0, 1]
    for row, position, target in zip(rows, positions, targets, strict=True):
        assert tiny.tokenizer.decode(ids[row, : position + 1]).endswith("\nAnswer:")
        assert tiny.tokenizer.decode([target]).strip() in "ABCD"
    shown = [tiny.tokenizer.decode(ids[0, p + 1]) for p in positions[:2]]
    assert shown == [tiny.tokenizer.decode([t]) for t in targets[:2]]  # the letter follows where it is predicted


def test_a_wrong_place_of_the_answer_is_refused(tiny, made):
    text = in_a_row(made.train["subject_0"][:2])
    moved = replace(text, answers=((text.answers[0] + 1) % 4, text.answers[1]))
    with pytest.raises(BadParameter, match="joins the answer"):
        finetune.encode(tiny, [moved])


def test_the_loss_is_that_of_the_whole_head_at_the_answers(tiny, made):
    texts = [in_a_row(made.train["subject_0"][:2]), in_a_row(made.train["subject_1"][:1])]
    expected = []
    for text in texts:
        logprobs = tiny.network(torch.tensor([tiny.tokenizer.encode(text.text)])).logits[0].log_softmax(-1)
        for end, answer in zip(text.ends, text.answers, strict=True):
            position = len(tiny.tokenizer.encode(text.text[:end])) - 1
            expected.append(-logprobs[position, tiny.letter_tokens[answer]])
    torch.testing.assert_close(finetune.loss_of(tiny, texts).double(), torch.stack(expected).mean(), rtol=1e-5, atol=0)


def test_a_training_lowers_the_loss_and_moves_only_the_adapter(tmp_path, made):
    log = train(tmp_path / "adapter", epochs=10, dropout=0.0)
    assert np.mean(log.loss[-3:]) < np.mean(log.loss[:3]) - 0.5
    names = weights(tmp_path / "adapter")
    assert {name.split(".")[-3] for name in names} == set(finetune.PROJECTIONS)
    assert all(tensor.dtype == torch.bfloat16 for tensor in names.values())
    assert any(tensor.abs().sum() > 0 for name, tensor in names.items() if "lora_B" in name)


def test_merged_is_unmerged(tmp_path, made, tiny):
    train(tmp_path / "adapter")
    merged = models.load("tiny-llama", str(tmp_path / "adapter"), torch.float64)
    unmerged = models.load("tiny-llama", dtype=torch.float64)
    network = finetune.with_lora(unmerged, SETTINGS)
    finetune.load_state(network, tmp_path / "adapter" / ADAPTER[1])
    network.double().eval()
    ids = torch.tensor([tiny.tokenizer.encode("Which word?\nA. one\nAnswer:")])
    with torch.inference_mode():
        torch.testing.assert_close(merged.network(ids).logits, network(ids).logits, rtol=1e-6, atol=1e-8)
        assert not torch.allclose(merged.network(ids).logits, tiny.network(ids).logits, atol=1e-3)


def test_a_resumed_training_ends_like_an_uninterrupted_one(tmp_path, made, monkeypatch):
    whole = train(tmp_path / "whole")
    monkeypatch.setenv("PG_CACHE", str(tmp_path / "second cache"))
    check, calls = finetune.check_loss, []

    def killed(losses, *rest):
        calls.append(len(losses))
        if len(calls) == 7:
            raise KeyboardInterrupt
        check(losses, *rest)

    monkeypatch.setattr(finetune, "check_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "resumed")
    assert not (tmp_path / "resumed" / "card.json").exists()
    resumed = train(tmp_path / "resumed")
    assert calls[7] == 6  # step 5 was kept, its validation being due; nothing before it is computed again
    assert resumed.loss == whole.loss
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert resumed.validation == whole.validation


def test_another_seed_is_another_training(tmp_path, made):
    first, second = train(tmp_path / "a"), train(tmp_path / "b", seed=1)
    assert first.loss != second.loss


def test_what_is_done_is_not_trained_again(tmp_path, made, monkeypatch):
    log = train(tmp_path / "adapter")
    monkeypatch.setattr(finetune, "descend", lambda *a: pytest.fail("trained again"))
    assert train(tmp_path / "adapter").loss == log.loss


def test_the_best_step_is_the_one_kept(tmp_path, made, monkeypatch):
    scores = iter([0.8, 0.9, 0.9, 0.3, *[0.5] * 9])  # two at each validation: without shots and with five
    monkeypatch.setattr(finetune, "accuracy", lambda *a, **k: next(scores))
    train(tmp_path / "adapter", keep="best", validate_every=4)
    work = next((tmp_path / "cache" / "finetune").iterdir())
    best = weights(work / "step-4")
    assert all(torch.equal(tensor, best[name]) for name, tensor in weights(tmp_path / "adapter").items())


def test_a_diverging_training_stops_and_names_the_last_good_checkpoint(tmp_path, made):
    with pytest.raises(TrainingDiverged, match=r"The last good checkpoint is .*step-\d+\.") as caught:
        train(tmp_path / "adapter", learning_rate=1e6, epochs=12)
    assert "Lower `learning_rate`" in str(caught.value)
    assert not (tmp_path / "adapter" / "card.json").exists()


def test_a_loss_is_judged_by_its_running_mean(tmp_path):
    finetune.check_loss([1.0] * 10 + [3.0], 9.0, tmp_path)
    finetune.check_loss([9.2] * 10 + [9.1, 9.0] * 5, 9.0, tmp_path)  # began without knowledge
    (tmp_path / "step-4").mkdir()
    for losses in ([1.0, float("nan")], [1.0] * 10 + [5.0] * 10, [9.0] * 11, [7.0] * 10 + [9.0] * 10):
        with pytest.raises(TrainingDiverged, match="step-4"):
            finetune.check_loss(losses, 9.0, tmp_path)


def test_a_subject_without_training_questions_is_refused(made):
    less = replace(made, train={name: asked for name, asked in made.train.items() if name != "subject_1"})
    with pytest.raises(BadQuestions, match="subject_1"):
        training_sets._epochs(SETTINGS, less)


def test_a_test_question_is_left_out_of_training_and_counted(made):
    leaked = replace(made, train=made.train | {"subject_0": (*made.train["subject_0"], made.test["subject_0"][0])})
    epoch, dropped = training_sets._epochs(SETTINGS, leaked)
    without, before = training_sets._epochs(SETTINGS, made)
    assert dropped == before + 1
    assert made.test["subject_0"][0] not in epoch(0)
    assert len(epoch(0)) == len(without(0))


def test_a_leaked_word_is_refused_by_name(made):
    word, tested = made.test["subject_2"][0].options[0], training_sets.words_of(made, ["test"])
    asked = lambda *options: replace(made.train["subject_0"][0], options=options)
    with pytest.raises(BadQuestions, match=word):
        training_sets.check_no_leak([asked(word, "w", "x", "y")], tested)
    training_sets.check_no_leak([asked("v", "w", "x", "y")], tested)


def test_no_held_out_word_is_in_the_tasks_that_teach_the_form():
    held_out = questions.load("wordnet")
    data = training_sets.build(finetune.recipe("laptop", "format-tuned") | {"seed": 0})
    words = training_sets.words_of(held_out, ["test", "validation", "dev"])
    options = set()
    for step in range(0, 300, 12):
        for text in data.batch(step):
            assert 1 <= len(text.ends) <= 6
            lines = text.text.split("\n")
            options |= {line[3:].lower() for line in lines if line[:3] in ("A. ", "B. ", "C. ", "D. ")}
    assert len(options) > 1000
    assert not options & words
    again = training_sets.build(finetune.recipe("laptop", "format-tuned") | {"seed": 0})
    assert again.batch(77) == data.batch(77) != data.batch(78)


def test_a_batch_is_of_like_length_and_every_text_comes_once():
    lengths = np.random.default_rng(0).integers(40, 400, 300)
    texts = [training_sets.Text("x" * n, (n,), (i,)) for i, n in enumerate(lengths)]
    found = training_sets.in_batches(texts, 16, np.random.default_rng(1))
    assert sorted(text.answers[0] for batch in found for text in batch) == list(range(300))
    assert sorted(map(len, found)) == [12] + [16] * 18  # 300 = 18 · 16 + 12
    padded = sum(len(batch) * max(len(text.text) for text in batch) for batch in found)
    assert padded < 1.15 * lengths.sum()
    first = [batch[0].answers for batch in found]
    assert first != [batch[0].answers for batch in training_sets.in_batches(texts, 16, np.random.default_rng(2))]


def test_other_nouns_are_frequent_and_of_no_subject():
    nouns = wordnet.read_nouns(fetch.package_files(wordnet.PACKAGE, wordnet.PACKAGE_SHA256, wordnet.FILES))
    found = wordnet.assign(nouns)
    pools = wordnet.others(nouns, found, 20)
    spelled = lambda entries: {e.word.replace(" ", "").replace("-", "") for e in entries}
    used = spelled(e for entries in found.values() for e in entries)
    assert sum(map(len, pools.values())) > 4000 and min(map(len, pools.values())) >= wordnet.LEAST_OTHERS
    for field, entries in pools.items():
        assert not spelled(entries) & used
        assert {nouns.synsets[e.offset].field for e in entries} == {field}
        assert min(nouns.frequency[e.offset][0] for e in entries) > 20


def test_training_nouns_are_never_test_nouns_and_wrong_options_change_with_the_epoch():
    words = questions.load("wordnet", 8)
    settings = finetune.recipe("laptop", "fine-tuned") | {"n_subjects": 8, "seed": 0}
    epoch, dropped = training_sets._epochs(settings, words)
    first, second = epoch(0), epoch(1)
    assert dropped == 0
    assert {q.text for q in first} == {q.text for q in second}
    assert sum(a.options != b.options for a, b in zip(first, second, strict=True)) > 0.9 * len(first)
    training_sets.check_no_leak(first + second, training_sets.words_of(words, ["test"]))
    tested = {
        option
        for part in (words.test, words.validation)
        for asked in part.values()
        for q in asked
        for option in q.options
    }
    assert not {option for q in first + second for option in q.options} & tested


def test_the_schedule_rises_and_falls_to_zero():
    rates = [finetune.learning_rate(step, 100, 2.0, 0.05) for step in range(100)]
    assert rates[4] == max(rates) == 2.0
    assert rates[0] == pytest.approx(0.4)
    assert rates[-1] < 0.002
    assert all(a >= b for a, b in pairwise(rates[4:]))


def test_checkpoints_are_evenly_spaced_in_their_logarithm():
    steps = finetune.checkpoint_steps(480, 8)
    assert len(steps) == 8
    assert (steps[0], steps[-1]) == (1, 480)
    ratios = np.diff(np.log(steps[2:]))
    assert ratios.max() < 1.2 * ratios.min()
    assert finetune.checkpoint_steps(5, 8) == [1, 2, 3, 4, 5]
    assert finetune.checkpoint_steps(9, 0) == []


def test_the_papers_recipe_is_the_papers():
    paper = finetune.recipe("paper", "fine-tuned")
    assert (paper["rank"], paper["alpha"], paper["dropout"], paper["batch"]) == (64, 16, 0.1, 16)
    assert (paper["learning_rate"], paper["warmup"], paper["epochs"], paper["per_subject"]) == (2e-4, 0.05, 4, 20)
    assert paper["splits"] == ["dev", "validation"]
    assert len(finetune.PROJECTIONS) == 7


def test_an_adapter_of_another_base_is_refused_with_both_hashes(tmp_path, made):
    train(tmp_path / "adapter")
    other = tmp_path / "other"
    tiny = models.load("tiny-llama", dtype=torch.float32)
    tiny.tokenizer.save_pretrained(other)
    tiny.network.save_pretrained(other)
    with pytest.raises(ModelUnavailable) as caught:
        models.load(str(other), str(tmp_path / "adapter"))
    assert models.fingerprint("tiny-llama") in str(caught.value)
    assert models.fingerprint(str(other)) in str(caught.value)
    assert models.load(str(tmp_path / "adapter"), dtype=torch.float32).n_layers == 4  # alone it knows its base


def test_an_adapter_changes_the_fingerprint(tmp_path, made):
    train(tmp_path / "adapter")
    assert models.fingerprint(str(tmp_path / "adapter")) == models.fingerprint("tiny-llama", str(tmp_path / "adapter"))
    assert models.fingerprint(str(tmp_path / "adapter")) != models.fingerprint("tiny-llama")


def test_an_interrupted_folder_is_named(tmp_path, made):
    train(tmp_path / "adapter")
    (tmp_path / "adapter" / ADAPTER[1]).unlink()
    models.describe.cache_clear()
    with pytest.raises(MissingFile, match="no complete PEFT adapter"):
        models.load("tiny-llama", str(tmp_path / "adapter"))


# The adapters that come with the book

SHIPPED = sorted(path.parent for path in (ROOT / "weights").glob("*/card.json"))


def test_the_shipped_adapters_are_those_of_the_recipes():
    assert {path.name for path in SHIPPED} == {"format-tuned", "fine-tuned-0", "fine-tuned-1", "fine-tuned-2"}
    for folder in SHIPPED:
        card = finetune.check_card(folder)
        name, _, seed = folder.name.rpartition("-") if folder.name[-1].isdigit() else (folder.name, "", "0")
        expected = finetune.recipe("laptop", name) | {"seed": int(seed)}
        expected.pop("seeds")
        assert card["made_from"]["recipe"] == expected
        assert card["made_from"]["base"] == models.fingerprint(expected["base"])
        assert (folder / ADAPTER[1]).stat().st_size < 25e6


def test_the_shipped_models_can_answer():
    scores = {folder.name: json.loads((folder / "card.json").read_text())["test_accuracy"] for folder in SHIPPED}
    assert scores["format-tuned"]["0-shot"] >= 0.45
    assert scores["format-tuned"]["5-shot"] >= scores["format-tuned"]["0-shot"] - 0.02
    tuned = [score["0-shot"] for name, score in scores.items() if name.startswith("fine-tuned")]
    assert min(tuned) > scores["format-tuned"]["0-shot"] + 0.03
    assert len(tuned) == 3 and sum(tuned) / 3 >= 0.8


def test_the_shipped_checkpoints_are_whole():
    steps = sorted((ROOT / "weights" / "fine-tuned-0").glob("checkpoints/step-*"), key=lambda p: int(p.name[5:]))
    assert len(steps) >= 8
    last = weights(steps[-1])
    final = weights(ROOT / "weights" / "fine-tuned-0")
    assert all(torch.equal(final[name], tensor) for name, tensor in last.items())


def test_a_damaged_adapter_is_noticed(tmp_path, made):
    train(tmp_path / "adapter")
    path = tmp_path / "adapter" / ADAPTER[1]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(HashMismatch, match="is damaged"):
        finetune.check_card(tmp_path / "adapter")
