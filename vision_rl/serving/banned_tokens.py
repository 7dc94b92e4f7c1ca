"""Tokens that no model server samples and the actor masks."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from vision_rl.models.tokens import forbidden_token_ids

BANNED_LOGIT = -1e4
"""The logit of a token that is never sampled: exp(-1e4) is zero in every dtype."""


def banned_tokens(path: str, processor: Any) -> list[int]:
    """The ids, ascending, that model servers mask: placeholders of pictures, which would be taken for pictures in the next
    step, and ids beyond the tokenizer of the model at `path` (verl's vLLM server: monkey_patch_compute_logits)."""
    vocabulary = AutoConfig.from_pretrained(path).get_text_config().vocab_size
    beyond = range(len(processor.tokenizer), vocabulary)
    return sorted({*forbidden_token_ids(processor), *beyond})
