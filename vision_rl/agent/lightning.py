"""Agent Lightning's names for agents (`@agl.rollout`, `agl.emit_reward`, `agl.LLM`); the import waits until one is used.

`agl` is `agentlightning`, imported when the first of its names is used. `@agl.rollout` alone costs no import: what reads
a task's row (data checks, --dry-run) must not wait for it, and a worker, which calls a task's `answer`, works where Agent
Lightning is not installed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vision_rl.tasks import Task, get_task

if TYPE_CHECKING:
    import agentlightning as agl
else:

    class _AgentLightning:
        def __getattr__(self, name: str) -> Any:
            return getattr(import_module("agentlightning"), name)

        @staticmethod
        def rollout(function: Callable[..., Any]) -> RolloutAgent:
            """Agent Lightning's decorator of the same name."""
            return RolloutAgent(function)

    agl = _AgentLightning()


class RolloutAgent:
    """What `@agl.rollout` makes of a function: still that function when called, and Agent Lightning's agent
    (`FunctionalLitAgent`) to its trainer and runners, which `agl.Trainer(...).fit` and `.dev` take."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)  # type: ignore[attr-defined]

    @functools.cached_property
    def lightning(self) -> Any:
        """Agent Lightning's own object."""
        return import_module("agentlightning").rollout(self.__wrapped__)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.lightning, name)


def agent_of(tasks: Sequence[str]) -> Any:
    """The agent of a run: its one task's, or one that hands each row to the agent of the row's own task."""
    if len(tasks) == 1:
        return _agent(get_task(tasks[0]))

    class EachRowsOwn(import_module("agentlightning").LitAgent):  # type: ignore[misc]
        async def rollout_async(self, task: dict[str, Any], resources: Any, rollout: Any) -> Any:
            own = _agent(get_task(task["task"]))
            if own.is_async():
                return await own.rollout_async(task, resources, rollout)
            return own.rollout(task, resources, rollout)

    return EachRowsOwn()


def _agent(task: Task) -> Any:
    """The task's `agent`, or for a task without one an agent that emits the reward of its `answer`."""
    if task.agent is not None:
        return task.part("agent")

    @agl.rollout
    async def answering(task: dict[str, Any], llm: agl.LLM) -> None:
        _, reward = await get_task(task["task"]).part("answer")(task, llm)
        agl.emit_reward(reward.named(), primary_key="reward")

    return answering
