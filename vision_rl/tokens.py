"""Tokens that a vision-language model must never sample.

An image placeholder in a *reply* is taken for an image at the next step: vLLM dies with "Attempted to assign 6 multimodal
tokens to 7 placeholders", and the actor's M-RoPE positions count an image that is not there.
"""

from __future__ import annotations

from typing import Any

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<image>")
"""The placeholders of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, and of LLaVA."""


def forbidden_token_ids(tokenizer: Any) -> list[int]:
    """Return the ids, ascending, of the vision placeholders that `tokenizer` (any Hugging Face tokenizer) knows.

    Meant for sampling parameters (`logit_bias` or `bad_words`). vLLM reports log-probabilities from before such a bias
    (`logprobs_mode="raw_logprobs"`, its default), as the actor computes them, so the two agree exactly; the sampling
    distribution differs from both by the mass of these tokens, below 1e-9 in any model that is fit for use.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return sorted(vocabulary[token] for token in VISION_TOKENS if token in vocabulary)
