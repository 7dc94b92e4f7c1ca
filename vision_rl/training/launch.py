"""The processes around Agent Lightning's trainer: its store, runners on other machines, and the reaction to Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import agentlightning as agl
import httpx

from vision_rl.errors import UserError
from vision_rl.rollout.addresses import Addresses, host_of
from vision_rl.rollout.http_auth import hide_keys
from vision_rl.rollout.runner import VisionRunner
from vision_rl.rollout.store import VisionStore
from vision_rl.rollout.store_server import PREFIX, VisionStoreClient, VisionStoreServer
from vision_rl.rollout.strategy import VisionStrategy
from vision_rl.run.directory import STOP_FILE
from vision_rl.settings import TOKEN_VARIABLE
from vision_rl.training.algorithm import Launch

RUNNER_POLL_SECONDS = 0.05


def store_of(addresses: Addresses) -> VisionStore | VisionStoreClient:
    """The run's own store, or the client of one that `--role store` serves elsewhere."""
    outer = addresses.external_store
    return VisionStoreClient(outer, addresses.token) if outer else VisionStore()


def make_ready(launch: Launch) -> None:
    """What must hold before Agent Lightning's trainer starts: a store that answers, Ctrl-C, the token, quiet loggers."""
    # It logs what it raises, with a traceback: a `UserError` would be said twice.
    logging.getLogger("agentlightning").setLevel(logging.ERROR)
    logging.getLogger("agentlightning.execution").setLevel(logging.CRITICAL)
    logging.getLogger("agentlightning.trainer.trainer").addFilter(is_no_user_error)
    addresses = launch.context.addresses
    if addresses.external_store and not check_store(addresses.external_store, addresses.token):
        raise UserError(f"no store answers at {addresses.external_store}; start it with train_agent.py --role store")
    stop_on_interrupt(launch.context.run_dir, launch.watch)
    hide_keys()
    if addresses.token:
        os.environ[TOKEN_VARIABLE] = addresses.token  # for the runners, which are forked


def is_no_user_error(record: logging.LogRecord) -> bool:
    """A filter for loggers: the command line prints a `UserError` once, as one sentence."""
    return not (record.exc_info and isinstance(record.exc_info[1], UserError))


def vision_runner() -> VisionRunner:
    """Agent Lightning's runner as a run uses it."""
    return VisionRunner(poll_interval=RUNNER_POLL_SECONDS, interval_jitter=0.0)


def run_runners(agent: Any, n_runners: int, store_url: str) -> None:
    """Runners for a trainer elsewhere, until they are interrupted; the token is VISION_RL_TOKEN.

    They wait for a store that does not answer yet. Raises `UserError` if it refuses the token.
    """
    hide_keys()
    up = check_store(store_url, os.environ.get(TOKEN_VARIABLE))
    print(f"{n_runners} runners ask {store_url} for rollouts" + ("" if up else ", once it answers"), flush=True)
    addresses = Addresses(0, token=os.environ.get(TOKEN_VARIABLE), external_store=store_url.rstrip("/"))
    runner = vision_runner()
    strategy = VisionStrategy(n_runners=n_runners, addresses=addresses, role="runner")
    agl.Trainer(n_runners=n_runners, runner=runner, tracer=runner.tracer, strategy=strategy, store=VisionStore()).fit(
        agent
    )


def check_store(url: str, token: str | None) -> bool:
    """Whether the store of another machine answers now. Raises `UserError` for a wrong address or a wrong token."""
    host_of(url)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        reply = httpx.get(url.rstrip("/") + PREFIX + "/statistics", headers=headers, trust_env=False, timeout=10)
    except httpx.HTTPError:
        return False
    if reply.status_code == 401:
        raise UserError(f"the store at {url} refuses the token; set {TOKEN_VARIABLE} to the one that it printed")
    if reply.status_code != 200:
        raise UserError(f"{url} answers, but is not a store (HTTP {reply.status_code}); name its address and port")
    return True


def serve_store(addresses: Addresses) -> None:
    """A store for `--external-store`, until it is interrupted: it keeps the queue while trainers come and go."""

    async def serve() -> None:
        server = VisionStoreServer(
            VisionStore(),
            host=addresses.host,
            port=addresses.store_port,
            access_host=addresses.address,
            token=addresses.token,
        )
        await server.start()
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stop.wait()
        await server.stop()

    hide_keys()
    print(
        f"store at {addresses.store_url}"
        + (f", {TOKEN_VARIABLE}={addresses.token}" if addresses.token else "")
        + f"\ndashboard, in a browser: {addresses.dashboard_url}",
        flush=True,
    )
    asyncio.run(serve())


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
