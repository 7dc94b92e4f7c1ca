"""Janus-Pro in vLLM: transformers' own class on vLLM's Transformers backend, which lacks three words about it.

vLLM has no class for Janus. Its backend runs transformers' one, with vLLM's attention in the language model, if the processor
says how many tokens a picture takes (`_get_num_multimodal_tokens`) and by which id it is marked; Janus' says neither.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.transformers import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
    TransformersMultiModalForCausalLM,
)
from vllm.multimodal import MULTIMODAL_REGISTRY


class _Processor(MultiModalProcessingInfo):
    def get_hf_processor(self, **options: object) -> Any:
        processor = super().get_hf_processor(**options)
        processor.image_token_id = processor.tokenizer.image_token_id
        tokens = processor.num_image_tokens
        processor._get_num_multimodal_tokens = lambda image_sizes=(), **_: {
            "num_image_tokens": [tokens] * len(image_sizes),
            "num_image_patches": [1] * len(image_sizes),
        }
        return processor


@MULTIMODAL_REGISTRY.register_processor(MultiModalProcessor, info=_Processor, dummy_inputs=MultiModalDummyInputsBuilder)
class JanusForConditionalGeneration(TransformersMultiModalForCausalLM):
    """The part of Janus that reads pictures and writes text."""
