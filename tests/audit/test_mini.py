"""A model in the page: in a browser it computes what Python computes, a fault in it shows, and a reader can use it."""

import functools
import runpy
import shutil

import numpy as np
import pytest
import torch
from test_browser import PHONE, THEMES, WCAG, Visit, address, chromium  # noqa: F401 - fixtures, one serves `built`

from conftest import ROOT
from peaks_and_gates.gate.attention import attention_shares, knockout
from peaks_and_gates.gate.experiment import Experiment
from peaks_and_gates.gate.patching import patched, read_states, single_position

PAGE = """<!doctype html><html lang=en><title>A mini</title><meta charset=utf-8><link rel=icon href=favicon.svg>
<meta name=viewport content=width=device-width><link rel=stylesheet href=custom.css><div class=pg-mini></div>
<script src="mini.js"></script>"""
# Of every scene: the answer, its probability, that of each word to be the first, and how much of its attention the last
# token of the prompt gives, in every layer, to the image with its begin, to its end, and to all tokens, hidden or not.
ANSWERS = """async ([name, rows]) => (await pgMini.ready(name), rows.map(({steer, ...row}) => {
  const words = pgMini.answer(name, {...row, steer: steer.strength ? steer : null})
  const spoken = words.filter(({word}) => word !== '</s>')
  const sum = (shares, from, to) => shares.slice(from, to).reduce((a, b) => a + b, 0)
  return [spoken.map(({word}) => word).join(' ').replace(/ (?=[.,?])/g, ''),
    spoken.reduce((product, {probabilities}) => product * Math.max(...probabilities), 1), [...words[0].probabilities],
    words[0].attention.map(({read, lost}) => [sum(read, 1, 66), read[66], sum(read, 0) + sum(lost, 0)])]
}))"""
END = 66  # the end-of-image token's place, behind the start, the begin of the image and 64 image tokens
TEXTS = {"classes": "what is the largest thing?", "captions": "describe it."}
STRENGTHS = [0.25, 0.5, 0.75, 1.0, 1.5]
several = lambda i: np.random.default_rng(i).choice(END + 3, 2 + i % 12, replace=False).tolist()  # words, too
# The prompt, what is hidden from the text about scene i, and the strengths of steering, of the scenes in turn.
CHANGES = {
    "questions": ("questions", lambda i: [], [0]),
    "questions, end hidden": ("questions", lambda i: [END], [0]),
    "classes": ("classes", lambda i: [], [0]),
    "classes, end hidden": ("classes", lambda i: [END], [0]),
    "one image token hidden": ("classes", lambda i: [2 + i], [0]),
    "several tokens hidden": ("classes", several, [0]),
    "steered": ("classes", lambda i: [], STRENGTHS),
    "captions, several hidden, steered": ("captions", several, STRENGTHS),
}
# How many of 50 answers are right under the first four.
RIGHT = {"native": [45, 46, 48, 48], "gated": [41, 22, 48, 0]}
RIGHT |= {"reopened": [44, 45, 48, 48], "penalised": [40, 18, 47, 0]}


@functools.cache
@torch.inference_mode()
def python_answers(name, change):
    """What the browser is asked about every scene, and what Python answers: as ANSWERS, attention as without a change.

    Scenes come in tens: those of the first ten are steered in layer 1, each towards the one before it, and so on.
    """
    task, hide, strengths = CHANGES[change]
    weights, rows, answers = str(ROOT / f"weights/minis/{name}-0"), [], []
    experiment = Experiment(weights, n_questions=50, batch_size=10, dtype="float32")
    scenes = experiment.pictures("questions")
    for layer, (model, batch, _) in enumerate(experiment.batches(task, scenes), 1):
        end, first = single_position(batch.tokens.where("gate")), len(rows)  # (B,)
        groups = {"image": batch.tokens.where("begin", "image"), "end": batch.tokens.where("end")}
        with read_states(model, end) as states, attention_shares(model, groups, batch.tokens.where("last")) as shares:
            model.network(**batch.inputs)
        sources = torch.zeros_like(batch.tokens.kinds, dtype=torch.bool)  # (B, T)
        for row, scene in enumerate(scenes[first : first + 10]):
            i = first + row
            steer = {"layer": layer, "towards": first + (row - 1) % 10, "strength": strengths[i % len(strengths)]}
            question = {"text": TEXTS.get(task, scene.question), "hidden": hide(i), "steer": steer}
            rows.append(question | {"scene": i, "right": scene.answers[0] if task == "questions" else scene.label})
            sources[row, [end[row] - END + place for place in hide(i)]] = True
        own, strength = states.residual[:, layer], torch.tensor([row["steer"]["strength"] for row in rows[first:]])
        moved = own + strength[:, None] * (own.roll(1, 0) - own)  # (B, D)
        hidden = knockout(model, sources if sources.any() else None, batch.tokens.where("after"))
        options = {"max_new_tokens": experiment.n_new(task), "output_logits": True, "return_dict_in_generate": True}
        with hidden, patched(model, moved, end, layer):
            output = model.network.generate(**batch.inputs, do_sample=False, **options)
        likely = torch.stack(output.logits, 1).softmax(-1)  # (B, new, V)
        ids = output.sequences[:, -likely.shape[1] :]  # (B, new)
        texts = [text.strip() for text in model.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        words = ~torch.isin(ids, torch.tensor(model.tokenizer.all_special_ids))
        products = likely.gather(2, ids[..., None])[..., 0].where(words, 1).prod(1).tolist()  # B
        read = shares["weights"].mean(2).numpy()  # (B, L, 2)
        answers += zip(texts, products, likely[:, 0].numpy(), read, strict=True)
    return rows, answers


@functools.cache
def compare(tab, name, change, step=1):
    """The largest difference of browser and Python, in probabilities and shares of attention; how many of the browser's
    answers are not Python's; how many are right."""
    rows, expected = (part[::step] for part in python_answers(name, change))
    largest, n_other, n_right = 0, 0, 0
    for row, there, here in zip(rows, expected, tab.evaluate(ANSWERS, [name, rows]), strict=True):
        words, shares = np.array(here[2]), np.array(here[3])  # (V,), (L, 3)
        pairs = [(here[1], there[1]), (words, there[2][: len(words)]), (shares[:, 2], 1)]
        if not row["hidden"] and not row["steer"]["strength"]:
            pairs.append((shares[:, :2], there[3]))
        largest = np.max([largest, *(np.abs(a - b).max() for a, b in pairs)])  # NaN stays NaN
        n_other, n_right = n_other + (here[0] != there[0]), n_right + (here[0] == row["right"])
    return largest, n_other, n_right


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A page with nothing but the mini, and the scripts that the site writes."""
    without = shutil.ignore_patterns("plotly", "mathjax")
    folder = shutil.copytree(ROOT / "book/_static", tmp_path_factory.mktemp("site") / "html", ignore=without)
    runpy.run_path(ROOT / "book/_ext/page_minis.py")["write_minis"](folder / "mini")
    (folder / "index.html").write_text(PAGE)
    return folder


@pytest.fixture(scope="module")
def tab(built, chromium):  # noqa: F811
    """The page, from a file."""
    (tab := chromium.new_page()).goto(f"{built.as_uri()}/index.html")
    return tab


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", RIGHT)
def test_the_browser_computes_what_python_computes(tab, name, change):
    largest, n_other, _ = compare(tab, name, change)
    assert largest < 1e-4 and n_other == 0


@pytest.mark.parametrize("name, right", RIGHT.items())
def test_hiding_the_token_breaks_the_gated_mini_and_leaves_the_reopened_one(tab, name, right):
    assert [compare(tab, name, change)[2] for change in list(CHANGES)[:4]] == right


FAULTS = [
    ("hidden.has(key)", "false", "classes, end hidden"),
    ("hidden.has(key)", "hidden.has(key - 1)", "one image token hidden"),
    ("query > END && hidden", "query >= END && hidden", "several tokens hidden"),
    ("{ hidden: changes.hidden }", "{}", "captions, several hidden, steered"),
    ('model.wiring === "gated"', "false", "classes, end hidden"),
    ("key <= query", "true", "classes, end hidden"),
    ("steer.layer === layer", "steer.layer === layer + 1", "steered"),
    ("[scene, towards]", "[towards, scene]", "steered"),
    ("strength * (other[i] - value)", "strength * other[i]", "steered"),
    ("strength * (other[i] - value)", "(other[i] - value)", "steered"),
]


@pytest.mark.parametrize("right, wrong, change", FAULTS)
def test_a_fault_is_seen(chromium, built, right, wrong, change):  # noqa: F811
    script = (built / "mini.js").read_text()
    (built / "broken.js").write_text(script.replace(right, wrong))
    (built / "broken.html").write_text(PAGE.replace("mini.js", "broken.js"))
    (tab := chromium.new_page()).goto(f"{built.as_uri()}/broken.html")
    name = "native" if "image token" in change or "several" in change else "gated"
    assert script.count(right) == 1 and compare(tab, name, change, step=7)[0] > 1e-4


@pytest.mark.parametrize("how", ["file", "http"])
def test_a_reader_restores_the_answer_by_keyboard(built, address, chromium, how):  # noqa: F811
    from axe_playwright_python.sync_playwright import Axe

    visit = Visit(chromium, {"file": built.as_uri(), "http": address}[how], size=PHONE)
    tab = visit.open("index.html")
    status = tab.get_by_role("status")
    tab.get_by_role("button", name="Run the gated mini").press("Enter")
    status.filter(has_text="answers “pink star” (probability .85). Wrong: it is “green diamond”").wait_for()
    tab.keyboard.press("Enter")  # the button that restores the answer has the focus
    status.filter(has_text="answers “green diamond” (probability 1.00). That is right. Nothing is hidden.").wait_for()
    tab.get_by_label("Strength").press("End")
    tab.get_by_label("hide the image token in row 1, column 1").press("ArrowDown")
    tab.keyboard.press("Space")
    status.filter(has_text="answers “red star”").filter(has_text="1 image token").wait_for()
    assert visit.problems() == []  # no error, and nothing is asked of another machine
    for theme in THEMES:
        tab.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        assert Axe().run(tab, options={"runOnly": WCAG, "preload": False}).response["violations"] == []
    assert tab.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"]
    visit.context.close()
