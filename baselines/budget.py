"""Shrink pictures to a size budget; estimate what an API run will cost, and count what it has cost."""

from __future__ import annotations

import hashlib
import io
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from vision_rl.agent.messages import image_url
from vision_rl.errors import UserError
from vision_rl.files import write_bytes
from vision_rl.media.images import image_size, open_image

_SHRINK = 0.8
_ENCODINGS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (".png", "image/png", {"format": "PNG"}),
    (".jpg", "image/jpeg", {"format": "JPEG", "quality": 90}),
)
_SMALLEST_SIDE = 28
_TILE, _TILE_TOKENS, _BASE_TOKENS = 512, 170, 85
"""OpenAI's rule for high detail: 85 tokens and 170 per tile of 512 pixels. Others differ; the estimate says so."""
_CHARS_PER_TOKEN = 4
_PROMPT_CHARS = 240  # what the prompt adds to a question
_TOOL_TOKENS = 800  # a picture that a tool gives, and its sentence
_SAMPLE = 64


@dataclass(frozen=True)
class PictureBudget:
    """Limits of one picture as it is sent. uri_bytes: length of its data: URI; side: longest side in pixels."""

    folder: Path
    uri_bytes: int = 1_500_000
    side: int = 2048

    def fitted(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with pictures that fit, scaled copies in `folder` where they did not. Unit boxes stay true."""
        paths = [self.fit(Path(path)) for path in row["image_paths"]]
        return {
            **row,
            "image_paths": [str(path) for path in paths],
            "image_sizes": [list(image_size(p)) for p in paths],
        }

    def fit(self, path: Path) -> Path:
        """The picture itself if its data: URI fits, else a copy, PNG where that is small enough, JPEG otherwise."""
        if max(image_size(path)) <= self.side and len(image_url(str(path), "data")) <= self.uri_bytes:
            return path
        stamp = path.stat()
        name = f"{path}-{stamp.st_size}-{stamp.st_mtime_ns}-{self.uri_bytes}-{self.side}"
        stem = hashlib.sha256(name.encode()).hexdigest()[:20]
        for suffix in (".png", ".jpg"):
            if (self.folder / f"{stem}{suffix}").exists():
                return self.folder / f"{stem}{suffix}"
        return self._shrunk(path, stem)

    def _shrunk(self, path: Path, stem: str) -> Path:
        picture = open_image(path)
        picture.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
        while min(picture.size) >= _SMALLEST_SIDE:
            for suffix, mime, options in _ENCODINGS:
                buffer = io.BytesIO()
                picture.save(buffer, **options)
                if len(f"data:{mime};base64,") + 4 * math.ceil(buffer.tell() / 3) <= self.uri_bytes:
                    write_bytes(self.folder / f"{stem}{suffix}", buffer.getvalue())
                    return self.folder / f"{stem}{suffix}"
            size = (max(1, round(picture.width * _SHRINK)), max(1, round(picture.height * _SHRINK)))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        raise UserError(f"{path} cannot be sent within --image-bytes {self.uri_bytes}; raise it")


@dataclass(frozen=True)
class Prices:
    """Currency units per million tokens; None where the user gave none."""

    prompt: float | None
    completion: float | None

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """What so many tokens cost; None without prices."""
        if self.prompt is None or self.completion is None:
            return None
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class Estimate:
    """Before anything is sent. completion_tokens: at most, if every answer takes all it may; megabytes of pictures."""

    rows: int
    pictures: int
    megabytes: float
    prompt_tokens: int
    completion_tokens: int
    cost: float | None

    def render(self) -> str:
        """The estimate in a sentence or two."""
        text = (
            f"{self.rows} rows, {self.pictures} pictures, about {self.megabytes:.1f} MB to send; "
            f"about {self.prompt_tokens} prompt tokens, at most {self.completion_tokens} completion tokens"
        )
        if self.cost is None:
            return text + "; give --price-in and --price-out for the cost"
        return text + f"; about {self.cost:.4f} at most (in the currency of the prices)"


def estimate(
    rows: Sequence[Mapping[str, Any]], budget: PictureBudget, max_tokens: int, prices: Prices, turns: int = 1
) -> Estimate:
    """What a run over `rows` would take; pictures are measured on an even sample of 64 rows.

    turns: replies that an agent with tools may give to a row; each of them is sent all that went before, and one more picture.
    """
    sample = rows[:: max(1, len(rows) // _SAMPLE)]
    scale = len(rows) / max(1, len(sample))
    with tempfile.TemporaryDirectory() as folder:
        fitted = [replace(budget, folder=Path(folder)).fitted(row) for row in sample]
        sizes = [size for row in fitted for size in row["image_sizes"]]
        sent = sum(len(image_url(path, "data")) for row in fitted for path in row["image_paths"])
    text = sum(math.ceil((len(row["question"]) + _PROMPT_CHARS) / _CHARS_PER_TOKEN) for row in rows)
    first = text + round(scale * sum(picture_tokens(width, height) for width, height in sizes))
    prompt = turns * first + len(rows) * turns * (turns - 1) // 2 * (_TOOL_TOKENS + max_tokens)
    completion = len(rows) * turns * max_tokens
    pictures = sum(len(row["image_paths"]) for row in rows)
    return Estimate(len(rows), pictures, scale * sent / 1e6, prompt, completion, prices.cost(prompt, completion))


def picture_tokens(width: int, height: int) -> int:
    """Prompt tokens of a picture by OpenAI's rule: into 2048 x 2048, shorter side to 768, then tiles of 512."""
    shrink = min(1.0, 2048 / max(width, height))
    width, height = round(width * shrink), round(height * shrink)
    shrink = min(1.0, 768 / min(width, height))
    tiles = math.ceil(round(width * shrink) / _TILE) * math.ceil(round(height * shrink) / _TILE)
    return _BASE_TOKENS + _TILE_TOKENS * tiles
