"""The WordNet questions as they ship: made again they are the same, they read well, and no wrong option is right."""

import os
import re
import subprocess
import sys

import pandas as pd
import pytest

from conftest import ROOT
from peaks_and_gates.errors import BadQuestions
from peaks_and_gates.landscape.questions import load
from training.wordnet import build
from training.wordnet.__main__ import check_splits


@pytest.fixture(scope="module")
def words():
    return load("wordnet")


def test_a_fresh_build_is_the_same_under_another_hash_seed():
    program = (
        "import pandas as pd; from training.common import ROOT; from training.wordnet import __main__ as main\n"
        "shipped = pd.read_parquet(ROOT / 'data/wordnet-questions.parquet')\n"
        "shipped['choices'] = shipped['choices'].map(list)\n"
        "pd.testing.assert_frame_equal(main.questions(), shipped)\n"
        "pd.testing.assert_frame_equal(main.distances(), pd.read_csv(ROOT / 'data/wordnet-distances.csv'))"
    )
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": "7"}, cwd=ROOT, check=True)


def test_no_option_is_above_or_below_the_answer(words):
    nouns = build.read_nouns()
    offset = lambda word: nouns.first_sense[word.replace(" ", "_")]
    for items in words.test.values():
        for question in items:
            right, *wrong = [offset(question.options[(question.answer + i) % 4]) for i in range(4)]
            assert right not in wrong
            assert not any(w in build.ancestors(nouns, right) or right in build.ancestors(nouns, w) for w in wrong)
    for line in build.SUBJECTS_FILE.read_text().splitlines():
        if match := re.match(r'\s+- "(\d{8}) (.+)"', line):
            assert match[2].lower().replace(" ", "_") in {word.lower() for word in nouns.synsets[match[1]].words}


def test_too_few_words_name_the_subject():
    entries = [build.Entry(f"word{i}", "some definition", "0") for i in range(20)]
    with pytest.raises(BadQuestions, match="'tiny' has 20 usable words; 210"):
        build.split("tiny", entries)


def test_a_word_in_two_splits_is_refused():
    table = pd.DataFrame({"split": ["dev", "test", "test"], "choices": [["a", "b"], ["b", "a"], ["c", "a"]]})
    check_splits(table.assign(answer=[0, 0, 0]))
    with pytest.raises(BadQuestions, match="'b' is asked for in dev and in test"):
        check_splits(table.assign(answer=[1, 0, 0]))
