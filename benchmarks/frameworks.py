"""What agents of five frameworks cost a process: seconds a rollout, open descriptors, memory; and whether a rollout is lost.

    PYTHONPATH=.:build/frameworks python benchmarks/frameworks.py --rollouts 10000

A real store and proxy, the agents of examples/frameworks and one on litellm, and a model server that answers at once with one
tool call and one answer. First each framework alone, one rollout after the other, then all mixed, some at a time, in the
same process. docs/frameworks.md says how the frameworks are installed.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_AGENTS_DISABLE_TRACING": "1"}

import psutil
from PIL import Image

from scripts import fake_backend
from scripts.engine_stack import Stack, running_stack
from vision_rl.agent.client import connection
from vision_rl.agent.media import media_message
from vision_rl.settings import AgentSettings
from vision_rl.tasks import get_task
from vision_rl.types import LLM

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ("langgraph", "pydantic_ai", "openai_agents", "smolagents")
NAMES = ("plain", *EXAMPLES, "litellm")
Ask = Callable[[dict[str, Any], Any], Awaitable[Any]]


async def ask_litellm(task: dict[str, Any], llm: Any) -> str:
    """litellm keeps a client per key as well as per address: the rollout goes by headers, and key and address stay."""
    import litellm

    base_url, _, headers = connection(llm)
    messages: Any = [media_message(task["question"], task)]
    reply = await litellm.acompletion(
        f"openai/{llm.model}", messages, base_url=base_url, api_key="none", extra_headers=headers
    )
    return str(reply.choices[0].message.content)


def agent_of(name: str) -> Ask:
    if name == "litellm":
        return ask_litellm
    answer: Ask = get_task("vqa" if name == "plain" else str(ROOT / f"examples/frameworks/{name}_vqa.py")).part(
        "answer"
    )
    return answer


def row(picture: Path) -> dict[str, Any]:
    settings = dataclasses.asdict(AgentSettings(family="qwen2_5_vl", max_tokens=24, timeout_seconds=60.0, max_turns=2))
    return {
        **{"id": "1", "task": "vqa", "media": "images", "image_paths": [str(picture)], "image_sizes": [[84, 84]]},
        **{"question": "TOOL What color is it?", "answers": ["red"] * 10, "meta": {}, "settings": settings},
    }


class Run:
    """Rollouts one after the other, each with a trace of its own in the store, or it counts as lost."""

    def __init__(self, stack: Stack, task: dict[str, Any]) -> None:
        self.stack, self.task = stack, task
        self.lost: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    async def rollout(self, name: str, ask: Ask) -> None:
        claimed, address = await asyncio.to_thread(self.stack.claim)
        llm = LLM(endpoint=address, model=fake_backend.MODEL, sampling_parameters={"temperature": 1.0})
        try:
            await ask(self.task, llm)
        except Exception as error:
            self.lost[f"{name}: {type(error).__name__}: {str(error)[:200]}"] += 1
        calls = len(await asyncio.to_thread(self.stack.spans, claimed))
        self.calls[name] += calls
        if not calls:
            self.lost[f"{name}: no trace"] += 1
        store = self.stack.memory
        end = store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
        await asyncio.to_thread(self.stack.call, end)
        await asyncio.to_thread(self.stack.call, store.forget([claimed.rollout_id]))

    async def alone(self, names: Sequence[str], count: int) -> None:
        for name in names:
            ask = agent_of(name)
            await self.rollout(name, ask)  # imports
            before, started = held(), time.perf_counter()
            for _ in range(count):
                await self.rollout(name, ask)
            seconds = (time.perf_counter() - started) / count
            print(f"{name:14} {seconds:.3f} s a rollout, {change(before)}, calls {self.calls[name]}", flush=True)

    async def mixed(self, names: Sequence[str], count: int, at_once: int) -> None:
        asks = {name: agent_of(name) for name in names}
        queue = iter([names[number % len(names)] for number in range(count)])
        done, before, started = 0, held(), time.perf_counter()

        async def worker() -> None:
            nonlocal done, before
            for name in queue:
                await self.rollout(name, asks[name])
                done += 1
                if done == count // 10:
                    before = held()
                if done % max(count // 10, 1) == 0:
                    print(f"mixed {done:6} in {time.perf_counter() - started:.0f} s, {change(before)}", flush=True)

        await asyncio.gather(*(worker() for _ in range(at_once)))


def held() -> tuple[int, float]:
    """(open descriptors, MB of memory) of this process."""
    gc.collect()
    return psutil.Process().num_fds(), psutil.Process().memory_info().rss / 2**20


def change(before: tuple[int, float]) -> str:
    descriptors, memory = held()
    return f"descriptors {before[0]} to {descriptors}, memory {before[1]:.0f} to {memory:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frameworks", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--alone", type=int, default=100, help="rollouts of each framework before they are mixed")
    parser.add_argument("--rollouts", type=int, default=0, help="rollouts of all together")
    parser.add_argument("--at-once", type=int, default=8)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder)) as stack:
        picture = Path(folder) / "red.png"
        Image.new("RGB", (84, 84), "red").save(picture)
        run = Run(stack, row(picture))
        asyncio.run(both(run, args))
    for reason, count in run.lost.items():
        print(f"lost: {count} {reason}")
    raise SystemExit(bool(run.lost))


async def both(run: Run, args: argparse.Namespace) -> None:
    await run.alone(args.frameworks, args.alone)
    if args.rollouts:
        await run.mixed(args.frameworks, args.rollouts, args.at_once)


if __name__ == "__main__":
    main()
