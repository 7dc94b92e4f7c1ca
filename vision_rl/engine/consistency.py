"""What verl, Agent Lightning or Ray would assert minutes later, checked at once and said in one sentence."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import Any

from vision_rl.errors import UserError
from vision_rl.models import ModelInfo, check_pairing
from vision_rl.rewards.grounding import KINDS
from vision_rl.rewards.vqa import KINDS as VQA_KINDS
from vision_rl.rewards.vqa import OLD_NAMES
from vision_rl.settings import AgentSettings, AppSettings

_GROUPED = (
    "grpo",
    "grpo_passk",
    "grpo_vectorized",
    "rloo",
    "rloo_vectorized",
    "opo",
    "gpg",
    "reinforce_plus_plus_baseline",
)


REWARDS = {"vqa": (*VQA_KINDS, "judge"), "grounding": KINDS}
SGLANG_VERSION = "0.5.5"
PACKAGES = {"vemlp_wandb": "volcengine_ml_platform", "console": "verl", "file": "verl"}
"""Where a tracking backend's package has another name than the backend."""


def check(task: str, verl: Mapping[str, Any], agent: AgentSettings, app: AppSettings, model: ModelInfo | None) -> None:
    """Raise `UserError` for settings that contradict each other."""
    actor_rollout = verl["actor_rollout_ref"]
    _groups(verl)
    _batches(verl)
    if model is not None:
        _model(actor_rollout, model)
    _adapters(actor_rollout)
    _engine(actor_rollout)
    _tracking(verl["trainer"])
    _ours(task, agent, app)


def _model(actor_rollout: Mapping[str, Any], model: ModelInfo) -> None:
    actor, rollout = actor_rollout["actor"], actor_rollout["rollout"]
    sizes = (actor["ppo_micro_batch_size_per_gpu"], rollout["log_prob_micro_batch_size_per_gpu"])
    check_pairing(
        model,
        rollout["name"],
        micro_batch=max(size or 1 for size in sizes),
        freeze_vision=actor["freeze_vision_tower"],
        strategy=actor["strategy"],
    )


def _groups(verl: Mapping[str, Any]) -> None:
    n = verl["actor_rollout_ref"]["rollout"]["n"]
    estimator = verl["algorithm"]["adv_estimator"]
    if estimator in ("gae", "remax"):
        raise UserError(
            f"algorithm.adv_estimator={estimator} needs a {'critic' if estimator == 'gae' else 'greedy baseline rollout'}, "
            "which this trainer leaves out; use grpo or rloo, or reinforce_plus_plus without groups"
        )
    if estimator in _GROUPED and n < 2:
        raise UserError(
            f"actor_rollout_ref.rollout.n={n} leaves {estimator} without a group to compare with, so nothing "
            "is learnt: use 4 to 8, and for memory lower data.train_batch_size, agent.max_pixels or "
            "actor_rollout_ref.rollout.gpu_memory_utilization, or use LoRA"
        )


def _batches(verl: Mapping[str, Any]) -> None:
    actor_rollout, trainer = verl["actor_rollout_ref"], verl["trainer"]
    actor, rollout = actor_rollout["actor"], actor_rollout["rollout"]
    gpus = trainer["n_gpus_per_node"] * trainer["nnodes"]
    train, mini, micro = (
        verl["data"]["train_batch_size"],
        actor["ppo_mini_batch_size"],
        actor["ppo_micro_batch_size_per_gpu"],
    )
    if trainer["total_training_steps"] is not None and trainer["total_training_steps"] < 1:
        raise UserError(
            f"--max-steps {trainer['total_training_steps']} must be at least 1 (trainer.total_training_steps)"
        )
    if verl["data"]["seed"] is not None and verl["data"]["seed"] < 0:
        raise UserError(f"--seed {verl['data']['seed']} must be at least 0 (data.seed)")
    if mini > train:
        raise UserError(
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini} is larger than data.train_batch_size={train}; "
            "set it to at most that"
        )
    tensor_parallel = rollout["tensor_model_parallel_size"]
    if gpus % tensor_parallel:
        raise UserError(
            f"actor_rollout_ref.rollout.tensor_model_parallel_size={tensor_parallel} does not divide the {gpus} GPUs "
            "of trainer.n_gpus_per_node x trainer.nnodes"
        )
    data_parallel = gpus // _model_parallel(actor)
    if data_parallel < 1 or gpus % _model_parallel(actor):
        raise UserError(
            f"the {gpus} GPUs cannot be split into model-parallel groups of {_model_parallel(actor)}; "
            "change one of the two"
        )
    per_gpu = mini * rollout["n"] // data_parallel
    if not actor["use_dynamic_bsz"] and micro and (per_gpu < micro or per_gpu % micro):
        raise UserError(
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro} must divide ppo_mini_batch_size x "
            f"rollout.n / data-parallel GPUs = {mini} x {rollout['n']} / {data_parallel} = {per_gpu}"
        )


def _model_parallel(actor: Mapping[str, Any]) -> int:
    if actor["strategy"] != "megatron":
        return int(actor["ulysses_sequence_parallel_size"])
    megatron = actor["megatron"]
    return int(
        megatron["tensor_model_parallel_size"]
        * megatron["pipeline_model_parallel_size"]
        * megatron["context_parallel_size"]
    )


def _lora_rank(model: Mapping[str, Any]) -> int:
    return int(model.get("lora_rank", 0))  # verl's Megatron tree has no such key


def _adapters(actor_rollout: Mapping[str, Any]) -> None:
    if _lora_rank(actor_rollout["model"]) and actor_rollout["rollout"]["load_format"] == "dummy":
        raise UserError(
            "actor_rollout_ref.rollout.load_format=dummy leaves the server without the base model that a LoRA adapter changes; "
            "set it to safetensors"
        )


def _engine(actor_rollout: Mapping[str, Any]) -> None:
    rollout = actor_rollout["rollout"]
    frozen = actor_rollout["actor"]["freeze_vision_tower"]
    if rollout["name"] == "sglang":
        _sglang(rollout["engine_kwargs"]["sglang"], actor_rollout["model"], frozen)
        return


def _sglang(arguments: Mapping[str, Any], model: Mapping[str, Any], frozen: bool) -> None:
    installed = importlib.util.find_spec("sglang") is not None
    version = importlib.metadata.version("sglang") if installed else ""
    if version != SGLANG_VERSION:
        raise UserError(
            f"the rollout engine sglang is {f'installed as {version}' if installed else 'not installed'}, and this project "
            f"needs {SGLANG_VERSION}, the release that verl 0.6.1 allows (docs/sglang.md says how to install it); or leave "
            "--rollout-engine out to use vLLM"
        )
    if _lora_rank(model):
        raise UserError(
            "LoRA adapters do not reach SGLang: verl 0.6.1 syncs whole weights to it only (sglang_rollout.py, "
            "ServerAdapter.update_weights); train LoRA with --rollout-engine vllm"
        )
    if arguments["mm_embedding_cache_mb"] and not frozen:
        raise UserError(
            "actor_rollout_ref.rollout.engine_kwargs.sglang.mm_embedding_cache_mb must be 0 while the vision tower is "
            "trained: SGLang would answer images it has seen from embeddings of the old weights; or freeze the tower "
            "(--variant freeze_vision)"
        )


def _tracking(trainer: Mapping[str, Any]) -> None:
    """verl would find a missing package after the model has been loaded."""
    for backend in trainer["logger"]:
        package = PACKAGES.get(backend, backend)
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"trainer.logger asks for {backend}, which is not installed: pip install {package}, or take it out; "
                "metrics.jsonl and report.html are written in any case"
            )


def _ours(task: str, agent: AgentSettings, app: AppSettings) -> None:
    if OLD_NAMES.get(agent.reward, agent.reward) not in REWARDS[task]:
        raise UserError(f"agent.reward={agent.reward} is no reward of --task {task}; use {', '.join(REWARDS[task])}")
    if not app.validation.metric.startswith("val/"):
        raise UserError(
            f"app.validation.metric={app.validation.metric} must name a validation metric, such as val/reward"
        )
    if app.rollouts.unresponsive_seconds < agent.timeout_seconds:
        raise UserError(
            f"app.rollouts.unresponsive_seconds={app.rollouts.unresponsive_seconds} must be at least "
            f"agent.timeout_seconds={agent.timeout_seconds}, or a slow answer is taken for a dead runner"
        )
    if (agent.max_turns > 1) != (agent.max_tool_calls > 0):
        raise UserError(
            f"agent.max_turns={agent.max_turns} and agent.max_tool_calls={agent.max_tool_calls} do not fit: a tool call "
            "takes a turn of its own, and a further turn follows a tool call only (--variant tools sets both)"
        )
    if app.n_runners < 0:
        raise UserError(f"app.n_runners={app.n_runners} must be at least 0 (all rollouts by workers elsewhere)")
    for name, value in (
        ("app.images_per_prompt", app.images_per_prompt),
        ("agent.max_turns", agent.max_turns),
        ("app.rollouts.max_attempts", app.rollouts.max_attempts),
        ("app.checkpoints.keep_last", app.checkpoints.keep_last),
        ("app.collapse.window", app.collapse.window),
        ("app.collapse.persist_steps", app.collapse.persist_steps),
    ):
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    for name in ("patience", "samples", "seed"):
        if getattr(app.validation, name) < 0:
            raise UserError(f"app.validation.{name}={getattr(app.validation, name)} must be at least 0")
    for name in ("reward_drop", "entropy_drop", "equal_groups", "format_failures", "wrong_space", "overconfidence"):
        if not 0 <= getattr(app.collapse, name) <= 1:
            raise UserError(f"app.collapse.{name}={getattr(app.collapse, name)} must be a share from 0 to 1")
