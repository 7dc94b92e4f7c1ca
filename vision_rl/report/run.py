"""The page of a training run, or of several laid over each other: curves, alarms, groups with advantages, pictures."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vision_rl.files import replacing
from vision_rl.report.cards import Card, Source, group_cards, validation_cards
from vision_rl.report.charts import Curves, component_label, figure, laid_over, legend
from vision_rl.report.index import DROPPED, RolloutIndex
from vision_rl.report.page import Alarm, Cell, Drawing, Page, Row, Table, Tile, render
from vision_rl.run.failures import NO_FAULT
from vision_rl.run.names import STEP, phase_seconds
from vision_rl.run.reader import RecordedRun, first_mid_last, read_run

REPORT = "report.html"
WATCHED = (
    "None: reward, reply length, entropy, distance to the reference, groups without spread, format, coordinate space, "
    "confidence and log-probability mismatch were watched."
)
COMPUTED = (
    "This run's rollouts.jsonl holds no advantages: those shown were computed from each group's rewards, as GRPO does."
)
NO_ALARM = [DROPPED + reason for reason in NO_FAULT]
MOST_STEPS = 10
"""Of the steps whose rollouts the page holds."""
_SHOWN_EVENTS = ("warning", "alarm", "restored", "resumed", "checkpoint", "finished", "error")


@dataclass(frozen=True)
class Choice:
    """Which rollouts the page holds. steps: of training; empty: first, middle and last, where alarms began and rollouts
    were lost. groups: of each step. labels: a name for each run; empty: the folders' names."""

    steps: tuple[int, ...] = ()
    groups: int = 4
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shown:
    """A run with what the page holds of it."""

    run: RecordedRun
    index: RolloutIndex
    name: str
    train: Mapping[int, list[dict[str, Any]]]
    validation: Mapping[int, list[dict[str, Any]]]


def write_report(run_dir: str | Path, output: str | Path | None = None) -> Path:
    """Write a run's page (default: report.html in the run directory); returns its path. `UserError` for no run."""
    target = Path(output) if output else Path(run_dir) / REPORT
    page = render(run_page([Path(run_dir)]))
    with replacing(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def run_page(
    run_dirs: Sequence[Path], choice: Choice | None = None, indexes: dict[Path, RolloutIndex] | None = None
) -> Page:
    """The page of one run, or of several laid over each other.

    indexes: kept between the calls of a live page, so that only new rollouts are read.
    """
    choice = choice or Choice()
    indexes = {} if indexes is None else indexes
    names = choice.labels or run_names(run_dirs)
    shown = []
    for run_dir, name in zip(run_dirs, names, strict=True):
        index = indexes.setdefault(run_dir, RolloutIndex(run_dir))
        index.update()
        shown.append(_shown(read_run(run_dir), index, name if len(run_dirs) > 1 else "", choice))
    return _page(shown, names, choice)


def run_names(run_dirs: Sequence[Path]) -> list[str]:
    """A word for each run: the folder's name, or that of the nearest folder above which tells them apart; else a number."""
    parts = [run_dir.absolute().parts[::-1] for run_dir in run_dirs]
    for names in zip(*parts, strict=False):
        if len(set(names)) == len(names):
            return list(names)
    return [f"{part[0]} ({number})" for number, part in enumerate(parts, start=1)]


def _shown(run: RecordedRun, index: RolloutIndex, name: str, choice: Choice) -> Shown:
    there = index.steps("train")
    steps = [step for step in choice.steps if step in there] if choice.steps else chosen_steps(run, index)
    train = {step: index.read("train", step) for step in steps}
    validation = {step: index.read("val", step) for step in first_mid_last(index.steps("val"))}
    return Shown(run, index, name, train, validation)


def chosen_steps(run: RecordedRun, index: RolloutIndex) -> list[int]:
    """The first, middle and last step, then those where alarms began, then those where rollouts were lost."""
    there = index.steps("train")
    wanted = first_mid_last(there)
    wanted += [episode.alarm.since for episode in run.alarms()[1]]
    wanted += [step for failure in index.failures.values() for step in (failure.first, failure.last)]
    kept = [step for step in dict.fromkeys(wanted) if step in set(there)]
    return sorted(kept[:MOST_STEPS])


def _page(shown: Sequence[Shown], names: Sequence[str], choice: Choice) -> Page:
    runs = [each.run for each in shown]
    curves = []
    for each, name in zip(shown, names, strict=True):
        run, parts = each.run, each.index.components
        curves.append(Curves(run.metrics, parts, run.alarms()[1], run.collapse.window, name))
    last = max((line["step"] for run in runs for line in run.metrics), default=0)
    cards = [card for each in shown for card in _cards(each, choice)]
    tables = [table for each in shown for table in _tables(each)]
    if len(shown) > 1:
        tables.insert(0, difference_table(runs, names))
    events = {
        f"What happened{in_run(each)}": [f"{when}  {text}" for when, text in event_lines(each.run)] for each in shown
    }
    return Page(
        title=f"{runs[0].task}: {' and '.join(names)}",
        subtitle=" | ".join(f"{run.model_name}, {state(run)}" for run in runs),
        tiles=[tile for each in shown for tile in tiles(each)],
        alarms=[alarm for each in shown for alarm in alarms(each)],
        calm=WATCHED,
        drawings=[Drawing(chart.title, figure(chart, last), legend(chart)) for chart in laid_over(curves)],
        tables=tables,
        cards=cards,
        selection=selection(shown, choice),
        lists={title: lines for title, lines in events.items() if lines},
        settings=runs[0].chosen_settings() if len(runs) == 1 else {},
        steps=sorted({step for each in shown for step in each.index.steps("train")}),
    )


def _cards(each: Shown, choice: Choice) -> list[Card]:
    run = each.run
    by_std = run.config.get("algorithm.norm_adv_by_std_in_grpo") is not False
    source = Source(run.path, run.settings, run.truth_of, each.name, by_std)
    cards = [card for rollouts in each.train.values() for card in group_cards(rollouts, source, choice.groups)]
    return [*cards, *validation_cards(each.validation, source)]


def selection(shown: Sequence[Shown], choice: Choice) -> str:
    """Which rollouts the page holds, and where its advantages come from."""
    steps = sorted({step for each in shown for step in each.train})
    trained = [rollout for each in shown for rollouts in each.train.values() for rollout in rollouts]
    text = (
        f"Of training, steps {', '.join(map(str, steps))}: in each, the {choice.groups} groups with the widest spread of "
        "rewards, which teach the most, and those that lost rollouts; equal replies are counted together. "
        if steps
        else ""
    )
    text += "Of validation, the rows that gained and lost most. --steps and --groups choose others."
    return text + (f" {COMPUTED}" if trained and not any("advantage" in rollout for rollout in trained) else "")


def alarms(each: Shown) -> list[Alarm]:
    """The collapse watch's alarms, why the run was stopped, and lost rollouts, each with the filters that show them."""
    run, found = each.run, []
    where = {"run": each.name} if each.name else {}
    for episode in run.alarms()[1]:
        alarm = episode.alarm
        passed = "" if alarm.persistent else " (passed by)"
        text = f"{in_run(each)} from step {alarm.since} to {episode.until}{passed}: {alarm.seen}"
        inside = next((step for step in each.train if alarm.since <= step <= episode.until), None)
        link = {} if inside is None else {**where, "step": str(inside)}
        found.append(Alarm(alarm.name, text.strip(), alarm.cures, link))
    for event in run.events:
        if event["kind"] == "error":
            last = max(each.train, default=None)
            found.append(Alarm("the run ended", str(event["text"]), (), {} if last is None else {"step": str(last)}))
    for reason, failure in each.index.failures.items():
        if reason in NO_ALARM:
            continue
        text = f"took {failure.count} rollouts{in_run(each)}, steps {failure.first} to {failure.last}"
        link = {**where, "failure": reason} if failure.first in each.train else {}
        found.append(Alarm(reason, text, (), link))
    return found


def in_run(each: Shown) -> str:
    """ " of NAME", where there are several runs."""
    return f" of {each.name}" if each.name else ""


def state(run: RecordedRun) -> str:
    """How far the run has come, in words; of one that goes on, what it does and when it last gave a sign."""
    steps = run.steps()
    done = steps[-1]["step"] if steps else 0
    of = f" of {run.total_steps}" if run.total_steps else ""
    if not run.events:
        return f"not begun, {done}{of} steps"
    begun = f"begun {_clock(run.events[0]['time'])} UTC, {done}{of} steps"
    if run.ended:
        return f"{begun}, ended: {run.ended}"
    sign = max(line["time"] for lines in (run.metrics, run.events) for line in lines[-1:])
    seconds = [line[STEP] for line in steps if line.get(STEP) is not None]
    left = ""
    if seconds and run.total_steps and done < run.total_steps:
        left = f", about {statistics.median(seconds) * (run.total_steps - done) / 60:.0f} min left"
    return f"{begun}{left}; {doing(run)}, last sign {_clock(sign)} UTC"


def doing(run: RecordedRun) -> str:
    """What the last event says that the run is at."""
    for event in reversed(run.events):
        if event["kind"] == "collected":
            return f"{event['done']} of {event['total']} rollouts"
        if event["kind"] == "queued":
            validating = f"validating on {event['total']} rows"
            return validating if event["mode"] == "val" else f"{event['total']} rollouts queued"
        if event["kind"] in ("phase", "warning", "alarm"):
            return str(event["text"]) if event["kind"] == "phase" else "training"
    return "starting"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def tiles(each: Shown) -> list[Tile]:
    """The figures at the top."""
    run, index = each.run, each.index
    steps, metric, found = run.steps(), run.metric, []
    validations = [line for line in run.metrics if line.get(f"val/{metric}") is not None]
    if validations:
        first, last = validations[0][f"val/{metric}"], validations[-1][f"val/{metric}"]
        note = f"{first:.3f} at step {validations[0]['step']}, {last - first:+.3f}" if len(validations) > 1 else "once"
        found.append(Tile(f"validation {metric}", f"{last:.3f}", note))
        best = max(validations, key=lambda line: line[f"val/{metric}"])
        if best[f"val/{metric}"] > last:
            found.append(Tile(f"best {metric}", f"{best[f'val/{metric}']:.3f}", f"validation of step {best['step']}"))
    if steps:
        window = [line["train/reward"] for line in steps[-run.collapse.window :]]
        found.append(
            Tile("training reward", f"{statistics.fmean(window):.3f}", f"mean of the last {len(window)} steps")
        )
    found += _measured(steps)
    failed = sum(failure.count for failure in index.failures.values())
    found.append(Tile("rollouts", f"{index.total}", f"{failed} lost"))
    return [tile._replace(label=f"{each.name}: {tile.label}") for tile in found] if each.name else found


def _measured(steps: Sequence[Mapping[str, Any]]) -> list[Tile]:
    """Time, throughput, mismatch and memory, as far as they were measured."""

    def values(name: str) -> list[float]:
        return [line[name] for line in steps if line.get(name) is not None]

    found = []
    if seconds := values(STEP):
        found.append(Tile("step", f"{statistics.median(seconds):.1f} s", f"median of {len(seconds)}"))
    if rate := values("perf/throughput"):
        found.append(Tile("throughput", f"{statistics.median(rate):.0f}", "tokens per second and rank"))
    if worst := values("mismatch/logprob_max"):
        found.append(Tile("log-prob mismatch", f"{max(worst):.1e}", "largest |actor - rollout|, nats"))
    if memory := max(values("actor/perf/max_memory_reserved_gb"), default=0):
        found.append(Tile("GPU memory", f"{memory:.1f} GB", "peak reserved by the trainer"))
    return found


def _tables(each: Shown) -> list[Table]:
    steps, name = each.run.steps(), in_run(each)
    columns, rows = component_table(each.run.metrics, list(each.index.components), each.run.collapse.window)
    cells: list[Sequence[Row]] = [[label, *values] for label, values in rows]
    phases: list[Sequence[Row]] = [
        [label, Cell(f"{seconds:.2f} s", seconds), Cell(f"{share:.0%}", share)]
        for label, seconds, share in phase_table(steps)
    ]
    lost: list[Sequence[Row]] = [
        [
            reason,
            Cell(str(failure.count), failure.count),
            f"{failure.first} to {failure.last}",
            "; ".join(failure.examples),
        ]
        for reason, failure in each.index.failures.items()
    ]
    if not any(reason.startswith(DROPPED) for reason in each.index.failures):  # else they are counted already
        lost += [[DROPPED + reason, Cell(str(count), count), "", ""] for reason, count in dropped(steps).items()]
    found = [
        Table(f"Reward and its components{name}", ["", *columns], cells),
        Table(f"Time of a step{name}", ["phase", "mean", "share"], phases),
        Table(f"Lost rollouts and samples{name}", ["reason", "count", "steps", "examples"], lost),
    ]
    return [table for table in found if table.rows]


def difference_table(runs: Sequence[RecordedRun], names: Sequence[str]) -> Table:
    """The settings in which the runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    rows = []
    for key in keys:
        values = [str(run.config.get(key, "-")) for run in runs]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return Table("Settings that differ", ["setting", *names], rows or [["none", *("" for _ in runs)]])


def component_table(
    lines: Sequence[Mapping[str, Any]], components: Sequence[str], window: int
) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """Columns, and (component, values): means of the first and last steps, and every validation's first, mid, last."""
    steps = [line for line in lines if line.get("train/reward") is not None]
    validated = [line for line in lines if line.get("val/reward") is not None]
    chosen = [validated[i] for i in first_mid_last(list(range(len(validated))))]
    parts = [steps[:window], steps[-window:]] if len(steps) > window else [steps] if steps else []
    columns = [f"validation, step {line['step']}" for line in chosen]
    columns = [f"training, steps {part[0]['step']} to {part[-1]['step']}" for part in parts] + columns
    rows = []
    for name in ("reward", *components):
        values = [_mean(part, f"train/{name}") for part in parts]
        rows.append((component_label(name), values + [line.get(f"val/{name}") for line in chosen]))
    return columns, rows if columns else []


def _mean(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [line[name] for line in lines if line.get(name) is not None]
    return statistics.fmean(values) if values else None


def phase_table(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """(phase, mean seconds, share of the mean step), the longest first, then the whole step; what is not timed is "other"."""
    timed = [line for line in steps if line.get(STEP)]
    if not timed:
        return []
    whole = statistics.fmean(line[STEP] for line in timed)
    parts = [phase_seconds(line) for line in timed]
    means = {name: sum(part.get(name, 0.0) for part in parts) / len(timed) for part in parts for name in part}
    means["other"] = max(0.0, whole - sum(means.values()))
    rows = [(label, seconds, seconds / whole) for label, seconds in means.items() if seconds > 0]
    return [*sorted(rows, key=lambda row: -row[1]), ("whole step", whole, 1.0)]


def dropped(steps: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Samples left out of training batches, and replies cut off, by reason."""
    counts = Counter[str]()
    for line in steps:
        counts.update({name: int(value) for name, value in line.items() if name.startswith("train/dropped/") and value})
    return {name.removeprefix("train/dropped/"): count for name, count in counts.items()}


def event_lines(run: RecordedRun) -> list[tuple[str, str]]:
    """(when, text) of the events that a reader wants to know; checkpoints only the last."""
    if not run.events:
        return []
    start = run.events[0]["time"]
    shown = [event for event in run.events if event["kind"] in _SHOWN_EVENTS]
    last = max((event["time"] for event in shown if event["kind"] == "checkpoint"), default=None)
    return [
        (_elapsed(event["time"] - start), _event_text(event))
        for event in shown
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
