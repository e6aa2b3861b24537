"""The page on the minis: that seeds of one recipe stand together, and that each mini has its line."""

import re

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from peaks_and_gates import mini_figures
from peaks_and_gates.scene_words import KINDS


def scores(mini, value):
    metrics = [*KINDS, *mini_figures.LAST]
    return pd.DataFrame([
        {"mini": mini, "metric": metric, "value": value, "low": value - 0.05, "high": value + 0.05, "n": 9.0}
        for metric in metrics
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("mini", "role"),
    [("mini-native-0", "native"), ("mini-lightly-taxed", "lightly-taxed"), ("mini-adapted-12", "adapted")],
)
def test_the_recipe_of_a_mini(mini, role):
    assert mini_figures.role(mini) == role


def test_the_seeds_of_a_recipe_share_a_column():
    table = pd.concat([scores("mini-native-0", 0.8), scores("mini-gated", 0.5), scores("mini-native-1", 0.9)])
    lines = [re.findall(r"<t[hd]>(.*?)</t[hd]>", line) for line in mini_figures.abilities(table).data.split("</tr>")]
    assert lines[0] == ["", "native (2 seeds)", "gated"]
    assert [line[0] for line in lines[1:-1]] == [*KINDS, *mini_figures.LAST.values()]
    assert all(line[1:] == ["0.85 [0.75, 0.95]", "0.50 [0.45, 0.55]"] for line in lines[1:-1])


def test_every_mini_has_its_line_and_every_recipe_one_name():
    steps = range(1, 51)
    losses = pd.concat([
        pd.DataFrame({"mini": mini, "step": steps, "loss": loss})
        for mini, loss in {"mini-native-0": 2.0, "mini-native-1": 1.0, "mini-open": 0.5}.items()
    ])  # fmt: skip
    figure = mini_figures.loss_curves(losses)
    (ax,) = figure.axes
    assert [set(line.get_ydata()) for line in ax.lines] == [{2.0}, {1.0}, {0.5}]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["native", "open"]
    plt.close(figure)
