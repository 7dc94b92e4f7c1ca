"""One image through everything that a rollout passes: server, proxy, trace, pixels; then log-probabilities, compared once.

The model is served by the run's engine, the agent asks it through the run's own store and proxy, and the trace is fed to
the model in transformers with pixels rebuilt from it. If both agree, what the trainer will compute is what the server
sampled.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from vision_rl.engine.config import Resolved
from vision_rl.engine.pixels import Pixels
from vision_rl.engine.positions import expected_image_tokens
from vision_rl.engine.trace import Turn, turns_from_spans
from vision_rl.errors import UserError
from vision_rl.finding import Finding
from vision_rl.serving import MODEL_NAME, serve, serve_sglang

MISMATCH_NATS = 0.1
"""The mean difference above which something other than rounding is at work, where the preset names no limit."""


def end_to_end(resolved: Resolved, row: Mapping[str, Any], answer: Callable[..., Any], cpu: bool) -> list[Finding]:
    """Findings for server, proxy and trace, reward, image tokens, and the log-probabilities."""
    name = str(resolved.verl["actor_rollout_ref"]["model"]["path"])
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        with _served(resolved, cpu) as url:
            task = {**row, "settings": dataclasses.asdict(resolved.agent)}
            turns, reply, reward = asyncio.run(_ask(url, task, answer, Path(folder)))
        found = [
            Finding("server and proxy", True, f"{row['id']} was answered {reply[:60]!r}, reward {reward.value:.3f}")
        ]
        if not turns:
            cure = "the server must be vLLM >= 0.10.2 or an equal that returns token ids"
            return [*found, Finding("trace", False, "the store holds no model call", cure)]
        return [*found, *_compared(name, turns[-1], Path(folder), resolved, cpu)]


def _engine(resolved: Resolved) -> str:
    return str(resolved.verl["actor_rollout_ref"]["rollout"]["name"])


def _served(resolved: Resolved, cpu: bool) -> AbstractContextManager[str]:
    """The base URL of the model on the engine that the run would use."""
    actor_rollout, data = resolved.verl["actor_rollout_ref"], resolved.verl["data"]
    if _engine(resolved) == "sglang":
        return serve_sglang(actor_rollout, cpu=cpu)
    length = data["max_prompt_length"] + data["max_response_length"]
    name, images = str(actor_rollout["model"]["path"]), resolved.app.images_per_prompt
    return serve(name, cpu=cpu, max_model_len=length, images_per_prompt=images)


async def _ask(
    url: str, task: Mapping[str, Any], answer: Callable[..., Any], folder: Path
) -> tuple[list[Turn], str, Any]:
    """The trace, the reply and the reward of one rollout over a store and a proxy of its own."""
    import agentlightning as agl

    from vision_rl.engine.proxy import VisionProxy
    from vision_rl.engine.reach import free_port
    from vision_rl.engine.store import VisionStore
    from vision_rl.engine.store_server import VisionStoreServer

    store = VisionStoreServer(VisionStore(), host="127.0.0.1", port=free_port())
    await store.start()
    proxy = VisionProxy(store, folder, port=free_port())
    proxy.update_model_list(
        [{"model_name": MODEL_NAME, "litellm_params": {"model": f"hosted_vllm/{MODEL_NAME}", "api_base": url}}]
    )
    try:
        await proxy.start()
        rollout = await store.start_rollout(input=dict(task))
        base = f"{proxy.access_endpoint}/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}"
        llm = agl.LLM(endpoint=base, model=MODEL_NAME, sampling_parameters={"temperature": 1.0})
        reply, reward = await answer(dict(task), llm)
        return turns_from_spans(list(await store.query_spans(rollout.rollout_id))), reply, reward
    finally:
        await proxy.stop()
        await store.stop()


def _compared(name: str, turn: Turn, folder: Path, resolved: Resolved, cpu: bool) -> list[Finding]:
    """Findings on the trace and on |transformers - server| over its response."""
    from verl.utils import hf_processor

    from vision_rl.engine.task_runner import processor_options

    processor = hf_processor(name, **processor_options(name))
    # vLLM is started here without the run's limits, SGLang with all that the run would give it.
    limits = resolved.agent.pixel_limits() if _engine(resolved) == "sglang" else {}
    inputs = Pixels(processor, folder, limits=limits).inputs(turn.image_refs)
    shown = f"{len(turn.prompt_ids)} prompt and {len(turn.response_ids)} response ids, {len(turn.image_refs)} pictures"
    found = [
        Finding("trace", len(turn.logprobs) == len(turn.response_ids), shown, "the server returns no log-probabilities")
    ]
    if "image_grid_thw" in inputs:
        expected = expected_image_tokens(processor, inputs["image_grid_thw"])
        tokens = turn.prompt_ids.count(processor.image_token_id)
        cure = "the processor of the folder is not the one that the server used: check preprocessor_config.json"
        found.append(
            Finding("image tokens", tokens == expected, f"{tokens} in the prompt, {expected} by the pixels", cure)
        )
        if tokens != expected:
            return found
    limit = resolved.app.integrity.logprob_mismatch_mean or MISMATCH_NATS
    mean, largest = logprob_difference(name, turn, inputs, cpu=cpu)
    text = f"|transformers - {_engine(resolved)}| {mean:.1e} on average, {largest:.1e} at most; limit {limit:g}"
    cure = "the server and transformers compute different models: check versions, dtype and docs/troubleshooting.md"
    return [*found, Finding("log-probabilities", mean <= limit, text, cure)]


def logprob_difference(name: str, turn: Turn, inputs: Mapping[str, Any], *, cpu: bool) -> tuple[float, float]:
    """Mean and largest |transformers - server| log-probability of the response tokens, in nats, at temperature 1."""
    import torch
    from transformers import AutoModelForImageTextToText

    device, dtype = ("cpu", torch.float32) if cpu else ("cuda", torch.bfloat16)
    try:
        model = (
            AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, attn_implementation="sdpa").to(device).eval()
        )
    except (OSError, ValueError) as error:
        raise UserError(f"transformers cannot load {name}: {error}") from error
    ids = torch.tensor([turn.prompt_ids + turn.response_ids], device=device)
    moved = {key: value.to(device) for key, value in inputs.items()}
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **moved).logits[0].float()
    start = len(turn.prompt_ids)
    sampled = torch.tensor(turn.response_ids, device=device).unsqueeze(-1)
    logprobs = torch.log_softmax(logits[start - 1 : -1], dim=-1).gather(-1, sampled).squeeze(-1)
    difference = (logprobs.cpu() - torch.tensor(turn.logprobs)).abs()
    return difference.mean().item(), difference.max().item()
