"""How many steps an hour with more runners, proxies or model servers? A simulation with measured service times.

    python benchmarks/simulate.py                       # the tables of docs/scale.md
    python benchmarks/simulate.py --validate            # predicted against measured rollouts per second, 1 to 8 runners
    python benchmarks/simulate.py --measured FILE       # the same with what benchmarks/throughput.py --output FILE measured
    python benchmarks/simulate.py --train DIR           # predicted against measured steps per hour of real trainings

Discrete events: every rollout passes from its runner to the store, through a proxy to a model server and back, turn by turn,
then its reward goes to the store; a step ends with its last rollout, then comes the update. The store and each proxy are one
thread; the processes of one machine share its cores; a model server gets slower with every request that it has under way.
Left out: failures, prompts of different lengths, and all but the delay of a network.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setup:
    """Times in milliseconds. CPU times as benchmarks/throughput.py measures them; those of the server are of one request.

    The default server is the tiny model under vLLM's CPU build: 77 ms alone, 200 ms with eight at a time.
    """

    runners: int = 8
    cores: int = 2  # of the trainer's machine
    remote_runners: bool = False  # on machines of their own
    proxies: int = 1
    servers: int = 1
    rollouts: int = 128  # per step: prompts times answers
    turns: int = 1
    runner_ms: float = 9.0
    proxy_ms: float = 6.0
    store_ms: float = 1.0  # per call: one to claim, one per turn, one to report
    server_cpu_ms: float = 0.0  # per request, of a model server on the trainer's own cores
    prefill_ms: float = 59.0
    decode_ms: float = 0.0  # per token
    output_tokens: float = 0.0  # mean of an exponential distribution
    server_slots: int = 256  # requests under way on a server (vLLM's max_num_seqs); more of them wait
    crowd: float = 0.23  # by how much each further request on a server slows all that are there
    reward_ms: float = 0.0
    network_ms: float = 0.0  # one way
    update_s: float = 0.5  # log-probabilities, update, weights to the servers


class Station:
    """Something of which `width` can be held at a time (None: any number); the others wait in order."""

    def __init__(self, width: int | None) -> None:
        self.width, self.held = width, 0
        self.waiting: deque[Callable[[], None]] = deque()
        self.work = 0.0  # seconds held, summed

    def acquire(self, then: Callable[[], None]) -> None:
        if self.width is not None and self.held >= self.width:
            self.waiting.append(then)
        else:
            self.held += 1
            then()

    def release(self) -> None:
        if self.waiting:
            self.waiting.popleft()()
        else:
            self.held -= 1


Process = Generator[tuple[Sequence[Station], float], None, None]


class Clock:
    """The event queue. A process yields (stations, seconds): it holds all of them for that long."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.number = 0

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.number += 1
        heapq.heappush(self.events, (self.now + seconds, self.number, action))

    def start(self, process: Process) -> None:
        try:
            stations, seconds = next(process)
        except StopIteration:
            return
        self._hold(list(stations), 0, seconds, lambda: self.start(process))

    def _hold(self, stations: list[Station], index: int, seconds: float, then: Callable[[], None]) -> None:
        if index < len(stations):
            stations[index].acquire(lambda: self._hold(stations, index + 1, seconds, then))
            return

        def done() -> None:
            for station in stations:
                station.work += seconds
                station.release()
            then()

        self.after(seconds, done)

    def run(self) -> float:
        while self.events:
            self.now, _, action = heapq.heappop(self.events)
            action()
        return self.now


def simulate_step(setup: Setup, seed: int = 0) -> tuple[float, dict[str, float]]:
    """(seconds of the rollouts of one step, the share of them for which each part was busy)."""
    draw, clock = random.Random(seed), Clock()
    cores, store = Station(setup.cores), Station(1)
    proxies = [Station(1) for _ in range(setup.proxies)]
    servers = [Station(setup.server_slots) for _ in range(setup.servers)]
    left = setup.rollouts

    def rollout(index: int) -> Process:
        runner = () if setup.remote_runners else (cores,)
        yield (store, cores), setup.store_ms / 1000
        for _ in range(setup.turns):
            yield runner, setup.runner_ms / 1000
            yield (), setup.network_ms / 1000
            yield (proxies[index % len(proxies)], cores), setup.proxy_ms / 1000
            server = min(servers, key=lambda one: one.held + len(one.waiting))
            tokens = draw.expovariate(1 / setup.output_tokens) if setup.output_tokens else 0.0
            alone = setup.prefill_ms + tokens * setup.decode_ms
            yield (server,), alone * (1 + setup.crowd * server.held) / 1000
            yield (server, cores), setup.server_cpu_ms / 1000
            yield (store, cores), setup.store_ms / 1000
            yield (), setup.network_ms / 1000
        yield runner, setup.reward_ms / 1000
        yield (store, cores), setup.store_ms / 1000

    def runner() -> Process:
        nonlocal left
        while left:
            left -= 1
            yield from rollout(left)

    for _ in range(min(setup.runners, setup.rollouts)):
        clock.start(runner())
    seconds = clock.run()
    busy = {"cores": cores.work / setup.cores, "store": store.work, "proxy": max(one.work for one in proxies)}
    return seconds, {name: work / seconds for name, work in busy.items()}


GPU = Setup(
    runners=64,
    cores=16,
    remote_runners=True,
    rollouts=1024,
    runner_ms=9,
    prefill_ms=120,
    decode_ms=12,
    output_tokens=200,
    crowd=0.015,
    network_ms=0.5,
    update_s=45,
)
"""A 7B model on A100-like servers, 200 tokens an answer, 128 prompts times 8: assumed times, not measured ones."""


def tables() -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, base in (
        ("tiny model, 2 cores, runners on the trainer's machine", Setup()),
        ("GPU servers, runners elsewhere", GPU),
    ):
        table = Table(
            "runners", "servers", "proxies", "steps/hour", "rollouts/s", "cores", "store", "proxy", title=title
        )
        for runners in (1, 4, 8, 64, 256, 1000):
            for servers in (1, 8, 64):
                if base is not GPU and servers > 1:
                    continue
                for proxies in (1, 4) if runners >= 256 and servers == 64 else (1,):
                    setup = replace(base, runners=runners, servers=servers, proxies=proxies)
                    seconds, busy = simulate_step(setup)
                    shares = [f"{busy[name]:.0%}" for name in ("cores", "store", "proxy")]
                    rate = f"{3600 / (seconds + setup.update_s):.1f}"
                    table.add_row(
                        str(runners), str(servers), str(proxies), rate, f"{setup.rollouts / seconds:.1f}", *shares
                    )
        console.print(table)


def validate(measured: Callable[[int], dict[str, Any]], rollouts: int) -> None:
    """Compare with `measured(runners)`, a line of throughput_line.py.

    The CPU times are those of the line that others disturbed least; the rates of all are predicted. What other programs
    took of the machine during a run is measured with it, and lowers what it could do at most.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("runners", "others' cores", "measured rollouts/s", "predicted rollouts/s", "difference")
    setup = Setup(prefill_ms=0.0, rollouts=rollouts)
    lines = {runners: measured(runners) for runners in (1, 2, 4, 8)}
    calmest = min(lines.values(), key=lambda line: line["others_cores"])
    cpu = calmest["cpu_ms"]
    setup = replace(
        setup,
        runner_ms=cpu["runners"],
        proxy_ms=cpu["proxy"],
        store_ms=cpu["store"] / 3,
        server_cpu_ms=calmest["backend_ms"],
    )
    for runners, line in lines.items():
        slower = setup.cores / max(setup.cores - line["others_cores"], 0.2)
        times = ("runner_ms", "proxy_ms", "store_ms", "server_cpu_ms")
        crowded = replace(setup, runners=64, **{name: getattr(setup, name) * slower for name in times})
        alone = replace(setup, runners=runners)
        predicted = min(rollouts / simulate_step(case)[0] for case in (alone, crowded))
        figures = [f"{line['others_cores']:.1f}", f"{line['rate']:.1f}", f"{predicted:.1f}"]
        table.add_row(str(runners), *figures, f"{predicted / line['rate'] - 1:+.0%}")
    Console().print(table)


def validate_training(folder: Path, steps: int) -> None:
    """Train the tiny model with 1 to 8 runners. The time of a request alone and of an update are those of one runner."""
    from rich.console import Console
    from rich.table import Table

    table = Table("runners", "measured rollouts/s", "predicted", "measured steps/hour", "predicted", "difference")
    setup = Setup()
    for runners in (1, 2, 4, 8):
        rollouts, sampling, whole = train(folder / str(runners), runners, steps)
        if runners == 1:
            around = setup.runner_ms + setup.proxy_ms + 3 * setup.store_ms
            alone = 1000 * sampling / rollouts - around
            setup = replace(setup, rollouts=rollouts, prefill_ms=alone, update_s=whole - sampling)
        seconds, _ = simulate_step(replace(setup, runners=runners))
        predicted = 3600 / (seconds + setup.update_s)
        figures = [rollouts / sampling, rollouts / seconds, 3600 / whole, predicted]
        table.add_row(str(runners), *(f"{figure:.1f}" for figure in figures), f"{predicted * whole / 3600 - 1:+.0%}")
    Console(width=100).print(table)


def train(run_dir: Path, runners: int, steps: int) -> tuple[int, float, float]:
    """(rollouts a step, median seconds of sampling, of a whole step) of a real training; its first two steps warm up."""
    command = [sys.executable, "train_agent.py", "--run-dir", str(run_dir.absolute()), "--overwrite"]
    command += ["--n-runners", str(runners), "--max-steps", str(steps + 2), "trainer.val_before_train=false"]
    command += ["trainer.test_freq=-1", "trainer.save_freq=-1"]
    subprocess.run(command, cwd=Path(__file__).parent.parent, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()][2:]
    rollouts = sum(1 for _ in (run_dir / "rollouts.jsonl").open(encoding="utf-8")) // (steps + 2)
    sampling, whole = (statistics.median(line[f"timing_s/{name}"] for line in lines) for name in ("generate", "step"))
    return rollouts, sampling, whole


def measure(runners: int, rollouts: int) -> dict[str, Any]:
    script = Path(__file__).with_name("throughput_line.py")
    command = [sys.executable, str(script), "ours data", str(runners), str(rollouts), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--validate", action="store_true", help="compare with measured runs on this machine (2 minutes)"
    )
    parser.add_argument("--measured", type=Path, help="compare with the lines that throughput.py --output wrote")
    parser.add_argument(
        "--train", type=Path, metavar="DIR", help="compare with real trainings, one folder each (4 minutes)"
    )
    parser.add_argument("--steps", type=int, default=6, help="steps per real training")
    parser.add_argument("--rollouts", type=int, default=300, help="rollouts per measured run")
    args = parser.parse_args()
    if args.measured:
        lines = [json.loads(line) for line in args.measured.read_text(encoding="utf-8").splitlines()]
        ours = {line["runners"]: line for line in lines if line["variant"] == "ours data"}
        validate(ours.__getitem__, ours[1]["rollouts"])
    elif args.train:
        validate_training(args.train, args.steps)
    elif args.validate:
        validate(lambda runners: measure(runners, args.rollouts), args.rollouts)
    else:
        tables()


if __name__ == "__main__":
    main()
