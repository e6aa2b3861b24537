"""The grid on narrow gates: each cell changes one thing, and its numbers say what was measured."""

import pandas as pd
import pytest

from conftest import ROOT
from peaks_and_gates.cache import digest, file_sha256, read_json
from peaks_and_gates.gate.pictures import Picture
from training.narrow_gates import grid, train


def test_every_cell_changes_one_thing():
    cells, factors = grid.grid("laptop"), grid.FACTORS
    flat = lambda recipe: {k: v for k, v in recipe.items() if k != "shape"} | recipe["shape"]
    base = flat(train.recipe("laptop", cells["base"], 0))
    assert len(cells) >= 12 and all(len(cell.seeds) >= 2 for cell in cells.values())
    assert {cell.factor for cell in cells.values()} == {"base", *factors}
    for cell in cells.values():
        recipe = flat(train.recipe("laptop", cell, 0))
        changed = {key for key in recipe if recipe[key] != base.get(key)} - {"eyes"}
        assert changed == set(cell.changes), cell.name  # what a cell says it changes, and nothing else
        assert len(changed - {"start"}) == (cell.name != "base")
    assert len({digest(train.recipe("laptop", cell, 0)) for cell in cells.values()}) == len(cells)


RIGHT, WRONG = ["red"] * 40, ["blue"] * 40
HALF = WRONG[:20] + RIGHT[20:]


@pytest.mark.parametrize(
    ("uncut", "end", "image", "strength"),
    [
        (RIGHT, WRONG, RIGHT, 1),  # all through the gate
        (RIGHT, RIGHT, WRONG, -1),  # all past it
        (RIGHT, RIGHT, RIGHT, 0),  # through either
        (RIGHT, WRONG, WRONG, 0),  # through both at once
        (RIGHT, HALF, RIGHT, 0.5),
        (HALF, WRONG, HALF, 1),  # a share of what there is to lose
        (WRONG, WRONG, WRONG, float("nan")),
    ],
)
def test_strength_of_models_whose_way_is_known(uncut, end, image, strength):
    pictures = [Picture(b"", "key", None, (), "what colour is it?", ("red",), "colour") for _ in range(40)]
    scores = train.scores(pictures, {"accuracy": uncut, "lost without end": end, "lost without image": image})
    assert scores["strength"].value == pytest.approx(strength, nan_ok=True)
    assert scores["accuracy"].value == uncut.count("red") / 40 and scores["guess"].value == 1


def test_the_shipped_numbers_are_those_of_the_cards():
    path = ROOT / "data" / "narrow-gates.parquet"
    table = pd.read_parquet(path)
    assert read_json(path.with_suffix(".json"))["sha256"] == file_sha256(path)
    pd.testing.assert_frame_equal(grid.rows("laptop"), table)
    for cell in grid.grid("laptop").values():
        for seed in cell.seeds:
            made_from = read_json(ROOT / "weights" / "study" / f"{cell.name}-{seed}.json")["made_from"]
            assert made_from["recipe"] == train.recipe("laptop", cell, seed)
