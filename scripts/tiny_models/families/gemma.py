"""Tiny Gemma 3, Gemma 4 and PaliGemma 2."""

from __future__ import annotations

from typing import Any

from scripts.tiny_models.families.parts import TEXT, template, tokenizer

_SIGLIP = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
}


def _special(tok: Any) -> dict[str, Any]:
    return {"bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}


def gemma3() -> tuple[Any, Any]:
    """One sliding and one full layer; 4 tokens a picture, which see each other in both directions."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor

    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tok = tokenizer(named=named)
    images = Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = Gemma3Processor(
        images, tok, image_seq_length=4, chat_template=template("<start_of_image>", before="{{ bos_token }}")
    )
    text = {**TEXT, **_special(tok), "vocab_size": len(tok), "query_pre_attn_scalar": 32, "sliding_window": 64}
    text |= {"layer_types": ["sliding_attention", "full_attention"]}
    config = Gemma3Config(
        text_config=text,
        vision_config=_SIGLIP,
        mm_tokens_per_image=4,
        boi_token_index=tok.boi_token_id,
        eoi_token_index=tok.eoi_token_id,
        image_token_index=tok.image_token_id,
    )
    return Gemma3ForConditionalGeneration(config), processor


def gemma4() -> tuple[Any, Any]:
    """Without audio; embeddings per layer, pictures at their own aspect ratio."""
    from transformers import (
        Gemma4AudioFeatureExtractor,
        Gemma4Config,
        Gemma4ForConditionalGeneration,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4VideoProcessor,
    )

    named = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>"}
    named |= {"boa_token": "<|audio>", "eoa_token": "<audio|>"}
    tok = tokenizer(["<|video|>"], named)
    sizes = {"patch_size": 8, "pooling_kernel_size": 2}
    processor = Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessor(max_soft_tokens=70, **sizes),
        tok,
        Gemma4VideoProcessor(max_soft_tokens=70, **sizes),
        image_seq_length=70,
        chat_template=template("<|image|>", "<|video|>", before="{{ bos_token }}"),
    )
    text = {**TEXT, **_special(tok), "vocab_size": len(tok), "sliding_window": 64, "global_head_dim": 32}
    text |= {"layer_types": ["sliding_attention", "full_attention"], "hidden_size_per_layer_input": 0}
    vision = {**_SIGLIP, **sizes, "head_dim": 32, "num_key_value_heads": 2, "position_embedding_size": 512}
    vision |= {"default_output_length": 70}
    config = Gemma4Config(
        text_config=text,
        vision_config={key: value for key, value in vision.items() if key not in ("image_size", "vision_use_head")},
        audio_config=None,
        boi_token_id=tok.boi_token_id,
        eoi_token_id=tok.eoi_token_id,
        image_token_id=tok.image_token_id,
        video_token_id=tok.convert_tokens_to_ids("<|video|>"),
        audio_token_id=tok.convert_tokens_to_ids("<|audio|>"),
        boa_token_id=tok.convert_tokens_to_ids("<|audio>"),
        eoa_token_index=tok.convert_tokens_to_ids("<audio|>"),
    )
    return Gemma4ForConditionalGeneration(config), processor


def paligemma2() -> tuple[Any, Any]:
    """PaliGemma 2: SigLIP before Gemma 2; the prompt attends in both directions."""
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
    )

    tok = tokenizer(named={"image_token": "<image>"})
    images = SiglipImageProcessor(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(images, tok, chat_template=template("<image>"))
    text = {**TEXT, **_special(tok), "model_type": "gemma2", "vocab_size": len(tok), "query_pre_attn_scalar": 32}
    text |= {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
    config = PaliGemmaConfig(
        text_config=text,
        vision_config={**_SIGLIP, "model_type": "siglip_vision_model", "projection_dim": 64},
        image_token_index=processor.image_token_id,
        projection_dim=64,
        hidden_size=64,
        vocab_size=len(tok),
    )
    return PaliGemmaForConditionalGeneration(config), processor
