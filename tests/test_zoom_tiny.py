"""The demonstration's claims about its pictures and texts, and a page of a conversation with its pictures."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.tiny_models.zoom_scenes import INSTRUCTION, ZoomScene, draw_scene, write_zoom_tasks
from scripts.tiny_models.zoom_warmstart import (
    LIMITS,
    SETTINGS,
    call_text,
    dialogue_batch,
    single_look,
    with_tools,
    zoom_processor,
)
from vision_rl.agent.grounding_prompts import request, system_text
from vision_rl.agent.tools import ToolBox
from vision_rl.answers.parsing import parse_tool_calls, read_boxes
from vision_rl.answers.zoom import View, zoom
from vision_rl.data.schema import read_rows
from vision_rl.report.run import run_page
from vision_rl.rewards.tools import target_kind
from vision_rl.run.directory import CONFIG
from vision_rl.run.log import ROLLOUTS
from vision_rl.settings import AgentSettings


def hatching(picture: Image.Image, scene: ZoomScene, view: View) -> list[float]:
    """How much each tile's grey levels vary beyond the wallpaper's shading: mean step between neighbours in any way."""
    found = []
    for tile in scene.tiles:
        x1, y1, x2, y2 = (v * side for v, side in zip(view.from_picture(tile), picture.size * 2, strict=True))
        inset = 0.15 * (x2 - x1)
        crop = picture.crop((round(x1 + inset), round(y1 + inset), round(x2 - inset), round(y2 - inset)))
        grey = np.asarray(crop.convert("L"), dtype=float)
        found.append(float(max(np.abs(np.diff(grey, axis=0)).mean(), np.abs(np.diff(grey, axis=1)).mean())))
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", ["small", "large"])
def test_small_hatching_can_be_seen_only_after_a_zoom_and_large_at_once(size: str, seed: int) -> None:
    scene = draw_scene(random.Random(seed), size)
    shown = LIMITS.processed(scene.image.size)
    first = hatching(scene.image.resize(shown, Image.Resampling.BICUBIC), scene, View(shown))
    others = [value for number, value in enumerate(first) if number != scene.target]
    if size == "large":
        assert first[scene.target] > 10 and max(others) < 2
        return
    assert first[scene.target] - max(others) < 2, "grey levels: it shows at once"
    crop, view = zoom(scene.image, scene.region, 2.0, LIMITS)
    closer = hatching(crop, scene, view)
    assert closer[scene.target] > 40 and closer.index(max(closer)) == scene.target


def test_sizes_are_those_of_the_reward_and_regions_hold_the_target() -> None:
    rng = random.Random(0)
    for _ in range(50):
        scene = draw_scene(rng)
        assert target_kind(scene.box) == {"small": "small", "large": "easy"}[scene.size]
        x, y = (scene.box[0] + scene.box[2]) / 2, (scene.box[1] + scene.box[3]) / 2
        assert scene.region[0] <= x <= scene.region[2] and scene.region[1] <= y <= scene.region[3]


def test_the_data_set_is_in_the_schema(tmp_path: Path) -> None:
    paths = write_zoom_tasks(tmp_path, train=6, val=4)
    rows = read_rows(paths["train"], task="grounding")
    assert len(rows) == 6 and {row["meta"]["target_size"] for row in rows} == {"small", "large"}
    assert Image.open(rows[0]["image_paths"][0]).size == (224, 224)


def test_the_fixed_texts_are_one_token_each() -> None:
    """Else every prompt would be a thousand tokens long: a changed text needs a new checkpoint."""
    tokenizer = zoom_processor().tokenizer
    for text in (system_text(True), INSTRUCTION, request("", SETTINGS, view="last"), request("", SETTINGS)):
        assert len(tokenizer(text).input_ids) == 1


def test_lessons_are_what_the_agent_sends_and_can_carry_out(tmp_path: Path) -> None:
    scene = draw_scene(random.Random(1), "small")
    dialogue = with_tools(scene, scene.region)
    [call] = parse_tool_calls(dialogue.messages[2]["content"])
    scene.image.save(tmp_path / "a.png")
    result = ToolBox([str(tmp_path / "a.png")], {}, LIMITS).run(call)
    assert result.picture is not None and result.view is not None
    assert np.array_equal(np.asarray(result.picture), np.asarray(dialogue.pictures[1]))
    assert result.numbered(2) in dialogue.messages[3]["content"][1]["text"]
    [box] = read_boxes(dialogue.messages[4]["content"], "bbox").boxes
    assert result.view.to_picture(box) == pytest.approx(scene.box, abs=0.01)


def test_only_the_assistants_words_are_learnt() -> None:
    processor = zoom_processor()
    rng = random.Random(1)
    dialogues = [with_tools(draw_scene(rng, "small"), draw_scene(rng, "small").region), single_look(draw_scene(rng))]
    batch = dialogue_batch(processor, dialogues)
    for row, dialogue in enumerate(dialogues):
        learnt = processor.tokenizer.decode(batch["labels"][row][batch["labels"][row] != -100])
        replies = [message["content"] for message in dialogue.messages if message["role"] == "assistant"]
        assert learnt == "".join(reply + "<|im_end|>" for reply in replies)


def test_the_page_shows_the_pictures_and_what_was_looked_at(tmp_path: Path) -> None:
    scene = draw_scene(random.Random(1), "small")
    scene.image.save(tmp_path / "a.png")
    crop, _ = zoom(scene.image, scene.region, 2.0, LIMITS)
    (tmp_path / "pictures").mkdir()
    crop.save(tmp_path / "pictures" / "abc", format="PNG")
    first = (tmp_path / "a.png").as_uri()
    settings = AgentSettings(reward="iou", max_turns=2, max_tool_calls=1, answer_view="last", max_pixels=112 * 112)
    lines = [f"agent.{name}: {json.dumps(value)}" for name, value in dataclasses.asdict(settings).items()]
    task = ["task.name: grounding", "task.truth: boxes", "task.metric: iou"]
    (tmp_path / CONFIG).write_text("\n".join([*task, *lines]))
    record = {
        **{"step": 1, "mode": "train", "id": "zoom-1", "question": INSTRUCTION, "boxes": [list(scene.box)]},
        "replies": [call_text(scene.region), "<answer><bbox>[0.25, 0.25, 0.5, 0.5]</bbox><script></answer>"],
        "image_paths": [str(tmp_path / "a.png")],
        "image_refs": [[first], [first, "sha256:abc"]],
        "reward": {"reward": 0.7, "iou": 0.8, "point": 1.0, "tools/zooms": 1.0},
        **{"failure": "", "reason": "", "worker": "", "group": "g", "answers": []},
        **{"response_tokens": [20, 30], "finish_reasons": ["stop", "stop"]},
    }
    (tmp_path / ROLLOUTS).write_text(json.dumps(record) + "\n")
    [card] = run_page([tmp_path]).cards
    [answer] = card.answers
    [crop_shown] = answer.turns[1].pictures
    assert "zoom_ui_element" in answer.turns[0].reply and crop_shown.title == "picture 2, 112 x 112 pixels"
    # The answer was given in the zoomed picture: a quarter from its left, seen whole there and in place in the first.
    [seen] = [mark for mark in crop_shown.marks if mark.kind == "predicted"]
    assert (seen.x, seen.y, seen.width, seen.height) == pytest.approx((28, 28, 28, 28), abs=1e-6)
    assert answer.zooms[0] == pytest.approx(scene.region, abs=0.02)
