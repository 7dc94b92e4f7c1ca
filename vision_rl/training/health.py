"""Watch the processes that serve and train the model: the death of one ends the run at once, with a sentence.

A model server whose engine died goes on to accept requests, and one whose GPU worker died answers none: without a look at
them a step waits for the deadlines of all its rollouts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from vision_rl.errors import UserError

SERVER_NAME = "server"
"""In the names that verl gives to its servers' actors: vllm_server_0_0, sglang_server_0_0."""
HEALTH_SECONDS = 10.0
"""A server that takes longer is busy, not dead."""


class ModelDied(UserError):
    """A model server or its engine has died. What is trained lives elsewhere and can still be saved."""


class Health:
    """`actors`: Ray's handles of model servers and training workers, by name; verl's have names, so all are found."""

    def __init__(self, actors: Mapping[str, Any]) -> None:
        self.actors = actors
        self._asked: dict[str, Any] = {}  # name of an actor -> a call that it has not answered yet

    @classmethod
    def of_this_run(cls) -> Health:
        """Of all named actors of this Ray job."""
        import ray

        return cls({name: ray.get_actor(name) for name in ray.util.list_named_actors()} if ray.is_initialized() else {})

    async def check(self, addresses: Sequence[str]) -> None:
        """Raise `ModelDied` if one of the model servers at `addresses` (host:port) or its engine is dead.

        Ray's own `RayActorError` for a training worker. Waits for nobody who is merely busy.
        """
        self._check_actors()
        for problem in await asyncio.gather(*map(_server_problem, addresses)):
            if problem:
                raise ModelDied(problem)

    def _check_actors(self) -> None:
        """Ray fails a call to an actor whose process is gone; one that is busy answers it later."""
        import ray

        for name, actor in self.actors.items():
            if name not in self._asked:
                self._asked[name] = actor.__ray_ready__.remote()
            if not ray.wait([self._asked[name]], timeout=0)[0]:
                continue
            try:
                ray.get(self._asked.pop(name))
            except ray.exceptions.RayActorError as error:
                if SERVER_NAME in name:
                    raise ModelDied(f"the process of the model server ({name}) died") from error
                raise


async def _server_problem(address: str) -> str:
    """What is wrong with a vLLM server: its /health answers 503 when its engine is dead. "" for a busy one."""
    timeout = aiohttp.ClientTimeout(total=HEALTH_SECONDS)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"http://{address}/health") as reply:
            return f"the engine of the model server at {address} died" if reply.status == 503 else ""
    except aiohttp.ClientConnectorError:
        return f"the model server at {address} accepts no connections any more"
    except (TimeoutError, aiohttp.ClientError):
        return ""
