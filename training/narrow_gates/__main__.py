"""Train the grid into cards in weights/study, and write data/narrow-gates.parquet.

`python -m training.narrow_gates [CELL ...] [--seed N] [--preset laptop]` (all cells, if none is named).  A killed run
resumes where it stopped; what has a card is not trained again.
"""

import argparse

from .grid import export
from .train import run

parser = argparse.ArgumentParser(prog="python -m training.narrow_gates", description=__doc__)
parser.add_argument("cells", nargs="*")
parser.add_argument("--preset", default="laptop")
parser.add_argument("--seed", type=int, action="append", default=[], help="of a cell; may be repeated")
arguments = parser.parse_args()
run(arguments.preset, arguments.cells, arguments.seed)
if arguments.preset == "laptop":
    export()
