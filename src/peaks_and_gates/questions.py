"""Another name of `landscape.questions`."""

import sys

from .landscape import questions

sys.modules[__name__] = questions
