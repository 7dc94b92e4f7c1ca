"""Read a recorded run, for the report and the model card."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vision_rl.errors import UserError
from vision_rl.run.collapse import CollapseWatcher, Episode, episodes, restored_steps
from vision_rl.run.directory import CONFIG
from vision_rl.run.log import EVENTS, METRICS, read_jsonl
from vision_rl.settings import AgentSettings, CollapseWatch

DEFAULT_ORIGINS = ("verl", "agentlightning", "vision_rl")
"""Origins in config.yaml of values that nobody chose."""


@dataclass(frozen=True)
class RecordedRun:
    """config: dotted key -> value, as in config.yaml. settings: the agent's. metrics, events: the lines so far."""

    path: Path
    config: Mapping[str, Any]
    settings: AgentSettings
    collapse: CollapseWatch
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.config["task.name"])

    @property
    def truth(self) -> str:
        """The kind of the task's truth, one of `vision_rl.tasks.TRUTHS`."""
        return str(self.config["task.truth"])

    def truth_of(self, record: Mapping[str, Any]) -> str:
        """The kind of truth of a rollout's row: that of its own task, in a run of several."""
        return str(self.config.get(f"task.truths.{record.get('task')}") or self.truth)

    @property
    def truths(self) -> set[str]:
        """The kinds of truth of all its tasks."""
        return {str(value) for key, value in self.config.items() if key.startswith("task.truths.")} or {self.truth}

    @property
    def metric(self) -> str:
        """The component of the reward that validation is judged by."""
        return str(self.config["task.metric"])

    @property
    def model(self) -> str:
        """Folder or name of the model that was trained."""
        return str(self.config.get("actor_rollout_ref.model.path", ""))

    @property
    def model_name(self) -> str:
        """The model's name as a page shows it: of a folder, its last two parts."""
        return "/".join(Path(self.model).parts[-2:])

    @property
    def total_steps(self) -> int | None:
        """How many steps the run was asked for."""
        return self.config.get("trainer.total_training_steps")

    @property
    def ended(self) -> str:
        """Why the run ended, or "" for one that has not, or that was resumed since."""
        for event in reversed(self.events):
            if event["kind"] == "finished":
                return str(event.get("reason", "all steps done"))
            if event["kind"] in ("phase", "queued"):
                return ""
        return ""

    def steps(self) -> list[dict[str, Any]]:
        """The metrics of training steps, validation-only lines left out."""
        return [line for line in self.metrics if line.get("train/reward") is not None]

    def alarms(self) -> tuple[CollapseWatcher, list[Episode]]:
        """The collapse watch, replayed."""
        return episodes(self.collapse, self.metrics, restored_steps(self.events))

    def chosen_settings(self) -> dict[str, str]:
        """`key: value` of config.yaml that are not verl's, Agent Lightning's or our own defaults, with their origin."""
        chosen = {}
        for line in (self.path / CONFIG).read_text(encoding="utf-8").splitlines():
            setting, _, origin = line.rpartition("  # ")
            if setting and origin not in DEFAULT_ORIGINS:
                chosen[setting.rstrip()] = origin
        return chosen


def read_run(path: str | Path) -> RecordedRun:
    """Read what is there now; a run that is still going on has fewer lines. Raises `UserError` if it holds no run."""
    path = Path(path)
    if not (path / CONFIG).exists():
        raise UserError(f"{path} holds no run ({CONFIG} is missing); name a --run-dir of train_agent.py")
    try:
        config = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path / CONFIG} is damaged ({reason}); restore it or start the run anew") from error
    if not isinstance(config, dict):
        raise UserError(f"{path / CONFIG} is not a list of settings; start the run anew")
    return RecordedRun(
        path=path,
        config=config,
        settings=AgentSettings.read(_known(AgentSettings, _section(config, "agent."))),
        collapse=CollapseWatch(**_known(CollapseWatch, _section(config, "app.collapse."))),
        metrics=read_jsonl(path / METRICS)[0],
        events=read_jsonl(path / EVENTS)[0],
    )


def first_mid_last(steps: Sequence[int]) -> list[int]:
    """The first, the middle and the last of some steps, each once."""
    return sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []


def _section(config: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The settings below `prefix`; those of a part ("terms.format_price") as a mapping of their own."""
    section: dict[str, Any] = {}
    for key, value in config.items():
        if key.startswith(prefix):
            *parts, name = key[len(prefix) :].split(".")
            place = section
            for part in parts:
                place = place.setdefault(part, {})
            place[name] = value
    return section


def _known(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Only what this version knows: a run of another version may have other settings."""
    names = {item.name for item in dataclasses.fields(cls)}
    return {name: value for name, value in values.items() if name in names}
