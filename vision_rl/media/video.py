"""Write a video's frames as picture files: every engine here takes pictures, not every one takes videos."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import av

from vision_rl.errors import UserError
from vision_rl.files import write_bytes
from vision_rl.media.picture_files import IMAGE_SUFFIXES


def sample_frames(video: Path, directory: Path, count: int) -> list[Path]:
    """`count` frames spread evenly over the video (all of them if it has fewer) as PNG files, absolute, in order.

    A folder of pictures is a video too: its files in the order of their names, numbers by value. Frames of a file lie in
    a folder of `directory` named by the video's path, size and time, so a repeated conversion decodes nothing.
    Raises `UserError` naming a video that is missing or cannot be decoded.
    """
    if count < 1:
        raise UserError(f"--frames is {count}, take at least 1")
    if video.is_dir():
        pictures = sorted(
            (path for path in video.absolute().iterdir() if path.suffix.lower() in IMAGE_SUFFIXES), key=_by_number
        )
        if not pictures:
            raise UserError(f"{video} holds no pictures ({', '.join(IMAGE_SUFFIXES)}); remove the record")
        return [pictures[number] for number in _spread(len(pictures), count)]
    if not video.is_file():
        raise UserError(f"{video} does not exist; check --image-dir")
    stamp = video.stat()
    identity = f"{video.absolute()} {stamp.st_size} {stamp.st_mtime_ns} {count}"
    folder = directory.absolute() / f"{video.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    try:
        total = sum(1 for _ in _decode(video))
        paths = {number: folder / f"{position:03d}.png" for position, number in enumerate(_spread(total, count))}
        if not all(path.exists() for path in paths.values()):
            for number, frame in enumerate(_decode(video)):
                if number in paths:
                    buffer = io.BytesIO()
                    frame.to_image().save(buffer, format="PNG")
                    write_bytes(paths[number], buffer.getvalue())
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UserError(f"{video} cannot be decoded as a video ({error}); convert it to mp4") from error
    if not paths:
        raise UserError(f"{video} holds no frames; remove the record")
    return list(paths.values())


def _spread(total: int, count: int) -> list[int]:
    """The numbers of `count` frames in the middles of equal parts of `total`, or all of them."""
    return (
        [round((index + 0.5) * total / count - 0.5) for index in range(count)] if total > count else list(range(total))
    )


def _by_number(path: Path) -> list[tuple[int, str]]:
    """frame_2 before frame_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _decode(video: Path) -> Iterator[av.VideoFrame]:
    with av.open(str(video)) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        yield from container.decode(video=0)
