"""Assign rows to ranks and updates: equal counts, even work, and a group's rows together where possible."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from verl.utils.seqlen_balancing import calculate_workload


def padded(rows: int, shares: int, most: int) -> int:
    """The least number of rows, `rows` or more, of which each share is divided into equal micro-batches of `most` rows, or of
    at least half as many. shares: ranks x updates."""
    each = -(-rows // shares)
    while each > most and all(each % size for size in range(-(-most // 2), most + 1)):
        each += 1
    return each * shares


def groups_by_rank(uids: Sequence[str], lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """The rows of each rank, equally many, those of a group one after the other.

    The groups with the most work come first, each to the rank that has the least so far and room for it. A group for which
    no rank has room any more is divided. uids: each row's group. lengths: each row's tokens.
    """
    room = len(uids) // ranks
    work = calculate_workload(torch.tensor(lengths)).tolist()
    members: dict[str, list[int]] = {}
    for row, uid in enumerate(uids):
        members.setdefault(uid, []).append(row)
    if ranks == 1:
        return [[row for rows in members.values() for row in rows]]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for rows in sorted(members.values(), key=lambda rows: -sum(work[row] for row in rows)):
        fitting = [rank for rank in range(ranks) if len(shares[rank]) + len(rows) <= room]
        while rows:
            open_ranks = fitting or [rank for rank in range(ranks) if len(shares[rank]) < room]
            rank = min(open_ranks, key=loads.__getitem__)
            part, rows = rows[: room - len(shares[rank])], rows[room - len(shares[rank]) :]
            shares[rank] += part
            loads[rank] += sum(work[row] for row in part)
    return shares
