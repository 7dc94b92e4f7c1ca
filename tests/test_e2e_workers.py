"""The real training with its store, its runners and a worker in processes of their own, as on several machines.

A store that outlives two trainers; a network to it that is cut for half a minute; runners that are killed, that join late
and that are stopped; a trainer that gets SIGTERM and goes on with --resume. Rollouts are counted in what the trainer wrote.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.test_e2e_kills import wait_until_gone
from vision_rl.rollout.addresses import free_port, outbound_address
from vision_rl.run.log import EVENTS, METRICS, ROLLOUTS, read_jsonl
from vision_rl.settings import TOKEN_VARIABLE

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["trainer.val_before_train=false", "trainer.test_freq=-1"]
CUT_SECONDS = 30.0

pytestmark = [pytest.mark.e2e, pytest.mark.long]


class Machines:
    """Starts commands of this project, each with its output in a file, and ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{name}.log", "ab") as log:
            variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT
            )
        self.started.append(process)
        return process

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def find(self, name: str, pattern: str, seconds: float) -> str:
        """The first group of a pattern in what a process says, once it says it."""
        wait(lambda: re.search(pattern, self.said(name)), seconds, f"{name} did not say {pattern}")
        found = re.search(pattern, self.said(name))
        assert found is not None
        return found[1]


@pytest.fixture()
def machines(tmp_path: Path) -> Iterator[Machines]:
    running = Machines(tmp_path)
    try:
        yield running
    finally:
        for process in running.started:
            process.terminate()
        for process in running.started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


def wait(condition: Callable[[], Any], seconds: float, problem: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, problem
        time.sleep(0.1)


def last_step(run_dir: Path) -> int:
    lines = read_jsonl(run_dir / METRICS)[0]
    return int(lines[-1]["step"]) if lines else 0


def queued(run_dir: Path) -> int:
    """How often the trainer queued a batch."""
    return sum(event["kind"] == "queued" for event in read_jsonl(run_dir / EVENTS)[0])


def counted(run_dir: Path, steps: int) -> list[dict[str, Any]]:
    """Every rollout of the run, each of them once: `rollout.n` for each of a step's rows, every step from 1 on."""
    rollouts = read_jsonl(run_dir / ROLLOUTS)[0]
    assert len({rollout["rollout_id"] for rollout in rollouts}) == len(rollouts)
    per_step = Counter(rollout["step"] for rollout in rollouts)
    assert set(per_step) == set(range(1, steps + 1))
    assert len(set(per_step.values())) == 1
    assert set(Counter(rollout["group"] for rollout in rollouts).values()) == {8}
    assert [line["step"] for line in read_jsonl(run_dir / METRICS)[0]] == list(range(1, steps + 1))
    return rollouts


def test_a_store_and_runners_elsewhere(machines: Machines, tmp_path: Path) -> None:
    run_dir, address = tmp_path / "run", outbound_address()
    store_port, cut_port, proxy_port = free_port(), free_port(), free_port()
    store_url = f"http://{address}:{cut_port}"  # the network between the store and all others

    def network() -> subprocess.Popen[bytes]:
        return machines.start("relay", "-m", "tests.relay", str(cut_port), str(store_port), address)

    store = machines.start(
        "store", "train_agent.py", "--role", "store", "--host", "0.0.0.0", "--store-port", str(store_port)
    )
    token = machines.find("store", rf"{TOKEN_VARIABLE}=(\S+)", 60)
    assert len(token) >= 43
    relay = network()

    def trainer(steps: int, *options: str) -> subprocess.Popen[bytes]:
        command = ["train_agent.py", "--run-dir", str(run_dir), "--external-store", store_url, "--llm-proxy"]
        command += ["--host", "0.0.0.0", "--proxy-port", str(proxy_port), "--n-runners", "0"]
        return machines.start("trainer", *command, "--max-steps", str(steps), *SMALL, *options, VISION_RL_TOKEN=token)

    def runners(name: str, number: int) -> subprocess.Popen[bytes]:
        command = ["train_agent.py", "--role", "runner", "--store", store_url, "--n-runners", str(number)]
        return machines.start(name, *command, VISION_RL_TOKEN=token)

    first = trainer(500)
    early = runners("early", 2)
    wait(lambda: queued(run_dir), 240, "the trainer queued nothing")
    nobody_gets_in_without_the_token(f"http://{address}:{proxy_port}", f"http://{address}:{store_port}")
    wait(lambda: last_step(run_dir) >= 1, 120, "no step was done")
    early_runners = psutil.Process(early.pid).children(recursive=True)
    early_runners[0].kill()
    late = runners("late", 1)
    worker = machines.start(
        "worker",
        *("worker.py", "--concurrency", "2", "--images", "http"),
        OPENAI_BASE_URL=f"http://{address}:{proxy_port}/v1",
        OPENAI_API_KEY=token,
    )
    wait(lambda: {"late", "worker"} <= hands(run_dir, early, late), 120, "the late ones did nothing")
    relay.kill()
    relay.wait()
    time.sleep(CUT_SECONDS)
    before = last_step(run_dir)
    relay = network()
    wait(lambda: last_step(run_dir) >= before + 2, 120, "the run did not go on after the network came back")
    first.send_signal(signal.SIGTERM)
    assert first.wait(120) == 0, machines.said("trainer")[-3000:]
    stopped_at = last_step(run_dir)
    assert (run_dir / "checkpoints" / f"global_step_{stopped_at}" / "actor").is_dir()

    early.terminate()  # a machine leaves, the others wait for the next trainer
    assert early.wait(30) == 0
    assert trainer(stopped_at + 2, "--resume").wait(300) == 0, machines.said("trainer")[-3000:]
    rollouts = counted(run_dir, stopped_at + 2)
    assert [rollout for rollout in rollouts if rollout["failure"]] == []
    for process in (worker, late, store):
        process.terminate()
        assert process.wait(30) == 0
    assert "0 failed" in machines.said("worker")
    for name in ("trainer", "early", "late", "worker"):
        text = machines.said(name).replace(f"OPENAI_API_KEY={token}", "").replace(f"{TOKEN_VARIABLE}={token}", "")
        assert token not in text and "Traceback" not in text, text[-3000:]
    logs = [path.read_text(errors="replace") for path in (run_dir / "logs").iterdir()]
    assert logs and not any(token in log for log in logs)


def hands(run_dir: Path, early: subprocess.Popen[bytes], late: subprocess.Popen[bytes]) -> set[str]:
    """Which groups of runners and workers have done rollouts: an Agent Lightning runner is host-supervisor-index."""
    names = {str(early.pid): "early", str(late.pid): "late"}
    workers = {rollout["worker"] for rollout in read_jsonl(run_dir / ROLLOUTS)[0]}
    return {names.get(name.rsplit("-", 2)[-2], "worker") for name in workers}


def nobody_gets_in_without_the_token(proxy: str, store: str) -> None:
    with httpx.Client(trust_env=False, timeout=10) as client:
        for url in (
            f"{store}/v1/agl/rollouts",
            f"{store}/",
            f"{proxy}/v1/models",
            f"{proxy}/v1/rollouts/ro-1/images/0",
        ):
            assert client.get(url).status_code == 401, url
        for url in (
            f"{proxy}/v1/rollouts/claim",
            f"{proxy}/v1/chat/completions",
            f"{store}/v1/agl/queues/rollouts/dequeue",
        ):
            assert client.post(url, json={"worker_id": "x"}).status_code == 401, url


@pytest.mark.parametrize(("engine", "who"), [("vllm", "the server's process"), ("vllm", "its engine")])
def test_a_model_server_that_dies_ends_the_run_with_a_checkpoint(
    machines: Machines, tmp_path: Path, engine: str, who: str
) -> None:
    run_dir = tmp_path / "run"
    command = ["train_agent.py", "--run-dir", str(run_dir), *SMALL, "--rollout-engine", engine]
    trainer = machines.start("trainer", *command, "--max-steps", "500")
    wait(lambda: last_step(run_dir) >= 1, 300, "no step was done")
    everyone = psutil.Process(trainer.pid).children(recursive=True)
    # Ray calls a process after its class and what it does; an engine is a fork of the server's, made while it was launched.
    names = {one: one.cmdline()[0] for one in everyone if one.cmdline()}
    forks = [one for one, name in names.items() if name.endswith("HttpServer.launch_server")]
    server_of = {one: parent for one in forks if (parent := one.parent()) and names.get(parent, "").startswith("ray::")}
    victim = next(iter(server_of)) if who == "its engine" else next(iter(server_of.values()))
    victim.kill()
    died = time.monotonic()
    assert trainer.wait(90) == 2, machines.said("trainer")[-3000:]
    assert time.monotonic() - died < 60
    [said] = [line for line in machines.said("trainer").splitlines() if line.startswith("error:")]
    done = last_step(run_dir)
    assert "model server" in said and f"step {done} is saved, go on with --resume" in said
    assert "Traceback" not in machines.said("trainer")
    assert (run_dir / "checkpoints" / f"global_step_{done}" / "actor").is_dir()
    wait_until_gone(everyone, 60)
    again = machines.start("again", *command, "--max-steps", str(done + 1), "--resume")
    assert again.wait(300) == 0, machines.said("again")[-3000:]
    assert [rollout for rollout in counted(run_dir, done + 1) if rollout["failure"]] == []
