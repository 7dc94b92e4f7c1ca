"""Several pictures and video frames: from the data row to the message, within the limits of a conversation."""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vision_rl.agent.media import check_pictures, show
from vision_rl.answers.zoom import SizeLimits
from vision_rl.data.schema import read_rows, write_rows
from vision_rl.errors import UserError
from vision_rl.media.video import sample_frames
from vision_rl.models.pixels import Pixels
from vision_rl.settings import AgentSettings
from vision_rl.training.rows import RowBuilder
from vision_rl.training.samples import Sample


def agent(**changes: Any) -> dict[str, Any]:
    limits: dict[str, Any] = {"family": "qwen2_5_vl", "min_pixels": 56 * 56, "max_pixels": 112 * 112}
    return dataclasses.asdict(AgentSettings(**{**limits, **changes}))


def pictures(folder: Path, *sizes: tuple[int, int]) -> list[str]:
    paths = []
    for number, size in enumerate(sizes):
        path = folder / f"{number}.png"
        Image.new("RGB", size, (number * 40, 0, 0)).save(path)
        paths.append(str(path))
    return paths


def test_pictures_within_the_limits_are_sent_as_they_are_in_order(tmp_path: Path) -> None:
    paths = pictures(tmp_path, (100, 60), (56, 112))
    shown = show(paths, agent())
    assert [picture.url for picture in shown] == [Path(path).as_uri() for path in paths]
    assert [picture.size for picture in shown] == [(112, 56), (56, 112)]


def test_above_the_cap_all_are_scaled_down_alike(tmp_path: Path) -> None:
    paths = pictures(tmp_path, (112, 112), (112, 84), (500, 500))
    cap = 15_000
    shown = show(paths, agent(max_total_pixels=cap))
    opened = [Image.open(io.BytesIO(base64.b64decode(picture.url.partition(",")[2]))) for picture in shown]
    assert [picture.size for picture in opened] == [picture.size for picture in shown]
    assert [picture.getpixel((0, 0))[0] for picture in opened] == [0, 40, 80]  # type: ignore[index]
    assert sum(picture.pixels for picture in shown) <= cap
    assert [picture.size for picture in shown] == [(56, 56), (84, 56), (56, 56)]


@given(st.lists(st.tuples(st.integers(20, 500), st.integers(20, 500)), min_size=1, max_size=4), st.integers(4, 60))
@settings(max_examples=50, deadline=None)
def test_the_cap_holds_and_the_processor_keeps_the_size(sizes: list[tuple[int, int]], tokens: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        cap = tokens * 28 * 28
        shown = show(pictures(Path(folder), *sizes), agent(max_total_pixels=cap, min_pixels=None, max_pixels=None))
        assert sum(picture.pixels for picture in shown) <= max(cap, 28 * 28 * len(sizes))
        for picture in shown:
            assert SizeLimits().processed(picture.size) == picture.size


def test_too_many_pictures_are_a_clear_error(tmp_path: Path) -> None:
    paths = pictures(tmp_path, (56, 56), (56, 56), (56, 56))
    with pytest.raises(UserError, match=r"3 pictures in one prompt.*agent\.max_images=2.*images_per_prompt"):
        show(paths, agent(max_images=2))
    rows = [{"image_paths": paths[:1]}, {"image_paths": paths}]
    check_pictures(rows, 3, "train.parquet")
    with pytest.raises(UserError, match=r"train\.parquet, row 1: 3 pictures.*images_per_prompt=2"):
        check_pictures(rows, 2, "train.parquet")


@pytest.fixture()
def video(tmp_path: Path) -> Path:
    """Twelve frames that grow brighter."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
        for shade in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((84, 112, 3), 20 * shade, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_video_goes_from_the_row_to_exact_pixels_and_positions(
    video: Path, tmp_path: Path, tiny_processor: Any, tiny_model: Any
) -> None:
    """Row, message, order of the frames, placeholder count, pixels, M-RoPE positions: the whole path."""
    frames = sample_frames(video, tmp_path / "frames", 3)
    row = {
        "id": "v",
        "image_paths": [str(p) for p in frames],
        "media": "video",
        "question": "Brighter?",
        "answers": ["yes"],
    }
    write_rows(tmp_path / "data.parquet", [row])
    [read] = read_rows(tmp_path / "data.parquet")
    shown = show(read["image_paths"], agent(), read["image_sizes"])
    content = [{"type": "image"} for _ in shown] + [{"type": "text", "text": read["question"]}]
    text = tiny_processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    opened = [Image.open(path) for path in frames]
    shades = [np.asarray(picture).mean() for picture in opened]
    assert shades == sorted(shades) and shades[-1] - shades[0] > 100
    encoded = tiny_processor(text=[text], images=opened, return_tensors="pt")
    ids = encoded["input_ids"][0].tolist()
    sample = Sample(ids, [5, 6], [1, 1], [-1.0, -1.0], [picture.url for picture in shown], 1.0, "g", "r", 0)
    pixels = Pixels(tiny_processor, tmp_path)
    built = RowBuilder(tiny_processor, pixels, max_prompt_length=256, max_response_length=8).row(sample)
    assert isinstance(built, dict)
    inputs = pixels.inputs(built["multi_modal_inputs"]["refs"])
    assert inputs["image_grid_thw"].tolist() == [[1, 6, 8]] * 3
    torch.testing.assert_close(inputs["pixel_values"], encoded["pixel_values"], atol=1e-5, rtol=0)
    whole = torch.tensor([[*ids, 5, 6]])
    types = (whole == tiny_model.config.image_token_id).long()
    grid = inputs["image_grid_thw"]
    expected, _ = tiny_model.model.get_rope_index(input_ids=whole, mm_token_type_ids=types, image_grid_thw=grid)
    assert torch.equal(built["position_ids"][1:], expected[:, 0])
