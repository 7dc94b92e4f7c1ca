"""The table of alarms in docs/troubleshooting.md, made from `vision_rl/run/collapse.py`: `python -m tests.collapse_page`."""

from __future__ import annotations

import re
from pathlib import Path

from vision_rl.run.collapse import REMEDIES

PAGE = Path(__file__).parent.parent / "docs" / "troubleshooting.md"
_TABLE = re.compile(r"^\| alarm \|.*?(?=\n\n)", re.M | re.S)


def page() -> str:
    """The page with the table as it must be."""
    rows = [f"| {name} | {each.cause} | {'; '.join(each.cures)} |" for name, each in REMEDIES.items()]
    table = "\n".join(["| alarm | usual cause | do, in this order |", "|---|---|---|", *rows])
    return _TABLE.sub(lambda _: table, PAGE.read_text(encoding="utf-8"), count=1)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
