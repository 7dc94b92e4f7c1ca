"""Tiny GLM-4.1V, GLM-4.5V and GLM-4.6V."""

from __future__ import annotations

from typing import Any

from scripts.tiny_models.families.parts import TEXT, template, tokenizer

_IDS = {
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
}
_VISION = {
    "depth": 2,
    "hidden_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "intermediate_size": 96,
    "image_size": 112,
    "patch_size": 14,
}
_ROPE = {"rope_type": "default", "mrope_section": [4, 2, 2], "partial_rotary_factor": 0.5, "rope_theta": 10000.0}

# As in the published config.json: transformers always has these biases, vLLM only where this is set.
_BIASES = {"attention_bias": True}


def _parts(kind: str) -> tuple[Any, dict[str, Any], dict[str, int]]:
    """Processor, text configuration and ids of the special tokens. kind: Glm4v or Glm46V."""
    import transformers

    tok = tokenizer(list(_IDS.values()))
    limits = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112 * 2}  # in pixels over two frames
    images = getattr(transformers, f"{kind}ImageProcessor")(size=limits)
    videos = getattr(transformers, f"{kind}VideoProcessor")(size={**limits, "longest_edge": 8 * 112 * 112})
    picture = "<|begin_of_image|><|image|><|end_of_image|>"
    chat = template(picture, "<|begin_of_video|><|video|><|end_of_video|>")
    processor = getattr(transformers, f"{kind}Processor")(images, tok, videos, chat_template=chat)
    text = {**TEXT, "vocab_size": len(tok), "rope_parameters": _ROPE, "pad_token_id": tok.pad_token_id}
    text |= {"eos_token_id": tok.eos_token_id, "tie_word_embeddings": False}
    return processor, text, {name: tok.convert_tokens_to_ids(token) for name, token in _IDS.items()}


def glm4v() -> tuple[Any, Any]:
    """The dense model of GLM-4.1V."""
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    processor, text, ids = _parts("Glm4v")
    text |= _BIASES
    return Glm4vForConditionalGeneration(Glm4vConfig(text_config=text, vision_config=_VISION, **ids)), processor


def glm4v_moe() -> tuple[Any, Any]:
    """The mixture of experts of GLM-4.5V: the first layer dense, four experts in the second."""
    from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

    processor, text, ids = _parts("Glm4v")
    text |= {
        "use_qk_norm": False,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "first_k_dense_replace": 1,
    }
    config = Glm4vMoeConfig(text_config=text, vision_config=_VISION, **ids)
    return Glm4vMoeForConditionalGeneration(config), processor


def glm46v() -> tuple[Any, Any]:
    """GLM-4.6V-Flash: the model of GLM-4.1V with a processor of its own."""
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    processor, text, ids = _parts("Glm46V")
    text |= _BIASES
    return Glm4vForConditionalGeneration(Glm4vConfig(text_config=text, vision_config=_VISION, **ids)), processor
