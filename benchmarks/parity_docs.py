"""Write docs/models.md from the last parity matrix and the model table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vision_rl.models.family import ModelFamily
from vision_rl.models.table import LOW_RESULTS, PARITY_RESULTS, TABLE
from vision_rl.preflight.low_precision import ALL
from vision_rl.preflight.parity import LIMIT

RESULTS = Path(__file__).with_name("results")
DOCS = Path(__file__).resolve().parents[1] / "docs"
MARKS = {"equal": "🟩", "differs": "🟥", "refused": "🟧", "": "⬜"}

HOW = f"""\
A tiny model of each family, with random weights, is built from the family's own config class, served by vLLM in float32 with its
caches on, and asked through the chat path. The trainer's code recomputes the log-probability of every reply token. A number is
the largest difference in nats; {LIMIT:g} is the limit. Both sides also have to agree on the number of picture tokens, and
"ids" says whether transformers' own processor makes the same prompt of the conversation.
Rerun it with `python benchmarks/parity.py`, or for your own model with `python train_agent.py --doctor --model PATH`.

"Trained: with evidence" in the table below, and a model type that it does not know but transformers does: `--doctor` asks the
same questions of your own checkpoint, in the precision of your preset, and keeps the answers beside the model cache
(`$HF_HOME/vision_rl_evidence`). Where all cells are equal, a run trains it; other weights' names, another configuration or
another version of vLLM, transformers, verl or torch need a new measurement. In bfloat16 the model's own rounding is the
yardstick."""

LEGEND = "equal to the limit", "differs: not trained", "refused by server or trainer, with the reason below"


_REFUSED = {row.name: row.refused or row.unproven for row in TABLE}


MODES = """\
The cells above ask the trainer's forward alone. Here the engine of a run, sharded by FSDP2, recomputes the same replies in its
modes; the LoRA adapter has random weights, and for the frozen tower the server took an update of everything else.
Rerun it with `python benchmarks/parity.py --modes`."""

LOW = """\
In bfloat16 trainer and server differ by rounding, so that a limit on their difference alone proves nothing. Three distances are
measured over eight replies to each question: the server from the truth, which is the trainer's code in float32 with the same
weights; the trainer in bfloat16 from the truth; and one from the other, whose mean is the number here. Each has to be within 1.5
times the yardstick in mean and, over all cells, in the 99th percentile. The yardstick of a family that float32 proves is its own
trainer's distance from the truth; of one that it does not, the control family's distances: Qwen3-VL's, and Qwen3-VL-MoE's for a
mixture of experts, in which rounding now and then takes another expert. A trainer with
black pictures, other weights or shifted positions has to be beyond that: the number there is what it was off by.
A family whose kernels take bfloat16 only is trained by this proof. Three times the worst cell of a family is the limit of the
mismatch in every run whose server computes in bfloat16 (`app.integrity.logprob_mismatch_mean`): 0.05 at least, because random
weights round less than trained ones may, and 0.1 where nobody has measured it.
Rerun it with `python benchmarks/parity.py --precision bfloat16`."""

SGLANG = """\
The cells above, asked of this project's SGLang server over HTTP, as in a run. A family that SGLang does not serve here is refused
before it is started; it takes pictures only, so that there is no video.
Rerun it with `make sglang` and `python benchmarks/parity.py --engine sglang`."""

Matrix = dict[str, dict[str, Mapping[str, Any]]]


class Section(NamedTuple):
    """One of the smaller matrices: what it is, how it was made, its results by family and column, and when."""

    title: str
    text: str
    matrix: Matrix
    columns: list[str]
    measured: str


def write_docs(folder: Path = DOCS) -> Path:
    """Write the page; returns its path."""
    matrix, names, when = _read(PARITY_RESULTS)
    others = [
        Section(title, text, *_read(path))
        for title, text, path in (
            ("The proof in bfloat16", LOW, LOW_RESULTS),
            ("Modes of the engine", MODES, RESULTS / "parity_modes.json"),
            ("SGLang as the server", SGLANG, RESULTS / "parity_sglang.json"),
        )
    ]
    text = _markdown(matrix, names, when, [section for section in others if section.matrix])
    (folder / "models.md").write_text(text, encoding="utf-8")
    return folder / "models.md"


def _read(path: Path) -> tuple[Matrix, list[str], str]:
    """(results by family and cell, names of the cells, when and with what they were measured); empty without the file."""
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    matrix: Matrix = {}
    for row in rows:
        matrix.setdefault(row["family"], {})[row["cell"]] = row
    names = list(dict.fromkeys(row["cell"] for row in rows))
    return matrix, names, "; ".join(sorted({f"{row['date']}, {row['versions']}" for row in rows}))


def _shown(cell: Mapping[str, Any] | None) -> str:
    """A cell's number, or what kept it from having one."""
    if cell is None:
        return ""
    number = cell["mean" if cell.get("precision") == "bfloat16" else "max"]
    return cell["verdict"] if number is None else f"{number:.0e}"


def _verdict(cell: Mapping[str, Any] | None) -> str:
    return cell["verdict"] if cell else ""


def _ids(cells: Mapping[str, Mapping[str, Any]]) -> str:
    known = [cell["prompt_equal"] for cell in cells.values() if cell["prompt_equal"] is not None]
    return f"{sum(known)}/{len(known)}"


def _markdown(matrix: Matrix, names: Sequence[str], when: str, others: Sequence[Section]) -> str:
    legend = ", ".join(f"{MARKS[verdict]} {text}" for verdict, text in zip(MARKS, LEGEND, strict=False))
    lines = ["# Models, and whether trainer and server agree on them", "", f"Measured {when}.", "", HOW, "", legend, ""]
    lines += ["Written by `python benchmarks/parity.py --write-docs`.", ""]
    lines += ["| family | " + " | ".join(names) + " | ids |", "|---" * (len(names) + 2) + "|"]
    lines += [f"{_cells(family, cells, names)} {_ids(cells)} |" for family, cells in matrix.items()]
    for title, text, other, columns, measured in others:
        lines += ["", f"## {title}", "", f"Measured {measured}.", "", text, ""]
        lines += ["| family | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        lines += [_cells(family, cells, columns) for family, cells in other.items()]
        if distances := {family: cells[ALL]["distances"] for family, cells in other.items() if ALL in cells}:
            lines += ["", "Mean and 99th percentile in nats of the three distances over all cells:", ""]
            lines += ["| family | server from float32 | trainer from float32 | trainer from server |", "|---" * 4 + "|"]
            lines += [f"| {family} | {' | '.join(map(_distance, d.values()))} |" for family, d in distances.items()]
    lines += ["", "## Cells that are not equal", "", "| family | cell | reason |", "|---|---|---|"]
    reasons = _reasons(matrix, *(section.matrix for section in others))
    lines += [f"| {family} | {cells} | {reason} |" for (family, reason), cells in reasons.items()]
    lines += ["", "## The table", ""]
    lines += ["| family | example | vLLM | SGLang | coordinates | positions | tokens per picture | memory | trained |"]
    lines += ["|---" * 9 + "|", *(_table_row(row) for row in TABLE)]
    lines += ["", *(f"- **{row.name}**: {row.remarks}" for row in TABLE if row.remarks), ""]
    return "\n".join(lines)


def _cells(family: str, cells: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    shown = [f"{MARKS[_verdict(cells.get(name))]} {_shown(cells.get(name))}" for name in names]
    return f"| {family} | " + " | ".join(shown) + " |"


def _distance(figures: Mapping[str, float]) -> str:
    return f"{figures['mean']:.4f}, {figures['p99']:.4f}"


def _table_row(row: ModelFamily) -> str:
    served = " | ".join("yes" if knows else "no" for knows in (row.vllm, row.sglang))
    rest = (row.coordinates, row.positions, row.tokens_per_image, row.memory, trained(row))
    return f"| {row.name} | `{row.examples[0]}` | {served} | " + " | ".join(rest) + " |"


def trained(row: ModelFamily) -> str:
    """Whether a family is trained: by the matrix, by evidence from a user's own machine, or not."""
    return "yes" if row.trained else "no" if row.refused else "with evidence"


def _reasons(*matrices: Matrix) -> dict[tuple[str, str], str]:
    """(family, reason) -> the cells that have it."""
    found: dict[tuple[str, str], list[str]] = {}
    for family, cells in (row for matrix in matrices for row in matrix.items()):
        for name, cell in cells.items():
            if cell["verdict"] != "equal":
                reason = cell["reason"] or _REFUSED.get(family) or "not explained"
                found.setdefault((family, reason.replace("|", "\\|")), []).append(name)
    return {key: ", ".join(names) for key, names in found.items()}
