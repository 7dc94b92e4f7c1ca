"""Pictures and charts for pages that stand alone: everything as a data: URI."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vision_rl.boxes import Box

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
COLOURS = ("#2f6fdb", "#d6246e", "#0a8f3c", "#e07b00", "#7a4bc2", "#0097a7", "#8d6e63", "#5b6472", "#c0b000")
ALARM_COLOUR = "#c0392b"
_JPEG_QUALITY = 88
_LEGEND_COLUMNS = 4


@dataclass(frozen=True)
class Picture:
    """A picture for a page. width, height: pixels of what is shown; view: the part of the image, xyxy in unit space."""

    uri: str
    width: int
    height: int
    view: Box = WHOLE
    title: str = ""


@dataclass(frozen=True)
class Chart:
    """Lines over steps. lines: name -> (steps, values); dots: those with a mark at every value; faint: those behind.

    spans: (first step, last step, name) of what is to be marked; equal steps give a line. stacked: lines are parts of a
    whole.
    """

    title: str
    unit: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    dots: Sequence[str] = ()
    faint: Sequence[str] = ()
    spans: Sequence[tuple[float, float, str]] = ()
    log: bool = False
    stacked: bool = False


def picture(image: Image.Image, *, side: int = 480, view: Box = WHOLE, title: str = "") -> Picture:
    """The part `view` of an RGB image, at most `side` pixels wide and high, as the shorter of PNG and JPEG."""
    left, top = round(view[0] * image.width), round(view[1] * image.height)
    right, bottom = max(round(view[2] * image.width), left + 1), max(round(view[3] * image.height), top + 1)
    part = image.crop((left, top, right, bottom))
    # What was cut, to the pixel: boxes that are drawn over it must lie on it.
    exact = (left / image.width, top / image.height, right / image.width, bottom / image.height)
    part.thumbnail((side, side), Image.Resampling.LANCZOS)
    png, jpeg = _encoded(part, "PNG"), _encoded(part, "JPEG")
    mime, data = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
    return Picture(data_uri(data, f"image/{mime}"), part.width, part.height, exact, title)


def data_uri(data: bytes, mime: str) -> str:
    """Bytes as an address that needs no file."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def chart_uri(chart: Chart) -> str:
    """The chart as SVG; a single value is a point, a chart without values is an error of the caller."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "svg.hashsalt": chart.title}):
        figure = Figure(figsize=(5.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, chart)
        named = len(chart.lines) > 1 or chart.stacked
        rows = -(-len(chart.lines) // _LEGEND_COLUMNS) if named else 0
        axes.set_title(chart.title, loc="left", fontsize=10, fontweight="bold", pad=6 + 12 * rows)
        axes.set_ylabel(chart.unit)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if named:
            place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.99), "borderaxespad": 0.2}
            axes.legend(fontsize=8, frameon=False, ncols=_LEGEND_COLUMNS, columnspacing=1.2, handlelength=1.4, **place)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return data_uri(buffer.getvalue(), "image/svg+xml")


def _draw(axes: Any, chart: Chart) -> None:
    """Lines, marks and the scale, on axes of matplotlib."""
    if chart.stacked:
        steps = next(iter(chart.lines.values()))[0]
        shares = [values for _, values in chart.lines.values()]
        axes.stackplot(steps, shares, labels=list(chart.lines), colors=COLOURS, linewidth=0)
    else:
        for colour, (name, (x, y)) in zip(COLOURS * 4, chart.lines.items(), strict=False):
            faint = name in chart.faint
            marker = "o" if name in chart.dots or len(y) == 1 else ""
            axes.plot(x, y, marker=marker, markersize=4, color=colour, label=name, alpha=0.35 if faint else 1.0)
    if chart.log:
        axes.set_yscale("log")
    for index, (start, end, name) in enumerate(chart.spans):
        if end > start:
            axes.axvspan(start - 0.5, end + 0.5, color=ALARM_COLOUR, alpha=0.1, linewidth=0)
        axes.axvline(start - 0.5, color=ALARM_COLOUR, linewidth=0.8, alpha=0.7)
        # Names of alarms that begin together stand below each other.
        height = 0.99 - 0.34 * (index % 3)
        place = {"transform": axes.get_xaxis_transform(), "rotation": 90, "va": "top", "ha": "right"}
        axes.text(start - 0.5, height, name, color=ALARM_COLOUR, fontsize=7, **place)


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": _JPEG_QUALITY} if kind == "JPEG" else {"optimize": True}))
    return buffer.getvalue()
