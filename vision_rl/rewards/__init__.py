"""Rewards: pure functions from a reply and the truth to a `Reward`. Any text goes in; finite numbers come out.

vqa.py and grounding.py score replies by a metric of metrics.py, tools.py the use of tools, calibration.py stated
confidences; judge.py asks a model and is the only one that talks to a server. preflight/attack.py tries to game them.
"""

from __future__ import annotations

from vision_rl.rewards.grounding import grounding_reward
from vision_rl.rewards.metrics import METRICS, Metric, metric
from vision_rl.rewards.tools import arc_reward
from vision_rl.rewards.vqa import official_2021_accuracy, vqa_accuracy, vqa_reward
from vision_rl.settings import ArcWeights, Terms
from vision_rl.types import Reward

__all__ = [
    "METRICS",
    "ArcWeights",
    "Metric",
    "Reward",
    "Terms",
    "arc_reward",
    "grounding_reward",
    "metric",
    "official_2021_accuracy",
    "vqa_accuracy",
    "vqa_reward",
]
