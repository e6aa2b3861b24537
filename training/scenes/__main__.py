"""Write the scenes into data: `python -m training.scenes` (half a minute)."""

from .build import build

build()
