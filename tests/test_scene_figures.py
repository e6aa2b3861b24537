"""The pictures of the scenes, and what a guesser gets from the questions: they say what the scenes say."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from peaks_and_gates import figures, pictures, scene_figures, scene_table, scene_words, scenes
from peaks_and_gates.errors import BadParameter
from peaks_and_gates.scene_drawing import draw
from peaks_and_gates.scene_words import KINDS, Question
from peaks_and_gates.scenes import COLOURS, SHAPES, SPLITS, TEXTURES, TWINS, Place, Scene, Thing

SHOWN = scenes.sample("test", 12, seed=0)
SCENE = Scene(
    (
        Thing("star", "red", "plain", "large", (Place(0, 0),)),
        Thing("cross", "blue", "hollow", "small", (Place(2, 2),)),
    ),
    "white",
)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def table():
    return scene_table.answer_rows(600, seed=0)


# The table


def test_the_questions_are_those_that_the_pages_ask():
    for seed in (0, 3):
        theirs = pictures.load("questions", "scenes", 30, seed)
        ours = scene_table.asked(30, seed)
        assert [(p.question, p.answers) for p in theirs] == [(q.text, (q.answer,)) for q in ours]


def test_shares_count_the_answers_of_a_kind(table):
    asked = scene_table.asked(600, 0)
    shares = table[table["metric"] == "share"]
    assert list(dict.fromkeys(shares["kind"])) == list(KINDS)
    for each in shares.itertuples():
        of_kind = [question.answer for question in asked if question.kind == each.kind]
        assert each.n == len(of_kind)
        assert each.value == pytest.approx(of_kind.count(each.setting) / len(of_kind))
        assert each.low <= each.value <= each.high
    assert np.allclose(shares.groupby("kind")["value"].sum(), 1)
    assert shares.drop_duplicates("kind")["n"].sum() == 600


def guess(table, kind, known):
    rows = table[(table["metric"] == "guess") & (table["kind"] == kind) & (table["setting"] == known)]
    return rows.iloc[0]


def test_who_knows_the_kind_gets_the_share_of_its_commonest_answer(table):
    shares = table[table["metric"] == "share"]
    top = shares.groupby("kind")["value"].max()
    for kind in KINDS:
        assert guess(table, kind, "kind")["value"] == pytest.approx(top[kind])
    n = shares.drop_duplicates("kind").set_index("kind")["n"]
    assert guess(table, "all", "kind")["value"] == pytest.approx((top * n).sum() / 600)


def test_the_words_of_a_question_do_not_give_its_answer_away(table):
    blind = guess(table, "all", "question")
    assert blind["n"] == 600
    assert blind["low"] < guess(table, "all", "kind")["value"]


def test_a_guesser_learns_what_words_give_away_and_nothing_else():
    leak = [Question("colour", f"is it {answer}?", answer) for answer in ("red", "blue")] * 3
    told = scene_table.commonest([*leak, Question("colour", "is it red?", "blue")], "text")
    assert scene_table.hits(leak, told, "text").all()
    assert not scene_table.hits([Question("colour", "which?", "red")], told, "text").any()
    by_kind = scene_table.commonest(leak[:3], "kind")
    assert scene_table.hits(leak, by_kind, "kind").tolist() == [True, False] * 3


def test_a_few_questions_leave_kinds_out():
    few = scene_table.answer_rows(3, seed=0)
    assert few["value"].notna().all()
    assert few["kind"].nunique() == 4  # three kinds, and all
    assert "3 questions" in scene_figures.balance_summary(few)
    for n, seed in ((0, 0), (5, -1)):
        with pytest.raises(BadParameter):
            scene_table.answers(n, seed)


def test_the_table_is_recorded_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PG_RECORD", str(tmp_path))
    first = scene_table.answers(12, seed=1)
    monkeypatch.setenv("PG_REDRAW", "1")
    monkeypatch.setattr(scene_table, "answer_rows", lambda *a: pytest.fail("it was computed again"))
    pd.testing.assert_frame_equal(scene_table.answers(12, seed=1), first)
    assert (tmp_path / "scene_questions.parquet").is_file()


# The gallery


def test_the_gallery_asks_each_scene_two_things_and_every_kind():
    pairs = scene_figures.two_questions(SHOWN)
    for scene, pair in zip(SHOWN, pairs, strict=True):
        assert set(pair) <= set(scene_words.questions(scene))
        assert len({question.kind for question in pair}) == 2
    assert {question.kind for pair in pairs for question in pair} == set(KINDS)


def test_the_gallery_shows_the_models_pixels_and_says_what_they_are():
    figure = scene_figures.gallery(SHOWN)
    images = [image.get_array() for ax in figure.axes for image in ax.images]
    assert all(np.array_equal(image, draw(scene)) for image, scene in zip(images, SHOWN, strict=True))
    written = [text.get_text() for ax in figure.axes for text in ax.texts]
    said = scene_figures.gallery_summary(SHOWN)
    pairs = scene_figures.two_questions(SHOWN)
    for number, (scene, pair, text) in enumerate(zip(SHOWN, pairs, written, strict=True), 1):
        text = " ".join(text.split())
        assert text.startswith(f"{number}. {scene_words.caption(scene)}")
        for question in pair:
            assert f"{question.text} → {question.answer}" in text
            assert f"{question.text} {question.answer}." in said
        assert f"{number}: {scene_words.caption(scene)}" in said


def test_no_text_of_the_gallery_leaves_its_place():
    figure = scene_figures.gallery(SHOWN, columns=4)
    figure.draw_without_rendering()
    for ax in figure.axes:
        for text in ax.texts:
            box, place = text.get_window_extent(), ax.get_window_extent()
            assert box.y0 >= place.y0
            assert box.width < scene_figures.COLUMN * figure.dpi


# The twins


@pytest.mark.parametrize(
    ("attribute", "index", "changes", "said"),
    [
        ("colour", 0, {"colour": "pink"}, "red star → pink star"),
        ("shape", 1, {"shape": "square"}, "blue cross → blue square"),
        ("texture", 1, {"texture": "dotted"}, "blue cross: hollow → dotted"),
        ("size", 0, {"size": "small"}, "red star: large → small"),
        ("position", 0, {"places": (Place(1, 1),)}, "red star: top left → middle center"),
        ("count", 1, {"places": (Place(0, 2), Place(2, 2))}, "blue cross: one → two"),
    ],
)
def test_a_change_is_named(attribute, index, changes, said):
    things = list(SCENE.things)
    things[index] = replace(things[index], **changes)
    assert scene_figures.change(SCENE, replace(SCENE, things=tuple(things)), attribute) == said


def test_every_change_of_a_sampled_twin_can_be_named():
    for seed, scene in enumerate(scenes.sample("train", 48, seed=5)):
        for attribute, twin in scene_figures.twins_of(scene, seed).items():
            before, after = re.fullmatch(r"(.*) → (.*)", scene_figures.change(scene, twin, attribute)).groups()
            assert before.split(": ")[-1] != after


def test_twins_are_those_of_their_seed():
    assert list(scene_figures.twins_of(SCENE, 1)) == list(TWINS)
    assert scene_figures.twins_of(SCENE, 1) == scene_figures.twins_of(SCENE, 1) != scene_figures.twins_of(SCENE, 2)
    said = scene_figures.twins_summary(SCENE, 1)
    figure = scene_figures.twins(SCENE, 1)
    images = [np.asarray(ax.images[0].get_array()) for ax in figure.axes]
    shown = [SCENE, *scene_figures.twins_of(SCENE, 1).values()]
    assert all(np.array_equal(image, draw(scene)) for image, scene in zip(images, shown, strict=True))
    for ax, (attribute, twin) in zip(figure.axes[1:], scene_figures.twins_of(SCENE, 1).items(), strict=True):
        changed = scene_figures.change(SCENE, twin, attribute)
        assert " ".join(ax.get_title(loc="left").split()) == f"{attribute} {changed}"
        assert f"{attribute} ({changed})" in said


def test_a_twin_of_a_telling_scene_changes_few_answers_and_always_one():
    scene = scene_figures.telling(scenes.sample("test", 100, seed=0))
    assert [thing.count for thing in scene.things] == [1, 1]
    text = scene_figures.twins_table(scene).data.replace("\N{NO-BREAK SPACE}", " ")
    rows = re.findall(r"<tr>\s*<td>(.*?)</td>\s*<td>(\d+)</td>\s*<td>(\d+)</td>\s*<td>(.*?)</td>", text)
    assert [row[0] for row in rows] == list(TWINS)
    for _, both, otherwise, which in rows:
        assert 1 <= int(otherwise) <= 5
        assert int(both) > 2 * int(otherwise)
        assert which.count("→") == int(otherwise)
    background = scene_figures.twins_of(scene)["background"].background
    assert rows[-1][1:3] == (rows[-1][1], "1")
    assert rows[-1][3] == f"what colour is the background? {scene.background} → {background}"


def test_no_telling_scene():
    with pytest.raises(BadParameter, match="draw more"):
        scene_figures.telling([one for one in SHOWN if len(one.things) == 1])


# The splits


def test_every_combination_is_framed_by_its_split():
    figure = scene_figures.splits()
    framed = {name: set() for name in SPLITS}
    for ax, texture in zip(figure.axes, TEXTURES, strict=True):
        assert ax.get_title() == texture
        for patch in ax.patches:
            assert isinstance(patch, Rectangle)
            name = "test" if patch.get_linestyle() == "-" else "validation"
            column, row = int(patch.get_x()), int(patch.get_y())
            framed[name].add((list(COLOURS)[column], SHAPES[row], texture))
    for name in ("validation", "test"):
        assert framed[name] == set(scenes.combinations(name))


def test_objects_stand_where_the_axes_say():
    figure = scene_figures.splits()
    side = scene_figures.TILE
    for ax, texture in zip(figure.axes, TEXTURES, strict=True):
        mosaic = np.asarray(ax.images[0].get_array())
        for row, shape in enumerate(SHAPES):
            for column, colour in enumerate(COLOURS):
                shown = mosaic[row * side : (row + 1) * side, column * side : (column + 1) * side]
                assert np.array_equal(shown, scene_figures.tile(colour, shape, texture))
    assert np.asarray(scene_figures.tile("red", "star", "plain"))[side // 2, side // 2].tolist() == list(COLOURS["red"])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == list(COLOURS)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(SHAPES)


def test_the_splits_are_counted():
    said = scene_figures.splits_summary()
    assert "192 combinations of 8 colours, 6 shapes and 4 textures" in said
    assert "train owns 144 with 48 pairs" in said
    assert "test owns 24 with 24 pairs" in said


# The answers


def test_bars_hold_the_shares_with_their_answers(table):
    figure = scene_figures.balance(table)
    (ax,) = figure.axes
    shares = table[table["metric"] == "share"]
    assert np.allclose([bar.get_width() for bar in ax.patches], shares["value"])
    assert [text.get_text() for text in ax.texts] == list(shares["setting"])
    starts = shares.groupby("kind")["value"].cumsum() - shares["value"]
    assert np.allclose([bar.get_x() for bar in ax.patches], starts)
    assert np.allclose([text.get_position()[0] for text in ax.texts], starts + shares["value"] / 2)
    rows = [round(text.get_position()[1]) for text in ax.texts]
    fills = [to_hex(bar.get_facecolor()) for bar in ax.patches]
    for i in range(1, len(rows)):
        assert rows[i] != rows[i - 1] or fills[i] != fills[i - 1]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(KINDS)


def test_the_table_of_guesses_has_an_example_of_every_kind(table):
    asked = scene_table.asked(600, 0)
    text = scene_figures.guess_table(table, asked).data.replace("\N{NO-BREAK SPACE}", " ")
    cells = np.reshape(re.findall(r"<td>(.*?)</td>", text), (len(KINDS) + 1, 6))
    assert list(cells[:, 0]) == [*KINDS, "all"]
    for name, example, n_answers, n, *_ in cells[:-1]:
        kind = [question for question in asked if question.kind == name]
        assert example == f"{kind[0].text} → {kind[0].answer}"
        assert (int(n_answers), int(n)) == (len({question.answer for question in kind}), len(kind))
    said = scene_figures.balance_summary(table)
    assert all(number in said for number in cells[-1, 4:])


def test_figures_are_drawn_in_both_themes(table):
    draws = [scene_figures.splits, lambda: scene_figures.twins(SCENE), lambda: scene_figures.balance(table)]
    for draw_one in [*draws, lambda: scene_figures.gallery(SHOWN)]:
        light, dark = (figures.in_theme(figures.drawn(draw_one), theme) for theme in figures.THEMES)
        assert light != dark
        assert figures.in_theme(figures.drawn(draw_one), "light") == light
