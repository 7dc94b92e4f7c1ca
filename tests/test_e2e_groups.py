"""Choices of a joint request against single requests, asked of vLLM itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from agentlightning.types import EnqueueRolloutRequest
from scipy import stats

from scripts.engine_stack import Stack
from vision_rl.agent.messages import image_url, user_message
from vision_rl.agent.prompts import vqa_text
from vision_rl.data.schema import read_rows
from vision_rl.serving.serve import MODEL_NAME, serve
from vision_rl.tiny import checkpoint_dir, write_tasks

pytestmark = pytest.mark.e2e
GROUP, GROUPS = 50, 40
AT_ONCE = 200
"""Requests under way at a time; each is a connection."""


def answers(stack: Stack, body: dict[str, object], names: list[str]) -> Counter[str]:
    """The replies to one sampled call of a rollout of each of the groups with these names."""
    requests = [EnqueueRolloutRequest(input={}, metadata={"data_id": name}) for name in names]
    stack.call(stack.store.enqueue_many_rollouts(requests))
    claimed = stack.call(stack.memory.dequeue_many_rollouts(limit=len(names)))
    paths = [f"/rollout/{one.rollout_id}/attempt/{one.attempt.attempt_id}/v1/chat/completions" for one in claimed]

    async def ask(session: aiohttp.ClientSession, gate: asyncio.Semaphore, path: str) -> str:
        async with gate, session.post(stack.address + path, json=body) as response:
            reply = await response.json()
            assert response.status == 200, reply
            return str(reply["choices"][0]["message"]["content"])

    async def ask_all() -> list[str]:
        gate = asyncio.Semaphore(AT_ONCE)
        async with aiohttp.ClientSession() as session:
            return await asyncio.gather(*(ask(session, gate, path) for path in paths))

    return Counter(asyncio.run(ask_all()))


def counted(counts: Counter[str], words: list[str]) -> list[int]:
    """How often each of the words was said, and how often anything else."""
    return [*(counts[word] for word in words), sum(n for word, n in counts.items() if word not in words)]


def test_joined_choices_are_distributed_as_single_ones(tmp_path: Path) -> None:
    """2,000 samples each way of one question about one picture; p below 0.001 would be chance once in a thousand runs."""
    row = read_rows(write_tasks(tmp_path, "vqa")["val"])[0]
    message = user_message(vqa_text(row["question"]), [image_url(row["image_paths"][0], "file")])
    body: dict[str, object] = {"model": MODEL_NAME, "messages": [message], "temperature": 1.0, "max_tokens": 2}
    with serve(checkpoint_dir(), cpu=True, max_model_len=256, media_root=str(tmp_path)) as url:
        stack = Stack(url, tmp_path / "pictures", media_roots=[tmp_path])
        parameters = {"model": f"hosted_vllm/{MODEL_NAME}", "api_base": url}
        stack.proxy.update_model_list([{"model_name": MODEL_NAME, "litellm_params": parameters}])
        try:
            joint = answers(stack, body, [f"group {number // GROUP}" for number in range(GROUP * GROUPS)])
            alone = answers(stack, body, [f"alone {number}" for number in range(GROUP * GROUPS)])
        finally:
            stack.close()
    assert joint.total() == alone.total() == GROUP * GROUPS
    # A chi-squared test wants five expected samples in each cell: what is rarer is counted together.
    words = [word for word, count in (joint + alone).items() if count >= 10]
    rows = (counted(joint, words), counted(alone, words))
    table = [column for column in zip(*rows, strict=True) if sum(column)]
    assert len(words) >= 3, "the question must leave the model in doubt"
    assert stats.chi2_contingency(table).pvalue > 0.001, table
