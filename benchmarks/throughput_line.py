"""One line of `throughput.py`, measured in this process and its children.

`throughput_line.py VARIANT RUNNERS ROLLOUTS MORE` prints one JSON object. MORE is how many rollouts are run after that,
to follow memory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
sys.path.insert(0, str(Path(__file__).parent.parent))

import agentlightning as agl
import numpy as np
import openai
import psutil
from agentlightning.types import EnqueueRolloutRequest

from tests import fake_backend
from tests.engine_stack import model_entry
from tests.pictures import noise_picture
from vision_rl.agent.client import client_for
from vision_rl.agent.messages import image_url, user_message
from vision_rl.rollout.addresses import free_port, private
from vision_rl.rollout.proxy import VisionProxy
from vision_rl.training.launch import trainer_of

QUESTION = "What color is it?"
GROUP, PICTURES = 8, 32
"""Rollouts per picture, as in GRPO, and how many pictures there are."""


def measure(variant: str, runners: int, rollouts: int, more: int) -> dict[str, Any]:
    """Run the rollouts under a real `agl.Trainer` and return the figures."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, fake_backend.running(free_port()) as backend:
        for number in range(PICTURES):
            (Path(folder) / f"{number}.png").write_bytes(noise_picture(number))
        load = Load(variant, runners, rollouts, more, Path(folder), backend)
        if variant.startswith("stock"):
            runner = agl.LitAgentRunner(agl.AgentOpsTracer(), poll_interval=0.1, interval_jitter=0.0)
            strategy = agl.ClientServerExecutionStrategy(
                n_runners=runners, server_host="127.0.0.1", server_port=free_port()
            )
            trainer = agl.Trainer(
                algorithm=load, runner=runner, tracer=runner.tracer, strategy=strategy, n_runners=runners
            )
        else:
            trainer = trainer_of(load, runners, private(free_port()))
        trainer.fit(stock_agent if variant.startswith("stock") else our_agent, train_dataset=[1])
    return load.result


@agl.rollout
def stock_agent(task: dict[str, Any], llm: agl.LLM) -> float:
    """Agent Lightning's own way: a client per rollout, the reward returned."""
    message = user_message(QUESTION, [image_url(task["image"], "data")])
    client = openai.OpenAI(base_url=llm.endpoint + "/v1", api_key="none", timeout=60)
    started = time.perf_counter()
    client.chat.completions.create(model=llm.model, messages=[message])  # type: ignore[list-item]
    note(time.perf_counter() - started, task)
    return 0.5


@agl.rollout
async def our_agent(task: dict[str, Any], llm: agl.LLM) -> None:
    """Our way: one client, the reward emitted with its components."""
    message = user_message(QUESTION, [image_url(task["image"], task["transport"])])
    started = time.perf_counter()
    await client_for(llm, {"timeout_seconds": 60}).chat.completions.create(model=llm.model, messages=[message])
    note(time.perf_counter() - started, task)
    agl.emit_reward({"reward": 0.5, "accuracy": 1.0}, primary_key="reward")


def note(seconds: float, task: dict[str, Any]) -> None:
    """Append a latency to this runner's file."""
    with open(f"{task['folder']}/latency-{os.getpid()}", "a") as file:
        file.write(f"{seconds}\n")


class Load(agl.Algorithm):
    """Queues rollouts, waits for them, and keeps the figures in `result`."""

    def __init__(self, variant: str, runners: int, rollouts: int, more: int, folder: Path, backend: str) -> None:
        super().__init__()
        self.variant, self.runners, self.rollouts, self.more = variant, runners, rollouts, more
        self.folder, self.backend = folder, backend
        self.result: dict[str, Any] = {}
        self.batches = 0

    async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
        store = self.get_store()
        stock = self.variant.startswith("stock")
        proxy = agl.LLMProxy(store=store) if stock else VisionProxy(store, self.folder / "pictures")
        proxy.update_model_list([model_entry(self.backend)])
        await proxy.start()
        resources = (await store.add_resources({"main_llm": proxy.as_resource()})).resources_id
        await self.batch(resources, 4 * self.runners)  # warm up
        for file in self.folder.glob("latency-*"):
            file.unlink()
        before, whole, started = self.cpu_seconds(), machine_seconds(), time.perf_counter()
        await self.batch(resources, self.rollouts)
        seconds, after = time.perf_counter() - started, self.cpu_seconds()
        used = {name: after[name] - before[name] for name in after}
        others = machine_seconds() - whole - sum(used.values())
        lines = [line for file in self.folder.glob("latency-*") for line in file.read_text().split()]
        p50, p99 = np.percentile(np.array(lines, dtype=float) * 1000, [50, 99])
        await asyncio.sleep(1.0)  # stock spans arrive late
        statistics = await store.statistics()
        self.result.update(
            rate=self.rollouts / seconds,
            p50=float(p50),
            p99=float(p99),
            bytes=statistics["total_span_bytes"] / statistics["total_rollouts"],
            backend_ms=1000 * used.pop("backend") / self.rollouts,
            others_cores=max(others / seconds, 0.0),
            cpu_ms={name: 1000 * value / self.rollouts for name, value in used.items()},
            memory=[self.memory_row(0)],
        )
        for part in range(1, 11) if self.more else ():
            await self.batch(resources, self.more // 10)
            self.result["memory"].append(self.memory_row(part * self.more // 10))
        await proxy.stop()

    async def batch(self, resources: str, count: int) -> None:
        store = self.get_store()
        common = {"folder": str(self.folder), "transport": self.variant.split()[1]}
        tasks = [{**common, "image": str(self.folder / f"{i // GROUP % PICTURES}.png")} for i in range(count)]
        self.batches += 1
        requests = [
            EnqueueRolloutRequest(
                input=task,
                mode="train",
                resources_id=resources,
                metadata={"data_id": f"{self.batches} {index // GROUP}"} if "alone" not in self.variant else {},
            )
            for index, task in enumerate(tasks)
        ]
        ids = [rollout.rollout_id for rollout in await store.enqueue_many_rollouts(requests)]
        waiting = set(ids)
        while waiting:
            done = await store.wait_for_rollouts(rollout_ids=list(waiting), timeout=0)
            waiting -= {rollout.rollout_id for rollout in done}
            if any(rollout.status != "succeeded" for rollout in done):
                raise RuntimeError("a rollout failed")
            await asyncio.sleep(0.05)
        if not self.variant.startswith("stock"):
            await store.forget(ids)  # as our trainer does after each step

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The store lives in this process; the proxy is the last process that it started."""
        backend, *children = psutil.Process().children()
        runners = [process for child in children[:-1] for process in (child, *child.children())]
        return {"store": [psutil.Process()], "proxy": children[-1:], "runners": runners, "backend": [backend]}

    def cpu_seconds(self) -> dict[str, float]:
        return {name: sum(sum(p.cpu_times()[:2]) for p in group) for name, group in self.processes().items()}

    def memory_row(self, done: int) -> list[float]:
        """Rollouts so far and megabytes by kind of process."""
        groups = [group for name, group in self.processes().items() if name != "backend"]
        return [done, *(sum(p.memory_info().rss for p in group) / 2**20 for group in groups)]


def machine_seconds() -> float:
    """Processor seconds that the whole machine has spent on processes."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
