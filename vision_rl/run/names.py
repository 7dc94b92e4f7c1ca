"""The metrics that a run's page shows: phases of a step, and charts. Report, docs and tests read them here.

`python -m vision_rl.run.names` prints the tables of docs/report.md; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vision_rl.run import collapse

STEP, SIGHT = "timing_s/step", "timing_s/sight"
PHASES = {
    "timing_s/switch_wait": "rollouts on lent GPUs",
    "timing_s/switch_to_trainer": "GPUs back from rollouts",
    "timing_s/gen": "rollouts",
    "timing_s/reward": "reward model",
    SIGHT: "look at black pictures",
    "timing_s/old_log_prob": "log-probs",
    "timing_s/ref": "reference",
    "timing_s/values": "critic",
    "timing_s/adv": "advantages",
    "timing_s/update_critic": "update of the critic",
    "timing_s/update_actor": "update",
    "timing_s/save_checkpoint": "checkpoint",
    "timing_s/switch_to_rollout": "GPUs lent to rollouts",
    "timing_s/update_weights": "weights to the server",
}
"""Metric -> what it is called. The parts of `STEP`, in their order; `SIGHT` runs within timing_s/old_log_prob."""
AFTER_A_STEP = {"timing_s/validate": "validation", "timing_s/testing": "validation, with verl's part"}
"""What follows a step and is no part of it."""


@dataclass(frozen=True)
class Plan:
    """A chart to be: metric -> label; the first metric must be there.

    positive: only if a value is above zero (GPU figures on a CPU are zeros); varied: only if values differ.
    """

    title: str
    unit: str
    metrics: Mapping[str, str]
    log: bool = False
    positive: bool = False
    varied: bool = False


PLANS = (
    Plan("Reply length", "tokens", {collapse.LENGTH: "training", "val/response_length": "validation"}),
    Plan("Replies per rollout", "turns", {"train/turns": "training", "val/turns": "validation"}, varied=True),
    Plan(
        "Tools used",
        "share of rollouts",
        {
            "train/tools/use_rate": "all",
            "train/tools/use_rate_small": "small targets",
            "train/tools/use_rate_large": "large targets",
        },
    ),
    Plan(
        "Success",
        "share of rollouts",
        {
            "train/success": "training",
            "train/success_small": "training, small targets",
            "train/success_large": "training, large targets",
            "val/success": "validation",
        },
    ),
    Plan("Entropy", "nats per token", {collapse.ENTROPY: "entropy"}),
    Plan("Distance to the reference", "nats per token", {collapse.KL: "KL"}),
    Plan(
        "|actor - rollout| log-probability",
        "nats",
        {"mismatch/logprob_max": "largest", collapse.MISMATCH: "mean"},
        log=True,
        positive=True,
    ),
    Plan("What pictures change", "nats per token", {"sight/kl": "KL, seen and black"}),
    Plan(
        "Validation with black pictures",
        "reward",
        {"sight/val_reward_seeing": "seeing", "sight/val_reward_blind": "blind"},
    ),
    Plan(
        "Format",
        "share of replies",
        {collapse.FORMAT: "parses", collapse.SPACE: "wrong space", "val/format/ok": "parses, validation"},
    ),
    Plan("Confidence", "", {collapse.CONFIDENCE: "stated", collapse.REWARD: "reward"}),
    Plan("Groups without spread", "share of groups", {collapse.EQUAL: "all rewards equal"}),
    Plan("Gradient norm", "", {"actor/grad_norm": "before clipping"}),
    Plan("Throughput", "tokens/s per rank", {"perf/throughput": "tokens"}),
    Plan(
        "GPU memory",
        "GB",
        {
            "actor/perf/max_memory_allocated_gb": "allocated",
            "actor/perf/max_memory_reserved_gb": "reserved",
            "gpu/memory_gb": "in use",
        },
        positive=True,
    ),
    Plan("Main memory", "GB", {"actor/perf/cpu_memory_used_gb": "in use"}),
    Plan("GPU utilisation", "%", {"gpu/utilisation": "GPU busy"}, positive=True),
    Plan("Model FLOPs utilisation of the update", "", {"perf/mfu/actor": "MFU"}, positive=True),
)


def phase_seconds(line: Mapping[str, Any]) -> dict[str, float]:
    """What a step is called by -> its seconds, of the phases that a line of metrics.jsonl has; no second is counted twice."""
    found = {metric: float(line[metric]) for metric in PHASES if line.get(metric)}
    if "timing_s/old_log_prob" in found:
        found["timing_s/old_log_prob"] = max(0.0, found["timing_s/old_log_prob"] - found.get(SIGHT, 0.0))
    return {PHASES[metric]: seconds for metric, seconds in found.items()}


def tables() -> str:
    """The charts and the phases as Markdown."""
    rows = ["| chart | unit | names in metrics.jsonl |", "|---|---|---|"]
    rows += [
        f"| {plan.title.replace('|', chr(92) + '|')} | {plan.unit or '-'} | {', '.join(f'`{name}`' for name in plan.metrics)} |"
        for plan in PLANS
    ]
    rows += ["", "| phase of a step | name |", "|---|---|"]
    rows += [f"| {label} | `{metric}` |" for metric, label in PHASES.items()]
    rows += [f"| after the step: {label} | `{metric}` |" for metric, label in AFTER_A_STEP.items()]
    return "\n".join(rows)


if __name__ == "__main__":
    print(tables())
