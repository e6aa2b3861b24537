"""What the gate's pages compute, against the same numbers by hand: one picture at a time, by hooks of this file alone.

The pages' own code is run, not a copy of it.
"""

from collections import Counter
from dataclasses import replace

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
from peaks_and_gates.statistics import Estimate, row

NATIVE = Experiment(
    "mini-native-0", n_gap=20, n_classes=4, n_per_class=4, n_questions=6, n_captions=6, n_per_pair=1, n_random=3,
    n_repeats=2, batch_size=4, how="mask", new_tokens=(2, 9),
)  # fmt: skip
ADAPTED, GATED = (replace(NATIVE, model=f"mini-{name}") for name in ("adapted-0", "gated"))
# What is hidden from what, written out again.
HIDDEN = {
    "none": (None, "after"),
    "end → text": (["end"], "after"),
    "image → text": (["begin", "image", "special"], "after"),
    "random image → text": ("random", "after"),
    "block → text": (["begin", "image", "special", "end"], "after"),
    "image → image": (["image"], "image"),
}


# By hand: one picture at a time


def alone(experiment, picture, text):
    """A prompt on its own, without padding."""
    return vlm.encode(experiment.load(), [picture.image], [text])


def class_prompt(experiment, picture):
    return alone(experiment, picture, "<image> what is the largest thing?")


def run(model, batch, position=-1, change=()):
    """Logits of the next word; and what each block and the final norm read at a position, (L + 1, D).

    change: {module: the state that it is given there}.
    """
    readers, change, reads = [*model.layers, model.final_norm], dict(change), []

    def hook(module, args, kwargs):
        states = (args[0] if args else kwargs["hidden_states"]).clone()
        states[0, position] = change.get(module, states[0, position])
        reads.extend([states[0, position]] * (module in readers))
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    hooks = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in {*readers, *change}]
    with torch.inference_mode():
        logits = model.network(**batch.inputs, use_cache=False).logits[0, -1]
    for handle in hooks:
        handle.remove()
    return logits, torch.stack(reads)


def hide(experiment, batch, name, seeds, how, first=0):
    """The knockout of that name, from the groups of tokens in HIDDEN."""
    model, (sources, targets) = experiment.load(), HIDDEN[name]
    hidden = batch.tokens.random("image", 3, seeds) if sources == "random" else sources and batch.tokens.where(*sources)
    layers = range(first, model.n_layers)
    return knockout_attention(model, hidden, batch.tokens.where(targets), how, layers, generated=targets == "after")


def overlap(states, shown, k=3):
    """The mean share of the k nearest pictures that show the same class."""
    labels = np.array([picture.label for picture in shown])
    distances = torch.cdist(states.double(), states.double()).fill_diagonal_(torch.inf)
    nearest = distances.argsort(1)[:, :k].numpy()
    return (labels[nearest] == labels[:, None]).mean()


def output_overlap_by_hand(experiment, name, how, first=0, draw=0):
    shown, states = experiment.pictures("classes"), []
    for picture, row_seed in zip(shown, seeds_of(experiment, shown), strict=True):
        batch = class_prompt(experiment, picture)
        with hide(experiment, batch, name, [row_seed + draw], how, first):
            states.append(run(experiment.load(), batch)[1][-1])
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


def test_modality_gap(monkeypatch):
    page, given = page_code("gate/modality_gap"), []
    real = page["cosine_gap"]
    measured = lambda *states, **settings: given.append(states) or real(*states, **settings)
    monkeypatch.setitem(page, "cosine_gap", measured)
    table = values(page["modality_gap"](NATIVE))
    assert set(table.index.get_level_values("layer")) == set(range(7))
    assert table.loc[:, 1:, "homogeneity"].index.get_level_values("setting").unique().tolist() == ["clean", "main"]
    shown, model = NATIVE.pictures("gap"), NATIVE.load()
    for i, (picture, seed) in enumerate(zip(shown, seeds_of(NATIVE, shown), strict=True)):
        image_first = alone(NATIVE, picture, f"<image>{picture.captions[0]}")
        text_first = alone(NATIVE, picture, f"{picture.captions[0]}<image>\n")
        for batch, group, side in ((image_first, "after", 0), (text_first, "image", 1)):
            position = int(batch.tokens.random(group, 1, [seed]).int().argmax())
            _, states = run(model, batch, position)
            mine = torch.stack([layer[side][i] for layer in given])
            torch.testing.assert_close(mine, states, atol=1e-4, rtol=1e-4)
    cosines = torch.nn.functional.cosine_similarity(given[3][0][:, None], given[3][1][None], dim=-1).abs()
    pairs = cosines[~torch.eye(20, dtype=torch.bool)].sort().values
    assert table["image, text", 3, "cosine", "median"] == pytest.approx(pairs[189].item(), abs=1e-6)
    assert table["image, text", 3, "cosine", "quartile 1"] == pytest.approx(pairs[94].item(), abs=1e-6)


@pytest.mark.parametrize("experiment", [NATIVE, ADAPTED], ids=lambda experiment: experiment.model)
def test_cross_attention(experiment):
    table = values(page_code("gate/cross_attention")["attention_rows"](experiment))
    eager = vlm.load(experiment.model, torch.float32, "cpu", attention="eager")
    attention = []
    for picture in experiment.pictures("classes"):
        batch = class_prompt(experiment, picture)
        with torch.inference_mode():
            weights = eager.network(**batch.inputs, output_attentions=True).attentions
        tokens, text = batch.tokens, batch.tokens.where("after")[0]
        last = tokens.where("image")[0].nonzero().max()
        kinds = {kind: tokens.where(kind)[0].clone() for kind in ("begin", "end", "special", "image")}
        kinds["image"][last] = False
        kinds["last image"] = torch.arange(len(text)) == last
        of_text = torch.stack(weights)[:, 0, :, text].mean(2)  # (L, H, T)
        attention.append(torch.stack([of_text[..., kind].sum(-1) for kind in kinds.values()], -1))  # (L, H, kinds)
    attention = torch.stack(attention).double().numpy()  # (N, L, H, kinds)
    for layer in (0, 3, attention.shape[1] - 1):
        for setting, mass in (("all heads", attention[:, layer].mean(1)), ("head 1", attention[:, layer, 1])):
            assert table["block", layer, "mass", setting] == pytest.approx(mass.sum(1).mean(), abs=1e-5)
            for kind, part in zip(kinds, mass.T, strict=True):
                assert table[kind, layer, "share", setting] == pytest.approx(part.sum() / mass.sum(), abs=1e-5)


def test_class_overlap():
    table = values(page_code("gate/class_overlap")["overlap_rows"](NATIVE))
    shown = NATIVE.pictures("classes")
    groups = {"end": "end", "last image": "last image", "random image": "image", "last text": "last"}
    for token, group in groups.items():  # all but one have a single token, and draw it
        states = []
        for picture, seed in zip(shown, seeds_of(NATIVE, shown), strict=True):
            batch = class_prompt(NATIVE, picture)
            states.append(run(NATIVE.load(), batch, int(batch.tokens.random(group, 1, [seed]).int().argmax()))[1])
        for layer in range(1, 7):  # before the first block many states are alike, and ties have no order
            expected = overlap(torch.stack(states)[:, layer], shown)
            assert table[token, layer, "class_overlap", "k = 3"] == pytest.approx(expected, abs=1e-9), (token, layer)


@pytest.mark.parametrize("how", ["zero", "mask"])
def test_knockout_table(how):
    experiment = replace(NATIVE, how=how)
    page = page_code("gate/knockout_table", n_random=3)
    table = values(page["knockout_rows"](experiment))
    questions, captioned = experiment.pictures("questions"), experiment.pictures("captions")
    references = [list(picture.captions) for picture in captioned]
    accuracy = {}
    for name in HIDDEN:
        draws = (0, 1) if name == "random image → text" else (0,)
        answers = [answers_by_hand(experiment, "questions", name, how, draw) for draw in draws]
        captions = [answers_by_hand(experiment, "captions", name, how, draw) for draw in draws]
        overlaps = [output_overlap_by_hand(experiment, name, how, draw=draw) for draw in draws]
        accuracy[name] = np.mean([[texts[i] == q.answers[0] for i, q in enumerate(questions)] for texts in answers])
        assert table[name, 0, "vqa", how] == pytest.approx(accuracy[name])
        assert table[name, 0, "class_overlap", how] == pytest.approx(np.mean(overlaps))
        for tokenizer in ("ptb", "whitespace"):
            expected = np.mean([cider(texts, references, tokenizer)[0] for texts in captions])
            assert table[name, 0, f"cider_{tokenizer}", "scenes"] == pytest.approx(expected)
        if name != "none":
            assert table[name, 0, "vqa_lost", how] == pytest.approx(1 - accuracy[name] / accuracy["none"])
    assert len(set(accuracy.values())) > 2  # else little would be seen
    opening = values(page_code("gate/opening_the_gate")["opening_rows"](experiment))
    for name in HIDDEN:
        for measure in (("vqa", how), ("class_overlap", how), ("cider_ptb", "scenes")):
            assert opening[(name, 0, *measure)] == pytest.approx(table[(name, 0, *measure)])
    assert opening["end → text", 0, "vqa_lost", how] == pytest.approx(table["end → text", 0, "vqa_lost", how])


@pytest.mark.parametrize("how", ["zero", "mask"])
def test_progressive_knockout(how):
    experiment = replace(NATIVE, how=how)
    table = values(page_code("gate/progressive_knockout")["progressive_rows"](experiment, 2))
    assert sorted(set(table.index.get_level_values("layer"))) == [0, 2, 4, 6]
    expected = {
        (name, x, "class_overlap", how): output_overlap_by_hand(experiment, name, how, first=x)
        for name in ("end → text", "image → text")
        for x in (0, 2, 4)
    }
    untouched = output_overlap_by_hand(experiment, "none", how)
    expected |= {(name, 6, "class_overlap", how): untouched for name in ("end → text", "image → text")}
    assert table.to_dict() == pytest.approx(expected)
    assert len(set(expected.values())) > 2


@pytest.mark.parametrize("experiment", [GATED, NATIVE], ids=lambda experiment: experiment.model)
def test_patching(experiment):
    table = values(page_code("gate/patching")["patching_rows"](experiment, 1))
    model, pairs = experiment.load(), pictures.pairs("scenes", 1)
    end = lambda batch: int(batch.tokens.where("end").int().argmax())
    results = {}
    for pair in pairs:
        own, other = (first_token(model, name) for name in pair.names)
        if own == other:
            continue
        base, counterfactual = (class_prompt(experiment, shown[0]) for shown in pair.pictures)
        target, states = run(model, counterfactual, end(counterfactual))
        norms = [block.input_layernorm(state) for block, state in zip(model.layers, states, strict=False)]
        attentions = [block.self_attn for block in model.layers]
        changes = {("none", 0): {}}
        changes |= {("residual", i): {module: states[i]} for i, module in enumerate([*model.layers, model.final_norm])}
        changes |= {("attention", i): dict(zip(attentions[i:], norms[i:], strict=True)) for i in range(model.n_layers)}
        untouched, _ = run(model, base)
        for step, change in changes.items():
            logits, _ = run(model, base, end(base), change)
            alike = torch.minimum(logits.softmax(-1), target.softmax(-1)).sum().item()
            right, turned = untouched[own] > untouched[other], logits[own] < logits[other]
            results.setdefault(step, []).append((alike, float(right & turned), float(right)))
    for (kind, layer), found in results.items():
        alike, turned, right = np.array(found).T
        assert table[kind, layer, "similarity", ""] == pytest.approx(alike.mean(), abs=1e-4)
        assert table[kind, layer, "flips", ""] == pytest.approx(turned.mean())
        assert table[kind, layer, "flips_of_right", ""] == pytest.approx(turned.sum() / right.sum())
    assert table["none", 0, "base_right", ""] == pytest.approx(right.mean()) and right.mean() > 0.5
    if experiment is GATED:  # its wiring is known
        assert table["residual", 5, "flips_of_right", ""] > 0.5 > table["residual", 2, "flips_of_right", ""]


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


def test_all_knockouts_of_one_run_are_those_of_single_runs():
    shown = NATIVE.pictures("captions")
    together = generate_answers(NATIVE, "captions", shown, list(KNOCKOUTS.values()))
    for knockout in KNOCKOUTS.values():
        assert generate_answers(NATIVE, "captions", shown, [knockout])[knockout] == together[knockout]
    assert page_code("gate/knockout_table", n_random=10)["KNOCKOUTS"] == KNOCKOUTS


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
    assert [pair.names for pair in NATIVE.pairs()] == [
        pair for pair in names if len({first_token(NATIVE.load(), name) for name in pair}) == 2
    ]
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


def test_a_penalty_moves_a_model_from_open_to_gated():
    """The share of the answers lost without the token rises with the penalty, the one lost without the image falls."""
    lost = {"end → text": [], "image → text": []}
    for model in ("mini-native-0", "mini-lightly-taxed", "mini-taxed"):
        accuracy, _ = right(model, "none")
        assert accuracy > 0.6
        for name, shares in lost.items():
            shares.append(1 - right(model, name)[0] / accuracy)
    strength = np.array(lost["end → text"]) - np.array(lost["image → text"])
    assert (np.diff(strength) > 0).all() and strength[0] < -0.3 < 0.3 < strength[-1], lost


def test_patching_turns_the_gated_and_not_the_open():
    page = page_code("gate/patching")
    flips = lambda model: values(page["patching_rows"](Experiment(model, n_per_pair=4, batch_size=40), 1))
    largest = lambda model: flips(model).loc["residual", :, "flips_of_right"].max()
    assert largest("mini-gated") > 0.5 and largest("mini-open") == 0
