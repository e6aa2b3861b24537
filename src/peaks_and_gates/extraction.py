"""Another name of `landscape.extraction`."""

import sys

from .landscape import extraction

extraction.CODE = ("landscape.extraction", "models")
sys.modules[__name__] = extraction
