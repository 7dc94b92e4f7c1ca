"""The one page of runs and evaluations: what it is made of, and how it becomes HTML that needs nothing beside itself.

Everything from models, data or workers passes Jinja's escaping; charts travel as JSON that a script element cannot be
ended by; a content security policy lets no other script run.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jinja2
from plotly.offline import get_plotlyjs

from vision_rl.report.cards import Card
from vision_rl.report.charts import Key, component_label


class Cell(NamedTuple):
    """A cell of a table: text, what it is sorted by (None: the text), and a small note below."""

    text: str
    value: float | None = None
    note: str = ""


Row = Cell | str | float | None
"""What a table holds in one place."""


@dataclass(frozen=True)
class Table:
    """A table that a click on a column's head sorts. Numbers are shown with three digits, None as a dash."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Row]]
    note: str = ""


class Tile(NamedTuple):
    """A figure at the top."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Alarm:
    """Something that went wrong. link: filters (name -> value) that show its rollouts; empty if the page has none."""

    name: str
    text: str
    cures: Sequence[str] = ()
    link: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawing:
    """A figure of Plotly, as JSON values, under its title and its legend: an entry for each of its first traces."""

    title: str
    figure: Mapping[str, Any]
    legend: Sequence[Key] = ()


@dataclass(frozen=True)
class Page:
    """What stands on the page, from top to bottom.

    calm: what is said where there is no alarm. filters: names of the answers' facets to choose by. selection: which
    rollouts the page holds, in words. steps: all that a live page can be asked for.
    """

    title: str
    subtitle: str
    tiles: Sequence[Tile] = ()
    alarms: Sequence[Alarm] = ()
    calm: str = ""
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()
    cards: Sequence[Card] = ()
    selection: str = ""
    lists: Mapping[str, Sequence[str]] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    steps: Sequence[int] = ()


FACETS = ("run", "mode", "step", "source", "worker", "failure", "outcome", "end")
"""What answers are filtered by, beside reward, advantage and words; a facet of one value is not shown."""


def render(page: Page, *, version: str = "") -> str:
    """The page as HTML. version: of a live page, which then loads Plotly from its server and asks for newer ones."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vision_rl.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html").render(
        page=page,
        facets=facet_values(page.cards),
        figures=[drawing.figure for drawing in page.drawings],
        plotly="" if version else get_plotlyjs(),
        nonce=secrets.token_urlsafe(16),
        version=version,
        number=number,
        cell=cell,
        components=components,
        pushed=any(answer.push for card in page.cards for answer in card.answers),
        kinds={mark.kind for card in page.cards for picture in card.pictures for mark in picture.marks},
    )


def facet_values(cards: Sequence[Card]) -> dict[str, list[str]]:
    """facet -> its values among the answers, numbers in their order; facets that do not differ are left out."""
    found: dict[str, set[str]] = {}
    for card in cards:
        for answer in card.answers:
            for name, value in (answer.facets or {}).items():
                if value:
                    found.setdefault(name, set()).add(value)
    return {name: sorted(found[name], key=_natural) for name in FACETS if len(found.get(name, ())) > 1}


def _natural(value: str) -> tuple[float, str]:
    return (float(value), "") if value.isdecimal() else (float("inf"), value)


def number(value: float | None) -> str:
    """A figure with three digits after the point, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def cell(value: Row) -> Cell:
    """What a table holds, as a cell."""
    if isinstance(value, Cell):
        return value
    return Cell(value) if isinstance(value, str) else Cell(number(value), value)


def components(reward: Mapping[str, float]) -> list[tuple[str, float]]:
    """(part, value) of a reward, zeros too, without the reward itself."""
    return [(component_label(name), value) for name, value in reward.items() if name != "reward"]
