"""Send one image through server, proxy, trace and pixels of a rollout, and compare the log-probabilities once.

The model is served by the run's engine, the agent asks it through the run's own store and proxy, and the trace is fed to
the model in transformers with pixels rebuilt from it. If both agree, what the trainer will compute is what the server
sampled.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from vision_rl.config.resolve import Resolved
from vision_rl.errors import UserError
from vision_rl.models.pixels import Pixels
from vision_rl.models.processor import load_processor, vision_token_ids
from vision_rl.preflight.finding import Finding
from vision_rl.rollout.trace import Turn, turns_from_spans
from vision_rl.serving.serve import MODEL_NAME, serve, serve_sglang
from vision_rl.tasks import answer

MISMATCH_NATS = 0.1
"""The mean difference above which something other than rounding is at work, where the preset names no limit."""


def end_to_end(resolved: Resolved, row: Mapping[str, Any], cpu: bool) -> list[Finding]:
    """Findings for server, proxy and trace, reward, image tokens, and the log-probabilities."""
    name = str(resolved.verl["actor_rollout_ref"]["model"]["path"])
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        with _served(resolved, cpu) as url:
            task = {**row, "settings": dataclasses.asdict(resolved.agents[row["task"]])}
            turns, reply, reward = asyncio.run(_ask(url, task, Path(folder)))
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
    videos = any(agent.video == "native" for agent in resolved.agents.values())
    return serve(name, cpu=cpu, max_model_len=length, images_per_prompt=images, videos=videos)


async def _ask(url: str, task: Mapping[str, Any], folder: Path) -> tuple[list[Turn], str, Any]:
    """The trace, the reply and the reward of one rollout over a store and a proxy of its own."""
    import agentlightning as agl

    from vision_rl.rollout.addresses import free_port
    from vision_rl.rollout.proxy import VisionProxy
    from vision_rl.rollout.store import VisionStore
    from vision_rl.rollout.store_server import VisionStoreServer

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
    # vLLM is started here without the run's limits, SGLang with all that the run would give it.
    limits = resolved.agent.pixel_limits() if _engine(resolved) == "sglang" else {}
    pixels = Pixels(load_processor(name), folder, limits=limits)
    shown = f"{len(turn.prompt_ids)} prompt and {len(turn.response_ids)} response ids, {len(turn.image_refs)} pictures"
    found = [
        Finding("trace", len(turn.logprobs) == len(turn.response_ids), shown, "the server returns no log-probabilities")
    ]
    vision = vision_token_ids(pixels.processor)
    tokens, expected = sum(map(turn.prompt_ids.count, vision)), pixels.placeholders(turn.image_refs)
    cure = "the processor of the folder is not the one that the server used: check preprocessor_config.json"
    found.append(Finding("image tokens", tokens == expected, f"{tokens} in the prompt, {expected} by the pixels", cure))
    if tokens != expected:
        return found
    limit = resolved.app.integrity.logprob_mismatch_mean or MISMATCH_NATS
    mean, largest = logprob_difference(name, turn, pixels, cpu=cpu)
    text = f"|transformers - {_engine(resolved)}| {mean:.1e} on average, {largest:.1e} at most; limit {limit:g}"
    cure = "the server and transformers compute different models: check versions, dtype and docs/troubleshooting.md"
    return [*found, Finding("log-probabilities", mean <= limit, text, cure)]


def logprob_difference(name: str, turn: Turn, pixels: Pixels, *, cpu: bool) -> tuple[float, float]:
    """Mean and largest |trainer - server| log-probability of the response tokens, in nats, at temperature 1."""
    import torch

    from vision_rl.preflight.parity_actor import bare_engine, load_model, log_probs
    from vision_rl.training.rows import RowBuilder
    from vision_rl.training.samples import Sample

    try:
        engine = bare_engine(load_model(name, cpu=cpu), pixels)
    except (OSError, ValueError) as error:
        raise UserError(f"transformers cannot load {name}: {error}") from error
    builder = RowBuilder(pixels.processor, pixels, max_prompt_length=10**6, max_response_length=10**6)
    mask = [1] * len(turn.response_ids)
    sample = Sample(turn.prompt_ids, turn.response_ids, mask, turn.logprobs, turn.image_refs, 0.0, "", "", 0)
    difference = (log_probs(engine, builder, [sample], 1.0)[0] - torch.tensor(turn.logprobs)).abs()
    return difference.mean().item(), difference.max().item()
