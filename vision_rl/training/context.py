"""What travels from the command line to the trainer beside verl's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vision_rl.rollout.addresses import Reach
from vision_rl.settings import AgentSettings, AppSettings


@dataclass(frozen=True)
class RunContext:
    """Small enough to be pickled to Ray."""

    run_dir: Path
    app: AppSettings
    agents: Mapping[str, AgentSettings]  # by task
    reach: Reach

    @property
    def agent(self) -> AgentSettings:
        """Of any task: what the tasks of a run may not differ in, such as limits of pictures."""
        return next(iter(self.agents.values()))
