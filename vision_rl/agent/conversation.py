"""The loop of a grounding agent with tools: ask, run the tool calls of the reply, send the results, ask again.

It ends with a reply without calls, or after `max_turns` replies. Three budgets hold for a conversation: replies, calls
and pictures; what goes over one is answered with an error text, counts as a call, and costs nothing else.

Two protocols, by `tool_protocol`: "text" describes the tools in the system message and reads `<tool_call>` or
`<use_tool>` from the reply, which goes back into the history word for word, so that the token ids of each turn begin
with those of the turn before; "function" uses OpenAI's function tools. Text calls are understood under both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vision_rl.agent.client import client_for, thinking, was_cut
from vision_rl.agent.grounding_prompts import request, results_text, system_text
from vision_rl.agent.media import Shown, show, size_limits
from vision_rl.agent.messages import picture_url, reply_text, user_message
from vision_rl.agent.tools import TOOLS, ToolBox, ToolResult
from vision_rl.answers.parsing import ToolCall, parse_tool_calls
from vision_rl.answers.zoom import View
from vision_rl.settings import AgentSettings
from vision_rl.types import LLM

_SHOWING = ("zoom_ui_element", "wait_for_ui")
_MOST_SHOWN = 2048 * 28 * 28
"""Pixels of a picture that a tool gives, for models of which nothing is known: four times a whole screen is too much."""
NO_CALLS = "Error: no tool calls are left."
NO_PICTURES = "Error: no more pictures can be shown."


@dataclass(frozen=True)
class MadeCall:
    """A call that the model made, refused ones included. view: what it showed, for a zoom."""

    name: str
    arguments: Mapping[str, Any]
    error: bool
    view: View | None = None

    def scored(self) -> tuple[str, Mapping[str, Any]]:
        """(name, arguments) for the reward: none of a refused call; of a zoom, the region that it really showed."""
        if self.error:
            return self.name, {}
        return self.name, self.arguments if self.view is None else {**self.arguments, "region": list(self.view.box)}


@dataclass
class Conversation:
    """What happened: the replies as text, the calls in order, and the view that the model saw last.

    truncated: the last reply was cut off by the length limit.
    """

    view: View
    truncated: bool = False
    replies: list[str] = field(default_factory=list)
    calls: list[MadeCall] = field(default_factory=list)


def has_tools(settings: AgentSettings) -> bool:
    """Whether an agent with these settings has tools at all."""
    return bool(settings.max_turns > 1 and settings.max_tool_calls > 0)


async def converse(task: Mapping[str, Any], llm: LLM) -> Conversation:
    """Hold the conversation about a task's row; needs `has_tools(task["settings"])`."""
    settings = AgentSettings.of(task)
    client, talk = client_for(llm, settings), _Talk(task)
    parameters = {"max_tokens": settings.max_tokens, **thinking(task), **llm.sampling_parameters}
    if settings.tool_protocol == "function":
        parameters["tools"] = TOOLS
    for turn in range(settings.max_turns):
        completion = await client.chat.completions.create(model=llm.model, messages=talk.messages, **parameters)
        talk.outcome.truncated = was_cut(completion)
        talk.take(completion.choices[0].message.model_dump(exclude_none=True), turns_left=settings.max_turns - turn - 1)
        if talk.done:
            break
    return talk.outcome


class _Talk:
    """The state between two model calls."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self.settings = AgentSettings.of(task)
        video = task["media"] == "video"
        first = task["image_paths"][:1] if video else task["image_paths"]
        self.shown = show(first, self.settings, task["image_sizes"][: len(first)])
        # Where pictures had to be made smaller for a server, tools still see all of them.
        whole = task.get("whole_paths") or task["image_paths"]
        self.tools = ToolBox(whole if video else whole[:1], task["meta"], size_limits(self.settings))
        self.outcome = Conversation(View(self.shown[0].size))
        self.done = False
        text = request(
            task["question"],
            self.settings,
            pictures=len(first),
            view=self.settings.answer_view,
            size=(task["image_sizes"] or [None])[0],
        )
        self.messages: list[Any] = [
            {"role": "system", "content": system_text(self.settings.tool_protocol == "text")},
            user_message(text, [picture.url for picture in self.shown]),
        ]

    def take(self, message: Mapping[str, Any], turns_left: int) -> None:
        """Read a reply, carry out its calls, and write the next message."""
        reply = reply_text(message)
        calls = parse_tool_calls(reply)
        self.outcome.replies.append(reply)
        if not calls or not turns_left:
            self.outcome.calls += [MadeCall(call.name, call.arguments, error=True) for call in calls]
            self.done = True
            return
        made = [self._carry_out(call) for call in calls]
        left = self.settings.max_tool_calls - len(self.outcome.calls)
        self._answer(message, made, last_turn=turns_left == 1 or left <= 0)

    def _carry_out(self, call: ToolCall) -> tuple[str, Shown | None]:
        """The text for the model and the new picture, if there is one; counts the call."""
        result = self._result(call)
        picture = None
        if result.picture is not None:
            picture = Shown(picture_url(result.picture), result.picture.size)
            self.shown.append(picture)
            if self.settings.answer_view == "last" and result.view is not None:
                self.outcome.view = result.view
        zoomed = result.view if call.name == "zoom_ui_element" else None
        self.outcome.calls.append(MadeCall(call.name, call.arguments, result.error, zoomed))
        return result.numbered(len(self.shown)), picture

    def _result(self, call: ToolCall) -> ToolResult:
        if len(self.outcome.calls) >= self.settings.max_tool_calls:
            return ToolResult(NO_CALLS, error=True)
        if call.name in _SHOWING and not call.error:
            limits, most = size_limits(self.settings), self.settings.max_images
            cap, room = self.settings.max_total_pixels, min(limits.max_pixels, _MOST_SHOWN)
            if cap is not None:
                room = min(room, cap - sum(picture.pixels for picture in self.shown))
            if (most is not None and len(self.shown) >= most) or room < max(limits.factor**2, limits.min_pixels):
                return ToolResult(NO_PICTURES, error=True)
            self.tools.limits = replace(limits, max_pixels=room)
        return self.tools.run(call)

    def _answer(self, message: Mapping[str, Any], made: Sequence[tuple[str, Shown | None]], last_turn: bool) -> None:
        """The reply as history and the results: as tool messages to function calls, else in the user's message."""
        urls = [picture.url for _, picture in made if picture is not None]
        native = message.get("tool_calls") or []
        if len(native) != len(made):
            self.messages.append({"role": "assistant", "content": message.get("content") or ""})
            self.messages.append(user_message(results_text([text for text, _ in made], last_turn), urls))
            return
        self.messages.append({"role": "assistant", "content": message.get("content") or "", "tool_calls": native})
        for call, (text, _) in zip(native, made, strict=True):
            self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})
        if urls or last_turn:  # servers take pictures in user messages only
            self.messages.append(user_message(results_text([], last_turn) or "The pictures.", urls))
