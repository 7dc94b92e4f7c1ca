"""The pictures and videos of model calls: which the model server may be given, and what the trace keeps of them."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

from vision_rl.errors import UserError
from vision_rl.media.images import image_size, too_narrow
from vision_rl.media.references import kept_reference, video_reference
from vision_rl.rollout.chat_request import NO_PICTURE, VIDEO_URI, CallError, is_data_uri

KNOWN_PICTURES = 10_000
MAX_FRAMES = 256


class Pictures:
    """`folder` keeps, once and by content, what arrives as a `data:` URI.

    `roots`: the folders from which files may be named and served; None allows any file, for a proxy that only this
    machine reaches. Nothing is ever fetched from elsewhere.
    """

    def __init__(self, folder: Path, roots: Sequence[Path] | None) -> None:
        self.folder = folder
        self.roots = None if roots is None else [Path(os.path.realpath(root)) for root in roots]
        self._known: dict[bytes, str] = {}  # sha256 of a data: URI -> its reference

    def reference(self, url: str) -> str:
        """What the trace keeps of an address (`vision_rl.media.references`): what comes as a `data:` URI becomes files.

        Raises `CallError` for what is no picture, for one too large, and for an address that may not be read.
        """
        if url.startswith(VIDEO_URI):
            return video_reference([self.reference(frame) for frame in _frames(url)])
        if not is_data_uri(url):
            self._check_file(url)
            return url
        if len(self._known) >= KNOWN_PICTURES:
            self._known.clear()
        key = hashlib.sha256(url.encode()).digest()
        if key not in self._known:
            self._known[key] = self._keep(_picture(url))
        return self._known[key]

    def check(self, url: str) -> None:
        """Raise `CallError` as `reference` does; nothing is kept."""
        if url.startswith(VIDEO_URI):
            for frame in _frames(url):
                _picture(frame)
        elif is_data_uri(url):
            _picture(url)
        else:
            self._check_file(url)

    def black(self, url: str) -> str:
        """A black picture, or video of black frames, of the same size as that at an address; raises `CallError` as above."""
        if url.startswith(VIDEO_URI):
            frames = (self.black(frame).partition(",")[2] for frame in _frames(url))
            return VIDEO_URI + ",".join(frames)
        self.check(url)
        return _black(*_size(url))

    def may_read(self, path: Path) -> bool:
        """Whether a file lies in the run's media roots, symbolic links followed."""
        real = Path(os.path.realpath(path))
        return self.roots is None or any(real.is_relative_to(root) for root in self.roots)

    def _check_file(self, url: str) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:
            parts = urlsplit("")
        # vLLM joins a host to the path, and drops what follows a question mark: none of it names a file of the run.
        plain = parts.scheme == "file" and not (parts.netloc or parts.query or parts.fragment)
        path = unquote(parts.path)
        if not plain or not path.startswith("/") or "\0" in path or not self.may_read(Path(path)):
            raise CallError(403, NO_PICTURE)

    def _keep(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        target = self.folder / digest
        if not target.exists():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = target.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(content)
            os.replace(temporary, target)
        return kept_reference(digest)


def too_narrow_one(urls: Sequence[str]) -> str:
    """Which picture of a call no processor takes, as the beginning of a sentence; "" if none. vLLM keeps its processor's reason
    to itself, so that its refusal says nothing that a client could correct."""
    for number, url in enumerate(urls, 1):
        with suppress(UserError, CallError, ValueError):
            if not url.startswith(VIDEO_URI) and (reason := too_narrow(*_size(url))):
                return f"picture {number} {reason}: "
    return ""


def _size(url: str) -> tuple[int, int]:
    """(width, height) of the picture at an address that was checked, by its header alone."""
    return image_size(io.BytesIO(_picture(url)) if is_data_uri(url) else unquote(urlsplit(url).path))


@lru_cache(maxsize=64)
def _black(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _frames(url: str) -> list[str]:
    """The frames of a video as pictures by `data:` URI."""
    frames = url.removeprefix(VIDEO_URI).split(",")
    if len(frames) > MAX_FRAMES:
        raise CallError(400, f"a video of {len(frames)} frames is refused: at most {MAX_FRAMES}")
    return [f"data:image/jpeg;base64,{frame}" for frame in frames]


def _picture(url: str) -> bytes:
    """The content of a `data:` URI. Raises `CallError` for what is no picture, or one too large, by its header alone."""
    try:
        content = base64.b64decode(url.partition(",")[2], validate=True)
        image_size(io.BytesIO(content))
    except (ValueError, UserError) as error:
        raise CallError(400, f"a picture is refused: {error}") from error
    return content
