"""VQA by a pydantic-ai agent that may measure a region of the picture; it speaks OpenAI's Responses protocol, as `openai:` does.

    uv pip install --target build/pydantic-ai --constraints pins.txt "pydantic-ai-slim[openai]==2.68.0"
    PYTHONPATH=build/pydantic-ai python train_agent.py --task examples/frameworks/pydantic_ai_vqa.py

docs/frameworks.md says what pins.txt is, and what all frameworks have in common.
"""

from __future__ import annotations

from typing import Any

from vision_rl.agent.client import connection
from vision_rl.agent.lightning import agl
from vision_rl.agent.media import show, size_limits
from vision_rl.agent.openai_client import shared_client
from vision_rl.agent.prompts import vqa_text
from vision_rl.agent.tools import ToolBox
from vision_rl.answers.parsing import ToolCall
from vision_rl.settings import AgentSettings
from vision_rl.tasks import Task
from vision_rl.types import LLM, Reward
from vqa_agent import gold, score


@agl.rollout
async def pydantic_ai_agent(task: dict[str, Any], llm: agl.LLM) -> None:
    """One rollout: ask about the picture, emit the reward with its named components."""
    _, reward = await answer(task, llm)
    agl.emit_reward(reward.named(), primary_key="reward")


async def ask(task: dict[str, Any], llm: LLM) -> str:
    """The agent's output; nothing where it called tools until its turns were over."""
    from pydantic_ai import Agent, ImageUrl, UsageLimitExceeded, UsageLimits
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    settings = AgentSettings.of(task)
    box = ToolBox(task["image_paths"], task["meta"], size_limits(settings))
    base_url, api_key, _ = connection(llm)
    # A provider of its own address would open a client per rollout; this one shares the process' connections.
    client = shared_client(trainer=True).with_options(base_url=base_url, api_key=api_key)
    model = OpenAIResponsesModel(llm.model, provider=OpenAIProvider(openai_client=client))
    agent = Agent(model, model_settings={"max_tokens": settings.max_tokens, **llm.sampling_parameters})

    @agent.tool_plain
    def inspect(x1: float, y1: float, x2: float, y2: float) -> str:
        """Measure a region: size, mean colour, contrast. Coordinates are shares of width and height."""
        return box.run(ToolCall("inspect_element", {"region": [x1, y1, x2, y2], "type": "properties"})).text

    pictures = [ImageUrl(shown.url) for shown in show(task["image_paths"], settings, task["image_sizes"])]
    question = vqa_text(task["question"], task.get("choices", ()))
    try:
        done = await agent.run([*pictures, question], usage_limits=UsageLimits(request_limit=settings.max_turns))
    except UsageLimitExceeded:
        return ""
    return str(done.output)


async def answer(task: dict[str, Any], llm: LLM) -> tuple[str, Reward]:
    """Ask the agent and score its reply."""
    reply = await ask(task, llm)
    return reply, score(task, reply)


TASK = Task(
    name="pydantic_ai_vqa",
    agent=pydantic_ai_agent,
    answer=answer,
    rewards=("vqa",),
    defaults={"agent.tool_protocol": "function", "agent.max_turns": 2, "agent.max_tool_calls": 1},
    score=score,
    gold=gold,
    synthetic="vision_rl.tiny.tasks:vqa_example",
)
