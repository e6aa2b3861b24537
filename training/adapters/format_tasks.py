"""Multiple-choice tasks without a noun definition: what teaches a small model to answer in letters.

    words = read(held_out)
    question = draw(words, "antonyms", rng)          # a Question whose subject is the task

The tasks are made of WordNet's verbs and adjectives, and no word of the noun questions that are held out occurs in
them, neither asked for nor as an option. They are drawn anew for every training step, so none is seen twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from peaks_and_gates.landscape.questions import Question
from training.wordnet.build import PLAIN, TEMPLATE, body, first_senses, parse
from training.wordnet.glosses import clean_definition, content_stems, gives_away, is_unwanted


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
        first_sense, synsets, opposite = first_senses(part), {}, []
        for line in body(f"wordnet-3.0/data.{part}"):
            offset, field, words, gloss, pointers = parse(line)
            usable = [w for w in words if first_sense.get(w) == offset and _fair(w, held_out)]
            if usable and not is_unwanted(" ".join((*words, gloss)).replace("_", " ")):
                synsets[offset] = (field, words, usable, gloss)
            for symbol, target, _, ends in pointers:
                if symbol == "!":  # an antonym: numbers of both words, from 1, in two hexadecimal digits each
                    opposite.append((offset, words[int(ends[:2], 16) - 1], target, int(ends[2:], 16) - 1))
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
    """One question of a task; each letter is right equally often."""
    text, right, wrong = TASKS[task](words, rng)
    answer = int(rng.integers(4))
    wrong.insert(answer, right)
    return Question(task, text, tuple(wrong), answer)
