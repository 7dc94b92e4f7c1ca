"""Pictures for tests of the engine."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image


def noise_picture(seed: int) -> bytes:
    """A PNG of one megapixel that does not compress: 1 MB."""
    pixels = random.Random(seed).randbytes(1000 * 1000)
    buffer = io.BytesIO()
    Image.frombytes("L", (1000, 1000), pixels).save(buffer, "PNG")
    return buffer.getvalue()


def no_size(form: str) -> bytes:
    """A file whose header says 0 x 0; all else is that of a whole picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (259, 261)).save(buffer, form)
    layout, size = {"PNG": (">II", (259, 261)), "JPEG": (">HH", (261, 259)), "BMP": ("<ii", (259, 261))}.get(
        form, ("<HH", (259, 261))
    )
    content = buffer.getvalue().replace(struct.pack(layout, *size), bytes(struct.calcsize(layout)))
    if form == "PNG":  # the checksum of the header
        content = content[:29] + struct.pack(">I", zlib.crc32(content[12:29])) + content[33:]
    return content


def data_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


ODD_PICTURES = (
    *("16-bit grey PNG", "16-bit grey TIFF", "32-bit TIFF", "float TIFF", "RGB with a transparent colour"),
    *("grey with a transparent colour", "grey with alpha", "palette with transparency", "RGBA", "CMYK JPEG"),
    *(f"JPEG with EXIF orientation {number}" for number in range(2, 9)),
    *("PNG with EXIF orientation 6", "16-bit PNG with EXIF orientation 6"),
)
"""Pictures that loaders read differently."""


def odd_picture(kind: str, folder: Path) -> Path:
    """A file of one of `ODD_PICTURES`, 48 x 32 pixels as stored, no two quarters of it alike."""
    deep = np.add.outer(np.arange(32) * 1000, np.arange(48) * 50)
    bright = Image.fromarray((deep >> 7).astype(np.uint8))
    colours = Image.merge("RGB", (bright, bright.transpose(Image.Transpose.ROTATE_180), Image.new("L", (48, 32), 90)))
    form = next((form for form in ("JPEG", "TIFF") if form in kind), "PNG")
    image, options = colours, {}
    if "16-bit" in kind:
        image = Image.fromarray(deep.astype(np.uint16))
    elif "32-bit" in kind or "float" in kind:
        image = Image.fromarray(deep.astype(np.int32 if "32-bit" in kind else np.float32))
    elif "CMYK" in kind:
        image = colours.convert("CMYK")
    elif "transparen" in kind or "alpha" in kind or kind == "RGBA":
        image = (bright if kind.startswith("grey") else colours).copy()
        if "colour" in kind:
            options = {"transparency": image.getpixel((40, 20))}
        else:
            image.putalpha(bright)
            image = image.quantize(16) if "palette" in kind else image
    if "orientation" in kind:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = int(kind[-1])
        options["exif"] = exif  # type: ignore[assignment]
    path = folder / f"picture.{form.lower()}"
    image.save(path, form, **options)
    return path
