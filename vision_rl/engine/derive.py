"""Settings that follow from others: set only where nobody chose them, each with the reason as its origin."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vision_rl.engine.schema import SGLANG_KWARGS, VLLM_KWARGS
from vision_rl.models import ModelInfo, model_info

# Layers that state a default; anything later is somebody's choice and is left alone.
_WEAK = ("verl", "agentlightning", "vision_rl", "base", "strategy", "task")
_HIDDEN_TYPES = ("qwen2_vl", "qwen2_5_vl")
_UNNAMED_LAYERS = ("llava", "internvl")
_DECODER_LAYERS = {
    "llama": "LlamaDecoderLayer",
    "mistral": "MistralDecoderLayer",
    "qwen2": "Qwen2DecoderLayer",
    "qwen3": "Qwen3DecoderLayer",
}
_SGLANG_CACHE_MB = 100  # its own default
_MODEL = "actor_rollout_ref.model"
_ROLLOUT = "actor_rollout_ref.rollout"


class Derivation:
    """Completes a merged tree in place; `notes` says what was decided without being asked."""

    def __init__(self, tree: DictConfig, origin: dict[str, str], media_root: str | Path | None) -> None:
        self.tree = tree
        self.origin = origin
        self.media_root = media_root
        self.notes: list[str] = []
        self.model: ModelInfo | None = None

    def run(self) -> None:
        """Apply every rule, in an order in which later rules may read what earlier ones set."""
        self._model()
        self._model_type()
        self._attention()
        self._sharding()
        self._caches()
        self._adapters()
        self._engine_flags()
        self.put("critic.enable", self.get("algorithm.adv_estimator") == "gae", "algorithm.adv_estimator")
        self.put("agent.max_tokens", self.get("data.max_response_length"), "data.max_response_length")
        self.put("agent.max_images", self.get("app.images_per_prompt"), "app.images_per_prompt")

    def get(self, key: str) -> Any:
        """The value of a dotted key, interpolations resolved; None where it is absent."""
        return OmegaConf.select(self.tree, key)

    def _serves(self, engine: str) -> bool:
        return bool(self.get(f"{_ROLLOUT}.name") == engine)

    def is_weak(self, key: str) -> bool:
        """Whether nobody chose `key` in a preset, variant, flag or override."""
        return self.origin.get(key, "verl").split(" ", 1)[0] in _WEAK

    def put(self, key: str, value: Any, reason: str) -> None:
        """Set `key` where it is weak and differs."""
        if self.is_weak(key) and self.get(key) != value:
            OmegaConf.update(self.tree, key, value, merge=False, force_add=True)
            self.origin[key] = f"derived: {reason}"

    def _model(self) -> None:
        path = self.get(f"{_MODEL}.path")
        if self.origin.get(f"{_MODEL}.path") == "verl":
            return  # verl's own default is a text model of its documentation; the caller has not named one yet
        self.model = model_info(path)
        self.put("agent.family", self.model.family.coordinates, f"the model is a {self.model.family.name}")
        limits = {name: value for name in ("min_pixels", "max_pixels") if (value := self.get(f"agent.{name}"))}
        for name, value in (("min_pixels", self.model.min_pixels), ("max_pixels", self.model.max_pixels)):
            if name not in limits and value is not None:
                OmegaConf.update(self.tree, f"agent.{name}", value)
                self.origin[f"agent.{name}"] = "derived: the model's processor"
        if limits and self.model.family.resizes:
            reason = "agent.min_pixels, agent.max_pixels"
            if self._serves("vllm"):  # verl hands vLLM's arguments over as command-line text, hence JSON
                self.put(f"{VLLM_KWARGS}.mm_processor_kwargs", json.dumps(limits), reason)
            else:
                self.put(f"{SGLANG_KWARGS}.mm_processor_kwargs", limits, reason)

    def _model_type(self) -> None:
        """Tell verl the model's own type where transformers 4.57 answers with that of the text part: for Qwen2-VL and
        Qwen2.5-VL folders that it has saved itself (configuration_qwen2_5_vl.py:351). Else verl applies none of its
        patches for them (monkey_patch.py:292), and counts no FLOPs. It can go with transformers 5.
        """
        if self.model is None or self.model.model_type not in _HIDDEN_TYPES:
            return
        own = self.model.model_type
        if self.model.on_disk and self.model.config.get("text_config", {}).get("model_type", own) == own:
            return
        section = f"{_MODEL}.override_config"
        if self.get("actor_rollout_ref.actor.strategy") == "megatron":
            section += ".model_config"
        self.put(f"{section}.model_type", own, "config.json, which transformers 4.57 misreads")

    def _attention(self) -> None:
        if (
            importlib.util.find_spec("flash_attn") is not None
            or self.get("actor_rollout_ref.actor.strategy") == "megatron"
        ):
            return
        before = self.get(f"{_MODEL}.use_remove_padding")
        self.put(f"{_MODEL}.override_config.attn_implementation", "sdpa", "flash-attn is not installed")
        self.put(
            f"{_MODEL}.use_remove_padding", False, "verl's padding removal calls flash_attn.bert_padding, not installed"
        )
        if before and not self.get(f"{_MODEL}.use_remove_padding"):
            self.notes.append(
                "flash-attn is not installed: attention is PyTorch's SDPA and padding is kept, which costs time in "
                "proportion to the padding"
            )

    def _sharding(self) -> None:
        """Name the layers to shard where transformers does not: verl asks the model's `_no_split_modules`, None there."""
        if self.model is None or self.model.model_type not in _UNNAMED_LAYERS:
            return
        text_type = self.model.config.get("text_config", {}).get("model_type")
        if text_type in _DECODER_LAYERS:
            for role in ("actor", "ref"):
                key = f"actor_rollout_ref.{role}.fsdp_config.wrap_policy.transformer_layer_cls_to_wrap"
                self.put(key, [_DECODER_LAYERS[text_type]], f"the text part is a {text_type}")

    def _caches(self) -> None:
        """What may be kept of a picture over a weight update: all where the vision tower, projector included, is frozen."""
        frozen = self.get("actor_rollout_ref.actor.freeze_vision_tower")
        stays = frozen and self.model is not None and self.model.family.visual
        reason = "the vision tower is frozen: its embeddings stay true, and verl resets the prefix cache"
        if self._serves("sglang"):
            trained = "the vision tower is trained: SGLang would answer from embeddings of its old weights"
            cache = _SGLANG_CACHE_MB if stays else 0
            self.put(f"{SGLANG_KWARGS}.mm_embedding_cache_mb", cache, reason if stays else trained)
        elif stays:
            self.put(f"{_ROLLOUT}.enable_prefix_caching", True, reason)
            self.put(f"{VLLM_KWARGS}.mm_processor_cache_gb", None, reason)

    def _adapters(self) -> None:
        if self.get(f"{_MODEL}.lora_rank") and self.model is not None:
            tower = "visual" if self.model.family.visual else "vision_tower"
            self.put(f"{_MODEL}.exclude_modules", f".*{tower}.*", "vLLM cannot serve adapters inside the vision tower")
            self.put(f"{_ROLLOUT}.load_format", "safetensors", "only the adapter is synced to the server")

    def _engine_flags(self) -> None:
        served_folder = self.get("agent.image_transport") == "file" and self.media_root is not None
        tools = self.get("agent.tool_protocol") == "function" and self.get("agent.max_tool_calls")
        if self._serves("vllm"):
            self._vllm_flags(tools)
        else:
            self._sglang_flags(tools)
        if served_folder:
            section = VLLM_KWARGS if self._serves("vllm") else SGLANG_KWARGS
            self.put(f"{section}.allowed_local_media_path", str(self.media_root), "the folder of the data's images")

    def _sglang_flags(self, tools: bool) -> None:
        self.put(f"{_ROLLOUT}.skip_tokenizer_init", False, "chat needs SGLang's tokenizer")
        reason = "the model's generation_config.json would change what is sampled, not the log-probabilities"
        self.put(f"{SGLANG_KWARGS}.sampling_defaults", "openai", reason)
        if tools:
            self.put(
                f"{SGLANG_KWARGS}.tool_call_parser", "qwen25", "agent.tool_protocol=function, as Qwen writes calls"
            )
        self.notes.append(
            "SGLang: what stands under engine_kwargs.vllm, rollout.enable_prefix_caching and max_num_batched_tokens does not "
            "reach it; it keeps a prefix cache, which verl empties at every weight update"
        )

    def _vllm_flags(self, tools: bool) -> None:
        images = self.get("app.images_per_prompt")
        self.put(
            f"{VLLM_KWARGS}.limit_mm_per_prompt", json.dumps({"image": images, "video": 0}), "app.images_per_prompt"
        )
        if tools:
            # else vLLM refuses every request with tools; the parser of another model is a matter of an override
            self.put(f"{VLLM_KWARGS}.enable_auto_tool_choice", True, "agent.tool_protocol=function")
            self.put(f"{VLLM_KWARGS}.tool_call_parser", "hermes", "agent.tool_protocol=function, as Qwen writes calls")
