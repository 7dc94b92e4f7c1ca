"""Random strings out of the pieces that parsers look for: far likelier than plain noise to find a hole."""

# ruff: noqa: RUF001 - digits of other scripts are what is tested

from __future__ import annotations

import random

PIECES = [
    *'<>/[](){}",:.-+%0123456789eE\n\t _',
    *("<think>", "</think>", "<reasoning>", "</reasoning>", "<answer>", "</answer>", "<bbox>", "</bbox>", "<click>"),
    *("</click>", "<box>", "</box>", "<|box_start|>", "<|box_end|>", "<tool_call>", "</tool_call>", "<use_tool>"),
    *(
        "</use_tool>",
        "<confidence>",
        "</confidence>",
        '"bbox_2d"',
        '"point_2d"',
        '{"name": "zoom", "arguments": {',
        "}}",
    ),
    *(
        "nan",
        "inf",
        "1e309",
        "0.5",
        "no finding",
        "confidence: ",
        "٣",
        "５",
        "\ud800",
        "\x00",
        "é",
        "[[",
        "]]",
        "```json",
    ),
]


def random_text(generator: random.Random) -> str:
    """Up to 39 pieces, tags and stray characters mixed."""
    return "".join(generator.choices(PIECES, k=generator.randrange(40)))
