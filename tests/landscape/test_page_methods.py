"""The methods that stand on pages, where the right answer is known or can be had another way."""

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from conftest import make_questions
from page_code import page_code
from peaks_and_gates.landscape.questions import build_prompts

SUBJECT = np.repeat(np.arange(6), 40)


@cache
def page(name):
    return page_code(name)


def states(signal, width=20):
    """Noise, with each subject's mean of the given size in directions of little variance, (240, width)."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((len(SUBJECT), width)) * np.array([50.0] * 5 + [1.0] * (width - 5))
    means = np.hstack([np.zeros((6, 5)), rng.standard_normal((6, width - 5))])
    return (noise + signal * means[SUBJECT]).astype(np.float32)


def test_a_probe_finds_a_small_direction_and_nothing_in_noise():
    probe, folds = page("landscape/probes")["probe"], page("landscape/probes")["folds_of"](SUBJECT)
    subject = probe(states(4.0), {"subject": SUBJECT}, folds)["subject"]
    assert subject.value > 0.95 and subject.null == pytest.approx(1 / 6, abs=0.03) and subject.null_high < 0.3
    for width in (20, 480):  # more dimensions than points: a probe judged on what it was trained on would reach 1
        assert probe(states(0.0, width), {"subject": SUBJECT}, folds)["subject"].value == pytest.approx(1 / 6, abs=0.08)


def test_a_probe_of_several_labels_equals_scikit_learns_classifier_of_each():
    folds, points = page("landscape/probes")["folds_of"](SUBJECT), states(0.6)
    labels = {"answer": np.random.default_rng(3).integers(0, 4, len(SUBJECT)), "subject": SUBJECT}
    estimates = page("landscape/probes")["probe"](points, labels, folds)
    for name, values in labels.items():
        classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=page("landscape/probes")["PENALTY"]))
        right = cross_val_predict(classifier, points, values, cv=folds) == values
        assert estimates[name].value == pytest.approx(right.mean(), abs=1.5 / len(SUBJECT))  # float32 may turn a tie


def test_folds_hold_out_whole_orders():
    prompts = build_prompts(make_questions(4, 24), n_shots=5, n_orders=8)
    prefixes = np.array([prompt.prefix for prompt in prompts])
    for train, test in page("landscape/probes")["folds_of"]([p.subject for p in prompts], prefixes):
        assert not set(prefixes[train]) & set(prefixes[test])


def test_the_parts_of_the_stream_add_up_and_its_end_is_what_the_model_says(tiny):
    stream = page_code("methods/known_stream", language_model=lambda: tiny)
    prompts = build_prompts(make_questions(1, 3), n_shots=1)
    states, writes = stream["read"](prompts[0].text)
    assert stream["deviation_of_sum"](states, writes) < 1e-6
    wrong = writes | {"attention": writes["attention"].roll(1, 0)}
    assert stream["deviation_of_sum"](states, wrong) > 1e-2
    stream["questions"] = lambda n_shots, seed: prompts
    last = stream["logit_lens"]("tiny-llama", 0, None).groupby("layer").first().loc[tiny.n_layers]
    probabilities = tiny.network(torch.tensor([tiny.tokenizer.encode(prompts[0].text)])).logits[0, -1].softmax(-1)
    assert last["token"] == tiny.tokenizer.decode([int(probabilities.argmax())])
    assert last["probability"] == pytest.approx(float(probabilities.max()), rel=1e-4)


@pytest.mark.parametrize("n_shots", [1, 4, 16])
def test_the_last_word_of_a_rule_is_among_the_examples_or_not(n_shots):
    rule = page("methods/known_rule")
    labels = []
    for i in range(60):
        for among_examples in (True, False):
            text, label = rule["rule_prompt"](n_shots, among_examples, [i, n_shots])
            *examples, last = text.split("\n")
            words = dict(line.split(": ") for line in examples)
            assert len(words) == n_shots and (last[:-1] in words) == among_examples
            if among_examples:
                assert words[last[:-1]] == rule["LABELS"][label]
            else:
                labels.append(label)
    assert 0.3 < np.mean(labels) < 0.7


def test_the_likelier_label_is_chosen(tiny):
    text = "glip: red\nvarn: blue\nglip:"
    encode = lambda label: tiny.tokenizer.encode(f" {label}", add_special_tokens=False)
    red, blue = map(encode, page("methods/known_rule")["LABELS"])
    n = next(i for i, (a, b) in enumerate(zip(red, blue, strict=False)) if a != b)
    logits = tiny.network(torch.tensor([tiny.tokenizer.encode(text) + red[:n]])).logits[0, -1]
    assert page("methods/known_rule")["likelier_label"](tiny, text) == int(logits[blue[n]] > logits[red[n]])


def test_an_adapter_learns_the_strongest_parts_and_no_more():
    low_rank = page("methods/known_rank")
    change, least = low_rank["CHANGE"], low_rank["least_left"]
    assert [least(rank) for rank in (0, 1, 4)] == pytest.approx([1, 14 / 30, 0])
    assert torch.linalg.svdvals(change)[:5].tolist() == pytest.approx([4, 3, 2, 1, 0], abs=1e-5)
    for rank in (1, 4):
        learned = low_rank["learned_change"](rank, seed=0)
        assert torch.linalg.matrix_rank(learned, atol=1e-3) == rank
        assert least(rank) - 1e-6 <= float(((learned - change) ** 2).sum() / 30) < least(rank) + 0.01


def test_peaks_of_the_map_are_numbered_by_size_and_an_identical_state_is_in_none():
    rng = np.random.default_rng(1)
    # The smallest is the densest and the largest is not the thinnest, so that no other order gives these numbers.
    clouds = [
        rng.standard_normal((n, 3)) * width + place for n, width, place in ((40, 0.1, 0), (90, 1, 50), (60, 3, 99))
    ]
    hidden = np.insert(np.concatenate(clouds), 5, clouds[0][0], axis=0)  # row 5 is row 0 again
    peak = page("beyond/landscape_map")["plane"](torch.tensor(hidden), "figures")["peak"].tolist()
    assert peak == [2] * 5 + [-1] + [2] * 35 + [0] * 90 + [1] * 60


def test_layers_of_the_map_stop_spinning_and_keep_their_shape():
    rng = np.random.default_rng(2)
    aligned, first = page("beyond/landscape_map")["aligned"], rng.standard_normal((50, 2)) * (3, 1)
    mirrored = 7 * first @ np.array([[0.6, 0.8], [0.8, -0.6]]) + 4
    turned = aligned([first, mirrored, mirrored[:, ::-1]])
    assert np.allclose(turned[0], turned[1]) and np.allclose(turned[0], turned[2])
    assert (turned[0] ** 2).sum(1).mean() == pytest.approx(1)
