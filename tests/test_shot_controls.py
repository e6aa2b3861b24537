"""The controls of the few-shot prompts: each changes what it says, and nothing else."""

import re
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from peaks_and_gates import shot_controls
from peaks_and_gates.errors import BadParameter, BadQuestions
from peaks_and_gates.peaks import Study, landscape_table
from peaks_and_gates.questions import LETTERS, Prompt, block, header, load
from peaks_and_gates.shot_controls import MIXED, REFERENCE, controls, mixed_prefixes

STUDY = Study("tiny-llama", "wordnet", [0, 5], n_subjects=8, n_per_subject=12)
LETTER = re.compile(r"\nAnswer: ([A-D])\n\n")


@pytest.fixture(scope="module")
def questions():
    return load("wordnet", 8, 12)


@pytest.fixture(scope="module")
def prompts(questions):
    return controls(STUDY, questions)


def shots_of(prompt: Prompt) -> list[str]:
    """The solved examples of a prompt, each as a block."""
    return [text + "\n\n" for text in prompt.prefix.removeprefix(header(prompt.subject)).split("\n\n") if text]


# The prompts


def test_every_condition_asks_the_same_questions(prompts):
    asked = [(p.subject, p.question, p.answer) for p in prompts[REFERENCE]]
    assert len(set(asked)) == 96 and len(prompts) == 9
    for found in prompts.values():
        assert [(p.subject, p.question, p.answer) for p in found] == asked


def test_reference_and_one_order_have_the_same_shots(prompts, questions):
    for p, q in zip(prompts[REFERENCE], prompts["one order"], strict=True):
        blocks = Counter(block(shot, with_answer=True) for shot in questions.dev[p.subject])
        assert Counter(shots_of(p)) == Counter(shots_of(q)) == blocks
    count = lambda name: len({p.prefix for p in prompts[name]})
    assert (count(REFERENCE), count("one order"), count("0-shot"), count("0-shot, no header")) == (64, 8, 8, 1)


def test_own_shots_are_of_the_subject_differ_by_question_and_hold_no_test_word(prompts, questions):
    own = prompts["own shots"]
    assert len({p.prefix for p in own}) == len(own)
    for p in own:
        usable = [q for split in (questions.dev, questions.train, questions.validation) for q in split[p.subject]]
        known = {block(q, with_answer=True): q.options[q.answer] for q in usable}
        tested = {q.options[q.answer] for q in questions.test[p.subject]}
        shots = shots_of(p)
        assert p.prefix.startswith(header(p.subject)) and len(set(shots)) == 5
        assert set(shots) <= set(known) and not tested & {known[shot] for shot in shots}


def test_own_shots_need_questions_outside_the_test_split(prompts, questions):
    poor = replace(questions, train={}, validation={})
    with pytest.raises(BadQuestions, match="'birds' has 5 questions outside"):
        shot_controls.own_shots(poor, prompts[REFERENCE], seed=0)


def test_wrong_answers_differ_in_every_letter_and_nowhere_else(prompts):
    for right, wrong in zip(prompts[REFERENCE], prompts["wrong answers"], strict=True):
        assert LETTER.sub("", right.prefix) == LETTER.sub("", wrong.prefix)
        letters = list(zip(LETTER.findall(right.prefix), LETTER.findall(wrong.prefix), strict=True))
        assert len(letters) == 5 and all(a != b for a, b in letters)
    used = Counter(LETTER.findall("".join(p.prefix for p in prompts["wrong answers"])))
    assert set(used) == set(LETTERS)


def test_no_answers_leaves_the_letters_out_and_nothing_else(prompts):
    for full, empty in zip(prompts[REFERENCE], prompts["no answers"], strict=True):
        assert empty.prefix.count("\nAnswer:\n\n") == 5 and not LETTER.search(empty.prefix)
        assert len(full.prefix) - len(empty.prefix) == 5 * len(" A")
        assert LETTER.sub("\nAnswer:\n\n", full.prefix) == empty.prefix


def test_no_header_takes_one_line_away(prompts):
    for named, bare in zip(prompts[REFERENCE], prompts["no header"], strict=True):
        assert header(named.subject) + bare.prefix == named.prefix
    for named, bare in zip(prompts["0-shot"], prompts["0-shot, no header"], strict=True):
        assert (named.prefix, bare.prefix) == (header(named.subject), "")


def test_random_text_is_one_a_subject_and_names_nothing(prompts, questions):
    by_subject = {}
    for p in prompts["random text"]:
        assert by_subject.setdefault(p.subject, p.prefix) == p.prefix
        assert p.prefix.endswith("\n\n") and not re.search(r"Answer|[A-D]\.|:", p.prefix)
    assert len(set(by_subject.values())) == 8
    for subject, text in by_subject.items():
        others = [q.text for s in questions.subjects if s != subject for q in shot_controls.pool(questions, s)]
        assert set(text.split()) <= set(re.findall(r"\w+", " ".join(others))) - {"Which", "term", "means"}


def test_random_text_is_as_long_as_the_shots_in_tokens(prompts, questions):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [block(q, True) for split in (questions.train, questions.test) for asked in split.values() for q in asked]
    # Nearly every word of the questions gets a token, as in a model's vocabulary of tens of thousands.
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=16_000, show_progress=False))
    tokens = lambda text: len(tokenizer.encode(text).ids)
    for p, r in zip(prompts[REFERENCE], prompts["random text"], strict=True):
        assert tokens(r.prefix) == pytest.approx(tokens("".join(shots_of(p))), rel=0.2)


def test_draws_depend_on_the_seed_alone(prompts, questions):
    again, other = controls(STUDY, questions), controls(replace(STUDY, seed=1), questions)
    assert again == prompts
    for name in ("own shots", "random text", "wrong answers"):
        assert [p.prefix for p in other[name]] != [p.prefix for p in prompts[name]]


def test_header_of_the_study_does_not_matter(prompts, questions):
    assert controls(replace(STUDY, with_header=False), questions) == prompts


# Prefixes paired anew


def test_mixed_prefixes_pair_every_question_with_another_subjects_prefix(prompts):
    reference = prompts[REFERENCE]
    mixed, asked = mixed_prefixes(reference)
    assert all(p.subject != subject for p, subject in zip(mixed, asked, strict=True))
    assert all(p.prefix.startswith(header(p.subject)) for p in mixed)
    assert Counter(p.prefix for p in mixed) == Counter(p.prefix for p in reference)
    as_asked = Counter((s, p.question, p.answer) for p, s in zip(mixed, asked, strict=True))
    assert as_asked == Counter((p.subject, p.question, p.answer) for p in reference)
    pairs = Counter((p.subject, s) for p, s in zip(mixed, asked, strict=True))
    assert len(pairs) == 8 * 7 and set(pairs.values()) == {1, 2}  # 12 questions over 7 other subjects
    assert [p.subject for p in mixed] == sorted(p.subject for p in mixed)  # the order in which states are stored


def test_mixed_prefixes_of_unequal_subjects(prompts):
    mixed, asked = mixed_prefixes(prompts[REFERENCE][5:])  # the first subject has fewer questions
    assert len(mixed) == 91 and all(p.subject != subject for p, subject in zip(mixed, asked, strict=True))


def test_one_subject_cannot_be_mixed(prompts):
    with pytest.raises(BadParameter, match="at least 2"):
        mixed_prefixes(prompts[REFERENCE][:12])


@dataclass
class FakeStates:
    """Two layers: the first groups by the subject of the prefix, the second by that of the question."""

    subject: list[str]
    answer: torch.Tensor
    layers: dict[int, torch.Tensor]
    n_layers: int = 2
    key: str = "made up"

    def layer(self, point: str, layer: int) -> torch.Tensor:
        return self.layers[layer]


def test_mixed_prefixes_tell_the_two_subjects_apart(own_cache, monkeypatch):
    def groups(names):
        which = np.unique(names, return_inverse=True)[1]
        centres = 20 * np.eye(6)[which]
        return torch.tensor(centres + np.random.default_rng(0).normal(size=(len(names), 6)), dtype=torch.float32)

    plain = [Prompt(f"subject {i}", f"prefix {i}, ", f"question {i} {j}", j % 4) for i in range(6) for j in range(40)]
    prompts, asked = mixed_prefixes(plain)

    def read(study, prompts, title):
        of_question = [f"subject {p.question.split()[1]}" for p in prompts]
        subject = [p.subject for p in prompts]
        answer = torch.tensor([p.answer for p in prompts])
        return FakeStates(subject, answer, {1: groups(subject), 2: groups(of_question)})

    monkeypatch.setattr(Study, "read", read)
    both = {"subject": asked, "prefix": [prompt.subject for prompt in prompts]}
    table = landscape_table(STUDY, {MIXED: prompts}, both)
    value = table[table["setting"].isin(["figures", "neighbours"])].set_index(["metric", "layer"])["value"]
    for measure in ("ari", "overlap"):
        assert value[f"{measure}_prefix", 1] > 0.95 and value[f"{measure}_subject", 2] > 0.95
        # Of the five subjects that can be on the other side each has a fifth.
        assert value[f"{measure}_prefix", 2] < 0.25 and value[f"{measure}_subject", 1] < 0.25
    assert set(table["condition"]) == {MIXED} and set(table["model"]) == {"tiny-llama"}


# What is read from the table


def made_table(pretrained: bool = False) -> pd.DataFrame:
    """Four layers, every condition; ARI of condition number i rises by 0.1 a layer from 0.009 i."""
    names = dict.fromkeys(condition for condition, *_ in shot_controls.CURVES.values())
    rows = []
    for i, condition in enumerate(names):
        if condition == shot_controls.MIXED_PRETRAINED and not pretrained:
            continue
        model = "other" if condition == shot_controls.MIXED_PRETRAINED else "model"
        for layer in range(1, 5):
            for metric, setting in (("ari", "figures"), ("ari", "released"), ("overlap", "neighbours")):
                for label in ("subject", "prefix") if condition.startswith(MIXED) else ("subject",):
                    value = 0.1 * layer + 0.009 * i + 0.3 * (label == "prefix") + 0.2 * (setting == "released")
                    interval = [value - 0.03, value + 0.04, 0.0, 0.02, 96]
                    rows.append([condition, model, layer, layer / 4, f"{metric}_{label}", setting, value, *interval])
    columns = ["condition", "model", "layer", "depth", "metric", "setting", "value", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "null", "null_high", "n"])


def test_highest_splits_the_layers_in_halves_and_subtracts_the_reference():
    found = shot_controls.highest(made_table(), "ari", "figures").set_index(["curve", "half"])
    reference, own = found.loc[REFERENCE], found.loc["own shots"]
    assert reference["value"].tolist() == pytest.approx([0.2, 0.4])
    assert own["value"].tolist() == pytest.approx([0.218, 0.418])
    assert own["difference"].tolist() == pytest.approx([0.018, 0.018])
    assert own["difference_low"].tolist() == pytest.approx([0.018 - 0.05] * 2)  # hypot(.03, .04)
    assert own["difference_high"].tolist() == pytest.approx([0.018 + 0.05] * 2)
    prefix, question = found.loc["mixed, by prefix"], found.loc["mixed, by question"]
    assert (prefix["value"] - question["value"]).tolist() == pytest.approx([0.3, 0.3])


def test_another_model_is_not_compared_with_the_reference():
    found = shot_controls.highest(made_table(pretrained=True), "ari", "figures")
    other = found["curve"].str.startswith("pretrained")
    assert found.loc[other, "difference"].isna().all() and found.loc[~other, "difference"].notna().all()
    printed = shot_controls.highest_to_print(made_table(pretrained=True), "ari", "figures")
    assert printed.index.tolist() == list(shot_controls.CURVES)
    assert printed.loc["own shots", "first half"].tolist() == ["0.22 [0.19, 0.26]", "0.02 [-0.03, 0.07]"]
    assert printed.loc["pretrained, by prefix", ("second half", "minus 5-shot")] == ""


def test_summary_takes_the_recipe_asked_for():
    table = made_table()
    assert "first half of the layers: 5-shot 0.20" in shot_controls.summary(table, "ari", "figures")
    assert "first half of the layers: 5-shot 0.40" in shot_controls.summary(table, "ari", "released")


def test_finding_goes_by_the_interval_of_the_difference():
    table = made_table()
    table.loc[table["condition"] == "no header", ["value", "low", "high"]] -= 1
    said = shot_controls.finding(table, "ari", "figures").split(" Second half")[0]
    assert "reaches 0.20; higher: mixed, by prefix, wrong answers, 0-shot, bare question" in said
    assert "; lower: no header; not told apart: one order, own shots, random text, " in said and "no answers." in said


@pytest.mark.parametrize(("pretrained", "n_panels"), [(False, 4), (True, 5)])
def test_every_curve_is_drawn_once_in_its_panel(pretrained, n_panels):
    table = made_table(pretrained)
    figure = shot_controls.small_multiples(table, "ari", "figures")
    drawn = [ax for ax in figure.axes if ax.axison]
    labels = [text.get_text() for ax in drawn for text in ax.get_legend().get_texts()]
    assert len(drawn) == n_panels
    assert labels.count("own shots") == 1 and labels.count("5-shot") == 4
    by_label = {line.get_label(): line for line in drawn[1].lines}
    assert by_label["mixed, by prefix"].get_ydata()[0] == pytest.approx(0.436)
    ranking = shot_controls.ranking(table, "figures")
    rows = [text.get_text() for text in ranking.axes[0].get_yticklabels()]
    assert rows == [name for name in shot_controls.CURVES if pretrained or not name.startswith("pretrained")]
