"""The figures of one evaluation as JSON, as Markdown, and as the result file of the VQA server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vision_rl.agent.grounding_prompts import request
from vision_rl.answers.parsing import parse_answer
from vision_rl.answers.space import AnswerSpace
from vision_rl.evaluation import metrics
from vision_rl.evaluation.detection import detection_figures
from vision_rl.evaluation.metrics import Figure
from vision_rl.evaluation.results import write_json, write_text
from vision_rl.settings import AgentSettings
from vision_rl.tasks import get_task
from vision_rl.types import Record

SUMMARY = "summary.json"
MARKDOWN = "summary.md"
SUBMISSION = "submission.json"
CUT = "replies cut off"
_UNITS = ("IoU", "reward")
"""Measures that are no shares of rows, and stay plain numbers."""


def summarise(
    identity: Mapping[str, Any], records: Mapping[int, Record], rows: int, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All figures as JSON values. rows: how many there were to score; extra: what the caller knows beside (cost)."""
    task = str(identity["task"])
    kept = list(records.values())
    failures = [record for record in kept if record["failure"]]
    return {
        **identity,
        "rows": rows,
        "scored": len(metrics.scored(kept)),
        "failed": len(failures),
        "missing": rows - len(kept),
        "failures": dict(Counter(record["failure"] for record in failures).most_common(10)),
        "protocol": protocol(identity),
        "metrics": metrics.overall(task, kept),
        "truncated": metrics.truncated(kept),
        "by_metric": metrics.by_metric(kept),
        "detection": _detection(identity, metrics.scored(kept)),
        "by_source": metrics.by_source(kept),
        "cell_means": metrics.cell_means(task, kept),
        "breakdowns": metrics.by_breakdown(task, kept),
        "outcomes": metrics.outcome_counts(kept) if get_task(task).truth == "boxes" else None,
        "tools": metrics.tool_figures(kept),
        "calibration": metrics.calibration(task, kept),
        "usage": metrics.usage_totals(kept),
        **(extra or {}),
    }


def _detection(identity: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """`detection_figures` of a task of boxes whose settings are known and ask for boxes."""
    if get_task(str(identity["task"])).truth != "boxes" or "family" not in (identity.get("settings") or {}):
        return {}
    settings = AgentSettings.read(identity["settings"])
    if AnswerSpace(settings.answer_format, settings.family).takes_points:
        return {}
    return detection_figures(records, settings, [metrics.cluster(record) for record in records])


def protocol(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What decides whether a figure can be reproduced, beside model and data: {name: value}, ready to be shown."""
    settings, sampling = identity.get("settings") or {}, identity.get("sampling") or {}
    found: dict[str, Any] = {"pictures": "before the text", "temperature": sampling.get("temperature")}
    if get_task(str(identity["task"])).truth == "boxes" and "family" in settings:
        read = AgentSettings.read(settings)
        space = AnswerSpace(read.answer_format, read.family)
        found |= {
            "prompt": request("{instruction}", read),
            "answer format": space.format.name,
            "coordinate space": f"{space.unit} ({space.numbers_of})",
        }
    else:
        found["prompt"] = get_task(str(identity["task"])).part("prompt")
    found["served pixels"] = [settings.get("min_pixels"), settings.get("max_pixels")]
    return found


def write_summary(directory: Path, summary: Mapping[str, Any], records: Mapping[int, Record]) -> None:
    """summary.json, summary.md, and submission.json where the task has one."""
    write_json(directory / SUMMARY, summary)
    write_text(directory / MARKDOWN, render_markdown(summary))
    submit = get_task(summary["task"]).part("submission")
    if submit and (result := submit(list(records.values()))) is not None:
        write_json(directory / SUBMISSION, result)


def submission(records: Sequence[Record]) -> list[dict[str, Any]] | None:
    """`[{"question_id": int, "answer": str}]`, every question once, as VQA's official evaluation and server read it.

    None unless every record has a question_id, which is a number there.
    """
    if not records or not all(str(record["meta"].get("question_id", "")).isdecimal() for record in records):
        return None
    return [
        {"question_id": int(record["meta"]["question_id"]), "answer": parse_answer(record["reply"])}
        for record in records
    ]


def render_markdown(summary: Mapping[str, Any]) -> str:
    """The summary as a page of tables."""
    lines = [f"# {summary['task']}: {summary['model']} on {Path(summary['data']).name}", "", coverage(summary), ""]
    lines += ["| measure | value | 95 % interval | rows |", "|---|---|---|---|"]
    for name, figure in all_figures(summary).items():
        lines.append(f"| {name} | {show(name, figure['value'])} | {show_interval(name, figure)} | {figure['n']} |")
    for name, mean in summary.get("cell_means", {}).items():
        of = f"{name}, mean over the {mean['number']} cells of {mean['cells']}"
        lines.append(f"| {of} | {show(name, mean['value'])} | - | {summary['scored']} |")
    for title, values in summary["breakdowns"].items():
        names = list(next(iter(values.values())))
        lines += ["", f"## By {title}", "", f"| {title} | rows | " + " | ".join(names) + " |"]
        lines.append("|---|---|" + "---|" * len(names))
        for value, figures in values.items():
            cells = " | ".join(show_with_interval(name, figure) for name, figure in figures.items())
            lines.append(f"| {_cell(value)} | {next(iter(figures.values()))['n']} | {cells} |")
    lines += _source_lines(summary)
    lines += [*_outcome_lines(summary["outcomes"]), *_tool_lines(summary.get("tools"))]
    lines += _calibration_lines(summary["calibration"])
    lines += ["", "## Protocol", ""]
    lines += [
        f"- {name}: {_cell(_protocol(value))}"
        for name, value in summary.get("protocol", {}).items()
        if value is not None
    ]
    lines += ["", "## Requests", "", *(f"- {line}" for line in usage_lines(summary))]
    if summary["failures"]:
        lines += [
            "",
            "## Failed rows",
            "",
            *(f"- {count} x {_cell(text)}" for text, count in summary["failures"].items()),
        ]
    return "\n".join(lines) + "\n"


def all_figures(summary: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures of all rows, how many replies the length limit cut off, and those of one metric's rows or of boxes."""
    cut = {CUT: summary["truncated"]} if summary.get("truncated") else {}  # older evaluations did not count
    return {**summary["metrics"], **cut, **summary.get("by_metric", {}), **summary.get("detection", {})}


def coverage(summary: Mapping[str, Any]) -> str:
    """One sentence on how many of the rows stand behind the figures."""
    text = f"{summary['scored']} of {summary['rows']} rows scored"
    parts = [f"{summary[key]} {key}" for key in ("failed", "missing") if summary[key]]
    unscored = summary["rows"] - summary["scored"] - summary["failed"] - summary["missing"]
    parts += [f"{unscored} without a true answer"] if unscored else []
    text += f" ({', '.join(parts)}; the figures leave them out)." if parts else "."
    cut = summary.get("truncated") or {}
    if cut.get("value"):
        text += f" The length limit (agent.max_tokens) cut {show(CUT, cut['value'])} of the replies off."
    return text


def usage_lines(summary: Mapping[str, Any]) -> list[str]:
    """Requests, tokens, latency and cost in short lines."""
    usage, lines = summary["usage"], []
    lines.append(
        f"{usage['requests']} requests, {usage['rate_limited']} refused with 429, {usage['server_errors']} errors"
    )
    lines.append(f"{usage['prompt_tokens']} prompt tokens, {usage['completion_tokens']} completion tokens")
    if latency := usage["latency_seconds"]:
        lines.append("latency per row: " + ", ".join(f"{name} {value:.2f} s" for name, value in latency.items()))
    if summary.get("cost") is not None:
        lines.append(f"cost {summary['cost']:.4f} (in the currency of the prices given)")
    return lines


def _protocol(value: Any) -> str:
    """A value of the protocol in words; limits that nobody set are those of the model's own processor."""
    if not isinstance(value, list):
        return str(value)
    return " to ".join("the processor's own limit" if item is None else str(item) for item in dict.fromkeys(value))


def show(name: str, value: float | None) -> str:
    """A measure for people: shares in percent, other measures as they are."""
    if value is None:
        return "-"
    return f"{value:.3f}" if name in _UNITS else f"{100 * value:.2f} %"


def show_interval(name: str, figure: Figure) -> str:
    """The interval of a figure, or a dash."""
    if figure["low"] is None:
        return "-"
    return f"{show(name, figure['low'])} to {show(name, figure['high'])}"


def show_with_interval(name: str, figure: Figure) -> str:
    """Value and interval in one cell."""
    value = show(name, figure["value"])
    return value if figure["low"] is None else f"{value} ({show_interval(name, figure)})"


def source_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, Figure]]:
    """(source, its metric, figure), where there are several of them."""
    found = [(s, name, f) for s, figures in summary.get("by_source", {}).items() for name, f in figures.items()]
    return found if len(found) > 1 else []


def _source_lines(summary: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {_cell(source)} | {name} | {show(name, figure['value'])} | {show_interval(name, figure)} | {figure['n']} |"
        for source, name, figure in source_rows(summary)
    ]
    head = ["", "## Each source by its own metric", "", "| source | metric | value | 95 % interval | rows |"]
    return [*head, "|---|---|---|---|---|", *rows] if rows else []


def _outcome_lines(outcomes: Mapping[str, int] | None) -> list[str]:
    if not outcomes:
        return []
    total = max(1, sum(outcomes.values()))
    rows = [f"| {name} | {count} | {100 * count / total:.2f} % |" for name, count in outcomes.items()]
    return ["", "## Outcomes", "", "| outcome | rows | share |", "|---|---|---|", *rows]


def tool_rows(figures: Mapping[str, float]) -> list[tuple[str, float]]:
    """(what, share) of the tool figures, in words."""
    return [(name.replace("use_rate", "tools used").replace("_", " "), value) for name, value in figures.items()]


def _tool_lines(figures: Mapping[str, float] | None) -> list[str]:
    if not figures:
        return []
    rows = [f"| {name} | {100 * value:.2f} % |" for name, value in tool_rows(figures)]
    return ["", "## Tools", "", "| measure | share |", "|---|---|", *rows]


def _calibration_lines(calibration: Mapping[str, Any] | None) -> list[str]:
    if not calibration:
        return []
    return [
        *("", "## Calibration", ""),
        f"{calibration['n']} rows state a confidence: {calibration['mean_confidence']:.3f} on average, right in "
        f"{calibration['mean_outcome']:.3f}. Expected calibration error {calibration['ece']:.3f}, Brier score "
        f"{calibration['brier']:.3f}, correlation with the score {calibration['correlation']:.3f}.",
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
