"""vLLM's media connector, replaced: it opens pictures as the actor does and keeps recent ones decoded.

vLLM's own decoder cuts 16-bit grey off at 255 and takes an RGB picture's transparent colour for one like others, so that
server and actor would be 16 nats apart on what a client sends as it is. vLLM's caches go by a picture's file, but it is
decoded first: 20 ms of the server's one CPU process for a PNG of a megapixel.
"""

from __future__ import annotations

import io
import threading
from typing import Any

import cachetools
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, ImageMediaIO, MediaConnector, MediaWithBytes, VideoMediaIO

from vision_rl.errors import UserError
from vision_rl.media.images import open_image

NAME = "vision_rl"  # for VLLM_MEDIA_CONNECTOR
KEPT_BYTES = 512 << 20  # 120 pictures of a megapixel that compress badly, or 20 screenshots in 4K


class KeptImages(ImageMediaIO):
    """The actor's decoder; vLLM's own for a request that wants another background than white, or another mode than RGB.

    The contents of the file are the key: a file that was written anew is another picture.
    """

    @cachetools.cached(
        cachetools.LRUCache(KEPT_BYTES, lambda kept: 3 * kept.width * kept.height + len(kept.original_bytes)),
        key=lambda self, data: (data, self.image_mode, self.rgba_background_color),
        condition=threading.Condition(),  # a picture that is being decoded is waited for
    )
    def load_bytes(self, data: bytes) -> MediaWithBytes[Any]:
        if self.image_mode != "RGB" or self.rgba_background_color != (255, 255, 255):
            return super().load_bytes(data)
        try:
            return MediaWithBytes(open_image(io.BytesIO(data)), data)
        except UserError as error:
            raise ValueError(
                f"Failed to load image: {error}"
            ) from error  # vLLM's words, which its server answers 400 with


@MEDIA_CONNECTOR_REGISTRY.register(NAME)
class KeptPictures(MediaConnector):
    """vLLM's connector, handing that decoder on to the only method that is given one, for the frames of a video too."""

    async def load_from_url_async(self, url: str, media_io: Any, **options: Any) -> Any:
        if isinstance(media_io, ImageMediaIO):
            media_io = KeptImages(media_io.image_mode, **media_io.kwargs)
        elif isinstance(media_io, VideoMediaIO):
            media_io.image_io = KeptImages(media_io.image_io.image_mode, **media_io.image_io.kwargs)
        return await super().load_from_url_async(url, media_io, **options)
