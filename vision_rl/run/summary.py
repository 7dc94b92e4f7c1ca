"""A finished run in a dozen numbers, printed and kept as summary.json."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vision_rl.errors import typed
from vision_rl.run.directory import SUMMARY
from vision_rl.run.log import EVENTS, METRICS, ROLLOUTS, read_jsonl
from vision_rl.tasks import get_task


def summarise(run_dir: Path, tasks: Sequence[str], started: float) -> dict[str, Any]:
    """Read the run's files; `started` is when the process began (Unix seconds). Several tasks share the reward alone."""
    metrics, _ = read_jsonl(run_dir / METRICS)
    rollouts, _ = read_jsonl(run_dir / ROLLOUTS)
    events, _ = read_jsonl(run_dir / EVENTS)
    metric = get_task(tasks[0]).metric if len(tasks) == 1 else "reward"
    validations = [line[f"val/{metric}"] for line in metrics if line.get(f"val/{metric}") is not None]
    steps = [line for line in metrics if "timing_s/step" in line]
    queued = [event["time"] for event in events if event["kind"] == "queued" and event["time"] > started]
    return {
        "task": "+".join(tasks),
        "metric": metric,
        "val_before": validations[0] if validations else None,
        "val_after": validations[-1] if len(validations) > 1 else None,
        "steps": steps[-1]["step"] if steps else 0,
        "step_seconds_median": statistics.median(line["timing_s/step"] for line in steps) if steps else None,
        "startup_seconds": queued[0] - started if queued else None,
        "logprob_mismatch_max": max(
            (line["mismatch/logprob_max"] for line in steps if "mismatch/logprob_max" in line), default=None
        ),
        "share_of_limit": max(
            (line["mismatch/share_of_limit"] for line in steps if "mismatch/share_of_limit" in line), default=None
        ),
        "rollouts": len(rollouts),
        "rollouts_failed": sum(bool(rollout["failure"]) for rollout in rollouts),
    }


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """Keep the summary in the run directory."""
    (run_dir / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def render_summary(run_dir: Path, summary: dict[str, Any], go_on: str) -> str:
    """The closing lines of a run; go_on: the command that resumes it."""
    lines = [f"{summary['steps']} steps, {summary['rollouts']} rollouts, {summary['rollouts_failed']} failed"]
    if summary["step_seconds_median"] is not None:
        # A resumed run that was stopped before its first rollout has steps, and no start of its own.
        began = "" if summary["startup_seconds"] is None else f"start-up {summary['startup_seconds']:.0f} s, "
        lines.append(f"{began}median step {summary['step_seconds_median']:.2f} s")
        share = summary["share_of_limit"]
        of_limit = "" if share is None else f", at most {share:.0%} of what stops the run"
        lines.append(f"largest |actor - rollout| log-probability: {summary['logprob_mismatch_max']:.1e}{of_limit}")
    if summary["val_after"] is not None:
        before, after = summary["val_before"], summary["val_after"]
        lines.append(f"validation {summary['metric']}: {before:.3f} before, {after:.3f} after ({after - before:+.3f})")
    lines.append(f"metrics, rollouts and checkpoints: {run_dir}")
    lines.append(f"report: {typed('report')} {shlex.quote(str(run_dir))}")
    lines.append(f"go on: {go_on}")
    return "\n".join(lines)
