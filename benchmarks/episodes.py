"""Episodes per second in the browser: one click on a page of MiniWoB++, from the seed to the reward.

    python benchmarks/episodes.py [--groups 16] [--instances 1 2 4] [--concurrency 16] [--trl [VERSION]]

Browser, agent and vLLM with the tiny model run on this machine; store, proxy and runners take no part (`throughput.py` has
theirs). A group is eight episodes of one seed. "shared" is what a run does: a group's first episode is looked at, the others get
its picture, and their page is put into that state while the model thinks. "each" is without that. All lines ask one server, in
turn, and each begins with two groups that do not count.

With `--trl` as many episodes of that page are played under TRL's `environment_factory` (`trl_episodes.py`), which makes a browser
for each rollout of a step and resets them one after the other; its first step, which starts them, does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from against_trl import trl_folder
from beside import run

from vision_rl.agent.keeper import close_all
from vision_rl.data.schema import normalise_row
from vision_rl.serving.serve import MODEL_NAME, serve
from vision_rl.settings import AgentSettings
from vision_rl.tasks import get_task
from vision_rl.types import LLM

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "scripts" / "tiny_models" / "browser_checkpoint"
GROUP = 8


def rows(groups: int, first: int) -> list[dict[str, Any]]:
    """`GROUP` rows of each of the seeds from `first` on."""
    settings = {**dataclasses.asdict(AgentSettings()), "answer_format": "bbox", "max_turns": 1, "max_tokens": 24}
    made = []
    for seed in range(first, first + groups):
        row = normalise_row({"task": "miniwob", "meta": {"env": "click-test-2", "seed": seed, "shade": True}})
        made += [{**row, "settings": settings}] * GROUP
    return made


async def play(setup: Any, episodes: list[dict[str, Any]], llm: LLM, most: int) -> tuple[float, list[dict[str, float]]]:
    """(seconds, components of each episode) with up to `most` episodes at a time."""
    free = asyncio.Semaphore(most)

    async def one(row: dict[str, Any]) -> dict[str, float]:
        async with free:
            return dict((await setup.play(row, llm))[1].components)

    started = time.monotonic()
    found = await asyncio.gather(*map(one, episodes))
    return time.monotonic() - started, found


def under_trl(groups: int, first: int, version: str | None, steps: int = 3) -> str:
    """The line of the table that TRL's `environment_factory` fills."""
    folder, version = trl_folder(version)
    given = {"model": str(MODEL), "groups": groups, "group": GROUP, "first": first, "steps": steps}
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "benchmarks/trl_episodes.py", json.dumps(given)]
        printed, watch = run(command, Path(output), [folder, ROOT])
    found = json.loads(printed.splitlines()[-1])
    rate = groups * GROUP / statistics.median(found["seconds"][1:])
    seen = f"{found['pictures']} pictures of {groups * steps} seeds"
    return f"| {groups * GROUP} | TRL {version}, {seen}, {watch.gib:.1f} GiB | {rate:.1f} | - | - |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=16, help=f"of {GROUP} episodes (default: %(default)s)")
    parser.add_argument("--instances", type=int, nargs="+", default=[1, 2, 4], help="browsers")
    parser.add_argument("--concurrency", type=int, default=16, help="episodes at a time (default: %(default)s)")
    parser.add_argument("--trl", nargs="?", const="", metavar="VERSION", help="TRL too (default: its newest release)")
    args = parser.parse_args()
    task = get_task("miniwob").environment
    page = type(task.make())
    each = type("Each", (page,), {"repeats": lambda self, options: False})
    print("| browsers | pages | episodes a second | model, s | browser, s |\n|---|---|---|---|---|")
    with serve(MODEL, cpu=True, max_model_len=512) as url:
        llm = LLM(url, MODEL_NAME, sampling_parameters={"temperature": 1.0})
        first = 40_000_000
        for instances in args.instances:
            for name, make in (("shared", page), ("each", each)):
                setup = dataclasses.replace(task, make=make, instances=instances)
                asyncio.run(play(setup, rows(2, first), llm, args.concurrency))  # browsers and server are warm
                seconds, found = asyncio.run(play(setup, rows(args.groups, first + 2), llm, args.concurrency))
                first += args.groups + 2
                spent = [
                    statistics.median(one[f"seconds/{part}"] for one in found) for part in ("model", "environment")
                ]
                rate = len(found) / seconds
                print(f"| {instances} | {name} | {rate:.1f} | {spent[0]:.3f} | {spent[1]:.3f} |", flush=True)
                close_all()
    if args.trl is not None:
        print(under_trl(args.groups, first, args.trl or None))


if __name__ == "__main__":
    main()
