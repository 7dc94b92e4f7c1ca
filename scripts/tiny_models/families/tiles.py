"""Tiny families that cut pictures into tiles: InternVL, Idefics3, SmolVLM, Llama 4, LFM2-VL, MiniCPM-V 4.6."""

from __future__ import annotations

from typing import Any

from scripts.tiny_models.families.parts import LINEAR, TEXT, template, tokenizer

_VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}


def _text(tok: Any, model_type: str, **more: Any) -> dict[str, Any]:
    special = {"bos_token_id": None, "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    return {**TEXT, **special, "model_type": model_type, "vocab_size": len(tok), **more}


def internvl() -> tuple[Any, Any]:
    """Tiles of 56 pixels and a thumbnail, 4 tokens each; Qwen2 text, as in InternVL 3 (-hf)."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tok = tokenizer(named={**named, "video_token": "<video>"})
    size = {"height": 56, "width": 56}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, max_patches=4),
        tok,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>\n", "<video>\n"),
    )
    config = InternVLConfig(
        text_config=_text(tok, "qwen2", architectures=["Qwen2ForCausalLM"]),
        vision_config={**_VISION, "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=tok.context_image_token_id,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return InternVLForConditionalGeneration(config), processor


def idefics3() -> tuple[Any, Any]:
    """Tiles of 56 pixels and a global picture, 4 tokens each; Llama text."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )

    tok, images = _idefics_tokenizer(), Idefics3ImageProcessorPil(**_IDEFICS_SIZES)
    processor = Idefics3Processor(images, tok, image_seq_len=4, chat_template=template("<image>"))
    config = Idefics3Config(
        text_config=_text(tok, "llama", architectures=["LlamaForCausalLM"]), **_idefics_settings(tok)
    )
    return Idefics3ForConditionalGeneration(config), processor


def smolvlm() -> tuple[Any, Any]:
    """As Idefics3, with its own processor (which needs the package num2words)."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessorPil,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    tok, images = _idefics_tokenizer(), SmolVLMImageProcessorPil(**_IDEFICS_SIZES)
    videos = SmolVLMVideoProcessor(**_IDEFICS_SIZES, size_divisor=56)
    processor = SmolVLMProcessor(images, tok, videos, image_seq_len=4, chat_template=template("<image>", "<video>"))
    config = SmolVLMConfig(
        text_config=_text(tok, "llama", architectures=["LlamaForCausalLM"]), **_idefics_settings(tok)
    )
    return SmolVLMForConditionalGeneration(config), processor


_IDEFICS_SIZES: dict[str, Any] = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}


def _idefics_tokenizer() -> Any:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    return tokenizer(["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles])


def _idefics_settings(tok: Any) -> dict[str, Any]:
    return {
        "vision_config": {**_VISION, "image_size": 56, "patch_size": 14},
        "image_token_id": tok.convert_tokens_to_ids("<image>"),
        "pad_token_id": tok.pad_token_id,
        "scale_factor": 2,
    }


def llama4() -> tuple[Any, Any]:
    """Tiles of 56 pixels, 4 tokens each; one dense and one mixture-of-experts layer, one without rotary positions."""
    from transformers import Llama4Config, Llama4ForConditionalGeneration, Llama4ImageProcessor, Llama4Processor

    names = ("image_start", "image_end", "image", "patch", "tile_x_separator", "tile_y_separator")
    tok = tokenizer([f"<|{name}|>" for name in names])
    images = Llama4ImageProcessor(size={"height": 56, "width": 56}, max_patches=4, resize_to_max_canvas=False)
    processor = Llama4Processor(images, tok, patch_size=14, chat_template=template("<|image|>"))
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    text = _text(tok, "llama4_text", intermediate_size_mlp=96, num_local_experts=4, interleave_moe_layer_step=2)
    text |= {"no_rope_layer_interval": 2, "attention_chunk_size": 512, "rope_parameters": rope}
    vision: dict[str, Any] = {
        **_VISION,
        "intermediate_size": 256,
        "image_size": 56,
        "patch_size": 14,
        "vision_output_dim": 64,
    }
    vision |= {"projector_input_dim": 64, "projector_output_dim": 64, "rope_parameters": rope}
    config = Llama4Config(
        text_config=text,
        vision_config=vision,
        boi_token_index=tok.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tok.convert_tokens_to_ids("<|image_end|>"),
        image_token_index=tok.convert_tokens_to_ids("<|patch|>"),
    )
    return Llama4ForConditionalGeneration(config), processor


_SIGLIP2 = {"model_type": "siglip2_vision_model", "num_patches": 64, "patch_size": 14, "vision_use_head": False}


def lfm2_vl() -> tuple[Any, Any]:
    """A SigLIP 2 tower at the picture's own size before a text model of short convolutions and attention."""
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration, Lfm2VlImageProcessor, Lfm2VlProcessor

    tiles = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11)]
    named = {"image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>"}
    tok = tokenizer(tiles, {**named, "image_thumbnail": "<|img_thumbnail|>"})
    images = Lfm2VlImageProcessor(
        encoder_patch_size=14,
        tile_size=56,
        min_image_tokens=4,
        max_image_tokens=16,
        max_tiles=4,
        size={"height": 56, "width": 56},
    )
    processor = Lfm2VlProcessor(images, tok, chat_template=template("<image>", before="{{ bos_token }}"))
    text = _text(tok, "lfm2", layer_types=["conv", "full_attention"], architectures=["Lfm2ForCausalLM"])
    text |= {
        "block_ff_dim": 96,
        "block_auto_adjust_ff_dim": False,
        "conv_dim": 64,
        "block_dim": 64,
        "tie_word_embeddings": True,
    }
    config = Lfm2VlConfig(
        text_config=text,
        vision_config={**_VISION, **_SIGLIP2},
        image_token_id=tok.image_token_id,
        projector_hidden_size=64,
    )
    return Lfm2VlForConditionalGeneration(config), processor


def minicpmv4_6() -> tuple[Any, Any]:
    """Slices of 112 pixels and the whole picture, 4 tokens each; Qwen3.5's text, linear and full attention."""
    from transformers import (
        MiniCPMV4_6Config,
        MiniCPMV4_6ForConditionalGeneration,
        MiniCPMV4_6ImageProcessor,
        MiniCPMV4_6Processor,
        MiniCPMV4_6VideoProcessor,
    )

    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    named |= {
        f"{name}_{end}_token": f"<{slash}{name}>" for name in ("image", "slice", "image_id") for end, slash in _ENDS
    }
    tok = tokenizer(named=named)
    sizes: dict[str, Any] = {"scale_resolution": 112, "max_slice_nums": 4}
    processor = MiniCPMV4_6Processor(
        MiniCPMV4_6ImageProcessor(**sizes),
        MiniCPMV4_6VideoProcessor(**sizes),
        tok,
        chat_template=template("<|image_pad|>", "<|video_pad|>"),
    )
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 10000.0}
    text = _text(tok, "qwen3_5_text", rope_parameters={**rope, "partial_rotary_factor": 0.25}, **LINEAR)
    config = MiniCPMV4_6Config(
        text_config=text,
        vision_config={**_VISION, "image_size": 112, "patch_size": 14},
        insert_layer_id=0,
        image_size=112,
        image_token_id=tok.image_token_id,
        video_token_id=tok.video_token_id,
    )
    return MiniCPMV4_6ForConditionalGeneration(config), processor


_ENDS = (("start", ""), ("end", "/"))
