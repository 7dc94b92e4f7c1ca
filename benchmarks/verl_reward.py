"""This project's reward as verl's `reward.custom_reward_function`; verl's reward workers import this module."""

from __future__ import annotations

from typing import Any

from vision_rl.rewards import vqa_reward


def compute_score(data_source: str, solution_str: str, ground_truth: list[str], **_: Any) -> dict[str, float]:
    """A reply's reward under the names that verl gives to it and to what its validation reports."""
    reward = vqa_reward(solution_str, ground_truth)
    return {"score": reward.value, "acc": reward.components["accuracy"]}
