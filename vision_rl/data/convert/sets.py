"""All sets that `data_utils.py convert NAME` reads, and their table in `docs/data.md`."""

from __future__ import annotations

from vision_rl.data.convert.data_set import DataSet
from vision_rl.data.convert.grounding_sets import GROUNDING_SETS
from vision_rl.data.convert.question_sets import QUESTION_SETS
from vision_rl.data.convert.radiology_sets import RADIOLOGY_SETS
from vision_rl.errors import UserError, meant

SETS: dict[str, DataSet] = {item.name: item for item in (*QUESTION_SETS, *GROUNDING_SETS, *RADIOLOGY_SETS)}


def get_set(name: str) -> DataSet:
    """The declaration of a set; `UserError` with a suggestion for a name that there is not."""
    if name not in SETS:
        hint = meant(name.lower(), SETS) or f"; choose one of {', '.join(SETS)}"
        raise UserError(f"no set is called {name!r}{hint} (data_utils.py sets describes them)")
    return SETS[name]


COLUMNS = ("set", "rows", "metric", "command", "layout", "from", "licence, account")


def set_rows() -> list[dict[str, str]]:
    """The sets by `COLUMNS`: name, rows, metric, command, layout, where it is from, licence and account."""
    found = []
    for name, item in SETS.items():
        about = item.about
        terms = about.licence + (f"; needs an account: {about.account}" if about.account else "")
        options = about.options or f"--input data/{name}"
        command = f"data_utils.py convert {name} {options} --output data/{name}.parquet"
        cells = (
            *(name, about.rows, item.metric or "the run's", command),
            *(f"{about.title}: {about.layout}", about.get, terms),
        )
        found.append(dict(zip(COLUMNS, map(str, cells), strict=True)))
    return found


def sets_table() -> str:
    """The sets as a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in set_rows():
        shown = row | {"set": f"`{row['set']}`", "command": f"`{row['command']}`"}
        lines.append(f"| {' | '.join(shown.values())} |")
    return "\n".join(lines)
