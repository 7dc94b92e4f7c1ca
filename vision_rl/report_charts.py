"""The curves of a run's report, each with the alarms that concern it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vision_rl import collapse
from vision_rl.collapse import Episode
from vision_rl.drawing import Chart

Line = Mapping[str, Any]
Series = tuple[list[float], list[float]]

PHASES = {
    "timing_s/weight_sync": "weights to vLLM",
    "timing_s/generate": "rollouts",
    "timing_s/batch": "batch",
    "timing_s/old_log_prob": "log-probs",
    "timing_s/ref": "reference",
    "timing_s/update_actor": "update",
}
"""The parts of a step that do not overlap; the rest of `timing_s/step` is shown as "other"."""
_NO_SHARES = ("format/", "boxes/", "length")


@dataclass(frozen=True)
class _Plan:
    """A chart to be: metric -> label; the first metric must be there.

    positive: only if a value is above zero (GPU figures on a CPU are zeros); varied: only if values differ.
    """

    title: str
    unit: str
    metrics: Mapping[str, str]
    log: bool = False
    positive: bool = False
    varied: bool = False


_PLANS = (
    _Plan("Reply length", "tokens", {collapse.LENGTH: "training", "val/response_length": "validation"}),
    _Plan("Replies per rollout", "turns", {"train/turns": "training", "val/turns": "validation"}, varied=True),
    _Plan(
        "Tools used",
        "share of rollouts",
        {
            "train/tools/use_rate": "all",
            "train/tools/use_rate_small": "small targets",
            "train/tools/use_rate_large": "large targets",
        },
    ),
    _Plan(
        "Success with tools to hand",
        "share of rollouts",
        {"train/success": "all", "train/success_small": "small targets", "train/success_large": "large targets"},
    ),
    _Plan("Entropy", "nats per token", {collapse.ENTROPY: "entropy"}),
    _Plan("Distance to the reference", "nats per token", {collapse.KL: "KL"}),
    _Plan(
        "|actor - rollout| log-probability",
        "nats",
        {"mismatch/logprob_max": "largest", collapse.MISMATCH: "mean"},
        log=True,
        positive=True,
    ),
    _Plan(
        "Format",
        "share of replies",
        {collapse.FORMAT: "parses", collapse.SPACE: "wrong space", "val/format/ok": "parses, validation"},
    ),
    _Plan("Confidence", "", {collapse.CONFIDENCE: "stated", collapse.REWARD: "reward"}),
    _Plan("Groups without spread", "share of groups", {collapse.EQUAL: "all rewards equal"}),
    _Plan("Gradient norm", "", {"actor/grad_norm": "before clipping"}),
    _Plan("Throughput", "tokens/s per GPU", {"perf/throughput": "tokens"}),
    _Plan(
        "GPU memory",
        "GB",
        {
            "perf/max_memory_allocated_gb": "allocated",
            "perf/max_memory_reserved_gb": "reserved",
            "gpu/memory_gb": "in use",
        },
        positive=True,
    ),
    _Plan("Main memory", "GB", {"perf/cpu_memory_used_gb": "in use"}),
    _Plan("GPU utilisation", "%", {"gpu/utilisation": "GPU busy"}, positive=True),
    _Plan("Model FLOPs utilisation of the update", "", {"perf/mfu/actor": "MFU"}, positive=True),
)


def charts(lines: Sequence[Line], components: Iterable[str], alarms: Sequence[Episode], window: int) -> list[Chart]:
    """The charts of a run, the reward first; what was not measured is left out.

    components: names of the reward's parts; window: steps of the moving average.
    """
    names = list(components)
    found: list[Chart | None] = [_reward(lines, alarms, window)]
    found += [_components(lines, names, "train"), _components(lines, names, "val")]
    found += [_planned(plan, lines, alarms) for plan in _PLANS]
    found += [_phases(lines)]
    return [chart for chart in found if chart is not None and chart.lines]


def series(lines: Sequence[Line], name: str) -> Series:
    """(steps, values) of a metric where it was measured and is a number."""
    pairs = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """The mean of the last `window` values, or of as many as there are."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def _reward(lines: Sequence[Line], alarms: Sequence[Episode], window: int) -> Chart:
    steps, values = series(lines, collapse.REWARD)
    validation = series(lines, "val/reward")
    drawn: dict[str, Series] = {}
    if values:
        drawn["training, each step"] = (steps, values)
        drawn[f"training, mean of {window}"] = (steps, moving_average(values, window))
    if validation[0]:
        drawn["validation"] = validation
    # The other alarms as lines: their bands stand in their own charts.
    others = [e for e in alarms if e.alarm.metric != collapse.REWARD]
    spans = [_span(e) for e in alarms if e.alarm.metric == collapse.REWARD]
    spans += [(e.alarm.since, e.alarm.since, e.alarm.name) for e in others]
    return Chart("Reward", "", drawn, dots=["validation"], faint=["training, each step"], spans=spans)


def _components(lines: Sequence[Line], names: Sequence[str], mode: str) -> Chart:
    """The parts of the reward that are shares; format (a chart of its own), counts and zeros are in the table only."""
    drawn = {}
    for name in names:
        if name.startswith(_NO_SHARES):
            continue
        steps, values = series(lines, f"{mode}/{name}")
        if values and any(values) and max(abs(value) for value in values) <= 1:
            drawn[name] = (steps, values)
    title = "Reward components" if len(drawn) > 1 else f"Reward component: {next(iter(drawn), '')}"  # one has no legend
    title += ", validation" if mode == "val" else ""
    return Chart(title, "", drawn, dots=list(drawn) if mode == "val" else ())


def _planned(plan: _Plan, lines: Sequence[Line], alarms: Sequence[Episode]) -> Chart | None:
    drawn = {label: series(lines, metric) for metric, label in plan.metrics.items()}
    values = [value for _, found in drawn.values() for value in found]
    if not next(iter(drawn.values()))[0] or (plan.varied and len(set(values)) == 1):
        return None
    if plan.positive and not any(value > 0 for value in values):
        return None
    drawn = {label: found for label, found in drawn.items() if found[0]}
    spans = [_span(episode) for episode in alarms if episode.alarm.metric in plan.metrics]
    dots = [label for metric, label in plan.metrics.items() if metric.startswith("val/")]
    return Chart(plan.title, plan.unit, drawn, dots=dots, spans=spans, log=plan.log)


def _phases(lines: Sequence[Line]) -> Chart | None:
    steps, totals = series(lines, "timing_s/step")
    timed = [line for line in lines if line.get("timing_s/step") is not None]
    drawn = {
        label: (steps, [float(line.get(metric) or 0) for line in timed])
        for metric, label in PHASES.items()
        if any(line.get(metric) for line in timed)
    }
    if not drawn:
        return None
    rest = [max(0.0, total - sum(part[1][i] for part in drawn.values())) for i, total in enumerate(totals)]
    return Chart("Step time by phase", "seconds", {**drawn, "other": (steps, rest)}, stacked=len(steps) > 1)


def _span(episode: Episode) -> tuple[float, float, str]:
    return episode.alarm.since, episode.until, episode.alarm.name
