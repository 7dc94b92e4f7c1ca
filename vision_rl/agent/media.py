"""A task's pictures as a conversation shows them: one, several, or the frames of a video, within limits.

Two limits hold for a whole conversation, pictures that tools give back included: `max_images` (vLLM refuses more) and
`max_total_pixels`, above which all pictures are scaled down alike. A picture within the limits is sent as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from vision_rl.agent.messages import Transport, image_url, picture_url, user_message, video_message
from vision_rl.answers.coordinates import Size
from vision_rl.answers.zoom import SizeLimits
from vision_rl.errors import UserError
from vision_rl.media.images import image_size, open_image
from vision_rl.settings import AgentSettings

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionUserMessageParam

_LEAST_SHARE = 1e-4


@dataclass(frozen=True)
class Shown:
    """A picture of a message: its address, and the (width, height) at which the model sees it."""

    url: str
    size: Size

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]


def size_limits(settings: AgentSettings) -> SizeLimits:
    """What the model's processor does, from a task's settings."""
    return SizeLimits.of(settings.family, settings.min_pixels, settings.max_pixels)


def show(paths: Sequence[str], settings: AgentSettings, sizes: Sequence[Sequence[int]] = ()) -> list[Shown]:
    """The pictures at `paths` within the settings' limits; `sizes` are their (width, height) where they are known.

    Raises `UserError` for more pictures than `max_images` (None: any number), and naming one that cannot be opened.
    """
    most = settings.max_images
    if most is not None and len(paths) > most:
        raise UserError(
            f"{len(paths)} pictures in one prompt ({paths[0]}, ...) are more than agent.max_images={most}; "
            "raise app.images_per_prompt, or convert with fewer --frames"
        )
    limits = size_limits(settings)
    given = [(size[0], size[1]) for size in sizes] if sizes else [image_size(path) for path in paths]
    seen = [limits.processed(size) for size in given]
    total, cap = sum(width * height for width, height in seen), settings.max_total_pixels
    if cap is None or total <= cap:
        return [Shown(image_url(path, transport(settings)), size) for path, size in zip(paths, seen, strict=True)]
    smaller = _within(seen, cap, limits)
    return [Shown(picture_url(_resized(path, size)), size) for path, size in zip(paths, smaller, strict=True)]


def media_message(text: str, task: Mapping[str, Any]) -> ChatCompletionUserMessageParam:
    """A row's pictures and `text` as a user's message: a video as its frames, or as one where `agent.video` says native.

    Raises `UserError` as `show` does.
    """
    settings = AgentSettings.of(task)
    native = task["media"] == "video" and settings.video == "native"
    sent = dataclasses.replace(settings, image_transport="data") if native else settings
    urls = [picture.url for picture in show(task["image_paths"], sent, task["image_sizes"])]
    return video_message(text, urls) if native else user_message(text, urls)


def transport(settings: AgentSettings) -> Transport:
    """ "file" or "data"."""
    return "file" if settings.image_transport == "file" else "data"


def _within(seen: Sequence[Size], cap: int, limits: SizeLimits) -> list[Size]:
    """Sizes that the processor keeps, all scaled alike so that they fit the cap together, if they can at all."""
    share, sizes = 1.0, list(seen)
    while sum(width * height for width, height in sizes) > cap and share > _LEAST_SHARE:
        share *= min(0.95, cap / sum(width * height for width, height in sizes))
        sizes = [_smaller(size, share, limits) for size in seen]
    return sizes


def _smaller(seen: Size, share: float, limits: SizeLimits) -> Size:
    most = max(int(seen[0] * seen[1] * share), limits.factor**2)
    width, height = SizeLimits(limits.factor, limits.patch, min(limits.min_pixels, most), most).processed(seen)
    # A long strip cannot become thinner than a visual token; it is shortened instead.
    size = (min(width, _steps(most / height, limits.factor)), min(height, _steps(most / width, limits.factor)))
    return limits.processed(size)  # not below the processor's own least area


def _resized(path: str, size: Size) -> Image.Image:
    return open_image(path).resize(size, Image.Resampling.LANCZOS)


def _steps(length: float, factor: int) -> int:
    """The largest multiple of `factor` up to `length`, at least one."""
    return max(factor, int(length) // factor * factor)


def check_videos(rows: Sequence[Mapping[str, Any]], ranks: int) -> None:
    """Raise `UserError` for what cannot be shown as native videos: frames of several sizes, and pictures beside videos on
    several ranks.

    A rank that meets both calls its vision tower twice, and waits for ever for those that call theirs once (FSDP gathers
    the weights on all ranks together).
    """
    for row in rows:
        if row["media"] == "video" and len({tuple(size) for size in row["image_sizes"]}) > 1:
            raise UserError(
                f"the frames of {row['id']} are not of one size, as those of a native video must be; make them so, or use "
                "agent.video=frames"
            )
    if ranks > 1 and len({row["media"] for row in rows}) > 1:
        raise UserError(
            f"agent.video=native on {ranks} ranks needs a data set of videos only: a rank with both pictures and videos would "
            "hang; use agent.video=frames, or train on one"
        )


def check_pictures(rows: Sequence[Mapping[str, Any]], max_images: int, path: object) -> None:
    """Raise `UserError` naming the first row with more pictures than a prompt may hold."""
    for number, row in enumerate(rows):
        if len(row["image_paths"]) > max_images:
            raise UserError(
                f"{path}, row {number}: {len(row['image_paths'])} pictures, more than app.images_per_prompt="
                f"{max_images}; raise it, or convert with fewer --frames"
            )
