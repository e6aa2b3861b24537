"""What a reader sees when something is wrong: one message that says what, where and how to mend it."""

import difflib
from collections.abc import Iterable


class BookError(Exception):
    """Base of every error this package raises on purpose; the command line prints its message alone."""


class UnknownName(BookError):
    """A preset, model, notebook, parameter or subject that does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = sorted(known)
        close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        super().__init__(f"There is no {kind} '{name}'.{hint} Known: {', '.join(known)}.")


class BadParameter(BookError):
    """A parameter of the wrong type or outside its range."""


class BadQuestions(BookError):
    """A question set that cannot be used: an empty subject, a missing answer, too few shots."""


class BadImage(BookError):
    """An image that is missing, unreadable or animated, or one too many."""


class BadStates(BookError):
    """Hidden states that are not finite or not of the expected shape."""


class TooFewPoints(BookError):
    """Fewer points than the neighbours or scales asked for need."""


class MissingFile(BookError):
    """A file, download or stored result that is not there and could not be made."""


class HashMismatch(BookError):
    """A downloaded or stored file that is not the one expected."""


class StorageFull(BookError):
    """The disk has no room left, or cannot be written."""


class ModelUnavailable(BookError):
    """A model that cannot be loaded here: gated, unknown architecture, no memory."""


def one_line(error: Exception) -> str:
    """What an error of another package says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
