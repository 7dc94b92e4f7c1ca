"""verl's SGLang server, completed for training from its chat endpoint. Written against SGLang 0.5.5 and verl 0.6.1.

What stock lacks, each shown by `tests/test_e2e_sglang.py`:
- token ids: the chat endpoint returns none, and training is built from exactly the tokens that were read and written;
- the actor's pixels: SGLang resizes pictures by itself before the model's processor does (multimodal/processors/qwen_vl.py:315,
  in steps of 28 pixels also where the model works in 32), drops transparency, cannot open `file://` addresses;
- the template: SGLang takes one of its own for some names of model folders (parser/conversation.py:481);
- a cache that follows the weights: embeddings of pictures outlive an update of the vision tower (managers/mm_utils.py:389);
- attention backends of GPUs other than Hopper: verl asks for FlashAttention 3 in any case.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import multiprocessing as mp
import os
import time
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import ray
import torch
from fastapi.responses import ORJSONResponse
from PIL import Image
from sglang.srt.entrypoints import http_server
from sglang.srt.entrypoints.openai.protocol import ChatCompletionResponse
from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
from sglang.srt.managers.template_manager import TemplateManager
from sglang.srt.multimodal.processors import base_processor, qwen_vl
from verl.workers.rollout.replica import RolloutReplicaRegistry
from verl.workers.rollout.sglang_rollout import async_sglang_server

from vision_rl.data.images import open_image
from vision_rl.engine import sglang_cpu
from vision_rl.engine.sglang_arguments import DeviceArguments

WATCH_SECONDS = 1.0
_VerlServer = async_sglang_server.SGLangHttpServer.__ray_metadata__.modified_class


def name_the_model(processor: Any) -> None:
    """Give SGLang's picture processor the model's type, by which it chooses how positions are counted.

    transformers 4.57 answers with the type of the text part for a Qwen2.5-VL that it has saved itself, and SGLang knows none
    of that name ("Unimplemented model type: qwen2_5_vl_text").
    """
    if hasattr(processor, "model_type"):
        processor.model_type = type(processor.hf_config).model_type


class TokenChat(OpenAIServingChat):
    """SGLang's chat endpoint with `prompt_token_ids` and the choice's `token_ids`, as vLLM returns them."""

    def __init__(self, tokenizer_manager: Any, template_manager: Any) -> None:
        super().__init__(tokenizer_manager, template_manager)
        create = tokenizer_manager._create_tokenized_object

        def keep_prompt(request: Any, text: Any, input_ids: Any, *rest: Any) -> Any:
            # After the processor: every picture's placeholder stands as often as the picture has tokens.
            request.prompt_token_ids = list(input_ids)
            return create(request, text, input_ids, *rest)

        tokenizer_manager._create_tokenized_object = keep_prompt

    async def _handle_non_streaming_request(self, adapted_request: Any, request: Any, raw_request: Any) -> Any:
        if request.n > 1:
            return await super()._handle_non_streaming_request(adapted_request, request, raw_request)
        try:
            generated = await self.tokenizer_manager.generate_request(adapted_request, raw_request).__anext__()
        except ValueError as error:
            return self.create_error_response(str(error))
        reply = self._build_chat_response(request, [generated], int(time.time()))
        if not isinstance(reply, ChatCompletionResponse):
            return reply
        content = reply.model_dump()
        content["prompt_token_ids"] = adapted_request.prompt_token_ids
        content["choices"][0]["token_ids"] = generated["output_ids"]
        return ORJSONResponse(content)


async def end_with_any(processes: Sequence[mp.process.BaseProcess]) -> None:
    """End this process once one of SGLang's own has died: it would go on to accept requests and answer none."""
    while all(process.is_alive() for process in processes):
        await asyncio.sleep(WATCH_SECONDS)
    os._exit(1)


def see_as_the_actor(limits: dict[str, int], media_root: str | None) -> None:
    """Let SGLang open and process pictures exactly as `Pixels` does for the actor. Changes this process.

    limits: the processor's min_pixels and max_pixels; media_root: the folder that `file://` addresses may name.
    """
    process = base_processor.BaseMultimodalProcessor.process_mm_data

    def with_limits(self: Any, *args: Any, **kwargs: Any) -> Any:
        return process(self, *args, **limits, **kwargs)

    async def as_it_is(image: Image.Image, *_args: Any) -> Image.Image:
        return image

    def load(address: Any) -> tuple[Image.Image, None]:
        return picture(getattr(address, "url", address), media_root), None

    base_processor.BaseMultimodalProcessor.process_mm_data = with_limits
    base_processor.load_image = load
    qwen_vl.resize_image_async = as_it_is


def picture(address: str, media_root: str | None) -> Image.Image:
    """The picture at a `data:` URI or at a `file://` address below `media_root`. Raises `ValueError` for any other."""
    if address.startswith("data:"):
        return open_image(io.BytesIO(b64decode(address.partition(",")[2], validate=True)))
    path = Path(os.path.realpath(unquote(urlsplit(address).path)))
    if not address.startswith("file://") or media_root is None or not path.is_relative_to(os.path.realpath(media_root)):
        raise ValueError("pictures must be data: URIs, or files in the data directory of the run")
    return open_image(path)


@ray.remote(num_cpus=1)
class VisionSGLangServer(_VerlServer):  # type: ignore[misc, valid-type]
    """verl's server; also reads the three engine arguments that SGLang does not have (schema.SGLANG_OWN)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with sglang_cpu.no_gpu_needed():
            super().__init__(*args, **kwargs)

    async def launch_server(self, master_address: str | None = None, master_port: int | None = None) -> None:
        arguments = self.config.engine_kwargs["sglang"]
        see_as_the_actor(arguments.pop("mm_processor_kwargs", {}), arguments.pop("allowed_local_media_path", None))
        os.environ["SGLANG_VLM_CACHE_SIZE_MB"] = str(arguments.pop("mm_embedding_cache_mb"))  # the scheduler reads it
        TemplateManager.guess_chat_template_from_model_path = lambda *_: None
        http_server.OpenAIServingChat = TokenChat
        # Ray wraps the methods of a decorated class and sends it by value, with the globals that they read.
        upstream = inspect.unwrap(_VerlServer.launch_server).__globals__
        upstream["ServerArgs"] = DeviceArguments
        if not torch.cuda.is_available():
            upstream["_set_envs_and_config"] = sglang_cpu.fork_scheduler
        await super().launch_server(master_address, master_port)
        if self.node_rank == 0:
            if not torch.cuda.is_available():
                sglang_cpu.process_pictures_on_cpu(self.tokenizer_manager)
            name_the_model(self.tokenizer_manager.mm_processor)
        self.watch = asyncio.create_task(end_with_any(mp.active_children()))


def register() -> None:
    """Make verl use `VisionSGLangServer` where the configuration says `rollout.name=sglang`."""
    async_sglang_server.SGLangHttpServer = VisionSGLangServer
    RolloutReplicaRegistry.register("sglang", lambda: async_sglang_server.SGLangReplica)
