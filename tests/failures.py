"""The tables of reasons in docs/troubleshooting.md, from `vision_rl.run.failures`.

python -m tests.failures         # writes them into the page
"""

from __future__ import annotations

import re
from pathlib import Path

from vision_rl.run.failures import GroupDrop, NotTrained, RolloutFailure, SampleDrop

PAGE = Path(__file__).resolve().parents[1] / "docs" / "troubleshooting.md"
BEGIN, END = "<!-- begin: python -m tests.failures -->", "<!-- end -->"
COLUMNS = {RolloutFailure: "`failure`", SampleDrop: "`dropped`, a sample", GroupDrop: "`dropped`, a group"}


def table(kind: type[NotTrained]) -> str:
    """One kind of reasons as a Markdown table."""
    head = f"| {COLUMNS[kind]} | what happened | usual cause | what to do |\n|---|---|---|---|\n"
    return head + "\n".join(f"| `{one.value}` | {one.happened} | {one.cause} | {one.cure} |" for one in kind)


def page() -> str:
    """docs/troubleshooting.md with the tables as they are to be."""
    tables = "\n\n".join(map(table, COLUMNS))
    text = PAGE.read_text(encoding="utf-8")
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{tables}\n{END}", text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
