"""Agent Lightning's LLM proxy with a trace that is written before the reply leaves, and that holds no pictures.

Stock 0.3.0 exports OpenTelemetry spans after the reply (they land 10 to 85 ms late, and are lost for requests that its
header scan misses) and stores every `data:` URI (2.7 MB a rollout for a megapixel). Here one litellm callback asks the
server for token ids and log-probabilities and adds one small span (`trace.py`) to the store inside the request: when the
agent has its answer, the trace is complete. A span that cannot be stored fails the request; it is never lost in silence.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
from pathlib import Path
from typing import Any

from agentlightning import LLMProxy
from agentlightning.llm_proxy import get_active_llm_proxy
from agentlightning.store.base import LightningStore
from agentlightning.types import Span, SpanCoreFields, TraceStatus
from agentlightning.utils.server_launcher import PythonServerLauncherArgs
from litellm.integrations.custom_logger import CustomLogger

from vision_rl.engine.trace import SPAN_NAME, Turn, turn_attributes

# Seconds. vLLM's uvicorn closes idle connections after 5 s; litellm would keep them for 120 s (AIOHTTP_KEEPALIVE_TIMEOUT)
# and now and then write into one that is just closing: HTTP 500 "Connection error". tests/test_proxy.py shows both.
BACKEND_IDLE_SECONDS = 3


class TraceCallback(CustomLogger):
    """Asks the server for token ids and log-probabilities, and stores them. litellm builds it without arguments."""

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: Any
    ) -> dict[str, Any]:
        return {**data, "return_token_ids": True, "logprobs": True}

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:
        headers = {key.lower(): value for key, value in data["proxy_server_request"]["headers"].items()}
        rollout_id = headers.get("x-rollout-id")
        if rollout_id is None:  # a plain client without a claimed rollout is served, not traced
            return response
        proxy = get_active_llm_proxy()
        assert isinstance(proxy, VisionProxy)
        turn = _turn_of(response.model_dump(), [proxy.reference(url) for url in _image_urls(data["messages"])])
        now = time.time()
        fields = SpanCoreFields(
            name=SPAN_NAME,
            attributes=turn_attributes(turn),
            status=TraceStatus(status_code="OK"),
            start_time=now,
            end_time=now,
        )
        span = Span.from_core_fields(
            fields,
            rollout_id=rollout_id,
            attempt_id=headers["x-attempt-id"],
            sequence_id=int(headers["x-sequence-id"]),
        )
        await proxy.get_store().add_span(span)
        return response


def _image_urls(messages: list[dict[str, Any]]) -> list[str]:
    """The addresses of all pictures of a conversation, in order."""
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    return [part["image_url"]["url"] for part in parts if part.get("type") == "image_url"]


def _turn_of(response: dict[str, Any], image_refs: list[str]) -> Turn:
    """Raises `ValueError` if the server returned no token ids: without them nothing can be trained."""
    if not response.get("choices"):
        raise ValueError("the model server answered without choices")
    choice = response["choices"][0]
    response_ids = (choice.get("provider_specific_fields") or {}).get("token_ids") or choice.get("token_ids")
    if not response.get("prompt_token_ids") or response_ids is None:
        raise ValueError("the model server returned no token ids; it must be vLLM >= 0.10.2 or an equal")
    return Turn(
        prompt_ids=response["prompt_token_ids"],
        response_ids=response_ids,
        logprobs=[token["logprob"] for token in (choice.get("logprobs") or {}).get("content") or []],
        image_refs=image_refs,
        text=choice["message"].get("content") or "",
        finish_reason=choice.get("finish_reason") or "",
    )


class VisionProxy(LLMProxy):
    """The proxy of a run; pictures that arrive as `data:` URIs are kept once, by content, in `picture_dir`."""

    def __init__(
        self, store: LightningStore, picture_dir: Path, *, host: str = "127.0.0.1", port: int | None = None
    ) -> None:
        self.picture_dir = picture_dir
        os.environ["AIOHTTP_KEEPALIVE_TIMEOUT"] = str(BACKEND_IDLE_SECONDS)
        super().__init__(
            store=store,
            model_list=[],
            callbacks=[TraceCallback],
            # One HTTP 500 puts the only model into a 5 s cool-down in which the other runners get 429.
            litellm_config={"router_settings": {"disable_cooldowns": True}},
            launcher_args=PythonServerLauncherArgs(
                host=host,
                access_host=host,
                port=port,
                launch_mode="mp",
                healthcheck_url="/health/liveliness",  # /health probes the model server, which takes seconds
                startup_timeout=120.0,
            ),
        )

    def reference(self, url: str) -> str:
        """What the trace keeps of a picture's address: a `data:` URI becomes `sha256:<hex>` and a file of that name."""
        if not url.startswith("data:"):
            return url
        content = base64.b64decode(url.partition(",")[2])
        digest = hashlib.sha256(content).hexdigest()
        target = self.picture_dir / digest
        if not target.exists():
            self.picture_dir.mkdir(parents=True, exist_ok=True)
            temporary = target.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(content)
            os.replace(temporary, target)
        return f"sha256:{digest}"
