"""Tiny Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5, dense and mixture of experts."""

from __future__ import annotations

from typing import Any

from scripts.tiny_models.families.parts import LINEAR, TEXT, template, tokenizer

_IDS = {
    "vision_start_token_id": "vision_start",
    "vision_end_token_id": "vision_end",
    "image_token_id": "image_pad",
    "video_token_id": "video_pad",
}
_PICTURE, _VIDEO = (f"<|vision_start|><|{name}|><|vision_end|>" for name in ("image_pad", "video_pad"))
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "norm_topk_prob": True}
_VISION = {"depth": 2, "hidden_size": 64, "num_heads": 2, "out_hidden_size": 64}


def _processor(patch: int, video_class: Any, processor_class: Any) -> tuple[Any, dict[str, int]]:
    """The processor, and the ids of its special tokens by the config's names."""
    from transformers import Qwen2VLImageProcessor

    tok = tokenizer([f"<|{name}|>" for name in _IDS.values()])
    limits = {"shortest_edge": (4 * patch) ** 2, "longest_edge": (8 * patch) ** 2}
    images = Qwen2VLImageProcessor(patch_size=patch, merge_size=2, size=limits)
    frames = {"shortest_edge": 2 * (4 * patch) ** 2, "longest_edge": 8 * (6 * patch) ** 2}
    videos = video_class(patch_size=patch, merge_size=2, size=frames)
    processor = processor_class(images, tok, video_processor=videos, chat_template=template(_PICTURE, _VIDEO))
    ids = {key: tok.convert_tokens_to_ids(f"<|{name}|>") for key, name in _IDS.items()}
    return processor, ids


def qwen2_vl() -> tuple[Any, Any]:
    """Two-dimensional windows are absent here; the text part is Qwen2's."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor, Qwen2VLVideoProcessor

    processor, ids = _processor(14, Qwen2VLVideoProcessor, Qwen2VLProcessor)
    text = _text(processor, {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0})
    vision = {"depth": 2, "embed_dim": 64, "num_heads": 2, "hidden_size": 64, "in_chans": 3}  # published ones say so
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **ids)), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    """One layer of windows, one of full attention."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
    )

    processor, ids = _processor(14, Qwen2VLVideoProcessor, Qwen2_5_VLProcessor)
    text = _text(processor, {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0})
    vision = {**_VISION, "intermediate_size": 96, "fullatt_block_indexes": [1], "window_size": 56}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    return Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    """Patches of 16, deepstack after the first vision layer."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor

    processor, ids = _processor(16, Qwen3VLVideoProcessor, Qwen3VLProcessor)
    config = Qwen3VLConfig(text_config=_text(processor, _INTERLEAVED), vision_config=_VISION3, **ids)
    return Qwen3VLForConditionalGeneration(config), processor


def qwen3_vl_moe() -> tuple[Any, Any]:
    """Qwen3-VL with four experts, two per token, and three levels of deepstack: SGLang takes it for granted that there are."""
    from transformers import (
        Qwen3VLMoeConfig,
        Qwen3VLMoeForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    processor, ids = _processor(16, Qwen3VLVideoProcessor, Qwen3VLProcessor)
    text = {**_text(processor, _INTERLEAVED), **_EXPERTS, "tie_word_embeddings": False, "num_hidden_layers": 3}
    vision = {**_VISION3, "depth": 3, "deepstack_visual_indexes": [0, 1, 2]}
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision, **ids)
    return Qwen3VLMoeForConditionalGeneration(config), processor


def qwen3_5() -> tuple[Any, Any]:
    """One layer of linear attention (gated delta net), one of full attention."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor

    processor, ids = _processor(16, Qwen3VLVideoProcessor, Qwen3VLProcessor)
    config = Qwen3_5Config(text_config={**_text(processor, _PARTIAL), **LINEAR}, vision_config=_VISION3_5, **ids)
    return Qwen3_5ForConditionalGeneration(config), processor


def qwen3_5_moe() -> tuple[Any, Any]:
    """Qwen3.5 with four experts, two per token, and the shared one."""
    from transformers import (
        Qwen3_5MoeConfig,
        Qwen3_5MoeForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    processor, ids = _processor(16, Qwen3VLVideoProcessor, Qwen3VLProcessor)
    text = {**_text(processor, _PARTIAL), **LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 96}
    config = Qwen3_5MoeConfig(text_config=text, vision_config=_VISION3_5, **ids)
    return Qwen3_5MoeForConditionalGeneration(config), processor


_INTERLEAVED = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True, "rope_theta": 10000.0}
_PARTIAL = {**_INTERLEAVED, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25}
_VISION3 = {**_VISION, "intermediate_size": 96, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
_VISION3_5 = {**_VISION, "intermediate_size": 96, "num_position_embeddings": 64}


def _text(processor: Any, rope: dict[str, Any]) -> dict[str, Any]:
    tok = processor.tokenizer
    special = {"bos_token_id": None, "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    return {**TEXT, "vocab_size": len(tok), "rope_parameters": rope, **special}
