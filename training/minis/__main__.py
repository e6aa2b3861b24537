"""Train the minis into weights/minis: `python -m training.minis [NAME ...] [--seed N] [--preset laptop]`.

NAME: native, words, adapted, gated, ... (all, if none is named), or `pictures` for data/mini-pictures.parquet.
A killed run resumes where it stopped; what has a card is not trained again.
"""

from training.common import command_line, write_data

from .pictures import pictures
from .train import train_all

arguments = command_line("minis", __doc__)
if arguments.names != ["pictures"]:
    train_all(arguments.preset, [name for name in arguments.names if name != "pictures"], arguments.seed)
if "pictures" in arguments.names or not arguments.names:
    write_data("mini-pictures.parquet", pictures())
