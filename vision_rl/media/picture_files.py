"""Where the picture of a record is: a file that it names, or bytes that it embeds and that are written out once."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

from PIL import Image

from vision_rl.errors import UserError
from vision_rl.files import write_bytes
from vision_rl.media.images import FORMATS, image_size

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def picture_file(value: Any, image_dir: Path, extract_dir: Path, where: str) -> Path:
    """The absolute path of a record's picture.

    A text names a file in `image_dir`, as it stands or with a known suffix added. Bytes, or Hugging Face's struct of
    `bytes` and `path`, are written into `extract_dir`; a struct without bytes names a file by its path. Raises
    `UserError` starting with `where` for a picture that is not there.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return _extracted(value, extract_dir, where)
    if not isinstance(value, (str, int, os.PathLike)) or isinstance(value, bool) or value == "":
        raise UserError(f"{where} names no picture and embeds none; fill it in, or remove the record")
    return _named(str(value), image_dir, where)


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
    path = image_dir / name
    for suffix in ("", *IMAGE_SUFFIXES):
        candidate = f"{path}{suffix}"
        if os.path.isfile(candidate):
            return Path(candidate).absolute()
    shown = str(path)[:200].encode(errors="replace").decode()
    raise UserError(f"{where}: {shown} does not exist; check --image-dir (DICOM must be exported to PNG first)")


def _suffix(data: bytes, where: str) -> str:
    try:
        image_size(io.BytesIO(data))
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}.get(str(image.format), f".{image.format}".lower())
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
