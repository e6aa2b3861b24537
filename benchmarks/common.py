"""What the benchmarks share: medians, the machine's limits, processes of their own for memory, and where results go."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import psutil
import torch

from peaks_and_gates import cache

HERE = Path(__file__).parent
T, S = TypeVar("T"), TypeVar("S")


def seconds(call: Callable[[], T], repeats: int = 3) -> tuple[float, T]:
    """Median wall time of a few calls, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return median(times), result


def side_by_side(
    ours: Callable[[], T], reference: Callable[[], S], repeats: int = 3
) -> tuple[tuple[float, T], tuple[float, S]]:
    """As `seconds`, of two ways to the same, by turns: what else the machine does then slows both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        took, fast = seconds(ours, 1)
        times[0].append(took)
        took, slow = seconds(reference, 1)
        times[1].append(took)
    return (median(times[0]), fast), (median(times[1]), slow)


def matmul_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """This machine's FLOP/s in a large matrix product: what no model on it can exceed."""
    n = 2048 if device == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(dtype)
    corner = lambda: float((a @ a)[0, 0])  # on a GPU, reading a number waits for it
    corner()
    return 2 * n**3 / seconds(corner, 7)[0]


def memory(what: str = "VmHWM") -> float:
    """The most memory that this process has held (VmHWM), or what it holds now (VmRSS), in GB.  Linux only.

    Not by getrusage, whose maximum a process inherits from the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024 / 1e9


def forget_peak() -> float:
    """Let the most memory held be counted from now on; what is held now, in GB."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def in_a_process(script: str, *arguments: object, **environment: str) -> dict[str, Any]:
    """Run a benchmark's script in a process of its own, so that memory is its alone; the JSON it prints last."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | environment)
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """What the numbers were measured on, and when."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line[:10] == "model name"]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": datetime.now(UTC).date().isoformat(),
    } | cache.environment()


def keep(name: str, rows: list[dict[str, Any]]) -> None:
    """Write a benchmark's rows to measured/, with the machine beside them, for the page on speed."""
    cache.write_json(HERE / "measured" / f"{name}.json", {"machine": machine(), "rows": rows})
