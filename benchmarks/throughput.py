"""Measure rollouts per second by the number of runners and workers, beside stock Agent Lightning.

    python benchmarks/throughput.py [--runners 1 2 4 8] [--rollouts 200] [--output FILE]
    python benchmarks/throughput.py --variants "ours file" --runners 2 --many 10000     # none lost, doubled or stalled?

The model server is a fake that answers at once, so that what is measured is everything else. Each rollout is the VQA
agent's: one question about one picture of a megapixel that does not compress (1 MB), sent as a `data:` URI or named by
path; eight rollouts ask about a picture. "alone" are rollouts without a group, whose calls are not joined. "worker" is
`worker.py` with so many rollouts at a time, in place of runners: it reads the picture itself, or gets it over HTTP.
"stock" is Agent Lightning 0.3.0 with its own defaults (AgentOps tracer, a client per rollout as in its examples), except
that idle runners look for work every 0.1 s instead of 5 s. Each line runs in a fresh process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import agentlightning as agl

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ("stock data", "ours data alone", "ours data", "ours file", "worker data", "worker http")
OURS_MORE = 5
"""Our lines run so many times the rollouts of stock's: they last about as long, and a p99 needs many."""
CALM_CORES = 0.1
"""What others may use of the machine in a run that counts as undisturbed."""
GROUP, PICTURES = 8, 32
"""Rollouts per picture, as in GRPO, and how many pictures there are."""
STALL_SECONDS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runners", type=int, nargs="+", default=[1, 2, 4, 8], help="parallel runners, or a worker's")
    parser.add_argument("--rollouts", type=int, default=200, help="rollouts measured per stock line")
    parser.add_argument("--repeat", type=int, default=1, help="runs of a line until the machine is calm, at most")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--many", type=int, default=0, help="after each of our lines so many more, all accounted for")
    parser.add_argument("--output", type=Path, help="write all lines as JSON")
    parser.add_argument("--line", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.line:
        variant, *numbers = args.line
        print(json.dumps(measure(variant, *map(int, numbers))))
        return
    lines = []
    for runners in args.runners:
        for variant in args.variants:
            lines.append(calmest(variant, runners, args.rollouts, args.many, args.repeat))
            print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
            if args.output:
                args.output.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    show(lines)


def calmest(variant: str, runners: int, rollouts: int, many: int, repeat: int) -> dict[str, Any]:
    """The run of a line during which other programs used least of the machine."""
    stock = variant.startswith("stock")
    numbers = [runners, rollouts * (1 if stock else OURS_MORE), 0 if stock else many]
    lines: list[dict[str, Any]] = []
    for _ in range(repeat):
        command = [sys.executable, __file__, "--line", variant, *map(str, numbers)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{variant} with {runners} runners failed:\n{done.stderr[-3000:]}")
        lines.append({"variant": variant, "runners": runners, **json.loads(done.stdout.splitlines()[-1])})
        if lines[-1]["others_cores"] < CALM_CORES:
            break
    return min(lines, key=lambda one: float(one["others_cores"]))


def show(lines: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=130)
    cpu = "CPU ms a rollout: store + proxy + runners"
    table = Table("runners", "variant", "others' cores", "rollouts/s", "rollout p50 ms", "p99 ms", "store bytes", cpu)
    memory = Table("runners", "variant", "rollouts", "store process MB", "proxy MB", "runners MB", "accounts")
    for line in lines:
        name = [str(line["runners"]), line["variant"]]
        parts = [f"{line['cpu_ms'][part]:.1f}" for part in ("store", "proxy", "runners")]
        cells = [f"{line['others_cores']:.1f}", f"{line['rate']:.1f}", f"{line['p50']:.0f}", f"{line['p99']:.0f}"]
        table.add_row(*name, *cells, f"{line['bytes']:,.0f}", " + ".join(parts))
        for row in line["memory"]:
            megabytes = [f"{row[part]:.0f}" for part in ("store", "proxy", "runners")]
            memory.add_row(*name, f"{row['rollouts']:,}", *megabytes, row["accounts"])
    console.print(table)
    if memory.row_count:
        console.print(memory)


def measure(variant: str, runners: int, rollouts: int, many: int) -> dict[str, Any]:
    """Run a line's rollouts under a real `agl.Trainer`, in this process and its children."""
    stock = variant.startswith("stock")
    if not stock:
        import vision_rl  # noqa: F401  # takes stock's proxy out of Agent Lightning
    import agentlightning as agl
    from PIL import Image

    from scripts import fake_backend
    from train_agent import trainer_of
    from vision_rl.agent.lightning import agent_of
    from vision_rl.rollout.addresses import free_port, private

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, fake_backend.running(free_port()) as backend:
        for number in range(PICTURES):
            Image.effect_noise((1000, 1000), 60).save(
                Path(folder) / f"{number}.png"
            )  # a megabyte: noise does not compress
        load = Load(variant, runners, rollouts, many, Path(folder), backend)

        class Algorithm(agl.Algorithm):  # type: ignore[misc]
            async def run(self, **_: Any) -> None:
                await load.run(self.get_store())

        algorithm = Algorithm()
        if stock:
            runner = agl.LitAgentRunner(agl.AgentOpsTracer(), poll_interval=0.1, interval_jitter=0.0)
            strategy = agl.ClientServerExecutionStrategy(
                n_runners=runners, server_host="127.0.0.1", server_port=free_port()
            )
            trainer = agl.Trainer(
                algorithm=algorithm, runner=runner, tracer=runner.tracer, strategy=strategy, n_runners=runners
            )
        else:
            trainer = trainer_of(algorithm, 0 if variant.startswith("worker") else runners, private(free_port()))
        trainer.fit(stock_agent(agl) if stock else agent_of(["vqa"]), train_dataset=[1])
    return load.result


def stock_agent(agl: Any) -> Any:
    """Agent Lightning's own way: a client per rollout, the reward returned."""
    import openai

    from vision_rl.agent.messages import image_url, user_message

    @agl.rollout
    def agent(task: dict[str, Any], llm: agl.LLM) -> float:
        message: Any = user_message(task["question"], [image_url(task["image_paths"][0], "data")])
        client = openai.OpenAI(base_url=llm.endpoint + "/v1", api_key="none", timeout=60)
        client.chat.completions.create(model=llm.model, messages=[message])
        return 0.5

    return agent


class Load:
    """Queues rollouts, waits for them, and keeps the figures in `result`."""

    def __init__(self, variant: str, runners: int, rollouts: int, many: int, folder: Path, backend: str) -> None:
        self.variant, self.runners, self.rollouts, self.many = variant, runners, rollouts, many
        self.stock = variant.startswith("stock")
        self.folder, self.backend = folder, backend
        self.result: dict[str, Any] = {}
        self.batches = 0

    async def run(self, store: Any) -> None:
        import agentlightning as agl
        import numpy as np

        from scripts.engine_stack import model_entry
        from vision_rl.rollout.proxy import VisionProxy

        self.store = store
        proxy = agl.LLMProxy(store=store) if self.stock else VisionProxy(store, self.folder / "pictures")
        proxy.update_model_list([model_entry(self.backend)])
        await proxy.start()
        with self.worker(proxy):
            self.resources = (await store.add_resources({"main_llm": proxy.as_resource()})).resources_id
            await self.done(await self.queue(4 * max(self.runners, GROUP)))  # warm up
            before, whole, started = self.cpu_seconds(), machine_seconds(), time.perf_counter()
            ids = await self.queue(self.rollouts)
            await self.done(ids)
            seconds, after = time.perf_counter() - started, self.cpu_seconds()
            used = {name: after[name] - before[name] for name in after}
            others = machine_seconds() - whole - sum(used.values())
            took = [1000 * took for took in await self.seconds(ids)]
            await asyncio.sleep(1.0)  # stock spans arrive late
            statistics = await store.statistics()
            self.result.update(
                rollouts=self.rollouts,
                rate=self.rollouts / seconds,
                p50=float(np.percentile(took, 50)),
                p99=float(np.percentile(took, 99)),
                bytes=statistics["total_span_bytes"] / statistics["total_rollouts"],
                others_cores=max(others / seconds, 0.0),
                cpu_ms={name: 1000 * value / self.rollouts for name, value in used.items()},
                memory=[],
            )
            for part in range(1, 11) if self.many else ():
                ids = await self.queue(self.many // 10)
                await self.done(ids)
                accounts = await self.accounts(ids)
                done = part * self.many // 10
                self.result["memory"].append({"rollouts": done, "accounts": accounts, **self.megabytes()})
                await store.forget(ids)  # as our trainer does after each step
        await proxy.stop()

    @contextlib.contextmanager
    def worker(self, proxy: Any) -> Iterator[None]:
        """`worker.py` for as long as the block runs, where the variant asks for it."""
        if not self.variant.startswith("worker"):
            yield
            return
        how = self.variant.split()[1]
        command = [sys.executable, "worker.py", "--concurrency", str(self.runners), "--images", how]
        environment = {**os.environ, "OPENAI_BASE_URL": f"{proxy.access_endpoint}/v1", "OPENAI_API_KEY": "none"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)

    async def queue(self, count: int) -> list[str]:
        """Queue so many rollouts, eight to a picture and a group; returns their ids."""
        from agentlightning.types import EnqueueRolloutRequest

        self.batches += 1
        requests = [
            EnqueueRolloutRequest(
                input=self.task(index // GROUP % PICTURES),
                mode="train",
                resources_id=self.resources,
                metadata={} if "alone" in self.variant else {"data_id": f"{self.batches} {index // GROUP}"},
            )
            for index in range(count)
        ]
        return [rollout.rollout_id for rollout in await self.store.enqueue_many_rollouts(requests)]

    def task(self, picture: int) -> dict[str, Any]:
        """A row as the trainer queues it."""
        import dataclasses

        from vision_rl.data.row import normalise_row
        from vision_rl.settings import AgentSettings

        path = str(self.folder / f"{picture}.png")
        row = {"id": str(picture), "image_path": path, "question": "What color is it?", "answers": ["red"] * 10}
        transport = "file" if self.variant.endswith("file") else "data"
        settings = AgentSettings(family="qwen2_5_vl", image_transport=transport)
        return {**normalise_row(row, task="vqa"), "settings": dataclasses.asdict(settings)}

    async def done(self, ids: list[str]) -> None:
        """Wait for rollouts. Raises `RuntimeError` for one that failed."""
        waiting = set(ids)
        while waiting:
            done = await self.store.wait_for_rollouts(rollout_ids=list(waiting), timeout=0)
            waiting -= {rollout.rollout_id for rollout in done}
            if failed := [rollout for rollout in done if rollout.status != "succeeded"]:
                raise RuntimeError(f"{len(failed)} rollouts failed")
            await asyncio.sleep(0.05)

    async def seconds(self, ids: list[str]) -> list[float]:
        """From claim to report, of each rollout's last attempt."""
        attempts = [await self.store.get_latest_attempt(one) for one in ids]
        return [attempt.end_time - attempt.start_time for attempt in attempts]

    async def accounts(self, ids: list[str]) -> str:
        """What is wrong with rollouts that are done: tried twice, without exactly one call and one reward, or stalled."""
        wrong = Counter[str](lost=len(ids) - len(set(ids)))
        for one in ids:
            attempt, spans = await self.store.get_latest_attempt(one), await self.store.query_spans(one)
            wrong["tried twice"] += attempt.sequence_id != 1
            wrong["not one call and one reward"] += len(spans) != 2
            wrong["stalled"] += attempt.end_time - attempt.start_time > STALL_SECONDS
        return ", ".join(f"{count} {name}" for name, count in wrong.items() if count) or "all well"

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The store lives in this process. Stock's proxy is a fork of it, the last one that it started."""
        found: dict[str, list[psutil.Process]] = {
            "store": [psutil.Process()],
            "proxy": [],
            "runners": [],
            "backend": [],
        }
        children = psutil.Process().children()
        if self.stock:
            found["proxy"] = [children.pop()]
        for child in children:
            command = " ".join(child.cmdline())
            name = next(
                (name for name in ("proxy", "backend") if f"{name}_server" in command or f"_{name}" in command), ""
            )
            found[name or "runners"] += [child, *child.children()]
        return found

    def cpu_seconds(self) -> dict[str, float]:
        return {name: sum(sum(p.cpu_times()[:2]) for p in group) for name, group in self.processes().items()}

    def megabytes(self) -> dict[str, float]:
        """Resident memory by kind of process."""
        return {name: sum(p.memory_info().rss for p in group) / 2**20 for name, group in self.processes().items()}


def machine_seconds() -> float:
    """Processor seconds that the whole machine has spent on processes."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


if __name__ == "__main__":
    main()
