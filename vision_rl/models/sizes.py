"""A model's sizes without its weights: it is built from its config on the meta device, which uses no memory.

For hub names that are not on disk the configs of the common Qwen-VL checkpoints are carried here, as far as they decide
sizes; the parameter counts that follow are those that the checkpoints' pages state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vision_rl.errors import UserError
from vision_rl.models.table import ModelInfo


def _qwen2(hidden: int, layers: int, heads: int, kv: int, inner: int, vocab: int, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "qwen2_vl",
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "tie_word_embeddings": tied,
        "text_config": {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "intermediate_size": inner,
            "vocab_size": vocab,
            "tie_word_embeddings": tied,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        },
        "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": hidden, "num_heads": 16, "mlp_ratio": 4},
    }


def qwen2_5(
    hidden: int, layers: int, heads: int, kv: int, inner: int, vocab: int, tied: bool, vision_inner: int
) -> dict[str, Any]:
    """The config of a Qwen2.5-VL of that shape."""
    config = _qwen2(hidden, layers, heads, kv, inner, vocab, tied)
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": vision_inner,
        "num_heads": 16,
        "out_hidden_size": hidden,
    }
    return {
        **config,
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "vision_config": vision,
    }


def _qwen3(hidden: int, layers: int, heads: int, inner: int, tied: bool, vision: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "qwen3_vl",
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "tie_word_embeddings": tied,
        "text_config": {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": inner,
            "vocab_size": 151936,
            "tie_word_embeddings": tied,
            "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20]},
        },
        "vision_config": {"patch_size": 16, "out_hidden_size": hidden, "num_heads": 16, **vision},
    }


_SMALL_EYE = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
_LARGE_EYE = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
HUB: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2-VL-2B-Instruct": _qwen2(1536, 28, 12, 2, 8960, 151936, True),
    "Qwen/Qwen2-VL-7B-Instruct": _qwen2(3584, 28, 28, 4, 18944, 152064, False),
    "Qwen/Qwen2.5-VL-3B-Instruct": qwen2_5(2048, 36, 16, 2, 11008, 151936, True, 3420),
    "Qwen/Qwen2.5-VL-7B-Instruct": qwen2_5(3584, 28, 28, 4, 18944, 152064, False, 3420),
    "Qwen/Qwen2.5-VL-32B-Instruct": qwen2_5(5120, 64, 40, 8, 27648, 152064, False, 3456),
    "Qwen/Qwen2.5-VL-72B-Instruct": qwen2_5(8192, 80, 64, 8, 29568, 152064, False, 3456),
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3(2048, 28, 16, 6144, True, _SMALL_EYE),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3(2560, 36, 32, 9728, True, _SMALL_EYE),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3(4096, 36, 32, 12288, False, _LARGE_EYE),
}


@dataclass(frozen=True)
class Shape:
    """What the memory estimate needs: parameter counts, and the widths that activations and the KV cache scale with.

    vision_patch is the side of a vision patch in pixels; vision_layers 0 where the config does not say.
    """

    parameters: int
    vision_parameters: int
    hidden: int
    layers: int
    kv_width: int
    inner: int
    vocab: int
    largest_block: int
    vision_layers: int
    vision_hidden: int
    vision_inner: int
    vision_patch: int
    linear_inputs_outputs: int

    def lora_parameters(self, rank: int) -> int:
        """Parameters of rank-`rank` adapters on every linear layer of the language model."""
        return rank * self.linear_inputs_outputs


def shape_of(info: ModelInfo) -> Shape:
    """The sizes of a model; `UserError` where neither a config.json nor a carried config is at hand."""
    config = info.config or {name.lower(): value for name, value in HUB.items()}.get(info.path.lower())
    if not config:
        raise UserError(
            f"--plan knows no sizes for {info.path}: download it and give the folder, or use one of {', '.join(HUB)}"
        )
    return _measure(config, info.path)


def _measure(config: dict[str, Any], name: str) -> Shape:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    values = {key: value for key, value in config.items() if key != "model_type"}
    try:
        hf_config = AutoConfig.for_model(config["model_type"], **values)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(hf_config)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"--plan cannot build {name} from its config: {error}") from error
    text = hf_config.get_text_config()
    vision = hf_config.vision_config
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    is_vision = ("visual", "vision_tower", "vision_model", "multi_modal_projector")
    named = dict(model.named_parameters())
    eyes = sum(p.numel() for n, p in named.items() if any(part in n for part in is_vision))
    linear = sum(
        module.in_features + module.out_features
        for n, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in n and not any(part in n for part in is_vision)
    )
    layers = int(text.num_hidden_layers)
    embeddings = text.vocab_size * text.hidden_size
    # transformers 5 keeps the flag with the whole model's config; some families name it in the text part as well.
    tied = any(getattr(part, "tie_word_embeddings", False) for part in (hf_config, text))
    heads = embeddings if tied else 2 * embeddings
    total = sum(p.numel() for p in named.values())
    return Shape(
        parameters=total,
        vision_parameters=eyes,
        hidden=text.hidden_size,
        layers=layers,
        kv_width=2 * text.num_key_value_heads * head_dim,
        inner=text.intermediate_size,
        vocab=text.vocab_size,
        largest_block=heads + 2 * max(0, total - eyes - heads) // layers,
        vision_layers=_first(vision, "depth", "num_hidden_layers"),
        vision_hidden=_first(vision, "embed_dim", "hidden_size"),
        vision_inner=_first(vision, "intermediate_size") or 4 * _first(vision, "embed_dim", "hidden_size"),
        vision_patch=_first(vision, "patch_size") or 14,
        linear_inputs_outputs=linear,
    )


def _first(config: Any, *names: str) -> int:
    return int(next((value for name in names if (value := getattr(config, name, None))), 0))
