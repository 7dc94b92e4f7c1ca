"""OpenAI-style messages with images: `file://` addresses where the server shares the disk, `data:` URIs elsewhere."""

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
from vision_rl.models.tokens import neutralised

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionUserMessageParam

Transport = Literal["file", "data"]
# Formats that vLLM and hosted APIs decode to the same pixels as `open_image`; anything else is sent as PNG.
_PASS_THROUGH = {"image/png", "image/jpeg"}


def image_url(path: str, transport: Transport) -> str:
    """The address of the picture at `path` for an `image_url` part.

    transport "file": for a vLLM on the same disk. A picture that the server would not decode to the same pixels as
    `open_image` (`served_unchanged`) is always sent by value, as `sent_file` writes it. Raises `UserError` naming a file
    that cannot be opened.
    """
    if transport == "file" and _served_by_vllm(path, _modified(path)):
        return Path(path).absolute().as_uri()
    mime, content = sent_file(path)
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def sent_file(path: str) -> tuple[str, bytes]:
    """(content type, bytes) of the picture at `path` in a form that every server decodes to what `open_image` gives: the
    file itself, or a PNG of its RGB pixels. A rotated JPEG becomes a JPEG of quality 95: as a PNG a photo of 48 megapixels
    would be larger than the proxy takes. Raises `UserError` as `open_image`."""
    return _sent_file(path, _modified(path))


@lru_cache(maxsize=4)
def _sent_file(path: str, modified: int) -> tuple[str, bytes]:
    """Remembered for the rollouts of a group, which share their picture: a large one takes seconds to write anew."""
    mime = mimetypes.guess_type(path)[0]
    if mime in _PASS_THROUGH and served_unchanged(path):
        return mime, Path(path).read_bytes()
    form, options = ("JPEG", {"quality": 95, "subsampling": 0}) if mime == "image/jpeg" else ("PNG", {})
    buffer = io.BytesIO()
    open_image(path).save(buffer, format=form, **options)
    return f"image/{form.lower()}", buffer.getvalue()


@lru_cache(maxsize=4096)
def _served_by_vllm(path: str, modified: int) -> bool:
    """Remembered per file and version: a group has one picture."""
    return served_unchanged(path, by_vllm=True)


def _modified(path: str) -> int:
    return os.stat(path).st_mtime_ns if os.path.exists(path) else 0


def picture_url(picture: Image.Image) -> str:
    """A picture in memory (a zoomed view, say) as a lossless `data:` URI."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def user_message(text: str, image_urls: Sequence[str] = ()) -> ChatCompletionUserMessageParam:
    """A user message: the images first, then the text, as Qwen-VL models were trained.

    A token of a vision model in the text (`neutralised`) is written with a blank: a question is no place for a picture.
    """
    images: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in image_urls]
    return {"role": "user", "content": [*images, {"type": "text", "text": neutralised(text)}]}


def video_message(text: str, frames: Sequence[str]) -> ChatCompletionUserMessageParam:
    """A user message with one video, given its frames as `data:` URIs, in the form that vLLM takes; then the text."""
    url = "data:video/jpeg;base64," + ",".join(frame.partition(",")[2] for frame in frames)
    video: Any = {"type": "video_url", "video_url": {"url": url}}
    return {"role": "user", "content": [video, {"type": "text", "text": neutralised(text)}]}


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
