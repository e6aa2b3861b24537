"""The tree of what prompts begin with: cut in pieces, they share nodes as long as their pieces are the same.

    nodes = branches(0, Node(0, (), 0, encoded))        # right behind the root: the header of each subject
    branches(1, nodes[1])                               # behind the second of them: the first shots

`extraction.walk` reads each node once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    ids: of a node that was read, those that were left over.  depth: pieces of each prompt up to its end.
    """

    row: int
    ids: tuple[int, ...]
    depth: int
    prompts: list[Encoded]


def branches(row: int, node: Node) -> list[Node]:
    """How the prompts of a node that stands in this row go on: each alone, or some with pieces that they share.

    A question is never shared, even if it is asked twice.  What was left over of the node comes first.
    """
    groups: dict[Any, list[Encoded]] = {}
    for prompt in node.prompts:
        is_last = node.depth + 1 == len(prompt.pieces)
        groups.setdefault(prompt.index if is_last else prompt.pieces[node.depth], []).append(prompt)
    nodes = []
    for group in groups.values():
        # One prompt goes to its end; of several all goes into one node that they have in common.
        most = min(len(prompt.pieces) for prompt in group) - (len(group) > 1)
        alike = (end for end in range(node.depth + 1, most) if len({prompt.pieces[end] for prompt in group}) > 1)
        end = next(alike, most)
        nodes.append(Node(row, sum(group[0].pieces[node.depth : end], node.ids), end, group))
    return nodes


def grouped(nodes: Sequence[Node], fits: Callable[[list[Node], Node], bool]) -> list[list[Node]]:
    """Nodes by their length; another group begins with each that does not fit the one before."""
    groups: list[list[Node]] = []
    for node in sorted(nodes, key=lambda node: (len(node.ids), node.prompts[0].index)):
        if not groups or not fits(groups[-1], node):
            groups.append([])
        groups[-1].append(node)
    return groups


def batches(nodes: Sequence[Node], before: int, batch_tokens: int) -> list[list[Node]]:
    """Nodes of like length together, as many at once as the token bound allows, at least one.  before: tokens."""
    return grouped(nodes, lambda batch, node: (len(batch) + 1) * (before + len(node.ids)) <= batch_tokens)
