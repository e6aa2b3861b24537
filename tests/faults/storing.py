"""What is stored in processes that are watched or killed meanwhile.

They are forked: a new interpreter would take seconds to import all that a store needs.
"""

import os
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from peaks_and_gates import store

CODE = ("store",)
ROWS = 400_000  # large enough that a kill often falls into the writing


def frame(start=0):
    return pd.DataFrame({"value": np.arange(start, start + ROWS)})


def table(marks=None, wait=0.0):
    """The table, from the store or computed, which leaves a line in `marks`."""

    def compute():
        if marks is not None:
            with Path(marks).open("a") as file:
                file.write(f"{os.getpid()}\n")
        time.sleep(wait)
        return frame()

    return store.table("kept", {}, compute, CODE)["value"].sum()


def model():
    """The checksums of a folder that is made once."""

    def save(folder):
        for name in ("a", "b", "model"):
            save_file({"w": torch.arange(ROWS // 4)}, folder / f"{name}.safetensors")
        (folder / "config.json").write_text("{}")

    folder = store.made_once(store.cache_folder() / "models" / "one", {}, save)
    return {name: value for name, value in store.checksums(folder).items() if name != "model.safetensors.json"}


def values():
    """Write new values over old ones until killed."""
    path, start = store.cache_folder() / "values.parquet", 0
    while True:
        store.write_atomically(path, frame(start).to_parquet)
        start += 1


def forked(work, cache):
    """The id of a new process that does some work at a store of its own, and ends with 0 if it went well."""
    child = os.fork()
    if child:
        return child
    try:
        # tqdm's own lock is shared by all forked processes: one that is killed while it holds it would block the next.
        tqdm.set_lock(threading.RLock())
        os.environ["PG_CACHE"] = str(cache)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()  # among what pytest shows of a test that failed
        raise
    finally:
        os._exit(1)


def ended(child):
    """How a process ended: 0 if all went well, the negative signal if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
