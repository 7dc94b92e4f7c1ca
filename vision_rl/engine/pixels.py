"""Pixels for the actor: each picture of a trace is opened and processed once, not once per rollout of its group."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import torch

from vision_rl.data.images import open_image
from vision_rl.errors import UserError

# A processed megapixel is about 30 MB in float32; a training step of 512 prompts needs each image once.
CACHED_PICTURES = 64


class Pixels:
    """Processed pictures by reference; `processor` is the model's Hugging Face processor.

    `limits` are the min_pixels and max_pixels that vLLM was given; without them the processor's own hold.
    `picture_dir` holds the pictures that arrived as `data:` URIs, named by their sha256. With `blank` the pictures are
    replaced by zeros of the same shape: the control experiment in which the actor cannot see.
    """

    def __init__(
        self, processor: Any, picture_dir: Path, *, limits: Mapping[str, int] | None = None, blank: bool = False
    ) -> None:
        self.processor = processor
        self.limits = limits or {}
        self.picture_dir = picture_dir
        self.blank = blank
        self._cache: OrderedDict[str, dict[str, torch.Tensor]] = OrderedDict()

    def inputs(self, refs: Sequence[str]) -> dict[str, torch.Tensor]:
        """The model's vision inputs of one sample: `pixel_values`, `image_grid_thw`, ... joined over its pictures in order.

        Empty for a sample without pictures. Raises `UserError` naming a picture that cannot be opened.
        """
        processed = [self._processed(ref) for ref in refs]
        if len(processed) <= 1:  # the cached tensors themselves: a group's samples then share them, also when pickled
            return processed[0] if processed else {}
        return {key: torch.cat([one[key] for one in processed], dim=0) for key in processed[0]}

    def path(self, ref: str) -> Path:
        """The file behind a reference of the trace (`file://...` or `sha256:...`)."""
        if ref.startswith("sha256:"):
            return self.picture_dir / ref.removeprefix("sha256:")
        url = urlparse(ref)
        if url.scheme != "file":
            raise UserError(f"cannot train on the picture at {ref}: send pictures as file:// paths or data: URIs")
        return Path(unquote(url.path))

    def _processed(self, ref: str) -> dict[str, torch.Tensor]:
        if ref in self._cache:
            self._cache.move_to_end(ref)
            return self._cache[ref]
        output = self.processor.image_processor(images=[open_image(self.path(ref))], return_tensors="pt", **self.limits)
        tensors = {key: value for key, value in output.items() if isinstance(value, torch.Tensor)}
        if self.blank:
            tensors["pixel_values"] = torch.zeros_like(tensors["pixel_values"])
        self._cache[ref] = tensors
        if len(self._cache) > CACHED_PICTURES:
            self._cache.popitem(last=False)
        return tensors
