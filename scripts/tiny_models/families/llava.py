"""Tiny LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision, Pixtral, Mistral 3 and Janus-Pro."""

from __future__ import annotations

from typing import Any

from scripts.tiny_models.families.parts import TEXT, template, tokenizer

_CLIP = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
_PIXTRAL_TOKENS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")


def _causal(model_type: str, tok: Any) -> dict[str, Any]:
    """The text part's configuration; vLLM asks a text part for its `architectures`."""
    names = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "mistral": "MistralForCausalLM"}
    special = {"bos_token_id": None, "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    text = {**TEXT, "model_type": model_type, "architectures": [names[model_type]], "vocab_size": len(tok)}
    return {**text, **special}


def _clip(size: int) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(**_CLIP, image_size=size)


def llava() -> tuple[Any, Any]:
    """A CLIP tower at 56 pixels: 16 tokens for every picture, whatever its size."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tok = tokenizer(["<image>"])
    images = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = LlavaProcessor(
        images,
        tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>\n"),
    )
    config = LlavaConfig(
        text_config=_causal("llama", tok),
        vision_config=_clip(56),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config), processor


_PINPOINTS = [[56, 112], [112, 56], [112, 112]]


def llava_next() -> tuple[Any, Any]:
    """Tiles of 56 pixels on three grids."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    tok = tokenizer(["<image>"])
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=_PINPOINTS
    )
    processor = LlavaNextProcessor(
        images,
        tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>\n"),
    )
    config = LlavaNextConfig(
        text_config=_causal("llama", tok),
        vision_config=_clip(56),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    return LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    """A SigLIP tower, tiles of 56 pixels, Qwen2 text."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        SiglipVisionConfig,
    )

    tok = tokenizer(["<image>", "<video>"])
    size = {"height": 56, "width": 56}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=_PINPOINTS),
        tok,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=template("<image>\n", "<video>\n"),
    )
    config = LlavaOnevisionConfig(
        text_config=_causal("qwen2", tok),
        vision_config=SiglipVisionConfig(**_CLIP, image_size=56),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        video_token_index=tok.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=False,
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def _pixtral_processor(merge: int) -> Any:
    from transformers import PixtralImageProcessor, PixtralProcessor

    images = PixtralImageProcessor(patch_size=14 * merge, size={"longest_edge": 112})
    return PixtralProcessor(
        images, tokenizer(_PIXTRAL_TOKENS), patch_size=14, spatial_merge_size=merge, chat_template=template("[IMG]")
    )


def _pixtral_vision() -> Any:
    from transformers import PixtralVisionConfig

    rope = {"rope_type": "default", "rope_theta": 10000.0}
    return PixtralVisionConfig(**_CLIP, image_size=112, rope_parameters=rope)


def pixtral() -> tuple[Any, Any]:
    """Transformers' own format: a LLaVA with a Pixtral tower, pictures at their own size."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    processor = _pixtral_processor(1)
    config = LlavaConfig(
        text_config=_causal("mistral", processor.tokenizer),
        vision_config=_pixtral_vision(),
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config), processor


def mistral3() -> tuple[Any, Any]:
    """A Pixtral tower whose patches are merged two by two."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    processor = _pixtral_processor(2)
    config = Mistral3Config(
        text_config=_causal("mistral", processor.tokenizer),
        vision_config=_pixtral_vision(),
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return Mistral3ForConditionalGeneration(config), processor


def janus() -> tuple[Any, Any]:
    """576 tokens for every picture, a number that is fixed in its processor; the part that makes pictures is there and unused."""
    from transformers import JanusConfig, JanusForConditionalGeneration, JanusImageProcessor, JanusProcessor

    named = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    tok = tokenizer(named=named)
    images = JanusImageProcessor(size={"height": 96, "width": 96}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = JanusProcessor(images, tok, chat_template=template("<image_placeholder>\n"))
    vision = {**_CLIP, "patch_size": 4, "image_size": 96, "mlp_ratio": 1.5, "projection_dim": 64}
    del vision["intermediate_size"]
    painter = {"num_embeddings": 8, "latent_channels": 32, "base_channels": 32, "channel_multiplier": [1, 1]}
    config = JanusConfig(
        text_config=_causal("llama", tok),
        vision_config=vision,
        vq_config={**painter, "num_res_blocks": 1, "projection_dim": 64, "image_token_embed_dim": 64},
        image_token_id=tok.image_token_id,
        tie_word_embeddings=False,
    )
    return JanusForConditionalGeneration(config), processor
