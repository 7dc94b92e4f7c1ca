"""VQA by a LangGraph graph: the model may measure a region of the picture before it answers.

    uv pip install --target build/langgraph --constraints pins.txt "langgraph==1.2.24" "langchain-openai==1.7.4"
    PYTHONPATH=build/langgraph python train_agent.py --task examples/frameworks/langgraph_vqa.py

docs/frameworks.md says what pins.txt is, and what all frameworks have in common.
"""

from __future__ import annotations

from typing import Any

from vision_rl.agent.client import connection
from vision_rl.agent.lightning import agl
from vision_rl.agent.media import media_message, size_limits
from vision_rl.agent.prompts import vqa_text
from vision_rl.agent.tools import ToolBox
from vision_rl.answers.parsing import ToolCall
from vision_rl.settings import AgentSettings
from vision_rl.tasks import Task
from vision_rl.types import LLM, Reward
from vqa_agent import gold, score


@agl.rollout
async def langgraph_agent(task: dict[str, Any], llm: agl.LLM) -> None:
    """One rollout: ask about the picture, emit the reward with its named components."""
    _, reward = await answer(task, llm)
    agl.emit_reward(reward.named(), primary_key="reward")


async def ask(task: dict[str, Any], llm: LLM) -> str:
    """The graph's last message."""
    from langchain_core.messages import HumanMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    settings = AgentSettings.of(task)
    box = ToolBox(task["image_paths"], task["meta"], size_limits(settings))

    @tool
    def inspect(x1: float, y1: float, x2: float, y2: float) -> str:
        """Measure a region: size, mean colour, contrast. Coordinates are shares of width and height."""
        return box.run(ToolCall("inspect_element", {"region": [x1, y1, x2, y2], "type": "properties"})).text

    base_url, api_key, _ = connection(llm)
    model = ChatOpenAI(
        model=llm.model,
        base_url=base_url,
        api_key=api_key,
        timeout=settings.timeout_seconds,
        **{"max_tokens": settings.max_tokens, **llm.sampling_parameters},
    )

    async def reply(state: MessagesState) -> dict[str, Any]:
        last = sum(message.type == "ai" for message in state["messages"]) + 1 >= settings.max_turns
        asked = model if last else model.bind_tools([inspect])
        return {"messages": [await asked.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("reply", reply)
    graph.add_node("tools", ToolNode([inspect]))
    graph.add_edge(START, "reply")
    graph.add_conditional_edges("reply", tools_condition)
    graph.add_edge("tools", "reply")
    question = media_message(vqa_text(task["question"], task.get("choices", ())), task)
    state = await graph.compile().ainvoke({"messages": [HumanMessage(content=question["content"])]})
    return str(state["messages"][-1].text)


async def answer(task: dict[str, Any], llm: LLM) -> tuple[str, Reward]:
    """Ask the graph and score its reply."""
    reply = await ask(task, llm)
    return reply, score(task, reply)


TASK = Task(
    name="langgraph_vqa",
    agent=langgraph_agent,
    answer=answer,
    rewards=("vqa",),
    defaults={"agent.tool_protocol": "function", "agent.max_turns": 2, "agent.max_tool_calls": 1},
    score=score,
    gold=gold,
    synthetic="vision_rl.tiny.tasks:vqa_example",
)
