"""Tokens that a vision-language model must never sample.

An image placeholder in a *reply* is taken for an image at the next step: vLLM dies with "Attempted to assign 6 multimodal
tokens to 7 placeholders", and the actor's M-RoPE positions count an image that is not there.
"""

from __future__ import annotations

import re
from typing import Any

VISION_MARK = re.compile(
    r"<\|(?:begin_of_|end_of_)?(?:image|img|video|vision|audio|patch|tile)[a-z_]*\|>"
    r"|</?IMG_CONTEXT>|<(?:start|end)_of_image>|<image_soft_token>|<fake_token_around_image>|<global-img>"
    r"|\[IMG(?:_BREAK|_END)?\]"
)
"""How the families write the tokens that stand for a picture, begin and end one. In a text they are taken for pictures: the
prompt has more places than pictures, and the call fails or the actor's positions are another prompt's."""

_OF_TEXT = ("bos", "eos", "pad", "unk", "sep", "cls", "mask", "decoder_start", "end_of_utterance")
_LISTS = ("image_ids", "video_ids", "row_col_ids")


def neutralised(text: str) -> str:
    """The text with a blank in each `VISION_MARK` and in `<image>` and `<video>`, so that no tokenizer takes it for a token."""
    text = VISION_MARK.sub(lambda mark: f"{mark.group()[0]} {mark.group()[1:]}", text)
    return text.replace("<image>", "< image>").replace("<video>", "< video>")


def forbidden_token_ids(processor: Any) -> list[int]:
    """Return the ids, ascending, of the vision placeholders of `processor`, as `load_processor` returns it.

    They are those that the model's config, the processor and the tokenizer name themselves: `image_token_id`,
    `vision_start_token_id`, `boi_token_index`, `image_break_token` and their kin, and the lists `image_ids`, `video_ids`
    and `row_col_ids`; not the marks of text, such as `eos_token_id`.

    The model server masks them before it samples (`serving/vllm_server.py`), and the actor gives them no probability
    either (`actor/engine.py`), so that the two agree exactly.
    """
    tokenizer = processor.tokenizer
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    found: set[Any] = set()
    for holder in (getattr(processor, "config", None), processor, tokenizer):
        for name, value in getattr(holder, "__dict__", {}).items():
            found.update(value if name in _LISTS else [value] if _names_a_token(name, value) else [])
    found.update(value for name, value in tokenizer.special_tokens_map.items() if _names_a_token(name, value))
    return sorted(
        {
            token if isinstance(token, int) else vocabulary[token]
            for token in found
            if token in vocabulary or isinstance(token, int)
        }
    )


def _names_a_token(name: str, value: Any) -> bool:
    """Whether an attribute is a token of vision or sound: its id as a number, or its text."""
    if name.startswith(_OF_TEXT):
        return False
    if name.endswith(("_token_id", "_token_index")):
        return isinstance(value, int)
    return name.endswith("_token") and isinstance(value, str)
