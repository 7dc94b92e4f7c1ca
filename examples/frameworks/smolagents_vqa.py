"""VQA by a tool-calling agent of smolagents, which measures a region of the picture and answers by its tool `final_answer`.

    uv pip install --target build/smolagents --constraints pins.txt "smolagents[openai]==1.26.0"
    PYTHONPATH=build/smolagents python train_agent.py --task examples/frameworks/smolagents_vqa.py

docs/frameworks.md says what pins.txt is, and what all frameworks have in common.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from vision_rl.agent.client import connection
from vision_rl.agent.lightning import agl
from vision_rl.agent.media import size_limits
from vision_rl.agent.prompts import vqa_text
from vision_rl.agent.tools import ToolBox
from vision_rl.answers.parsing import ToolCall
from vision_rl.media.images import open_image
from vision_rl.settings import AgentSettings
from vision_rl.tasks import Task
from vision_rl.types import LLM, Reward
from vqa_agent import gold, score

SYSTEM = "Answer the question about the picture. Measure with inspect if you must; answer by calling final_answer."
"""The framework's own system prompt has five pages, which a model of a million parameters cannot read."""


@functools.cache
def http_client() -> Any:
    """smolagents makes a client for every model; this is the pool of connections that all of them share."""
    import openai

    return openai.DefaultHttpxClient(trust_env=False)


@agl.rollout
async def smolagents_agent(task: dict[str, Any], llm: agl.LLM) -> None:
    """One rollout: ask about the picture, emit the reward with its named components."""
    _, reward = await answer(task, llm)
    agl.emit_reward(reward.named(), primary_key="reward")


def ask(task: dict[str, Any], llm: LLM) -> str:
    """What the agent gave to `final_answer`, or said when its steps were over. Blocks: the framework is not asynchronous."""
    from smolagents import LogLevel, OpenAIModel, ToolCallingAgent, tool

    settings = AgentSettings.of(task)
    box = ToolBox(task["image_paths"], task["meta"], size_limits(settings))

    @tool
    def inspect(x1: float, y1: float, x2: float, y2: float) -> str:
        """Measure a region: size, mean colour, contrast. Coordinates are shares of width and height.

        Args:
            x1: left
            y1: top
            x2: right
            y2: bottom
        """
        return box.run(ToolCall("inspect_element", {"region": [x1, y1, x2, y2], "type": "properties"})).text

    base_url, api_key, _ = connection(llm)
    model = OpenAIModel(
        llm.model,
        base_url,
        api_key,
        client_kwargs={"http_client": http_client(), "timeout": settings.timeout_seconds},
        tool_choice="auto",  # its default, "required", forces tokens that the policy did not choose
        **{"max_tokens": settings.max_tokens, **llm.sampling_parameters},
    )
    agent = ToolCallingAgent([inspect], model, max_steps=settings.max_turns, verbosity_level=LogLevel.OFF)
    agent.prompt_templates["system_prompt"] = SYSTEM
    pictures = [open_image(path) for path in task["image_paths"]]
    return str(agent.run(vqa_text(task["question"], task.get("choices", ())), images=pictures))


async def answer(task: dict[str, Any], llm: LLM) -> tuple[str, Reward]:
    """Ask the agent and score its reply."""
    reply = await asyncio.to_thread(ask, task, llm)
    return reply, score(task, reply)


TASK = Task(
    name="smolagents_vqa",
    agent=smolagents_agent,
    answer=answer,
    rewards=("vqa",),
    defaults={"agent.tool_protocol": "function", "agent.max_turns": 2, "agent.max_tool_calls": 1},
    score=score,
    gold=gold,
    synthetic="vision_rl.tiny.tasks:vqa_example",
)
