"""Pictures for tests and benchmarks of the engine."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib

from PIL import Image


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
