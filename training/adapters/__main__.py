"""Train the book's adapters into weights: `python -m training.adapters [RECIPE ...] [--seed N] [--preset laptop]`.

RECIPE: format-tuned, fine-tuned (all, if none is named).  A killed run resumes where it stopped; what has a card is not
trained again.
"""

import argparse

from .train import recipes, train_all

parser = argparse.ArgumentParser(prog="python -m training.adapters", description=__doc__)
parser.add_argument("recipes", nargs="*")
parser.add_argument("--preset", default="laptop")
parser.add_argument("--seed", type=int, action="append", default=[], help="of the fine-tuning; may be repeated")
arguments = parser.parse_args()
for name in arguments.recipes or recipes(arguments.preset):
    train_all(arguments.preset, name, arguments.seed)
