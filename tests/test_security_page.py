"""Every probe that docs/security.md names is a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "security.md"


def test_the_doors_are_tried_by_tests_that_exist() -> None:
    section = PAGE.read_text(encoding="utf-8").split("## Doors", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    for above, row in zip(["", *rows], rows, strict=False):
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", above if row.endswith("| the same |") else row)
        assert named, row
        for file, name in named:
            tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, row
