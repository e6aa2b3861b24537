"""Train the minis into weights/minis: `python -m training.minis [NAME ...] [--seed N] [--preset laptop]`.

NAME: native, words, adapted, gated, ... (all, if none is named), or `pictures` for data/mini-pictures.parquet.
A killed run resumes where it stopped; what has a card is not trained again.
"""

import argparse

from .pictures import export
from .train import train_all

parser = argparse.ArgumentParser(prog="python -m training.minis", description=__doc__)
parser.add_argument("names", nargs="*")
parser.add_argument("--preset", default="laptop")
parser.add_argument("--seed", type=int, action="append", default=[], help="of the recipe; may be repeated")
arguments = parser.parse_args()
minis = [name for name in arguments.names if name != "pictures"]
if minis or not arguments.names:
    train_all(arguments.preset, minis, arguments.seed)
if "pictures" in arguments.names or not arguments.names:
    export()
