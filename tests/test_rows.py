"""Rows of verl's queue against Hugging Face's own forward and verl's own engine: what the issue calls an actor that sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.actor import actor, log_probs
from vision_rl.actor.rank import VisionTrainingWorker
from vision_rl.agent.messages import image_url
from vision_rl.models.pixels import Pixels
from vision_rl.models.positions import position_ids
from vision_rl.training.rows import Drop, RowBuilder, tag_of
from vision_rl.training.samples import Sample

REPLIES = ["red", "2", "blue square"]


def prompt_ids(processor: Any, question: str, images: list[Path]) -> list[int]:
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    encoded = processor(text=[text], images=[Image.open(path) for path in images] or None, return_tensors="pt")
    return encoded["input_ids"][0].tolist()


@pytest.fixture()
def make_sample(tiny_processor: Any) -> Callable[..., Sample]:
    def make(images: list[str], reply: str, **changes: Any) -> Sample:
        response = [*tiny_processor.tokenizer(reply).input_ids, tiny_processor.tokenizer.eos_token_id]
        values: dict[str, Any] = {
            "prompt_ids": prompt_ids(tiny_processor, "What color is it?", [Path(path) for path in images]),
            "response_ids": response,
            "response_mask": [1] * len(response),
            "rollout_log_probs": [-1.0] * len(response),
            "image_refs": [image_url(path, "file") for path in images],
            "reward": 0.3,
            "data_id": "group",
            "rollout_id": f"rollout-{reply}",
            "turn_index": 0,
        }
        return Sample(**{**values, **changes})

    return make


@pytest.fixture()
def builder(tiny_processor: Any, tmp_path: Path) -> RowBuilder:
    pixels = Pixels(tiny_processor, tmp_path)
    return RowBuilder(tiny_processor, pixels, max_prompt_length=128, max_response_length=16)


@pytest.fixture(scope="module")
def worker() -> VisionTrainingWorker:
    return actor()


@pytest.fixture()
def samples(make_sample: Callable[..., Sample], vqa_rows: list[dict[str, Any]]) -> list[Sample]:
    """Different images, replies and lengths; one conversation holds two images."""
    paths = [row["image_paths"][0] for row in vqa_rows]
    return [
        make_sample([paths[0]], REPLIES[0]),
        make_sample([paths[1]], REPLIES[1]),
        make_sample(paths[2:4], REPLIES[2]),
    ]


def rows_of(builder: RowBuilder, samples: list[Sample]) -> list[dict[str, Any]]:
    rows = [builder.row(sample) for sample in samples]
    assert not any(isinstance(row, Drop) for row in rows)
    return rows  # type: ignore[return-value]


def test_actor_sees_what_transformers_sees(
    builder: RowBuilder, samples: list[Sample], worker: VisionTrainingWorker, tiny_processor: Any, tiny_reference: Any
) -> None:
    computed = log_probs(worker, rows_of(builder, samples), builder.pixels)
    asked = [
        (sample.prompt_ids, sample.response_ids, [builder.pixels.path(ref) for ref in sample.image_refs])
        for sample in samples
    ]
    for i, expected in enumerate(tiny_reference(asked)):
        torch.testing.assert_close(computed[i, : len(expected)], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fault", ["no pixels", "swapped pixels", "plain positions"])
def test_a_blind_or_confused_actor_is_far_off(
    fault: str, builder: RowBuilder, samples: list[Sample], worker: VisionTrainingWorker
) -> None:
    """The same comparison fails by orders of magnitude when any part of a row is wrong."""
    expected = log_probs(worker, rows_of(builder, samples), builder.pixels)
    rows = rows_of(builder, samples)
    if fault == "no pixels":
        for row in rows:
            row["multi_modal_inputs"] = {}
    elif fault == "swapped pixels":
        first, second = rows[0]["multi_modal_inputs"], rows[1]["multi_modal_inputs"]
        rows[0]["multi_modal_inputs"], rows[1]["multi_modal_inputs"] = second, first
    else:
        for row in rows:
            row["position_ids"] = row["position_ids"][:1].expand(4, -1).contiguous()
    assert (log_probs(worker, rows, builder.pixels) - expected).abs().max() > 1e-2


def test_rows_without_a_picture_can_be_trained_on(
    builder: RowBuilder, samples: list[Sample], worker: VisionTrainingWorker, make_sample: Callable[..., Sample]
) -> None:
    """Alone in a micro-batch verl 0.9.1's Qwen-VL path crashes on them; beside others they change nothing for these."""
    text = make_sample([], "red")
    alone = log_probs(worker, rows_of(builder, [text]), builder.pixels)
    mixed = log_probs(worker, rows_of(builder, [text, *samples]), builder.pixels)
    torch.testing.assert_close(mixed[0, : alone.shape[1]], alone[0], atol=1e-5, rtol=0)
    seen = log_probs(worker, rows_of(builder, samples), builder.pixels)
    torch.testing.assert_close(mixed[1:, : seen.shape[1]], seen, atol=1e-5, rtol=0)


def test_rows_of_one_length_keep_their_positions(
    builder: RowBuilder,
    worker: VisionTrainingWorker,
    make_sample: Callable[..., Sample],
    vqa_rows: list[dict[str, Any]],
) -> None:
    """verl's update takes the four rows of M-RoPE for the ragged dimension where all sequences are equally long."""
    samples = [make_sample(row["image_paths"][:1], "red") for row in vqa_rows[:3]]
    rows = rows_of(builder, samples)
    assert len({len(row["input_ids"]) for row in rows}) == 1
    together = log_probs(worker, rows, builder.pixels)
    longer = rows_of(builder, [make_sample(vqa_rows[3]["image_paths"][:1], "blue square")])
    torch.testing.assert_close(log_probs(worker, rows + longer, builder.pixels)[:3, :2], together, atol=1e-5, rtol=0)


def test_positions_equal_transformers(builder: RowBuilder, samples: list[Sample], tiny_model: Any) -> None:
    for sample, row in zip(samples, rows_of(builder, samples), strict=True):
        ids = row["input_ids"].unsqueeze(0)
        expected, _ = tiny_model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == tiny_model.config.image_token_id).long(),
            image_grid_thw=builder.pixels.inputs(sample.image_refs)["image_grid_thw"],
            attention_mask=torch.ones_like(ids),
        )
        assert torch.equal(row["position_ids"][1:], expected[:, 0])
        assert row["position_ids"][0].tolist() == list(range(ids.shape[1]))


def test_a_row_names_its_pictures_and_is_small(builder: RowBuilder, samples: list[Sample]) -> None:
    """verl's own agent loop puts the pixels into every row (verl issue 7391); here a row is its tokens."""
    for sample, row in zip(samples, rows_of(builder, samples), strict=True):
        assert row["multi_modal_inputs"] == {"refs": sample.image_refs} and row["uid"] == "group"
        size = sum(value.nbytes for value in row.values() if isinstance(value, torch.Tensor))
        assert size <= 100 * len(row["input_ids"])
        tag = tag_of(row, queued_at=3, first_version=2, last_version=4)
        assert tag["seq_len"] == len(row["input_ids"]) == tag["prompt_len"] + tag["response_len"]


def test_scores_are_exact_and_at_the_last_token(builder: RowBuilder, samples: list[Sample]) -> None:
    for sample, row in zip(samples, rows_of(builder, samples), strict=True):
        assert row["rm_scores"].dtype == torch.float32
        assert row["rm_scores"].sum().item() == pytest.approx(0.3, abs=1e-7)  # bfloat16: 0.3008
        assert row["rm_scores"][len(sample.response_ids) - 1] > 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"response_ids": [], "response_mask": [], "rollout_log_probs": []}, "empty"),
        ({"rollout_log_probs": []}, "no_logprobs"),
        ({"image_refs": []}, "image_tokens_disagree"),
        ({"image_refs": ["file:///nowhere/to/be/found.png"]}, "unreadable_image"),
    ],
)
def test_bad_samples_are_dropped_with_their_reason(
    changes: dict[str, Any], reason: str, builder: RowBuilder, make_sample: Callable[..., Sample], vqa_rows: list[Any]
) -> None:
    drop = builder.row(make_sample(vqa_rows[0]["image_paths"], "blue", **changes))
    assert isinstance(drop, Drop) and drop.reason == reason
    for ref in changes.get("image_refs", []):
        assert ref.removeprefix("file://") in drop.text  # the sentence names the picture


def test_wrong_number_of_image_tokens_is_dropped(
    builder: RowBuilder, make_sample: Callable[..., Sample], vqa_rows: list[Any], tiny_processor: Any
) -> None:
    good = make_sample(vqa_rows[0]["image_paths"], "red")
    ids = list(good.prompt_ids)
    ids.remove(tiny_processor.image_token_id)
    drop = builder.row(make_sample(vqa_rows[0]["image_paths"], "blue", prompt_ids=ids))
    assert isinstance(drop, Drop) and drop.reason == "image_tokens_disagree"
    assert vqa_rows[0]["image_paths"][0] in drop.text


def test_a_prompt_is_never_cut_through_its_image(
    builder: RowBuilder, make_sample: Callable[..., Sample], vqa_rows: list[Any]
) -> None:
    long = make_sample(vqa_rows[0]["image_paths"], "red")
    builder.max_prompt_length = len(long.prompt_ids) - 1
    drop = builder.row(long)
    assert isinstance(drop, Drop) and drop.reason == "prompt_too_long" and "max_prompt_length" in drop.text


def test_long_responses_are_cut(builder: RowBuilder, make_sample: Callable[..., Sample], vqa_rows: list[Any]) -> None:
    builder.max_response_length = 1
    long = make_sample(vqa_rows[0]["image_paths"], "blue square")
    long.rollout_log_probs[0] = -2.0
    row = rows_of(builder, [long])[0]
    assert row["responses"].tolist() == long.response_ids[:1] and row["rollout_log_probs"].tolist() == [-2.0]
    assert len(row["responses"]) == len(row["response_mask"]) == len(row["rollout_log_probs"]) == 1
    assert row["rm_scores"].tolist() == pytest.approx([0.3])


def test_an_image_is_processed_once_for_its_group(
    builder: RowBuilder, make_sample: Callable[..., Sample], vqa_rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [make_sample(vqa_rows[0]["image_paths"], reply) for reply in REPLIES]
    calls: list[int] = []
    processor = builder.pixels.processor.image_processor
    original = type(processor).__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(processor), "__call__", counted)
    rows_of(builder, samples)
    assert len(calls) == 1


def test_blank_pixels_are_a_black_picture_of_the_same_size(
    tiny_processor: Any, tmp_path: Path, vqa_rows: list[Any]
) -> None:
    """Black before the processor: zeros after it would be grey, and some families take them for padding."""
    with Image.open(vqa_rows[0]["image_paths"][0]) as picture:
        Image.new("RGB", picture.size).save(tmp_path / "black.png")
    black = Pixels(tiny_processor, tmp_path).inputs([(tmp_path / "black.png").as_uri()])
    ref = [image_url(vqa_rows[0]["image_paths"][0], "file")]
    seeing = Pixels(tiny_processor, tmp_path).inputs(ref)
    blind = Pixels(tiny_processor, tmp_path, blank=True).inputs(ref)
    assert blind["pixel_values"].shape == seeing["pixel_values"].shape
    assert torch.equal(blind["pixel_values"], black["pixel_values"])
    assert not torch.equal(blind["pixel_values"], seeing["pixel_values"])
    assert torch.equal(blind["image_grid_thw"], seeing["image_grid_thw"])


@pytest.mark.parametrize("what", ["log_probs", "entropy"])
def test_each_row_is_computed_at_its_own_temperature(
    builder: RowBuilder, make_sample: Callable[..., Sample], worker: VisionTrainingWorker, vqa_rows: Any, what: str
) -> None:
    """Against verl's own single temperature for a batch of one row; None is the run's."""
    paths = [row["image_paths"][0] for row in vqa_rows]
    asked = [None, 0.3, 2.0]
    samples = [
        make_sample([path], reply, temperature=temperature)
        for path, reply, temperature in zip(paths, REPLIES, asked, strict=False)
    ]
    builder.temperature = 0.7
    rows = rows_of(builder, samples)
    together = log_probs(worker, rows, builder.pixels, what=what)
    for row, found, temperature in zip(rows, together, (0.7, 0.3, 2.0), strict=True):
        assert row.pop("sampling_temperature") == temperature
        alone = log_probs(worker, [row], builder.pixels, temperature=temperature, what=what)[0]
        torch.testing.assert_close(found[: len(alone)], alone, atol=1e-5, rtol=1e-5)
        other = log_probs(worker, [row], builder.pixels, temperature=1.0, what=what)[0]
        assert (other - alone).abs().max() > 1e-2


def test_positions_of_a_groups_rows_are_those_of_each_by_itself(
    builder: RowBuilder, make_sample: Callable[..., Sample], vqa_rows: list[dict[str, Any]], tiny_processor: Any
) -> None:
    """They are computed once for a prompt; another picture, another prompt and a picture in the reply are computed anew."""
    paths = [row["image_paths"][0] for row in vqa_rows]
    builder.max_response_length = 64
    shown = make_sample([paths[1]], "red")
    tool = make_sample([paths[0]], "red", image_refs=[*make_sample([paths[0]], "").image_refs, *shown.image_refs])
    reply = [*tool.response_ids, *shown.prompt_ids, *shown.response_ids]
    changes: dict[str, Any] = {
        "response_ids": reply,
        "response_mask": [1] * len(reply),
        "rollout_log_probs": [0.0] * len(reply),
    }
    samples = [make_sample([paths[0]], text) for text in (REPLIES[0], REPLIES[2])]
    samples += [dataclasses.replace(tool, **changes), make_sample([paths[0]], "2"), make_sample(paths[:2], "2")]
    samples += [make_sample([], "2 3 4"), make_sample([], "2")]
    for sample, row in zip(samples, rows_of(builder, samples), strict=True):
        ids = row["input_ids"]
        whole = position_ids(tiny_processor, ids, torch.ones_like(ids), builder.pixels.inputs(sample.image_refs))
        assert torch.equal(row["position_ids"], whole)
