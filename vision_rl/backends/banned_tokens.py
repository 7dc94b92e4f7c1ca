"""The tokens that no model server samples and no actor gives probability to."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig
from verl.workers.rollout.utils import get_vision_placeholder_token_ids

BANNED_LOGIT = -1e4
"""The logit of a token that is never sampled: exp(-1e4) is zero in every dtype."""


def banned_tokens(path: str, processor: Any) -> list[int]:
    """The ids, ascending, that verl's vLLM server masks (monkey_patch_compute_logits): placeholders of pictures, which would
    be taken for pictures in the next step, and ids beyond the tokenizer of the model at `path`."""
    vocabulary = AutoConfig.from_pretrained(path).get_text_config().vocab_size
    beyond = range(len(processor.tokenizer), vocabulary)
    return sorted({*get_vision_placeholder_token_ids(processor), *beyond})
