"""Build questions about names from WordNet 3.0: who or what a definition fits, and four names of the same class.

    questions = build()     # {split: {subject: [(question, options, answer), ...]}}, of the splits dev and test

WordNet calls the bearer of a name an instance; its subject is a class or several (see instances.yml).  No training has
seen these questions, and no option of theirs is one of any training on WordNet's words.  (MMLU, which a preset can
train on, names whom it likes.)

Definition: the first two clauses of the gloss if they read well, else the first.  Dates are left out: what stands in
brackets, such as the years of a life, and *in 1066*; a clause with a year elsewhere is not used.  No word of any
spelling of the name stands in it, but for common words (the *River* of *Tennessee River*).

Name: one of the first two spellings, which are most often a last name and the full one: the first of which it is the
main sense (*Tolstoy*; but *Paul Simon*, because another Simon is better known), else the first.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from functools import cache
from itertools import chain, islice
from pathlib import Path

from peaks_and_gates.landscape.questions import generator
from training.adapters import format_tasks

from . import build as wordnet
from .build import Entry, Nouns, Subject
from .glosses import EMPTY_WORDS, clean_definition, content_stems, gives_away, is_unwanted

SUBJECTS_FILE = Path(__file__).with_name("instances.yml")

SHOTS, SHOWN = 5, 15  # names per subject that dev asks for and that its options are; test has all the others
TEMPLATE = 'Which name fits "{}"?'
NAME = re.compile(r"[A-Z][a-z]{2,}(?:[-_](?:[A-Z][a-z]+|[IVX]+))*")
DATE = re.compile(r",? in (?:AD )?\d{1,4}(?: [AB][CD]|(?<=\d{3}))\b")
UNFINISHED = re.compile(r"^$| (first|erupted|established|formed|founded|overthrown)$")  # nothing, or without its date


def subjects() -> tuple[Subject, ...]:
    """The subjects in the order of the file, which also settles instances that two of them reach."""
    return wordnet.subjects(SUBJECTS_FILE)


@cache
def read_names() -> Nouns:
    """WordNet's nouns, each instance as a hyponym of its classes."""
    nouns, hyponyms = wordnet.read_nouns(), defaultdict(list)
    synsets = {offset: replace(s, hypernyms=s.hypernyms + s.classes) for offset, s in nouns.synsets.items()}
    for offset, synset in synsets.items():
        for above in synset.hypernyms:
            hyponyms[above].append(offset)
    return replace(nouns, synsets=synsets, hyponyms=hyponyms)


@cache
def trained() -> frozenset[str]:
    """Every option that `training.adapters` can make of WordNet's words, lower case, and every word of each.

    Nouns of all subjects and of none, however rare, in all splits; verbs and adjectives of the tasks.
    """
    by_subject, tasks = wordnet.chosen(), format_tasks.read(())
    nouns = chain(*by_subject.values(), *wordnet.others(wordnet.read_nouns(), by_subject, -1).values())
    rows = chain(*(rows for fields in tasks.definitions.values() for rows in fields.values()))
    options = {*tasks.pool, *chain(*tasks.synonyms, *tasks.antonyms), *(e.word for e in nouns), *(w for w, _ in rows)}
    return frozenset(options | _words(" ".join(options)))


def entry(nouns: Nouns, offset: str) -> Entry | None:
    """The question that an instance can carry, or None."""
    synset = nouns.synsets[offset]
    if not synset.classes or is_unwanted(" ".join((*synset.words, synset.gloss)).replace("_", " ")):
        return None
    own = _words(" ".join(synset.words)) - trained() - EMPTY_WORDS
    gloss = DATE.sub("", synset.gloss)
    for text in (gloss.replace(";", " ~", 1), gloss):  # a mark that is not where `clean_definition` cuts
        definition = (clean_definition(text) or "").removesuffix(" ~").replace(" ~", ";")
        begins = {word[:4] for word in _words(definition)}  # *Volgograd* is on the Volga
        if UNFINISHED.search(definition) or any(w[:4] in begins or gives_away(w, definition) for w in own):
            continue
        fair = [w for w in synset.words[:2] if NAME.fullmatch(w) and not gives_away(w.lower(), definition)]
        fresh = [w for w in fair if w.lower().replace("_", " ") not in trained()]
        if fresh:
            word = min(fresh, key=lambda w: nouns.first_sense.get(w.lower()) != offset)
            return Entry(word.replace("_", " "), definition, offset)
    return None


def _words(text: str) -> set[str]:
    """The words of a name or a definition, lower case."""
    return set(re.findall("[a-z]+", text.lower()))


def confusable(nouns: Nouns, target: Entry, other: Entry) -> bool:
    """Whether the target's definition might fit the other name, or names it.

    It might if half of what it says beside the class is in the other's gloss: of two British poets one may well have
    written sonnets too.
    """
    if wordnet.confusable(nouns, target, other):
        return True
    above = chain(*(nouns.synsets[offset].words for offset in wordnet.ancestors(nouns, target.offset)))
    own = content_stems(target.definition) - content_stems(" ".join(above).replace("_", " "))
    known = own & content_stems(nouns.synsets[other.offset].gloss)
    return 2 * len(known) >= len(own) or not _words(other.word).isdisjoint(_words(target.definition))


def build() -> dict[str, dict[str, list[tuple]]]:
    """{split: {subject: [(question, options, answer), ...]}}."""
    nouns = read_names()
    questions: dict[str, dict[str, list[tuple]]] = {"dev": {}, "test": {}}
    for name, entries in wordnet.assign(nouns, subjects(), entry).items():
        dealt = [entries[i] for i in generator("split", name).permutation(len(entries))]
        for part, pool, most in (("dev", dealt[:SHOWN], SHOTS), ("test", dealt[SHOWN:], None)):
            wrong = lambda target, among=pool: (e for e in among if not confusable(nouns, target, e))
            fair = [e for e in pool if len([*islice(wrong(e), 3)]) == 3][:most]
            questions[part][name] = wordnet.ask(nouns, name, part, fair, pool, TEMPLATE, confusable)
    return questions
