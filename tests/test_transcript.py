"""The page of conversations: both tasks have one, and what a run does not hold is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vision_rl.run_dir import CONFIG
from vision_rl.telemetry import ROLLOUTS
from vision_rl.transcript import PAGE, main

VQA = {"answers": ["red"], "boxes": [], "replies": ["red"], "reward": {"reward": 1.0, "accuracy": 1.0}}
GROUNDING = {
    "answers": [],
    "boxes": [[0.1, 0.1, 0.4, 0.4]],
    "replies": ["<bbox>[0.1, 0.1, 0.4, 0.3]</bbox>"],
    "reward": {"reward": 0.67, "iou": 0.67, "point": 1.0},
}


def a_run(folder: Path, record: dict[str, Any]) -> str:
    Image.new("RGB", (84, 84), "red").save(folder / "a.png")
    (folder / CONFIG).write_text("agent.reward: official\n")
    shown = {"image_paths": [str(folder / "a.png")], "image_refs": [[(folder / "a.png").as_uri()]]}
    head = {"step": 1, "mode": "train", "id": "1", "question": "Which?", "failure": ""}
    (folder / ROLLOUTS).write_text(json.dumps({**head, **shown, **record}) + "\n")
    return str(folder)


@pytest.mark.parametrize(
    ("record", "outcome"), [(VQA, "right, accuracy 1.00, reward 1.00"), (GROUNDING, "right, IoU 0.67, reward 0.67")]
)
def test_both_tasks_have_a_page(tmp_path: Path, record: dict[str, Any], outcome: str) -> None:
    main([a_run(tmp_path, record)])
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert outcome in page and page.count("data:image/png;base64,") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--step", "7"], "step 7 has no whole train rollout"),
        (["--mode", "val"], "holds no val rollouts"),
    ],
)
def test_what_a_run_does_not_hold_is_one_sentence(
    tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([a_run(tmp_path, VQA), *options])
    message = capsys.readouterr().err
    assert exit_info.value.code == 2 and words in message and message.count("\n") == 1
    assert not (tmp_path / PAGE).exists()
