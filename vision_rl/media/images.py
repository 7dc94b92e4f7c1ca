"""Open images in one way for verification, agents and training.

Rules: the EXIF orientation is applied (boxes and sizes are those of the picture as people see it); of an animation or a
multi-page file the first frame counts; transparency is laid over white (as vLLM does); 16-bit and float grey images are
stretched between two percentiles of their values (`stretched`); everything ends as 8-bit RGB. A file that is missing, empty,
truncated, of an unknown format or larger than a limit in pixels is refused with a `UserError` that names it.
"""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from vision_rl.errors import UserError

# Pillow warns at this size and refuses at twice the size; a picture of 89 megapixels takes 270 MB as RGB.
LIMIT_PIXELS = 89_478_485
# Every size is checked against that limit; set once, because the warnings module cannot be changed for one thread only.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
MAX_ASPECT = 200
"""Longer by shorter side: what smart_resize of the Qwen-VL processors takes (transformers, image_processing_qwen2_vl.py)."""
# No EPS (runs Ghostscript), no PDF, no formats that a model's own loader could not open.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

# What Pillow's decoders raise on damaged data: tests cut and corrupt a file of every format.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error)
_STRETCHED_MODES = ("I", "F")
_LARGEST_16 = 65535
_PERCENTILES = (0.5, 99.5)
_ROTATED_BY_90 = (5, 6, 7, 8)


def open_image(path: str | Path | io.BytesIO, *, limit_pixels: int = LIMIT_PIXELS) -> Image.Image:
    """The picture as 8-bit RGB with its pixels loaded; raises `UserError` naming the file if it cannot be had whole."""
    with _opened(path, limit_pixels) as image:
        upright = _orientation(image) == 1
        image.load()
        return _to_rgb(image if upright else ImageOps.exif_transpose(image))


def image_size(path: str | Path | io.BytesIO, *, limit_pixels: int = LIMIT_PIXELS) -> tuple[int, int]:
    """(width, height) in pixels of what `open_image` would return, from the file's header alone."""
    with _opened(path, limit_pixels) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in _ROTATED_BY_90 else (width, height)


def served_unchanged(path: str | Path, *, by_vllm: bool = False) -> bool:
    """Whether a server that opens the file itself sees the same pixels as `open_image`; else it must be given those.

    by_vllm: stock vLLM 0.24 (`vllm/multimodal/media/image.py`), which applies an EXIF rotation and lays transparency over
    white; it cuts more than 8 bits off, and does not look for the transparent colour of an RGB picture. Of other servers
    nothing is supposed: rotation, depth and any transparency but RGBA's are said no to.
    """
    with _opened(path, LIMIT_PIXELS) as image:
        if _is_deep(image):
            return False
        if by_vllm:
            return image.mode != "RGB" or not _has_transparency(image)
        return _orientation(image) == 1 and (image.mode == "RGBA" or not _has_transparency(image))


def too_narrow(width: int, height: int) -> str:
    """Why a picture of this size is refused by the models' processors, as a predicate; "" for one that is not."""
    if max(width, height) <= MAX_ASPECT * min(width, height):
        return ""
    return f"is {width} x {height}, its aspect ratio is above {MAX_ASPECT}, which processors refuse; crop it"


def pixel_hash(image: Image.Image) -> str:
    """Hash of an RGB picture's size and pixels: equal for the same picture under another name or lossless format."""
    digest = hashlib.blake2b(struct.pack("<II", *image.size), digest_size=16)
    digest.update(np.asarray(image).data)
    return digest.hexdigest()


@contextmanager
def _opened(path: str | Path | io.BytesIO, limit_pixels: int) -> Iterator[Image.Image]:
    name = "embedded image" if isinstance(path, io.BytesIO) else str(path)
    if not isinstance(path, io.BytesIO):
        _check_file(Path(path))
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > limit_pixels:
                raise _too_large(name, f"{image.width} x {image.height}", limit_pixels)
            yield image
    except Image.UnidentifiedImageError as error:
        raise UserError(
            f"{name} is not a picture in a known format ({', '.join(FORMATS)}); convert it to PNG"
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, "its header", limit_pixels) from error
    except (*_DAMAGE, zlib.error) as error:
        raise UserError(f"{name} is damaged or incomplete ({error}); fetch or export it again") from error


def _check_file(path: Path) -> None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist; check the image directory") from None
    except (OSError, ValueError) as error:
        name, reason = str(path), getattr(error, "strerror", None) or error
        raise UserError(f"{name[:200]} is not a name that can be opened ({reason}); correct it") from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is not a file; name an image file")
    if found.st_size == 0:
        raise UserError(f"{path} is empty (0 bytes); fetch it again")


def _too_large(name: str, size: str, limit_pixels: int) -> UserError:
    return UserError(f"{name} has too many pixels ({size}, limit {limit_pixels}); scale it down or remove the row")


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1  # getexif() would decode the whole picture (40 ms for a screenshot) to look behind it
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def _is_deep(image: Image.Image) -> bool:
    return image.mode in _STRETCHED_MODES or image.mode.startswith("I;")


def _has_transparency(image: Image.Image) -> bool:
    return image.has_transparency_data


def _to_rgb(image: Image.Image) -> Image.Image:
    if _is_deep(image):
        values = np.asarray(image)
        return Image.fromarray(stretched(values, border_of(values))).convert("RGB")
    if _has_transparency(image):
        with_alpha = image.convert("RGBA")
        flat = Image.new("RGB", image.size, (255, 255, 255))
        flat.paste(with_alpha, mask=with_alpha.getchannel("A"))
        return flat
    return image.convert("RGB")


def stretched(
    values: NDArray[Any], padding: NDArray[np.bool_], saturated: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Grey values of any range (height, width) as 8 bits: from the 0.5 to the 99.5 percentile of what the picture shows.

    A burnt-in marker or a hot pixel has no say in the range and ends white: `saturated`, by default the largest value of
    16 bits. Nor have padding (see `border_of`) and what is not finite, which end black.
    """
    shown = np.isfinite(values) & ~padding
    seen = values[shown]
    if not seen.size:
        return np.zeros(values.shape, np.uint8)
    inside = seen[seen != _LARGEST_16] if saturated is None else seen[~saturated[shown]]
    if saturated is None and seen.max() > _LARGEST_16:  # of a wider type, where that value is one like others
        inside = seen
    low, high = np.percentile(inside, _PERCENTILES) if inside.size else (0.0, 0.0)
    if high <= low:  # a few pixels on an even ground
        low, high = float(seen.min()), float(seen.max())
    return scaled_grey(values, low, high, ~shown)


def scaled_grey(values: NDArray[Any], low: float, high: float, black: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Values as 8 bits, `low` being 0 and `high` 255, cut off beyond; black where `black` says so, or all if no range."""
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    exact = np.float32 if values.dtype.itemsize <= 2 else np.float64
    grey = (np.where(black, exact(low), values.astype(exact, copy=False)) - exact(low)) * exact(255 / (high - low))
    return np.clip(grey, 0, 255, out=grey).round().astype(np.uint8)


def border_of(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a margin of one value is: at least two lines of an edge, and what hangs together with them."""
    from scipy.ndimage import label  # here, since few pictures need it and every process imports this module

    border = np.zeros(values.shape, np.bool_)
    for edge, next_to_it in ((0, 1), (-1, -2)):
        for lines in (values, values.T):
            found = lines[edge][0]
            if len(lines) < 3 or not (lines[edge] == found).all() or not (lines[next_to_it] == found).all():
                continue
            parts, _ = label(lines == found)
            (border if lines is values else border.T)[parts == parts[edge][0]] = True
    return border
