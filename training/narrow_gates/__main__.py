"""Train the grid into cards in weights/study, and write data/narrow-gates.parquet.

`python -m training.narrow_gates [CELL ...] [--seed N] [--preset laptop]` (all cells, if none is named).  A killed run
resumes where it stopped; what has a card is not trained again.
"""

from training.common import command_line, write_data

from .grid import rows
from .train import run

arguments = command_line("narrow_gates", __doc__)
run(arguments.preset, arguments.names, arguments.seed)
if arguments.preset == "laptop":
    write_data("narrow-gates.parquet", rows("laptop"))
