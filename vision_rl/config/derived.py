"""Settings that follow from others. Each is set only where nobody chose a value, and its origin says why."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vision_rl.config.known_keys import SGLANG_KWARGS, VLLM_KWARGS
from vision_rl.config.origin import VERL, Layer, Origin, derived
from vision_rl.models.table import ModelInfo, model_info, rounding
from vision_rl.rewards.grounding import KINDS

# Layers that state a default; anything later is somebody's choice and is left alone.
_UNNAMED_LAYERS = ("llava", "internvl")
_DECODER_LAYERS = {
    "llama": "LlamaDecoderLayer",
    "mistral": "MistralDecoderLayer",
    "qwen2": "Qwen2DecoderLayer",
    "qwen3": "Qwen3DecoderLayer",
}
_TASK_COMPONENT = {
    **dict.fromkeys(KINDS, "task"),
    **{"vqa": "accuracy", "arc": "iou"},
    **{name: name for name in ("official_2021", "similarity", "judge")},
}
"""The component of a built-in reward that says how good the answer is."""
_SGLANG_CACHE_MB = 100  # its own default
_MODEL = "actor_rollout_ref.model"
_ACTOR = "actor_rollout_ref.actor"
_REF = "actor_rollout_ref.ref"
_ROLLOUT = "actor_rollout_ref.rollout"
_INTEGRITY = "app.integrity"
LIMIT_OF_ROUNDING, LEAST, UNMEASURED = 3.0, 0.05, 0.1
"""The mean mismatch that stops a run in bfloat16: times the rounding of the family's tiny model, but no fewer nats than that,
because random weights may round less than trained ones (Gemma 3's limit would be 0.017); or nats where nobody has measured it.
A trainer that does not see is off by more (test_evidence.py)."""


def sample_limits(verl: Mapping[str, Any] | DictConfig) -> tuple[int, int]:
    """(prompt, response) lengths in tokens above which a sample is dropped, or its response cut, at the level in use.

    At the "trajectory" level a turn that cannot be merged brings its whole prompt: `data.max_prompt_length` bounds it too.
    """
    data, level = verl["data"], verl["agentlightning"]["trace_aggregator"]
    if level["level"] != "trajectory":
        return data["max_prompt_length"], data["max_response_length"]
    longest = max(level["trajectory_max_prompt_length"], data["max_prompt_length"])
    return longest, level["trajectory_max_response_length"]


class Derivation:
    """Completes a merged tree in place; `notes` says what was decided without being asked."""

    def __init__(self, tree: DictConfig, origin: dict[str, Origin], media_root: str | Path | None) -> None:
        self.tree = tree
        self.origin = origin
        self.media_root = media_root
        self.notes: list[str] = []
        self.model: ModelInfo | None = None

    def run(self) -> None:
        """Apply every rule, in an order in which later rules may read what earlier ones set."""
        self._model()
        self._precision()
        self._attention()
        self._sharding()
        self._lengths()
        self._loss()
        self._asynchronous()
        self._caches()
        self._adapters()
        self._engine_flags()
        reason = "app.filter_groups.enable"
        self.put("algorithm.filter_groups.enable", self.get("app.filter_groups.enable"), reason)
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
        return self.origin.get(key, VERL).layer.is_default

    def put(self, key: str, value: Any, reason: str) -> None:
        """Set `key` if nobody chose it and it differs."""
        if self.is_weak(key) and self.get(key) != value:
            OmegaConf.update(self.tree, key, value, merge=False, force_add=True)
            self.origin[key] = derived(reason)

    def _model(self) -> None:
        path = self.get(f"{_MODEL}.path")
        if self.origin.get(f"{_MODEL}.path") == VERL:
            return  # verl's own default is a text model of its documentation; the caller has not named one yet
        self.model = model_info(path)
        self.put("agent.family", self.model.family.coordinates, f"the model is a {self.model.family.name}")
        limits = {name: value for name in ("min_pixels", "max_pixels") if (value := self.get(f"agent.{name}"))}
        for name, value in (("min_pixels", self.model.min_pixels), ("max_pixels", self.model.max_pixels)):
            if name not in limits and value is not None:
                OmegaConf.update(self.tree, f"agent.{name}", value)
                self.origin[f"agent.{name}"] = derived("the model's processor")
        if limits and self.model.family.resizes:
            section = VLLM_KWARGS if self._serves("vllm") else SGLANG_KWARGS
            self.put(f"{section}.mm_processor_kwargs", limits, "agent.min_pixels, agent.max_pixels")

    def _precision(self) -> None:
        """The server's, and the limit of the mismatch that goes with it: rounding is the family's own."""
        if self.model is None:
            return
        family, cpu = self.model.family, self.get("trainer.device") == "cpu"
        if family.precision == "bfloat16" and self._serves("vllm"):
            states = "the states of linear attention are kept in float32 also where the checkpoint does not say so"
            self.put(f"{VLLM_KWARGS}.mamba_ssm_cache_dtype", "float32", states)
        if cpu and family.precision == "bfloat16":
            reason = f"vLLM's kernels for {family.name} take no float32"
            self._instead_of_preset(f"{_ROLLOUT}.dtype", "bfloat16", reason)
            # Of the tiny Qwen3.5 a float32 actor is off by 2.3 nats at most, this one by 0.1.
            for side in (_ACTOR, _REF):
                self._instead_of_preset(f"{side}.fsdp_config.mixed_precision.param_dtype", "bf16", reason)
            self.put(
                f"{_ROLLOUT}.enable_prefix_caching", False, "on a CPU vLLM cannot copy the states of linear attention"
            )
            self.notes.append(
                f"{reason}: server and actor compute in bfloat16, and the limit of the mismatch is the rounding's"
            )
        if self.get(f"{_ROLLOUT}.dtype") == "bfloat16":
            noise = rounding(family)
            if noise is None:
                limit, reason = UNMEASURED, f"nobody has measured what bfloat16 does to {family.name}"
            else:
                limit = max(LIMIT_OF_ROUNDING * noise, LEAST)
                reason = f"{LIMIT_OF_ROUNDING:g} times what bfloat16 does to {family.name}, at least {LEAST:g} (docs/models.md)"
            for name, value in (("max", None), ("mean", limit)):
                self._instead_of_preset(f"{_INTEGRITY}.logprob_mismatch_{name}", value, reason)

    def _instead_of_preset(self, key: str, value: Any, reason: str) -> None:
        """Set what a preset says for every model, where nobody chose it for this one."""
        if self.is_weak(key) or self.origin[key].layer is Layer.PRESET:
            OmegaConf.update(self.tree, key, value, merge=False, force_add=True)
            self.origin[key] = derived(reason)

    def _attention(self) -> None:
        if importlib.util.find_spec("flash_attn") is not None or self.get(f"{_ACTOR}.strategy") == "megatron":
            return
        before = self.get(f"{_MODEL}.use_remove_padding")
        self.put(f"{_MODEL}.override_config.attn_implementation", "sdpa", "flash-attn is not installed")
        reason = "without padding verl leaves out the attention mask, which flash-attn alone replaces by lengths"
        self.put(f"{_MODEL}.use_remove_padding", False, reason)
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

    def _lengths(self) -> None:
        """Tokens of a request and of a micro-batch; verl's own are the model's 128k, and a number that fits no GPU in
        particular."""
        request = self.get("data.max_prompt_length") + self.get("data.max_response_length")
        # Half as much again: a prompt that is over its limit is then dropped and counted, not refused by the server.
        room = min(request + request // 2, max(request, self._positions()))
        reason = "data.max_prompt_length + data.max_response_length, with room for a prompt over its limit"
        self.put(f"{_ROLLOUT}.max_model_len", room, reason)
        longest = sum(sample_limits(self.tree))
        for key, micro in (
            (f"{_ACTOR}.ppo_max_token_len_per_gpu", f"{_ACTOR}.ppo_micro_batch_size_per_gpu"),
            (f"{_ROLLOUT}.log_prob_max_token_len_per_gpu", f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu"),
            (f"{_REF}.log_prob_max_token_len_per_gpu", f"{_REF}.log_prob_micro_batch_size_per_gpu"),
        ):
            size = self.get(micro) or 1
            self.put(key, size * longest, f"{size} samples of the longest kind ({micro.rsplit('.', 1)[1]})")

    def _positions(self) -> int:
        """How many positions the model has, as far as its config.json says."""
        config = self.model.config if self.model is not None else {}
        found = config.get("text_config", config).get("max_position_embeddings")
        return int(found or config.get("max_position_embeddings") or 1 << 30)

    def _loss(self) -> None:
        """Dr. GRPO divides by a constant; without one verl divides by the longest response of each micro-batch
        (core_algos.agg_loss)."""
        if self.get(f"{_ACTOR}.loss_agg_mode") == "seq-mean-token-sum-norm":
            limit = sample_limits(self.tree)[1]
            self.put(f"{_ACTOR}.loss_scale_factor", limit, "the response limit, as Dr. GRPO divides by a constant")
        component = _TASK_COMPONENT.get(self.get("agent.reward"))
        if self.get("algorithm.adv_estimator") == "gdpo" and component:
            self.put("algorithm.gdpo_reward_keys", [component, "format/ok"], "what agent.reward consists of")
        if self.get("app.papo.kl_coef"):
            self.put(f"{_ACTOR}.calculate_entropy", True, "app.papo.entropy_coef")
        if self.get(f"{_ACTOR}.strategy") == "megatron":
            self.put("app.sight.every", 0, "the engine for Megatron is verl's own, which cannot show black pictures")
        if str(self.get("algorithm.adv_estimator")).endswith("optimal_token_baseline"):
            self.put(f"{_ACTOR}.calculate_sum_pi_squared", True, "algorithm.adv_estimator")

    def _asynchronous(self) -> None:
        """What verl's asynchronous modes ask for, and the logical GPUs of a CPU run."""
        trained = self.get("trainer.n_gpus_per_node") * self.get("trainer.nnodes")
        served = 0
        if self.get("trainer.v1.trainer_mode") == "separate_async":
            served = self.get(f"{_ROLLOUT}.n_gpus_per_node") * self.get(f"{_ROLLOUT}.nnodes")
            updates = self.get("data.train_batch_size") // max(1, self.get(f"{_ACTOR}.ppo_mini_batch_size"))
            reason = "data.train_batch_size / actor.ppo_mini_batch_size updates before weights are sent"
            self.put("trainer.v1.separate_async.parameter_sync_step", max(1, updates), reason)
            self._file_transfer()
        if self.get("trainer.device") == "cpu":
            self.put("ray_kwargs.ray_init.num_gpus", trained + served, "one logical GPU for each rank and server")
        self._logical_cpus(trained + served)

    def _logical_cpus(self, ranks: int) -> None:
        """Ray waits without end and without a word for CPUs that a small machine does not have; the actors mostly idle.

        verl reserves three for each rank and server (single_controller/ray/base.py, `max_colocate_count`), TransferQueue
        one for each storage unit and its controller; the trainer's own actor takes one.
        """
        if self.get("ray_kwargs.ray_init.address") or os.environ.get("RAY_ADDRESS"):
            return
        needed = 3 * ranks + self.get("transfer_queue.backend.SimpleStorage.num_data_storage_units") + 2
        if self.get("trainer.device") == "cpu" or needed > (os.cpu_count() or 1):
            self.put("ray_kwargs.ray_init.num_cpus", needed, "what the ranks, servers and the queue reserve")

    def _file_transfer(self) -> None:
        """A machine without GPUs has none of verl's transports; ours takes the place of the variant's NCCL."""
        section = f"{_ROLLOUT}.checkpoint_engine"
        if self.get("trainer.device") == "cpu" and self.get(f"{section}.backend") == "nccl":
            for name, value in (("backend", "file"), ("custom_backend_module", "vision_rl.platform.file_transfer")):
                OmegaConf.update(self.tree, f"{section}.{name}", value)
                self.origin[f"{section}.{name}"] = derived("trainer.device=cpu")

    def _caches(self) -> None:
        """SGLang keeps embeddings of pictures over a weight update; vLLM's caches are emptied by verl."""
        if not self._serves("sglang"):
            return
        frozen = bool(self.get(f"{_ACTOR}.freeze_vision_tower"))
        trained = "the vision tower is trained: SGLang would answer from embeddings of its old weights"
        reason = "the vision tower is frozen: its embeddings stay true" if frozen else trained
        self.put(f"{SGLANG_KWARGS}.mm_embedding_cache_mb", _SGLANG_CACHE_MB if frozen else 0, reason)

    def _adapters(self) -> None:
        if self.get(f"{_MODEL}.lora_rank") and self.model is not None:
            tower = self.model.family.tower
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
            self._tool_parser(SGLANG_KWARGS, "sglang")
        self.notes.append(
            "SGLang: what stands under engine_kwargs.vllm, rollout.enable_prefix_caching and max_num_batched_tokens does not "
            "reach it; it keeps a prefix cache, which verl empties at every weight update"
        )

    def _vllm_flags(self, tools: bool) -> None:
        native = self.get("agent.video") == "native"
        limits = {"image": self.get("app.images_per_prompt"), "video": int(native)}
        self.put(f"{VLLM_KWARGS}.limit_mm_per_prompt", limits, "app.images_per_prompt, agent.video")
        if native:
            reason = "agent.video=native; vLLM would cut a video to 32 frames, and the actor sees all of them"
            self.put(f"{VLLM_KWARGS}.media_io_kwargs", {"video": {"num_frames": -1}}, reason)
        if tools:
            # else vLLM refuses every request with tools
            self.put(f"{VLLM_KWARGS}.enable_auto_tool_choice", True, "agent.tool_protocol=function")
            self._tool_parser(VLLM_KWARGS, "vllm")

    def _tool_parser(self, section: str, engine: str) -> None:
        """The reader of function calls, by the model's family, unless the user names one."""
        key = f"{section}.tool_call_parser"
        if self.model is not None and self.is_weak(key):
            family = self.model.family
            self.put(key, family.parser_of(engine), f"agent.tool_protocol=function, as {family.name} writes calls")
