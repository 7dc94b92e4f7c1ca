"""Tool metrics and the four files: written from rollout records alone."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from vision_rl.rewards import tools as reward_tools
from vision_rl.run.log import DETAILS, RunLog, read_jsonl
from vision_rl.run.tool_metrics import FILES, contradictions, tool_metrics, write_tool_logs

ZOOM = '<tool_call>{"name": "zoom_ui_element", "arguments": {"region": [0, 0, 0.5, 0.5], "zoom_factor": 2}}</tool_call>'


def reward(calls: int, small: bool, point: float, iou: float = 0.9) -> dict[str, float]:
    counts = {
        "tools/calls": float(calls),
        "tools/errors": 0.0,
        "tools/zooms": float(calls),
        "tools/needed": float(small),
    }
    return {"reward": iou, "iou": iou, "point": point, **counts}


def record(rollout: str, replies: list[str], scored: dict[str, float], **changes: Any) -> dict[str, Any]:
    base = {"step": 3, "mode": "train", "rollout_id": rollout, "group": "g", "id": "row", "question": "Find it."}
    rest = {"boxes": [[0.1, 0.1, 0.3, 0.2]], "replies": replies, "response_tokens": [9] * len(replies), "failure": ""}
    return {**base, **rest, "reward": scored, **changes}


def test_metrics_by_size_and_use() -> None:
    rewards = [
        reward(1, True, 1.0),
        reward(1, True, 0.0),
        reward(0, True, 0.0),
        reward(0, False, 1.0),
        reward(2, False, 0.0),
    ]
    assert tool_metrics(rewards, "train") == pytest.approx(
        {
            "train/tools/use_rate": 3 / 5,
            "train/success": 2 / 5,
            "train/tools/success_with": 1 / 3,
            "train/tools/success_without": 1 / 2,
            "train/tools/use_rate_small": 2 / 3,
            "train/success_small": 1 / 3,
            "train/tools/success_with_small": 1 / 2,
            "train/tools/success_without_small": 0.0,
            "train/tools/use_rate_large": 1 / 2,
            "train/success_large": 1 / 2,
            "train/tools/success_with_large": 0.0,
            "train/tools/success_without_large": 1.0,
        }
    )


def test_without_tools_there_are_no_tool_metrics() -> None:
    assert tool_metrics([{"reward": 1.0, "point": 1.0, "iou": 1.0}], "train") == {}


def test_the_four_files(tmp_path: Path) -> None:
    looked = f"<reasoning>The label is too small to read.</reasoning>{ZOOM}"
    records = [
        record("a", [looked, "<answer>x</answer><confidence>0.9</confidence>"], reward(1, True, 1.0, 0.9)),
        record("b", ["<reasoning>It is unclear.</reasoning><confidence>0.95</confidence>"], reward(0, True, 0.0, 0.1)),
        record("c", ["failed"], {}, failure="timeout"),
    ]
    write_tool_logs(tmp_path, records)
    lines = {name: read_jsonl(tmp_path / DETAILS / f"{name}.jsonl")[0] for name in FILES}
    first, second = lines["reasoning_traces"]
    assert first["reasoning"] == "The label is too small to read." and first["tools_used"] == ["zoom_ui_element"]
    assert first["confidence"] == 0.9 and second["confidence"] == 0.95 and first["target_small"] is True
    assert [line["pattern"] for line in lines["tool_patterns"]] == [["zoom_ui_element"], []]
    assert lines["tool_patterns"][0]["used_zoom"] and not lines["tool_patterns"][0]["used_wait"]
    assert lines["tool_patterns"][0]["target_area"] == pytest.approx(0.02)
    [effect] = lines["tool_effectiveness"]
    assert effect["iou_without_tools"] == 0.1 and effect["iou_gain"] == pytest.approx(0.8) and effect["effective"]
    [contradiction] = lines["contradictions"]
    assert contradiction["rollout_id"] == "b"
    assert contradiction["contradictions"] == [
        "missed_tool_opportunity",
        "overconfidence_failure",
        "reasoning_tool_mismatch",
    ]


@pytest.mark.parametrize(
    ("replies", "scored", "expected"),
    [
        (["x"], reward(0, False, 1.0, 0.9), []),
        ([ZOOM, "x"], reward(1, True, 1.0, 0.9), []),
        ([ZOOM, "x"], reward(1, False, 1.0, 0.9), ["unnecessary_tool_use"]),
        ([ZOOM, "x"], reward(1, True, 0.0, 0.1), ["ineffective_tool_use"]),
        (["x"], reward(0, True, 0.0, 0.1), ["missed_tool_opportunity"]),
        (["x <confidence>30%</confidence>"], reward(0, False, 1.0, 0.9), ["underconfidence_success"]),
        (["Not sure where. x"], reward(0, False, 1.0, 0.9), []),  # said in the answer, not in the reasoning
    ],
)
def test_contradictions(replies: list[str], scored: dict[str, float], expected: list[str]) -> None:
    assert contradictions(record("a", replies, scored)) == expected


def test_nothing_is_written_for_agents_without_tools(tmp_path: Path) -> None:
    write_tool_logs(tmp_path, [record("a", ["x"], {"reward": 1.0, "iou": 1.0, "point": 1.0})])
    assert not (tmp_path / DETAILS).exists()


def test_a_resumed_run_forgets_the_lines_of_later_steps(tmp_path: Path) -> None:
    for step in (1, 2):
        write_tool_logs(tmp_path, [record("a", ["x"], reward(0, False, 1.0), step=step)])
    RunLog(tmp_path).forget_after(1)
    text = (tmp_path / DETAILS / "tool_patterns.jsonl").read_text()
    assert [json.loads(line)["step"] for line in text.splitlines()] == [1]


def test_rewards_write_nothing() -> None:
    assert "open(" not in inspect.getsource(reward_tools) and "telemetry" not in inspect.getsource(reward_tools)
