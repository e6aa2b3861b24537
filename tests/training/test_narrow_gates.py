"""The grid on narrow gates: each cell changes one thing, and its numbers say what was measured."""

import numpy as np
import pandas as pd

from conftest import ROOT
from page_code import page_code
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


def test_strength_of_models_whose_way_is_known():
    """All through the gate: 1.  All past it: -1.  Through either or through both at once: 0."""
    pictures = [Picture(b"", "key", None, (), "what colour is it?", ("red",), "colour") for _ in range(40)]
    right, wrong = ["red"] * 40, ["blue"] * 40
    scores = lambda uncut, end, image: train.scores(
        pictures, {"accuracy": uncut, "lost without end": end, "lost without image": image}
    )
    strength = lambda end, image: scores(right, end, image)["strength"].value
    assert strength(wrong, right) == 1 and strength(right, wrong) == -1
    assert strength(right, right) == 0 and strength(wrong, wrong) == 0
    half = wrong[:20] + right[20:]
    assert strength(half, right) == 0.5
    estimates = scores(half, wrong, half)
    assert estimates["strength"].value == 1  # a share of what there is to lose
    assert estimates["accuracy"].value == 0.5 and estimates["guess"].value == 1
    assert np.isnan(scores(wrong, wrong, wrong)["strength"].value)


def test_the_shipped_numbers_are_those_of_the_cards():
    path = ROOT / "data" / "narrow-gates.parquet"
    table = pd.read_parquet(path)
    assert read_json(path.with_suffix(".json"))["sha256"] == file_sha256(path)
    pd.testing.assert_frame_equal(grid.rows("laptop"), table)
    for cell in grid.grid("laptop").values():
        for seed in cell.seeds:
            made_from = read_json(ROOT / "weights" / "study" / f"{cell.name}-{seed}.json")["made_from"]
            assert made_from["recipe"] == train.recipe("laptop", cell, seed)


def test_an_effect_is_more_than_the_spread_of_seeds():
    def outcomes(**strengths):  # by cell, one per seed
        rows = []
        for cell, values in strengths.items():
            for seed, strength in enumerate(values):
                numbers = {"accuracy": 0.9, "guess": 0.3, "strength": strength}
                rows += [("factor", cell, "", cell, seed, m, v, v - 0.05, v + 0.05, 100) for m, v in numbers.items()]
        measured = pd.DataFrame(rows, columns=grid.rows("laptop").columns)
        return page_code("beyond/narrow_gates", measured=measured)["effects"]().set_index("cell")["outcome"].to_dict()

    clear = outcomes(base=[0.1, 0.0, 0.05], wide=[0.9, 0.95], same=[0.02, 0.1], open=[-0.9, -0.8])
    assert clear == {"base": "same", "wide": "more", "same": "same", "open": "less"}
    assert set(outcomes(base=[0.9, -0.8, 0.05], wide=[0.9, 0.2], same=[0.8, -0.9]).values()) == {"same"}
