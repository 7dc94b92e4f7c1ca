"""report.html of a training run: one page that stands alone, with curves, alarms, rollouts and pictures.

    python -m vision_rl.report RUN_DIR [-o FILE]

Works on a finished run and on one that is still going on.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from vision_rl.boxes import Box
from vision_rl.data.files import replacing
from vision_rl.drawing import chart_uri
from vision_rl.errors import cli_errors
from vision_rl.recorded import RecordedRun, iter_rollouts, read_run
from vision_rl.report_charts import PHASES, charts
from vision_rl.report_rollouts import Card, Sampled, first_mid_last, group_cards, sample, validation_cards
from vision_rl.report_template import TEMPLATE

REPORT = "report.html"
WATCHED = (
    "reward, reply length, entropy, distance to the reference, groups without spread, format, coordinate space, "
    "confidence and log-probability mismatch were watched."
)
_TOLD = ("warning", "alarm", "restored", "resumed", "checkpoint", "finished", "error")


def write_report(run_dir: str | Path, output: str | Path | None = None) -> Path:
    """Write the page (default: report.html in the run directory); returns its path. Raises `UserError` for no run."""
    run = read_run(run_dir)
    page = render_report(run)
    target = Path(output) if output else run.path / REPORT
    with replacing(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def render_report(run: RecordedRun) -> str:
    """The page as text."""
    steps = run.steps()
    sampled = sample(iter_rollouts(run.path), first_mid_last([line["step"] for line in steps]))
    _, alarms = run.alarms()
    drawn = charts(run.metrics, sampled.components, alarms, run.collapse.window)
    columns, components = component_table(run.metrics, sampled.components, run.collapse.window)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE).render(
        run=run,
        name=run.path.absolute().name,
        state=state(run),
        tiles=tiles(run, sampled),
        alarms=alarms,
        watched=WATCHED,
        charts=[(chart.title, chart_uri(chart)) for chart in drawn],
        component_columns=columns,
        components=components,
        phases=phase_table(steps),
        sections=sections(run, sampled),
        failures=sampled.failures,
        dropped=dropped(steps),
        events=told_events(run),
        settings=run.chosen_settings(),
        number=number,
        parts=parts,
        marks=marks,
    )


def state(run: RecordedRun) -> str:
    """How far the run has come, in words."""
    steps = run.steps()
    done = steps[-1]["step"] if steps else 0
    began = time.strftime("%Y-%m-%d %H:%M", time.gmtime(run.events[0]["time"])) + " UTC" if run.events else "not yet"
    of = f" of {run.total_steps}" if run.total_steps else ""
    how = f", ended: {run.ended}" if run.ended else ", not ended"
    return f"begun {began}, {done}{of} steps{how}"


def tiles(run: RecordedRun, sampled: Sampled) -> list[tuple[str, str, str]]:
    """(label, value, note) of the figures at the top."""
    steps, metric = run.steps(), run.metric
    found: list[tuple[str, str, str]] = []
    validations = [line for line in run.metrics if line.get(f"val/{metric}") is not None]
    if validations:
        first, last = validations[0][f"val/{metric}"], validations[-1][f"val/{metric}"]
        note = f"{first:.3f} at step {validations[0]['step']}, {last - first:+.3f}" if len(validations) > 1 else "once"
        found.append((f"validation {metric}", f"{last:.3f}", note))
        best = max(validations, key=lambda line: line[f"val/{metric}"])
        if best[f"val/{metric}"] > last:
            found.append((f"best {metric}", f"{best[f'val/{metric}']:.3f}", f"validation of step {best['step']}"))
    if steps:
        window = [line["train/reward"] for line in steps[-run.collapse.window :]]
        found.append(("training reward", f"{statistics.fmean(window):.3f}", f"mean of the last {len(window)} steps"))
        seconds = [line["timing_s/step"] for line in steps if line.get("timing_s/step") is not None]
        if seconds:
            found.append(("step", f"{statistics.median(seconds):.1f} s", f"median of {len(seconds)}"))
        rate = [line["perf/throughput"] for line in steps if line.get("perf/throughput") is not None]
        if rate:
            found.append(("throughput", f"{statistics.median(rate):.0f}", "tokens per second and GPU"))
        worst = [line["mismatch/logprob_max"] for line in steps if line.get("mismatch/logprob_max") is not None]
        if worst:
            found.append(("log-prob mismatch", f"{max(worst):.1e}", "largest |actor - rollout|, nats"))
        memory = max((line.get("perf/max_memory_reserved_gb") or 0 for line in steps), default=0)
        if memory:
            found.append(("GPU memory", f"{memory:.1f} GB", "peak reserved by the trainer"))
    failed = sum(failure.count for failure in sampled.failures.values())
    found.append(("rollouts", f"{sampled.total}", f"{failed} failed"))
    return found


def component_table(
    lines: Sequence[Mapping[str, Any]], components: Sequence[str], window: int
) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """Columns, and (component, values): means of the first and last steps, and every validation's first, mid, last."""
    steps = [line for line in lines if line.get("train/reward") is not None]
    validated = [line for line in lines if line.get("val/reward") is not None]
    chosen = [validated[i] for i in first_mid_last(list(range(len(validated))))]
    early, late = steps[:window], steps[-window:]
    columns = [f"validation, step {line['step']}" for line in chosen]
    if steps:
        columns = [f"training, steps {part[0]['step']} to {part[-1]['step']}" for part in (early, late)] + columns
    rows = []
    for name in ("reward", *components):
        values = [_mean(part, f"train/{name}") for part in (early, late)] if steps else []
        rows.append((name, values + [line.get(f"val/{name}") for line in chosen]))
    return columns, rows if columns else []


def _mean(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [line[name] for line in lines if line.get(name) is not None]
    return statistics.fmean(values) if values else None


def phase_table(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """(phase, median seconds, share of the median step), the longest first, then the whole step."""
    timed = [line for line in steps if line.get("timing_s/step")]
    if not timed:
        return []
    whole = statistics.median(line["timing_s/step"] for line in timed)
    medians = {label: statistics.median(line.get(metric) or 0.0 for line in timed) for metric, label in PHASES.items()}
    rows = [(label, seconds, seconds / whole) for label, seconds in medians.items() if seconds > 0]
    return [*sorted(rows, key=lambda row: -row[1]), ("whole step", whole, 1.0)]


def sections(run: RecordedRun, sampled: Sampled) -> list[tuple[str, str, list[Card]]]:
    """(title, note, cards): validation rows over time, then groups of the first, middle and last step."""
    settings = {**run.settings, "truth": run.truth}
    found = []
    if sampled.validation:
        note = "The same rows, answered greedily: those that gained most first, then those that lost most."
        found.append(("Validation rows over time", note, validation_cards(sampled.validation, run.path, settings)))
    note = "Groups with the widest spread of rewards, which teach the most; equal replies are counted together."
    for step, rollouts in sampled.chosen.items():
        if rollouts:
            found.append((f"Training rollouts of step {step}", note, group_cards(rollouts, run.path, settings)))
    return found


def dropped(steps: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Samples left out of training batches, and replies cut off, by reason."""
    counts: dict[str, int] = {}
    for line in steps:
        for name, value in line.items():
            if name.startswith("train/dropped/") and value:
                counts[name.removeprefix("train/dropped/")] = counts.get(name.removeprefix("train/dropped/"), 0) + int(
                    value
                )
    return counts


def told_events(run: RecordedRun) -> list[tuple[str, str]]:
    """(when, text) of the events that a reader wants to know; checkpoints only the last."""
    if not run.events:
        return []
    start = run.events[0]["time"]
    told = [event for event in run.events if event["kind"] in _TOLD]
    last = max((event["time"] for event in told if event["kind"] == "checkpoint"), default=None)
    return [
        (_elapsed(event["time"] - start), _event_text(event))
        for event in told
        if event["kind"] != "checkpoint" or event["time"] == last
    ]


def _event_text(event: Mapping[str, Any]) -> str:
    kind = event["kind"]
    if kind in ("warning", "alarm", "restored", "error"):
        return f"{kind}: {event['text']}"
    if kind == "checkpoint":
        return f"last checkpoint, step {event['step']}"
    return (
        f"resumed after step {event['step']}"
        if kind == "resumed"
        else f"ended after step {event['step']}: {event.get('reason', 'all steps done')}"
    )


def _elapsed(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def marks(card: Card) -> list[tuple[str, str, Box]]:
    """(kind, label, box) of what is drawn over the first picture of a card."""
    predicted = [
        ("predicted", answer.when or str(answer.number), box) for answer in card.answers for box in answer.boxes
    ]
    return [*(("true", "", box) for box in card.true), *predicted]


def number(value: float | None) -> str:
    """A figure with three digits after the point, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def parts(reward: Mapping[str, float]) -> str:
    """The components of a reward that are not zero, in a line."""
    return ", ".join(f"{name} {value:.3g}" for name, value in reward.items() if name != "reward" and value)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m vision_rl.report", description=__doc__.partition("\n")[0])
    parser.add_argument("run_dir", type=Path, help="--run-dir of train_agent.py")
    parser.add_argument("-o", "--output", type=Path, help=f"default: {REPORT} in the run directory")
    args = parser.parse_args(argv)
    with cli_errors():
        print(f"wrote {write_report(args.run_dir, args.output)}")


if __name__ == "__main__":
    main()
