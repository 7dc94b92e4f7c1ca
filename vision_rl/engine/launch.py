"""From a resolved configuration and rows to a run: Agent Lightning's trainer, its runners, and the algorithm."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import agentlightning as agl

from vision_rl.engine.algorithm import Launch, VisionVERL
from vision_rl.engine.config import Resolved
from vision_rl.engine.runner import VisionRunner
from vision_rl.engine.store import VisionStore
from vision_rl.engine.strategy import VisionStrategy
from vision_rl.errors import UserError
from vision_rl.run_dir import STOP_FILE

RUNNER_POLL_SECONDS = 0.05


def tasks_of(rows: list[dict[str, Any]], resolved: Resolved) -> list[dict[str, str]]:
    """Rows as self-contained tasks, each one JSON text: what a runner on any machine needs, and nothing that a
    data-frame in between could change."""
    settings = dataclasses.asdict(resolved.agent)
    return [{"task": json.dumps({**row, "settings": settings})} for row in rows]


def validation_rows(rows: list[dict[str, Any]], resolved: Resolved) -> list[dict[str, Any]]:
    """The fixed validation sample: the same rows at every validation, chosen by seed."""
    wanted = resolved.app.validation.samples
    if not wanted or wanted >= len(rows):
        return rows
    return random.Random(resolved.app.validation.seed).sample(rows, wanted)


def free_port() -> int:
    """A port that is free on the loopback interface now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(port: int, host: str, flag: str) -> None:
    """Raise `UserError` if the port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"port {port} on {host} cannot be used ({error.strerror}); free it or choose another with {flag}"
            ) from error


def fit(
    agent: Any,
    train: list[dict[str, str]],
    val: list[dict[str, str]],
    launch: Launch,
    *,
    store_host: str,
    store_port: int,
) -> None:
    """Run to the end. Runners are forked before Ray starts: a fork of a process with Ray's threads breaks."""
    logging.getLogger("agentlightning").setLevel(logging.ERROR)
    stop_on_interrupt(launch.context.run_dir, launch.watch)
    trainer = trainer_of(
        VisionVERL(launch), launch.resolved.app.n_runners, store_host=store_host, store_port=store_port
    )
    trainer.fit(agent, train_dataset=train, val_dataset=val)


def trainer_of(algorithm: agl.Algorithm, n_runners: int, *, store_host: str, store_port: int) -> agl.Trainer:
    """Agent Lightning's trainer with our store, runners and strategy; benchmarks drive it with their own algorithm."""
    runner = VisionRunner(poll_interval=RUNNER_POLL_SECONDS, interval_jitter=0.0)
    strategy = VisionStrategy(n_runners=n_runners, host=store_host, port=store_port)
    return agl.Trainer(
        n_runners=n_runners,
        algorithm=algorithm,
        runner=runner,
        tracer=runner.tracer,
        strategy=strategy,
        store=VisionStore(),
    )


def stop_on_interrupt(run_dir: Path, watch: Callable[[], None]) -> None:
    """First Ctrl-C: end after this step with a checkpoint; second: end now. Runners leave it to the main process."""
    (run_dir / STOP_FILE).unlink(missing_ok=True)
    main_process = os.getpid()

    def on_interrupt(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != main_process:
            if number == signal.SIGTERM:
                os._exit(0)
            return
        if (run_dir / STOP_FILE).exists():
            raise KeyboardInterrupt
        (run_dir / STOP_FILE).write_text(f"{time.time()}\n")
        print("\nstopping after this step; press Ctrl-C again to stop at once", flush=True)

    signal.signal(signal.SIGINT, on_interrupt)
    signal.signal(signal.SIGTERM, on_interrupt)
