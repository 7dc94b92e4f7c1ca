"""Compare several evaluations of the same rows by paired bootstrap, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import permutation_test

from vision_rl.errors import UserError
from vision_rl.evaluation import metrics
from vision_rl.evaluation.intervals import resampled_means
from vision_rl.evaluation.metrics import Figure
from vision_rl.evaluation.results import read_identity, read_records
from vision_rl.evaluation.summary import show, show_interval, show_with_interval
from vision_rl.files import replacing
from vision_rl.tasks import get_task
from vision_rl.types import Record

FEW = 12
"""Differing pictures up to which p is exact; all 4,096 ways to flip the signs of their differences are counted."""
_WORSE_IF_HIGHER = ("wrong place", "wrong space", "wrong format")


@dataclass(frozen=True)
class Evaluation:
    """One run of the comparison: its name in the table, what it was, and its scored rows by number."""

    label: str
    identity: dict[str, Any]
    records: dict[int, Record]


def load(directories: Sequence[Path], labels: Sequence[str] | None = None) -> list[Evaluation]:
    """Read evaluations; `UserError` unless they are of the same task on the same file and have rows in common."""
    if len(directories) < 2:
        raise UserError("name two evaluations or more; the first is what the others are compared with")
    if labels and len(labels) != len(directories):
        raise UserError(f"{len(labels)} labels for {len(directories)} evaluations; give one each")
    runs = []
    for index, directory in enumerate(directories):
        identity = read_identity(directory)
        if missing := {"task", "data", "data_sha256"} - identity.keys():
            raise UserError(f"{directory} does not say its {', '.join(sorted(missing))}; evaluate again")
        get_task(str(identity.get("task_source") or identity["task"]))  # known by its name from here on
        rows = {row["row"]: row for row in metrics.scored(read_records(directory).values())}
        if not rows:
            raise UserError(f"{directory} has no scored row; evaluate again, or leave it out")
        runs.append(Evaluation(labels[index] if labels else directory.name, identity, rows))
    if len({run.label for run in runs}) < len(runs):
        raise UserError("two of the evaluations have the same name; tell them apart with --labels")
    first = runs[0].identity
    for run, directory in zip(runs, directories, strict=True):
        for key in ("task", "data_sha256"):
            if run.identity[key] != first[key]:
                raise UserError(
                    f"{directory} was scored on {run.identity['data']} ({run.identity['task']}) and {directories[0]} "
                    f"on {first['data']} ({first['task']}); only evaluations of the same rows can be compared"
                )
    common = set.intersection(*(set(run.records) for run in runs))
    if not common:
        raise UserError("the evaluations have no scored row in common; run them on the same rows (--limit)")
    return [Evaluation(run.label, run.identity, {n: run.records[n] for n in sorted(common)}) for run in runs]


def compare(runs: Sequence[Evaluation]) -> dict[str, Any]:
    """Figures of each run and differences to the first, on the rows that all have scored; JSON values."""
    task = str(runs[0].identity["task"])
    rows = list(runs[0].records)
    return {
        "task": task,
        "data": runs[0].identity["data"],
        "rows": len(rows),
        "reference": runs[0].label,
        "runs": [run.label for run in runs],
        "measures": {
            name: {
                run.label: {
                    **metrics.figure(list(run.records.values()), measure),
                    **({"difference": difference(runs[0], run, name)} if run is not runs[0] else {}),
                }
                for run in runs
            }
            for name, measure in metrics.measures(task).items()
        },
    }


def difference(reference: Evaluation, other: Evaluation, name: str) -> Figure:
    """Mean of other minus reference over the same rows, with its 95 % interval by paired bootstrap (drawn by picture).

    p is two-sided: twice the smaller share of resamples on either side of zero, or where up to `FEW` pictures differ the exact
    paired permutation test (resamples of eight equal differences all lie on one side, whatever equal pictures stand beside).
    verdict: "better" or "worse" where the interval leaves out zero and p is below 0.05, else "no difference shown".
    """
    measure = metrics.measures(str(reference.identity["task"]))[name]
    rows = list(reference.records)
    gaps = [measure(other.records[n]) - measure(reference.records[n]) for n in rows]
    means = resampled_means(gaps, [metrics.cluster(reference.records[n]) for n in rows])
    low, high = (float(value) for value in np.quantile(means, [0.025, 0.975]))
    totals: dict[Any, float] = {}
    for n, gap in zip(rows, gaps, strict=True):
        picture = metrics.cluster(reference.records[n])
        totals[picture] = totals.get(picture, 0.0) + gap
    differing = [total for total in totals.values() if total]
    sides = float(np.mean(means <= 0)), float(np.mean(means >= 0))
    p = exact_p(differing) if len(differing) <= FEW else min(1.0, 2 * min(sides))
    sign = -1 if name in _WORSE_IF_HIGHER else 1
    verdict = "no difference shown"
    if (low > 0 or high < 0) and p < 0.05:
        verdict = "better" if (low > 0) == (sign > 0) else "worse"
    return {"value": float(np.mean(gaps)), "low": low, "high": high, "p": p, "n": len(rows), "verdict": verdict}


def exact_p(differences: Sequence[float]) -> float:
    """The two-sided exact p of paired differences: the share of all ways to flip their signs with a sum as far from zero."""
    if len(differences) < 2:
        return 1.0
    result = permutation_test(
        (np.asarray(differences),),
        lambda values, axis: np.sum(values, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**FEW,
    )
    return float(result.pvalue)


def render_comparison(result: Mapping[str, Any]) -> str:
    """A Markdown table of every measure; differences in points of percent, or in the measure's own unit."""
    lines = [
        f"# {result['task']} on {Path(result['data']).name}: {result['rows']} rows that all have scored",
        "",
        f"Differences are to {result['reference']}, with 95 % intervals by paired bootstrap over pictures; "
        f"p by the same, exact where {FEW} pictures or fewer differ.",
        "",
        "| measure | run | value | difference | p | |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in result["measures"].items():
        for label, figure in runs.items():
            gap = figure.get("difference")
            cells = "| | |"
            if gap:
                p = shown_p(gap["p"]).removeprefix("= ")
                sign = "+" if gap["value"] > 0 else ""
                cells = f"{sign}{show(name, gap['value'])} ({show_interval(name, gap)}) | {p} | {gap['verdict']} |"
            lines.append(f"| {name} | {label} | {show_with_interval(name, figure)} | {cells}")
    return "\n".join(lines) + "\n"


def shown_p(p: float) -> str:
    """ "= 0.023" or "< 0.001"."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def draw_comparison(result: Mapping[str, Any], path: Path) -> None:
    """A PNG: one panel per headline measure, each run with its interval, its rows, and p of its difference to the first."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    names, labels = metrics.headline(result["task"]), result["runs"]
    canvas = Canvas(figsize=(4.6 * len(names) + 1.2, 0.55 * len(labels) + 1.7), layout="constrained")
    FigureCanvasAgg(canvas)
    for index, name in enumerate(names):
        axis = canvas.add_subplot(1, len(names), index + 1)
        for place, label in enumerate(labels):
            figure = result["measures"][name][label]
            low, high = (figure[key] if figure[key] is not None else figure["value"] for key in ("low", "high"))
            spread = [[max(0.0, figure["value"] - low)], [max(0.0, high - figure["value"])]]
            axis.errorbar(
                figure["value"], place, xerr=spread, fmt="o", capsize=4, color="#2f6fdb" if place else "#5b6472"
            )
            text = f"{figure['value']:.3f}, n = {figure['n']}"
            if gap := figure.get("difference"):
                text += f", p {shown_p(gap['p'])}"
            axis.annotate(text, (figure["value"], place), (0, 7), textcoords="offset points", ha="center", fontsize=9)
        axis.set_yticks(range(len(labels)), labels if index == 0 else [""] * len(labels))
        axis.set_ylim(len(labels) - 0.4, -0.7)
        axis.margins(x=0.3)
        if all(result["measures"][name][label]["value"] >= 0 for label in labels):
            left, right = axis.get_xlim()
            ticks = [tick for tick in axis.get_xticks() if 0 <= tick <= right]  # what lies left of 0 is margin
            axis.set_xticks(ticks)
            axis.set_xlim(left, right)
        axis.set_title(f"{name}: 95 % interval, p against {result['reference']}", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    with replacing(path) as temporary:
        canvas.savefig(temporary, format="png", dpi=130)
