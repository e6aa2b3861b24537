"""How often an interval of what is counted on density peaks holds the truth, on samples of known mixtures.

    python benchmarks/coverage.py choose     # compares ways, on mixtures of their own: measured/coverage-choose.csv
    python benchmarks/coverage.py judge      # tries the chosen way and others on new mixtures: measured/coverage.csv

The truth is the mean of the number over many fresh samples of the same size.  Each mixture is kept in the cache when it
is done, and either command resumes where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit

from peaks_and_gates.cache import SOURCE, cached, file_sha256
from peaks_and_gates.landscape import adp, neighbours
from peaks_and_gates.landscape.density_peaks import RECIPES, counted, landscapes, redrawn_landscapes
from peaks_and_gates.landscape.study import CODE
from peaks_and_gates.statistics import redrawn

adp.HAS_DADAPY = False  # the same peaks, in half the time at this size
MEASURED = Path(__file__).parent / "measured"
RECIPE = {"figures": RECIPES["figures"]}
N_COMPONENTS, DIMENSION, WIDTH = 12, 10, 64
SHAPES = ("round", "unlike", "curved")
SPREADS = {"merged": 1.2, "touching": 1.8, "apart": 3.0}  # of the components' centres, in their own deviations
PARTS = {"parts of 90 %": 0.9, "halves": 0.5}
CHOOSE = {"seed": 0, "n": 600, "n_truth": 400, "n_samples": 60, "n_parts": 0, "n_repeats": 12, "steps": [0.2, 0.3, 0.4]}
JUDGE = {"seed": 2, "n": 600, "n_truth": 1000, "n_samples": 400, "n_parts": 100, "n_repeats": 8, "steps": [0.3]}
LARGE = JUDGE | {"n": 4800, "n_truth": 200, "n_samples": 60, "n_parts": 10}
METRICS = ["n_peaks", "core_fraction", "ari_component", "ari_blurred", "ari_letter"]
ENDS = np.array([[1, 0, -1, -1, -1], [np.inf, 1, 1, 1, 1]])
ALL = list(product(SHAPES, SPREADS))
# Behind the middle layers the model's landscape has one peak or two.
JUDGED = [*ALL, ("two", "apart")]
LARGE_MIXTURES = [("round", "touching"), ("unlike", "apart")]


def mixture(shape: str, spread: str, seed: int):
    """A function from a size and a generator to a sample: hidden states (n, WIDTH) float32, and labels by name.

    round: equal round Gaussians.  two: the same, two of them.  unlike: of unlike sizes and extents, and skew (gamma of
    shape 4).  curved: the same, on a surface that bends in 10 more dimensions.  Labels: the component; blurred, where
    four in ten are drawn anew; and one of four letters that have nothing to do with the points.
    """
    rng = np.random.default_rng([seed, JUDGED.index((shape, spread))])
    m, gaussian = 2 if shape == "two" else N_COMPONENTS, shape in ("round", "two")
    centres = SPREADS[spread] * rng.standard_normal((m, DIMENSION))
    share, extent = np.full(m, 1 / m), np.ones((m, DIMENSION))
    if not gaussian:
        share = rng.dirichlet(np.full(m, 3.0))
        extent = np.exp(0.3 * rng.standard_normal((m, DIMENSION)))
    basis = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]

    def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        component = rng.choice(m, n, p=share)
        within = rng.standard_normal((n, DIMENSION)) if gaussian else rng.gamma(4, size=(n, DIMENSION)) / 2 - 2
        points = centres[component] + extent[component] * within  # (n, DIMENSION)
        if shape == "curved":
            points = np.hstack([points, 2 * np.sin(points)])
        blurred = np.where(rng.random(n) < 0.6, component, rng.integers(m, size=n))
        labels = {"component": component, "blurred": blurred, "letter": rng.integers(4, size=n)}
        return (points @ basis[: points.shape[1]]).astype(np.float32), labels

    return draw


def landscape_of(states: np.ndarray, labels: dict[str, np.ndarray]) -> dict:
    """The landscape with its labels, without their overlap, which is not judged here."""
    return {name: replace(peaks, labels=labels) for name, peaks in landscapes(states, {}, RECIPE).items()}


def part_of(states: np.ndarray, labels: dict[str, np.ndarray], fraction: float, rng: np.random.Generator) -> dict:
    """The landscape of a random part of the points."""
    rows = np.sort(rng.choice(len(states), round(fraction * len(states)), replace=False))
    return landscape_of(states[rows], {name: values[rows] for name, values in labels.items()})


def fresh(states: np.ndarray, layer: dict, step: float, rng: np.random.Generator) -> dict:
    """The landscape of a redrawn sample."""
    neighbours.STEP = step
    return redrawn_landscapes(states, layer, rng)


def trials(
    shape: str, spread: str, seed: int, n: int, n_truth: int, n_samples: int, n_parts: int, n_repeats: int, steps: list
) -> dict:
    """What is counted on fresh samples, "truth" (n_truth, 5), and on those judged, "values" (n_samples, 5).

    Beside them the deviation by "chance" (n_samples, 5), and the replicates of each way, (n_samples, n_repeats, 5); of
    PARTS those of the first n_parts samples.
    """
    draw, rng = mixture(shape, spread, seed), np.random.default_rng([seed, n, JUDGED.index((shape, spread))])
    numbers = lambda layer: [*counted(layer).values()]
    known = {"truth": [numbers(landscape_of(*draw(n, rng))) for _ in range(n_truth)], "values": [], "chance": []}
    for i in range(n_samples):
        states, labels = draw(n, rng)
        layer = landscape_of(states, labels)
        nulls = layer["figures"].adjusted_rand_index.values()
        known["values"].append(numbers(layer))
        known["chance"].append([0, 0, *((index.null_high - index.null) / 1.96 for index in nulls)])
        ways = {f"step {step}": partial(fresh, states, layer, step, rng) for step in steps}
        if i < n_parts:
            ways |= {name: partial(part_of, states, labels, fraction, rng) for name, fraction in PARTS.items()}
        for name, way in ways.items():
            known.setdefault(name, []).append([numbers(way()) for _ in range(n_repeats)])
    return {name: torch.tensor(np.array(of_samples, dtype=np.float64)) for name, of_samples in known.items()}


def shipped(values: np.ndarray, replicates: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """The interval of `statistics.redrawn`: values, chance (5,), replicates (n_repeats, 5) -> ends (2, 5)."""
    rows = iter(replicates)
    settings = {"n_repeats": len(replicates), "chance": chance, "n_peaks": values[0], "ends": ENDS}
    return np.transpose([(e.low, e.high) for e in redrawn(lambda rng: next(rows), values, 1, **settings)])


def around(centre: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Both ends, (2, 5), of an interval around its centre, cut off where a number ends."""
    return np.clip([centre - error, centre + error], *ENDS)


# Ways to make an interval of a value and its replicates: (values, replicates, chance) as in `shipped`.
INTERVALS = {
    "redrawn": shipped,
    "nothing at least": lambda v, r, chance: around(v, stdtrit(len(r) - 1, 0.975) * r.std(0, ddof=1)),
    "normal": lambda v, r, chance: around(v, 1.96 * r.std(0, ddof=1)),
    "from the value": lambda v, r, chance: around(v, 1.96 * np.sqrt(np.square(r - v).mean(0))),
    "percentiles": lambda v, r, chance: np.percentile(r, [2.5, 97.5], axis=0),
    "centred percentiles": lambda v, r, chance: np.clip(v + np.percentile(r, [2.5, 97.5], 0) - r.mean(0), *ENDS),
}
STRETCHED = lambda v, r, chance: around(v, 3 * 1.96 * np.sqrt(np.square(r - v).mean(0)))  # the jackknife of 90 %


def judged(settings: dict, ways: dict, mixtures: list = ALL) -> pd.DataFrame:
    """How often each way holds the truth, by mixture and metric; the trials come from the cache, or are made.

    ways: by name, the replicates in `trials`, how many of them, and one of INTERVALS.
    """
    rows, code = [], [file_sha256(SOURCE / name) for name in CODE if "study" not in name]
    for shape, spread in mixtures:
        about = settings | {"shape": shape, "spread": spread, "near": neighbours.NEAR, "code": code}
        stored = cached("coverage", about, partial(trials, shape, spread, **settings))
        known = {name: stored.get_tensor(name).numpy() for name in stored.keys()}  # noqa: SIM118
        truth, deviation = known["truth"].mean(0), known["truth"].std(0)
        for way, (draws, n_repeats, interval) in ways.items():
            of_samples = zip(known["values"], known[draws][:, :n_repeats], known["chance"], strict=False)
            low, high = np.moveaxis([interval(*sample) for sample in of_samples], 1, 0)  # (n_samples, 5) each
            covered = (low <= truth + 1e-9) & (truth - 1e-9 <= high)
            for i, metric in enumerate(METRICS):
                about = {"way": way, "n": settings["n"], "shape": shape, "spread": spread, "metric": metric}
                about |= {"truth": truth[i], "deviation": deviation[i], "covered": covered[:, i].mean()}
                width = high[:, i] - low[:, i]
                rows.append(about | {"width_0": (width < 1e-9).mean(), "median_width": np.median(width)})
        print(shape, spread, settings["n"], flush=True)
    return pd.DataFrame(rows)


def main(command: str) -> None:
    """Write down how the ways to choose among do, or how the chosen one and others do on other mixtures."""
    if command == "choose":
        ways = {
            f"step {step}, {n_repeats}, {name}": (f"step {step}", n_repeats, interval)
            for step, n_repeats, (name, interval) in product(CHOOSE["steps"], (8, 12), INTERVALS.items())
        }
        table = judged(CHOOSE, ways)
        table["off"] = (table["covered"] - 0.95).abs()
        best_first = table.groupby("way", sort=False)[["covered", "off", "width_0"]].mean().sort_values("off")
        best_first.to_csv(MEASURED / "coverage-choose.csv", float_format="%.3f")
    else:
        step = f"step {neighbours.STEP}"
        ways = {name: (step, JUDGE["n_repeats"], interval) for name, interval in INTERVALS.items()}
        ways |= {
            "parts of 90 %": ("parts of 90 %", 8, STRETCHED),
            "halves": ("halves", 8, INTERVALS["nothing at least"]),
        }
        tables = [judged(JUDGE, ways, JUDGED), judged(LARGE, ways, LARGE_MIXTURES)]
        table = pd.concat(tables, ignore_index=True)
        table.to_csv(MEASURED / "coverage.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
