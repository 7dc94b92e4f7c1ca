"""The questions that are put to both sides: each cell is one way in which pictures can be seen differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SIDE = 84
"""The side of a plain picture in pixels, for the tiny models; others are scaled from it."""


@dataclass(frozen=True)
class Cell:
    """One request. messages: as OpenAI's, a picture being {"type": "picture", "path": ...}.

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
    def pictures(self) -> list[str]:
        """The paths of its pictures, in the order in which the model sees them."""
        parts = [
            part for message in self.messages if not isinstance(message["content"], str) for part in message["content"]
        ]
        return [part["path"] for part in parts if part["type"] == "picture"]


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

    def user(*parts: str) -> dict[str, Any]:
        """Parts that name a picture are one, the rest is text."""
        content = [{"type": "picture", "path": paths[part]} if part in paths else _text(part) for part in parts]
        return {"role": "user", "content": content}

    one, two = [user("a", "What is this?")], [user("a", "first", "b", "second")]
    turns = [user("a", "Look."), {"role": "assistant", "content": "zoom"}, user("b", "Closer."), *_more(user)]
    return [
        Cell("one picture", one),
        Cell("two pictures", two),
        Cell("wide picture", [user("wide", "What is this?")]),
        Cell("tall picture", [user("tall", "What is this?")]),
        Cell("tiny picture", [user("tiny", "What is this?")]),
        Cell("pictures of different sizes", [user("wide", "and", "a", "and", "tall", "compared")]),
        Cell("several turns", turns),
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


def conversation(messages: Sequence[Mapping[str, Any]], picture: Any) -> list[dict[str, Any]]:
    """`messages` with each picture part replaced by `picture(path)`."""
    return [
        {
            **message,
            "content": message["content"]
            if isinstance(message["content"], str)
            else [picture(part["path"]) if part["type"] == "picture" else part for part in message["content"]],
        }
        for message in messages
    ]
