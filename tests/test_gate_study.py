"""The study on narrow gates: its grid changes one thing at a time, and its numbers say what was measured."""

import json

import numpy as np
import pandas as pd
import pytest

from peaks_and_gates import codebook, gate_study, mini_data, mini_training, minis, scenes, store, study_figures
from peaks_and_gates import study_training as study
from peaks_and_gates.errors import BadParameter, UnknownName
from peaks_and_gates.pictures import Picture

OTHERS = ("lost without end", "lost without image", "loss", "minutes")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A checkout of its own, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minis, "project_folder", lambda: tmp_path)
    monkeypatch.setattr(gate_study, "project_folder", lambda: tmp_path)
    monkeypatch.setattr(store, "cache_folder", lambda: tmp_path / ".cache")
    return tmp_path


def models(**strengths: list[float]) -> pd.DataFrame:
    """A table as cards give it, with models that all answer.  strengths: by cell, one for each seed."""
    rows = []
    for cell, values in strengths.items():
        factor = "base" if cell == "base" else f"factor of {cell}"
        for seed, strength in enumerate(values):
            known = {"accuracy": 0.9, "guess": 0.3, "strength": strength} | dict.fromkeys(OTHERS, 0.5)
            for metric, value in known.items():
                rows.append((factor, cell, cell, seed, metric, value, value - 0.05, value + 0.05, 100))
    return pd.DataFrame(rows, columns=gate_study.COLUMNS)


def test_every_cell_changes_one_thing():
    cells = gate_study.grid("laptop")
    factors = gate_study.described()["factors"]
    base = study.recipe("laptop", cells["base"], 0)
    assert len(cells) >= 12 and all(len(cell.seeds) >= 2 for cell in cells.values())
    assert {cell.factor for cell in cells.values()} == {"base", *factors}
    flat = lambda recipe: {k: v for k, v in recipe.items() if k != "shape"} | recipe["shape"]
    for cell in cells.values():
        found = flat(study.recipe("laptop", cell, 0))
        changed = {key for key in found if found[key] != flat(base).get(key)} - {"eyes"}
        assert changed == set(cell.changes), cell.name  # what a cell says it changes, and nothing else
        assert len(changed - {"start"}) == (cell.name != "base")
    recipes = [store.digest(study.recipe("laptop", cell, 0)) for cell in cells.values()]
    assert len(set(recipes)) == len(recipes)


@pytest.mark.parametrize(("n_image", "side"), [(16, 32), (64, 64), (256, 128)])
def test_a_picture_has_as_many_tokens_as_a_recipe_says(n_image, side, place):
    """From the drawing to what the model reads, in training and when it is asked."""
    settings = study.recipe("smoke", gate_study.grid("smoke")["base"], 0) | {"n_image": n_image}
    network, processor = mini_training.begin(settings, mini_training.codebook_file("smoke"), place / "eyes.safetensors")
    lessons = mini_data.Lessons(processor.tokenizer, 8, 0, "short", 0.5, n_image, 1)
    assert lessons.side == side
    packed = lessons.batch(0, 4, "marked image")
    codes = mini_training.codes_of(network, processor, lessons)
    assert codes.shape == (8, n_image)
    assert packed.tokens.where("image").sum(1).tolist() == [n_image] * 4
    shown = study.asked(n_image, 1, 4, ["colour"])
    assert shown[0].image.size == (side, side)
    inputs = processor(images=[shown[0].image], text=["<image>"], return_tensors="pt")
    assert (inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<image>")).sum() == n_image
    assert all(len(scene.things) == 1 for scene in lessons.pool)
    with pytest.raises(BadParameter, match="16, 64 or 256"):
        codebook.side_of(n_image + 1)


def test_scenes_are_as_simple_as_a_recipe_says():
    found = mini_data.sample("test", 30, 0, 1)
    assert len(found) == 30 and all(len(scene.things) == 1 for scene in found)
    every = scenes.sample("test", 200, 0)
    assert found[:5] == [scene for scene in every if len(scene.things) == 1][:5]
    with pytest.raises(BadParameter, match="1 to"):
        mini_data.sample("test", 1, 0, 0)


def test_strength_of_models_whose_way_is_known():
    """All through the gate: 1.  All past it: -1.  Through either or through both at once: 0."""
    shown = [Picture(b"", "key", None, (), "what colour is it?", ("red",), "colour") for _ in range(40)]
    right, wrong = ["red"] * 40, ["blue"] * 40
    by = lambda end, image: {"accuracy": right, "lost without end": end, "lost without image": image}
    strength = lambda end, image: study.scores(shown, by(end, image))["strength"].value
    assert strength(wrong, right) == 1 and strength(right, wrong) == -1
    assert strength(right, right) == 0 and strength(wrong, wrong) == 0
    half = wrong[:20] + right[20:]
    assert strength(half, right) == 0.5
    found = study.scores(shown, {"accuracy": half, "lost without end": wrong, "lost without image": half})
    assert found["strength"].value == 1  # a share of what there is to lose
    assert found["accuracy"].value == 0.5 and found["guess"].value == 1
    blind = study.scores(shown, dict.fromkeys(study.CUTS, wrong))
    assert np.isnan(blind["strength"].value)


def test_an_effect_is_more_than_the_spread_of_seeds():
    table = models(base=[0.1, 0.0, 0.05], wide=[0.9, 0.95], same=[0.02, 0.1], open=[-0.9, -0.8])
    effects = gate_study.effects(table).set_index("cell")
    assert effects["outcome"].to_dict() == {"base": "same", "wide": "more", "same": "same", "open": "less"}
    assert effects.loc["wide", "difference"] == pytest.approx(0.925 - 0.05)
    said = gate_study.finding(effects.reset_index())
    assert "factor of wide (wide: +0.88)" in said and "Not beyond it: factor of same" in said
    noisy = models(base=[0.9, -0.8, 0.05], wide=[0.9, 0.2], same=[0.8, -0.9])
    assert set(gate_study.effects(noisy)["outcome"]) == {"same"}
    assert "None of the factors" in gate_study.finding(gate_study.effects(noisy))
    assert set(gate_study.effects(models(base=[0.1], wide=[0.9]))["outcome"]) == {"unknown"}
    begun = gate_study.effects(models(base=[0.1, 0.0], wide=[0.9], same=[0.1]))
    assert dict(zip(begun["cell"], begun["outcome"], strict=True)) == {
        "base": "same",
        "wide": "unknown",
        "same": "unknown",
    }
    assert "too few models to tell" in gate_study.finding(begun)  # and not that nothing moves it


def test_the_margin_holds_what_chance_does():
    """Cells that differ from the base by chance alone are called different in fewer than one grid of ten."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        cells = {f"cell{i}": rng.normal(0, 0.1, 2).tolist() for i in range(8)}
        found = gate_study.effects(models(base=rng.normal(0, 0.1, 3).tolist(), **cells))
        wrong += found["outcome"].isin(["more", "less"]).any()
    assert wrong < 20


def test_a_model_that_guesses_has_no_strength():
    table = models(base=[0.1, 0.0], blind=[0.9, 0.9])
    low = (table["cell"] == "blind") & (table["metric"] == "accuracy")
    table.loc[low, ["value", "low", "high"]] = [0.35, 0.25, 0.45]
    effects = gate_study.effects(table).set_index("cell")
    assert effects.loc["blind", "outcome"] == "guesses"
    assert "No better than a guesser, hence without a strength: factor of blind (blind)" in gate_study.finding(
        effects.reset_index()
    )
    assert "0.90" not in gate_study.finding(effects.reset_index())
    assert "–" in study_figures.numbers(known_factors(table)).data


def known_factors(table: pd.DataFrame) -> pd.DataFrame:
    """The table with factors that gate_study.yml knows, since a figure names what the base has."""
    return table.assign(factor=table["factor"].where(table["factor"] == "base", "layers"))


def test_the_page_shows_what_there_is(place):
    empty = gate_study.rows(place / "weights" / "study")
    assert list(empty) == list(gate_study.COLUMNS) and empty.empty
    said = study_figures.shown(empty, "weights/study").data
    assert "29 models" in said and "<code>pg study --preset laptop</code>" in said and "<img" not in said
    part = known_factors(models(base=[0.1, 0.0, 0.05], wide=[0.9, 0.95]))
    said = study_figures.shown(part, "weights/study").data
    assert "5 of 29" in said and "moved by layers (wide: +0.88)" in said and "alt=" in said


def test_the_grid_trains_measures_and_goes_on(place, capsys):
    """From nothing to a table; a second run trains nothing; a card of another recipe is made anew."""
    for name in ("base", "adapted"):
        study.run("smoke", [name], [0])
    folder = place / "weights" / "smoke" / "study"
    assert sorted(path.name for path in folder.glob("*.json")) == ["adapted-0.json", "base-0.json"]
    card = json.loads((folder / "base-0.json").read_text())
    assert card["command"] == "pg study --preset smoke --only base --seed 0"
    assert set(card["scores"]) == {"accuracy", "guess", *list(study.CUTS)[1:], "strength"}
    assert card["made_from"]["recipe"]["seed"] == 0 and card["environment"]["packages"]["torch"]
    capsys.readouterr()
    study.run("smoke", ["base"], [0])
    assert capsys.readouterr().out.strip().endswith("done")
    card["made_from"]["recipe"]["steps"] += 1
    store.write_json(folder / "base-0.json", card)
    study.run("smoke", ["base"], [0])
    assert json.loads((folder / "base-0.json").read_text())["made_from"] == study.wanted(
        "smoke", gate_study.grid("smoke")["base"], 0
    )
    table = gate_study.rows(folder)
    assert list(table["cell"].drop_duplicates()) == ["base", "adapted"]  # in the order of the grid
    assert set(table["metric"]) == {*card["scores"], "loss", "minutes"}


def test_messages(place):
    with pytest.raises(UnknownName, match="Did you mean 'penalty-30'"):
        study.run("smoke", ["penalty-3O"])
    with pytest.raises(UnknownName, match="preset with a study"):
        gate_study.grid("paper")
    with pytest.raises(UnknownName, match="kind of question"):
        study.asked(64, 1, 3, ["colours"])
    odd = gate_study.Cell("odd", "layers", "2", {"layer": 2}, (0,))
    with pytest.raises(UnknownName, match="Did you mean 'layers'"):
        study.recipe("smoke", odd, 0)
