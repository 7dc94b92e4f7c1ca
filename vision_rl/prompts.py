"""The user texts of the two single-turn tasks, in one place: the agents send them and the tiny model is warm-started on them."""

from __future__ import annotations

VQA_PROMPT = "{question}\nAnswer the question using a single word or phrase."
"""The suffix is the usual one for VQAv2."""

GROUNDING_PROMPT = (
    "{instruction}\nAnswer with <bbox>[x1, y1, x2, y2]</bbox>, each a fraction of the image's width or height."
)
"""Asks for one box in unit space, `vision_rl.parsing` format "bbox"."""
