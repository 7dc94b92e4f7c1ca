"""Check at once what verl, Agent Lightning or Ray would assert minutes later, and say it in one sentence."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Mapping
from typing import Any

from vision_rl.answers.space import AnswerSpace
from vision_rl.config.derived import sample_limits
from vision_rl.config.ranges import check_ranges
from vision_rl.errors import UserError
from vision_rl.models.table import ModelInfo, check_pairing
from vision_rl.rewards.grounding import KINDS, box_metric, checked_kind
from vision_rl.rewards.user import check_reward
from vision_rl.settings import AgentSettings, AppSettings
from vision_rl.tasks import Task

_GROUPED = (
    "grpo",
    "grpo_passk",
    "grpo_vectorized",
    "rloo",
    "rloo_vectorized",
    "opo",
    "gpg",
    "reinforce_plus_plus_baseline",
    "gdpo",
    "optimal_token_baseline",
    "tir_optimal_token_baseline",
)
REJECTIONS = (
    *("token_k1", "token_k2", "token_k3"),
    *(f"seq_{how}_k{number}" for how in ("sum", "mean") for number in (1, 2, 3)),
    *("seq_max_k2", "seq_max_k3"),
)
"""What `algorithm.rollout_correction.rollout_rs` may name (verl/trainer/ppo/rollout_corr_helper.py)."""
_BOUNDS = re.compile(r"\d*\.?\d+(_\d*\.?\d+)?")

SGLANG_VERSION = "0.5.12"
PACKAGES = {"vemlp_wandb": "volcengine_ml_platform", "console": "verl", "file": "verl"}
"""Where a tracking backend's package has another name than the backend."""


def check(task: Task, verl: Mapping[str, Any], agent: AgentSettings, app: AppSettings, model: ModelInfo | None) -> None:
    """Raise `UserError` for settings that contradict each other."""
    actor_rollout = verl["actor_rollout_ref"]
    check_ranges(verl, agent, app)
    _groups(verl)
    _batches(verl)
    _lengths(verl)
    _modes(verl)
    _correction(verl["algorithm"]["rollout_correction"])
    _losses(verl)
    if model is not None:
        _model(actor_rollout, model)
    if agent.video == "native":
        _video(task, actor_rollout["rollout"]["name"], model)
    _adapters(actor_rollout)
    _engine(verl)
    _tracking(verl["trainer"])
    _papo(verl, app)
    _ours(task, agent, app)


def _model(actor_rollout: Mapping[str, Any], model: ModelInfo) -> None:
    actor, rollout = actor_rollout["actor"], actor_rollout["rollout"]
    check_pairing(
        model,
        rollout["name"],
        freeze_vision=actor["freeze_vision_tower"],
        strategy=actor["strategy"],
        adapted=_adapted_modules(actor_rollout["model"]),
    )


def _video(task: Task, engine: str, model: ModelInfo | None) -> None:
    cure = "leave it at frames, which shows a video as pictures"
    if task.truth == "boxes":
        raise UserError(f"agent.video=native is for tasks that answer in words, not for {task.name}: {cure}")
    if engine != "vllm":
        raise UserError(f"agent.video=native needs vLLM, {engine} is given pictures only: {cure}")
    if model is not None and model.family.no_video:
        raise UserError(f"agent.video=native does not work with {model.family.name}: {model.family.no_video}; {cure}")


def _adapted_modules(model: Mapping[str, Any]) -> Callable[[str], bool] | None:
    """Which modules get a LoRA adapter, by peft's rules for exclude_modules; None without LoRA."""
    if not model["lora_rank"]:
        return None
    excluded = model["exclude_modules"] or "nothing"
    return lambda name: re.fullmatch(excluded, name) is None


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
    data_parallel = gpus // _model_parallel(actor)
    if data_parallel < 1 or gpus % _model_parallel(actor):
        raise UserError(
            f"the {gpus} GPUs cannot be split into model-parallel groups of {_model_parallel(actor)}; "
            "change one of the two"
        )
    if not separate(verl):
        _divides_gpus(rollout["tensor_model_parallel_size"], gpus, "trainer.n_gpus_per_node x trainer.nnodes")
    if mini * rollout["n"] % data_parallel:
        raise UserError(
            f"actor_rollout_ref.actor.ppo_mini_batch_size x rollout.n = {mini} x {rollout['n']} must be a multiple of the "
            f"{data_parallel} data-parallel GPUs"
        )
    per_gpu = mini * rollout["n"] // data_parallel
    if not actor["use_dynamic_bsz"] and micro and (per_gpu < micro or per_gpu % micro):
        raise UserError(
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro} must divide ppo_mini_batch_size x "
            f"rollout.n / data-parallel GPUs = {mini} x {rollout['n']} / {data_parallel} = {per_gpu}"
        )


def _divides_gpus(tensor_parallel: int, gpus: int, where: str) -> None:
    if gpus % tensor_parallel:
        raise UserError(
            f"actor_rollout_ref.rollout.tensor_model_parallel_size={tensor_parallel} does not divide the {gpus} GPUs "
            f"of {where}"
        )


def separate(verl: Mapping[str, Any]) -> bool:
    """Whether the model is served on GPUs of its own, beside those that train."""
    return bool(verl["trainer"]["v1"]["trainer_mode"] == "separate_async")


def _lengths(verl: Mapping[str, Any]) -> None:
    """What verl asserts in the first step, or at the server's start."""
    worker, data = verl["actor_rollout_ref"], verl["data"]
    rollout, actor = worker["rollout"], worker["actor"]
    request = data["max_prompt_length"] + data["max_response_length"]
    if rollout["max_model_len"] < request:
        raise UserError(
            f"actor_rollout_ref.rollout.max_model_len={rollout['max_model_len']} must be at least data.max_prompt_length + "
            f"data.max_response_length = {request}"
        )
    if not rollout["enable_chunked_prefill"] and rollout["max_num_batched_tokens"] < rollout["max_model_len"]:
        raise UserError(
            "without actor_rollout_ref.rollout.enable_chunked_prefill a prompt must fit into one pass: set "
            f"max_num_batched_tokens to at least max_model_len = {rollout['max_model_len']}"
        )
    if rollout["log_prob_use_dynamic_bsz"] != actor["use_dynamic_bsz"]:
        raise UserError(
            "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz must be what actor_rollout_ref.actor.use_dynamic_bsz is; "
            "set the latter alone"
        )
    longest = sum(sample_limits(verl))
    for key, tokens in (
        ("actor.ppo_max_token_len_per_gpu", actor["ppo_max_token_len_per_gpu"]),
        ("rollout.log_prob_max_token_len_per_gpu", rollout["log_prob_max_token_len_per_gpu"]),
    ):
        if actor["use_dynamic_bsz"] and tokens * _sequence_parallel(actor) < longest:
            raise UserError(
                f"actor_rollout_ref.{key}={tokens} must be at least {longest}, the longest prompt and response of a sample"
            )


def _sequence_parallel(actor: Mapping[str, Any]) -> int:
    if actor["strategy"] == "megatron":
        return int(actor["megatron"]["context_parallel_size"])
    return int(actor["ulysses_sequence_parallel_size"])


def _modes(verl: Mapping[str, Any]) -> None:
    """verl's V1 modes: `sync`, `colocate_async` and `separate_async` (verl/trainer/ppo/v1)."""
    worker, mode = verl["actor_rollout_ref"], verl["trainer"]["v1"]["trainer_mode"]
    if not worker["hybrid_engine"] and mode != "separate_async":
        raise UserError(
            f"actor_rollout_ref.hybrid_engine must be true under trainer.v1.trainer_mode={mode}: the model is served on the "
            "GPUs that train (--variant async serves it on others)"
        )
    if worker["rollout"]["checkpoint_engine"]["backend"] == "delta_sharded" and worker["rollout"]["name"] == "vllm":
        raise UserError(
            "actor_rollout_ref.rollout.checkpoint_engine.backend=delta_sharded needs a later vLLM than the pinned 0.24 (vllm "
            "pulls 44353 and 50723); use nccl, or naive where the model is served on the GPUs that train"
        )
    correction = verl["algorithm"]["rollout_correction"]
    if mode != "sync" and not (correction["rollout_is"] or correction["rollout_rs"]):
        raise UserError(
            f"trainer.v1.trainer_mode={mode} trains on samples of older weights: set "
            "algorithm.rollout_correction.rollout_is=token, as --variant one_step_off and --variant async do"
        )
    if mode == "separate_async":
        _separate(verl)


def _separate(verl: Mapping[str, Any]) -> None:
    rollout, actor = verl["actor_rollout_ref"]["rollout"], verl["actor_rollout_ref"]["actor"]
    servers = rollout["nnodes"] * rollout["n_gpus_per_node"]
    if servers < 1:
        raise UserError(
            "trainer.v1.trainer_mode=separate_async serves the model on GPUs of its own: set actor_rollout_ref.rollout.nnodes "
            "and actor_rollout_ref.rollout.n_gpus_per_node to at least 1"
        )
    _divides_gpus(rollout["tensor_model_parallel_size"], servers, "rollout.n_gpus_per_node x rollout.nnodes")
    if rollout["checkpoint_engine"]["backend"] == "naive":
        raise UserError(
            "trainer.v1.trainer_mode=separate_async sends weights to other GPUs: set "
            "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl (naive copies within a GPU)"
        )
    updates = verl["trainer"]["v1"]["separate_async"]["parameter_sync_step"]
    train, mini = verl["data"]["train_batch_size"], actor["ppo_mini_batch_size"]
    if train != updates * mini:
        raise UserError(
            f"data.train_batch_size={train} must be trainer.v1.separate_async.parameter_sync_step x "
            f"actor_rollout_ref.actor.ppo_mini_batch_size = {updates} x {mini} under separate_async"
        )


def _correction(correction: Mapping[str, Any]) -> None:
    """Rollout correction, whose text settings verl reads in the first update (rollout_corr_helper.py)."""
    section = "algorithm.rollout_correction"
    names = [name.strip() for name in (correction["rollout_rs"] or "").split(",") if name.strip()]
    for name in names:
        if name not in REJECTIONS:
            raise UserError(f"{section}.rollout_rs={name} is unknown; choose from {', '.join(REJECTIONS)}")
    if names and correction["rollout_rs_threshold"] is None:
        raise UserError(
            f"{section}.rollout_rs needs {section}.rollout_rs_threshold, such as 0.5_2.0 for k1 or 0.01 for k3"
        )
    for key in ("rollout_is_threshold", "rollout_rs_threshold"):
        for bounds in () if correction[key] is None else str(correction[key]).split(","):
            low, _, high = bounds.strip().partition("_")
            if not _BOUNDS.fullmatch(bounds.strip()) or float(low) <= 0 or float(high or low) < float(low):
                raise UserError(
                    f"{section}.{key}={correction[key]} must be an upper bound above 0, such as 2.0, or two, such as 0.5_5.0"
                )


def _losses(verl: Mapping[str, Any]) -> None:
    """What a loss or an estimator needs beside its name."""
    actor, algorithm = verl["actor_rollout_ref"]["actor"], verl["algorithm"]
    if actor["policy_loss"]["loss_mode"] == "dro" and not actor["policy_loss"]["dro_beta"]:
        raise UserError("policy_loss.loss_mode=dro needs actor_rollout_ref.actor.policy_loss.dro_beta, such as 0.05")
    weights, names = algorithm.get("gdpo_reward_weights"), algorithm.get("gdpo_reward_keys")
    if algorithm["adv_estimator"] == "gdpo" and not names:
        raise UserError(
            "algorithm.adv_estimator=gdpo needs algorithm.gdpo_reward_keys, the components of the reward that are "
            "normalised by themselves, such as [accuracy,format/ok]"
        )
    if weights and len(weights) != len(names or ()):
        raise UserError(
            f"algorithm.gdpo_reward_weights={weights} must have one weight for each of gdpo_reward_keys={names}"
        )
    if actor["calculate_sum_pi_squared"] and verl["actor_rollout_ref"]["model"]["use_fused_kernels"]:
        raise UserError(
            "actor_rollout_ref.model.use_fused_kernels must be false for the optimal token baseline: fused kernels keep no "
            "probabilities to square"
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


def _adapters(actor_rollout: Mapping[str, Any]) -> None:
    if actor_rollout["model"]["lora_rank"] and actor_rollout["rollout"]["load_format"] == "dummy":
        raise UserError(
            "actor_rollout_ref.rollout.load_format=dummy leaves the server without the base model that a LoRA adapter changes; "
            "set it to safetensors"
        )


def _engine(verl: Mapping[str, Any]) -> None:
    actor_rollout = verl["actor_rollout_ref"]
    rollout = actor_rollout["rollout"]
    if rollout["name"] == "sglang":
        if separate(verl):
            raise UserError(
                "trainer.v1.trainer_mode=separate_async does not reach SGLang: this project's weight sync to it starts from the "
                "actor's own ranks (docs/sglang.md); use sync or colocate_async, or --rollout-engine vllm"
            )
        frozen = actor_rollout["actor"]["freeze_vision_tower"]
        _sglang(rollout["engine_kwargs"]["sglang"], actor_rollout["model"], frozen)


def _sglang(arguments: Mapping[str, Any], model: Mapping[str, Any], frozen: bool) -> None:
    installed = importlib.util.find_spec("sglang") is not None
    version = importlib.metadata.version("sglang") if installed else ""
    if version != SGLANG_VERSION:
        raise UserError(
            f"the rollout engine sglang is {f'installed as {version}' if installed else 'not installed'}, and this project "
            f"needs {SGLANG_VERSION}, the release that it was written for (docs/sglang.md says how to install it); or leave "
            "--rollout-engine out to use vLLM"
        )
    if model["lora_rank"]:
        raise UserError(
            "LoRA adapters do not reach SGLang: this project's server for it answers with the base model only "
            "(docs/sglang.md); train LoRA with --rollout-engine vllm"
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


def _papo(verl: Mapping[str, Any], app: AppSettings) -> None:
    if not app.papo.kl_coef:
        return
    if verl["actor_rollout_ref"]["actor"]["strategy"] == "megatron":
        raise UserError(
            "app.papo.kl_coef does nothing under Megatron: only this project's FSDP engine masks pictures; leave the variant "
            "papo out or use an FSDP preset"
        )
    if not verl["actor_rollout_ref"]["actor"]["calculate_entropy"]:
        raise UserError("app.papo.kl_coef needs actor_rollout_ref.actor.calculate_entropy=true: leave it out")
    if app.blank_pixels:
        raise UserError("app.blank_pixels=true leaves app.papo nothing to mask: choose one of them")


def _ours(task: Task, agent: AgentSettings, app: AppSettings) -> None:
    check_reward(task, agent.reward)
    if task.truth == "boxes" and agent.reward in KINDS:
        space = AnswerSpace.of(agent)
        checked_kind(box_metric(agent.reward, "", space.takes_points), space)
    if not app.validation.metric.startswith("val/"):
        raise UserError(
            f"app.validation.metric={app.validation.metric} must name a validation metric, such as val/reward"
        )
    if app.rollouts.unresponsive_seconds < agent.timeout_seconds:
        raise UserError(
            f"app.rollouts.unresponsive_seconds={app.rollouts.unresponsive_seconds} must be at least "
            f"agent.timeout_seconds={agent.timeout_seconds}, or a slow answer is taken for a dead runner"
        )
    if task.truth != "environment" and (agent.max_turns > 1) != (agent.max_tool_calls > 0):
        raise UserError(
            f"agent.max_turns={agent.max_turns} and agent.max_tool_calls={agent.max_tool_calls} do not fit: a tool call "
            "takes a turn of its own, and a further turn follows a tool call only (--variant tools sets both)"
        )
