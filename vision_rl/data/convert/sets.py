"""Every set that `data_utils.py convert NAME` reads, and the table of them that `docs/data.md` has."""

from __future__ import annotations

import difflib

from vision_rl.data.convert.data_set import DataSet
from vision_rl.data.convert.grounding_sets import GROUNDING_SETS
from vision_rl.data.convert.question_sets import QUESTION_SETS
from vision_rl.data.convert.radiology_sets import RADIOLOGY_SETS
from vision_rl.errors import UserError

SETS: dict[str, DataSet] = {**QUESTION_SETS, **GROUNDING_SETS, **RADIOLOGY_SETS}


def get_set(name: str) -> DataSet:
    """The declaration of a set; `UserError` with a suggestion for a name that there is not."""
    if name not in SETS:
        close = difflib.get_close_matches(name.lower(), SETS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(SETS)}"
        raise UserError(f"no set is called {name!r}; {hint} (data_utils.py sets describes them)")
    return SETS[name]


def sets_table() -> str:
    """The sets as a Markdown table: name, rows, metric, command, layout, where it is from, licence and account."""
    lines = ["| set | rows | metric | command | layout | from | licence, account |", "|---|---|---|---|---|---|---|"]
    for name, item in SETS.items():
        terms = item.licence + (f"; needs an account: {item.account}" if item.account else "")
        metric = item.metric or "the run's"
        options = item.options or f"--input data/{name}"
        command = f"`data_utils.py convert {name} {options} --output data/{name}.parquet`"
        layout = f"{item.title}: {item.layout}"
        lines.append(f"| `{name}` | {item.rows} | {metric} | {command} | {layout} | {item.get} | {terms} |")
    return "\n".join(lines)
