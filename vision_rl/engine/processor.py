"""The model's processor, loaded as vLLM loads it. verl's `hf_processor` knows seven classes only."""

from __future__ import annotations

from typing import Any


def load_processor(path: str, trust_remote_code: bool = False) -> Any:
    """The Hugging Face processor of a model folder or hub name."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
