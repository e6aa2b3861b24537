"""Train the minis into weights/minis: `python -m training.minis [NAME ...] [--seed N] [--preset laptop]`.

NAME: native, words, adapted, gated, ... (all, if none is named), or `pictures` for data/mini-pictures.parquet, or
`page` for data/page-scenes.parquet and data/page-answers.parquet.
A killed run resumes where it stopped; what has a card is not trained again.
"""

from training.common import command_line, write_data

from .pictures import page_answers, page_scenes, pictures
from .train import train_all

arguments = command_line("minis", __doc__)
minis = [name for name in arguments.names if name not in ("pictures", "page")]
if minis or not arguments.names:
    train_all(arguments.preset, minis, arguments.seed)
if "page" in arguments.names or not arguments.names:
    write_data("page-scenes.parquet", page_scenes())
    write_data("page-answers.parquet", page_answers())
if "pictures" in arguments.names or not arguments.names:
    write_data("mini-pictures.parquet", pictures())
