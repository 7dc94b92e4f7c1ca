"""The page of an evaluation: figures, calibration, and the worst and best rows with their pictures."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from vision_rl.answers.boxes import Box
from vision_rl.answers.parsing import parse_answer
from vision_rl.errors import UserError
from vision_rl.evaluation import metrics
from vision_rl.evaluation import summary as texts
from vision_rl.evaluation.metrics import Figure, headline
from vision_rl.evaluation.results import IDENTITY, read_records, write_text
from vision_rl.media.images import image_size
from vision_rl.report.cards import Answer, Card, Turn, card_pictures, gold_text
from vision_rl.report.charts import COLOURS, Key, frame
from vision_rl.report.page import Cell, Drawing, Page, Table, Tile, render
from vision_rl.settings import AgentSettings
from vision_rl.tasks import get_task
from vision_rl.types import Record

REPORT = "report.html"
CASES = 12
"""Rows shown of either end."""
_OUTCOME_COLOURS = {"right": "#0a8f3c", "wrong place": "#e0a100", "wrong space": "#b0509e", "wrong format": "#c0392b"}


def write_report(directory: Path, summary: Mapping[str, Any], records: Sequence[Record]) -> Path:
    """Write `directory/report.html`; returns its path."""
    write_text(directory / REPORT, render(page_of(summary, records)))
    return directory / REPORT


def evaluation_page(directory: Path) -> Page:
    """The page of an evaluation that was made before. Raises `UserError` for a damaged or an unfinished one."""
    try:
        summary = json.loads((directory / texts.SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{directory} has {IDENTITY} and no whole {texts.SUMMARY}; evaluate again") from error
    return page_of(summary, list(read_records(directory).values()))


def page_of(summary: Mapping[str, Any], records: Sequence[Record]) -> Page:
    """The page of a summary and its rows."""
    task = str(summary["task"])
    worst, best = worst_and_best(task, records, CASES)
    settings = AgentSettings.read(summary["settings"])
    cards = [case_card(r, settings, end) for end, rows in (("worst", worst), ("best", best)) for r in rows]
    names = headline(task)
    failures = [f"{count} x {text}" for text, count in summary["failures"].items()]
    return Page(
        title=f"{task}: {summary['model']}",
        subtitle=f"on {Path(summary['data']).name}. {texts.coverage(summary)}",
        tiles=[Tile(name, *_shown(name, summary["metrics"][name])) for name in names],
        drawings=[drawing for drawing in (_outcomes(summary), _calibration(summary)) if drawing],
        tables=_tables(summary, names),
        cards=cards,
        selection=f"The {len(worst)} worst rows, then the {len(best)} best, the extremes first; among equally bad rows, "
        "those that were sure of themselves.",
        lists={"Requests": texts.usage_lines(summary), **({"Failed rows": failures} if failures else {})},
        settings={f"agent.{name}": str(value) for name, value in summary["settings"].items() if value is not None},
    )


def worst_and_best(task: str, records: Sequence[Record], count: int) -> tuple[list[Record], list[Record]]:
    """Up to `count` rows of either end, the extremes first, none in both.

    Of equally bad rows those that were sure of themselves come first, then the lower reward.
    """
    score = metrics.measures(task)[headline(task)[0]]

    def key(record: Record) -> tuple[float, ...]:
        parts = record["components"]
        return score(record), parts.get("iou", 0.0), -parts.get("confidence", 0.0), record["reward"], record["row"]

    ordered = sorted(metrics.scored(records), key=key)
    half = min(count, (len(ordered) + 1) // 2)
    return ordered[:half], ordered[half:][::-1][:count]


def case_card(record: Record, settings: AgentSettings, end: str) -> Card:
    """A row as the page shows it. end: "worst" or "best". A picture that is gone is said, not raised."""
    task = get_task(record["task"])
    with_boxes = task.truth == "boxes"
    true: list[Box] = [(box[0], box[1], box[2], box[3]) for box in record["boxes"]]
    boxes: list[Box] = []
    if drawing := task.part("drawing"):
        with contextlib.suppress(UserError):  # the picture is gone, which is said in its place
            boxes = drawing(record, settings, image_size(record["image_paths"][0]))
    facets = {"end": end, "source": record["source"], "outcome": metrics.outcome(record) if with_boxes else ""}
    reward = {"reward": record["reward"], **record["components"]}
    turns = tuple(map(Turn, record.get("replies") or [record["reply"]]))
    answer = Answer(1, turns, reward, boxes=tuple(boxes), facets=facets)
    paths = [record["episode"]] if record.get("episode") else record["image_paths"]
    pictures, problem = card_pictures(paths, true, [answer])
    if task.truth == "environment":
        gold = f"the environment's own: seed {record['meta'].get('seed')}"
        heading = f"{end}, row {record['row']}"
        return Card(record["id"], heading, record["question"], gold, (answer,), "", pictures, problem)
    answered = "" if with_boxes else f"; answered {parse_answer(record['reply'])[:200] or 'nothing'}"
    gold = gold_text(record["answers"], record["boxes"]) + answered
    return Card(record["id"], f"{end}, row {record['row']}", record["question"], gold, (answer,), "", pictures, problem)


def _tables(summary: Mapping[str, Any], names: Sequence[str]) -> list[Table]:
    rows: list[Any] = [
        [name, _cell(name, figure), texts.show_interval(name, figure), Cell(str(figure["n"]), figure["n"])]
        for name, figure in texts.all_figures(summary).items()
    ]
    found = [Table("Figures", ["measure", "value", "95 % interval", "rows"], rows)]
    for title, values in summary["breakdowns"].items():
        rows = []
        for value, figures in values.items():
            count = figures[names[0]]["n"]
            cells = [_cell(n, figures[n], texts.show_interval(n, figures[n])) for n in names]
            rows.append([value, *cells, Cell(str(count), count)])
        found.append(Table(f"By {title}", [title, *names, "rows"], rows))
    if sources := texts.source_rows(summary):
        rows = [
            [s, name, _cell(name, f, texts.show_interval(name, f)), Cell(str(f["n"]), f["n"])] for s, name, f in sources
        ]
        found.append(Table("Each source by its own metric", ["source", "metric", "value", "rows"], rows))
    if summary.get("tools"):
        shares = texts.tool_rows(summary["tools"])
        rows = [[name, Cell(f"{value:.2%}", value)] for name, value in shares]
        found.append(Table("Tools", ["measure", "share"], rows))
    if summary["calibration"]:
        rows = [[name, value] for name, value in summary["calibration"].items() if name not in ("bins", "n")]
        note = f"{summary['calibration']['n']} rows state a confidence."
        found.append(Table("Calibration", ["measure", "value"], rows, note))
    return found


def _shown(name: str, figure: Figure) -> tuple[str, str]:
    return texts.show(name, figure["value"]), texts.show_interval(name, figure)


def _cell(name: str, figure: Figure, note: str = "") -> Cell:
    return Cell(texts.show(name, figure["value"]), figure["value"], note)


def _outcomes(summary: Mapping[str, Any]) -> Drawing | None:
    if not summary["outcomes"]:
        return None
    drawn, keys = go.Figure(), [Key(name, _OUTCOME_COLOURS[name]) for name in summary["outcomes"]]
    for name, count in summary["outcomes"].items():
        colour = {"color": _OUTCOME_COLOURS[name]}
        drawn.add_bar(x=[count], y=["rows"], name=name, orientation="h", marker=colour, hovertemplate="%{x} rows")
    drawn.update_layout(barmode="stack", xaxis={"title": {"text": "rows"}}, yaxis={"visible": False})
    return Drawing("Outcomes", _framed(drawn), keys)


def _calibration(summary: Mapping[str, Any]) -> Drawing | None:
    """Stated confidence against the share that was right, for each tenth that has rows; on the line it can be trusted."""
    if not summary["calibration"]:
        return None
    bins, total = summary["calibration"]["bins"], summary["calibration"]["n"]
    drawn = go.Figure()
    drawn.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="can be trusted", line={"dash": "dot", "color": "#8a93a0"})
    drawn.add_scatter(
        x=[each["confidence"] for each in bins],
        y=[each["outcome"] for each in bins],
        text=[f"{each['n']} rows" for each in bins],
        mode="markers",
        name="stated",
        marker={"size": [8 + 22 * (each["n"] / total) ** 0.5 for each in bins], "color": COLOURS[0]},
        hovertemplate="%{text}: stated %{x:.2f}, right %{y:.2f}<extra></extra>",
    )
    drawn.update_layout(xaxis={"title": {"text": "stated confidence"}}, yaxis={"title": {"text": "share right"}})
    keys = [Key("can be trusted", "#8a93a0", "dot"), Key("stated, larger with more rows", COLOURS[0])]
    return Drawing("Calibration", _framed(drawn), keys)


def _framed(drawn: go.Figure) -> dict[str, Any]:
    drawn.update_layout(**frame())
    found: dict[str, Any] = drawn.to_plotly_json()
    return found
