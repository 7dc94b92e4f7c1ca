"""Figures of tool use from rollout records: metrics per step, and Arc Vision's four files as JSON lines.

Records are the lines of rollouts.jsonl (`FinishedRollout.record`). Nothing here is read by a reward; what is not in a
record (a stated confidence, say) is null, never estimated.

- reasoning_traces.jsonl: every rollout: its reasoning, calls, stated confidence and IoU;
- tool_effectiveness.jsonl: every rollout with calls: what it scored beside its group's rollouts without;
- tool_patterns.jsonl: every rollout: which tools, in which order, on what size of target;
- contradictions.jsonl: every rollout whose words, calls and outcome do not fit together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from vision_rl.answers.parsing import ToolCall, parse_confidence, parse_tool_calls
from vision_rl.run.log import DETAILS, append_lines

FILES = ("reasoning_traces", "tool_effectiveness", "tool_patterns", "contradictions")

_REASONING = re.compile(r"<(think|thinking|reasoning)>(.*?)(?:</\1>|$)", re.DOTALL | re.IGNORECASE)
_UNSURE = ("unclear", "difficult", "hard to see", "not sure", "cannot see", "too small")
_RIGHT, _GOOD, _POOR = 0.5, 0.8, 0.3
_CERTAIN, _UNCERTAIN = 0.8, 0.4


def tool_metrics(rewards: Sequence[Mapping[str, float]], prefix: str) -> dict[str, float]:
    """Use rate, and success with and without tools, over all and by target size ("small" as in Arc Vision's reward).

    rewards: components of usable rollouts; success is that the predicted centre lies in the target. Empty if no rollout
    could call tools.
    """
    able = [reward for reward in rewards if "tools/zooms" in reward]
    metrics: dict[str, float] = {}
    for name, part in (
        ("", able),
        ("_small", [reward for reward in able if reward.get("tools/needed") == 1.0]),
        ("_large", [reward for reward in able if reward.get("tools/needed") == 0.0]),
    ):
        used = [reward["point"] == 1.0 for reward in part if reward["tools/calls"]]
        unused = [reward["point"] == 1.0 for reward in part if not reward["tools/calls"]]
        if part:
            metrics[f"{prefix}/tools/use_rate{name}"] = len(used) / len(part)
            metrics[f"{prefix}/success{name}"] = fmean([*used, *unused])
        if used:
            metrics[f"{prefix}/tools/success_with{name}"] = fmean(used)
        if unused:
            metrics[f"{prefix}/tools/success_without{name}"] = fmean(unused)
    return metrics


def write_tool_logs(run_dir: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append the four files under `run_dir`/detailed_logs for the records of rollouts that could call tools."""
    able = [record for record in records if not record["failure"] and "tools/zooms" in record["reward"]]
    if not able:
        return
    folder = Path(run_dir) / DETAILS
    folder.mkdir(exist_ok=True)
    lines: dict[str, list[dict[str, Any]]] = {name: [] for name in FILES}
    for record in able:
        calls = calls_of(record)
        lines["reasoning_traces"].append(_reasoning_trace(record, calls))
        lines["tool_patterns"].append(_tool_pattern(record, calls))
        if calls:
            lines["tool_effectiveness"].append(_tool_effect(record, calls, able))
        if found := contradictions(record):
            lines["contradictions"].append({**_head(record), "contradictions": found, "replies": record["replies"]})
    for name, records_of_file in lines.items():
        append_lines(folder / f"{name}.jsonl", records_of_file)


def calls_of(record: Mapping[str, Any]) -> list[ToolCall]:
    """All calls of a rollout, in order, malformed ones included."""
    return [call for reply in record["replies"] for call in parse_tool_calls(reply)]


def reasoning_of(record: Mapping[str, Any]) -> str:
    """What stands inside the reasoning tags of all replies."""
    return "\n".join(match[2].strip() for reply in record["replies"] for match in _REASONING.finditer(reply))


def contradictions(record: Mapping[str, Any]) -> list[str]:
    """The names of what does not fit together in a rollout; Arc Vision's list, as far as the record can tell."""
    reward, reasoning = record["reward"], reasoning_of(record).lower()
    iou, calls, small = reward["iou"], reward["tools/calls"], reward.get("tools/needed")
    confidence = parse_confidence(record["replies"][-1])
    checks = {
        "unnecessary_tool_use": calls > 0 and small == 0.0 and iou > _GOOD,
        "missed_tool_opportunity": not calls and small == 1.0 and iou < _POOR,
        "ineffective_tool_use": calls > 0 and iou < _POOR,
        "overconfidence_failure": confidence is not None and confidence > _CERTAIN and iou < _POOR,
        "underconfidence_success": confidence is not None and confidence < _UNCERTAIN and iou > _RIGHT,
        "reasoning_tool_mismatch": not calls and any(phrase in reasoning for phrase in _UNSURE),
    }
    return [name for name, found in checks.items() if found]


def _head(record: Mapping[str, Any]) -> dict[str, Any]:
    reward = record["reward"]
    return {
        **{name: record[name] for name in ("step", "mode", "rollout_id", "group", "id")},
        "iou": reward["iou"],
        "reward": reward["reward"],
        "target_small": None if "tools/needed" not in reward else bool(reward["tools/needed"]),
    }


def _reasoning_trace(record: Mapping[str, Any], calls: Sequence[ToolCall]) -> dict[str, Any]:
    reasoning = reasoning_of(record)
    return {
        **_head(record),
        "question": record["question"],
        "reasoning": reasoning,
        "reasoning_length": len(reasoning),
        "response_tokens": sum(record["response_tokens"]),
        "confidence": parse_confidence(record["replies"][-1]),
        "tools_used": [call.name for call in calls],
        "true_boxes": record["boxes"],
    }


def _tool_pattern(record: Mapping[str, Any], calls: Sequence[ToolCall]) -> dict[str, Any]:
    names = [call.name for call in calls]
    return {
        **_head(record),
        "pattern": names,
        "arguments": [call.arguments for call in calls],
        "errors": int(record["reward"]["tools/errors"]),
        "turns": len(record["replies"]),
        "target_area": (b[2] - b[0]) * (b[3] - b[1]) if (b := next(iter(record["boxes"]), None)) else None,
        **{f"used_{name}": any(n.startswith(name) for n in names) for name in ("zoom", "wait", "inspect")},
    }


def _tool_effect(
    record: Mapping[str, Any], calls: Sequence[ToolCall], records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    without = [
        other["reward"]["iou"]
        for other in records
        if other["group"] == record["group"] and not other["reward"]["tools/calls"]
    ]
    base = fmean(without) if without else None
    return {
        **_head(record),
        "tools_used": [call.name for call in calls],
        "iou_without_tools": base,
        "iou_gain": None if base is None else record["reward"]["iou"] - base,
        "effective": record["reward"]["iou"] >= _RIGHT and (base is None or record["reward"]["iou"] > base),
    }
