"""Screens that need a second look: four tiles, one of them hatched, large, or too fine to see.

A picture of 224 x 224 pixels is shown to the tiny model at half its size. The large tiles' hatching survives that;
that of the small ones has a period of two pixels, which halving turns into plain grey (tests measure it), and comes
back when a quarter of the screen is zoomed into. So on small targets the best single look is right one time in four.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vision_rl.answers.boxes import Box
from vision_rl.data.schema import write_rows

SIDE = 224
QUARTER = SIDE // 2
HATCHINGS = ("upright", "level", "chequered")
INSTRUCTION = "Find the hatched tile."
SMALL_SHARE = 0.6
_TILES = {"small": (28, 24, 1), "large": (56, 52, 7)}
"""(side of a tile's cell, side of the tile, width of a stripe), in pixels; a cell is one visual token as it is shown."""
_FADE = 5
_CONTRAST = 55.0


@dataclass(frozen=True)
class ZoomScene:
    """One screen. tiles: boxes, xyxy in unit space; target: which is hatched; region: the target's quarter of the screen."""

    image: Image.Image
    tiles: tuple[Box, ...]
    target: int
    size: str
    region: Box

    @property
    def box(self) -> Box:
        """The target."""
        return self.tiles[self.target]


def draw_scene(rng: random.Random, size: str | None = None) -> ZoomScene:
    """Draw a screen with "small" or "large" tiles (None: small in `SMALL_SHARE` of all).

    The four tiles stand in a square: small ones in the middle of a quarter of the screen, large ones around its centre.
    """
    size = size or ("small" if rng.random() < SMALL_SHARE else "large")
    cell, side, stripe = _TILES[size]
    quarter = (rng.randrange(2) * QUARTER, rng.randrange(2) * QUARTER) if size == "small" else (0, 0)
    pixels = _background(rng)
    base, target, hatching = rng.uniform(60, 80), rng.randrange(4), rng.choice(HATCHINGS)
    tiles = []
    for position in range(4):
        x, y = (
            corner + cell * (1 + place) + (cell - side) // 2
            for corner, place in zip(quarter, divmod(position, 2), strict=True)
        )
        pixels[y : y + side, x : x + side] += base
        if position == target:
            pixels[y : y + side, x : x + side] += _hatched(hatching, (x, y, side, side), stripe)[..., None]
        tiles.append((x / SIDE, y / SIDE, (x + side) / SIDE, (y + side) / SIDE))
    x1, y1, x2, y2 = tiles[target]
    left, top = float((x1 + x2) / 2 >= 0.5) / 2, float((y1 + y2) / 2 >= 0.5) / 2
    picture = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    return ZoomScene(picture, tuple(tiles), target, size, (left, top, left + 0.5, top + 0.5))


def _background(rng: random.Random) -> np.ndarray:
    """(SIDE, SIDE, 3): a wallpaper that tells where a place lies, also behind the tiles, which let it through.

    Each quarter shades from left to right in red and from top to bottom in blue, and green counts the quarters. The
    vision tower knows relative positions only (see `scenes.py`).
    """
    place = np.arange(SIDE) % QUARTER * (80 / QUARTER)
    quarter = np.arange(SIDE) // QUARTER
    pixels = np.empty((SIDE, SIDE, 3))
    pixels[..., 0] = place[None, :]
    pixels[..., 1] = 25 * quarter[None, :] + 50 * quarter[:, None]
    pixels[..., 2] = place[:, None]
    return pixels + rng.uniform(0, 10)


def _hatched(hatching: str, tile: tuple[int, int, int, int], stripe: int) -> np.ndarray:
    """(height, width): hatching of mean 0 that fades out towards the tile's border, so that no border line betrays it.

    tile: (x, y, width, height). Stripes are counted from the picture's corner: a patch always sees them in the same
    phase, which makes them easy to learn.
    """
    left, top, width, height = tile
    across, down = np.meshgrid(np.arange(left, left + width) // stripe, np.arange(top, top + height) // stripe)
    phase = {"upright": across, "level": down, "chequered": across + down}[hatching]
    return _CONTRAST * (1 - 2 * (phase % 2)) * _fade(width)[None, :] * _fade(height)[:, None]


def _fade(length: int) -> np.ndarray:
    ramp = np.sin(np.linspace(0, np.pi / 2, _FADE + 2)[1:-1]) ** 2
    return np.concatenate([ramp, np.ones(length - 2 * _FADE), ramp[::-1]])


def write_zoom_tasks(directory: str | Path, train: int = 512, val: int = 120, seed: int = 0) -> dict[str, Path]:
    """Write `directory/{train,val}.parquet` with their pictures; returns the paths by split. Every picture is new."""
    folder, rng = Path(directory), random.Random(f"zoom-{seed}")
    paths = {}
    for split, size in (("train", train), ("val", val)):
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        paths[split] = folder / f"{split}.parquet"
        write_rows(paths[split], _rows(folder, split, size, rng))
    return paths


def _rows(folder: Path, split: str, size: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    for number in range(size):
        scene = draw_scene(rng)
        path = f"images/{split}/{number:05d}.png"
        scene.image.save(folder / path, compress_level=1)
        yield {
            "id": f"zoom-{split}-{number:05d}",
            "task": "grounding",
            "image_paths": [path],
            "media": "images",
            "question": INSTRUCTION,
            "answers": [],
            "boxes": [list(scene.box)],
            "labels": ["tile"],
            "image_sizes": [[SIDE, SIDE]],
            "source": "synthetic-zoom",
            "meta": {"target_size": scene.size},
        }
