"""OpenAI-style messages with images: by `file://` address where the server shares the disk, else as `data:` URIs."""

from __future__ import annotations

import base64
import io
import json
import mimetypes
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from vision_rl.media.images import open_image, served_unchanged

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionUserMessageParam

Transport = Literal["file", "data"]
# Formats that vLLM and hosted APIs decode to the same pixels as `open_image`; anything else is sent as PNG.
_PASS_THROUGH = {"image/png", "image/jpeg"}


def image_url(path: str, transport: Transport) -> str:
    """The address of the picture at `path` for an `image_url` part.

    A picture that a server would not decode to the same pixels as `open_image` (EXIF rotation, 16 bits, transparency)
    is always sent as a `data:` URI of its RGB pixels. Raises `UserError` naming a file that cannot be opened.
    """
    modified = os.stat(path).st_mtime_ns if os.path.exists(path) else 0
    if not _served_unchanged(path, modified):
        return picture_url(open_image(path))
    if transport == "file":
        return Path(path).absolute().as_uri()
    mime = mimetypes.guess_type(path)[0]
    if mime not in _PASS_THROUGH:
        return picture_url(open_image(path))
    return _data_uri(path, modified, mime)


@lru_cache(maxsize=4)
def _data_uri(path: str, modified: int, mime: str) -> str:
    """Remembered for the rollouts of a group, which share their picture."""
    return f"data:{mime};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


@lru_cache(maxsize=4096)
def _served_unchanged(path: str, modified: int) -> bool:
    """Remembered per file and version: to look for a PNG's orientation decodes all of it, and a group has one picture."""
    return served_unchanged(path)


def picture_url(picture: Image.Image) -> str:
    """A picture in memory (a zoomed view, say) as a lossless `data:` URI."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def user_message(text: str, image_urls: Sequence[str] = ()) -> ChatCompletionUserMessageParam:
    """A user message: the images first, then the text, as Qwen-VL models were trained."""
    images: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in image_urls]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def video_message(text: str, frames: Sequence[str]) -> ChatCompletionUserMessageParam:
    """A user message with one video, given its frames as `data:` URIs, in the form that vLLM takes; then the text."""
    url = "data:video/jpeg;base64," + ",".join(frame.partition(",")[2] for frame in frames)
    video: Any = {"type": "video_url", "video_url": {"url": url}}
    return {"role": "user", "content": [video, {"type": "text", "text": text}]}


def reply_text(message: Mapping[str, Any]) -> str:
    """A reply as one text: its content, and its function calls in the form that `parsing.parse_tool_calls` reads."""
    calls = [_call_text(call["function"]) for call in message.get("tool_calls") or [] if call.get("function")]
    return "\n".join([part for part in (message.get("content"), *calls) if part])


def _call_text(function: Mapping[str, Any]) -> str:
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError:
        arguments = function["arguments"]  # as a JSON string: the parser says what is wrong with it
    body = json.dumps({"name": function.get("name") or "", "arguments": arguments})
    return "<tool_call>\n" + body.replace("<", "\\u003c") + "\n</tool_call>"  # no tag can hide in an argument
