"""Pictures for tests and benchmarks of the engine."""

from __future__ import annotations

import base64
import io
import random

from PIL import Image


def noise_picture(seed: int) -> bytes:
    """A PNG of one megapixel that does not compress: 1 MB."""
    pixels = random.Random(seed).randbytes(1000 * 1000)
    buffer = io.BytesIO()
    Image.frombytes("L", (1000, 1000), pixels).save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()
