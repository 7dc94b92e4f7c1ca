"""verl's SGLang server, extended to train from its chat endpoint. Written for SGLang 0.5.12 and verl 0.9.1.

What stock lacks, each shown by `tests/test_e2e_sglang.py`:
- token ids: the chat endpoint returns none, and training is built from exactly the tokens that were read and written;
- several choices about pictures: SGLang refuses two pictures, and dies at the second choice about one (`own_pixels`);
- the actor's pictures: SGLang drops transparency, and opens any file and any address (`see_as_the_actor`);
- the template: SGLang takes one of its own for some names of model folders (parser/conversation.py);
- a key: verl starts the HTTP server without one, and it takes weights from whoever reaches it;
- a CPU: verl asks for FlashInfer and the memory saver, and SGLang for three processes that each import it anew.
`sglang_scheduler.py` has the model's side.
"""

from __future__ import annotations

import copy
import functools
import io
import multiprocessing as mp
import os
import time
from base64 import b64decode
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import ray
import sglang.srt.entrypoints.engine
import torch
from fastapi.responses import ORJSONResponse
from PIL import Image
from sglang.srt.entrypoints import http_server
from sglang.srt.entrypoints.openai.protocol import ChatCompletionResponse
from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
from sglang.srt.managers import tokenizer_manager as tokenizer_module
from sglang.srt.managers.mm_utils import wrap_shm_features
from sglang.srt.managers.template_manager import TemplateManager
from sglang.srt.multimodal.processors import base_processor
from sglang.srt.utils.auth import add_api_key_middleware
from verl.workers.rollout.sglang_rollout import async_sglang_server

from vision_rl.media.images import open_image
from vision_rl.models.processor import load_processor
from vision_rl.platform.environment import SERVER_KEY
from vision_rl.serving.banned_tokens import banned_tokens
from vision_rl.serving.sglang_scheduler import run_scheduler

CPU_ARGUMENTS = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "mm_attention_backend": "sdpa",
    "sampling_backend": "pytorch",
    "disable_overlap_schedule": True,
    "enable_memory_saver": False,
    "sleep_on_idle": True,  # else the scheduler spins and takes a core from the actor
    "max_total_tokens": 65_536,  # of the KV cache; SGLang would take a share of the main memory, as if it were a GPU's
}

_prompt: ContextVar[list[int]] = ContextVar("prompt")
"""The prompt's ids of the chat request that the current task answers."""


class TokenChat(OpenAIServingChat):
    """SGLang's chat endpoint with `prompt_token_ids` and every choice's `token_ids`, as vLLM returns them."""

    def __init__(self, tokenizer_manager: Any, template_manager: Any) -> None:
        super().__init__(tokenizer_manager, template_manager)
        create = tokenizer_manager._create_tokenized_object

        def keep_prompt(request: Any, text: Any, input_ids: Any, *rest: Any, **named: Any) -> Any:
            # After the processor: every picture's placeholder stands as often as the picture has tokens.
            _prompt.get([])[:] = input_ids
            return create(request, text, input_ids, *rest, **named)

        tokenizer_manager._create_tokenized_object = keep_prompt

    async def _handle_non_streaming_request(self, adapted_request: Any, request: Any, raw_request: Any) -> Any:
        _prompt.set([])
        if request.n > 1 and adapted_request.image_data:
            # SGLang takes the pictures of one prompt with several choices for those of several prompts, and refuses two.
            adapted_request.image_data = [adapted_request.image_data]
        try:
            generated = await self.tokenizer_manager.generate_request(adapted_request, raw_request).__anext__()
        except ValueError as error:
            return self.create_error_response(str(error))
        choices = generated if isinstance(generated, list) else [generated]
        reply = self._build_chat_response(request, choices, int(time.time()))
        if not isinstance(reply, ChatCompletionResponse):
            return reply
        content = reply.model_dump()
        content["prompt_token_ids"] = _prompt.get()
        for choice, one in zip(content["choices"], choices, strict=True):
            choice["token_ids"] = one["output_ids"]
        return ORJSONResponse(content)


def see_as_the_actor(media_root: str | None) -> None:
    """Let SGLang open pictures as the actor does. Changes this process. media_root: the folder that `file://` may name."""

    def load(address: Any, *_: Any) -> tuple[Image.Image, None]:
        return picture(getattr(address, "url", address), media_root), None

    base_processor.load_image = load


def picture(address: str, media_root: str | None) -> Image.Image:
    """The picture at a `data:` URI or at a `file://` address below `media_root`. Raises `ValueError` for any other."""
    if address.startswith("data:"):
        return open_image(io.BytesIO(b64decode(address.partition(",")[2], validate=True)))
    path = Path(os.path.realpath(unquote(urlsplit(address).path)))
    if not address.startswith("file://") or media_root is None or not path.is_relative_to(os.path.realpath(media_root)):
        raise ValueError("pictures must be data: URIs, or files in the data directory of the run")
    return open_image(path)


def own_pixels(request: Any) -> Any:
    """In place of SGLang's `wrap_shm_features`, which puts a request's pixels into shared memory once for all its choices:
    the scheduler frees them after the first, and dies at the second (FileNotFoundError, psm_...)."""
    if getattr(request, "mm_inputs", None):
        request.mm_inputs = copy.copy(request.mm_inputs)
        request.mm_inputs.mm_items = [copy.copy(item) for item in request.mm_inputs.mm_items]
    return wrap_shm_features(request)


def fork_processes(_arguments: Any) -> None:
    """In place of verl's `_set_envs_and_config`, which spawns for CUDA's sake: a fork needs no second import of SGLang."""
    mp.set_start_method("fork", force=True)


class VisionSGLangServer(async_sglang_server.SGLangHttpServer):
    """verl's server; also reads the engine arguments that SGLang does not have (config/known_keys.py, SGLANG_OWN)."""

    async def launch_server(self, master_address: str | None = None, master_port: int | None = None) -> None:
        arguments = self.config.engine_kwargs["sglang"]
        see_as_the_actor(arguments.pop("allowed_local_media_path", None))
        if limits := arguments.pop("mm_processor_kwargs", None):
            arguments["mm_process_config"] = {"image": dict(limits)}
        os.environ["SGLANG_VLM_CACHE_SIZE_MB"] = str(arguments.pop("mm_embedding_cache_mb"))  # the scheduler reads it
        # /health would generate a token; a dead scheduler ends this process by SGLang's own watchdog.
        os.environ["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] = "0"
        TemplateManager.guess_chat_template_from_model_path = lambda *_: None
        http_server.OpenAIServingChat = TokenChat
        tokenizer_module.wrap_shm_features = own_pixels
        path = self.model_config.local_path
        banned = banned_tokens(path, load_processor(path, self.model_config.trust_remote_code))
        sglang.srt.entrypoints.engine.run_scheduler_process = functools.partial(run_scheduler, banned)
        if key := os.environ.get(SERVER_KEY):
            add_api_key_middleware(http_server.app, api_key=key, admin_api_key=None)
        if not torch.cuda.is_available():
            async_sglang_server._set_envs_and_config = fork_processes
            for name, value in CPU_ARGUMENTS.items():
                arguments.setdefault(name, value)
        await super().launch_server(master_address, master_port)


class VisionSGLangReplica(async_sglang_server.SGLangReplica):
    """A replica whose HTTP server is ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(VisionSGLangServer)
