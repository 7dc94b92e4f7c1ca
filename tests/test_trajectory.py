"""Turns merged into one sample, against transformers' own forward and positions, with two and three images."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from scripts.tiny_models.zoom_warmstart import call_text, zoom_processor
from tests.actor import actor, as_batch, log_probs
from vision_rl.actor.mismatch import mismatch_metrics
from vision_rl.actor.rank import VisionTrainingWorker
from vision_rl.agent.grounding_prompts import system_text
from vision_rl.agent.tools import TOOLS
from vision_rl.config.derived import sample_limits
from vision_rl.models.pixels import Pixels
from vision_rl.rollout.trace import Turn
from vision_rl.run.failures import RolloutFailure
from vision_rl.training.advantages import rollout_advantages
from vision_rl.training.rollouts import FinishedRollout
from vision_rl.training.rows import Drop, RowBuilder
from vision_rl.training.samples import Sample, trajectory_samples, transition_samples

LONG = {"max_prompt_length": 512, "max_response_length": 512}
REPLIES = ["red", "blue square", "2"]


@pytest.fixture(scope="module")
def picture_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


def picture(folder: Path, seed: int, size: tuple[int, int]) -> str:
    """The reference of a picture that was sent as data, as the proxy keeps it."""
    buffer = io.BytesIO()
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(buffer, "PNG")
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    (folder / digest).write_bytes(buffer.getvalue())
    return f"sha256:{digest}"


@pytest.fixture(scope="module")
def rollout(tiny_reference: Any, tiny_processor: Any, picture_dir: Path) -> FinishedRollout:
    """Three turns, each with one more picture, all of different shapes.

    Log-probabilities are as a server computes them: for each turn by itself.
    """
    refs = [picture(picture_dir, 1, (84, 84)), picture(picture_dir, 2, (112, 56)), picture(picture_dir, 3, (56, 112))]
    messages: list[dict[str, Any]] = []
    turns = []
    for number, reply in enumerate(REPLIES):
        text = "What color is it?" if number == 0 else "Picture shows more. Answer."
        messages.append({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]})
        shown = refs[: number + 1]
        prompt = tokens(tiny_processor, messages, [picture_dir / ref.removeprefix("sha256:") for ref in shown])
        response = [*tiny_processor.tokenizer(reply).input_ids, tiny_processor.tokenizer.eos_token_id]
        turns.append(Turn(prompt, response, [], shown, reply, "stop"))
        messages.append({"role": "assistant", "content": reply})
    pictures = [[picture_dir / ref.removeprefix("sha256:") for ref in turn.image_refs] for turn in turns]
    computed = tiny_reference(
        [(turn.prompt_ids, turn.response_ids, paths) for turn, paths in zip(turns, pictures, strict=True)]
    )
    turns = [dataclasses.replace(turn, logprobs=one.tolist()) for turn, one in zip(turns, computed, strict=True)]
    return FinishedRollout("r1", "g1", {}, turns=turns, reward={"reward": 0.7})


def tokens(processor: Any, messages: list[dict[str, Any]], paths: list[Path]) -> list[int]:
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    encoded = processor(text=[text], images=[Image.open(path) for path in paths], return_tensors="pt")
    ids: list[int] = encoded["input_ids"][0].tolist()
    return ids


def vision_of(processor: Any, refs: list[str], folder: Path) -> Any:
    pictures = [Image.open(folder / ref.removeprefix("sha256:")).convert("RGB") for ref in refs]
    return processor.image_processor(images=pictures, return_tensors="pt")


@pytest.fixture(scope="module")
def worker() -> VisionTrainingWorker:
    return actor()


def rows_of(processor: Any, folder: Path, samples: list[Sample], **limits: int) -> list[dict[str, Any]]:
    made = RowBuilder(processor, Pixels(processor, folder), **{**LONG, **limits})  # type: ignore[arg-type]
    rows = [made.row(sample) for sample in samples]
    assert not any(isinstance(row, Drop) for row in rows)
    return rows  # type: ignore[return-value]


def compared(worker: VisionTrainingWorker, processor: Any, folder: Path, rows: list[Any], samples: list[Sample]) -> Any:
    """The batch of these rows with the actor's log-probabilities."""
    return as_batch(rows, samples, old_log_probs=log_probs(worker, rows, Pixels(processor, folder)))


def largest_mismatch(batch: Any) -> float:
    return mismatch_metrics(batch, np.ones(len(batch), dtype=bool))["mismatch/logprob_max"]


def merged(rollout: FinishedRollout) -> Sample:
    result = trajectory_samples([rollout], **LONG)
    [sample] = result.samples
    assert not result.breaks
    return sample


def test_all_turns_become_one_sample_in_which_only_the_models_own_tokens_count(rollout: FinishedRollout) -> None:
    sample = merged(rollout)
    last = rollout.turns[-1]
    assert sample.prompt_ids == rollout.turns[0].prompt_ids
    assert sample.prompt_ids + sample.response_ids == last.prompt_ids + last.response_ids
    assert sample.image_refs == last.image_refs and len(set(sample.image_refs)) == 3
    own = [token for token, mask in zip(sample.response_ids, sample.response_mask, strict=True) if mask]
    assert own == [token for turn in rollout.turns for token in turn.response_ids]
    values = [value for value, mask in zip(sample.rollout_log_probs, sample.response_mask, strict=True) if mask]
    assert values == [value for turn in rollout.turns for value in turn.logprobs]
    assert all(v == 0.0 for v, mask in zip(sample.rollout_log_probs, sample.response_mask, strict=True) if not mask)
    assert sample.reward == 0.7 and sample.rollout_id == "r1"


def test_the_merged_sample_has_the_log_probs_of_its_turns(
    rollout: FinishedRollout, worker: VisionTrainingWorker, tiny_processor: Any, picture_dir: Path
) -> None:
    """verl's own actor on the padded merged sample, beside a shorter one, against each turn by transformers alone."""
    short = dataclasses.replace(rollout, rollout_id="r2", turns=rollout.turns[:1])
    samples = trajectory_samples([rollout, short], **LONG).samples
    batch = compared(worker, tiny_processor, picture_dir, rows_of(tiny_processor, picture_dir, samples), samples)
    mask = batch.batch["response_mask"].bool()
    expected = torch.tensor([value for turn in rollout.turns for value in turn.logprobs])
    torch.testing.assert_close(batch.batch["old_log_probs"][0][mask[0]], expected, atol=1e-5, rtol=0)
    assert largest_mismatch(batch) < 1e-5


def test_positions_are_transformers_own(
    rollout: FinishedRollout, tiny_model: Any, tiny_processor: Any, picture_dir: Path
) -> None:
    [row] = rows_of(tiny_processor, picture_dir, [merged(rollout)])
    last = rollout.turns[-1]
    ids = torch.tensor([last.prompt_ids + last.response_ids])
    grid = vision_of(tiny_processor, last.image_refs, picture_dir)["image_grid_thw"]
    types = (ids == tiny_model.config.image_token_id).long()
    expected, _ = tiny_model.model.get_rope_index(input_ids=ids, mm_token_type_ids=types, image_grid_thw=grid)
    assert torch.equal(row["position_ids"][1:], expected[:, 0])
    assert torch.equal(row["position_ids"][0], torch.arange(ids.shape[1]))
    assert torch.equal(row["input_ids"], ids[0])


@pytest.mark.parametrize("fault", ["order of the pictures", "mask", "positions of the first turn"])
def test_a_wrongly_merged_sample_is_far_off(
    fault: str, rollout: FinishedRollout, worker: VisionTrainingWorker, tiny_processor: Any, picture_dir: Path
) -> None:
    """What the tests above would say if merging were wrong: the difference is thousands of times larger."""
    sample = merged(rollout)
    if fault == "order of the pictures":
        one, _, three = sample.image_refs
        sample = dataclasses.replace(sample, image_refs=[one, picture(picture_dir, 9, (112, 56)), three])
    if fault == "mask":
        sample = dataclasses.replace(sample, response_mask=[1] * len(sample.response_mask))
    rows = rows_of(tiny_processor, picture_dir, [sample])
    if fault == "positions of the first turn":
        rows[0]["position_ids"] = rows[0]["position_ids"][:1].expand(4, -1).contiguous()
    assert largest_mismatch(compared(worker, tiny_processor, picture_dir, rows, [sample])) > 1e-3


def test_pictures_in_another_order_do_not_pass_where_their_shapes_differ(
    rollout: FinishedRollout, worker: VisionTrainingWorker, tiny_processor: Any, picture_dir: Path
) -> None:
    sample = merged(rollout)
    swapped = dataclasses.replace(sample, image_refs=[sample.image_refs[i] for i in (0, 2, 1)])
    rows = rows_of(tiny_processor, picture_dir, [swapped])
    assert largest_mismatch(compared(worker, tiny_processor, picture_dir, rows, [swapped])) > 1e-3


def changed(rollout: FinishedRollout, index: int, **changes: Any) -> FinishedRollout:
    turns = list(rollout.turns)
    turns[index] = dataclasses.replace(turns[index], **changes)
    return dataclasses.replace(rollout, turns=turns)


def test_a_retokenised_turn_falls_back_to_transitions_and_is_counted(
    rollout: FinishedRollout, tiny_model: Any, tiny_processor: Any, picture_dir: Path
) -> None:
    ids = list(rollout.turns[1].prompt_ids)
    ids[len(rollout.turns[0].prompt_ids)] += 1  # the first reply, tokenised in another way
    broken = changed(rollout, 1, prompt_ids=ids)
    result = trajectory_samples([broken, rollout], **LONG)
    assert result.breaks == {"tokens": 2}  # the second turn, and the third, which begins like neither
    assert [(s.rollout_id, s.turn_index, len(s.image_refs)) for s in result.samples] == [
        ("r1", 0, 1),
        ("r1", 1, 2),
        ("r1", 2, 3),
        ("r1", 0, 3),
    ]
    assert [dataclasses.asdict(s) for s in result.samples[:3]] == [
        dataclasses.asdict(s) for s in transition_samples([broken])
    ]
    assert len(rows_of(tiny_processor, picture_dir, result.samples)) == len(result.samples)


@pytest.mark.parametrize("protocol", ["text", "function"])
def test_the_shipped_template_keeps_calls_as_text_and_writes_function_calls_anew(protocol: str) -> None:
    """With function tools the second turn does not continue the first, token by token: it is counted, not merged."""
    processor = zoom_processor()
    call = call_text((0.5, 0.0, 1.0, 0.5))
    arguments = json.loads(call.removeprefix("<tool_call>").removesuffix("</tool_call>"))["arguments"]
    function = {"type": "function", "function": {"name": "zoom_ui_element", "arguments": arguments}}
    as_text = protocol == "text"
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": system_text(as_text)},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Find it."}]},
    ]
    reply = (
        {"role": "assistant", "content": call}
        if as_text
        else {"role": "assistant", "content": "", "tool_calls": [function]}
    )
    result = {"role": "user" if as_text else "tool", "content": "Picture 2 shows it."}

    def ids(messages: list[dict[str, Any]]) -> list[int]:
        text = processor.apply_chat_template(messages, tools=None if as_text else TOOLS, add_generation_prompt=True)
        found: list[int] = processor.tokenizer(text).input_ids
        return found

    response = processor.tokenizer(call + "<|im_end|>").input_ids
    first = Turn(ids(messages), response, [-1.0] * len(response), ["a"], call, "stop")
    second = Turn(ids([*messages, reply, result]), [5, 6], [-1.0] * 2, ["a"], "", "stop")
    rollout = FinishedRollout("r1", "g1", {}, turns=[first, second], reward={"reward": 0.7})
    made = trajectory_samples([rollout], max_prompt_length=4096, max_response_length=4096)
    assert (len(made.samples), made.breaks) == ((1, {}) if as_text else (2, {"tokens": 1}))


def test_a_later_turn_can_go_on_after_a_break(rollout: FinishedRollout) -> None:
    first = [dataclasses.replace(rollout.turns[0], response_ids=[5, 6], logprobs=[-1.0, -1.0])]
    result = trajectory_samples([dataclasses.replace(rollout, turns=first + rollout.turns[1:])], **LONG)
    assert result.breaks == {"tokens": 1}
    assert [sum(sample.response_mask) for sample in result.samples] == [
        2,
        sum(len(turn.response_ids) for turn in rollout.turns[1:]),
    ]


def test_other_pictures_in_the_history_break_it_too(rollout: FinishedRollout) -> None:
    refs = rollout.turns[1].image_refs
    result = trajectory_samples([changed(rollout, 1, image_refs=refs[::-1])], **LONG)
    assert result.breaks == {"pictures": 2}


def test_a_turn_at_another_temperature_stays_apart(rollout: FinishedRollout) -> None:
    result = trajectory_samples([changed(rollout, 2, sampling={"temperature": 0.3, "seed": 1})], **LONG)
    assert result.breaks == {"temperature": 1}
    assert [(sample.turn_index, sample.temperature) for sample in result.samples] == [(0, None), (2, 0.3)]


def test_what_would_be_too_long_stays_apart(rollout: FinishedRollout) -> None:
    first, second = rollout.turns[:2]
    room = len(second.prompt_ids) + len(second.response_ids) - len(first.prompt_ids)
    result = trajectory_samples([rollout], max_prompt_length=512, max_response_length=room)
    assert result.breaks == {"length": 1} and [s.turn_index for s in result.samples] == [0, 2]
    result = trajectory_samples([rollout], max_prompt_length=len(first.prompt_ids) - 1, max_response_length=512)
    assert result.breaks == {"length": 2}  # the first prompt alone is too long: nothing can follow it


def test_failed_rollouts_give_nothing(rollout: FinishedRollout) -> None:
    assert trajectory_samples([dataclasses.replace(rollout, failure=RolloutFailure.TIMEOUT)], **LONG).samples == []


def test_a_rollout_counts_once_in_its_group_however_many_samples_it_gives(
    rollout: FinishedRollout, tiny_processor: Any, picture_dir: Path
) -> None:
    """Rewards 1, 0, 0 with 3, 1, 1 turns: the mean of the group is a third at both levels."""
    algorithm = OmegaConf.create({"adv_estimator": "grpo", "norm_adv_by_std_in_grpo": False})
    group = [
        dataclasses.replace(rollout, reward={"reward": 1.0}),
        dataclasses.replace(rollout, rollout_id="r2", turns=rollout.turns[:1], reward={"reward": 0.0}),
        dataclasses.replace(rollout, rollout_id="r3", turns=rollout.turns[:1], reward={"reward": 0.0}),
    ]
    for samples in (transition_samples(group), trajectory_samples(group, **LONG).samples):
        batch = as_batch(rows_of(tiny_processor, picture_dir, samples), samples)
        advantages = rollout_advantages(batch, algorithm)
        mask = batch.batch["response_mask"].bool()
        for row, sample in enumerate(samples):
            expected = 2 / 3 if sample.rollout_id == "r1" else -1 / 3
            assert advantages[row][mask[row]].tolist() == pytest.approx([expected] * int(mask[row].sum()))
            assert not advantages[row][~mask[row]].any()


@pytest.mark.parametrize(("level", "expected"), [("transition", (128, 24)), ("trajectory", (300, 600))])
def test_each_level_has_its_own_lengths(level: str, expected: tuple[int, int]) -> None:
    aggregator = {"level": level, "trajectory_max_prompt_length": 300, "trajectory_max_response_length": 600}
    data = {"max_prompt_length": 128, "max_response_length": 24}
    assert (
        sample_limits(OmegaConf.create({"data": data, "agentlightning": {"trace_aggregator": aggregator}})) == expected
    )
