"""The pages where the answer is known: the tables must say it, and must not when something is broken."""

import numpy as np
import pytest

from peaks_and_gates import figures, known_cuts, known_figures
from peaks_and_gates.gate import study as gate


@pytest.fixture(scope="module")
def cut_table(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PG_CACHE", str(tmp_path_factory.mktemp("cache")))
        study = gate.Study("", n_questions=60, batch_size=30)
        yield known_cuts.accuracies(study, ["mini-gated", "mini-open"])


def test_cuts_hurt_where_the_wiring_says(cut_table):
    at = cut_table.set_index(["model", "cut"])["value"]
    gated, opened = at["mini-gated"], at["mini-open"]
    assert gated["image → text"] == gated["none"] > gated["end → text"] + 0.2
    # Hiding a token that carries no picture still takes its share of the attention away: an answer or two may change.
    assert opened["end → text"] == pytest.approx(opened["none"], abs=0.05)
    assert opened["none"] > opened["image → text"] + 0.2
    assert gated["block → text"] == gated["end → text"] and opened["block → text"] < opened["none"] - 0.2


def test_the_drawn_masks_are_those_of_the_models():
    gated, opened = (known_figures.reading(model, "none") for model in ("mini-gated", "mini-open"))
    end, text, image = known_figures.TOKENS.index("end"), 10, 4
    assert gated[text, image] == 2 and gated[end, image] == 1 and gated[text, end] == 1
    assert opened[text, image] == 1 and opened[end, image] == 2 and opened[text, end] == 1
    assert known_figures.reading("mini-gated", "end → text")[text, end] == 3
    assert known_figures.reading("mini-open", "image → text")[text, image] == 3
    assert (np.triu(gated, 1) == 0).all() and (np.diag(gated) == 1).all()


def test_every_frame_can_be_drawn_and_says_something(cut_table):
    sets = {
        "cut end → text": known_figures.cut_frames(cut_table),
    }
    for label, frames in sets.items():
        draw, said = frames[label]
        assert said[0].isalnum() and said.endswith(".") and figures.as_svg(draw).startswith(b"<?xml")


def test_steps_hold_every_picture_twice_with_its_words():
    from matplotlib import pyplot as plt

    frames = {f"step {i}": (lambda: plt.figure(figsize=(1, 1)), f"it is <{i}>.") for i in range(3)}
    page = figures.steps(frames, "all & more").data
    assert page.count("<img") == 6 and page.count('alt="it is &lt;1&gt;."') == 2
    assert page.count('class="pg-step"') == 3 and 'data-label="step 2"' in page and "all &amp; more" in page
    assert "_static/steps.js" in page and "http" not in page
