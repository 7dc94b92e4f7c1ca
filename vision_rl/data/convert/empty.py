"""How many rows without anything to find a grounding set keeps.

"No finding" is right for 71 % of VinDr-CXR's training pictures and 78 % of RSNA's: a policy that says nothing else starts with
that reward, and may end there.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator

from vision_rl.data.convert.records import Record
from vision_rl.errors import UserError

MANY = 0.5


def with_empty(rows: Iterable[Record], rule: str) -> Iterator[Record]:
    """The rows, those without boxes kept ("keep"), left out ("drop") or drawn down to a share of all ("share=0.1").

    Rows of other tasks pass. Says on stderr how much a constant refusal earns where that is more than half. Raises
    `UserError` for another rule.
    """
    name, _, share = rule.partition("=")
    if rule not in ("keep", "drop"):
        try:
            most = float(share)
        except ValueError:
            most = -1.0
        if name != "share" or not 0 <= most < 1:
            raise UserError(f"--empty {rule} is neither keep, drop nor a share of all rows such as share=0.1")
    kept = list(rows) if name == "share" else rows
    leave_out: set[int] = set()
    if isinstance(kept, list):
        empty = [number for number, row in enumerate(kept) if _is_empty(row)]
        allowed = round(most / (1 - most) * (len(kept) - len(empty)))
        leave_out = set(random.Random(0).sample(empty, max(0, len(empty) - allowed)))
    written = without = 0
    for number, row in enumerate(kept):
        if number in leave_out or (rule == "drop" and _is_empty(row)):
            continue
        written, without = written + 1, without + _is_empty(row)
        yield row
    if without > MANY * written:
        print(
            f"note: {without} of {written} rows have nothing to find: a model that always says so earns "
            f"{without / written:.2f}; --empty share=0.1 or drop keeps fewer of them for training",
            file=sys.stderr,
        )


def _is_empty(row: Record) -> bool:
    return row["task"] == "grounding" and not row["boxes"]
