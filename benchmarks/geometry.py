"""Time one landscape against DADApy's own route (float64 coordinates, scikit-learn neighbours).

python benchmarks/geometry.py [n d]
"""

import resource
import sys
import time

import numpy as np
import psutil
from dadapy import Data
from sklearn.metrics import adjusted_rand_score

from peaks_and_gates.clustering import RECIPES
from peaks_and_gates.geometry import K_MAX, landscape


def clusters(n: int, d: int, n_clusters: int = 57) -> np.ndarray:
    """Return (n, d) float32: Gaussian clusters in 12 dimensions, turned into d, with a little noise."""
    rng = np.random.default_rng(0)
    inner = 4 * rng.standard_normal((n_clusters, 12))[rng.integers(n_clusters, size=n)]
    inner += rng.standard_normal((n, 12))
    return (inner @ rng.standard_normal((12, d)) + 0.1 * rng.standard_normal((n, d))).astype(np.float32)


def dadapy_route(states: np.ndarray) -> tuple[np.ndarray, float]:
    """Peaks and ID from coordinates, without any code of ours."""
    recipe = RECIPES["released"]
    data = Data(states.astype(np.float64), maxk=K_MAX)
    data.compute_distances()
    dimension = data.return_id_scaling_gride(range_max=K_MAX)[0][recipe.gride_scale]
    data.set_id(dimension)
    data.compute_density_kNN(recipe.k)
    return data.compute_clustering_ADP(Z=recipe.z).copy(), dimension


def timed(function, *args):
    """Return the result, the seconds, and how far the process's peak memory rose, in GB."""
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    result = function(*args)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kB on Linux
    return result, seconds, (peak - before) / 1e9


if __name__ == "__main__":
    n, d = map(int, sys.argv[1:]) if len(sys.argv) > 1 else (2700, 576)
    states = clusters(n, d)
    landscape(states[:200], {})  # start the threads
    ours, our_seconds, our_memory = timed(landscape, states, {})
    (theirs, dimension), their_seconds, their_memory = timed(dadapy_route, states)
    ours_dimension = ours.intrinsic_dimension[ours.recipe.gride_scale]
    print(f"agreement: ARI of the two partitions {adjusted_rand_score(ours.assignment, theirs):.6f}, ", end="")
    print(f"peaks {ours.n_peaks} and {theirs.max() + 1}, ID {ours_dimension:.6f} and {dimension:.6f}")
    print(f"ours {our_seconds:.2f} s, DADApy {their_seconds:.2f} s, ratio {their_seconds / our_seconds:.2f}")
    print(f"peak memory above the states: ours {our_memory:.2f} GB, DADApy at least {their_memory:.2f} GB")
