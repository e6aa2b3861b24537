"""What the minis learn from: scenes with all texts about them, packed so that an image is read once.

    data = Lessons(tokenizer, seed=0)
    packed = data.batch(step=7, size=32, prefix="image")

A row is one prefix (an image, or a caption) and several texts about the scene behind it.  Each text sees the prefix and
itself, not the others, and its positions count on from the prefix: to the model it is a prompt of its own.  The image
tokens, most of a prompt, are computed once for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from peaks_and_gates.cache import digest
from peaks_and_gates.gate.tokens import KINDS, TokenMap
from training.scenes import words as scene_words
from training.scenes.scene import MOST_THINGS, Scene, label, sample

from .image_tokenizer import N_IMAGE, side_of

N_QUESTIONS = 12  # of a scene, in one row


@dataclass(frozen=True)
class Packed:
    """A batch of B rows of T tokens for one training step.

    ids: (B, T) int64; image tokens hold the placeholder.  positions: (B, T) int64.  reads: (B, T, T) bool, whether a
    token (row) may read another (column).  rows, places: (M,) int64, where the next token is predicted.  targets: (M,)
    int64, what it is.  scenes: the B scenes.  tokens: what every token is.
    """

    ids: Tensor
    positions: Tensor
    reads: Tensor
    rows: Tensor
    places: Tensor
    targets: Tensor
    scenes: list[Scene]
    tokens: TokenMap


class Lessons:
    """Texts about training scenes, the same for the same seed and step.

    tokenizer: of the minis.  n_scenes: how many different scenes there are.  Steps go through all of them, in an order
    drawn anew for each round; what is asked about a scene is drawn anew at each visit.  captions: "long", sentences
    with everything in the scene, or "short", its label.  direct: share of the captions that follow the prefix at once,
    as in a web page, with no request before them: the end-of-image token must then predict their first word.
    n_image: tokens of an image; `side` are the pixels a side of its picture.  most_things: in a scene.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        n_scenes: int,
        seed: int,
        captions: str = "long",
        direct: float = 0.0,
        n_image: int = N_IMAGE,
        most_things: int = MOST_THINGS,
    ):
        self.tokenizer, self.n_scenes, self.seed = tokenizer, n_scenes, seed
        self.captions, self.direct = captions, direct
        self.n_image, self.side, self.most_things = n_image, side_of(n_image), most_things
        ids = lambda name: tokenizer.convert_tokens_to_ids(name)
        self.words = {word: ids(word) for word in scene_words.vocabulary()}
        self.start, self.stop = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.image, self.begin, self.end = ids("<image>"), ids("<begin>"), ids("<end>")

    @cached_property
    def pool(self) -> list[Scene]:
        """The training scenes, the same for every seed."""
        return sample("train", self.n_scenes, 0, self.most_things)

    def chosen(self, step: int, size: int) -> list[int]:
        """Which scenes a step shows."""
        n_steps = len(self.pool) // size
        round_, place = divmod(step, n_steps)
        order = np.random.default_rng([self.seed, round_]).permutation(len(self.pool))
        return order[place * size : (place + 1) * size].tolist()

    def text(self, text: str) -> list[int]:
        """The ids of a text's words."""
        return [self.words[word] for word in scene_words.words(text)]

    def block(self, marked: bool) -> tuple[list[int], list[str]]:
        """Ids and kinds of an image.  marked: between a begin and an end token."""
        ids, kinds = [self.image] * self.n_image, ["image"] * self.n_image
        return ([self.begin, *ids, self.end], ["begin", *kinds, "end"]) if marked else (ids, kinds)

    def caption(self, scene: Scene, rng: np.random.Generator) -> str:
        """One of the ways to tell what a scene shows."""
        return _one(scene_words.captions(scene), rng) if self.captions == "long" else label(scene)

    def texts(self, scene: Scene, rng: np.random.Generator) -> list[tuple[list[int], list[int]]]:
        """Prompts about a scene and how each goes on: questions of all kinds, then of any; its class; a caption."""
        possible = scene_words.questions(scene)
        kinds: Counter[str] = Counter()
        questions = []
        for i in rng.permutation(len(possible)):
            questions.append((kinds[possible[i].kind], possible[i]))
            kinds[possible[i].kind] += 1
        questions.sort(key=lambda pair: pair[0])  # one of every kind, then a second of each that has one, and so on
        texts = [(question.text, question.answer) for _, question in questions[:N_QUESTIONS]]
        texts += [(scene_words.CLASS_QUESTION, label(scene))]
        texts += [("" if rng.random() < self.direct else scene_words.REQUEST, self.caption(scene, rng))]
        return [(self.text(prompt), [*self.text(answer), self.stop]) for prompt, answer in texts]

    def batch(self, step: int, size: int, prefix: str) -> Packed:
        """The batch of a step.

        prefix: what a row begins with: "image" (no marks around it), "marked image", "caption" (the text alone); or
        "caption, image": a caption and the marked image it tells of, with nothing after it.
        """
        rng = np.random.default_rng(int(digest([self.seed, step, prefix])[:16], 16))
        scenes = [self.pool[i] for i in self.chosen(step, size)]
        rows = []
        for scene in scenes:
            caption = self.text(self.caption(scene, rng))
            if prefix == "caption":
                ids, kinds = [self.start, *caption], ["text"] * (1 + len(caption))
            else:
                block, kinds = self.block(prefix != "image")
                before = caption if prefix == "caption, image" else []
                ids, kinds = [self.start, *before, *block], ["text"] * (1 + len(before)) + kinds
            rows.append((ids, kinds, [] if prefix == "caption, image" else self.texts(scene, rng)))
        return pack(rows, scenes, learns_prefix=prefix == "caption")


def _one(values: Sequence[str], rng: np.random.Generator) -> str:
    return values[rng.integers(len(values))]


def pack(
    rows: Sequence[tuple[list[int], list[str], list[tuple[list[int], list[int]]]]],
    scenes: list[Scene],
    learns_prefix: bool,
) -> Packed:
    """Rows of (ids of the prefix, their kinds, texts as prompt and continuation) as one padded batch.

    What is predicted: every token of the continuations, and with `learns_prefix` those of the prefix.
    """
    lengths = [len(ids) + sum(len(prompt) + len(rest) for prompt, rest in texts) for ids, _, texts in rows]
    n, width = len(rows), max(lengths)
    ids, positions = torch.zeros(n, width, dtype=torch.long), torch.zeros(n, width, dtype=torch.long)
    part = torch.full((n, width), -1)  # 0: prefix, 1 ...: the texts, -1: padding
    kinds = torch.full((n, width), KINDS.index("padding"), dtype=torch.uint8)
    predicted: list[tuple[int, int, int]] = []
    for row, (prefix, prefix_kinds, texts) in enumerate(rows):
        at = len(prefix)
        ids[row, :at], positions[row, :at], part[row, :at] = torch.tensor(prefix), torch.arange(at), 0
        kinds[row, :at] = torch.tensor([KINDS.index(kind) for kind in prefix_kinds], dtype=torch.uint8)
        if learns_prefix:
            predicted += [(row, place, token) for place, token in enumerate(prefix[1:])]
        for i, (prompt, rest) in enumerate(texts):
            text = prompt + rest
            here = slice(at, at + len(text))
            ids[row, here], part[row, here] = torch.tensor(text), i + 1
            positions[row, here] = len(prefix) + torch.arange(len(text))
            kinds[row, here] = KINDS.index("text")
            first = at + len(prompt) - 1 if prompt else len(prefix) - 1  # what predicts the first token
            predicted += [(row, at + len(prompt) - 1 + j if j else first, token) for j, token in enumerate(rest)]
            at += len(text)
    earlier = torch.ones(width, width, dtype=torch.bool).tril()
    alike = (part[:, :, None] == part[:, None, :]) | (part == 0)[:, None, :]
    where, places, targets = (
        (torch.tensor(values) for values in zip(*predicted, strict=True))
        if predicted
        else (torch.zeros(3, 0, dtype=torch.long))
    )
    return Packed(ids, positions, alike & earlier, where, places, targets, scenes, TokenMap(kinds))
