"""VQA by an agent of OpenAI's Agents SDK that may measure a region of the picture; the SDK speaks the Responses protocol.

    uv pip install --target build/openai-agents --constraints pins.txt "openai-agents==0.24.0"
    PYTHONPATH=build/openai-agents python train_agent.py --task examples/frameworks/openai_agents_vqa.py

docs/frameworks.md says what pins.txt is, and what all frameworks have in common.
"""

from __future__ import annotations

from typing import Any

from vision_rl.agent.client import connection
from vision_rl.agent.lightning import agl
from vision_rl.agent.media import show, size_limits
from vision_rl.agent.prompts import vqa_text
from vision_rl.agent.tools import ToolBox
from vision_rl.answers.parsing import ToolCall
from vision_rl.settings import AgentSettings
from vision_rl.tasks import Task
from vision_rl.types import LLM, Reward
from vqa_agent import gold, score


@agl.rollout
async def openai_agents_agent(task: dict[str, Any], llm: agl.LLM) -> None:
    """One rollout: ask about the picture, emit the reward with its named components."""
    _, reward = await answer(task, llm)
    agl.emit_reward(reward.named(), primary_key="reward")


async def ask(task: dict[str, Any], llm: LLM) -> str:
    """The agent's output; nothing where it called tools until its turns were over."""
    from agents import (
        Agent,
        MaxTurnsExceeded,
        ModelBehaviorError,
        ModelSettings,
        OpenAIProvider,
        RunConfig,
        Runner,
        function_tool,
    )

    settings = AgentSettings.of(task)
    box = ToolBox(task["image_paths"], task["meta"], size_limits(settings))

    @function_tool
    def inspect(x1: float, y1: float, x2: float, y2: float) -> str:
        """Measure a region: size, mean colour, contrast. Coordinates are shares of width and height."""
        return box.run(ToolCall("inspect_element", {"region": [x1, y1, x2, y2], "type": "properties"})).text

    base_url, api_key, _ = connection(llm)
    sampling = ModelSettings(**{"max_tokens": settings.max_tokens, **llm.sampling_parameters})
    agent = Agent(name="vqa", model=llm.model, tools=[inspect], model_settings=sampling)
    # Its tracing would send prompts, and the key, to its maker.
    config = RunConfig(model_provider=OpenAIProvider(base_url=base_url, api_key=api_key), tracing_disabled=True)
    pictures = show(task["image_paths"], settings, task["image_sizes"])
    content: list[Any] = [{"type": "input_image", "image_url": shown.url} for shown in pictures]
    content.append({"type": "input_text", "text": vqa_text(task["question"], task.get("choices", ()))})
    try:
        done = await Runner.run(
            agent, [{"role": "user", "content": content}], max_turns=settings.max_turns, run_config=config
        )
    except (MaxTurnsExceeded, ModelBehaviorError):  # the second: it called a tool that there is not
        return ""
    return str(done.final_output)


async def answer(task: dict[str, Any], llm: LLM) -> tuple[str, Reward]:
    """Ask the agent and score its reply."""
    reply = await ask(task, llm)
    return reply, score(task, reply)


TASK = Task(
    name="openai_agents_vqa",
    agent=openai_agents_agent,
    answer=answer,
    rewards=("vqa",),
    defaults={"agent.tool_protocol": "function", "agent.max_turns": 2, "agent.max_tool_calls": 1},
    score=score,
    gold=gold,
    synthetic="vision_rl.tiny.tasks:vqa_example",
)
