"""The grounding agent's prompts: the request in every answer format, the tools, and the tools' results.

Texts that never change are constants, so that a tokenizer made for a task can hold each as one token.
"""

from __future__ import annotations

from collections.abc import Sequence

from vision_rl.agent.prompts import GROUNDING_PROMPT
from vision_rl.agent.tools import tools_text
from vision_rl.answers.space import AnswerSpace
from vision_rl.settings import AgentSettings

_SPACES = {
    "unit": "each a fraction of {picture}'s width or height",
    "percent": "each from 0 to 100 across {picture}'s width or height",
    "thousand": "each from 0 to 1000 across {picture}'s width or height",
    "to_999": "each from 0 to 999 across {picture}'s width or height",
    "bins_1024": "each from 0 to 1024 across {picture}'s width or height",
    "processed": "in pixels of {picture}",
    "original": "in pixels of {picture}",
}
_PICTURES = {"original": "the first picture", "last": "the last picture"}

REASONING = "You may reason first, inside <reasoning></reasoning>. Give the final answer inside <answer></answer>."
RANKED = "If it could be in several places, give all of them, the likeliest first."
"""What InfiGUI-G1 asks for (arXiv 2508.05731), in our words: its reward counts the rank of the first that is right."""
LAST_TURN = "No further call is possible: answer now."


def request(
    instruction: str, settings: AgentSettings, *, pictures: int = 1, view: str = "", size: Sequence[int] | None = None
) -> str:
    """The user's text: the instruction and how to answer it.

    view: "" for a conversation without tools, else which picture's space the answer is in ("original" or "last"). size:
    (width, height) of the first picture's file, stated where the answer is in its pixels, whatever a server resizes.
    The reward "ranked" pays for several answers, so they are asked for. With `settings.refusal` the text says how to answer
    that there is nothing to find; for formats of points it always does.
    """
    space, ranked = AnswerSpace.of(settings), settings.reward == "ranked"
    if not view and settings.answer_format == "bbox" and pictures == 1 and not (ranked or settings.refusal):
        return GROUNDING_PROMPT.format(instruction=instruction)
    picture = _PICTURES[view] if view else "the image" if pictures == 1 else "the first picture"
    form = space.format
    stated = f" ({size[0]} x {size[1]} pixels)" if size and space.unit == "original" and view != "last" else ""
    nothing = f" If it is not there, answer {form.nothing}." if form.points or settings.refusal else ""
    place = _SPACES[space.unit].format(picture=picture)
    several = f" {RANKED}" if ranked else ""
    return f"{instruction}\nAnswer with {form.form}, {place}{stated}.{several}{nothing}"


def system_text(as_text: bool) -> str:
    """The system message of a conversation with tools; `as_text`: it describes them, else the request carries them."""
    return f"{tools_text()}\n{REASONING}" if as_text else REASONING


def results_text(results: Sequence[str], last_turn: bool) -> str:
    """The message that gives the results of a reply's tool calls back as text."""
    parts = [f"<tool_response>\n{result}\n</tool_response>" for result in results]
    return "\n".join([*parts, LAST_TURN] if last_turn else parts)
