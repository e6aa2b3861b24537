"""What the gate's pages compute, against the same numbers by hand: one picture at a time, by hooks of this file alone.

The pages' own code is run, not a copy of it.
"""

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch

from page_code import page_code
from peaks_and_gates.errors import BadParameter
from peaks_and_gates.gate import experiment as gate
from peaks_and_gates.gate import pictures, vlm
from peaks_and_gates.gate.answers import cider, vqa_accuracy
from peaks_and_gates.gate.attention import knockout as knockout_attention
from peaks_and_gates.gate.experiment import KNOCKOUTS, Experiment, Knockout, first_token, generate_answers
from peaks_and_gates.gate.tokens import TokenMap
from peaks_and_gates.statistics import Estimate, row

NATIVE = Experiment(
    "mini-native-0", n_gap=20, n_classes=4, n_per_class=4, n_questions=6, n_captions=6, n_per_pair=1, n_random=3,
    n_repeats=2, batch_size=4, how="mask", new_tokens=(2, 9),
)  # fmt: skip
# What is hidden from what, written out again.
HIDDEN = {
    "none": (None, "after"),
    "end → text": (("end",), "after"),
    "image → text": (("begin", "image", "special"), "after"),
    "random image → text": (("random", 3), "after"),
    "random 1 % → text": (("random", 1), "after"),
    "most attended → text": ("most attended", "after"),
    "last image → text": ("last image", "after"),
    "first token → text": ("first", "after"),
    "block → text": (("begin", "image", "special", "end"), "after"),
    "image → image": (("image",), "image"),
}


# By hand: one picture at a time


def alone(experiment, picture, text):
    """A prompt on its own, without padding."""
    return vlm.encode(experiment.load(), [picture.image], [text])


def last_state(model, batch):
    """(D,): what the final norm reads of the last token."""
    reads = []
    record = lambda module, args: reads.append(args[0][0, -1])
    with model.final_norm.register_forward_pre_hook(record), torch.inference_mode():
        model.network(**batch.inputs, use_cache=False)
    return reads[0]


def hide(experiment, batch, name, seeds, how):
    """The knockout of that name, from the groups of tokens in HIDDEN."""
    model, (sources, targets) = experiment.load(), HIDDEN[name]
    image = batch.tokens.where("image")
    places = image[0].nonzero().flatten()
    one = {"most attended": lambda: places[most_attended_by_hand(experiment)], "last image": lambda: places[-1]}
    one["first"] = lambda: batch.tokens.where("prompt")[0].int().argmax()
    if sources in one:
        hidden = torch.arange(image.shape[1])[None] == one[sources]()
    elif sources and sources[0] == "random":
        hidden = batch.tokens.random("image", sources[1], seeds)
    else:
        hidden = sources and batch.tokens.where(*sources)
    targets, generated = batch.tokens.where(targets), targets == "after"
    return knockout_attention(model, hidden, targets, how, generated=generated, mean_of=image)


@cache
def most_attended_by_hand(experiment):
    """Rank of the image token that draws most attention of the text, from the model's own weights."""
    model, received = experiment.load(), 0
    model.network.set_attn_implementation("eager")  # the one that shows its weights
    for picture in experiment.pictures("classes"):
        batch = alone(experiment, picture, "<image> what is the largest thing?")
        with torch.inference_mode():
            weights = torch.stack(model.network(**batch.inputs, output_attentions=True).attentions)  # (L, 1, H, T, T)
        received = received + weights[:, 0, :, batch.tokens.where("after")[0]].mean(2).sum((0, 1))  # (T,)
    model.network.set_attn_implementation("sdpa")
    return int(received[batch.tokens.where("image")[0]].argmax())


def overlap(states, shown, k=3):
    """The mean share of the k nearest pictures that show the same class."""
    labels = np.array([picture.label for picture in shown])
    distances = torch.cdist(states.double(), states.double()).fill_diagonal_(torch.inf)
    nearest = distances.argsort(1)[:, :k].numpy()
    return (labels[nearest] == labels[:, None]).mean()


def output_overlap_by_hand(experiment, name, how, draw=0):
    shown, states = experiment.pictures("classes"), []
    for picture, row_seed in zip(shown, seeds_of(experiment, shown), strict=True):
        batch = alone(experiment, picture, "<image> what is the largest thing?")
        with hide(experiment, batch, name, [row_seed + draw], how):
            states.append(last_state(experiment.load(), batch))
    return overlap(torch.stack(states), shown)


def seeds_of(experiment, shown):
    """Seeds of the rows, as they come with the batches of one picture."""
    experiment = replace(experiment, batch_size=1)
    return [seeds[0] for _, _, seeds in experiment.batches("classes", shown)]


def answers_by_hand(experiment, task, name, how, draw=0):
    n_new, texts = {"questions": 2, "captions": 9}[task], []
    shown, model = experiment.pictures(task), experiment.load()
    for picture, row_seed in zip(shown, seeds_of(experiment, shown), strict=True):
        batch = alone(experiment, picture, f"<image> {picture.question if task == 'questions' else 'describe it.'}")
        with hide(experiment, batch, name, [row_seed + draw], how), torch.inference_mode():
            ids = model.network.generate(**batch.inputs, max_new_tokens=n_new, do_sample=False)
        texts.append(model.tokenizer.decode(ids[0, batch.inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return [text.strip() for text in texts]


def values(rows):
    """The rows' values by condition, layer, metric and setting."""
    return pd.DataFrame(rows).set_index(["condition", "layer", "metric", "setting"])["value"]


# The pages


@pytest.mark.parametrize("how", ["zero", "mask", "mean"])
def test_knockout_table(how):
    experiment = replace(NATIVE, how=how)
    page = page_code("gate/knockout_table", n_random=3)
    assert page["most_attended"](experiment) == most_attended_by_hand(experiment) > 0
    table = values(page["knockout_rows"](experiment))
    questions, captioned = experiment.pictures("questions"), experiment.pictures("captions")
    references = [list(picture.captions) for picture in captioned]
    accuracy = {}
    for name in HIDDEN:
        draws = (0, 1) if name.startswith("random") else (0,)
        answers = [answers_by_hand(experiment, "questions", name, how, draw) for draw in draws]
        overlaps = [output_overlap_by_hand(experiment, name, how, draw=draw) for draw in draws]
        accuracy[name] = np.mean([[texts[i] == q.answers[0] for i, q in enumerate(questions)] for texts in answers])
        assert table[name, 0, "vqa", how] == pytest.approx(accuracy[name])
        assert table[name, 0, "class_overlap", how] == pytest.approx(np.mean(overlaps))
        described = name in KNOCKOUTS and name not in page["CONTROLS"]
        assert ((name, 0, "cider_ptb", "scenes") in table.index) == described
        captions = [answers_by_hand(experiment, "captions", name, how, draw) for draw in draws if described]
        for tokenizer in ("ptb", "whitespace") if described else ():
            expected = np.mean([cider(texts, references, tokenizer) for texts in captions])
            assert table[name, 0, f"cider_{tokenizer}", "scenes"] == pytest.approx(expected)
        if name != "none":
            assert table[name, 0, "vqa_lost", how] == pytest.approx(1 - accuracy[name] / accuracy["none"])
    assert len(set(accuracy.values())) > 1 + (how != "mean")  # else little would be seen
    for other in {"zero", "mask", "mean"} - {how}:
        for name in ("end → text", "image → text"):
            texts = answers_by_hand(experiment, "questions", name, other)
            expected = np.mean([texts[i] == q.answers[0] for i, q in enumerate(questions)])
            assert table[name, 0, "vqa", other] == pytest.approx(expected)
    opening = values(page_code("gate/opening_the_gate")["opening_rows"](experiment))
    for name in HIDDEN.keys() - page["CONTROLS"].keys() - {"most attended → text"}:
        for measure in (("vqa", how), ("class_overlap", how), ("cider_ptb", "scenes")):
            assert opening[(name, 0, *measure)] == pytest.approx(table[(name, 0, *measure)])
    assert opening["end → text", 0, "vqa_lost", how] == pytest.approx(table["end → text", 0, "vqa_lost", how])


# What they share


def test_the_pictures_of_a_task():
    shown = NATIVE.pictures("classes")
    assert len(shown) == 16 and sorted(Counter(picture.label for picture in shown).values()) == [4, 4, 4, 4]
    assert [len(NATIVE.pictures(task)) for task in ("questions", "captions", "gap")] == [6, 6, 20]
    for task in ("classes", "questions", "captions"):
        assert replace(NATIVE, seed=1).pictures(task) != NATIVE.pictures(task)
    questions = NATIVE.pictures("questions")
    (_, batch, _), *_ = NATIVE.batches("questions", questions)
    assert [questions[i].question in batch.texts[i] for i in range(4)] == [True] * 4
    assert Experiment("mini-native-0").k == 19 and replace(NATIVE, n_per_class=100).k == 30


def test_what_is_drawn_depends_on_the_picture_and_the_seed_alone():
    shown, draws = NATIVE.pictures("questions"), {}
    for batch_size, seed in ((1, 0), (4, 0), (4, 1)):
        places = []
        for _, batch, seeds in replace(NATIVE, batch_size=batch_size, seed=seed).batches("questions", shown):
            chosen = Knockout(("image",), n_random=3).source_tokens(batch.tokens, seeds)
            first = batch.tokens.where("image").int().argmax(1, keepdim=True)
            places += [tuple((line.nonzero().flatten() - at).tolist()) for line, at in zip(chosen, first, strict=True)]
        draws[batch_size, seed] = places
    assert draws[1, 0] == draws[4, 0] != draws[4, 1] and len(set(draws[1, 0])) > 1
    several = Knockout(("image",), n_random=9).draws(replace(NATIVE, seed=5))
    assert [(draw.n_random, draw.seed) for draw in several] == [(3, 5), (3, 6)]
    assert KNOCKOUTS["end → text"].draws(NATIVE) == [KNOCKOUTS["end → text"]]
    share = KNOCKOUTS["random 1 % → text"].draws(NATIVE)
    assert [(draw.n_random, draw.seed) for draw in share] == [(0.01, 0), (0.01, 1)]


def test_a_share_of_the_image_goes_by_the_image():
    """1 % of each row's own tokens, at least one: images of one batch may differ in size."""
    rows = [[3] * 250 + [5, 1], [0] * 150 + [3] * 100 + [5, 1], [0] * 247 + [3] * 3 + [5, 1]]  # KINDS, padded in front
    kinds = torch.tensor(rows, dtype=torch.uint8)
    chosen = Knockout(("image",), n_random=0.01).source_tokens(TokenMap(kinds), [0, 1, 2])
    assert chosen.sum(1).tolist() == [2, 1, 1] and not chosen[kinds != 3].any()
    of_rank = lambda n: Knockout(("image",), rank=n).source_tokens(TokenMap(kinds), [0] * 3).nonzero()[:, 1].tolist()
    assert of_rank(2) == [2, 152, 249] and of_rank(200) == [200, 249, 249]  # of images with fewer, the last


def test_the_mean_of_the_image_tokens_on_the_page_of_the_overlap():
    """By hand, picture by picture: what each block reads of every image token, averaged."""
    page, experiment = page_code("gate/class_overlap"), replace(NATIVE, n_per_class=5)
    table, shown, states = values(page["overlap_rows"](experiment)), experiment.pictures("classes"), []
    model = experiment.load()
    for picture in shown:
        batch, reads = alone(experiment, picture, "<image> what is the largest thing?"), []
        hook = lambda module, args, reads=reads: reads.append(args[0][0])
        handles = [module.register_forward_pre_hook(hook) for module in (*model.layers, model.final_norm)]
        with torch.inference_mode():
            model.network(**batch.inputs, use_cache=False)
        for handle in handles:
            handle.remove()
        states.append(torch.stack(reads)[:, batch.tokens.where("image")[0]].mean(1))  # (L + 1, D)
    for layer, of_layer in enumerate(torch.stack(states).transpose(0, 1)):
        expected = overlap(of_layer, shown, k=4)
        assert table["mean image", layer, "class_overlap", "k = 4"] == pytest.approx(expected)
    assert table["mean image"].max() > table["random image"].max() + 0.05


def test_several_models_are_one_group():
    """The group is the mean over its models, its interval spans theirs, and each one's rows are kept."""
    estimates = {"mini-a-0": Estimate(0.2, 0.1, 0.3, 9), "mini-a-1": Estimate(0.4, 0.35, 0.45, 9)}
    measure = lambda experiment: [row("end", experiment.model, 1, 0.5, "share", "", estimates[experiment.model])]
    table = gate.run_models(measure, {"native": list(estimates), "gated": ["mini-a-0"]}, {"n_gap": 5})
    assert table["group"].tolist() == ["native", "native, seed 0", "native, seed 1", "gated"]
    assert table.loc[0, ["value", "low", "high"]].tolist() == pytest.approx([0.3, 0.1, 0.45])
    assert table["model"].tolist() == ["mini-a (2 seeds)", "mini-a-0", "mini-a-1", "mini-a-0"]
    assert gate.group_models(["a", "b"], [], ["mini-gated"]) == {"native": ["a", "b"], "gated": ["mini-gated"]}
    with pytest.raises(BadParameter, match="--model"):
        gate.group_models([], [])
    draws = gate.mean_of_draws([Estimate(0.2, 0.1, 0.3, 9, 0.1, 0.2), Estimate(0.4, 0.3, 0.7, 9, 0.1, 0.2)])
    assert (draws.value, draws.low, draws.high, draws.n) == pytest.approx((0.3, 0.2, 0.5, 9))


def test_names_that_begin_alike_are_left_out(monkeypatch):
    names = [pair.names for pair in pictures.pairs("scenes", 1)]
    apart = [pair for pair in names if len({first_token(NATIVE.load(), name) for name in pair}) == 2]
    assert [pair.names for pair in NATIVE.pairs()] == apart
    alike, other = (pictures.Pair(("red star", "a"), words, ([], [])) for words in (("red", "red"), ("red", "blue")))
    monkeypatch.setattr(pictures, "pairs", lambda *_: [alike, other])
    assert NATIVE.pairs() == [other]  # the words count, not the names of the classes
    monkeypatch.setattr(gate, "first_token", lambda model, word: 7)
    with pytest.raises(BadParameter, match="nothing flips"):
        NATIVE.pairs()


# Minis with known wiring decide whether the tools are right: what must destroy destroys, the rest does not

N = 160  # questions; an accuracy is known to about .04


def right(model, name, how="zero"):
    """The share of the questions that a mini answers rightly with a knockout, and what it says."""
    experiment = Experiment(model, n_questions=N, how=how, batch_size=40)
    questions = experiment.pictures("questions")
    (texts,) = generate_answers(experiment, "questions", questions, [KNOCKOUTS[name]]).values()
    return vqa_accuracy(texts, [picture.answers for picture in questions]).mean(), texts


@pytest.mark.parametrize("how", ["zero", "mask"])
def test_gated_lives_by_the_end_of_image_token_and_open_by_the_image_tokens(how):
    accuracy, texts = right("mini-gated", "none", how)
    assert accuracy > 0.6 and right("mini-gated", "end → text", how)[0] < 0.6 * accuracy
    for name in ("image → text", "random image → text"):
        assert right("mini-gated", name, how)[1] == texts  # its wiring closes this way already
    accuracy, _ = right("mini-open", "none", how)
    assert accuracy > 0.6 and right("mini-open", "image → text", how)[0] < 0.6 * accuracy
    assert right("mini-open", "end → text", how)[0] > 0.9 * accuracy


def test_patching_turns_the_gated_and_not_the_open():
    page = page_code("gate/patching")
    flips = lambda model: values(page["patching_rows"](Experiment(model, n_per_pair=4, batch_size=40), 1))
    largest = lambda model: flips(model).loc["residual", :, "flips_of_right"].max()
    assert largest("mini-gated") > 0.5 and largest("mini-open") == 0
