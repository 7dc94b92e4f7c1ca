"""Strict keys: every `key: value` is checked against what verl, Agent Lightning, vLLM and this project really read.

Agent Lightning 0.3.0 merges a user's dictionary with struct mode off (`agentlightning/algorithm/verl/interface.py`), so
there a misspelt key is silently ignored. Here it is a `UserError` that names the nearest key; keys of the well-known
guides that verl 0.6.1 never had, or that nothing reads under Agent Lightning, are known by name and answered with the
true one.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from vision_rl.engine.schema import FREE_FORM, SGLANG_KWARGS, VLLM_KWARGS, Key, sglang_arguments, vllm_arguments
from vision_rl.errors import UserError
from vision_rl.formats import FORMATS

_ROWS = "the application reads the rows (docs/data.md)"
_NO_REWARD_MODEL = "nothing reads it here: the agent computes and emits the reward (see vision_rl/rewards)"
_LORA = "actor_rollout_ref.model.lora_rank"
_SHORT = ("model", "actor", "rollout", "ref")
# prefix or key -> (the true key, why); from the guides that circulate for these tasks.
OBSOLETE: dict[str, tuple[str, str]] = {
    "actor_rollout_ref.model.peft.lora_alpha": ("actor_rollout_ref.model.lora_alpha", "verl 0.6.1 has no peft section"),
    "actor_rollout_ref.model.peft.lora_r": (_LORA, "verl 0.6.1 has no peft section"),
    "actor_rollout_ref.model.peft": (_LORA, "verl 0.6.1 has no peft section; a rank above 0 switches LoRA on"),
    "actor_rollout_ref.model.lora_r": (_LORA, "as verl spells it"),
    "actor_rollout_ref.actor.optim.learning_rate": ("actor_rollout_ref.actor.optim.lr", "as verl spells it"),
    "actor_rollout_ref.model.backend": (
        "actor_rollout_ref.actor.strategy",
        "use strategy=megatron, or --preset megatron",
    ),
    "actor_rollout_ref.model.megatron": (
        "actor_rollout_ref.actor.megatron",
        "with actor_rollout_ref.actor.strategy=megatron",
    ),
    "data.enable_sequence_balance": (
        "trainer.balance_batch",
        "see also actor_rollout_ref.actor.use_dynamic_bsz and actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    ),
    "data.sequence_balance": (
        "trainer.balance_batch",
        "see also actor_rollout_ref.actor.use_dynamic_bsz and actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    ),
    "reward_model.path": ("agent.reward", _NO_REWARD_MODEL),
    "custom_reward_function": ("agent.reward", _NO_REWARD_MODEL),
    "data.max_val_samples": ("app.validation.samples", "verl never had it"),
    "data.val_max_samples": ("app.validation.samples", "verl reads it only for its own parquet data sets"),
    "data.max_train_samples": ("app.max_train_samples", "verl never had it"),
    "data.train_max_samples": ("app.max_train_samples", "verl reads it only for its own parquet data sets"),
    "data.train_files": ("--data-path", "the application reads the file and hands the rows over"),
    "data.val_files": ("--val-data-path", "the application reads the file and hands the rows over"),
    "actor_rollout_ref.actor.gradient_clip_norm": ("actor_rollout_ref.actor.grad_clip", "verl clips at 1.0 by default"),
    "trainer.early_stopping_patience": ("app.validation.patience", "verl has no early stopping; this application has"),
    "trainer.enable_wandb": ("trainer.logger", "for example trainer.logger=[console,wandb]"),
    "trainer.log_every_n_steps": ("trainer.logger", "every step is logged"),
    "trainer.profile_steps": ("global_profiler.steps", "with global_profiler.tool"),
    "algorithm.filter_groups": ("app.filter_groups.enable", "verl's trainer under Agent Lightning does not read it"),
    f"{VLLM_KWARGS}.disable_mm_preprocessor_cache": (
        f"{VLLM_KWARGS}.mm_processor_cache_gb",
        "vLLM below 0.10 only; set 0",
    ),
}
# Keys of verl's tree that its own trainer or its own data sets read, and nothing under this project's trainer -> what does.
UNREAD: dict[str, str] = {
    "algorithm.rollout_correction": "mismatch/* compares both sides of every token, and the run stops where they differ",
    "algorithm.use_pf_ppo": "it belongs to PPO with a critic",
    "data.prompt_key": _ROWS,
    "data.image_key": _ROWS,
    "data.video_key": _ROWS,
    "data.reward_fn_key": _ROWS,
    "data.custom_cls": _ROWS,
    "data.filter_overlong_prompts": "prompts over data.max_prompt_length are dropped and counted; lower agent.max_pixels",
    "data.return_multi_modal_inputs": "pixels are rebuilt from the trace",
    "actor_rollout_ref.rollout.val_kwargs": "validation is greedy, one rollout a row",
    "actor_rollout_ref.rollout.multi_turn": "the agent takes turns: agent.max_turns, agent.max_tool_calls (--variant tools)",
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
}
# Keys that exist, with the only values that make sense under Agent Lightning.
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "data.val_batch_size": (
        (None,),
        "Agent Lightning asserts a single validation batch; use app.validation.samples for a smaller one",
    ),
    "reward_model.enable": ((False,), f"no reward model runs here, {_NO_REWARD_MODEL}"),
    "actor_rollout_ref.rollout.mode": (("async",), "Agent Lightning's trainer asserts it"),
    "algorithm.use_kl_in_reward": (
        (False,),
        "the KL term is in the loss here: actor_rollout_ref.actor.use_kl_loss and kl_loss_coef (--variant kl_strong)",
    ),
    "actor_rollout_ref.hybrid_engine": ((True,), "verl 0.6.1 supports nothing else"),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "actor_rollout_ref.actor.strategy": ("fsdp", "fsdp2", "megatron"),
    "actor_rollout_ref.rollout.name": ("vllm", "sglang"),
    "actor_rollout_ref.rollout.load_format": (
        "dummy",
        "auto",
        "safetensors",
        "hf",
        "dummy_dtensor",
        "dummy_megatron",
        "dummy_hf",
    ),
    "actor_rollout_ref.actor.kl_loss_type": (
        "kl",
        "k1",
        "abs",
        "mse",
        "k2",
        "low_var_kl",
        "k3",
        "k1+",
        "k2+",
        "k3+",
        "full",
    ),
    "actor_rollout_ref.actor.loss_agg_mode": (
        "token-mean",
        "seq-mean-token-sum",
        "seq-mean-token-mean",
        "seq-mean-token-sum-norm",
    ),
    "actor_rollout_ref.actor.policy_loss.loss_mode": (
        "vanilla",
        "gspo",
        "gpg",
        "clip_cov",
        "kl_cov",
        "geo_mean",
        "rollout_correction",
    ),
    "algorithm.adv_estimator": (
        "gae",
        "grpo",
        "grpo_passk",
        "grpo_vectorized",
        "gpg",
        "opo",
        "reinforce_plus_plus",
        "reinforce_plus_plus_baseline",
        "remax",
        "rloo",
        "rloo_vectorized",
    ),
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
    "agent.answer_view": ("original", "last"),
    "agentlightning.trace_aggregator.level": ("transition", "trajectory"),
    "app.collapse.action": ("warn", "stop", "restore_best"),
}


def check(key: str, value: Any, keys: Mapping[str, Key], source: str) -> None:
    """Raise `UserError` unless `key` exists in `keys` and `value` fits; `source` (file, override) opens the message."""
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
        if key in CHOICES and one not in CHOICES[key] and not _is_interpolation(one):
            near = difflib.get_close_matches(str(one), CHOICES[key], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{source}: {key} must be one of {', '.join(CHOICES[key])}, not {_show(one)}{hint}")


def _check_engine(key: str, source: str, section: str, engine: str, arguments: frozenset[str]) -> None:
    """Whether the engine has the argument; anything goes where it is not installed."""
    name = key[len(section) + 1 :].split(".", 1)[0]
    if arguments and name not in arguments:
        near = difflib.get_close_matches(name, arguments, n=1)
        hint = f"; did you mean {section}.{near[0]}?" if near else ""
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
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.75)
    if near:
        return f"; did you mean {near[0]}?"
    leaves: dict[str, str] = {}
    for known in names:
        leaf = known.rsplit(".", 1)[-1]
        leaves[leaf] = min(known, leaves.get(leaf, known), key=len)
    near = difflib.get_close_matches(key.rsplit(".", 1)[-1], list(leaves), n=1, cutoff=0.75)
    return f"; did you mean {leaves[near[0]]}?" if near else "; --dry-run lists every setting"


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
