"""The model table: every vision-language family that this project knows, and what it can do with it.

One row per family. `model_info` finds the row of a model folder (by its config.json) or of a hub name, `check_pairing`
refuses what cannot work with the reason. Whether trainer and server agree on a family is measured, not stated here:
`measured` reads the last parity matrix (benchmarks/parity.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vision_rl.errors import UserError


@dataclass(frozen=True)
class ModelFamily:
    """One family, everything about it in one row.

    examples: hub names. model_types: what its config.json says. architectures: its classes in the servers' registries.
    vllm, sglang: whether that server knows them. coordinates: a row of vision_rl.answers.coordinates.FAMILIES. positions: "mrope"
    (3-D, computed by the model's own class) or "plain". tower: the name of its vision part below `model`, which LoRA
    leaves alone because vLLM cannot serve adapters there. no_video: why it is not shown native videos (agent.video=native),
    "" where trainer and vLLM agree on them; a video's frames are pictures, for every family. pattern: how a hub name is
    recognised. no_sglang: why SGLang does not serve it, where it is more than that it does not know it. refused: why it
    cannot be trained here, whatever the server ("" where it can), with the upstream issue.
    Not in the row, because the checkpoint itself says it: special tokens (vision_rl.models.tokens), processor
    (vision_rl.models.processor).
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
    pattern: str
    tower: str = "vision_tower"
    refused: str = ""
    notes: str = ""
    no_video: str = "it has no videos of its own"
    no_sglang: str = ""

    @property
    def remarks(self) -> str:
        """What stands below the printed table: why it is refused, or what is special, and why not with SGLang."""
        with_sglang = "" if self.refused or not self.no_sglang else f"not with SGLang: {self.no_sglang}"
        return "; ".join(part for part in (self.refused or self.notes, with_sglang) if part)

    @property
    def resizes(self) -> bool:
        """Whether its processor takes min_pixels and max_pixels (the Qwen-VL processors and those built on them)."""
        return self.coordinates.startswith("qwen")


_REMOTE = "its model code comes with the checkpoint; batches are built for transformers' own classes only"
_OWN_FORMAT = "SGLang serves its original checkpoint format only, which transformers does not train"
_QWEN_TOKENS, _QWEN3_TOKENS = "width x height / 784 after resizing", "width x height / 1024 after resizing"
_GATED_DELTA = (
    "vLLM's kernels for its linear attention take no float32 (CPU: cpu/gdn_attention.py asserts bfloat16; CUDA: vllm pull "
    "51373), so that parity cannot be shown to 1e-4, and in bfloat16 they differ from transformers (vllm issue 51779)"
)

_QWEN_SECONDS = (
    "vLLM 0.24 takes every video of it for one of 24 frames a second (mended by vllm pull 47736), and transformers 5.9 cuts "
    "the time between frames to whole seconds (mended by transformers pull 48669)"
)
_PIXTRAL_TOWER = "its pictures come out otherwise than in transformers: up to 1.7 nats apart for SGLang 0.5.12 on a CPU"
_UNMEASURED = "SGLang 0.5.12's CPU build does not start with it, so that its parity has not been measured"
_GLM_VIDEO = "vLLM 0.24 writes its video token where transformers 5.9 writes the picture token (vllm pull 49220)"

TABLE: tuple[ModelFamily, ...] = (
    ModelFamily(
        "Qwen2-VL", ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"), ("qwen2_vl",),
        ("Qwen2VLForConditionalGeneration",), True, True, "qwen2_vl", "mrope", _QWEN_TOKENS,
        "24 GB: 2B (7B by LoRA); 8x80 GB: 7B full", r"Qwen2-VL", "visual", no_video="",
    ),
    ModelFamily(
        "Qwen2.5-VL", ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"), ("qwen2_5_vl",),
        ("Qwen2_5_VLForConditionalGeneration",), True, True, "qwen2_5_vl", "mrope", _QWEN_TOKENS,
        "24 GB: 3B (offload or LoRA); 8x80 GB: 7B full", r"Qwen2\.5-VL", "visual", no_video=_QWEN_SECONDS,
    ),
    ModelFamily(
        "Qwen3-VL-MoE", ("Qwen/Qwen3-VL-30B-A3B-Instruct",), ("qwen3_vl_moe",),
        ("Qwen3VLMoeForConditionalGeneration",), True, True, "qwen3_vl", "mrope", _QWEN3_TOKENS,
        "8x80 GB: 30B (3B active)", r"Qwen3-VL-\d+B-A\d+B", "visual", no_video="",
    ),
    ModelFamily(
        "Qwen3-VL", ("Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"), ("qwen3_vl",),
        ("Qwen3VLForConditionalGeneration",), True, True, "qwen3_vl", "mrope", _QWEN3_TOKENS,
        "40 GB: 4B (offload or LoRA); 8x80 GB: 8B full", r"Qwen3-VL", "visual", no_video="",
    ),
    ModelFamily(
        "Qwen3.5-MoE", ("Qwen/Qwen3.5-35B-A3B",), ("qwen3_5_moe",), ("Qwen3_5MoeForConditionalGeneration",), True, True,
        "qwen3_5", "mrope", _QWEN3_TOKENS, "8x80 GB: 35B (3B active)", r"Qwen3\.[56]-\d+B-A\d+B", "visual", _GATED_DELTA,
    ),
    ModelFamily(
        "Qwen3.5", ("Qwen/Qwen3.5-4B",), ("qwen3_5",), ("Qwen3_5ForConditionalGeneration",), True, True, "qwen3_5",
        "mrope", _QWEN3_TOKENS, "40 GB: 4B", r"Qwen3\.[56]", "visual", _GATED_DELTA,
    ),
    ModelFamily(
        "MiMo-VL", ("XiaomiMiMo/MiMo-VL-7B-RL",), (), ("Qwen2_5_VLForConditionalGeneration",), True, True,
        "qwen2_5_vl", "mrope", _QWEN_TOKENS, "8x80 GB: 7B full", r"MiMo-VL", "visual",
        notes="its config.json says qwen2_5_vl, so it is treated, and measured, as Qwen2.5-VL", no_video=_QWEN_SECONDS,
    ),
    ModelFamily(
        "LLaVA-1.5", ("llava-hf/llava-1.5-7b-hf",), ("llava",), ("LlavaForConditionalGeneration",), True, False,
        "unit", "plain", "576", "40 GB: 7B by LoRA; 8x80 GB: 7B full", r"llava-1\.5|llava-v1\.5",
        no_sglang="SGLang has no processor for its CLIP tower in transformers' format",
    ),
    ModelFamily(
        "LLaVA-NeXT (1.6)", ("llava-hf/llava-v1.6-vicuna-7b-hf",), ("llava_next",),
        ("LlavaNextForConditionalGeneration",), True, False, "unit", "plain", "up to 2880 (576 x up to 5 tiles)",
        "40 GB: 7B by LoRA; 8x80 GB: 7B full", r"llava-v1\.6|llava-next", no_sglang=_OWN_FORMAT,
    ),
    ModelFamily(
        "LLaVA-OneVision", ("llava-hf/llava-onevision-qwen2-7b-ov-hf",), ("llava_onevision",),
        ("LlavaOnevisionForConditionalGeneration",), True, False, "unit", "plain", "up to 7290 (729 x up to 10 tiles)",
        "40 GB: 7B by LoRA; 8x80 GB: 7B full", r"llava-onevision", no_sglang=_OWN_FORMAT, no_video="",
    ),
    ModelFamily(
        "InternVL 3 (-hf)", ("OpenGVLab/InternVL3-2B-hf", "OpenGVLab/InternVL3_5-8B-HF"), ("internvl",),
        ("InternVLForConditionalGeneration",), True, False, "internvl", "plain", "256 x up to 13 tiles of 448",
        "24 GB: 2B (offload or LoRA); 8x80 GB: 8B full", r"InternVL.*-hf$", no_sglang=_OWN_FORMAT,
        no_video="vLLM 0.24 writes its video token where transformers 5.9 writes the picture token (interns1.py)",
    ),
    ModelFamily(
        "InternVL 2.5/3/3.5", ("OpenGVLab/InternVL2_5-2B", "OpenGVLab/InternVL3-8B"), ("internvl_chat",),
        ("InternVLChatModel",), True, True, "internvl", "plain", "256 x up to 13 tiles of 448", "24 GB: 2B",
        r"InternVL", refused=f"{_REMOTE}; use the same weights in transformers' format, whose names end in -hf",
    ),
    ModelFamily(
        "Pixtral", ("mistral-community/pixtral-12b",), (), ("LlavaForConditionalGeneration",), True, False, "unit",
        "plain", "width x height / 256", "8x80 GB: 12B full", r"pixtral",
        notes="transformers' format only; its config.json says llava", no_sglang=_PIXTRAL_TOWER,
    ),
    ModelFamily(
        "Mistral 3", ("mistralai/Mistral-Small-3.1-24B-Instruct-2503",), ("mistral3",),
        ("Mistral3ForConditionalGeneration",), True, False, "unit", "plain", "width x height / 784", "8x80 GB: 24B full",
        r"Mistral-Small-3\.|Ministral-3", no_sglang=_PIXTRAL_TOWER,
    ),
    ModelFamily(
        "Idefics3", ("HuggingFaceM4/Idefics3-8B-Llama3",), ("idefics3",), ("Idefics3ForConditionalGeneration",), True,
        False, "unit", "plain", "169 per tile", "8x80 GB: 8B full", r"Idefics3", "vision_model",
    ),
    ModelFamily(
        "SmolVLM", ("HuggingFaceTB/SmolVLM2-2.2B-Instruct",), ("smolvlm",), ("SmolVLMForConditionalGeneration",), True,
        False, "unit", "plain", "81 per tile", "24 GB: 2.2B", r"SmolVLM", "vision_model",
        notes="its processor needs the package num2words", no_video="vLLM 0.24 takes pictures only for it (smolvlm.py)",
    ),
    ModelFamily(
        "LFM2-VL", ("LiquidAI/LFM2-VL-1.6B",), ("lfm2_vl",), ("Lfm2VlForConditionalGeneration",), True, False, "unit",
        "plain", "up to 256 per tile of 512", "24 GB: 1.6B", r"LFM2-VL",
        refused="vLLM 0.24's CPU build cannot run its short convolutions (triton is absent there, causal_conv1d.py; vllm issue "
        "25771, pull 35059), so that its parity has not been measured",
    ),
    ModelFamily(
        "Gemma 3", ("google/gemma-3-4b-it",), ("gemma3",), ("Gemma3ForConditionalGeneration",), True, True, "gemma",
        "plain", "256", "40 GB: 4B", r"gemma-3",
        refused="its picture tokens see each other in both directions, which vLLM computes with its Triton and Flex kernels "
        "only (vllm issues 19763, 30786); the CPU build's answers are off by 0.03 nats, and no GPU was measured",
    ),
    ModelFamily(
        "Gemma 4", ("google/gemma-4-E4B-it",), ("gemma4",), ("Gemma4ForConditionalGeneration",), True, False, "gemma",
        "plain", "up to 280", "40 GB: 4B", r"gemma-4",
        notes="the checkpoints whose text_config says use_bidirectional_attention=vision (26B, 31B) are refused",
        no_video="", no_sglang=f"{_UNMEASURED}: it takes moe_intermediate_size for a number, which a dense model has not",
    ),
    ModelFamily(
        "PaliGemma 2", ("google/paligemma2-3b-mix-448",), ("paligemma",), ("PaliGemmaForConditionalGeneration",), True,
        False, "paligemma", "plain", "256 to 4096", "24 GB: 3B", r"paligemma",
        refused="its whole prompt attends in both directions, and vLLM computes it causally (vllm pull 27938): even text "
        "without pictures is off by a nat",
    ),
    ModelFamily(
        "Llama 3.2 Vision", ("meta-llama/Llama-3.2-11B-Vision-Instruct",), ("mllama",),
        ("MllamaForConditionalGeneration",), False, True, "unit", "cross-attention", "1 (and 1601 per tile across)",
        "8x80 GB: 11B full", r"Llama-3\.2-.*Vision", "vision_model",
        "images enter by cross-attention, whose masks the training batch does not carry, and vLLM dropped it after 0.10.2",
    ),
    ModelFamily(
        "Llama 4", ("meta-llama/Llama-4-Scout-17B-16E-Instruct",), ("llama4",), ("Llama4ForConditionalGeneration",),
        True, False, "unit", "plain", "144 per tile", "several 8x80 GB nodes", r"Llama-4", "vision_model",
        no_sglang=f"{_UNMEASURED}: it finds its memory pool too small",
    ),
    ModelFamily(
        "GLM-4.1V", ("zai-org/GLM-4.1V-9B-Thinking",), ("glm4v",), ("Glm4vForConditionalGeneration",), True, True,
        "glm4v", "mrope", _QWEN_TOKENS, "8x80 GB: 9B full", r"GLM-4\.1V", "visual", no_video=_GLM_VIDEO,
    ),
    ModelFamily(
        "GLM-4.6V", ("zai-org/GLM-4.6V-Flash",), (), ("Glm4vForConditionalGeneration",), True, True, "glm4v", "mrope",
        _QWEN_TOKENS, "8x80 GB: 9B full", r"GLM-4\.6V-Flash", "visual",
        notes="the model of GLM-4.1V with a processor of its own; its large sibling is GLM-4.5V's model",
        no_video=_GLM_VIDEO,
    ),
    ModelFamily(
        "GLM-4.5V", ("zai-org/GLM-4.5V",), ("glm4v_moe",), ("Glm4vMoeForConditionalGeneration",), True, True, "glm4v",
        "mrope", _QWEN_TOKENS, "several 8x80 GB nodes", r"GLM-4\.[56]V", "visual", no_video=_GLM_VIDEO,
    ),
    ModelFamily(
        "GLM-4V", ("zai-org/glm-4v-9b",), ("chatglm",), ("GLM4VForCausalLM",), True, False, "unit", "plain", "1600",
        "8x80 GB: 9B full", r"glm-4v", refused=_REMOTE,
    ),
    ModelFamily(
        "DeepSeek-VL2", ("deepseek-ai/deepseek-vl2-tiny",), ("deepseek_vl_v2",), ("DeepseekVLV2ForCausalLM",), True,
        True, "deepseek_vl2", "plain", "421 and more", "24 GB: tiny", r"deepseek-vl2", refused=_REMOTE,
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
        "Molmo", ("allenai/Molmo-7B-D-0924",), ("molmo",), ("MolmoForCausalLM",), True, False, "molmo", "plain",
        "144 per crop, up to 1872", "8x80 GB: 7B full", r"Molmo", refused=_REMOTE,
    ),
    ModelFamily(
        "Kimi-VL", ("moonshotai/Kimi-VL-A3B-Instruct",), ("kimi_vl",), ("KimiVLForConditionalGeneration",), True, True,
        "kimi_vl", "plain", _QWEN_TOKENS, "8x80 GB: 16B (3B active)", r"Kimi-VL", refused=_REMOTE,
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
_BY_NAME = {row.name: row for row in TABLE}


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
        family = _BY_NAME["Pixtral"]
    if model_type == "glm4v" and "Glm46V" in str(_image_processor(folder)):
        family = _BY_NAME["GLM-4.6V"]
    low, high = _pixel_limits(folder)
    return ModelInfo(name, family, model_type, True, config, low, high)


def check_pairing(
    info: ModelInfo,
    engine: str = "vllm",
    *,
    freeze_vision: bool = False,
    strategy: str = "fsdp2",
    adapted: Callable[[str], bool] | None = None,
) -> None:
    """Raise `UserError`, with the reason, for a model that this engine or these training settings cannot handle.

    adapted: for a LoRA run, whether the module of a name gets an adapter.
    """
    row = info.family
    if row.refused:
        raise UserError(f"{row.name} ({info.path}) cannot be trained here: {row.refused}; --list-models shows what can")
    text = info.config.get("text_config")
    if isinstance(text, dict) and text.get("use_bidirectional_attention") == "vision":
        raise UserError(
            f"{info.path} cannot be trained here: its picture tokens see each other in both directions "
            "(text_config.use_bidirectional_attention=vision), where vLLM's attention differs (vllm issue 40106)"
        )
    if not (row.vllm if engine == "vllm" else row.sglang):
        other = "sglang" if engine == "vllm" else "vllm"
        reason = (row.no_sglang if engine == "sglang" else "") or f"it has no {row.architectures[0]}"
        raise UserError(
            f"{row.name} ({info.path}) cannot be served by {engine}: {reason}; use --rollout-engine {other}"
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
    if adapted is not None and adapted(f"model.{row.tower}.layers.0.attn.qkv"):
        raise UserError(
            f"LoRA adapters inside the vision tower of {row.name} would train but not be served: vLLM has none there; "
            f"set actor_rollout_ref.model.exclude_modules='.*{row.tower}.*'"
        )


MEGATRON = ("Qwen2.5-VL", "Qwen3-VL", "Qwen3-VL-MoE")
"""Families that verl 0.9.1's Megatron workers know (verl/models/mcore/registry.py)."""

PARITY_RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "parity.json"


@dataclass(frozen=True)
class Measured:
    """One family in the last parity matrix: how many of its cells are equal, the largest difference among those in nats,
    and when and with what it was measured."""

    equal: int
    cells: int
    largest: float
    date: str
    versions: str


_MEASURED_AS = {"MiMo-VL": "Qwen2.5-VL"}


def measured(results: Path = PARITY_RESULTS) -> dict[str, Measured]:
    """The last parity matrix by the family's name; empty where the repository's benchmarks are not there."""
    by_family: dict[str, list[dict[str, Any]]] = {}
    for cell in json.loads(results.read_text(encoding="utf-8")) if results.exists() else []:
        by_family.setdefault(cell["family"], []).append(cell)
    found = {}
    for row in TABLE:
        cells = by_family.get(_MEASURED_AS.get(row.name, row.name), [])
        if row.no_video:  # nobody is shown one
            cells = [cell for cell in cells if cell["cell"] != "video"]
        if cells:
            equal = [cell for cell in cells if cell["verdict"] == "equal"]
            largest = max((cell["max"] for cell in equal), default=0.0)
            found[row.name] = Measured(len(equal), len(cells), largest, cells[0]["date"], cells[0]["versions"])
    return found


def _parity(found: Measured | None) -> str:
    if found is None:
        return "-"
    return f"{found.equal} of {found.cells}" + (f", {found.largest:.0e}" if found.equal else "")


def render_models() -> str:
    """The table as text, one family a line, refusals with their reason below."""
    header = (
        "family",
        "example",
        "vLLM",
        "SGLang",
        "coordinates",
        "positions",
        "memory class",
        "parity",
        "trained here",
    )
    matrix = measured()
    rows = [
        (
            row.name,
            row.examples[0],
            "yes" if row.vllm else "no",
            "yes" if row.sglang else "no",
            row.coordinates,
            row.positions,
            row.memory,
            _parity(matrix.get(row.name)),
            "no" if row.refused else "yes",
        )
        for row in TABLE
    ]
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, *rows]
    ]
    when = sorted({f"{m.date} ({m.versions})" for m in matrix.values()})
    parity = (
        f"parity: cells in which trainer and vLLM agree to 1e-4 nats, and the largest difference; {'; '.join(when)}"
    )
    reasons = [f"  {row.name}: {row.remarks}" for row in TABLE if row.remarks]
    return "\n".join([*lines, "", *([parity, ""] if matrix else []), "Notes", *reasons])


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


def image_processor_file(folder: Path) -> Path | None:
    """Where a model folder's image processor stands: a part of transformers 5's file, or the whole of transformers 4's."""
    newer, older = folder / "processor_config.json", folder / "preprocessor_config.json"
    if "image_processor" in (_read_json(newer) or {}):
        return newer
    return older if older.exists() else None


def _image_processor(folder: Path) -> dict[str, Any]:
    """The image processor's settings."""
    path = image_processor_file(folder)
    document = (_read_json(path) if path else None) or {}
    return document.get("image_processor", document)


def _pixel_limits(folder: Path) -> tuple[int | None, int | None]:
    """(min, max) area of a picture in pixels, in either spelling of the Qwen processors."""
    config = _image_processor(folder)
    stated = config.get("size")
    size: dict[str, Any] = stated if isinstance(stated, dict) else {}
    if "Qwen" not in str(config.get("image_processor_type", "Qwen")):
        return None, None
    low = config.get("min_pixels") or size.get("shortest_edge")
    high = config.get("max_pixels") or size.get("longest_edge")
    return low, high
