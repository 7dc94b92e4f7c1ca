"""The user prompts of the two single-turn tasks. The agents send them, and the tiny model is warm-started on them."""

from __future__ import annotations

from collections.abc import Sequence

from vision_rl.answers.choices import lettered

VQA_PROMPT = "{question}\nAnswer the question using a single word or phrase."
"""The suffix is the usual one for VQAv2."""

CHOICE_PROMPT = "{question}\n{choices}\nAnswer with the option's letter from the given choices directly."
"""The suffix is that of lmms-eval's multiple choice tasks."""


def vqa_text(question: str, choices: Sequence[str] = ()) -> str:
    """The text of a question; its choices, if it has any, stand below it, each with its letter."""
    if not choices:
        return VQA_PROMPT.format(question=question)
    return CHOICE_PROMPT.format(question=question, choices="\n".join(lettered(choices)))


GROUNDING_PROMPT = (
    "{instruction}\nAnswer with <bbox>[x1, y1, x2, y2]</bbox>, each a fraction of the image's width or height."
)
"""Asks for one box in unit space, `vision_rl.answers.parsing` format "bbox"."""
