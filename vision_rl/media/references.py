"""How a trace names pictures and videos: `file://...` or `sha256:<hex>`; a video by its frames.

A `sha256:` names a file in the run's own folder of pictures, where what arrives as a `data:` URI is kept once. A video is
`video:` and the references of its frames, separated by commas, all of them of that kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlparse

from vision_rl.errors import UserError

_KEPT, _VIDEO = "sha256:", "video:"


def kept_reference(digest: str) -> str:
    """The reference of a picture in the run's own folder, by the sha256 of its content."""
    return _KEPT + digest


def video_reference(frames: Iterable[str]) -> str:
    """The reference of a video with these frames, each the reference of a kept picture."""
    return _VIDEO + ",".join(frames)


def is_video(ref: str) -> bool:
    """Whether a reference is a video's."""
    return ref.startswith(_VIDEO)


def frames_of(ref: str) -> list[str]:
    """The references of a video's frames in order; a picture is its own only one."""
    return ref.removeprefix(_VIDEO).split(",") if is_video(ref) else [ref]


def picture_path(ref: str, folder: Path) -> Path:
    """The file of a picture's reference; `folder` holds the pictures that the run keeps.

    Raises `UserError` for a reference to something else, such as an address in the network.
    """
    if ref.startswith(_KEPT):
        return folder / ref.removeprefix(_KEPT)
    url = urlparse(ref)
    if url.scheme != "file":
        raise UserError(f"cannot train on the picture at {ref}: send pictures as file:// paths or data: URIs")
    return Path(unquote(url.path))
