"""How often an interval of what is counted on density peaks holds the truth, on samples of known mixtures.

    python benchmarks/coverage.py choose        # compares ways to make one, on mixtures of their own
    python benchmarks/coverage.py judge         # tries the chosen way and others on new mixtures: measured/coverage.csv

The truth is the mean of the number over many fresh samples of the same size.  Each mixture is kept in the cache when it
is done, and either command goes on from there.
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

from peaks_and_gates.cache import cached
from peaks_and_gates.landscape import adp
from peaks_and_gates.landscape.density_peaks import RECIPES, clustered, counted, landscapes, redrawn_landscapes
from peaks_and_gates.statistics import redrawn

adp.HAS_DADAPY = False  # the same peaks, in half the time at this size
RECIPE = {"figures": RECIPES["figures"]}
N_COMPONENTS, DIMENSION, WIDTH = 12, 10, 64
SHAPES = ("round", "unlike", "curved")
SPREADS = {"merged": 1.2, "touching": 1.8, "apart": 3.0}  # of the components' centres, in their own deviations
PARTS = {"parts of 90 %": 0.9, "halves": 0.5}
CHOOSE = {"seed": 0, "n": 600, "n_truth": 400, "n_samples": 60, "n_repeats": 12, "steps": [0.2, 0.3, 0.4]}
JUDGE = {"seed": 1, "n": 600, "n_truth": 1000, "n_samples": 400, "n_repeats": 8, "steps": [0.3]}
LARGE = JUDGE | {"n": 4800, "n_truth": 400, "n_samples": 60}
METRICS = ["n_peaks", "core_fraction", "ari_component", "ari_blurred", "ari_letter"]
LEAST, MOST = np.array([1, 0, -1, -1, -1]), np.array([np.inf, 1, 1, 1, 1])
ALL = list(product(SHAPES, SPREADS))


def mixture(shape: str, spread: str, seed: int):
    """A function from a size and a generator to a sample: hidden states (n, WIDTH) float32, and labels by name.

    round: equal round Gaussians.  unlike: of unlike sizes and extents, and skew (gamma of shape 4).  curved: the
    same, on a surface that bends in 10 more dimensions.  Labels: the component; blurred, where four in ten are drawn
    anew; and one of four letters that have nothing to do with the points.
    """
    rng = np.random.default_rng([seed, ALL.index((shape, spread))])
    centres = SPREADS[spread] * rng.standard_normal((N_COMPONENTS, DIMENSION))
    share, extent = np.full(N_COMPONENTS, 1 / N_COMPONENTS), np.ones((N_COMPONENTS, DIMENSION))
    if shape != "round":
        share = rng.dirichlet(np.full(N_COMPONENTS, 3.0))
        extent = np.exp(0.3 * rng.standard_normal((N_COMPONENTS, DIMENSION)))
    basis = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]

    def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        component = rng.choice(N_COMPONENTS, n, p=share)
        within = rng.standard_normal((n, DIMENSION)) if shape == "round" else rng.gamma(4, size=(n, DIMENSION)) / 2 - 2
        points = centres[component] + extent[component] * within  # (n, DIMENSION)
        if shape == "curved":
            points = np.hstack([points, 2 * np.sin(points)])
        blurred = np.where(rng.random(n) < 0.6, component, rng.integers(N_COMPONENTS, size=n))
        labels = {"component": component, "blurred": blurred, "letter": rng.integers(4, size=n)}
        return (points @ basis[: points.shape[1]]).astype(np.float32), labels

    return draw


def landscape_of(states: np.ndarray, labels: dict[str, np.ndarray]) -> dict:
    """The landscape with its labels, without their overlap, which is not judged here."""
    return {name: replace(peaks, labels=labels) for name, peaks in landscapes(states, {}, RECIPE).items()}


def part_of(layer: dict, fraction: float, rng: np.random.Generator) -> dict:
    """The landscape of a random part of the points."""
    n = layer["figures"].n
    return clustered(layer["figures"], RECIPE, np.sort(rng.choice(n, round(fraction * n), replace=False)))


def trials(
    shape: str, spread: str, seed: int, n: int, n_truth: int, n_samples: int, n_repeats: int, steps: list
) -> dict:
    """What is counted on fresh samples, "truth" (n_truth, 5), and on those judged, "values" (n_samples, 5).

    Beside them the deviation by "chance" (n_samples, 5), and the replicates of each way, (n_samples, n_repeats, 5).
    """
    draw, rng = mixture(shape, spread, seed), np.random.default_rng([seed, n, ALL.index((shape, spread))])
    numbers = lambda layer: [*counted(layer).values()]
    known = {"truth": [numbers(landscape_of(*draw(n, rng))) for _ in range(n_truth)], "values": [], "chance": []}
    for _ in range(n_samples):
        states, labels = draw(n, rng)
        layer = landscape_of(states, labels)
        nulls = layer["figures"].adjusted_rand_index.values()
        known["values"].append(numbers(layer))
        known["chance"].append([0, 0, *((index.null_high - index.null) / 1.96 for index in nulls)])
        ways = {f"step {step}": partial(redrawn_landscapes, states, layer, rng, step) for step in steps}
        ways |= {name: partial(part_of, layer, fraction, rng) for name, fraction in PARTS.items()}
        for name, way in ways.items():
            known.setdefault(name, []).append([numbers(way()) for _ in range(n_repeats)])
    return {name: torch.tensor(np.array(of_samples, dtype=np.float64)) for name, of_samples in known.items()}


def run(settings: dict, mixtures: list = ALL):
    """The trials of each mixture, from the cache or made."""
    for shape, spread in mixtures:
        about = settings | {"shape": shape, "spread": spread, "version": 1}
        print(shape, spread, settings["n"], flush=True)
        yield shape, spread, cached("coverage", about, partial(trials, shape, spread, **settings))


if __name__ == "__main__":
    torch.set_num_threads(1)
    list(run(CHOOSE))
