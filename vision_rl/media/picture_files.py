"""Find a record's picture: a named file, or embedded bytes that are written out once.

A DICOM file becomes a PNG, once: what trains, serves and shows reads plain pictures only.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image

from vision_rl.errors import UserError
from vision_rl.files import write_bytes
from vision_rl.media.dicom import DICOM_SUFFIXES, dicom_png, is_dicom
from vision_rl.media.images import FORMATS, image_size

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")

_LEAST_BASE64 = 200
"""Characters: less is no picture but a name."""
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""A scheme, also where one of the slashes was lost on the way."""


def picture_file(value: Any, image_dir: Path, extract_dir: Path, where: str, frame: int | None = None) -> Path:
    """The absolute path of a record's picture.

    A text names a file in `image_dir`, as it stands or with a known suffix added, or embeds it: a `data:` URI, or base64
    alone (VLMEvalKit's TSVs, logs of an API). Bytes, or Hugging Face's struct of `bytes` and `path`, are written into
    `extract_dir`; a struct without bytes names a file by its path, and OpenAI's of a `url` by that. DICOM is written there
    as PNG; frame: see `dicom_picture`. Raises `UserError` starting with `where` for a picture that is not there.
    """
    if isinstance(value, dict):
        value = next((value[name] for name in ("bytes", "path", "url") if value.get(name)), None)
    if isinstance(value, str):
        value = _decoded(value, where)
    if isinstance(value, bytes):
        return _extracted(value, extract_dir, where)
    if not isinstance(value, (str, int, os.PathLike)) or isinstance(value, bool) or value == "":
        raise UserError(f"{where} names no picture and embeds none; fill it in, or remove the record")
    file = _named(str(value), image_dir, where)
    if file.suffix.lower() in IMAGE_SUFFIXES or not is_dicom(file):
        return file
    try:
        return dicom_png(file, extract_dir, frame)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _decoded(text: str, where: str) -> str | bytes:
    """The bytes of a `data:` URI or of base64; any other text as it is."""
    header, comma, content = text.partition(",")
    if text.startswith("data:"):
        if not comma or not header.endswith(";base64"):
            raise UserError(
                f"{where}: its picture is a data: URI that is not in base64; write data:image/png;base64,..."
            )
        text = content
    elif len(text) < _LEAST_BASE64 or not _BASE64.fullmatch(text):
        return text
    try:
        return base64.b64decode(text)
    except ValueError as error:
        raise UserError(
            f"{where}: its picture is base64 that is cut off or damaged ({error}); export it again"
        ) from error


def _extracted(data: bytes, directory: Path, where: str) -> Path:
    """Its name comes from its bytes: rows of one picture share one file, and a repeated conversion writes nothing."""
    stem = hashlib.sha256(data).hexdigest()[:20]
    for suffix in IMAGE_SUFFIXES:
        if (directory / f"{stem}{suffix}").exists():
            return (directory / f"{stem}{suffix}").absolute()
    path = (directory / f"{stem}{_suffix(data, where)}").absolute()
    write_bytes(path, data)
    return path


def _named(name: str, image_dir: Path, where: str) -> Path:
    if name.startswith("file://"):
        name = unquote(name.removeprefix("file://"))
    elif _ADDRESS.match(name):
        raise UserError(
            f"{where}: {name[:200]} is an address in the network; download the pictures first, then name their files"
        )
    path = image_dir / name
    for suffix in ("", *IMAGE_SUFFIXES, *DICOM_SUFFIXES):
        candidate = f"{path}{suffix}"
        if os.path.isfile(candidate):
            return Path(candidate).absolute()
    shown = str(path)[:200].encode(errors="replace").decode()
    endings = ", ".join((*IMAGE_SUFFIXES, *DICOM_SUFFIXES))
    raise UserError(f"{where}: {shown} does not exist, nor with {endings} behind it; check --image-dir")


def _suffix(data: bytes, where: str) -> str:
    try:
        image_size(io.BytesIO(data))
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}.get(str(image.format), f".{image.format}".lower())
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
