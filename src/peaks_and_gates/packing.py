"""Prompts in batches: those that begin alike together, and short questions side by side in one row.

A group shares its prefixes' forward passes; a row holds several questions of one prefix, which do not see each other.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt, split where its shared beginning ends."""

    index: int
    prefix: tuple[int, ...]
    rest: tuple[int, ...]


def groups(encoded: list[Encoded], batch_tokens: int) -> list[tuple[list[tuple[int, ...]], list[Encoded]]]:
    """Prompts by shared prefix, prefixes of equal length together: one forward pass per group, no padding.

    A prefix that only one prompt has is not shared: it stays part of that prompt.
    """
    by_prefix: dict[tuple[int, ...], list[Encoded]] = defaultdict(list)
    for item in encoded:
        by_prefix[item.prefix].append(item)
    by_length: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    alone = []
    for prefix, items in by_prefix.items():
        if len(items) == 1 or not prefix:
            alone += [Encoded(item.index, (), item.prefix + item.rest) for item in items]
        else:
            by_length[len(prefix)].append(prefix)
    found = [([()], alone)] if alone else []
    for length, prefixes in by_length.items():
        at_once = max(1, batch_tokens // length)
        for start in range(0, len(prefixes), at_once):
            chunk = prefixes[start : start + at_once]
            found.append((chunk, [item for prefix in chunk for item in by_prefix[prefix]]))
    return found


def packed(group: list[Encoded], prefix_length: int) -> list[list[Encoded]]:
    """Rows of prompts that share a prefix, the longest first wherever there is room; most rows are filled well.

    A row holds its longest prompt or half a prefix, whichever is longer. More would need fewer copies of the prefix's
    keys, but attention looks at every pair of a row's tokens, those of different prompts, too.
    """
    width = max(prefix_length // 2, max(len(item.rest) for item in group))
    rows: list[list[Encoded]] = []
    with_room: dict[tuple[int, ...], list[tuple[int, list[Encoded]]]] = defaultdict(list)
    for item in sorted(group, key=lambda item: (-len(item.rest), item.index)):
        open_rows = with_room[item.prefix]
        fits = (i for i, (room, _) in enumerate(open_rows) if room >= len(item.rest))
        i = next(fits, len(open_rows))
        if i == len(open_rows):
            rows.append([])
            open_rows.append((width, rows[-1]))
        left, row = open_rows[i]
        row.append(item)
        open_rows[i] = (left - len(item.rest), row)
    return rows


def batches(rows: list[list[Encoded]], prefix_length: int, batch_tokens: int) -> list[list[list[Encoded]]]:
    """Rows of like length together, as many at once as the token bound allows; at least one."""
    found: list[list[list[Encoded]]] = []
    length = lambda row: sum(len(item.rest) for item in row)
    for row in sorted(rows, key=lambda row: (length(row), row[0].index)):
        if found and (len(found[-1]) + 1) * (prefix_length + length(row)) <= batch_tokens:
            found[-1].append(row)
        else:
            found.append([row])
    return found
