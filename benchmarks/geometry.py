"""One landscape, neighbours to peaks, against DADApy's own route (float64 coordinates, scikit-learn neighbours).

    python benchmarks/geometry.py

Each side runs in a process of its own, so that memory is its alone. The partitions, numbers of peaks and intrinsic
dimensions are compared first.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import forget_peak, in_a_process, keep, memory, seconds

SIZES = [(2_500, 576), (9_181, 576), (20_000, 576), (2_500, 4_096), (9_181, 4_096), (20_000, 4_096)]
REPEATS = 3
MMLU = 14_042  # questions in its test set


def clusters(n: int, d: int, n_clusters: int = 57) -> np.ndarray:
    """(n, d) float32: Gaussian clusters in 12 dimensions, turned into d, with a little noise."""
    rng = np.random.default_rng(0)
    inner = 4 * rng.standard_normal((n_clusters, 12))[rng.integers(n_clusters, size=n)]
    inner += rng.standard_normal((n, 12))
    noise = 0.1 * rng.standard_normal((n, d), dtype=np.float32)
    return (inner @ rng.standard_normal((12, d))).astype(np.float32) + noise


def ours(states: np.ndarray) -> tuple[np.ndarray, float]:
    """Assignment and intrinsic dimension by `density_peaks.landscape`."""
    from peaks_and_gates.landscape.density_peaks import landscape

    found = landscape(states, {})
    return found.assignment, found.intrinsic_dimension[found.recipe.gride_scale]


def dadapy(states: np.ndarray) -> tuple[np.ndarray, float]:
    """The same from coordinates, without any code of ours."""
    from dadapy import Data

    from peaks_and_gates.landscape.density_peaks import K_MAX, RECIPES

    recipe = RECIPES["released"]
    data = Data(states.astype(np.float64), maxk=K_MAX)
    data.compute_distances()
    dimension = data.return_id_scaling_gride(range_max=K_MAX)[0][recipe.gride_scale]
    data.set_id(dimension)
    data.compute_density_kNN(recipe.k)
    return data.compute_clustering_ADP(Z=recipe.z).copy(), dimension


def after_neighbours(states: np.ndarray) -> float:
    """Seconds of DADApy's share of ours: what is left to do once the neighbours are known, wherever they were found."""
    from peaks_and_gates.landscape.density_peaks import K_MAX, RECIPES, density_and_peaks, dimensions
    from peaks_and_gates.landscape.neighbours import nearest_neighbours

    known, recipe = nearest_neighbours(states, K_MAX), RECIPES["released"]

    def share() -> None:
        density_and_peaks(*known, dimensions(*known)[0][recipe.gride_scale], recipe, "made points")

    share()  # what is imported and compiled only once
    return seconds(share, REPEATS)[0]


SIDES = {"ours": ours, "dadapy": dadapy}


def measure(side: str, folder: str) -> None:
    """Run one side on the states in a folder, leave its partition there, and print the rest."""
    states = np.load(Path(folder, "states.npy"))  # made elsewhere: the memory that it takes to make them is not ours
    SIDES[side](states[:300])  # imports, threads
    before = forget_peak()
    repeats = REPEATS if len(states) < 20_000 else 1
    took, (assignment, dimension) = seconds(lambda: SIDES[side](states), repeats)
    np.save(Path(folder, f"{side}.npy"), assignment)
    print(json.dumps({"seconds": took, "gb": memory() - before, "id": float(dimension)}))


def main() -> None:
    """Print the table and keep it."""
    import torch
    from common import matmul_rate
    from sklearn.metrics import adjusted_rand_score

    rate, rows = matmul_rate(torch.float32), []
    print("     n     d  DADApy s  ours s  ratio  limit s  DADApy GB  ours GB  ratio  peaks  ARI")
    for n, d in SIZES:
        found, labels = {}, {}
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder, "states.npy"), clusters(n, d))
            for side in SIDES:
                found[side] = in_a_process("geometry.py", side, folder)
                labels[side] = np.load(Path(folder, f"{side}.npy"))
        us, them = found["ours"], found["dadapy"]
        ari = adjusted_rand_score(labels["ours"], labels["dadapy"])
        peaks = {side: int(labels[side].max()) + 1 for side in SIDES}
        assert ari == 1 and peaks["ours"] == peaks["dadapy"], f"the partitions differ: ARI {ari}, peaks {peaks}"
        assert abs(us["id"] / them["id"] - 1) < 1e-4, f"the dimensions differ: {us['id']} and {them['id']}"
        limit = n * n * d / rate  # the product of every pair once, nothing else
        agreement = f"ARI {ari:.0f}, {peaks['ours']} peaks, ID {us['id']:.4f}"
        shape = {"benchmark": "geometry", "setting": f"{n:,} x {d:,}", "agreement": agreement}
        values = {"ours": us["seconds"], "reference": them["seconds"], "ratio": them["seconds"] / us["seconds"]}
        rows.append(shape | {"unit": "s", "limit": limit} | values)
        values = {"ours": us["gb"], "reference": them["gb"], "ratio": them["gb"] / us["gb"]}
        rows.append(shape | {"benchmark": "geometry, memory", "unit": "GB above the states"} | values)
        print(
            f"{n:>6} {d:>5} {them['seconds']:>9.1f} {us['seconds']:>7.1f} {them['seconds'] / us['seconds']:>6.1f}"
            f" {limit:>8.2f} {them['gb']:>10.2f} {us['gb']:>8.2f} {them['gb'] / us['gb']:>6.1f} {peaks['ours']:>6}"
            f" {ari:>4.2f}",
            flush=True,
        )
    took = after_neighbours(clusters(MMLU, 64))
    rows.append({"benchmark": "geometry, DADApy's share", "setting": f"{MMLU:,} points", "unit": "s", "ours": took})
    print(f"what is left once the neighbours of {MMLU} points are known: {took:.2f} s")
    keep("geometry", rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], sys.argv[2])
    else:
        main()
