"""Strict keys: every `key: value` must be one that Agent Lightning, verl, vLLM or this project really reads.

Agent Lightning 0.3.0 merges a user's dictionary with struct mode off (`agentlightning/algorithm/verl/interface.py`), so
there a misspelt key is silently ignored. Here it is a `UserError` that names the nearest key; keys of verl 0.6, keys of
the well-known guides that verl never had, and keys that nothing reads here are known by name and answered with the
true one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vision_rl.answers.formats import FORMATS
from vision_rl.config.known_keys import FREE_FORM, SGLANG_KWARGS, VLLM_KWARGS, Key, sglang_arguments, vllm_arguments
from vision_rl.config.origin import Layer, Origin
from vision_rl.errors import UserError, meant, near

_ACTOR = "actor_rollout_ref.actor"
_ROLLOUT = "actor_rollout_ref.rollout"
_SHORT = ("model", "actor", "rollout", "ref")
_TABLES: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
OBSOLETE: dict[str, tuple[str, str]] = {key: (truth, why) for key, (truth, why) in _TABLES["obsolete"].items()}
"""Prefix or key -> (the true key, why)."""
UNREAD: dict[str, str] = _TABLES["unread"]
"""Prefix or key -> what is read in its place."""
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


def check(
    key: str, value: Any, keys: Mapping[str, Key], origin: Origin, *, imports: bool = False, note: str = ""
) -> None:
    """Raise `UserError` unless `key` exists in `keys` and `value` fits; `origin` and `note` open the message.

    Flags may set what is refused to others.

    imports: modules of the user's own are imported, and may register further values of the `EXTENSIBLE` settings.
    """
    source = f"{origin}{note}"
    whole = key if key.split(".", 1)[0] not in _SHORT else f"actor_rollout_ref.{key}"  # as guides abbreviate
    for prefix, (truth, why) in OBSOLETE.items():
        if whole == prefix or whole.startswith(prefix + "."):
            raise UserError(f"{source}: {key} is not used, the true setting is {truth} ({why})")
    for prefix, cure in UNREAD.items():
        if (key == prefix or key.startswith(prefix + ".")) and origin.layer is not Layer.FLAG:
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
