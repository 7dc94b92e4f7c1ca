"""`python -m tests.fault_run SCENARIO` runs one under a real `agl.Trainer` and prints what became of each rollout.

Agent Lightning's trainer, our store, runners and proxy, and a fake model server; faults are injected for real. A process
of its own, because the trainer forks and because faults are meant to hurt.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import agentlightning as agl
import psutil
from agentlightning.types import EnqueueRolloutRequest, RolloutConfig

from scripts import fake_backend
from scripts.engine_stack import model_entry
from tests.chat import chat
from train_agent import trainer_of
from vision_rl.agent.messages import user_message
from vision_rl.rollout.addresses import Addresses, free_port
from vision_rl.rollout.proxy import VisionProxy
from vision_rl.rollout.trace import reward_from_spans, turns_from_spans

AGENT_FAULTS = ["raise", "none", "nan", "text", "sysexit", "kill", "kill always"]
SERVER_FAULTS = ["FAULT500", "FAULT400", "NOCHOICES", "NOTOKENS", "BADJSON", "TRUNCATED", "HANG"]
KILLS = 3
CONFIG = RolloutConfig(
    timeout_seconds=20, unresponsive_seconds=10, max_attempts=2, retry_condition=["failed", "timeout", "unresponsive"]
)


@agl.rollout
async def agent(task: dict[str, Any], llm: agl.LLM, rollout: agl.AttemptedRollout) -> Any:
    """Does what the task says; "once" faults come in the first attempt only."""
    kind, first = task["kind"], rollout.attempt.sequence_id == 1
    await chat(llm.endpoint, llm.model, [user_message(kind)], timeout_seconds=1.0 if kind == "HANG" else 15.0)
    if kind == "raise":
        raise RuntimeError("the agent's own fault")
    if kind == "sysexit":
        sys.exit(3)
    if kind == "kill always" or (kind == "kill" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stuck" and first:
        await asyncio.sleep(3600)
    if kind in ("none", "text"):
        return None if kind == "none" else "a text"
    agl.emit_reward({"reward": float("nan") if kind == "nan" else 0.5}, primary_key="reward")
    return None


class Scenario(agl.Algorithm):
    """Queues the rollouts of a scenario, does its harm, and counts."""

    def __init__(self, name: str, backend: str, folder: Path, addresses: ReachByRelay) -> None:
        super().__init__()
        self.name, self.backend, self.folder, self.addresses = name, backend, folder, addresses
        self.network = relay(addresses)
        self.result: dict[str, Any] = {}

    async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
        server: Any = self.get_store()
        server.address = self.addresses.store_url
        proxy = VisionProxy(server, self.folder / "pictures")
        proxy.update_model_list([model_entry(self.backend)])
        await proxy.start()
        kinds = ["ok"] * 4
        if self.name == "agents":
            kinds += AGENT_FAULTS + SERVER_FAULTS + ["ok"] * 4
        elif self.name.startswith("clock jumps"):
            kinds = ["SLEEP3"] * 2 + ["ok"] * 21 + ["stuck"]
        else:
            kinds += ["SLEEP0.2"] * 20
        resources = (await self.get_store().add_resources({"main_llm": proxy.as_resource()})).resources_id
        config = CONFIG.model_copy(update={"timeout_seconds": 6.0} if "stuck" in kinds else {})
        if self.name == "runners die":  # the same rollout may be hit by each of the kills
            config.max_attempts = KILLS + 1
        requests = [
            EnqueueRolloutRequest(input={"kind": kind}, mode="train", resources_id=resources, config=config)
            for kind in kinds
        ]
        ids = [rollout.rollout_id for rollout in await self.get_store().enqueue_many_rollouts(requests)]
        started = time.monotonic()
        harm = asyncio.create_task(self.harm(proxy))
        await self.wait(ids)
        await harm
        self.result = {
            "seconds": time.monotonic() - started,
            "rollouts": [await self.outcome(kind, rollout_id) for kind, rollout_id in zip(kinds, ids, strict=True)],
            "total": (await self.get_store().statistics())["total_rollouts"],
        }
        await proxy.stop()
        self.network.kill()

    async def harm(self, proxy: VisionProxy) -> None:
        """What the scenario does to the run while it works."""
        await asyncio.sleep(1.5 if self.name.startswith("clock jumps") else 0.5)
        if self.name == "proxy dies":
            process = proxy.process
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)
        elif self.name.startswith("store away"):
            self.network.kill()
            self.network.wait()
            await asyncio.sleep(float(self.name.split()[-1]))
            self.network = relay(self.addresses)
        elif self.name == "runners die":
            for _ in range(KILLS):
                os.kill(self.a_runner(), signal.SIGKILL)
                await asyncio.sleep(0.5)
        elif self.name.startswith("clock jumps"):  # for every process of the run: tests/clock_jump.c
            before = time.time()
            Path(os.environ["CLOCK_JUMP_FILE"]).write_bytes(struct.pack("l", int(self.name.split()[-1])))
            assert abs(time.time() - before) > 1000, "the clock did not jump"

    def a_runner(self) -> int:
        """A runner's process; the supervisor is the child that has children."""
        [supervisor] = [child for child in psutil.Process().children() if child.children()]
        return int(supervisor.children()[0].pid)

    async def wait(self, ids: Sequence[str]) -> None:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            if len(await self.get_store().wait_for_rollouts(rollout_ids=list(ids), timeout=0)) == len(ids):
                return
            await asyncio.sleep(0.1)

    async def outcome(self, kind: str, rollout_id: str) -> dict[str, Any]:
        store = self.get_store()
        [rollout] = await store.query_rollouts(rollout_id_in=[rollout_id])
        attempts = await store.query_attempts(rollout_id)
        spans = list(await store.query_spans(rollout_id, attempt_id="latest"))
        latest = attempts[-1] if attempts else None
        return {
            "kind": kind,
            "status": rollout.status,
            "attempts": [attempt.status for attempt in attempts],
            "failure": ((latest.metadata or {}).get("failure", "") if latest else "") or "",
            "calls": len(turns_from_spans(spans)),
            "reward": reward_from_spans(spans),
        }


class ReachByRelay(Addresses):
    """Runners and proxy reach the store over a network that can be cut."""

    @property
    def store_url(self) -> str:
        return f"http://127.0.0.1:{self.proxy_port}"


def relay(addresses: ReachByRelay) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.relay", str(addresses.proxy_port), str(addresses.store_port)])


def main(name: str) -> None:
    logging.disable(logging.ERROR)
    addresses = ReachByRelay(free_port(), proxy_port=free_port())
    with tempfile.TemporaryDirectory() as folder, fake_backend.running(free_port()) as backend:
        scenario = Scenario(name, backend, Path(folder), addresses)
        trainer_of(scenario, 4, addresses).fit(agent, train_dataset=[1])
    print(json.dumps(scenario.result))


if __name__ == "__main__":
    main(sys.argv[1])
