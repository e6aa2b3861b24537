"""What the authors run once, to make the files of `data/` and `weights/`.  Nothing in `src` or `notebooks` needs it."""
