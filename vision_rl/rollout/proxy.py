"""The LLM proxy of a run: a process of its own between agents and model servers (`proxy_server.py`), kept alive here.

It has the interface of Agent Lightning 0.3.0's `LLMProxy` as far as a trainer uses it, and is no subclass of it: that
one is litellm's server, with hundreds of routes, its vulnerabilities and seconds of import, it is forked from a process
with threads (which hung now and then), exports its spans after the reply and stores every `data:` URI. Here the
process is a fresh one, spans are small and stored before the reply (`model_calls.py`), and equal calls of a group are one
(`groups.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson
from yarl import URL

from vision_rl.rollout.proxy_server import READY

START_ATTEMPTS = 3
STOP_SECONDS = 5.0
WATCH_SECONDS = 0.2

logger = logging.getLogger(__name__)


class ServedStore(Protocol):
    """A run's store as another process finds it: `VisionStoreServer`, or `VisionStoreClient` of one elsewhere."""

    token: str | None

    @property
    def endpoint(self) -> str:
        """Its address, without Agent Lightning's prefix."""
        ...


class VisionProxy:
    """The proxy of a run; pictures that arrive as `data:` URIs are kept once, by content, in `picture_dir`.

    `media_roots`: the folders from which pictures may be named and served; None allows any file, for a proxy on the
    loopback interface. `access_host`: the name under which this machine reaches it; `advertised`: the one under which
    runners on other machines do. `token`: what every request must carry. `structured_output`: agent.structured_output.
    """

    start_seconds = 60.0
    """It takes a second, and ten times that on a machine that has too much to do."""
    module = "vision_rl.rollout.proxy_server"

    def __init__(
        self,
        store: ServedStore,
        picture_dir: Path,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        access_host: str | None = None,
        advertised: str | None = None,
        token: str | None = None,
        media_roots: Sequence[Path] | None = None,
        structured_output: str = "refuse",
    ) -> None:
        self.store, self.picture_dir, self.token = store, picture_dir, token
        self.host, self.port = host, port
        self.access_host = access_host or host
        self.advertised = advertised or self.access_host
        self.media_roots = media_roots
        self.structured_output = structured_output
        self.model_list: list[dict[str, Any]] = []
        self.process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._watch: threading.Thread | None = None

    @property
    def server_launcher(self) -> VisionProxy:
        """Agent Lightning asks `server_launcher.access_endpoint`."""
        return self

    @property
    def access_endpoint(self) -> str:
        """The base URL under which this machine reaches the proxy."""
        return str(URL.build(scheme="http", host=self.access_host, port=self.port)).rstrip("/")

    def update_model_list(self, model_list: Sequence[dict[str, Any]]) -> None:
        """Which model servers to use from now on, as Agent Lightning writes them; a running proxy takes them at once.

        Raises `ValueError` for another provider than vLLM ("hosted_vllm/...").
        """
        self.model_list = list(model_list)
        self._tell({"servers": self._servers()})

    def weights_changed(self) -> None:
        """Say that the model servers have new weights: choices that were sampled ahead for a group are dropped."""
        self._tell({"weights": True})

    def as_resource(self, model: str | None = None, sampling_parameters: dict[str, Any] | None = None) -> Any:
        """An `agentlightning.ProxyLLM` under the advertised name and with the token, for runners anywhere.

        model: None if all model servers serve the same. Raises `ValueError` if that does not name one.
        """
        from agentlightning.types import ProxyLLM

        names = {entry["model_name"] for entry in self.model_list} if model is None else {model}
        if len(names) != 1:
            raise ValueError(f"the proxy serves {sorted(names) or 'no model'}; name one")
        endpoint = str(URL(self.access_endpoint).with_host(self.advertised)).rstrip("/")
        return ProxyLLM(
            endpoint=endpoint,
            model=names.pop(),
            sampling_parameters=dict(sampling_parameters or {}),
            api_key=self.token,
        )

    async def start(self) -> None:
        """Start the process and wait until it serves; one that dies is replaced, at the same address.

        The listening socket belongs to this process: whoever connects meanwhile waits. Raises `RuntimeError` if no
        process comes up, `OSError` if the port is taken.
        """
        await asyncio.to_thread(self._start)

    async def stop(self) -> None:
        """End the process and give the port back."""
        await asyncio.to_thread(self._stop)

    def _start(self) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._socket = socket.create_server((self.host, self.port or 0), family=family, backlog=2048)
        self.port = self._socket.getsockname()[1]
        self._stopping.clear()
        for left in reversed(range(START_ATTEMPTS)):
            if self._launch():
                break
            if not left:
                self._stop()
                raise RuntimeError("the LLM proxy did not start; the lines above say why")
            logger.warning("the LLM proxy did not start; trying again")
        self._watch = threading.Thread(target=self._replace_the_dead, name="LLM proxy", daemon=True)
        self._watch.start()

    def _stop(self) -> None:
        self._stopping.set()
        if self._watch is not None and self._watch is not threading.current_thread():
            self._watch.join(self.start_seconds)
        self._end()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _launch(self) -> bool:
        """Start a process; whether it serves in time. One that does not is ended."""
        assert self._socket is not None
        number = self._socket.fileno()
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        with self._lock:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(number,),
                start_new_session=True,  # in a terminal the main process decides what Ctrl-C means
                env={**os.environ, "PYTHONPATH": path},
            )
        self._tell(self._config(number))
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], self.start_seconds)
        if readable and self.process.stdout.readline() == READY:
            return True
        self._end()
        return False

    def _config(self, number: int) -> dict[str, Any]:
        return {
            "socket": number,
            "store": self.store.endpoint,
            "store_token": self.store.token,
            "token": self.token,
            "picture_dir": str(self.picture_dir),
            "media_roots": None if self.media_roots is None else [str(root) for root in self.media_roots],
            "servers": self._servers(),
            "structured_output": self.structured_output,
        }

    def _servers(self) -> list[dict[str, Any]]:
        servers = []
        for entry in self.model_list:
            parameters = entry["litellm_params"]
            provider, _, name = parameters["model"].partition("/")
            if provider != "hosted_vllm":
                raise ValueError(f"the proxy serves vLLM servers only, not {provider}")
            url, key = parameters["api_base"].rstrip("/"), parameters.get("api_key")
            servers.append({"model": entry["model_name"], "url": url, "name": name, "key": key})
        return servers

    def _tell(self, message: dict[str, Any]) -> None:
        """A line to the process, if there is one; a new one gets all of them."""
        with self._lock:
            if self.process is None or self.process.poll() is not None or self.process.stdin is None:
                return
            try:
                self.process.stdin.write(orjson.dumps(message) + b"\n")
                self.process.stdin.flush()
            except OSError:  # it has just died, and its successor gets the line
                return

    def _end(self) -> None:
        with self._lock:
            if self.process is None:
                return
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process = None

    def _replace_the_dead(self) -> None:
        while not self._stopping.wait(WATCH_SECONDS):
            if self.process is not None and self.process.poll() is None:
                continue
            if self.process is not None:
                logger.error("the LLM proxy ended with exit code %s and is replaced", self.process.returncode)
            if not self._launch():
                logger.error("the LLM proxy could not be replaced yet")
                time.sleep(WATCH_SECONDS)
