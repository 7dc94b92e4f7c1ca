"""`--plan`: estimate the memory per GPU in both phases of a step, from the model's config and the settings.

Update: weights, gradients, optimizer state, activations of language model and vision tower, logits. Rollout: vLLM's
weights and KV cache within its share, beside what the actor keeps on the GPU meanwhile. Formulas count bytes of
tensors; allocator slack is the stated margin. An estimate for choosing settings, not a promise: it was held against
verl 0.9's engine on a CPU in float32 (up to a fifth above it, benchmarks/plan_check.py), never on a GPU.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from vision_rl.config.checks import separate
from vision_rl.config.resolve import Resolved
from vision_rl.models.sizes import Shape, shape_of
from vision_rl.models.table import model_info
from vision_rl.platform.environment import run_environment

GB = 1024**3
CONTEXT_GB = 1.5  # CUDA context, NCCL and workspaces of the actor's process
ENGINE_GB = 1.0  # CUDA context and graphs of vLLM's own process, which stay while it sleeps
SLACK = 1.1  # fragmentation of PyTorch's allocator
_BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}


@dataclass(frozen=True)
class Plan:
    """The estimate. Parts: GB per GPU; host_gb: main memory of a node; kv_tokens: what the cache of an engine holds."""

    preset: str
    on_cpu: bool
    model: str
    shape: Shape
    gpus: int
    gpu_gb: float
    update: dict[str, float]
    rollout: dict[str, float]
    host_gb: float
    kv_tokens: int
    advice: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether both phases fit, with room in the KV cache for at least one whole sequence."""
        return not self.advice


def plan(resolved: Resolved, gpu_gb: float | None = None) -> Plan:
    """Estimate memory for a resolved configuration on GPUs of `gpu_gb` GB (default: what the preset is meant for).

    Raises `UserError` where the model's sizes are not known. Imports torch and transformers; loads no weights.
    """
    model = resolved.verl["actor_rollout_ref"]["model"]["path"]
    shape = shape_of(model_info(model))
    size = gpu_gb or resolved.app.gpu_memory_gb
    gpus = resolved.verl["trainer"]["n_gpus_per_node"] * resolved.verl["trainer"]["nnodes"]
    state, host = _states(resolved, shape, gpus)
    update = {**state, **_activations(resolved, shape, gpus), "contexts": _contexts(resolved)}
    update["allocator slack"] = (SLACK - 1) * sum(update.values())
    rollout, kv_tokens = _rollout(resolved, shape, state, size)
    if not resolved.verl["actor_rollout_ref"]["rollout"]["free_cache_engine"]:
        update["vLLM, never asleep"] = rollout["vLLM weights"] + rollout["KV cache and profile"]
    advice = _advice(resolved, shape, update, rollout, kv_tokens, size)
    return Plan(
        resolved.preset, _on_cpu(resolved), model, shape, gpus, size, update, rollout, host, kv_tokens, tuple(advice)
    )


def _states(resolved: Resolved, shape: Shape, gpus: int) -> tuple[dict[str, float], float]:
    """GB of weights, gradients and optimizer per GPU in the update, and GB of host memory per node."""
    worker = resolved.verl["actor_rollout_ref"]
    actor = worker["actor"]
    lora = worker["model"].get("lora_rank", 0)
    trained = shape.lora_parameters(lora) if lora else shape.parameters
    if actor["freeze_vision_tower"] and not lora:
        trained -= shape.vision_parameters
    if resolved.strategy == "megatron":
        return _megatron_states(worker, shape, trained, gpus)
    fsdp = actor["fsdp_config"]
    width = _BYTES[fsdp["model_dtype"]]
    weights = shape.parameters * width + (trained * 4 if lora else 0)
    gradients, optimizer = trained * (4 if lora else width), trained * 2 * (4 if lora else width)
    # gathered blocks: embeddings and the layer at work, plus its successor
    working = 2 * shape.largest_block * _width(worker)
    host = 0.0
    if fsdp["offload_policy"]:
        host = weights + gradients + optimizer
        weights = gradients = optimizer = 0
    else:
        host += weights if fsdp["param_offload"] else 0
        host += optimizer if fsdp["optimizer_offload"] else 0
    if actor["use_kl_loss"] and not lora:  # with LoRA the reference is the base model itself
        host += shape.parameters * _BYTES[worker["ref"]["fsdp_config"]["model_dtype"]]
    nodes = resolved.verl["trainer"]["nnodes"]
    parts = {"weights": weights, "gradients": gradients, "optimizer": optimizer}
    return {**{k: v / gpus / GB for k, v in parts.items()}, "gathered layers": working / GB}, host / nodes / GB


def _megatron_states(worker: dict[str, Any], shape: Shape, trained: int, gpus: int) -> tuple[dict[str, float], float]:
    megatron = worker["actor"]["megatron"]
    split = megatron["tensor_model_parallel_size"] * megatron["pipeline_model_parallel_size"]
    data_parallel = gpus // (split * megatron["context_parallel_size"])
    weights, gradients = shape.parameters * 2 / split, trained * 4 / split
    optimizer = (
        trained * 12 / split / data_parallel
    )  # float32 copy and two moments, sharded by the distributed optimizer
    reference = shape.parameters * 2 / split
    host = reference if worker["ref"]["megatron"]["param_offload"] else 0
    parts = {"weights": weights, "gradients": gradients, "optimizer": optimizer}
    return {k: v / GB for k, v in parts.items()}, host * gpus / GB


def _activations(resolved: Resolved, shape: Shape, gpus: int) -> dict[str, float]:
    """GB of activations, vision activations and logits of one micro-batch of full-length samples."""
    worker, data = resolved.verl["actor_rollout_ref"], resolved.verl["data"]
    longest = data["max_prompt_length"] + data["max_response_length"]
    micro = worker["actor"]["ppo_micro_batch_size_per_gpu"] or 1
    if worker["actor"]["use_dynamic_bsz"]:
        micro = max(1, worker["actor"]["ppo_max_token_len_per_gpu"] // longest)
    tokens = micro * longest
    shards = worker["actor"]["megatron"]["tensor_model_parallel_size"] if resolved.strategy == "megatron" else 1
    width = _width(worker)
    block = tokens * (10 * shape.hidden + 3 * shape.inner) * width / shards
    kept = tokens * shape.hidden * width
    recomputed = resolved.strategy == "megatron" or worker["model"]["enable_gradient_checkpointing"]
    language = shape.layers * kept + block if recomputed else shape.layers * block
    patches = micro * (resolved.agent.max_pixels or 0) / shape.vision_patch**2
    eye = patches * (10 * shape.vision_hidden + 3 * shape.vision_inner) * width
    vision = (
        shape.vision_layers * patches * shape.vision_hidden * width + eye if recomputed else shape.vision_layers * eye
    )
    if worker["actor"]["freeze_vision_tower"]:
        vision = eye
    # Logits and their gradient; with padding also a packed copy, its gradient and the log-probabilities of the vocabulary
    # (verl/workers/engine/fsdp/transformer_impl.py, prepare_model_outputs).
    copies = 2 if worker["model"]["use_remove_padding"] else 5
    logits = copies * width * tokens * shape.vocab / shards
    return {"activations": language / GB, "vision activations": vision / GB, "logits": logits / GB}


def _width(worker: dict[str, Any]) -> int:
    """Bytes of a number that the actor computes with; verl's engines take bfloat16 where nothing else is said."""
    precision = worker["actor"].get("fsdp_config", {}).get("mixed_precision") or {}
    return _BYTES[precision.get("param_dtype", "bf16")]


def _rollout(resolved: Resolved, shape: Shape, state: dict[str, float], gpu_gb: float) -> tuple[dict[str, float], int]:
    """GB per GPU while vLLM generates, and how many tokens its KV cache holds per engine."""
    worker = resolved.verl["actor_rollout_ref"]
    rollout = worker["rollout"]
    parallel, width = rollout["tensor_model_parallel_size"], _BYTES[rollout["dtype"]]
    share = rollout["gpu_memory_utilization"] * gpu_gb
    weights = shape.parameters * width / parallel / GB
    profile = rollout["max_num_batched_tokens"] * (4 * shape.hidden + 2 * shape.inner) * width / parallel / GB
    cache = max(0.0, share - weights - profile - 0.5)
    if _on_cpu(resolved):  # there vLLM takes what this variable says, not a share
        cache = float(run_environment(True)["VLLM_CPU_KVCACHE_SPACE"])
        share = weights + cache + profile
    token = shape.layers * shape.kv_width * width / max(1, parallel)
    held = {"actor, kept meanwhile": 0.0}
    if separate(resolved.verl):
        pass  # the server has GPUs of its own
    elif resolved.strategy != "megatron":
        fsdp = worker["actor"]["fsdp_config"]
        held["actor, kept meanwhile"] += 0 if fsdp["param_offload"] else state["weights"]
        held["actor, kept meanwhile"] += 0 if fsdp["optimizer_offload"] else state["optimizer"]
    else:
        held["actor, kept meanwhile"] += state["weights"] + state["gradients"] + state["optimizer"]
    parts = {"vLLM weights": weights, "KV cache and profile": max(cache + profile, share - weights), **held}
    return {**parts, "contexts": _contexts(resolved)}, int(cache * GB / token)


def _contexts(resolved: Resolved) -> float:
    """GB that the two processes on a GPU take before they hold anything; on a CPU they are counted apart."""
    return 0.0 if _on_cpu(resolved) else CONTEXT_GB + ENGINE_GB


def _on_cpu(resolved: Resolved) -> bool:
    return bool(resolved.verl["trainer"]["device"] == "cpu")


def _advice(
    resolved: Resolved, shape: Shape, update: dict[str, float], rollout: dict[str, float], kv_tokens: int, gpu_gb: float
) -> list[str]:
    """What to change, most useful first; empty where everything fits."""
    worker, data = resolved.verl["actor_rollout_ref"], resolved.verl["data"]
    found = []
    over = sum(update.values()) - gpu_gb
    states = update["weights"] + update["gradients"] + update["optimizer"]
    if over > 0:
        found.append(f"the update needs {over:.1f} GB more than a GPU has")
        fsdp = worker["actor"].get("fsdp_config")
        if (worker["actor"]["ppo_micro_batch_size_per_gpu"] or 1) > 1:
            found.append("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1")
        if fsdp and not fsdp["offload_policy"] and states > gpu_gb / 3:
            found.append(
                "actor_rollout_ref.actor.fsdp_config.offload_policy=true (weights, gradients, optimizer in host memory)"
            )
        if not worker["model"].get("lora_rank", 0) and resolved.strategy != "megatron":
            found.append("--preset lora (adapters only)")
        if update["vision activations"] + update["logits"] > gpu_gb / 4:
            found.append("smaller agent.max_pixels, data.max_prompt_length and data.max_response_length")
        found.append("more GPUs: trainer.n_gpus_per_node")
    length = data["max_prompt_length"] + data["max_response_length"]
    if kv_tokens < length:
        found.append(
            f"vLLM's cache holds {kv_tokens} tokens, a sequence may have {length}: raise "
            "actor_rollout_ref.rollout.gpu_memory_utilization or tensor_model_parallel_size"
        )
    elif sum(rollout.values()) > gpu_gb:
        found.append(
            f"generation needs {sum(rollout.values()) - gpu_gb:.1f} GB more than a GPU has: lower "
            "actor_rollout_ref.rollout.gpu_memory_utilization, or set param_offload and optimizer_offload of "
            "actor_rollout_ref.actor.fsdp_config"
        )
    return found


def as_json(estimate: Plan) -> str:
    """The estimate as a JSON object, with the verdict."""
    peak = max(sum(estimate.update.values()), sum(estimate.rollout.values()))
    return json.dumps({**dataclasses.asdict(estimate), "peak_gb": peak, "fits": estimate.fits}, indent=2)


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} billion" if parameters >= 1e8 else f"{parameters / 1e6:.2f} million"


def render_plan(estimate: Plan) -> str:
    """The estimate as text: parts of both phases, host memory, cache, verdict and what to change."""
    shape = estimate.shape
    cpu = estimate.on_cpu
    device, digits = ("", 2) if cpu else (" per GPU", 1)
    lines = [
        f"{estimate.model}: {_count(shape.parameters)} parameters, {_count(shape.vision_parameters)} of them in the vision part",
        f"preset {estimate.preset}: {estimate.gpu_gb:g} GB of main memory"
        if cpu
        else f"preset {estimate.preset}: {estimate.gpus} x {estimate.gpu_gb:g} GB",
    ]
    for title, parts in (("update", estimate.update), ("rollout", estimate.rollout)):
        lines.append(f"{title}: {sum(parts.values()):.{digits}f} GB{device}")
        lines += [f"  {name:<24}{value:7.{digits}f}" for name, value in parts.items() if value >= 0.5 * 10**-digits]
    if cpu:
        lines.append("beside it: the run's dozen processes with their libraries, about 7 GB")
    else:
        lines.append(f"host memory for what is offloaded: {estimate.host_gb:.0f} GB per node")
    lines.append(f"KV cache: {estimate.kv_tokens} tokens per engine")
    lines.append("fits" if estimate.fits else "does not fit; change, in this order:")
    lines += [f"  - {item}" for item in estimate.advice]
    return "\n".join(lines)
