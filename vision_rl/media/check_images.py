"""Open every picture of a data set once, in parallel: its size and content hash, or why it is unusable."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from vision_rl.errors import UserError
from vision_rl.media.images import LIMIT_PIXELS, image_size, open_image, pixel_hash


@dataclass(frozen=True)
class ImageCheck:
    """What opening one file gave; `error` is empty when it is usable, then `size` is (width, height) in pixels.

    grey_levels: how many a grey picture has; None for a picture in colour.
    """

    path: str
    size: tuple[int, int] = (0, 0)
    content: str = ""
    error: str = ""
    grey_levels: int | None = None


def check_images(
    paths: Iterable[str], *, workers: int | None = None, limit_pixels: int = LIMIT_PIXELS
) -> Iterator[ImageCheck]:
    """Yield one `ImageCheck` per path, in order, opened by `workers` threads (default: one per core).

    Threads, because Pillow and hashlib release the interpreter lock where the time goes. Raises `UserError` for fewer
    than one worker.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers} is too small; give 1 or more")
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        yield from pool.map(partial(check_image, limit_pixels=limit_pixels), paths)


def check_image(path: str, *, limit_pixels: int = LIMIT_PIXELS) -> ImageCheck:
    """Open one picture completely; never raises for a bad file."""
    try:
        image = open_image(path, limit_pixels=limit_pixels)
    except UserError as error:
        return ImageCheck(path, error=str(error))
    red, green, blue = image.split()
    is_grey = red.tobytes() == green.tobytes() == blue.tobytes()
    levels = sum(count > 0 for count in red.histogram()) if is_grey else None
    return ImageCheck(path, image.size, pixel_hash(image), grey_levels=levels)


def check_row_images(rows: Sequence[Mapping[str, Any]], path: object) -> None:
    """Open the header of every image that the run will use; raises `UserError` naming row and file."""
    with ThreadPoolExecutor(8) as pool:
        for number, problem in enumerate(pool.map(_problem, rows)):
            if problem:
                raise UserError(f"{path}, row {number}: {problem}; data_utils.py verify --drop-bad writes a clean file")


def _problem(row: Mapping[str, Any]) -> str:
    try:
        for image in row["image_paths"]:
            image_size(image)
    except UserError as error:
        return str(error)
    return ""
