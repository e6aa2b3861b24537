"""The minis with known wiring decide whether the tools are right: what must destroy destroys, the rest does not."""

import numpy as np
import pytest

from peaks_and_gates import interventions, vqa
from peaks_and_gates.gate import study as gate
from peaks_and_gates.interventions import CUTS

N = 160  # questions; an accuracy is known to about .04


def right(model, cut, how="zero"):
    """Share of the questions that a mini answers rightly with a cut, and what it says."""
    study = gate.Study(model, n_questions=N, how=how, batch_size=40)
    asked = study.pictures("questions")
    said = interventions.answers(study, "questions", asked, CUTS[cut])
    return np.mean(vqa.vqa_accuracy(said, [picture.answers for picture in asked])), said


def flips(model):
    """The largest share of right answers that another image's end-of-image state turns."""
    rows = interventions.patching_rows(gate.Study(model, n_per_pair=4, batch_size=40), 1)
    chosen = rows[(rows["condition"] == "residual") & (rows["metric"] == "flips_of_right")]
    return chosen["value"].max()


@pytest.mark.parametrize("how", ["zero", "mask"])
def test_a_gated_model_lives_by_the_end_of_image_token(how):
    whole, said = right("mini-gated", "none", how)
    assert whole > 0.6
    assert right("mini-gated", "end → text", how)[0] < 0.6 * whole
    assert right("mini-gated", "image → text", how)[1] == said  # its wiring closes this way already
    assert right("mini-gated", "random image → text", how)[1] == said


@pytest.mark.parametrize("how", ["zero", "mask"])
def test_an_open_model_lives_by_the_image_tokens(how):
    whole, _ = right("mini-open", "none", how)
    assert whole > 0.6
    assert right("mini-open", "image → text", how)[0] < 0.6 * whole
    assert right("mini-open", "end → text", how)[0] > 0.9 * whole


def test_a_taxed_model_lives_by_the_end_of_image_token():
    """A price alone, without a mask: the image can be hidden, the token cannot."""
    whole, _ = right("mini-taxed", "none")
    assert whole > 0.6
    assert right("mini-taxed", "end → text")[0] < 0.6 * whole
    assert right("mini-taxed", "image → text")[0] > 0.9 * whole


def test_a_penalty_moves_a_model_from_open_to_gated():
    """The share of the answers lost without the token rises with the penalty, the one lost without the image falls."""
    lost = {"end → text": [], "image → text": []}
    for model in ("mini-native-0", "mini-lightly-taxed", "mini-taxed"):
        whole, _ = right(model, "none")
        for cut, shares in lost.items():
            shares.append(1 - right(model, cut)[0] / whole)
    end, image = (np.array(shares) for shares in lost.values())
    strength = end - image
    assert (np.diff(strength) > 0).all(), lost
    assert strength[0] < -0.3 < 0.3 < strength[-1], lost


def test_patching_turns_the_gated_and_not_the_open():
    assert flips("mini-gated") > 0.5
    assert flips("mini-open") == 0
