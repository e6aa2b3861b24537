"""The maps: what is drawn must be the states of the questions named, and nothing on the page may ask a network."""

import json
import re
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from conftest import make_questions
from peaks_and_gates import figures, map_figures, maps, store
from peaks_and_gates.extraction import StoredStates
from peaks_and_gates.peaks import Study
from peaks_and_gates.questions import LETTERS, Question

N = 30  # questions a subject
TRICKY = 'Which term means "</script><!-- <b>a & b</b>"?'


@dataclass(frozen=True)
class Made(Study):
    """A study of hand-made questions whose states lie around one centre a subject, in a plane of 12 dimensions."""

    def question_set(self):
        questions = make_questions(4, N)
        first = questions.subjects[0]
        tricky = Question(first, TRICKY, ("<i>", "b", "c", "d"), 0)
        return replace(questions, test=questions.test | {first: (tricky,) * N})

    def states(self, questions, n_shots):
        asked = [question for subject in questions.subjects for question in questions.test[subject]]
        return StoredStates((Layers(asked),), [q.subject for q in asked], answers(asked), torch.zeros(0), 2, "made")


def answers(asked):
    return torch.tensor([question.answer for question in asked])


class Layers:
    """Layer 1: centres in a plane, two of them close together.  Layer 2: mirrored and squashed."""

    def __init__(self, asked):
        subject = np.unique([question.subject for question in asked], return_inverse=True)[1]
        rng = np.random.default_rng(0)
        self.place = np.array([(0, 0), (1, 0), (0, 14), (12, 19)])[subject] + rng.standard_normal((len(asked), 2))
        self.frame = np.linalg.qr(rng.standard_normal((12, 2)))[0].T  # (2, 12), orthonormal rows

    def get_tensor(self, name):
        turn = np.array([[1, 0], [0, 1]]) if name == "norm.1" else np.diag([3, 0.1]) @ [[0.6, 0.8], [0.8, -0.6]]
        return torch.tensor(self.place @ turn @ self.frame).float()


@pytest.fixture
def found(own_cache):
    study = Made("made-model", "made", [0, 5])
    return maps.landscape_map({"5-shot": study, "fine-tuned": replace(study, model="other")}, n_shown=7)


def states():
    study = Made("made-model", "made", [0])
    questions = study.question_set()
    return questions, study.states(questions, 0)


def test_a_plane_keeps_the_distances_of_flat_states():
    place = np.random.default_rng(1).standard_normal((60, 2))
    frame = maps.plane(torch.tensor(place @ np.eye(2, 9)), "figures")
    assert frame["explained"].iloc[0] == pytest.approx(1)
    drawn = frame[["x", "y"]].to_numpy()
    assert np.linalg.norm(drawn - drawn[7], axis=1) == pytest.approx(np.linalg.norm(place - place[7], axis=1), rel=1e-4)


def test_peaks_are_numbered_by_size_and_an_identical_state_is_in_none():
    rng = np.random.default_rng(1)
    # The smallest is the densest and the largest is not the thinnest, so that no other order gives these numbers.
    made = ((40, 0.1, 0), (90, 1, 50), (60, 3, 99))  # questions, width, place
    clouds = [rng.standard_normal((size, 3)) * width + place for size, width, place in made]
    hidden = np.insert(np.concatenate(clouds), 5, clouds[0][0], axis=0)  # row 5 is row 0 again
    peak = maps.plane(torch.tensor(hidden), "figures")["peak"].tolist()
    assert peak == [2] * 5 + [-1] + [2] * 35 + [0] * 90 + [1] * 60


def test_aligned_layers_stop_spinning_and_keep_their_shape():
    rng = np.random.default_rng(2)
    first = rng.standard_normal((50, 2)) * (3, 1)
    mirrored = 7 * first @ np.array([[0.6, 0.8], [0.8, -0.6]]) + 4
    turned = maps.aligned([first, mirrored, mirrored[:, ::-1]])
    assert np.allclose(turned[0], turned[1]) and np.allclose(turned[0], turned[2])
    assert (turned[0] ** 2).sum(1).mean() == pytest.approx(1)
    other = rng.standard_normal((50, 2))
    after = maps.aligned([first, other])[1]
    ratio = np.linalg.norm(after - after[0], axis=1)[1:] / np.linalg.norm(other - other[0], axis=1)[1:]
    assert np.allclose(ratio, ratio[0])


@pytest.mark.parametrize(("n_layers", "first", "count"), [(4, 1, 4), (30, 2, 15), (32, 2, 16), (80, 5, 16)])
def test_mapped_layers_are_even_and_end_at_the_last(n_layers, first, count):
    layers = maps.mapped_layers(n_layers)
    assert (layers[0], layers[-1], len(layers), len(set(np.diff(layers)))) == (first, n_layers, count, 1)


def test_a_model_that_was_not_tuned_on_format_is_not_shown_twice():
    study = Study("raw", "wordnet", [0, 1, 5])
    asked = maps.views(study, "tuned", "fine")
    assert {name: (s.model, s.shots) for name, s in asked.items()} == {
        "5-shot": ("raw", [5]),
        "0-shot": ("raw", [0]),
        "pretrained, 5-shot": ("tuned", [5]),
        "fine-tuned": ("fine", [0]),
    }
    assert "pretrained, 5-shot" not in maps.views(study, "raw", "fine")


def test_every_mark_is_the_state_of_the_question_it_names(found):
    questions, stored = states()
    rows = maps.chosen(questions, 7, seed=0)
    assert found.questions["subject"].tolist() == [stored.subject[i].replace("_", " ") for i in rows]
    assert found.questions["answer"].tolist() == [LETTERS[stored.answer[i]] for i in rows]
    hidden = stored.layer("norm", 2).numpy()[rows]
    at = found.points[(found.points["condition"] == "5-shot") & (found.points["layer"] == 2)]
    between = lambda place: np.linalg.norm(place[:, None] - place, axis=2)
    truth, drawn = between(hidden), between(at[["x", "y"]].to_numpy() / maps.UNIT)
    assert drawn == pytest.approx(truth * drawn.max() / truth.max(), abs=0.05)


@pytest.mark.parametrize("layer", [1, 2])
def test_the_numbers_are_those_of_all_the_questions(found, layer):
    _, stored = states()
    peak = maps.plane(stored.layer("norm", layer), "figures")["peak"]
    table = found.landscape.set_index(["condition", "layer", "metric"])
    row = table.loc["5-shot", layer, "ari_subject"]
    assert row["value"] == pytest.approx(adjusted_rand_score(stored.subject, peak)) and row["n"] == 4 * N
    assert row["low"] < row["value"] < row["high"] and row["null_high"] < 0.2 < row["value"]
    assert table.loc["5-shot", layer, "n_peaks"]["value"] == peak.max() + 1
    assert table.loc["5-shot", layer, "explained"]["value"] == pytest.approx(1)
    shown = map_figures.measured(found, "5-shot", layer)
    assert shown["ari_subject"] == pytest.approx(row[["value", "low", "high"]].tolist(), abs=1e-4)
    assert shown["n_peaks"] == [peak.max() + 1]


def test_the_data_in_the_page_are_those_of_the_map_and_cannot_end_their_element(found):
    page = map_figures.interactive(found).data
    data = re.search(r'<script type="application/json">(.*?)</script>', page, re.S).group(1)
    assert "<" not in data
    data = json.loads(data)
    assert data["questions"][0] | {"subject": "", "group": ""} == {
        "subject": "", "group": "", "text": TRICKY, "answer": "A", "option": "<i>",
    }  # fmt: skip
    assert [view["name"] for view in data["views"]] == ["5-shot, made-model", "fine-tuned, other"]
    layer = data["views"][0]["layers"][1]
    at = found.points[(found.points["condition"] == "5-shot") & (found.points["layer"] == 2)]
    assert (layer["layer"], layer["x"], layer["peak"]) == (2, at["x"].tolist(), at["peak"].tolist())
    assert data["categories"]["answer"] == ["A", "B", "C", "D"]
    assert page.count("<label>") + page.count("<label ") == page.count("<select") + page.count("<input")


def test_nothing_is_asked_of_another_server(found):
    static = store.project_folder() / "book" / "_static"
    about = json.loads((static / "plotly" / "source.json").read_text())
    assert store.file_sha256(static / "plotly" / about["file"]) == about["sha256"]
    script, style = (static / "landscape_map.js").read_text(), (static / "landscape_map.css").read_text()
    loader = figures.script("landscape_map.js")
    for text in (script, style, loader, map_figures.interactive(found).data):
        assert "//cdn" not in text and "http" not in text
    assert f"plotly/{about['file']}" in script and "eval(" not in script and "innerHTML" not in script
    loaded = re.findall(r'_static/([\w.]+)"', loader) + re.findall(r'new URL\("([\w./-]+)"', script)
    assert len(loaded) == 3 and all((static / name).is_file() for name in loaded)


def test_pictures_and_sentences_say_what_was_measured(found):
    figure = map_figures.panels(found, "group")
    assert len(figure.axes) == 2 * 2  # two layers, two conditions
    first, second = (map_figures.measured(found, "fine-tuned", layer)["ari_subject"][0] for layer in (1, 2))
    assert [figure.axes[i].texts[0].get_text() for i in (1, 3)] == [f"ARI {first:.2f}", f"ARI {second:.2f}"]
    drawn = sum(len(marks.get_offsets()) for marks in figure.axes[0].collections)
    assert drawn == len(found.questions) == 4 * 7
    assert f"fine-tuned {max(first, second):.2f} [" in map_figures.summary(found, "subject")
    assert (
        map_figures.extent(found) == "28 of 120 questions are drawn; a plane holds 100% to 100% of a layer's variance."
    )
    assert figures.drawn(lambda: map_figures.panels(found, "answer")).startswith(b"<?xml")


def test_the_record_stays_small(found):
    one = found.points.query("condition == '5-shot' and layer == 1")
    many = pd.concat([one] * (4 * 16 * 320 // len(one)))
    assert len(many.to_parquet()) < 400_000
    assert {str(found.points[column].dtype) for column in ("x", "y", "peak")} == {"int16"}
