"""The README.md of an exported model: its origin, scores and use, without this machine's paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from vision_rl.run.reader import RecordedRun, first_mid_last

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_ALGORITHM = {
    "algorithm.adv_estimator": "advantage estimator",
    "actor_rollout_ref.actor.policy_loss.loss_mode": "policy loss",
    "actor_rollout_ref.actor.optim.lr": "learning rate",
    "actor_rollout_ref.rollout.n": "rollouts per prompt",
    "data.train_batch_size": "prompts per step",
    "actor_rollout_ref.actor.kl_loss_coef": "KL coefficient",
    "actor_rollout_ref.actor.freeze_vision_tower": "vision tower frozen",
    "actor_rollout_ref.model.lora_rank": "LoRA rank",
    "agent.reward": "reward",
    "agent.answer_format": "answer format",
}


def base_model(run: RecordedRun | None) -> str | None:
    """The hub name of the model that was trained; None for a local folder, which nobody else has."""
    name = run.model if run else ""
    return name if _HUB_NAME.fullmatch(name) and not Path(name).exists() else None


def model_card(
    run: RecordedRun | None, step: int, dtype: str, *, adapter: bool, serve: str = "vllm serve PATH_OF_THIS_FOLDER"
) -> str:
    """The card of the checkpoint of `step`; without a run (a checkpoint that was moved) it holds no figures. serve: the
    command that serves the folder."""
    parts = [
        _front_matter(run),
        f"# {'A' if run is None else run.task} agent, step {step}\n",
        _origin(run, step, dtype),
    ]
    if run is not None:
        parts += [_figures(run, step), _settings(run), _warnings(run, step)]
    parts.append(_usage(adapter, serve))
    return "\n".join(part for part in parts if part)


def _front_matter(run: RecordedRun | None) -> str:
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["reinforcement-learning", "vision-language", "verl", "agent-lightning"],
    }
    name = base_model(run)
    if name:
        values |= {"base_model": name, "base_model_relation": "finetune"}
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n"


def _origin(run: RecordedRun | None, step: int, dtype: str) -> str:
    base = base_model(run) or ("/".join(Path(run.model).parts[-2:]) if run else "a vision-language model")
    how = f" of {run.total_steps}" if run and run.total_steps else ""
    return (
        f"{base}, trained by reinforcement learning with verl under Agent Lightning; weights after step {step}{how}, "
        f"stored in {dtype}.\n"
    )


def _figures(run: RecordedRun, step: int) -> str:
    """Validation at the start, in between and at this step, and the training reward around it."""
    known = [line for line in run.metrics if line["step"] <= step]
    validations = [line for line in known if line.get("val/reward") is not None]
    chosen = [validations[i] for i in first_mid_last(list(range(len(validations))))]
    lines = ["## Figures\n"]
    if chosen:
        names = sorted(name for name in chosen[-1] if name.startswith("val/") and _is_score(name))
        lines.append(
            "| greedy, on the validation sample | " + " | ".join(f"step {line['step']}" for line in chosen) + " |"
        )
        lines.append("|---|" + "---:|" * len(chosen))
        for name in names:
            cells = [line.get(name) for line in chosen]
            shown = " | ".join("-" if value is None else f"{value:.3f}" for value in cells)
            lines.append(f"| {name.removeprefix('val/')} | {shown} |")
        rows = chosen[-1].get("val/rollouts")
        lines.append(f"\nRows in the sample: {'unknown' if rows is None else f'{rows:.0f}'}.")
    rewards = [line["train/reward"] for line in known if line.get("train/reward") is not None][-run.collapse.window :]
    if rewards:
        lines.append(f"\nTraining reward over the last {len(rewards)} steps: {sum(rewards) / len(rewards):.3f}.")
    return "\n".join(lines) + "\n" if len(lines) > 1 else ""


def _is_score(name: str) -> bool:
    """Whether a validation metric tells how good the answers are, and not how the rollouts went."""
    return not name.startswith(("val/rollouts", "val/failed/", "val/turns", "val/seconds", "val/length", "val/boxes"))


def _settings(run: RecordedRun) -> str:
    """The algorithm in a table: what is on, and what concerns this task."""
    without = {"agent.answer_format"} if run.truths == {"answers"} else set()
    if not run.config.get("actor_rollout_ref.actor.use_kl_loss"):
        without.add("actor_rollout_ref.actor.kl_loss_coef")
    stated = {label: run.config.get(key) for key, label in _ALGORITHM.items() if key not in without}
    rows = [f"| {label} | {value} |" for label, value in stated.items() if value]
    return "\n".join(["## Training\n", "| | |", "|---|---|", *rows]) + "\n" if rows else ""


def _warnings(run: RecordedRun, step: int) -> str:
    _, alarms = run.alarms()
    lines = [f"- {e.alarm.name} from step {e.alarm.since}: {e.alarm.seen}" for e in alarms if e.alarm.since <= step]
    return "\n".join(["## Alarms of the collapse watch\n", *lines]) + "\n" if lines else ""


def _usage(adapter: bool, serve: str) -> str:
    where = (
        "On a CPU, as where it was exported (on a GPU `vllm serve` needs no options)" if " --" in serve else "On a GPU"
    )
    text = f"""## Use

{where}:

```bash
{serve}
```
"""
    text += """
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(path, dtype="auto")
processor = AutoProcessor.from_pretrained(path)
```
"""
    if adapter:
        text += """
The weights hold the LoRA adapter already. `adapter/` is the adapter alone, for the base model:
`vllm serve BASE_MODEL --enable-lora --lora-modules trained=PATH_OF_THIS_FOLDER/adapter`, or
`peft.PeftModel.from_pretrained(base, f"{path}/adapter")`.
"""
    return text
