"""Points whose answer is known beforehand: so many dimensions, so many peaks, so much agreement.

    synthetic.dimensions(seed=0)   # what Gride says of clouds of 2, 5, 10 and 20 dimensions, with noise and without
    synthetic.peaks(seed=0)        # how many peaks are found where there are one and five, by significance Z
    synthetic.agreements(seed=0)   # what indices say of a partition of which a known share was shuffled

For the pages on methods: a tool is worth what it says where one knows what is true. Every table is recorded.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import homogeneity_score, rand_score

from . import record
from .clustering import Recipe, by_recipe, dadapy_data
from .clustering import dimensions as gride
from .neighbours import label_overlap, nearest_neighbours
from .uncertainty import adjusted_rand_index, at_least

TRUE_DIMENSIONS = (2, 5, 10, 20)
NOISE = (0.0, 0.02, 0.05, 0.1, 0.2)
SIGNIFICANCE = (0.0, 0.5, 1.0, 1.6, 2.0, 3.0, 4.0)
# Centres in units of a cloud's width: three that stand alone, two that touch.
CENTRES = np.array([(-7.0, 5.0), (7.0, 6.0), (-6.0, -6.0), (4.0, -6.0), (8.0, -6.0)])
SHUFFLED = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
N_GROUPS = (2, 4, 8, 16, 32, 64, 128)
DISTANCES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0)


def cloud(d: int, n: int, width: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian cloud of d dimensions, laid into `width`, (n, width) float64.

    Along each of its own dimensions it has standard deviation 1.  noise: length, on average, of a Gaussian step out of
    it, in all directions alike.
    """
    directions = np.linalg.qr(rng.standard_normal((width, d)))[0]  # (width, d), orthonormal
    inside = rng.standard_normal((n, d)) @ directions.T
    return inside + noise / np.sqrt(width) * rng.standard_normal((n, width))


def dimensions(seed: int = 0, n: int = 1600, width: int = 576, n_draws: int = 10) -> pd.DataFrame:
    """What Gride says of clouds whose dimension is known, by the ranks of the neighbours compared.

    Columns: true, noise (see `cloud`), rank (the lower; the upper is twice that), value: the mean over the draws, low
    and high: the smallest and the largest, n.  Recorded as `known_dimensions`.
    """
    at_least(1, n_draws=n_draws)
    inputs = {"seed": seed, "n": n, "width": width, "n_draws": n_draws}

    def compute() -> pd.DataFrame:
        rows = []
        for d in TRUE_DIMENSIONS:
            for noise in NOISE:
                found = []
                for draw in range(n_draws):
                    points = cloud(d, n, width, noise, np.random.default_rng([seed, draw, d]))
                    scales = gride(dadapy_data(*nearest_neighbours(points, 128)))
                    found.append(scales["intrinsic_dimension"])
                row = {"true": d, "noise": noise, "rank": scales["gride_ranks"], "value": np.mean(found, 0)}
                rows.append(pd.DataFrame(row | {"low": np.min(found, 0), "high": np.max(found, 0), "n": n}))
        return pd.concat(rows, ignore_index=True)

    return record.table("known_dimensions", inputs, compute)


def clouds(n_clouds: int, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """n points of two dimensions, shared out evenly among the first of CENTRES, (n, 2); and whose each is, (n,)."""
    own = np.arange(n) % n_clouds
    return CENTRES[own] + rng.standard_normal((n, 2)), own


def peaks(seed: int = 0, n: int = 1000, n_draws: int = 10) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How many peaks ADP keeps in one cloud and in five, by significance Z; and the first draw of the five, to look at.

    The numbers: true, z; value, the mean number of peaks over the draws; low and high, its smallest and largest; ari
    and core, the means of the index with the true clouds and of the share of points not in the halo; n.
    The points: z, x, y, peak (found), core.  Recorded as `known_peaks` and `known_peaks_drawn`.
    """
    at_least(1, n_draws=n_draws)
    inputs = {"seed": seed, "n": n, "n_draws": n_draws}

    def compute() -> pd.DataFrame:
        rows = []
        for n_clouds in (1, len(CENTRES)):
            draws = [clustered(n_clouds, n, [seed, draw]) for draw in range(n_draws)]
            for z in SIGNIFICANCE:
                counts = [len(by_z[z]["peak_centres"]) for _, _, by_z in draws]
                row = {"true": n_clouds, "z": z, "value": np.mean(counts), "low": min(counts), "high": max(counts)}
                ari = [adjusted_rand_index(by_z[z]["assignment"], own, 2).value for _, own, by_z in draws]
                core = [by_z[z]["core"].mean() for *_, by_z in draws]
                rows.append(row | {"ari": np.mean(ari), "core": np.mean(core), "n": n})
        return pd.DataFrame(rows)

    def drawn() -> pd.DataFrame:
        points, _, by_z = clustered(len(CENTRES), n, [seed, 0])
        tables = []
        for z, found in by_z.items():
            columns = {"z": z, "x": points[:, 0], "y": points[:, 1]}
            tables.append(pd.DataFrame(columns | {"peak": found["assignment"], "core": found["core"]}))
        return pd.concat(tables, ignore_index=True)

    return record.table("known_peaks", inputs, compute), record.table("known_peaks_drawn", inputs, drawn)


def clustered(n_clouds: int, n: int, seed: list[int]) -> tuple[np.ndarray, np.ndarray, dict[float, dict]]:
    """The points of a draw, (n, 2), whose they are, (n,), and by Z what `clustering.by_recipe` finds."""
    points, own = clouds(n_clouds, n, np.random.default_rng(seed))
    data = dadapy_data(*nearest_neighbours(points, 64))
    scales = gride(data)["intrinsic_dimension"]
    found = {z: by_recipe(data, scales, Recipe(3, z, 16), f"{n_clouds} clouds, Z = {z}") for z in SIGNIFICANCE}
    return points, own, found


def agreements(seed: int = 0, n_groups: int = 8, n_per_group: int = 50) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What an index says of groups that agree with labels by construction; and the shuffled groups, counted by label.

    The numbers: what: "shuffled", groups equal to the labels but for a share `x` of the points, each put into a group
    at random; "random", `x` groups that have nothing to do with the labels; "apart", overlap of neighbours with the
    labels where the clouds of the classes lie x widths apart, each in a direction of its own.
    index: "rand", "ari", "homogeneity", "overlap".  value; low, high, null, null_high where the index brings them; n.
    The counts: x, label, group, n: how many points of each label are in each group.
    Recorded as `known_agreements` and `known_agreements_counted`.
    """
    inputs = {"seed": seed, "n_groups": n_groups, "n_per_group": n_per_group}

    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n_groups), n_per_group)
    by_share = {share: shuffled(labels, share, rng) for share in SHUFFLED}

    def compute() -> pd.DataFrame:
        cases = [("shuffled", share, groups) for share, groups in by_share.items()]
        cases += [("random", float(k), rng.integers(0, k, len(labels))) for k in N_GROUPS]
        rows = []
        for what, x, groups in cases:
            row = {"what": what, "x": x, "n": len(labels)}
            rows.append(row | {"index": "ari"} | vars(adjusted_rand_index(groups, labels)))
            rows.append(row | {"index": "rand", "value": rand_score(labels, groups)})
            rows.append(row | {"index": "homogeneity", "value": homogeneity_score(labels, groups)})
        for x in DISTANCES:
            # Two axes at a right angle: the centres lie x apart if each is x / √2 from the origin.
            points = rng.standard_normal((len(labels), n_groups)) + x / np.sqrt(2) * np.eye(n_groups)[labels]
            overlap = label_overlap(nearest_neighbours(points, n_per_group)[1], labels, 0.3)
            rows.append({"what": "apart", "x": x, "index": "overlap"} | vars(overlap))
        return pd.DataFrame(rows)

    def counted() -> pd.DataFrame:
        points = [pd.DataFrame({"x": share, "label": labels, "group": groups}) for share, groups in by_share.items()]
        return pd.concat(points).groupby(["x", "label", "group"], as_index=False).size().rename(columns={"size": "n"})

    numbers = record.table("known_agreements", inputs, compute)
    return numbers, record.table("known_agreements_counted", inputs, counted)


def shuffled(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The labels, a share of which, drawn at random, is dealt anew; (n,) int.  The right one may come again."""
    groups = labels.copy()
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    groups[chosen] = rng.integers(0, labels.max() + 1, len(chosen))
    return groups
