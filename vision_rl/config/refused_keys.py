"""Strict keys: every `key: value` is checked against what verl, Agent Lightning, vLLM and this project really read.

Agent Lightning 0.3.0 merges a user's dictionary with struct mode off (`agentlightning/algorithm/verl/interface.py`), so
there a misspelt key is silently ignored. Here it is a `UserError` that names the nearest key; keys of verl 0.6, keys of
the well-known guides that verl never had, and keys that nothing reads here are known by name and answered with the
true one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from vision_rl.answers.formats import FORMATS
from vision_rl.config.known_keys import FREE_FORM, SGLANG_KWARGS, VLLM_KWARGS, Key, sglang_arguments, vllm_arguments
from vision_rl.errors import UserError, meant, near

_ROWS = "the application reads the rows (docs/data.md)"
_REWARD = "nothing reads it here: the agent computes and emits the reward (see vision_rl/rewards)"
_ACTOR = "actor_rollout_ref.actor"
_ROLLOUT = "actor_rollout_ref.rollout"
_LORA = "actor_rollout_ref.model.lora_rank"
_BALANCE = "verl balances the tokens of the GPUs by itself; see also actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
_GONE = "verl 0.6 had it"
_LOOPS = "Agent Lightning's runners roll out (app.n_runners), verl's own agent loops do not run"
_SHORT = ("model", "actor", "rollout", "ref")
# prefix or key -> (the true key, why): keys of older guides to these tasks, and of verl 0.6.
OBSOLETE: dict[str, tuple[str, str]] = {
    "actor_rollout_ref.model.peft.lora_alpha": ("actor_rollout_ref.model.lora_alpha", "verl has no peft section"),
    "actor_rollout_ref.model.peft.lora_r": (_LORA, "verl has no peft section"),
    "actor_rollout_ref.model.peft": (_LORA, "verl has no peft section; a rank above 0 switches LoRA on"),
    "actor_rollout_ref.model.lora_r": (_LORA, "as verl spells it"),
    f"{_ACTOR}.optim.learning_rate": (f"{_ACTOR}.optim.lr", "as verl spells it"),
    "actor_rollout_ref.model.backend": (f"{_ACTOR}.strategy", "use strategy=megatron, or --preset megatron"),
    "actor_rollout_ref.model.megatron": (f"{_ACTOR}.megatron", f"with {_ACTOR}.strategy=megatron"),
    "model_engine": (f"{_ACTOR}.strategy", "use strategy=megatron, or --preset megatron"),
    "data.enable_sequence_balance": (f"{_ACTOR}.use_dynamic_bsz", _BALANCE),
    "data.sequence_balance": (f"{_ACTOR}.use_dynamic_bsz", _BALANCE),
    "trainer.balance_batch": (f"{_ACTOR}.use_dynamic_bsz", _BALANCE),
    "reward_model.path": ("agent.reward", _REWARD),
    "reward_model": ("agent.reward", _REWARD),
    "custom_reward_function": ("agent.reward", _REWARD),
    "sandbox_fusion": ("agent.reward", _REWARD),
    "reward": ("agent.reward", _REWARD),
    "data.max_val_samples": ("app.validation.samples", "verl never had it"),
    "data.val_max_samples": ("app.validation.samples", "verl reads it only for its own parquet data sets"),
    "data.max_train_samples": ("app.max_train_samples", "verl never had it"),
    "data.train_max_samples": ("app.max_train_samples", "verl reads it only for its own parquet data sets"),
    "data.train_files": ("--data-path", "the application reads the file and hands the rows over"),
    "data.val_files": ("--val-data-path", "the application reads the file and hands the rows over"),
    "data.sampler": ("data.seed", f"{_GONE}; verl's order of the rows now goes on after --resume by itself"),
    "data.datagen": ("--data-path", f"{_GONE}; the application reads the file and hands the rows over"),
    f"{_ACTOR}.gradient_clip_norm": (f"{_ACTOR}.optim.clip_grad", "verl clips at 1.0 by default"),
    f"{_ACTOR}.grad_clip": (
        f"{_ACTOR}.optim.clip_grad",
        "verl 0.9.1 kept the old key, but its engines clip by this one",
    ),
    f"{_ACTOR}.optim.grad_clip": (f"{_ACTOR}.optim.clip_grad", "as verl spells it now"),
    f"{_ACTOR}.optim.warmup_style": (f"{_ACTOR}.optim.lr_scheduler_type", "as verl spells it now"),
    f"{_ACTOR}.fsdp_config.dtype": (
        f"{_ACTOR}.fsdp_config.mixed_precision.param_dtype",
        "verl 0.9.1 kept the old key, but its FSDP engine computes in this one",
    ),
    "actor_rollout_ref.ref.fsdp_config.dtype": (
        "actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype",
        "verl 0.9.1 kept the old key, but its FSDP engine computes in this one",
    ),
    f"{_ACTOR}.ppo_micro_batch_size": (f"{_ACTOR}.ppo_micro_batch_size_per_gpu", "as verl spells it now"),
    f"{_ROLLOUT}.log_prob_micro_batch_size": (f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu", "as verl spells it now"),
    "actor_rollout_ref.ref.log_prob_micro_batch_size": (
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
        "as verl spells it now",
    ),
    f"{_ACTOR}.megatron.grad_offload": (
        f"{_ACTOR}.megatron.param_offload",
        f"{_GONE}; gradients now go with the weights",
    ),
    f"{_ACTOR}.load_weight": ("actor_rollout_ref.model.path", f"{_GONE}; weights are always loaded"),
    "actor_rollout_ref.ref.load_weight": ("actor_rollout_ref.model.path", f"{_GONE}; weights are always loaded"),
    "actor_rollout_ref.ref.model": ("actor_rollout_ref.model.path", f"{_GONE}; the reference is the model as it was"),
    "actor_rollout_ref.ref.megatron.grad_offload": (
        "actor_rollout_ref.ref.megatron.param_offload",
        f"{_GONE}; gradients now go with the weights",
    ),
    f"{_ROLLOUT}.layer_name_map": (f"{_ROLLOUT}.load_format", f"{_GONE}; the bridge knows the names of the layers"),
    f"{_ROLLOUT}.update_weights_bucket_megabytes": (
        f"{_ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes",
        "as verl spells it now",
    ),
    f"{_ROLLOUT}.skip_rollout": ("--run-dir", f"{_GONE}; every step rolls out, and all rollouts are kept there"),
    f"{_ROLLOUT}.skip_dump_dir": ("--run-dir", f"{_GONE}; every step rolls out, and all rollouts are kept there"),
    "algorithm.rollout_correction.rollout_rs_threshold_lower": (
        "algorithm.rollout_correction.rollout_rs_threshold",
        f'{_GONE}; write both bounds as "0.5_2.0"',
    ),
    "algorithm.rollout_correction.rollout_token_veto_threshold": (
        "algorithm.rollout_correction.rollout_rs",
        f"{_GONE}; token_k1 there rejects by token",
    ),
    "algorithm.rollout_correction.use_policy_gradient": ("algorithm.rollout_correction.rollout_is", _GONE),
    "trainer.use_legacy_worker_impl": ("trainer.v1.trainer_mode", f"{_GONE}; there is one kind of worker now"),
    "trainer.early_stopping_patience": ("app.validation.patience", "verl has no early stopping; this application has"),
    "trainer.enable_wandb": ("trainer.logger", "for example trainer.logger=[console,wandb]"),
    "trainer.log_every_n_steps": ("trainer.logger", "every step is logged"),
    "trainer.profile_steps": ("global_profiler.steps", "with global_profiler.tool"),
    "algorithm.filter_groups": ("app.filter_groups.enable", "which bounds how often groups are drawn anew"),
    f"{VLLM_KWARGS}.disable_mm_preprocessor_cache": (
        f"{VLLM_KWARGS}.mm_processor_cache_gb",
        "vLLM below 0.10 only; set 0",
    ),
    f"{VLLM_KWARGS}.enable_sleep_mode": (f"{_ROLLOUT}.enable_sleep_mode", "verl decides by this one"),
    f"{VLLM_KWARGS}.max_model_len": (f"{_ROLLOUT}.max_model_len", "verl checks and cuts by this one"),
    f"{VLLM_KWARGS}.no_enable_prefix_caching": (f"{_ROLLOUT}.enable_prefix_caching", "verl passes it on now"),
}
# Keys of verl's tree that its own agent loops, data sets or trainer read, and nothing here -> what does.
UNREAD: dict[str, str] = {
    "algorithm.use_pf_ppo": "it belongs to PPO with a critic",
    "algorithm.pf_ppo": "it belongs to PPO with a critic",
    "data.prompt_key": _ROWS,
    "data.image_key": _ROWS,
    "data.video_key": _ROWS,
    "data.audio_key": _ROWS,
    "data.reward_fn_key": _ROWS,
    "data.custom_cls": _ROWS,
    "data.image_patch_size": _ROWS,
    "data.mm_processor_kwargs": "set agent.min_pixels and agent.max_pixels",
    "data.filter_overlong_prompts": "prompts over data.max_prompt_length are dropped and counted; lower agent.max_pixels",
    "data.filter_overlong_prompts_workers": "prompts over data.max_prompt_length are dropped and counted",
    "data.return_multi_modal_inputs": "pixels are rebuilt from the trace",
    "data.return_raw_input_ids": _ROWS,
    "data.return_full_prompt": _ROWS,
    "data.tool_config_path": "the agent has its tools: agent.max_tool_calls (--variant tools)",
    "data.function_tool_path": "the agent has its tools: agent.max_tool_calls (--variant tools)",
    "data.gen_batch_size": "set data.train_batch_size",
    "data.dataloader_num_workers": "rows are small and in memory; pixels are read where they are needed",
    "data.validation_shuffle": "validation rows keep their order",
    "data.truncation": "prompts over data.max_prompt_length are dropped and counted, never cut",
    "data.trust_remote_code": "set actor_rollout_ref.model.trust_remote_code",
    "data.apply_chat_template_kwargs": "the model server applies the template: engine_kwargs.vllm.chat_template",
    "data.tokenizer": "the model's own is used",
    "data.use_shm": "rows are in memory",
    f"{_ROLLOUT}.agent": _LOOPS,
    f"{_ROLLOUT}.val_kwargs": "validation is greedy, one rollout a row",
    f"{_ROLLOUT}.multi_turn": "the agent takes turns: agent.max_turns, agent.max_tool_calls (--variant tools)",
    f"{_ROLLOUT}.over_sample_rate": _LOOPS,
    f"{_ROLLOUT}.multi_stage_wake_up": "verl 0.9.1 always wakes weights and cache apart",
    f"{_ROLLOUT}.do_sample": "the temperature decides: actor_rollout_ref.rollout.temperature",
    f"{_ROLLOUT}.limit_images": "set app.images_per_prompt",
    f"{_ROLLOUT}.trace": "rollouts.jsonl and traces/ have every rollout",
    f"{_ROLLOUT}.prometheus": "metrics.jsonl has the figures of every step, and trainer.logger sends them on",
    "critic": "no critic runs: advantages come from groups (algorithm.adv_estimator)",
    "distillation": "no teacher runs",
    "trainer.checkpoint_callback_class": "checkpoints are kept in --run-dir",
    "trainer.resume_from_path": "--resume goes on from the newest whole checkpoint of --run-dir",
    "trainer.default_local_dir": "checkpoints are kept in --run-dir",
    "trainer.default_hdfs_dir": "checkpoints are kept in --run-dir",
    "trainer.del_local_ckpt_after_load": "checkpoints are kept in --run-dir",
    "trainer.max_actor_ckpt_to_keep": "set app.checkpoints.keep_last",
    "trainer.max_critic_ckpt_to_keep": "there is no critic; for the actor set app.checkpoints.keep_last",
    "trainer.val_only": "evaluate_agent.py --checkpoint scores a checkpoint",
    "trainer.log_val_generations": "rollouts.jsonl and report.html have the validation's replies",
    "trainer.rollout_data_dir": "rollouts.jsonl has every rollout",
    "trainer.validation_data_dir": "rollouts.jsonl and report.html have the validation's replies",
    "trainer.esi_redundant_time": "set trainer.save_freq",
    "trainer.critic_warmup": "there is no critic",
    "trainer.v1.sampler.custom_sampler": "this project's buffer is used (vision_rl/training/replay.py)",
    "trainer.v1.sampler.sync_refill_failed_groups": "failed rollouts are tried again: app.rollouts.max_attempts",
    "skip": "every step rolls out",
}
# Keys that exist, with the only values that make sense here.
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "data.val_batch_size": ((None,), "validation is one batch; use app.validation.samples for a smaller one"),
    f"{_ROLLOUT}.mode": (("async",), "verl has no other mode"),
    f"{_ROLLOUT}.top_p": ((1, 1.0), "the actor takes the whole distribution, and the log-probabilities would differ"),
    f"{_ROLLOUT}.top_k": ((-1,), "the actor takes the whole distribution, and the log-probabilities would differ"),
    f"{_ROLLOUT}.logprobs_mode": (("processed_logprobs",), "the actor, too, divides its logits by the temperature"),
    f"{_ROLLOUT}.calculate_log_probs": ((True,), "the actor is compared with the rollout in every step"),
    "algorithm.use_kl_in_reward": (
        (False,),
        "the KL term is in the loss here: actor_rollout_ref.actor.use_kl_loss and kl_loss_coef (--variant kl_strong)",
    ),
    "algorithm.rollout_correction.bypass_mode": (
        (False,),
        "it takes the rollout's log-probabilities for the actor's, so a blind or drifting actor would go unseen",
    ),
    "trainer.use_v1": ((True,), "verl's older trainer is not supported here"),
    "transfer_queue.enable": ((True,), "verl's trainer hands every rollout over through the queue"),
}
CHOICES: dict[str, tuple[str | None, ...]] = {
    f"{_ACTOR}.strategy": ("fsdp", "fsdp2", "megatron"),
    f"{_ROLLOUT}.name": ("vllm", "sglang"),
    f"{_ROLLOUT}.load_format": ("dummy", "auto", "safetensors", "hf"),
    f"{_ACTOR}.kl_loss_type": ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3", "k1+", "k2+", "k3+"),
    f"{_ACTOR}.loss_agg_mode": (
        "token-mean",
        "token-sum",
        "seq-mean-token-sum",
        "seq-mean-token-mean",
        "seq-mean-token-sum-norm",
    ),
    f"{_ACTOR}.policy_loss.loss_mode": (
        "vanilla",
        "dppo_tv",
        "dppo_kl",
        "gspo",
        "sapo",
        "gpg",
        "clip_cov",
        "kl_cov",
        "geo_mean",
        "dro",
        "cispo",
    ),
    "algorithm.adv_estimator": (
        "gae",
        "grpo",
        "grpo_passk",
        "grpo_vectorized",
        "gdpo",
        "gpg",
        "opo",
        "optimal_token_baseline",
        "reinforce_plus_plus",
        "reinforce_plus_plus_baseline",
        "remax",
        "rloo",
        "rloo_vectorized",
        "tir_optimal_token_baseline",
    ),
    "algorithm.rollout_correction.rollout_is": ("token", "sequence", None),
    **{
        f"actor_rollout_ref.{role}.fsdp_config.mixed_precision.{name}": ("fp32", "bf16", "fp16")
        for role in ("actor", "ref")
        for name in ("param_dtype", "reduce_dtype", "buffer_dtype")
    },
    f"{_ROLLOUT}.checkpoint_engine.backend": ("naive", "nccl", "nixl", "mooncake", "delta_sharded", "file"),
    "trainer.device": ("cuda", "cpu"),
    "trainer.v1.trainer_mode": ("sync", "colocate_async", "separate_async"),
    "trainer.v1.sampler.max_off_policy_strategy": ("drop", "wait"),
    "trainer.resume_mode": ("auto", "disable"),
    "trainer.logger": (
        "console",
        "file",
        "tensorboard",
        "wandb",
        "mlflow",
        "swanlab",
        "trackio",
        "clearml",
        "vemlp_wandb",
    ),
    "agent.answer_format": ("native", *FORMATS),
    "agent.image_transport": ("file", "data"),
    "agent.tool_protocol": ("text", "function"),
    "agent.structured_output": ("refuse", "prompt"),
    "agent.video": ("frames", "native"),
    "agent.answer_view": ("original", "last"),
    "agentlightning.trace_aggregator.level": ("transition", "trajectory"),
    "app.collapse.action": ("warn", "stop", "restore_best"),
}

EXTENSIBLE = ("algorithm.adv_estimator",)
"""Settings whose choices a module of `app.imports` may add to (verl's `register_adv_est`)."""


def check(key: str, value: Any, keys: Mapping[str, Key], source: str, *, imports: bool = False) -> None:
    """Raise `UserError` unless `key` exists in `keys` and `value` fits; `source` (file, override) opens the message.

    imports: modules of the user's own are imported, and may register further values of the `EXTENSIBLE` settings.
    """
    whole = key if key.split(".", 1)[0] not in _SHORT else f"actor_rollout_ref.{key}"  # as guides abbreviate
    for prefix, (truth, why) in OBSOLETE.items():
        if whole == prefix or whole.startswith(prefix + "."):
            raise UserError(f"{source}: {key} is not used, the true setting is {truth} ({why})")
    for prefix, cure in UNREAD.items():
        if (key == prefix or key.startswith(prefix + ".")) and source != "flag":
            raise UserError(f"{source}: {key} is a setting of verl's that nothing reads here: {cure}")
    if key in FIXED and value not in FIXED[key][0]:
        allowed = " or ".join(_show(v) for v in FIXED[key][0])
        raise UserError(f"{source}: {key} must be {allowed}, not {_show(value)}: {FIXED[key][1]}")
    for section, engine, arguments in (
        (VLLM_KWARGS, "vLLM", vllm_arguments),
        (SGLANG_KWARGS, "SGLang", sglang_arguments),
    ):
        if key.startswith(section + "."):
            _check_engine(key, source, section, engine, arguments())
            return
    if any(key == free or key.startswith(free + ".") for free in FREE_FORM):
        return
    if key not in keys:
        raise UserError(f"{source}: unknown setting {key}{suggestion(key, keys)}")
    known = keys[key]
    if isinstance(known.default, dict) and not known.annotation:
        raise UserError(
            f"{source}: {key} is a section, not a value; set one of its keys, such as {_example(key, keys)}"
        )
    expected = mismatch(value, known)
    if expected:
        raise UserError(f"{source}: {key} must be {expected}, not {_show(value)}")
    for one in value if isinstance(value, (list, tuple)) else [value]:
        if imports and key in EXTENSIBLE and isinstance(one, str):
            continue
        if key in CHOICES and one not in CHOICES[key] and not _is_interpolation(one):
            choices = ["null" if choice is None else choice for choice in CHOICES[key]]
            hint = meant(str(one), choices)
            own = "; one of your own needs app.imports=[its_module]" if key in EXTENSIBLE else ""
            raise UserError(f"{source}: {key} must be one of {', '.join(choices)}, not {_show(one)}{hint}{own}")


def _check_engine(key: str, source: str, section: str, engine: str, arguments: frozenset[str]) -> None:
    """Whether the engine has the argument; anything goes where it is not installed."""
    name = key[len(section) + 1 :].split(".", 1)[0]
    if arguments and name not in arguments:
        hint = meant(f"{section}.{name}", [f"{section}.{one}" for one in arguments], cutoff=0.9)
        raise UserError(
            f"{source}: unknown setting {key}: the installed {engine} has no argument --{name.replace('_', '-')}{hint}"
        )


def suggestion(key: str, keys: Mapping[str, Any]) -> str:
    """The end of a message, "; did you mean X?", for the nearest known key.

    First a key that ends in what was written (its beginning was left out), then the closest spelling of the whole, then
    the closest spelling of its last part.
    """
    names = [name for name, known in keys.items() if not isinstance(getattr(known, "default", None), dict)]
    whole = [known for known in names if known.endswith("." + key)]
    if whole:
        trained = [known for known in whole if known.startswith("actor_rollout_ref.")]  # rather than an unused critic
        return f"; did you mean {min(trained or whole, key=len)}?"
    if hint := meant(key, names, cutoff=0.75):
        return hint
    leaves: dict[str, str] = {}
    for known in names:
        leaf = known.rsplit(".", 1)[-1]
        leaves[leaf] = min(known, leaves.get(leaf, known), key=len)
    nearest = near(key.rsplit(".", 1)[-1], leaves, cutoff=0.75)
    return f"; did you mean {leaves[nearest]}?" if nearest else "; --dry-run lists every setting"


def mismatch(value: Any, known: Key) -> str:
    """What `value` should have been, in words; "" where it fits the annotation or, without one, the default's type."""
    if _is_interpolation(value):
        return ""
    annotation = known.annotation or _annotation_of(known.default)
    optional = "Optional" in annotation or "None" in annotation
    if value is None:
        return "" if optional or annotation in ("", "Any") else _words(annotation)
    base = re.sub(r"Optional\[(.*)\]", r"\1", annotation).replace("| None", "").strip()
    return "" if _fits(value, base) else _words(base) + (" or null" if optional else "")


def _fits(value: Any, base: str) -> bool:
    if base == "bool":
        return isinstance(value, bool)
    if base == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if base == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if base == "str":
        return isinstance(value, str)
    if base.startswith(("list", "tuple", "List", "Tuple")):
        return isinstance(value, (list, tuple))
    if base.startswith(("dict", "Dict")):
        return isinstance(value, dict)
    return True


def _annotation_of(default: Any) -> str:
    if default is None or default == "???":
        return ""
    return {bool: "bool", int: "int", float: "float", str: "str", list: "list"}.get(type(default), "")


def _words(annotation: str) -> str:
    words = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
    if annotation in words:
        return words[annotation]
    return "a list" if annotation.startswith(("list", "tuple", "List", "Tuple")) else "a section of keys"


def _is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _show(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _example(key: str, keys: Mapping[str, Any]) -> str:
    return next((known for known in keys if known.startswith(key + ".")), key + ".<name>")
