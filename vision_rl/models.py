"""The model table: every vision-language family that the guides name, and what this project can do with it.

One row per family. `model_info` finds the row of a model folder (by its config.json) or of a hub name, `check_pairing`
refuses what cannot work with the reason. Engine support is that of vLLM 0.24.0's registry and of SGLang 0.5.12, the
releases that this project pins; where the guides differ, the releases are right.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vision_rl.errors import UserError


@dataclass(frozen=True)
class ModelFamily:
    """One family. coordinates: a row of vision_rl.coordinates.FAMILIES. positions: "mrope" (3-D) or "plain".

    single_batch: its images have different tensor shapes, so verl cannot concatenate two samples: micro-batches of one.
    visual: its vision part is `model.visual`, projector included, the only place where verl can freeze it. refused: why
    it cannot be trained here, whatever the engine ("" where it can).
    """

    name: str
    examples: tuple[str, ...]
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    vllm: bool
    sglang: bool
    coordinates: str
    positions: str
    tokens_per_image: str
    memory: str
    pattern: str = ""
    single_batch: bool = False
    visual: bool = False
    refused: str = ""
    notes: str = ""

    @property
    def resizes(self) -> bool:
        """Whether its processor takes min_pixels and max_pixels (the Qwen-VL processors and those built on them)."""
        return self.coordinates.startswith("qwen")


_REMOTE = "its model code comes with the checkpoint; batches are built for transformers' own classes only"
_OWN_FORMAT = "SGLang serves its original checkpoint format only, which transformers does not train"
_QWEN_TOKENS = "width x height / 784 after resizing"

TABLE: tuple[ModelFamily, ...] = (
    ModelFamily(
        "Qwen2-VL", ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"), ("qwen2_vl",),
        ("Qwen2VLForConditionalGeneration",), True, True, "qwen2_vl", "mrope", _QWEN_TOKENS,
        "24 GB: 2B (7B by LoRA); 8x80 GB: 7B full", r"Qwen2-VL", visual=True,
    ),
    ModelFamily(
        "Qwen2.5-VL", ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"), ("qwen2_5_vl",),
        ("Qwen2_5_VLForConditionalGeneration",), True, True, "qwen2_5_vl", "mrope", _QWEN_TOKENS,
        "24 GB: 3B (offload or LoRA); 8x80 GB: 7B full", r"Qwen2\.5-VL", visual=True,
    ),
    ModelFamily(
        "Qwen3-VL", ("Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"), ("qwen3_vl", "qwen3_vl_moe"),
        ("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"), True, True, "qwen3_vl", "mrope",
        "width x height / 1024 after resizing", "40 GB: 4B (offload or LoRA); 8x80 GB: 8B full", r"Qwen3-VL",
        visual=True,
    ),
    ModelFamily(
        "MiMo-VL", ("XiaomiMiMo/MiMo-VL-7B-RL",), (), ("Qwen2_5_VLForConditionalGeneration",), True, True,
        "qwen2_5_vl", "mrope", _QWEN_TOKENS, "8x80 GB: 7B full", r"MiMo-VL", visual=True,
        notes="its config.json says qwen2_5_vl, so it is treated as Qwen2.5-VL; the guide's 'SGLang only' is outdated",
    ),
    ModelFamily(
        "LLaVA-1.5", ("llava-hf/llava-1.5-7b-hf",), ("llava",), ("LlavaForConditionalGeneration",), True, False,
        "unit", "plain", "576", "40 GB: 7B by LoRA; 8x80 GB: 7B full", r"llava-1\.5|llava-v1\.5",
        notes="SGLang has no processor for its CLIP tower in transformers' format",
    ),
    ModelFamily(
        "LLaVA-NeXT (1.6)", ("llava-hf/llava-v1.6-vicuna-7b-hf",), ("llava_next",),
        ("LlavaNextForConditionalGeneration",), True, False, "unit", "plain", "up to 2880 (576 x up to 5 tiles)",
        "40 GB: 7B by LoRA; 8x80 GB: 7B full", r"llava-v1\.6|llava-next", single_batch=True, notes=_OWN_FORMAT,
    ),
    ModelFamily(
        "LLaVA-OneVision", ("llava-hf/llava-onevision-qwen2-7b-ov-hf",), ("llava_onevision",),
        ("LlavaOnevisionForConditionalGeneration",), True, False, "unit", "plain", "up to 7290 (729 x up to 10 tiles)",
        "40 GB: 7B by LoRA; 8x80 GB: 7B full", r"llava-onevision", single_batch=True, notes=_OWN_FORMAT,
    ),
    ModelFamily(
        "InternVL 2.5/3/3.5 (-hf)", ("OpenGVLab/InternVL3-2B-hf", "OpenGVLab/InternVL3_5-8B-HF"), ("internvl",),
        ("InternVLForConditionalGeneration",), True, False, "internvl", "plain", "256 x up to 13 tiles of 448",
        "24 GB: 2B (offload or LoRA); 8x80 GB: 8B full", r"InternVL.*-hf$", notes=_OWN_FORMAT,
    ),
    ModelFamily(
        "InternVL 2.5/3/3.5", ("OpenGVLab/InternVL2_5-2B", "OpenGVLab/InternVL3-8B"), ("internvl_chat",),
        ("InternVLChatModel",), True, True, "internvl", "plain", "256 x up to 13 tiles of 448", "24 GB: 2B",
        r"InternVL", refused=f"{_REMOTE}; use the same weights in transformers' format, whose names end in -hf",
    ),
    ModelFamily(
        "Pixtral", ("mistral-community/pixtral-12b",), (), ("LlavaForConditionalGeneration",), True, True, "unit",
        "plain", "width x height / 256", "8x80 GB: 12B full", r"pixtral", single_batch=True,
        notes="transformers' format only; its config.json says llava",
    ),
    ModelFamily(
        "Idefics3", ("HuggingFaceM4/Idefics3-8B-Llama3",), ("idefics3",), ("Idefics3ForConditionalGeneration",), True,
        False, "unit", "plain", "169 per tile", "8x80 GB: 8B full", r"Idefics3", single_batch=True,
    ),
    ModelFamily(
        "Gemma 3", ("google/gemma-3-4b-it",), ("gemma3",), ("Gemma3ForConditionalGeneration",), True, True, "unit",
        "plain", "256", "40 GB: 4B", r"gemma-3",
        refused="its image tokens see each other only where token_type_ids are passed, which verl's actor omits",
        notes="the guide's 'SGLang only' is outdated",
    ),
    ModelFamily(
        "Llama 3.2 Vision", ("meta-llama/Llama-3.2-11B-Vision-Instruct",), ("mllama",),
        ("MllamaForConditionalGeneration",), False, True, "unit", "cross-attention", "1 (and 1601 per tile across)",
        "8x80 GB: 11B full", r"Llama-3\.2-.*Vision",
        refused="images enter by cross-attention, whose masks the training batch does not carry, and vLLM dropped it "
        "after 0.10.2",
    ),
    ModelFamily(
        "Llama 4", ("meta-llama/Llama-4-Scout-17B-16E-Instruct",), ("llama4",), ("Llama4ForConditionalGeneration",),
        True, True, "unit", "plain", "144 per tile", "several 8x80 GB nodes", r"Llama-4", single_batch=True,
    ),
    ModelFamily(
        "GLM-4.1V", ("zai-org/GLM-4.1V-9B-Thinking",), ("glm4v",), ("Glm4vForConditionalGeneration",), True, True,
        "glm4v", "mrope", _QWEN_TOKENS, "8x80 GB: 9B full", r"GLM-4\.1V", visual=True,
    ),
    ModelFamily(
        "GLM-4.5V", ("zai-org/GLM-4.5V",), ("glm4v_moe",), ("Glm4vMoeForConditionalGeneration",), True, True, "glm4v",
        "mrope", _QWEN_TOKENS, "several 8x80 GB nodes", r"GLM-4\.5V", visual=True,
        refused="verl 0.6.1 patches the forward of glm4v, not of its mixture-of-experts variant",
    ),
    ModelFamily(
        "GLM-4V", ("zai-org/glm-4v-9b",), ("chatglm",), ("GLM4VForCausalLM",), True, False, "unit", "plain", "1600",
        "8x80 GB: 9B full", r"glm-4v", refused=_REMOTE,
    ),
    ModelFamily(
        "DeepSeek-VL2", ("deepseek-ai/deepseek-vl2-tiny",), ("deepseek_vl_v2",), ("DeepseekVLV2ForCausalLM",), True,
        True, "unit", "plain", "421 and more", "24 GB: tiny", r"deepseek-vl2", refused=_REMOTE,
    ),
    ModelFamily(
        "MiniCPM-V / -o", ("openbmb/MiniCPM-V-2_6",), ("minicpmv", "minicpmo"), ("MiniCPMV", "MiniCPMO"), True, True,
        "unit", "plain", "64 per slice, up to 640", "8x80 GB: 8B full", r"MiniCPM-[Vo]", refused=_REMOTE,
    ),
    ModelFamily(
        "Phi-4 multimodal", ("microsoft/Phi-4-multimodal-instruct",), ("phi4mm", "phi4_multimodal"),
        ("Phi4MMForCausalLM", "Phi4MultimodalForCausalLM"), False, True, "unit", "plain", "256 and more per crop",
        "40 GB: 5.6B by LoRA", r"Phi-4-multimodal",
        refused="its images switch on a LoRA adapter in the language model, which verl's weight sync does not carry",
    ),
    ModelFamily(
        "Molmo", ("allenai/Molmo-7B-D-0924",), ("molmo",), ("MolmoForCausalLM",), True, False, "unit", "plain",
        "144 per crop, up to 1872", "8x80 GB: 7B full", r"Molmo", refused=_REMOTE,
    ),
    ModelFamily(
        "Kimi-VL", ("moonshotai/Kimi-VL-A3B-Instruct",), ("kimi_vl",), ("KimiVLForConditionalGeneration",), True, True,
        "unit", "plain", _QWEN_TOKENS, "8x80 GB: 16B (3B active)", r"Kimi-VL", refused=_REMOTE,
        notes="the guide's 'SGLang only' is outdated",
    ),
    ModelFamily(
        "Janus-Pro", ("deepseek-ai/Janus-Pro-1B",), ("janus", "multi_modality"), ("MultiModalityCausalLM",), False,
        True, "unit", "plain", "576", "24 GB: 1B", r"Janus",
        refused="SGLang loads its original format and transformers another, so weights cannot be synced",
    ),
    ModelFamily(
        "NVILA", ("Efficient-Large-Model/NVILA-8B",), ("nvila", "vila", "llava_llama"),
        ("VILAForConditionalGeneration",), False, True, "unit", "plain",
        "256 per tile", "8x80 GB: 8B full", r"NVILA", refused=_REMOTE,
    ),
    ModelFamily(
        "DotsVLM", ("rednote-hilab/dots.vlm1.inst",), ("dots_vlm",), ("DotsVLMForCausalLM",), False, True, "unit",
        "plain", _QWEN_TOKENS, "several 8x80 GB nodes", r"dots\.vlm", refused=_REMOTE,
    ),
)  # fmt: skip

_BY_TYPE = {model_type: row for row in TABLE for model_type in row.model_types}


@dataclass(frozen=True)
class ModelInfo:
    """A model as far as it can be known without its weights.

    path: folder or hub name. config: the parsed config.json ({} for a hub name that is not on disk). min_pixels and
    max_pixels: the processor's own limits on the area of an image in pixels, None where they are not stated.
    """

    path: str
    family: ModelFamily
    model_type: str
    on_disk: bool
    config: dict[str, Any] = field(default_factory=dict)
    min_pixels: int | None = None
    max_pixels: int | None = None


def model_info(path: str | Path) -> ModelInfo:
    """The family of a model folder or hub name; `UserError` for a missing folder, a text-only or an unknown model."""
    name = str(path)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if _is_hub_name(name):
            return _by_name(name)
        raise UserError(
            f"--model {name} does not exist; give a model folder or a hub name such as Qwen/Qwen2.5-VL-3B-Instruct"
        )
    config = _read_json(folder / "config.json")
    if config is None:
        raise UserError(f"--model {name} has no config.json; give the folder that holds config.json and the weights")
    model_type = str(config.get("model_type", ""))
    family = _BY_TYPE.get(model_type)
    if family is None:
        vision = any(key in config for key in ("vision_config", "visual", "mm_vision_tower"))
        what = "is not in the model table (--list-models)" if vision else "is not a vision model"
        raise UserError(f"--model {name} {what}: its config.json says model_type {model_type or 'nothing'!r}")
    if model_type == "llava" and config.get("vision_config", {}).get("model_type") == "pixtral":
        family = next(row for row in TABLE if row.name == "Pixtral")
    low, high = _pixel_limits(folder)
    return ModelInfo(name, family, model_type, True, config, low, high)


def check_pairing(
    info: ModelInfo,
    engine: str = "vllm",
    *,
    micro_batch: int = 1,
    freeze_vision: bool = False,
    strategy: str = "fsdp2",
) -> None:
    """Raise `UserError`, with the reason, for a model that this engine or these training settings cannot handle."""
    row = info.family
    if row.refused:
        raise UserError(f"{row.name} ({info.path}) cannot be trained here: {row.refused}; --list-models shows what can")
    if not (row.vllm if engine == "vllm" else row.sglang):
        other = "sglang" if engine == "vllm" else "vllm"
        release = "vLLM 0.24.0" if engine == "vllm" else "SGLang 0.5.12"
        of_sglang = engine == "sglang" and row.notes.startswith("SGLang")
        reason = row.notes if of_sglang else f"{release} has no {row.architectures[0]}"
        raise UserError(
            f"{row.name} ({info.path}) cannot be served by {engine}: {reason}; use --rollout-engine {other}"
        )
    if row.single_batch and micro_batch > 1:
        raise UserError(
            f"{row.name} needs actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1 and the two "
            "log_prob_micro_batch_size_per_gpu=1: its images differ in shape, and verl joins those of a micro-batch"
        )
    if freeze_vision and strategy == "megatron":
        raise UserError(
            "actor_rollout_ref.actor.freeze_vision_tower does nothing under Megatron, only this project's FSDP engine reads it; "
            "leave the variant out or use an FSDP preset"
        )
    if strategy == "megatron" and row.name not in MEGATRON:
        raise UserError(
            f"{row.name} cannot be trained by Megatron: verl 0.9.1 knows {', '.join(MEGATRON)}; use an FSDP preset"
        )


MEGATRON = ("Qwen2.5-VL", "Qwen3-VL")
"""Families that verl 0.9.1's Megatron workers know (verl/models/mcore/registry.py)."""


def render_models() -> str:
    """The table as text, one family a line, refusals with their reason below."""
    header = (
        "family",
        "example",
        "vLLM",
        "SGLang",
        "coordinates",
        "positions",
        "tokens per image",
        "memory class",
        "trained here",
    )
    rows = [
        (
            row.name,
            row.examples[0],
            "yes" if row.vllm else "no",
            "yes" if row.sglang else "no",
            row.coordinates,
            row.positions,
            row.tokens_per_image,
            row.memory,
            "no" if row.refused else "micro-batch 1" if row.single_batch else "yes",
        )
        for row in TABLE
    ]
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, *rows]
    ]
    reasons = [f"  {row.name}: {row.refused or row.notes}" for row in TABLE if row.refused or row.notes]
    return "\n".join([*lines, "", "Notes", *reasons])


def _is_hub_name(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None


def _by_name(name: str) -> ModelInfo:
    for row in TABLE:
        if row.pattern and re.search(row.pattern, name, re.IGNORECASE):
            return ModelInfo(name, row, row.model_types[0] if row.model_types else "", False)
    raise UserError(
        f"--model {name} is no folder, and its family cannot be told from the name; download it and give the folder, "
        "or choose one of --list-models"
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    return loaded if isinstance(loaded, dict) else None


def _pixel_limits(folder: Path) -> tuple[int | None, int | None]:
    """(min, max) area in pixels from preprocessor_config.json, in either spelling of the Qwen processors."""
    config = _read_json(folder / "preprocessor_config.json") or {}
    stated = config.get("size")
    size: dict[str, Any] = stated if isinstance(stated, dict) else {}
    if "Qwen" not in str(config.get("image_processor_type", "Qwen")):
        return None, None
    low = config.get("min_pixels") or size.get("shortest_edge")
    high = config.get("max_pixels") or size.get("longest_edge")
    return low, high
