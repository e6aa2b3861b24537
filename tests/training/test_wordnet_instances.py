"""The questions about names as they ship: made again they are the same; they are fair; no training has seen them."""

import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import chain

import pytest

from conftest import ROOT
from peaks_and_gates.landscape.questions import FIRST, load, subject_groups
from training.adapters import format_tasks
from training.adapters.data import words_of
from training.wordnet import build, instances


@pytest.fixture(scope="module")
def names():
    return load("wordnet-instances")


def parts_of_questions(names):
    """Of every question its subject, the words of its definition, the right name and the wrong ones."""
    for question in chain(*names.dev.values(), *names.test.values()):
        right, *wrong = [question.options[(question.answer + i) % 4] for i in range(4)]
        yield question.subject, words(question.text.removeprefix("Which name fits ")), right, wrong


def words(text):
    return set(re.findall("[a-z]+|[0-9]+", text.lower()))


def test_a_fresh_build_is_the_same_under_another_hash_seed():
    program = (
        "import pandas as pd; from training.common import ROOT; from training.wordnet import __main__ as main\n"
        "shipped = pd.read_parquet(ROOT / 'data/wordnet-instances.parquet')\n"
        "shipped['choices'] = shipped['choices'].map(list)\n"
        "pd.testing.assert_frame_equal(main.questions(main.instances), shipped)\n"
    )
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": "7"}, cwd=ROOT, check=True)


def test_sizes_letters_and_groups(names):
    assert len(names.subjects) == 32 and {len(items) for items in names.dev.values()} == {5}
    for items in names.test.values():
        letters = Counter(question.answer for question in items)
        assert len(items) >= 50 and max(letters.values()) - min(letters.values()) <= 1
    assert max(Counter(right for _, _, right, _ in parts_of_questions(names)).values()) == 1
    assert not words_of(names, ["dev"]) & words_of(names, ["test"])  # no shot shows a name that is asked for
    assert set(FIRST[names.name]) < set(names.subjects)
    assert subject_groups(names.name, ["rivers", "poets"]) == ["nature", "arts"]


def test_no_definition_names_an_option(names):
    for _, definition, right, wrong in parts_of_questions(names):
        assert not definition & words(" ".join([right, *wrong]))
        assert not {word[:4] for word in definition} & {word[:4] for word in words(right)}
        assert not any(word.isdigit() and len(word) > 2 for word in definition)  # a year


def test_no_option_is_above_below_or_synonymous(names):
    nouns, bearers = instances.read_names(), defaultdict(set)  # by subject and spelling
    for subject in instances.subjects():
        for offset in build.subtree(nouns, subject.roots):
            for word in nouns.synsets[offset].words:
                bearers[subject.name, word.replace("_", " ")].add(offset)
    related = lambda a, b: a in build.ancestors(nouns, b) or {*nouns.synsets[a].words} & {*nouns.synsets[b].words}
    for subject, _, right, wrong in parts_of_questions(names):
        for a in bearers[subject, right]:
            assert not any(related(a, b) or related(b, a) for name in wrong for b in bearers[subject, name])


def test_no_training_has_seen_a_name(names):
    tasks, by_subject = format_tasks.read(()), build.chosen()
    nouns = chain(*by_subject.values(), *build.others(build.read_nouns(), by_subject, -1).values())
    options = {*tasks.pool, *chain(*tasks.synonyms, *tasks.antonyms), *(entry.word for entry in nouns)}
    assert not words_of(names, ["dev", "test"]) & (options | words(" ".join(options)))
    assert format_tasks.read(words_of(names, ["dev", "test"])) == tasks  # there is nothing to leave out
