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

from scripts.tiny_models.families import build
from vision_rl.agent.media import check_pictures, check_videos, media_message, show
from vision_rl.agent.replay import picture_files
from vision_rl.answers.zoom import SizeLimits
from vision_rl.data.schema import read_rows, write_rows
from vision_rl.errors import UserError
from vision_rl.media.references import frames_of, is_video, picture_path, video_reference
from vision_rl.media.video import sample_frames
from vision_rl.models.pixels import Pixels
from vision_rl.models.processor import load_processor
from vision_rl.settings import AgentSettings
from vision_rl.training.rows import Drop, RowBuilder
from vision_rl.training.samples import Sample


def agent(**changes: Any) -> AgentSettings:
    limits: dict[str, Any] = {"family": "qwen2_5_vl", "min_pixels": 56 * 56, "max_pixels": 112 * 112}
    return AgentSettings(**{**limits, **changes})


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


# Native videos


def test_a_video_is_named_by_its_frames_and_a_picture_by_itself(tmp_path: Path) -> None:
    refs = ["sha256:ab", "sha256:cd"]
    video = video_reference(refs)
    assert is_video(video) and frames_of(video) == refs
    assert not is_video(refs[0]) and frames_of("file:///a,b.png") == ["file:///a,b.png"]
    kept = tmp_path / "pictures"
    assert picture_files(tmp_path, ["file:///a%20b.png", video]) == [Path("/a b.png"), kept / "ab", kept / "cd"]
    with pytest.raises(UserError, match="send pictures as file"):
        picture_path("https://elsewhere/a.png", kept)


@pytest.mark.parametrize(
    ("media", "video", "kinds"),
    [
        ("video", "frames", ["image_url", "image_url", "text"]),
        ("video", "native", ["video_url", "text"]),
        ("images", "native", ["image_url", "image_url", "text"]),
    ],
)
def test_a_video_is_shown_as_the_settings_say(media: str, video: str, kinds: list[str], tmp_path: Path) -> None:
    paths = pictures(tmp_path, (84, 56), (84, 56))
    task = {
        "image_paths": paths,
        "image_sizes": [(84, 56)] * 2,
        "media": media,
        "settings": dataclasses.asdict(agent(video=video)),
    }
    content: Any = media_message("What?", task)["content"]
    assert [part["type"] for part in content] == kinds and content[-1]["text"] == "What?"
    if content[0]["type"] == "video_url":
        head, *frames = content[0]["video_url"]["url"].split(",")
        assert head == "data:video/jpeg;base64" and len(frames) == 2
        for path, frame in zip(paths, frames, strict=True):
            assert base64.b64decode(frame) == Path(path).read_bytes()


def test_pictures_beside_native_videos_are_for_one_rank() -> None:
    sizes = {"image_sizes": [(84, 56), (84, 56)], "id": "clip"}
    mixed = [{"media": "images", "image_sizes": [(1, 2), (3, 4)]}, {"media": "video", **sizes}]
    check_videos(mixed, ranks=1)
    check_videos(mixed[1:] * 2, ranks=2)
    with pytest.raises(UserError, match=r"agent.video=native on 2 ranks needs a data set of videos only"):
        check_videos(mixed, ranks=2)
    with pytest.raises(UserError, match="the frames of clip are not of one size"):
        check_videos([{"media": "video", "image_sizes": [(84, 56), (84, 57)], "id": "clip"}], ranks=1)


@pytest.mark.parametrize("family", ["Qwen2.5-VL", "Qwen3-VL"])
def test_a_videos_row_has_the_processors_tokens_pixels_and_positions(family: str, tmp_path: Path) -> None:
    """Against the family's own processor and rope index, given the frames; a frame that is missing is seen."""
    from transformers import AutoModelForImageTextToText

    folder = build(family, tmp_path / "model")
    processor = load_processor(str(folder))
    paths = pictures(tmp_path, *[(112, 84)] * 4)
    ref = video_reference(Path(path).as_uri() for path in paths)
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}], tokenize=False)
    frames = np.stack([np.asarray(Image.open(path)) for path in paths])
    metadata = {"total_num_frames": 4, "fps": 1.0, "duration": 4.0, "frames_indices": [0, 1, 2, 3]}
    whole = processor(
        text=[text], videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
    )

    def row(frames: str) -> Any:
        pixels = Pixels(processor, tmp_path)
        builder = RowBuilder(processor, pixels, max_prompt_length=10**4, max_response_length=10**4)
        prompt = whole["input_ids"][0].tolist()
        return builder.row(Sample(prompt, [5, 6], [1, 1], [0.0, 0.0], [frames], 1.0, "a", "a", 0)), pixels.inputs(
            [frames]
        )

    built, inputs = row(ref)
    assert torch.equal(inputs["pixel_values_videos"], whole["pixel_values_videos"].float())
    assert (
        inputs["video_grid_thw"].tolist() == whole["video_grid_thw"].tolist() == [[2, *inputs["video_grid_thw"][0, 1:]]]
    )
    model = AutoModelForImageTextToText.from_pretrained(folder)
    types = torch.nn.functional.pad(whole["mm_token_type_ids"], (0, 2))
    seconds = {"second_per_grid_ts": whole["second_per_grid_ts"]} if "second_per_grid_ts" in whole else {}
    expected, _ = model.model.get_rope_index(
        input_ids=built["input_ids"][None], mm_token_type_ids=types, video_grid_thw=whole["video_grid_thw"], **seconds
    )
    assert torch.equal(built["position_ids"][1:], expected[:, 0])
    fewer, _ = row(video_reference(frames_of(ref)[:2]))
    assert isinstance(fewer, Drop) and fewer.reason.name == "IMAGE_TOKENS_DISAGREE"
