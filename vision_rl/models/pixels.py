"""Pixels for the actor: each picture or video is opened and processed once for all rollouts of its group."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
import torch
from PIL import Image

from vision_rl.media.images import image_size, open_image
from vision_rl.media.references import frames_of, is_video, picture_path
from vision_rl.models.processor import medium_text, vision_token_ids

# A processed megapixel is about 30 MB in float32; a training step of 512 prompts needs each image once.
CACHED_PICTURES = 64
_TEXT_KEYS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels")
_PACKED = ("MiniCPMV4_6Processor",)
"""Processors that put the patches of all pictures side by side, (1, channels, patch, patch x patches): turned round here, so that
pictures are joined along the first dimension as everybody else's, and turned back for the model (model_patches.py)."""
MASKED_PATCH = 14
"""The side of a square that a masked picture may lack, in pixels of the picture as the model sees it (PAPO's patch_size)."""

BLACK_SIDE = 112
"""The side of the picture that stands in where a rank has none."""

View = Literal["seen", "masked", "blank"]
"""A picture as it is, with random squares of it black, or wholly black. Sizes and numbers of tokens are the same."""


_FRAMES_PER_SECOND = 1.0
"""Of a video that comes as its frames, for families that tell the model the time of each: as vLLM takes it (media/video.py)."""


@dataclass(frozen=True)
class Processed:
    """One picture's or video's tensors by the model's argument, and the number of vision tokens that it takes in a prompt."""

    tensors: dict[str, torch.Tensor]
    placeholders: int


class Pixels:
    """Processed pictures by reference; `processor` is the model's Hugging Face processor.

    `limits` are the min_pixels and max_pixels that vLLM was given; without them the processor's own hold.
    `picture_dir` holds the pictures that arrived as `data:` URIs, named by their sha256. With `blank` every picture is
    black: the control experiment in which the actor cannot see. `masked` is the share of a masked picture that is black;
    which squares are is drawn anew by `draw`.
    """

    def __init__(
        self,
        processor: Any,
        picture_dir: Path,
        *,
        limits: Mapping[str, int] | None = None,
        blank: bool = False,
        masked: float = 0.0,
    ) -> None:
        self.processor = processor
        self.limits = limits or {}
        self.picture_dir = picture_dir
        self.blank = blank
        self.masked = masked
        self._drawn = 0
        self._cache: OrderedDict[tuple[Any, ...], Processed] = OrderedDict()

    def inputs(self, refs: Sequence[str], view: View = "seen") -> dict[str, torch.Tensor]:
        """The model's vision inputs of one sample: `pixel_values`, `image_grid_thw`, ... joined over its pictures in order,
        and `pixel_values_videos`, ... over its videos.

        Empty for a sample without pictures. Raises `UserError` naming a picture that cannot be opened.
        """
        processed = [self._processed(ref, "blank" if self.blank else view).tensors for ref in refs]
        if len(processed) <= 1:  # the cached tensors themselves: a group's samples then share them, also when pickled
            return processed[0] if processed else {}
        keys = dict.fromkeys(key for one in processed for key in one)
        return {key: join([one[key] for one in processed if key in one]) for key in keys}

    def placeholders(self, refs: Sequence[str]) -> int:
        """How many vision tokens these pictures and videos take in a prompt, by the model's own processor."""
        return sum(self._processed(ref, "seen").placeholders for ref in refs)

    def draw(self) -> None:
        """Draw other squares for masked pictures from now on."""
        self._drawn += 1

    def path(self, ref: str) -> Path:
        """The file behind a picture's reference of the trace (`vision_rl.media.references`)."""
        return picture_path(ref, self.picture_dir)

    def black(self) -> dict[str, torch.Tensor]:
        """The inputs of one small black picture, for a rank that has none."""
        key = ("blank", False, ((BLACK_SIDE, BLACK_SIDE),))  # as a blank picture of that size in `_processed`
        if key not in self._cache:
            self._cache[key] = self._process([Image.new("RGB", (BLACK_SIDE, BLACK_SIDE))], video=False)
        return self._cache[key].tensors

    def _processed(self, ref: str, view: View) -> Processed:
        video, frames = is_video(ref), frames_of(ref)
        paths = [self.path(frame) for frame in frames]
        if view == "blank":  # a black picture is its size, and is processed once for all pictures of that size
            key: tuple[Any, ...] = (view, video, tuple(image_size(path) for path in paths))
        else:
            key = (view, ref, self._drawn if view == "masked" else 0)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        pictures = [Image.new("RGB", image_size(path)) if view == "blank" else open_image(path) for path in paths]
        if view == "masked":
            pictures = [
                self._without_squares(one, crc32(frame.encode())) for one, frame in zip(pictures, frames, strict=True)
            ]
        self._cache[key] = self._process(pictures, video)
        if len(self._cache) > CACHED_PICTURES:
            self._cache.popitem(last=False)
        return self._cache[key]

    def _process(self, pictures: Sequence[Image.Image], video: bool) -> Processed:
        """One picture, or the frames of one video, through the whole processor, as vLLM does it (multimodal/processing): an
        image processor called alone misses what the processor adds, such as InternVL's tiles. A black picture goes the same
        way, because zeros would be taken for padding by some families (Idefics3), and for grey by the others."""
        media = video_arguments(pictures) if video else {"images": list(pictures)}
        text = medium_text(self.processor, "video" if video else "image")
        output = self.processor(**media, text=[text], return_tensors="pt", **self.limits)
        tensors = {
            key: value.float() if value.is_floating_point() else value  # Llama 4's are bfloat16
            for key, value in output.items()
            if isinstance(value, torch.Tensor) and key not in _TEXT_KEYS
        }
        if type(self.processor).__name__ in _PACKED and not video:
            tensors["pixel_values"] = tensors["pixel_values"].transpose(0, 3)
        return Processed(tensors, count_of(output["input_ids"], vision_token_ids(self.processor)))

    def _without_squares(self, picture: Image.Image, seed: int) -> Image.Image:
        """`picture` with each of its squares black with probability `masked`; larger squares where the model's limit on the
        area makes the picture smaller."""
        area = picture.width * picture.height
        side = round(MASKED_PATCH * max(1.0, area / (self.limits.get("max_pixels") or area)) ** 0.5)
        rows, columns = -(-picture.height // side), -(-picture.width // side)
        kept = np.random.default_rng((self._drawn, seed)).random((rows, columns)) >= self.masked
        whole = kept.repeat(side, axis=0).repeat(side, axis=1)[: picture.height, : picture.width]
        return Image.fromarray(np.asarray(picture) * whole[..., None].astype(np.uint8))


def count_of(input_ids: torch.Tensor, tokens: Sequence[int]) -> int:
    """How many of `input_ids` are one of `tokens`."""
    return int(torch.isin(input_ids, torch.tensor(tokens)).sum())


def video_arguments(frames: Sequence[Image.Image]) -> dict[str, Any]:
    """A processor's arguments for one video of these frames, all of which count: the server got the same ones."""
    metadata = {
        "total_num_frames": len(frames),
        "fps": _FRAMES_PER_SECOND,
        "duration": len(frames) / _FRAMES_PER_SECOND,
        "frames_indices": list(range(len(frames))),
    }
    pixels = np.stack([np.asarray(frame) for frame in frames])  # (frames, height, width, 3)
    return {"videos": [pixels], "video_metadata": [metadata], "do_sample_frames": False}


def join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors of several pictures along their first dimension; those of other shapes are padded with zeros at the end.

    So do the processors themselves with the pictures of one call (LLaVA-NeXT's tiles, Pixtral's sizes, Idefics3's
    crops), and the models leave out what is padding: by image_sizes, or because all of a crop is zero.
    """
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    return torch.cat([_padded(tensor, largest) for tensor in tensors])


def _padded(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    missing = [wanted - size for wanted, size in zip(shape, tensor.shape[1:], strict=True)]
    if not any(missing):
        return tensor
    return torch.nn.functional.pad(tensor, [end for size in reversed(missing) for end in (0, size)])
