"""vLLM's way to pictures, with those that were asked about lately kept decoded.

vLLM's caches go by a picture's file, but it is decoded first: 20 ms of the server's one CPU process for a PNG of a megapixel.
"""

from __future__ import annotations

import threading
from typing import Any

import cachetools
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, ImageMediaIO, MediaConnector, MediaWithBytes

NAME = "vision_rl"  # for VLLM_MEDIA_CONNECTOR
KEPT_BYTES = 512 << 20  # 120 pictures of a megapixel that compress badly, or 20 screenshots in 4K


class KeptImages(ImageMediaIO):
    """vLLM's decoder. The contents of the file are the key: a file that was written anew is another picture."""

    @cachetools.cached(
        cachetools.LRUCache(KEPT_BYTES, lambda kept: 3 * kept.width * kept.height + len(kept.original_bytes)),
        key=lambda self, data: (data, self.image_mode, self.rgba_background_color),
        condition=threading.Condition(),  # a picture that is being decoded is waited for
    )
    def load_bytes(self, data: bytes) -> MediaWithBytes[Any]:
        return super().load_bytes(data)


@MEDIA_CONNECTOR_REGISTRY.register(NAME)
class KeptPictures(MediaConnector):
    """vLLM's connector, handing that decoder on to the only method that is given one."""

    async def load_from_url_async(self, url: str, media_io: Any, **options: Any) -> Any:
        images = isinstance(media_io, ImageMediaIO)
        kept = KeptImages(media_io.image_mode, **media_io.kwargs) if images else media_io
        return await super().load_from_url_async(url, kept, **options)
