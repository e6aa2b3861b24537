"""What a model writes, scored: VQA accuracy of answers, CIDEr-D of captions.

vqa_accuracy(["Two dogs."], [["2 dogs"] * 6 + ["dogs"] * 4])      # array([1.])
cider(["a red square"], [["one red square", "a square"]])
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from ..errors import BadParameter, TooFewPoints

PEOPLE = 10  # answers that a question of VQAv2 has
ENOUGH = 3  # people who must agree with an answer for it to be fully right
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # apostrophe and colon stay: "girl's", "2:50 pm"
ARTICLES = {"a", "an", "the"}
WORDS = yaml.safe_load(Path(__file__).with_name("answers.yml").read_bytes())
# Every contraction by its spellings that lack one apostrophe.
APOSTROPHES = {
    full[: match.start()] + full[match.end() :]: full
    for full in WORDS["contractions"].split()
    for match in re.finditer("'", full)
}


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
        BadParameter: references that are no list of texts, or an empty one.

    Source: Antol et al. 2015; Goyal et al. 2017; the leave-one-out form of visualqa.org/evaluation.
    """
    _check_references(references)
    return np.array([_accuracy(answer, people) for answer, people in zip(answers, references, strict=True)])


def _accuracy(answer: str, people: Sequence[str]) -> float:
    same = np.array([normalised(text) == normalised(answer) for text in people])
    if len(people) < PEOPLE:
        return float(same.any())
    others = same.sum() - same  # (people,) matches among the rest, when one is left out
    return float(np.minimum(1, others / ENOUGH).mean())


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
    words = [WORDS["numbers"].get(word, word) for word in cleaned.lower().split()]
    return " ".join(APOSTROPHES.get(word, word) for word in words if word not in ARTICLES)


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str = "ptb") -> np.ndarray:
    """CIDEr-D of each caption; their mean is that of the corpus: equal to pycocoevalcap 1.2.

    n-grams of 1 to 4 tokens, weighted by their frequency and by log(N / number of examples whose references have
    them); the clipped cosine of caption and reference, times a Gaussian penalty on their difference in length (sigma
    6; the length is pycocoevalcap's, a count of bigrams); the mean over n and over references; times 10.  So a score
    lies in [0, 10], and a corpus at 1.0 is what tables in per cent call 100.  The tokens are one of:

    `ptb`: see `ptb_tokens`: scores can be compared with published CIDEr.
    `whitespace`: split at white space and nothing else; case and punctuation stay ("Dog" and "dog." are two words).
    This is what the Narrow Gate authors did, known from their released code, which hands raw strings to this same
    formula.  It also has a second back-end (CIDEr without clipping and penalty); which of the two is in the paper's
    table is not known.

    The weights come from the references given, so scores of different sample sets cannot be compared.  An interval
    that resamples scores keeps the weights of the full set.

    Args:
        candidates: (N,) generated captions, without the prompt; an empty one scores 0.
        references: (N,) lists of reference captions.
        tokenizer: 'ptb' or 'whitespace'.

    Returns:
        (N,) float64; `statistics.bootstrap_mean` gives their mean and its interval.

    Raises:
        BadParameter: references that are no list of texts, or an empty one.
        TooFewPoints: all examples have the same references, or there is one: every weight would be log(1) = 0.

    Source: Vedantam et al. 2015 (CIDEr and CIDEr-D).
    """
    _check_references(references)
    tokens = TOKENIZERS[tokenizer]
    counts = [[_n_grams(tokens(text)) for text in group] for group in references]
    if len({frozenset(map(tokens, group)) for group in references}) < 2:
        raise TooFewPoints(f"All {len(references)} examples have the same references: every weight of CIDEr is zero.")
    n_examples_with = Counter(gram for group in counts for gram in {gram for texts in group for gram in texts})
    weight = lambda gram: np.log(len(references)) - np.log(max(1, n_examples_with[gram]))

    def vector(grams: Counter) -> tuple[dict, np.ndarray, int]:
        weighted = {gram: count * weight(gram) for gram, count in grams.items()}
        norms = [sum(w**2 for gram, w in weighted.items() if len(gram) == n) ** 0.5 for n in range(1, 5)]
        return weighted, np.array(norms), sum(count for gram, count in grams.items() if len(gram) == 2)

    def score(candidate: Counter, group: Sequence[Counter]) -> float:
        ours, our_norms, our_length = vector(candidate)
        alike = np.zeros(4)
        for reference in group:
            theirs, their_norms, their_length = vector(reference)
            shared = np.zeros(4)
            for gram in ours.keys() & theirs.keys():
                shared[len(gram) - 1] += min(ours[gram], theirs[gram]) * theirs[gram]
            norms = our_norms * their_norms
            cosine = np.divide(shared, norms, out=shared, where=norms > 0)
            alike += cosine * np.exp(-((our_length - their_length) ** 2) / (2 * 6**2))
        return 10 * alike.mean() / len(group)

    pairs = zip(candidates, counts, strict=True)
    return np.array([score(_n_grams(tokens(candidate)), group) for candidate, group in pairs])


def _n_grams(text: str) -> Counter:
    """How often each run of one to four tokens is in a text whose tokens are joined by spaces."""
    words = text.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


PTB = re.compile(
    rf"""https?://\S+ | \w+@\w[\w.]*\w | [@#][a-z]\w*
    | 't(?=is\b|was\b) | y'(?=all\b) | can(?=not\b) | gon(?=na\b) | wan(?=na\b) | got(?=ta\b) | (?:lem|gim)(?=me\b)
    | (?<=\bcan)not\b | (?<=\b(?:gon|wan))na\b | (?<=\bgot)ta\b | (?<=\b(?:lem|gim))me\b
    | '(?:s|d|m|ll|re|ve)\b | n't\b | \w+?(?=n't\b)
    | 'n'(?!\w) | '(?:em|cause|til)\b | '\d\ds\b | \bol'(?!\w)
    | (?:\b[a-z]\.)+(?!\w) | ph\.d\.? | (?:{"|".join(WORDS["abbreviations"].split())})\.(?!\w)
    | (?:{"|".join(WORDS["numbered"].split())})\.(?=\s\d)
    | [-+]?\.?\d+(?:[.,:/-]\d+)*(?=[ap]m\b) | [-+]?\.?\d+(?:[.,:/-]\d+)*(?!\w|[-/]\w)
    | us\$ | c\+\+ | c\# | [^\W_](?:[\w&]|[-/._](?=\w)|'(?=\w)(?!(?:s|d|m|ll|re|ve)\b))*
    | [!?]{{2,}} | [$%&\#@*+=<>^|~°©®™\\/()\[\]{{}}]""",
    re.VERBOSE,
)
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
ASCII = str.maketrans({"’": "'", "‘": "'", "½": "1/2", "¼": "1/4", "€": "$", "£": "#"} | dict.fromkeys('—–“”"`', " "))


def ptb_tokens(text: str) -> str:
    """A text's Penn Treebank tokens, joined by spaces: lower case, punctuation dropped.

    One regular expression in place of the Java program that pycocoevalcap runs (Stanford CoreNLP 3.4.1).  Their tokens
    are equal in every caption of this book, in 220 captions with odd marks (tests/golden/cider.json), and in all but
    12 of 30,000 definitions and example sentences of WordNet; emoticons, telephone numbers and runs such as "f/2.8"
    come out otherwise.  Line breaks count as spaces.
    """
    tokens = PTB.findall(" ".join(text.lower().translate(ASCII).split()))
    return " ".join(BRACKETS.get(token, token) for token in tokens)


TOKENIZERS = {"ptb": ptb_tokens, "whitespace": lambda text: " ".join(text.split())}


def _check_references(references: Sequence[Sequence[str]]) -> None:
    """Raise BadParameter for what would be compared letter by letter, or not at all."""
    for index, people in enumerate(references):
        if isinstance(people, str) or not len(people):
            raise BadParameter(f"The references of example {index} must be a list of one text or more: {people!r:.40}.")
