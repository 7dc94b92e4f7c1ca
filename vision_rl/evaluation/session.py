"""One evaluation from rows to files: ask the missing rows, sum up all of them, write the report."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vision_rl.data.schema import read_rows
from vision_rl.errors import UserError
from vision_rl.evaluation import metrics
from vision_rl.evaluation.report import write_report
from vision_rl.evaluation.results import EvaluationStore, disk_errors, open_store, write_json
from vision_rl.evaluation.scorer import Limits, check_endpoint, run_rows
from vision_rl.evaluation.summary import summarise, write_summary
from vision_rl.media.check_images import check_row_images
from vision_rl.tasks import answer
from vision_rl.types import LLM, Record

Row = dict[str, Any]
Server = Callable[[], AbstractContextManager[tuple[str, str]]]
"""Opens the model to ask: (base URL, model name) for as long as the block runs."""


@dataclass(frozen=True)
class Job:
    """What to score and where to keep it.

    rows: (row number in the file, row). identity: what makes this evaluation another one than the next (see
    `store.open_store`); has task, model, data and settings. prepare: the agent's task of a row, called in a thread.
    extra: figures for the summary from the records.
    """

    rows: Sequence[tuple[int, Row]]
    identity: Mapping[str, Any]
    output: Path
    prepare: Callable[[Row], Row]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    overwrite: bool = False
    extra: Callable[[Sequence[Record]], Mapping[str, Any]] = lambda records: {}


def load_rows(
    data: Path, task: str | None, limit: int | None, image_dir: Path | None = None
) -> dict[str, list[tuple[int, Row]]]:
    """Numbered rows of a file by their task, of the named one alone if one is named."""
    if not data.exists():
        raise UserError(f"{data} does not exist; give --data a parquet file (data_utils.py convert makes one)")
    rows = read_rows(data, task=task, image_base_dir=image_dir, limit=limit)
    found: dict[str, list[tuple[int, Row]]] = {}
    for number, row in enumerate(rows):
        found.setdefault(row["task"], []).append((number, row))
    return found


def evaluate(job: Job, server: Server, console: Console) -> dict[str, Any]:
    """Score the rows that are not done yet, then write summary, submission and report; returns the summary.

    What was interrupted goes on: the same job again asks only for what is missing. Raises `UserError` (see
    `runner.run_rows`); figures of what is there are written in any case.
    """
    with open_store(job.output, job.identity, overwrite=job.overwrite) as store:
        done = store.done()
        pending = [(number, row) for number, row in job.rows if number not in done]
        if len(pending) < len(job.rows):
            console.print(f"{len(job.rows) - len(pending)} of {len(job.rows)} rows are done already", highlight=False)
        try:
            if pending:
                check_row_images([row for _, row in pending], job.identity["data"])
                with server() as (endpoint, model):
                    llm = LLM(endpoint=endpoint, model=model, sampling_parameters=dict(job.sampling))
                    asyncio.run(_ask(job, llm, store, pending, console))
        finally:
            if store.records:
                summary = conclude(job, store.records)
    return summary


@contextlib.contextmanager
def resumable(console: Console) -> Iterator[None]:
    """Turn Ctrl-C into one line and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("interrupted; finished rows are kept: the same command goes on", highlight=False)
        raise SystemExit(130) from None


def conclude(job: Job, records: Mapping[int, Record]) -> dict[str, Any]:
    """Write summary.json, summary.md, submission.json and report.html of the job's rows; returns the summary."""
    chosen = {number: records[number] for number, _ in job.rows if number in records}
    summary = summarise(job.identity, chosen, len(job.rows), job.extra(list(chosen.values())))
    write_summary(job.output, summary, chosen)
    with disk_errors(job.output):
        write_report(job.output, summary, list(chosen.values()))
    return summary


async def _ask(
    job: Job, llm: LLM, store: EvaluationStore, pending: Sequence[tuple[int, Row]], console: Console
) -> None:
    await check_endpoint(llm.endpoint, llm.model)
    task = str(job.identity["task"])
    headline = metrics.headline(task)[0]
    measure = metrics.measures(task)[headline]
    total, failed, value_sum, value_count = len(pending), 0, 0.0, 0
    started, paused = time.monotonic(), 0.0
    columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[status]}"), TimeElapsedColumn())
    with Progress(TextColumn(task), *columns, TimeRemainingColumn(), console=console) as bar:
        shown = bar.add_task(task, total=total, status="")

        def on_done(record: Record) -> None:
            nonlocal failed, value_sum, value_count
            failed += bool(record["failure"])
            if metrics.scored([record]):
                value_sum, value_count = value_sum + measure(record), value_count + 1
            mean = f"{headline} {value_sum / value_count:.3f}" if value_count else ""
            status = mean + (f", {failed} failed" if failed else "")
            bar.update(shown, advance=1, status=status)
            count = int(bar.tasks[0].completed)
            # A log file shows no bar: ten lines on the way instead.
            if not console.is_terminal and count * 10 // total > (count - 1) * 10 // total:
                console.print(f"{count} of {total} rows, {status}", highlight=False)

        paused = await run_rows(pending, answer, llm, store, limits=job.limits, prepare=job.prepare, on_done=on_done)
    seconds = time.monotonic() - started
    pause = f", {paused:.0f} s of it paused by the server" if paused else ""
    console.print(f"{total} rows in {seconds:.1f} s ({total / seconds:.1f} per second{pause})", highlight=False)
    write_json(job.output / "timing.json", {"rows": total, "seconds": seconds, "paused_seconds": paused})
