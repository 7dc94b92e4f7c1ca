"""Tiny random models of every family that transformers and vLLM both support, made without a download."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from scripts.tiny_models.families.parts import SEED, save

BUILDERS = {
    "Qwen2-VL": "qwen.qwen2_vl",
    "Qwen2.5-VL": "qwen.qwen2_5_vl",
    "Qwen3-VL": "qwen.qwen3_vl",
    "Qwen3-VL-MoE": "qwen.qwen3_vl_moe",
    "Qwen3.5": "qwen.qwen3_5",
    "Qwen3.5-MoE": "qwen.qwen3_5_moe",
    "LLaVA-1.5": "llava.llava",
    "LLaVA-NeXT (1.6)": "llava.llava_next",
    "LLaVA-OneVision": "llava.llava_onevision",
    "Pixtral": "llava.pixtral",
    "Mistral 3": "llava.mistral3",
    "GLM-4.1V": "glm.glm4v",
    "GLM-4.5V": "glm.glm4v_moe",
    "GLM-4.6V": "glm.glm46v",
    "Gemma 3": "gemma.gemma3",
    "Gemma 4": "gemma.gemma4",
    "PaliGemma 2": "gemma.paligemma2",
    "InternVL 3 (-hf)": "tiles.internvl",
    "Idefics3": "tiles.idefics3",
    "SmolVLM": "tiles.smolvlm",
    "Llama 4": "tiles.llama4",
    "LFM2-VL": "tiles.lfm2_vl",
    "Janus-Pro": "llava.janus",
    "MiniCPM-V 4.6": "tiles.minicpmv4_6",
}
"""By the family's name in the model table: the module and function that make (model, processor)."""


def build(family: str, folder: Path, seed: int = SEED) -> Path:
    """Write a tiny checkpoint of `family`, a key of BUILDERS, into `folder`: weights from `seed`, processor, template."""
    module, function = BUILDERS[family].split(".")
    model, processor = getattr(import_module(f"{__name__}.{module}"), function)()
    return save(model, processor, folder, seed)
