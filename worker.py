"""Run rollouts for a trainer on another machine: claim them, run the agent, report rewards.

It needs an address and a key:

    export OPENAI_BASE_URL=http://trainer:8080/v1 OPENAI_API_KEY=<token>
    python worker.py --task vqa --concurrency 8

`train_agent.py --llm-proxy` prints this command with its own address and token. The worker needs neither Agent Lightning
nor verl, vLLM or torch: the protocol is four HTTP routes (docs/workers.md shows them with curl). When the trainer restarts,
the worker stays. After Ctrl-C it finishes its rollouts; after a second Ctrl-C it gives them back.
"""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
import os
import random
import signal
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vision_rl.errors import Parser, UserError, cli_errors  # first: it says what this Python lacks

# isort: split
import httpx

from vision_rl.tasks import TASK_HELP, answer, get_task

CLAIM_WAIT_SECONDS = 1.0
"""How long a claim waits for a rollout to come; also how long an idle worker takes to stop."""
HEARTBEAT_SECONDS = 10.0
REPORT_SECONDS = 120.0
"""How long a report is tried: longer than a trainer takes to restart, shorter than a rollout's deadline."""
MAX_PAUSE_SECONDS = 10.0

Answer = Callable[[dict[str, Any], Any], Awaitable[tuple[str, Any]]]


def parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        help=f"a task to have ready, repeatable: {TASK_HELP}; each rollout names its own, and vqa and grounding are known",
    )
    parser.add_argument("--concurrency", type=int, default=8, help="rollouts at a time (default: %(default)s)")
    parser.add_argument(
        "--images",
        choices=("auto", "path", "data", "http"),
        default="auto",
        help="path: named as the task says; data: read here and sent along; http: fetched from the trainer and sent along; "
        "auto: path if the file is on this machine, else http",
    )
    parser.add_argument("--max-rollouts", type=int, default=0, help="stop after so many (0: never)")
    parser.add_argument(
        "--name",
        default=f"{socket.gethostname()}-{os.getpid()}",
        help="name of this worker in the trainer's records (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")  # it would send prompts and the token to its maker
    with cli_errors():
        if not (base_url := os.environ.get("OPENAI_BASE_URL")):
            raise UserError("set OPENAI_BASE_URL to the address that train_agent.py --llm-proxy printed")
        if not base_url.startswith(("http://", "https://")):
            raise UserError(f"OPENAI_BASE_URL={base_url} is no address; it looks like http://trainer:8080/v1")
        if args.concurrency < 1 or args.max_rollouts < 0:
            raise UserError("--concurrency must be at least 1, --max-rollouts at least 0 (never stop)")
        for task in args.task:
            get_task(task)
        worker = Worker(
            answer,
            base_url,
            os.environ.get("OPENAI_API_KEY", "none"),
            name=args.name,
            concurrency=args.concurrency,
            images=args.images,
            max_rollouts=args.max_rollouts,
        )
        asyncio.run(worker.run())


class Worker:
    """`concurrency` loops of claim, answer, report over one HTTP connection pool."""

    def __init__(
        self,
        answer: Answer,
        base_url: str,
        key: str,
        *,
        name: str = "worker",
        concurrency: int = 1,
        images: str = "auto",
        max_rollouts: int = 0,
    ) -> None:
        self.answer = answer
        self.root = base_url.rstrip("/").removesuffix("/v1")
        self.name, self.concurrency, self.images, self.max_rollouts = name, concurrency, images, max_rollouts
        self.http = httpx.AsyncClient(
            base_url=self.root + "/v1/rollouts",
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(CLAIM_WAIT_SECONDS + 20, connect=5),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=3.0),
            trust_env=False,
        )
        self.stopping = asyncio.Event()
        self.claiming = self.claimed = self.succeeded = self.failed = 0
        self.away_since: float | None = None

    async def run(self) -> None:
        """Work until a signal stops it. Raises `UserError` if the trainer refuses the key."""
        loops = [asyncio.create_task(self._loop()) for _ in range(self.concurrency)]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, RuntimeError):  # not in the main thread: a test
                loop.add_signal_handler(number, self._on_signal, loops)
        self._say(f"asking {self.root} for rollouts, {self.concurrency} at a time")
        async with self.http:
            results = await asyncio.gather(*loops, return_exceptions=True)
        self._say(f"{self.succeeded} rollouts succeeded, {self.failed} failed")
        for result in results:
            if isinstance(result, Exception):
                raise result

    def _on_signal(self, loops: Sequence[asyncio.Task[None]]) -> None:
        if self.stopping.is_set():
            for loop in loops:
                loop.cancel()
        else:
            self._say("finishing the rollouts at hand; once more to give them back")
        self.stopping.set()

    async def _loop(self) -> None:
        pause = 0.5
        while not self.stopping.is_set() and not self._has_enough():
            try:
                self.claiming += 1
                rollout = await self._claim()
            except httpx.HTTPError as error:
                if isinstance(error, httpx.HTTPStatusError) and (problem := self._refusal(error.response)):
                    self.stopping.set()
                    raise UserError(problem) from None
                self._is_away(error)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
                continue
            finally:
                self.claiming -= 1
            if self.away_since is not None:
                self._say(f"the trainer is back after {time.monotonic() - self.away_since:.0f} s")
            pause, self.away_since = 0.5, None
            if rollout is not None:
                self.claimed += 1
                await self._work(rollout)

    def _refusal(self, reply: httpx.Response) -> str:
        """Why it is in vain to claim again, "" if it may be tried."""
        if reply.status_code == 401:
            return "the trainer refuses the key; set OPENAI_API_KEY to the token that it printed"
        if reply.status_code not in (400, 403, 404, 405):
            return ""
        try:
            said = str(reply.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            said = f"HTTP {reply.status_code}"
        return f"{self.root} is not the LLM proxy of a trainer ({said}); set OPENAI_BASE_URL to the address that it printed"

    def _has_enough(self) -> bool:
        """Whether `max_rollouts` are claimed, or would be with the claims that are under way."""
        return bool(self.max_rollouts) and self.claimed + self.claiming >= self.max_rollouts

    async def _claim(self) -> dict[str, Any] | None:
        request = asyncio.ensure_future(
            self.http.post("/claim", json={"worker_id": self.name, "wait_seconds": CLAIM_WAIT_SECONDS})
        )
        stop = asyncio.ensure_future(self.stopping.wait())
        await asyncio.wait((request, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not request.done():
            # A claim that is cut off could still be granted, and the rollout would wait for its deadline.
            await asyncio.wait((request,))
        reply = request.result()
        reply.raise_for_status()
        return None if reply.status_code == 204 else dict(reply.json())

    async def _work(self, rollout: dict[str, Any]) -> None:
        """Run one rollout to its report, whatever becomes of it."""
        identity = {"rollout_id": rollout["rollout_id"], "attempt_id": rollout["attempt_id"]}
        work = asyncio.create_task(self._reward(rollout))
        alive = asyncio.create_task(self._heartbeats(identity, work))
        try:
            reward = await asyncio.wait_for(work, rollout["timeout_seconds"])
            report: dict[str, Any] = {"reward": reward.value, "components": dict(reward.components)}
        except asyncio.CancelledError:
            if not self.stopping.is_set():  # its heartbeat said that another worker has it
                self.failed += 1
                return
            await self._report({**identity, "failure": "the worker was stopped"})
            raise
        except (Exception, SystemExit) as error:
            report = {"failure": f"{type(error).__name__}: {error}"[:300]}
        finally:
            alive.cancel()
        done = await self._report({**identity, **report})
        self.succeeded += done and "reward" in report
        self.failed += not done or "failure" in report

    async def _reward(self, rollout: dict[str, Any]) -> Any:
        task = rollout["task"]
        llm = SimpleNamespace(
            endpoint=self.root + rollout["path"],
            model=rollout["model"],
            api_key=rollout["api_key"],
            sampling_parameters=rollout["sampling_parameters"],
        )
        how = self.images
        if how == "auto":
            how = "path" if all(Path(path).exists() for path in task["image_paths"]) else "http"
        with tempfile.TemporaryDirectory(prefix="worker-") if how == "http" else contextlib.nullcontext() as folder:
            if folder is not None:
                task = {**task, "image_paths": await self._fetch(rollout, Path(folder))}
            if how != "path":
                task = {**task, "settings": {**task["settings"], "image_transport": "data"}}
            _, reward = await self.answer(task, llm)
        return reward

    async def _fetch(self, rollout: dict[str, Any], folder: Path) -> list[str]:
        """The pictures of a task, from the trainer, as files whose suffix says what they are."""
        paths = []
        for index, path in enumerate(rollout["task"]["image_paths"]):
            reply = await self.http.get(f"/{rollout['rollout_id']}/images/{index}")
            reply.raise_for_status()
            suffix = mimetypes.guess_extension(reply.headers.get("content-type", "")) or Path(path).suffix
            paths.append(str(folder / f"{index}{suffix}"))
            Path(paths[-1]).write_bytes(reply.content)
        return paths

    async def _heartbeats(self, identity: dict[str, str], work: asyncio.Task[Any]) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            try:
                reply = await self.http.post("/heartbeat", json=identity)
            except httpx.HTTPError:
                continue  # the trainer is away; the report will see
            if reply.status_code == 404 or (reply.status_code == 200 and not reply.json()["alive"]):
                work.cancel()
                return

    async def _report(self, report: dict[str, Any]) -> bool:
        """Whether the trainer took it. Tried again while the trainer is away; reporting twice does no harm."""
        deadline, pause = time.monotonic() + REPORT_SECONDS, 0.5
        while True:
            try:
                reply = await self.http.post("/report", json=report)
                if reply.status_code < 500 and reply.status_code != 429:
                    return reply.status_code == 200 and bool(reply.json()["accepted"])
            except httpx.HTTPError as error:
                self._is_away(error)
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_SECONDS)

    def _is_away(self, error: Exception) -> None:
        if self.away_since is None:
            self.away_since = time.monotonic()
            self._say(f"the trainer does not answer ({type(error).__name__}); waiting for it")

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self.name}: {text}", flush=True)


if __name__ == "__main__":
    main()
