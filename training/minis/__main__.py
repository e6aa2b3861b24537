"""Train the minis into weights/minis: `python -m training.minis [NAME ...] [--seed N] [--preset laptop]`.

NAME: native, words, adapted, gated, ... (all, if none is named), or `pictures` for data/mini-pictures.parquet, or
`page` for data/page-scenes.parquet.
A killed run resumes where it stopped; what has a card is not trained again.
"""

from training.common import command_line, write_data

from .pictures import page_scenes, pictures
from .train import train_all

TABLES = {"page": ("page-scenes.parquet", page_scenes), "pictures": ("mini-pictures.parquet", pictures)}
arguments = command_line("minis", __doc__)
minis = [name for name in arguments.names if name not in TABLES]
if minis or not arguments.names:
    train_all(arguments.preset, minis, arguments.seed)
for name, (file, table) in TABLES.items():
    if name in arguments.names or not arguments.names:
        write_data(file, table())
