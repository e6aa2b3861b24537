"""What makes a dictionary gloss fair to ask about: clean, complete, and not naming its own word."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import yaml

WORDS = yaml.safe_load(Path(__file__).with_suffix(".yml").read_text())
UNWANTED = re.compile(rf"\b({'|'.join(WORDS['unwanted'])})", re.IGNORECASE)
EMPTY_WORDS = frozenset(WORDS["empty"].split())
# A definition that begins or ends so does not stand on its own.
FRAGMENT = re.compile(
    r"^(see|cf|same as|compare|used|usually|formerly|also|or|and|abbreviation|plural|genus|type genus"
    r"|the \w+ letter|informal|an? \w+ name|trade name|name given|variant|short for|(?:an?"
    r"|the) [\w-]+ (?:genus|family|order)\b)\b|\b(the|an?|and|or|as|such|than|etc|especially"
    r"|usually)[.,]?$",
    re.IGNORECASE,
)
# Not plain running text: brackets, cross-references, formulas, years, "e.g.".
STRANGE = re.compile(r"[`()\[\]:_/=*<>|+]|--|\b[A-Z]\.$|\b[ie]\.[eg]\.|\d{3}")


def is_unwanted(text: str) -> bool:
    """Whether a gloss or a word is vulgar, a slur, sexual, or otherwise not for a classroom."""
    return UNWANTED.search(text) is not None


def clean_definition(gloss: str) -> str | None:
    """The first clause of a gloss, without examples and asides; None if what is left does not read well."""
    text = re.sub(r'"[^"]*"?', "", gloss)
    while (shorter := re.sub(r"\s*\([^()]*\)", " ", text)) != text:
        text = shorter
    text = re.sub(r"\s+([,.])", r"\1", " ".join(text.split(";")[0].split())).strip(" .,-")
    if (
        not text.isascii()
        or STRANGE.search(text)
        or text.count("'") > 1
        or FRAGMENT.search(text)
        or not 4 <= len(text.split()) <= 25
    ):
        return None
    return text if len(content_stems(text)) >= 3 else None


@cache
def content_stems(definition: str) -> frozenset[str]:
    """Five-letter stems of the words that carry meaning."""
    return frozenset(word[:5] for word in re.findall(r"[a-z]+", definition.lower()) if word not in EMPTY_WORDS)


def gives_away(word: str, definition: str) -> bool:
    """Whether word and definition share a stem, in either direction (a *songbird* is a *bird* that sings)."""
    letters, lower = re.sub(r"[^a-z]", "", word), definition.lower()
    parts = [part for part in re.split(r"[-_ ]", word) if part]
    if any((part[:5] in lower) if len(part) > 3 else re.search(rf"\b{part}s?\b", lower) for part in parts):
        return True
    return any(len(stem) > 3 and stem in letters for stem in content_stems(definition))
