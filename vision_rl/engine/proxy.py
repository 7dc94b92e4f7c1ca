"""Agent Lightning's LLM proxy with a trace that is written before the reply leaves, and that holds no pictures.

Stock 0.3.0 exports OpenTelemetry spans after the reply (they land 10 to 85 ms late, and are lost for requests that its
header scan misses) and stores every `data:` URI (2.7 MB a rollout for a megapixel). Here each call adds one small span
(`trace.py`) to the store inside the request: when the agent has its answer, the trace is complete. A span that cannot
be stored fails the request; it is never lost in silence. Calls to vLLM take the short way (`calls.py`), all others
litellm's.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from agentlightning import LLMProxy
from agentlightning.llm_proxy import get_active_llm_proxy
from agentlightning.types import SpanCoreFields, TraceStatus
from agentlightning.utils.server_launcher import ChildEvent, PythonServerLauncherArgs
from litellm.integrations.custom_logger import CustomLogger
from yarl import URL

from vision_rl.data.images import image_size
from vision_rl.engine.access import Access, hide_keys
from vision_rl.engine.calls import CallError, CallRoute, image_urls, turn_of
from vision_rl.engine.claims import ClaimRoutes
from vision_rl.engine.trace import SPAN_NAME, Turn, turn_attributes
from vision_rl.errors import UserError
from vision_rl.orphans import end_with_parent

# Seconds. vLLM's uvicorn closes idle connections after 5 s; litellm would keep them for 120 s and now and then write
# into one that is just closing: HTTP 500 "Connection error". tests/test_proxy.py shows both.
BACKEND_IDLE_SECONDS = 3
HEALTH = "/health/liveliness"  # /health probes the model server, which takes seconds
KNOWN_PICTURES = 10_000
WATCH_SECONDS = 0.5
START_ATTEMPTS = 3

logger = logging.getLogger(__name__)


class TraceCallback(CustomLogger):
    """litellm's way: asks for token ids and log-probabilities, and traces. litellm builds it without arguments."""

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: Any
    ) -> dict[str, Any]:
        for url in image_urls(data.get("messages") or []):
            _refuse(active_proxy().check_address, url)
        if "x-rollout-id" not in _headers(data):
            return data
        return {**data, "return_token_ids": True, "logprobs": True}

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:
        headers = _headers(data)
        if "x-rollout-id" not in headers:  # a plain client without a claimed rollout is served, not traced
            return response
        proxy = active_proxy()
        refs = [proxy.reference(url) for url in image_urls(data["messages"])]
        await proxy.trace(headers["x-rollout-id"], headers["x-attempt-id"], turn_of(response.model_dump(), refs))
        return response


def _headers(data: dict[str, Any]) -> dict[str, str]:
    return {key.lower(): value for key, value in data["proxy_server_request"]["headers"].items()}


def _refuse(check: Any, url: str) -> None:
    from fastapi import HTTPException

    try:
        check(url)
    except CallError as error:
        raise HTTPException(error.status, str(error)) from error


def _picture(url: str) -> bytes:
    """The content of a `data:` URI. Raises `CallError` for what is no picture, or one too large, by its header alone."""
    try:
        content = base64.b64decode(url.partition(",")[2], validate=True)
        image_size(io.BytesIO(content))
    except (ValueError, UserError) as error:
        raise CallError(400, f"a picture is refused: {error}") from error
    return content


def active_proxy() -> VisionProxy:
    """The proxy that this process serves."""
    proxy = get_active_llm_proxy()
    assert isinstance(proxy, VisionProxy)
    return proxy


class VisionProxy(LLMProxy):
    """The proxy of a run; pictures that arrive as `data:` URIs are kept once, by content, in `picture_dir`.

    `media_roots`: the folders from which pictures may be named and served; None allows any, for a proxy on the loopback
    interface. `access_host`: the name under which this machine reaches it; `advertised`: the one under which runners on
    other machines do. `token`: what every request must carry.
    """

    start_seconds = 60.0
    """It takes a second, and ten times that on a machine that has too much to do."""

    def __init__(
        self,
        store: Any,
        picture_dir: Path,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        access_host: str | None = None,
        advertised: str | None = None,
        token: str | None = None,
        media_roots: Sequence[Path] | None = None,
    ) -> None:
        self.picture_dir = picture_dir
        self.media_roots = None if media_roots is None else [Path(os.path.realpath(root)) for root in media_roots]
        self.token = token
        self.advertised = advertised or access_host or host
        self._watch: asyncio.Task[None] | None = None
        self._known: dict[bytes, str] = {}  # sha256 of a data: URI -> its reference
        super().__init__(
            store=store,
            model_list=[],
            middlewares=["rollout_attempt", "stream_conversion", CallRoute, ClaimRoutes],  # type: ignore[list-item]
            callbacks=[TraceCallback],
            # One HTTP 500 puts the only model into a 5 s cool-down in which the other runners get 429.
            litellm_config={
                "router_settings": {"disable_cooldowns": True},
                "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
            },
            launcher_args=PythonServerLauncherArgs(
                host=host,
                access_host=access_host or host,
                port=port,
                launch_mode="mp",
                healthcheck_url=HEALTH,
                startup_timeout=2 * self.start_seconds,
                log_level=logging.WARNING,
            ),
        )
        launcher = self.server_launcher
        launcher.app = Access(launcher.app, token, open_paths=(HEALTH,))  # type: ignore[arg-type, assignment]

    @asynccontextmanager
    async def _serve_context(self) -> AsyncIterator[None]:
        """Runs in the proxy's process, around its server."""
        # Constants that litellm reads from the environment when it is imported, which is long before this.
        import litellm.llms.custom_httpx.http_handler as handler
        import litellm.proxy.proxy_server as server

        hide_keys()
        # Ray mostly ends the children of a worker that dies; this one was seen to stay, with its port and 800 MB.
        end_with_parent(signal.SIGKILL)
        handler.AIOHTTP_KEEPALIVE_TIMEOUT = server.AIOHTTP_KEEPALIVE_TIMEOUT = BACKEND_IDLE_SECONDS
        async with super()._serve_context():
            yield

    async def start(self) -> None:
        """As upstream; a proxy process that dies is replaced, at the same address, for as long as it should run.

        The process is forked from one with threads (the store's, Ray's). Now and then such a child finds a lock that a
        thread held at that moment and that nobody will release (seen once in some hundred starts); upstream waits four
        minutes for it and gives up. Here it is killed and forked again.
        """
        for left in reversed(range(START_ATTEMPTS)):
            try:
                await self._start_once()
                break
            except RuntimeError:
                if not left:
                    raise
                logger.warning("the LLM proxy did not start; trying again")
        self._watch = asyncio.create_task(self._replace_the_dead())

    async def _start_once(self) -> None:
        launcher = self.server_launcher
        starting = asyncio.create_task(super().start())
        done, _ = await asyncio.wait({starting}, timeout=self.start_seconds)
        if not done and launcher._proc is not None and launcher._mp_event_queue is not None:
            launcher._proc.kill()
            # What `start` waits for, in a thread that could not be interrupted.
            launcher._mp_event_queue.put(ChildEvent(kind="error", message="the LLM proxy's process hung"))
        await starting

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await super().stop()

    async def _replace_the_dead(self) -> None:
        launcher = self.server_launcher
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if launcher._proc is None or launcher._proc.is_alive():
                continue
            logger.error("the LLM proxy ended with exit code %s and is replaced", launcher._proc.exitcode)
            launcher._is_running = False
            try:
                await self._start_once()
            except Exception:  # its port may be held for a moment: the next look tries again
                logger.exception("the LLM proxy could not be replaced yet")

    def as_resource(self, *args: Any, **kwargs: Any) -> Any:
        """As upstream, under the advertised name and with the token: what a runner on another machine needs."""
        resource = super().as_resource(*args, **kwargs)
        endpoint = str(URL(resource.endpoint).with_host(self.advertised))
        return resource.model_copy(update={"endpoint": endpoint, "api_key": self.token})

    def servers(self, model: str | None) -> list[tuple[str, str]]:
        """(base URL, name of the model there) of the vLLM servers behind a model name."""
        found = []
        for entry in self.model_list:
            provider, _, name = entry["litellm_params"]["model"].partition("/")
            if entry["model_name"] == model and provider == "hosted_vllm":
                found.append((entry["litellm_params"]["api_base"].rstrip("/"), name))
        return found

    async def trace(self, rollout_id: str, attempt_id: str, turn: Turn) -> None:
        """Put the span of a model call into the store. Raises `UnknownAttempt` if there is no such attempt."""
        now = time.time()
        span = SpanCoreFields(
            name=SPAN_NAME,
            attributes=turn_attributes(turn),
            status=TraceStatus(status_code="OK"),
            start_time=now,
            end_time=now,
        )
        await self.store.record(rollout_id, attempt_id, [span])  # type: ignore[union-attr]

    def reference(self, url: str) -> str:
        """What the trace keeps of a picture's address: a `data:` URI becomes `sha256:<hex>` and a file of that name."""
        if not url.startswith("data:"):
            self.check_address(url)
            return url
        if len(self._known) >= KNOWN_PICTURES:
            self._known.clear()
        key = hashlib.sha256(url.encode()).digest()
        if key not in self._known:
            self._known[key] = self._keep(_picture(url))
        return self._known[key]

    def _keep(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        target = self.picture_dir / digest
        if not target.exists():
            self.picture_dir.mkdir(parents=True, exist_ok=True)
            temporary = target.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(content)
            os.replace(temporary, target)
        return f"sha256:{digest}"

    def check_address(self, url: str) -> None:
        """Raise `CallError` for a picture that this proxy must not fetch or have fetched."""
        if url.startswith("data:"):
            _picture(url)
            return
        scheme = urlsplit(url).scheme
        if self.media_roots is None:
            return
        if scheme != "file" or not self.may_read(Path(unquote(urlsplit(url).path))):
            raise CallError(403, "pictures must be data: URIs, or files in the data directory of the run")

    def may_read(self, path: Path) -> bool:
        """Whether a file lies in the run's media roots, symbolic links followed."""
        real = Path(os.path.realpath(path))
        return self.media_roots is None or any(real.is_relative_to(root) for root in self.media_roots)
