"""How a run is spread over processes: Agent Lightning's client-server strategy, with runners that are replaced.

Subclasses 0.3.0's `ClientServerExecutionStrategy` (execution/client_server.py). Upstream does not replace a runner
that was killed, and fails the run at its end. Here one supervisor process, forked before the main process has threads
(a fork after Ray's start breaks), forks the runners, gives back the rollout of one that died, and forks another.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from agentlightning import ClientServerExecutionStrategy
from agentlightning.execution.events import MultiprocessingEvent

from vision_rl.rollout.addresses import Addresses
from vision_rl.rollout.runner import worker_name
from vision_rl.rollout.store import VisionStore
from vision_rl.rollout.store_server import VisionStoreClient, VisionStoreServer

logger = logging.getLogger(__name__)

WAIT_SECONDS = 1.0
"""How long a runner waits for a task in one request; also how soon it notices the end of the run."""
STOP_SECONDS = 5.0
MAX_RESTARTS_PER_MINUTE = 30
"""Of all runners together; above it each new one waits, so that runners that cannot live do not eat the machine."""


class VisionStrategy(ClientServerExecutionStrategy):
    """`addresses` says where the store is, or is to be. Role "runner": runners only, for a trainer elsewhere."""

    def __init__(
        self,
        *,
        n_runners: int,
        addresses: Addresses,
        role: Literal["both", "runner"] = "both",
    ) -> None:
        super().__init__(
            role=role,
            server_host=addresses.host,
            server_port=addresses.store_port,
            n_runners=n_runners,
            graceful_timeout=STOP_SECONDS,
        )
        self.addresses = addresses
        # The proxy publishes itself by the advertised name, which this machine itself may not reach (NAT).
        self.proxy_host = addresses.address if role == "both" else None

    def execute(self, algorithm: Any, runner: Any, store: Any) -> None:
        """As upstream; runners alone are supervised too, in the foreground, until they are interrupted."""
        if self.role != "runner":
            super().execute(algorithm, runner, store)
            return
        stop_evt = MultiprocessingEvent()
        self._supervise(runner, stop_evt, interrupt=True)

    async def _execute_algorithm(self, algorithm: Any, store: Any, stop_evt: Any) -> None:
        if not isinstance(store, VisionStore):  # an outer store: somebody else serves it
            await algorithm(store, stop_evt)
            return
        server = VisionStoreServer(
            store,
            host=self.addresses.host,
            port=self.addresses.store_port,
            access_host=self.addresses.address,
            token=self.addresses.token,
        )
        await server.start()
        try:
            await algorithm(server, stop_evt)
        finally:
            stop_evt.set()
            await server.stop()

    async def _execute_runner(self, runner: Any, worker_id: int, store: Any, stop_evt: Any) -> None:
        client = VisionStoreClient(
            self.addresses.store_url, self.addresses.token, wait_seconds=WAIT_SECONDS, proxy_host=self.proxy_host
        )
        try:
            await runner(client, worker_id, stop_evt)
        finally:
            await client.close()

    def _spawn_runners(self, runner: Any, store: Any, stop_evt: Any, *, ctx: Any) -> list[Any]:
        supervisor = ctx.Process(target=self._supervise, args=(runner, stop_evt), name="runners")
        supervisor.start()
        return [supervisor]

    def _supervise(self, runner: Any, stop_evt: Any, interrupt: bool = False) -> None:
        """Keep `n_runners` runners alive until the run stops. Runs in the supervisor process."""
        parent = os.getppid()
        signal.signal(signal.SIGTERM, lambda *_: stop_evt.set())
        # In a run the main process decides what Ctrl-C means.
        signal.signal(signal.SIGINT, (lambda *_: stop_evt.set()) if interrupt else signal.SIG_IGN)
        runners = {index: self._fork_runner(runner, index, stop_evt) for index in range(self.n_runners)}
        restarts: list[float] = []
        while not stop_evt.is_set():
            if os.getppid() != parent:  # the main process was killed: nobody will set the event
                stop_evt.set()
            wait([process.sentinel for process in runners.values()], timeout=0.2)
            for index, process in list(runners.items()):
                if process.is_alive() or stop_evt.is_set():
                    continue
                logger.error("runner %s ended with exit code %s and is replaced", index, process.exitcode)
                restarts = [at for at in restarts if at > time.monotonic() - 60] + [time.monotonic()]
                if len(restarts) > MAX_RESTARTS_PER_MINUTE:
                    time.sleep(2)
                asyncio.run(self._give_back(index))
                runners[index] = self._fork_runner(runner, index, stop_evt)
        self._end(list(runners.values()))

    def _fork_runner(self, runner: Any, index: int, stop_evt: Any) -> BaseProcess:
        process = multiprocessing.get_context("fork").Process(
            target=self._run_runner, args=(runner, index, stop_evt), name=f"runner-{index}"
        )
        process.start()
        return process

    def _run_runner(self, runner: Any, index: int, stop_evt: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        asyncio.run(self._execute_runner(runner, index, None, stop_evt))

    async def _give_back(self, index: int) -> None:
        """Let another runner have the rollout that a dead one was working on, without waiting for its deadline."""
        client = VisionStoreClient(self.addresses.store_url, self.addresses.token)
        try:
            worker = await client.get_worker_by_id(worker_name(index, os.getpid()))
            if worker is not None and worker.current_rollout_id and worker.current_attempt_id:
                await client.update_attempt(worker.current_rollout_id, worker.current_attempt_id, status="unresponsive")
        except Exception:  # its deadline in the store remains
            logger.exception("the rollout of runner %s could not be given back", index)
        finally:
            await client.close()

    def _end(self, runners: list[BaseProcess]) -> None:
        """Let the runners finish what they are at, then end them."""
        deadline = time.monotonic() + STOP_SECONDS / 2
        for process in runners:
            process.join(max(deadline - time.monotonic(), 0))
        for process in runners:
            if process.is_alive():
                process.kill()
            process.join()
