"""Finished rollouts as the trainer sees them: the question, the turns, or why there is nothing to train on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openai

from vision_rl.rollout.trace import Turn, UnusableReward
from vision_rl.run.failures import RolloutFailure
from vision_rl.run.tool_metrics import tool_metrics


@dataclass(frozen=True)
class FinishedRollout:
    """One rollout after its last attempt. failure: None if it can be used; reason: the sentence that says why not."""

    rollout_id: str
    data_id: str
    task: dict[str, Any]
    turns: list[Turn] = field(default_factory=list)
    reward: dict[str, float] = field(default_factory=dict)
    failure: RolloutFailure | None = None
    reason: str = ""
    seconds: float = 0.0
    attempts: int = 1
    worker: str = ""

    def record(self, step: int, mode: str) -> dict[str, Any]:
        """The line of rollouts.jsonl."""
        return {
            "step": step,
            "mode": mode,
            "rollout_id": self.rollout_id,
            "group": self.data_id,
            "id": self.task["id"],
            "task": self.task.get("task", ""),
            "source": self.task.get("source", ""),
            "question": self.task["question"],
            "image_paths": self.task["image_paths"],
            "answers": self.task["answers"],
            "boxes": self.task["boxes"],
            "replies": [turn.text for turn in self.turns],
            "image_refs": [turn.image_refs for turn in self.turns],
            "prompt_tokens": [len(turn.prompt_ids) for turn in self.turns],
            "response_tokens": [len(turn.response_ids) for turn in self.turns],
            "finish_reasons": [turn.finish_reason for turn in self.turns],
            "reward": self.reward,
            "failure": self.failure or "",
            "reason": self.reason,
            "seconds": round(self.seconds, 3),
            "attempts": self.attempts,
            "worker": self.worker,
        }


def rollout_metrics(rollouts: Sequence[FinishedRollout], prefix: str) -> dict[str, float]:
    """Means over rollouts: reward and its components, lengths, turns, failures.

    A failed rollout counts as reward 0 in `{prefix}/reward`: a model must not gain by breaking its own rollouts.
    """
    usable = [rollout for rollout in rollouts if not rollout.failure]
    metrics = {
        f"{prefix}/rollouts": len(rollouts),
        f"{prefix}/rollouts_failed": len(rollouts) - len(usable),
        f"{prefix}/reward": sum(rollout.reward["reward"] for rollout in usable) / max(len(rollouts), 1),
    }
    for name in sorted({name for rollout in usable for name in rollout.reward} - {"reward"}):
        metrics[f"{prefix}/{name}"] = float(np.mean([r.reward[name] for r in usable if name in r.reward]))
    if usable:
        metrics[f"{prefix}/response_length"] = float(
            np.mean([sum(len(t.response_ids) for t in r.turns) for r in usable])
        )
        metrics[f"{prefix}/turns"] = float(np.mean([len(r.turns) for r in usable]))
        metrics[f"{prefix}/seconds_max"] = max(r.seconds for r in usable)
    metrics.update(tool_metrics([rollout.reward for rollout in usable], prefix))
    metrics.update({f"{prefix}/failed/{why}": n for why, n in failures(rollouts).items()})
    return metrics


def failures(rollouts: Iterable[FinishedRollout]) -> Counter[str]:
    """How many rollouts failed, by reason."""
    return Counter(rollout.failure.value for rollout in rollouts if rollout.failure)


_REFUSAL = re.compile(
    r"(?:Error code|status_code): ?(4\d\d|500|501)\b"
)  # of OpenAI's client and litellm, of pydantic-ai
_PASSING = ("404", "408", "409", "425", "429")
NO_PLACE = ("prompt replacement", "prompt updates", "prompt placeholders")
"""What vLLM 0.24 says of a prompt without its pictures' places (multimodal/processing/processor.py)."""


SHARED_REFUSAL = 8
"""So many rollouts must have been refused in the same words, of two rows or more, before it counts as a refusal of all."""


def shared_refusal(failed: Sequence[Sequence[str]]) -> str:
    """A sentence on what the model refused to every rollout in the same words; "" where it did not, or to too few.

    failed: the reasons of each row's failed attempts, one for each rollout. Whatever may pass by itself is no refusal.
    """
    reasons = [reason for row in failed for reason in row]
    found = _REFUSAL.search(reasons[0]) if len(failed) > 1 and len(reasons) >= SHARED_REFUSAL else None
    if found is None or found[1] in _PASSING or len({re.sub(r"\d+", "#", reason) for reason in reasons}) > 1:
        return ""
    cure = "the model's chat template leaves these messages' pictures out: take that of the vision model; "
    hint = cure if any(words in reasons[0] for words in NO_PLACE) else ""
    return f"{hint}the calls of the first {len(reasons)} rollouts were all refused, in the same words: {reasons[0]}"


def failure_of(status: str, text: str) -> RolloutFailure:
    """Why an attempt failed. status: Agent Lightning's; text: the exception's type and message, "" without one."""
    kind = text.partition(":")[0]
    ended = {"timeout": RolloutFailure.TIMEOUT, "unresponsive": RolloutFailure.UNRESPONSIVE}
    if not text and status in ended:
        return ended[status]
    if kind == UnusableReward.__name__:
        return RolloutFailure.NO_REWARD
    exception = getattr(openai, kind, None) if kind.isidentifier() else None
    of_the_call = isinstance(exception, type) and issubclass(exception, openai.OpenAIError)
    return RolloutFailure.MODEL_CALL if of_the_call else RolloutFailure.AGENT_ERROR
