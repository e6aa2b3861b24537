"""VQA accuracy: how well short answers match those that ten people gave.

vqa_accuracy(["Two dogs."], [["2 dogs"] * 6 + ["dogs"] * 4])       # array([1.])
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from peaks_and_gates.errors import BadParameter

PEOPLE = 10  # answers a question of VQAv2 has
ENOUGH = 3  # people who must agree with an answer for it to be fully right
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # apostrophe and colon stay: "girl's", "2:50 pm"
ARTICLES = {"a", "an", "the"}
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4",
    "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
# Those of the official table.  It has none that are words without the apostrophe: its, lets, were, ill, well, shed.
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
APOSTROPHES = {
    whole[:at] + whole[at + 1 :]: whole
    for whole in CONTRACTIONS.split()
    for at, mark in enumerate(whole)
    if mark == "'"
}  # every contraction by its spellings that lack one apostrophe


def vqa_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Accuracy of each answer by the rule of VQAv2.

    Leave one of the ten people out; the answer scores min(1, matches among the other nine / 3); the accuracy is the
    mean over the ten ways to do so.  One match gives 0.3, two 0.6, three 0.9, four or more 1.  A question with fewer
    than ten references (procedural data have one) scores 1 if the answer equals any of them, else 0.  Answers and
    references are normalised first, always (the official script skips it where all ten people agree word for word).

    Args:
        answers: (n,) what the model wrote, without the prompt.
        references: (n,) lists of what people answered.

    Returns:
        (n,) float64 in [0, 1]; `statistics.bootstrap_mean` gives their mean and its interval.

    Raises:
        BadParameter: not one list of references an answer, an empty list, or something that is not text.

    Source: Antol et al. 2015; Goyal et al. 2017; the leave-one-out form of visualqa.org/evaluation.
    """
    require_texts(answers, references)
    return np.array([_accuracy(answer, people) for answer, people in zip(answers, references, strict=True)])


def normalised(answer: str) -> str:
    """Bring an answer to the form in which VQAv2 compares it.

    Lower case; no period unless a digit follows; punctuation becomes a space, except apostrophes and colons; number
    words up to ten become digits ("none" is 0); articles go; a contraction without its apostrophe gets it back.

    Two habits of the official script are kept, because published numbers have them: a mark that stands next to a
    space anywhere in the answer is deleted everywhere ("red-blue - green" gives "redblue green"), and a comma between
    digits deletes all marks ("1,000-2,000" gives "10002000").

    Source: visualqa.org/evaluation; where the text leaves it open, the behaviour of the official script.
    """
    text = cleaned = " ".join(answer.split())
    number = re.search(r"\d,\d", text)
    for mark in PUNCTUATION:
        glued = number or f" {mark}" in text or f"{mark} " in text
        cleaned = cleaned.replace(mark, "" if glued else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned)
    words = [NUMBERS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(APOSTROPHES.get(word, word) for word in words if word not in ARTICLES)


def require_texts(answers: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Refuse what would be compared letter by letter, or not at all.

    Raises:
        BadParameter: answers that are not texts (references given in their place), references that are not lists of
            texts, an example without a reference, or two different numbers of examples.
    """
    if isinstance(answers, str) or not all(isinstance(answer, str) for answer in answers):
        raise BadParameter("Answers must be a list of texts, one an example. Were the references given first?")
    if len(answers) != len(references) or not len(answers):
        raise BadParameter(f"{len(answers)} answers for {len(references)} lists of references; give one list each.")
    for index, people in enumerate(references):
        if isinstance(people, str) or not len(people) or not all(isinstance(text, str) for text in people):
            raise BadParameter(
                f"The references of example {index} must be a list of one text or more, got {people!r:.60}. "
                "A single reference is a list of one."
            )


def _accuracy(answer: str, people: Sequence[str]) -> float:
    same = np.array([normalised(text) == normalised(answer) for text in people])
    if len(people) < PEOPLE:
        return float(same.any())
    others = same.sum() - same  # (people,) matches among the rest, when one is left out
    return float(np.minimum(1, others / ENOUGH).mean())
