"""The tree of what prompts begin with: cut in pieces, they share nodes as long as their pieces are the same.

    nodes = branches(0, 0, encoded)         # right behind the root: the header of each subject
    branches(1, nodes[1].depth, nodes[1].prompts)       # behind the second of them: the first shots

`extraction.walk` reads each node once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt in pieces: what may be shared, up to each empty line, and last its question."""

    index: int
    pieces: tuple[tuple[int, ...], ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All of them."""
        return sum(self.pieces, ())


@dataclass(frozen=True)
class Node:
    """Tokens that some prompts share, or the rest of one: read behind a row of what stands before them.

    depth: pieces of each prompt that are read with it.
    """

    row: int
    ids: tuple[int, ...]
    depth: int
    prompts: list[Encoded]


def branches(row: int, depth: int, prompts: Sequence[Encoded]) -> list[Node]:
    """How prompts that share `depth` pieces, those of a row, go on: each alone, or some with pieces that they share.

    A question is never shared, even if it is asked twice.
    """
    groups: dict[Any, list[Encoded]] = {}
    for prompt in prompts:
        is_last = depth + 1 == len(prompt.pieces)
        groups.setdefault(prompt.index if is_last else prompt.pieces[depth], []).append(prompt)
    nodes = []
    for group in groups.values():
        # One prompt goes to its end; of several all goes into one node that they have in common.
        most = min(len(prompt.pieces) for prompt in group) - (len(group) > 1)
        alike = (end for end in range(depth + 1, most) if len({prompt.pieces[end] for prompt in group}) > 1)
        end = next(alike, most)
        nodes.append(Node(row, sum(group[0].pieces[depth:end], ()), end, group))
    return nodes


def batches(group: list[Node], before: int, batch_tokens: int) -> list[list[Node]]:
    """Rests of like length together, as many at once as the token bound allows, at least one.  before: tokens."""
    batched: list[list[Node]] = []
    for node in sorted(group, key=lambda node: (len(node.ids), node.prompts[0].index)):
        if not batched or (len(batched[-1]) + 1) * (before + len(node.ids)) > batch_tokens:
            batched.append([])
        batched[-1].append(node)
    return batched
