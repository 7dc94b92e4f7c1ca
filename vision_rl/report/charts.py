"""The curves of one run or several, each with the alarms that concern it, as figures of Plotly."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import plotly.graph_objects as go

from vision_rl.run import collapse
from vision_rl.run.collapse import Episode
from vision_rl.run.names import PLANS, STEP, Plan, phase_seconds

Metrics = Mapping[str, Any]
Series = tuple[list[float], list[float]]

COLOURS = ("#2f6fdb", "#0a8f3c", "#e07b00", "#7a4bc2", "#0097a7", "#8d6e63", "#c0b000", "#808a96")
"""Readable on white and on the dark page alike."""
VALIDATION = "#d6246e"
"""Of validation in every chart that has another line."""
ALARM_COLOUR = "#c0392b"
_DASHES = ("solid", "dash", "dot", "dashdot")
_NO_SHARES = ("format/", "length")
"""Parts of the reward with a chart of their own, or that are no shares."""


@dataclass(frozen=True)
class Line:
    """Values over steps. dots: with a mark at every value; faint: behind the others.

    run, of: number and name of the run, where there are several.
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    dots: bool = False
    faint: bool = False
    run: int = 0
    of: str = ""

    @property
    def label(self) -> str:
        """The name in the legend."""
        return f"{self.of}: {self.name}" if self.of else self.name


@dataclass(frozen=True)
class Chart:
    """Lines over steps. spans: (first step, last step, name) of alarms. stacked: lines are parts of a whole."""

    title: str
    unit: str
    lines: Sequence[Line]
    spans: Sequence[tuple[float, float, str]] = ()
    log: bool = False
    stacked: bool = False

    @property
    def looks(self) -> list[tuple[str, str]]:
        """(colour, dash) of each line: by its name, validation in its own; of several runs, a colour for each run."""
        names = list(dict.fromkeys(line.name for line in self.lines if not line.faint))
        trained = [line.name for line in self.lines if not (line.dots or line.faint)]
        found = []
        for line in self.lines:
            place = 0 if line.faint else names.index(line.name)
            if line.of:
                found.append((COLOURS[line.run % len(COLOURS)], _DASHES[place % len(_DASHES)]))
            else:
                found.append((VALIDATION if line.dots and trained else COLOURS[place % len(COLOURS)], "solid"))
        return found


class Key(NamedTuple):
    """An entry of a legend. dash: as Plotly names it; faint: as the line."""

    name: str
    colour: str
    dash: str = "solid"
    faint: bool = False


@dataclass(frozen=True)
class Curves:
    """What the charts of a run are made of. components: names of the reward's parts; window: of the moving average."""

    metrics: Sequence[Metrics]
    components: Iterable[str] = ()
    alarms: Sequence[Episode] = ()
    window: int = 5
    name: str = ""


def charts(run: Curves) -> list[Chart]:
    """The charts of a run, the reward first; what was not measured is left out."""
    lines, alarms, names = run.metrics, run.alarms, list(run.components)
    found: list[Chart | None] = [_reward(run), _components(lines, names, "train"), _components(lines, names, "val")]
    found += [_planned(plan, lines, alarms) for plan in PLANS]
    found += [_phases(lines)]
    return [chart for chart in found if chart is not None and chart.lines]


def laid_over(runs: Sequence[Curves]) -> list[Chart]:
    """The charts of several runs, those of one title in one chart, each line under its run's name."""
    merged: dict[str, Chart] = {}
    for number, run in enumerate(runs):
        for chart in charts(run):
            of = run.name if len(runs) > 1 else ""
            lines = [replace(line, run=number, of=of) for line in chart.lines]
            spans = [(start, end, f"{of}: {name}" if of else name) for start, end, name in chart.spans]
            before = merged.get(chart.title, replace(chart, lines=(), spans=()))
            # Areas of two runs would cover each other.
            stacked = chart.stacked and len(runs) == 1
            merged[chart.title] = replace(
                before, lines=[*before.lines, *lines], spans=[*before.spans, *spans], stacked=stacked
            )
    return list(merged.values())


def figure(chart: Chart, last_step: float) -> dict[str, Any]:
    """The chart as a figure of Plotly (JSON values): equal margins and steps, so that the edges of all charts align.

    Names come from reward functions and workers: they are escaped, since Plotly reads tags in labels.
    """
    drawn = go.Figure()
    for line, (colour, dash) in zip(chart.lines, chart.looks, strict=True):
        drawn.add_scatter(
            x=list(line.steps),
            y=list(line.values),
            name=html.escape(line.label, quote=False),
            mode="lines+markers" if line.dots or len(line.values) == 1 else "lines",
            line={"color": colour, "width": 1 if line.faint else 2, "dash": dash},
            opacity=0.45 if line.faint else 1.0,
            stackgroup="parts" if chart.stacked else None,
            hovertemplate="%{y:.4g}",
        )
    for start, end, _ in chart.spans:
        drawn.add_vrect(x0=start - 0.5, x1=end + 0.5, fillcolor=ALARM_COLOUR, opacity=0.1, line_width=0)
        drawn.add_vline(x=start - 0.5, line={"color": ALARM_COLOUR, "width": 1})
    if chart.spans:
        drawn.add_scatter(
            x=[start for start, _, _ in chart.spans],
            y=[1.0] * len(chart.spans),
            yaxis="y2",
            name="alarms",
            mode="markers",
            marker={"symbol": "triangle-down", "size": 11, "color": ALARM_COLOUR},
            text=[html.escape(name, quote=False) for _, _, name in chart.spans],
            hovertemplate="%{text}<extra>alarm</extra>",
        )
    drawn.update_layout(
        **frame(),
        hovermode="x unified",
        xaxis={"title": {"text": "step", "standoff": 6}, "range": [0, max(1.0, last_step) * 1.02], "zeroline": False},
        yaxis={"title": {"text": chart.unit}, "zeroline": False, **_scale(chart)},
        yaxis2={"overlaying": "y", "range": [0, 1.03], "visible": False, "fixedrange": True},
    )
    found: dict[str, Any] = drawn.to_plotly_json()
    return found


def _scale(chart: Chart) -> dict[str, Any]:
    """The y axis: whole decades, each labelled once; shares from 0 to 1; one value in the middle."""
    values = [value for line in chart.lines for value in line.values if not chart.log or value > 0]
    if chart.log and values:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
        high = max(high, low + 1)
        return {"type": "log", "range": [low, high], "dtick": max(1, (high - low) // 4), "exponentformat": "power"}
    if chart.unit.startswith(("share", "mean")) and values and min(values) >= 0 and max(values) <= 1:
        return {"range": [0, 1.05]}
    return {"range": [0, 2 * values[0]]} if len(set(values)) == 1 and values[0] > 0 else {}


def frame() -> dict[str, Any]:
    """The layout that all figures share: drawing areas of one size. The page writes the legend, which Plotly would cut off."""
    return {
        "template": "none",
        "height": 280,
        "margin": {"l": 62, "r": 14, "t": 12, "b": 46, "autoexpand": False},
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }


def legend(chart: Chart) -> list[Key]:
    """The legend of a chart: an entry for each of the figure's traces, in their order, alarms last."""
    keys = [Key(line.label, *look, line.faint) for line, look in zip(chart.lines, chart.looks, strict=True)]
    return [*keys, *([Key("alarms", ALARM_COLOUR)] if chart.spans else [])]


def component_label(name: str) -> str:
    """What a part of the reward is called on a page: `length` counts characters, where other lengths are in tokens."""
    return "length (characters)" if name == "length" else name


def series(lines: Sequence[Metrics], name: str) -> Series:
    """(steps, values) of a metric where it was measured and is a number."""
    pairs = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """The mean of the last `window` values, or of as many as there are."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def _reward(run: Curves) -> Chart:
    steps, values = series(run.metrics, collapse.REWARD)
    drawn = []
    if values:
        drawn.append(Line("training, each step", steps, values, faint=True))
        drawn.append(Line(f"training, mean of {run.window}", steps, moving_average(values, run.window)))
    if (validation := series(run.metrics, "val/reward"))[0]:
        drawn.append(Line("validation", *validation, dots=True))
    # The other alarms as single lines: their bands stand in their own charts.
    spans = [_span(e) for e in run.alarms if e.alarm.metric == collapse.REWARD]
    spans += [(e.alarm.since, e.alarm.since, e.alarm.name) for e in run.alarms if e.alarm.metric != collapse.REWARD]
    return Chart("Reward", "", drawn, spans)


def _components(lines: Sequence[Metrics], names: Sequence[str], mode: str) -> Chart:
    """The parts of the reward that are shares, zeros too; a part that is the reward itself stands in its chart already."""
    reward = series(lines, f"{mode}/reward")
    drawn = []
    for name in names:
        found = series(lines, f"{mode}/{name}")
        if name.startswith(_NO_SHARES) or not found[1] or found == reward or max(map(abs, found[1])) > 1:
            continue
        drawn.append(Line(name, *found, dots=mode == "val"))
    return Chart("Reward components" + (", validation" if mode == "val" else ""), "mean", drawn)


def _planned(plan: Plan, lines: Sequence[Metrics], alarms: Sequence[Episode]) -> Chart | None:
    found = {metric: series(lines, metric) for metric in plan.metrics}
    values = [value for _, some in found.values() for value in some]
    if not next(iter(found.values()))[0] or (plan.varied and len(set(values)) == 1):
        return None
    if plan.positive and not any(value > 0 for value in values):
        return None
    drawn = [
        Line(label, *found[metric], dots=metric.startswith("val/"))
        for metric, label in plan.metrics.items()
        if found[metric][0]
    ]
    spans = [_span(episode) for episode in alarms if episode.alarm.metric in plan.metrics]
    return Chart(plan.title, plan.unit, drawn, spans, log=plan.log)


def _phases(lines: Sequence[Metrics]) -> Chart | None:
    steps, totals = series(lines, STEP)
    parts = [phase_seconds(line) for line in lines if line.get(STEP) is not None]
    names = dict.fromkeys(name for part in parts for name in part)
    if not names:
        return None
    drawn = [Line(name, steps, [part.get(name, 0.0) for part in parts]) for name in names]
    rest = [max(0.0, total - sum(part.values())) for total, part in zip(totals, parts, strict=True)]
    return Chart("Step time by phase", "seconds", [*drawn, Line("other", steps, rest)], stacked=len(steps) > 1)


def _span(episode: Episode) -> tuple[float, float, str]:
    return episode.alarm.since, episode.until, episode.alarm.name
