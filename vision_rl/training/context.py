"""What the command line hands to the trainer beside verl's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vision_rl.rollout.addresses import Addresses
from vision_rl.rollout.proxy import ServedStore
from vision_rl.settings import AgentSettings, AppSettings

if TYPE_CHECKING:
    from agentlightning.types import Rollout

    from vision_rl.rollout.store import Trace


class TrainerStore(ServedStore, Protocol):
    """What the trainer asks of the run's store: Agent Lightning's calls, and those of `vision_rl.rollout.store`."""

    async def add_resources(self, resources: Any) -> Any: ...

    async def enqueue_many_rollouts(self, rollouts: Sequence[Any]) -> Sequence[Rollout]: ...

    async def wait_for_rollouts(self, *, rollout_ids: list[str], timeout: float | None = None) -> list[Rollout]: ...

    async def query_rollouts(self, *, status_in: Sequence[str]) -> Sequence[Rollout]: ...

    async def traces(self, rollout_ids: Sequence[str]) -> list[Trace]: ...

    async def forget(self, rollout_ids: Sequence[str]) -> None: ...


@dataclass(frozen=True)
class RunContext:
    """Small enough to be pickled to Ray."""

    run_dir: Path
    app: AppSettings
    agents: Mapping[str, AgentSettings]  # by task
    addresses: Addresses

    @property
    def agent(self) -> AgentSettings:
        """Of any task: what the tasks of a run may not differ in, such as limits of pictures."""
        return next(iter(self.agents.values()))
