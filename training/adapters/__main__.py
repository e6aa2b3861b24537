"""Train the book's adapters into weights: `python -m training.adapters [RECIPE ...] [--seed N] [--preset laptop]`.

RECIPE: format-tuned, fine-tuned (all, if none is named).  A killed run resumes where it stopped; what has a card is not
trained again.
"""

from training.common import command_line

from .train import recipes, train_all

arguments = command_line("adapters", __doc__)
for name in arguments.names or recipes(arguments.preset):
    train_all(arguments.preset, name, arguments.seed)
