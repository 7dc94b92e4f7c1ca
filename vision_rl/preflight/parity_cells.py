"""The questions of the parity check. Each cell is one way in which the two sides can see pictures differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vision_rl.media.references import video_reference

SIDE = 84
"""The side of a plain picture in pixels, for the tiny models; others are scaled from it."""
TOOL_REPLY, VIDEO = "picture in a tool's reply", "video"
FRAMES = 4
"""Of the video: the families that join two frames into one token see two of them."""


@dataclass(frozen=True)
class Cell:
    """One request. messages: as OpenAI's, a picture being {"type": "picture", "path": ...} and a video {"type": "video",
    "paths": [...]} of its frames.

    after_update: asked once more about known pictures when the server's weights have been replaced.
    """

    name: str
    messages: list[dict[str, Any]]
    temperature: float = 1.0
    after_update: bool = False

    def to_json(self) -> dict[str, Any]:
        """As plain data, for the server's process."""
        return asdict(self)

    @property
    def media(self) -> list[dict[str, Any]]:
        """The parts that are pictures or videos, in the order in which the model sees them."""
        contents = [message["content"] for message in self.messages if not isinstance(message["content"], str)]
        return [part for parts in contents for part in parts if part["type"] in ("picture", "video")]

    @property
    def pictures(self) -> list[str]:
        """The paths of its pictures and of its videos' frames."""
        return [path for part in self.media for path in part.get("paths") or [part["path"]]]

    @property
    def refs(self) -> list[str]:
        """Its pictures and videos as a trace names them."""
        named = [[Path(path).as_uri() for path in part.get("paths") or [part["path"]]] for part in self.media]
        return [
            video_reference(uris) if part["type"] == "video" else uris[0]
            for part, uris in zip(self.media, named, strict=True)
        ]

    @property
    def shows_video(self) -> bool:
        """Whether it is for families with videos of their own only."""
        return self.name == VIDEO


def cells(folder: Path, scale: int = 1) -> list[Cell]:
    """Every cell, its pictures written into `folder` with sides `scale` times those for a tiny model."""
    side = SIDE * scale
    sizes = {
        "a": (side, side),
        "b": (side, side),
        "wide": (4 * side // 2, side // 2),
        "tall": (side // 2, 4 * side // 2),
        "tiny": (10, 10),
    }
    paths = {name: _picture(folder / f"{name}.png", size, seed) for seed, (name, size) in enumerate(sizes.items())}
    frames = [_picture(folder / f"frame{seed}.png", (side, side), 100 + seed) for seed in range(FRAMES)]

    def user(*parts: str) -> dict[str, Any]:
        """Parts that name a picture are one, the rest is text."""
        content = [{"type": "picture", "path": paths[part]} if part in paths else _text(part) for part in parts]
        return {"role": "user", "content": content}

    one, two = [user("a", "What is this?")], [user("a", "first", "b", "second")]
    turns = [user("a", "Look."), {"role": "assistant", "content": "zoom"}, user("b", "Closer."), *_more(user)]
    call = {"id": "call_0", "type": "function", "function": {"name": "zoom", "arguments": "{}"}}
    shown = {"role": "user", "content": [{"type": "video", "paths": frames}, _text("What happens?")]}
    called = {"role": "assistant", "content": "zoom", "tool_calls": [call]}
    given = {"role": "tool", "tool_call_id": "call_0", "content": user("The part:", "tall")["content"]}
    return [
        Cell("one picture", one),
        Cell("two pictures", two),
        Cell("wide picture", [user("wide", "What is this?")]),
        Cell("tall picture", [user("tall", "What is this?")]),
        Cell("tiny picture", [user("tiny", "What is this?")]),
        Cell("pictures of different sizes", [user("wide", "and", "a", "and", "tall", "compared")]),
        Cell("several turns", turns),
        Cell(TOOL_REPLY, [user("a", "Look."), called, given, user("And now?")]),
        Cell(VIDEO, [shown]),
        Cell("text only", [user("What is this?")]),
        Cell("temperature 0.7", one, temperature=0.7),
        Cell("cached picture", one),
        Cell("after a weight update", two, after_update=True),
    ]


def _more(user: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": "zoom again"}, user("tall", "Closer still.")]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _picture(path: Path, size: tuple[int, int], seed: int) -> str:
    """Blocks of random colour: every part of the picture differs, and resizing does not average it away."""
    import numpy as np
    from PIL import Image

    blocks = np.random.default_rng(seed).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(path)
    return str(path)


def conversation(messages: Sequence[Mapping[str, Any]], medium: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """`messages` with each picture or video part replaced by `medium(part)`."""
    return [
        {
            **message,
            "content": message["content"]
            if isinstance(message["content"], str)
            else [part if part["type"] == "text" else medium(part) for part in message["content"]],
        }
        for message in messages
    ]
