"""Tools that act on the picture: zoom_ui_element, inspect_element, wait_for_ui.

A call is checked strictly and answered always: with a picture, with text, or with an error text that tells the model
how to call. Nothing here raises for what a model wrote, sleeps, or reads boxes, labels or answers of the row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vision_rl.answers.boxes import Box
from vision_rl.answers.parsing import ToolCall
from vision_rl.answers.zoom import SizeLimits, View, crop_box, zoom
from vision_rl.media.images import open_image

ZOOM_FACTORS = (1.0, 4.0)
SECONDS = (0.1, 5.0)
ASPECTS = ("structure", "properties", "accessibility")
SLACK = 0.1
"""A region may end this far outside of the picture and is clamped; further out it is not in unit space at all."""

PICTURE = "<picture>"
_EDGE = 32  # grey levels between neighbours
_MAX_NODES = 20
_MAX_NAME = 80

_REGION = {
    "type": "array",
    "items": {"type": "number"},
    "minItems": 4,
    "maxItems": 4,
    "description": "[x1, y1, x2, y2] as fractions of the first picture's width and height",
}


def _function(name: str, description: str, properties: dict[str, Any], required: Sequence[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS: list[dict[str, Any]] = [
    _function(
        "zoom_ui_element",
        "Look closer: get a region of the picture enlarged.",
        {"region": _REGION, "zoom_factor": {"type": "number", "minimum": ZOOM_FACTORS[0], "maximum": ZOOM_FACTORS[1]}},
        ["region", "zoom_factor"],
    ),
    _function(
        "inspect_element",
        "Measure a region: its edges, its size and colours, or what the accessibility tree says.",
        {"region": _REGION, "type": {"type": "string", "enum": list(ASPECTS)}},
        ["region", "type"],
    ),
    _function(
        "wait_for_ui",
        "Wait, then look again.",
        {"duration": {"type": "number", "minimum": SECONDS[0], "maximum": SECONDS[1], "description": "seconds"}},
        ["duration"],
    ),
]
"""OpenAI function tools."""


def tools_text() -> str:
    """The tools as text, for models whose chat template knows no tools: Qwen2.5's own words and format."""
    lines = "\n".join(json.dumps(tool["function"]) for tool in TOOLS)
    return (
        f"# Tools\nYou may call these functions before you answer:\n<tools>\n{lines}\n</tools>\n"
        'To call one, reply <tool_call>{"name": <name>, "arguments": <object>}</tool_call> and wait for its result.'
    )


@dataclass(frozen=True)
class ToolResult:
    """What a call gives back. text: for the model; picture and its view, where there is one; error: it was refused.

    `PICTURE` in the text of a result with a picture stands for the picture's number in the conversation.
    """

    text: str
    picture: Image.Image | None = None
    view: View | None = None
    error: bool = False

    def numbered(self, number: int) -> str:
        """The text, with the picture's number filled in."""
        return self.text if self.picture is None else self.text.replace(PICTURE, f"Picture {number}")


class _Refused(Exception):
    """A bad argument; the message is for the model."""


class ToolBox:
    """The tools of one conversation.

    frames: files that show the screen one after the other; the tools act on the first, and `wait_for_ui` moves on.
    meta: the row's metadata, of which only `accessibility` is read: a list of {"role", "name", "bounds" (xyxy, unit)}.
    """

    def __init__(self, frames: Sequence[str], meta: Mapping[str, Any], limits: SizeLimits) -> None:
        self.frames = frames
        self.meta = meta
        self.limits = limits
        self.now = 0

    def run(self, call: ToolCall) -> ToolResult:
        """Carry a call out. Raises `UserError` only if the picture itself cannot be opened."""
        if call.error:
            return ToolResult(f"Error: {call.error}", error=True)
        tools = {"zoom_ui_element": self._zoom, "inspect_element": self._inspect, "wait_for_ui": self._wait}
        if call.name not in tools:
            return ToolResult(
                f"Error: there is no tool {call.name[:40]!r}; the tools are {', '.join(tools)}.", error=True
            )
        try:
            return tools[call.name](call.arguments)
        except _Refused as refusal:
            return ToolResult(f"Error: {call.name}: {refusal}", error=True)

    def picture(self) -> Image.Image:
        """The frame that the tools see now, as RGB."""
        return open_image(self.frames[self.now])

    def _zoom(self, arguments: Mapping[str, Any]) -> ToolResult:
        _only(arguments, "region", "zoom_factor")
        region = _region(arguments)
        factor = _number(arguments, "zoom_factor", *ZOOM_FACTORS)
        picture, view = zoom(self.picture(), region, factor, self.limits)
        return ToolResult(f"{PICTURE} shows region {region_text(view.box)} of picture 1.", picture, view)

    def _wait(self, arguments: Mapping[str, Any]) -> ToolResult:
        _only(arguments, "duration")
        seconds = _number(arguments, "duration", *SECONDS)
        if self.now + 1 >= len(self.frames):
            return ToolResult(f"Nothing has changed after {seconds:g} seconds.")
        self.now += 1
        picture = self.picture()
        size = self.limits.processed(picture.size)
        shown = picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
        return ToolResult(f"{PICTURE} shows the screen {seconds:g} seconds later.", shown, View(size))

    def _inspect(self, arguments: Mapping[str, Any]) -> ToolResult:
        _only(arguments, "region", "type")
        region = _region(arguments)
        aspect = arguments.get("type")
        if aspect not in ASPECTS:
            raise _Refused(f"type must be one of {', '.join(ASPECTS)}")
        if aspect == "accessibility":
            return ToolResult(accessibility(self.meta.get("accessibility"), region))
        picture = self.picture()
        pixels = crop_box(region, picture.size, 1)
        return ToolResult(f"Region {region_text(region)}: {measured(picture.crop(pixels), aspect)}.")


def measured(crop: Image.Image, aspect: str) -> str:
    """ "properties": size, mean colour and contrast of a crop; "structure": how much of it is edge, and which way."""
    grey = np.asarray(crop.convert("L"), dtype=np.float64)
    if aspect == "properties":
        red, green, blue = (int(value) for value in np.asarray(crop).reshape(-1, 3).mean(axis=0).round())
        contrast = (grey.max() - grey.min()) / 255
        return f"{crop.width} x {crop.height} pixels, mean colour rgb({red}, {green}, {blue}), contrast {contrast:.2f}"
    upright, level = (np.abs(np.diff(grey, axis=axis)) > _EDGE for axis in (1, 0))
    shares = [float(edges.mean()) if edges.size else 0.0 for edges in (upright, level)]
    return f"{crop.width} x {crop.height} pixels, upright edges {shares[0]:.1%}, level edges {shares[1]:.1%}"


def accessibility(tree: Any, region: Box) -> str:
    """Role and name of the nodes whose centre lies in the region; no bounds: those would be the answer."""
    if not isinstance(tree, list) or not tree:
        return "There is no accessibility tree for this screen."
    found = [_node_text(node) for node in tree if isinstance(node, Mapping) and _centre_in(node.get("bounds"), region)]
    return "Elements here: " + ("; ".join(found[:_MAX_NODES]) if found else "none") + "."


def _node_text(node: Mapping[str, Any]) -> str:
    return f"{str(node.get('role', 'element'))[:_MAX_NAME]} {str(node.get('name', ''))[:_MAX_NAME]!r}"


def _centre_in(bounds: Any, region: Box) -> bool:
    if not isinstance(bounds, Sequence) or len(bounds) != 4 or not all(isinstance(n, int | float) for n in bounds):
        return False
    x, y = (bounds[0] + bounds[2]) / 2, (bounds[1] + bounds[3]) / 2
    return bool(region[0] <= x <= region[2] and region[1] <= y <= region[3])


def region_text(box: Box) -> str:
    """A region with two decimals, or three where they are needed."""
    return "[" + ", ".join(text[:-1] if (text := f"{value:.3f}").endswith("0") else text for value in box) + "]"


def _only(arguments: Mapping[str, Any], *names: str) -> None:
    unknown = sorted(str(name)[:40] for name in set(arguments) - set(names))
    if unknown:
        raise _Refused(f"unknown argument {', '.join(unknown[:3])}; it takes {' and '.join(names)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(arguments: Mapping[str, Any], name: str, low: float, high: float) -> float:
    value = arguments.get(name)
    if not _is_number(value) or not low <= float(value) <= high:  # type: ignore[arg-type]
        raise _Refused(f"{name} must be a number from {low:g} to {high:g}")
    return float(value)  # type: ignore[arg-type]


def _region(arguments: Mapping[str, Any]) -> Box:
    """The region, clamped to the picture."""
    value = arguments.get("region")
    if not isinstance(value, list) or len(value) != 4 or not all(_is_number(number) for number in value):
        raise _Refused("region must be four numbers [x1, y1, x2, y2]")
    if not all(-SLACK <= number <= 1 + SLACK for number in value):
        raise _Refused("region must be fractions of the picture, from 0 to 1")
    x1, y1, x2, y2 = (min(max(float(number), 0.0), 1.0) for number in value)
    if not (x1 < x2 and y1 < y2):
        raise _Refused("region must have x1 < x2 and y1 < y2")
    return x1, y1, x2, y2
