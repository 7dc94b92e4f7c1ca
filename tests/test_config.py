"""The configuration: composed from the installed verl, strict, and valid for verl's own checks."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoConfig

from vision_rl.config import checks, derived, known_keys, refused_keys
from vision_rl.config import resolve as config_module
from vision_rl.config.resolve import Resolved, presets, render_resolved, resolve, validate_with_verl, variants
from vision_rl.errors import UserError

TINY = Path(__file__).resolve().parents[1] / "vision_rl" / "tiny" / "checkpoint"
ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"
VLLM = known_keys.VLLM_KWARGS


def cpu(*overrides: str, **kwargs: Any) -> Resolved:
    return resolve("cpu", overrides, task=kwargs.pop("task", "vqa"), model=TINY, **kwargs)


def at(resolved: Resolved, key: str) -> Any:
    return OmegaConf.select(OmegaConf.create(resolved.tree()), key)


# Every preset alone and every variant on the three kinds of preset: small, one GPU, many GPUs with another strategy.
PAIRS: list[Any] = [(preset, None) for preset in presets()]
PAIRS += [("cpu", variant) for variant in variants()]
PAIRS += [
    pytest.param(preset, variant, marks=pytest.mark.slow)
    for preset in ("gpu_24gb_lora", "megatron")
    for variant in variants()
]


@pytest.mark.parametrize(("preset", "variant"), PAIRS)
def test_every_preset_and_variant_satisfies_verl(preset: str, variant: str | None) -> None:
    chosen = [variant] if variant else []
    if preset == "megatron" and variant in ("freeze_vision", "papo"):
        with pytest.raises(UserError, match="nothing under Megatron"):
            resolve(preset, task="grounding", variants=chosen, model=TINY)
        return
    # The variant serves from one GPU of its own; a preset whose servers span two has to say so.
    wider = (preset, variant) == ("megatron", "async")
    overrides = [f"{ROLLOUT}.n_gpus_per_node=2"] if wider else []
    if wider:
        with pytest.raises(UserError, match="does not divide the 1 GPUs"):
            resolve(preset, task="grounding", variants=chosen, model=TINY)
    validate_with_verl(resolve(preset, overrides, task="grounding", variants=chosen, model=TINY))


@pytest.mark.parametrize("preset", [name for name in presets() if name != "cpu"])
def test_gpu_presets_name_a_model_of_their_own(preset: str) -> None:
    resolved = resolve(preset, task="vqa")
    assert str(resolved.origin["actor_rollout_ref.model.path"]) == f"preset {preset}"
    assert resolved.agent.family.startswith("qwen")


@pytest.mark.parametrize("preset", presets())
def test_no_preset_repeats_the_base(preset: str) -> None:
    base = dict(config_module._leaves(OmegaConf.load(config_module.CONFIG_DIR / "base.yaml")))
    own = dict(config_module._leaves(OmegaConf.load(config_module.CONFIG_DIR / f"{preset}.yaml")))
    repeated = {key for key, value in own.items() if key in base and base[key] == value}
    assert repeated == set()


def test_verl_refuses_what_validate_with_verl_is_given() -> None:
    resolved = cpu()
    resolved.verl["actor_rollout_ref"]["actor"]["loss_agg_mode"] = "mean"
    with pytest.raises(UserError, match=r"verl refuses this configuration.*loss_agg_mode"):
        validate_with_verl(resolved)


@pytest.mark.parametrize("megatron", [False, True])
@pytest.mark.slow
def test_composition_is_that_of_agent_lightning_and_verl(megatron: bool) -> None:
    """hydra itself follows Agent Lightning's defaults list; its search path is a folder, so neither package loads.

    Of Agent Lightning's own layer only its section is taken: the rest is for the agent loops of verl 0.6.
    """
    verl = known_keys.package_dir("verl") / "trainer" / "config"
    directory = known_keys.package_dir("agentlightning") / "verl"
    engine = ["model_engine=megatron"] if megatron else []
    with initialize_config_dir(version_base=None, config_dir=str(directory)):
        theirs = compose("config", overrides=[f"hydra.searchpath=[file://{verl}]", *engine])
    ours = OmegaConf.merge(known_keys.verl_defaults(megatron), known_keys.agentlightning_defaults())
    differing = {
        key
        for key, value in dict(config_module._leaves(theirs)).items()
        if dict(config_module._leaves(ours))[key] != value
    }
    loop = f"{ROLLOUT}.agent.custom_async_server"
    no_reward_workers = {"reward.reward_model.rollout.name", "reward.num_workers"}
    assert differing == {f"{loop}.path", f"{loop}.name"} | no_reward_workers


def test_megatron_composes_from_megatron_defaults() -> None:
    resolved = resolve("megatron", task="vqa")
    actor = resolved.verl["actor_rollout_ref"]["actor"]
    assert resolved.strategy == "megatron"
    assert actor["_target_"].endswith("McoreActorConfig") and actor["optim"]["_target_"].endswith(
        "McoreOptimizerConfig"
    )
    assert "fsdp_config" not in actor and actor["megatron"]["tensor_model_parallel_size"] == 2
    with pytest.raises(UserError, match=r"unknown setting actor_rollout_ref\.actor\.fsdp_config"):
        resolve("megatron", [f"{ACTOR}.fsdp_config.param_offload=true"], task="vqa")


def test_the_megatron_preset_reads_hub_checkpoints_through_the_bridge() -> None:
    """megatron-core is not installed here: verl's own dataclasses and checks are what can be tried."""
    resolved = resolve("megatron", task="vqa", model=TINY)
    validate_with_verl(resolved)
    for role in ("actor", "ref"):
        megatron = resolved.verl["actor_rollout_ref"][role]["megatron"]
        assert megatron["use_mbridge"] and not megatron["vanilla_mbridge"], "verl's other bridge is deprecated"
        assert (megatron["tensor_model_parallel_size"], megatron["pipeline_model_parallel_size"]) == (2, 2)
        assert megatron["override_transformer_config"]["recompute_granularity"] == "full"


def test_megatron_by_override_refuses_fsdp_settings_of_the_preset() -> None:
    with pytest.raises(UserError, match=r"preset 8x80gb \(under Megatron.*unknown setting .*ref\.fsdp_config"):
        resolve("8x80gb", [f"{ACTOR}.strategy=megatron"], task="vqa")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"{ACTOR}.optim.lrr=1", rf"unknown setting {ACTOR}\.optim\.lrr; did you mean {ACTOR}\.optim\.lr\?"),
        ("optim.lr=1e-6", rf"did you mean {ACTOR}\.optim\.lr\?"),
        ("data.train_batchsize=8", r"did you mean data\.train_batch_size\?"),
        ("+data.train_batchsize=8", r"did you mean data\.train_batch_size\?"),
        ("trainer.n_gpu_per_node=1", r"did you mean trainer\.n_gpus_per_node\?"),
        ("app.validation.sample=3", r"did you mean app\.validation\.samples\?"),
        ("agent.max_pixel=3", r"did you mean agent\.max_pixels\?"),
        (f"{VLLM}.kv_cache_dtipe=fp8", rf"no argument --kv-cache-dtipe; did you mean {VLLM}\.kv_cache_dtype\?"),
        ("ray_kwargs.ray_init.num_gpu=1", r"did you mean ray_kwargs\.ray_init\.num_gpus\?"),
        ("xyzzy=1", r"unknown setting xyzzy; --dry-run lists every setting"),
        ("data=3", r"data is a section, not a value"),
        (f"{ROLLOUT}.n=two", rf"{ROLLOUT}\.n must be a whole number, not 'two'"),
        (f"{ROLLOUT}.n=4.5", r"must be a whole number"),
        (f"{ROLLOUT}.n=true", r"must be a whole number"),
        (f"{ACTOR}.use_kl_loss=1", r"must be true or false"),
        (f"{ACTOR}.optim.lr=fast", r"must be a number"),
        (f"{ACTOR}.ppo_micro_batch_size_per_gpu=some", r"must be a whole number or null"),
        ("data.max_prompt_length=null", r"a whole number, not null"),
        ("trainer.logger=console", r"trainer\.logger must be a list"),
        ("app.blank_pixels=maybe", r"must be true or false"),
        ("agent.max_pixels=many", r"must be a whole number or null"),
        (f"{ACTOR}.kl_loss_type=low_vark", r"must be one of .*did you mean low_var_kl\?"),
        (f"{ACTOR}.strategy=deepspeed", r"strategy=deepspeed is unknown"),
        ("app.collapse.action=panic", r"must be one of warn, stop, restore_best"),
        ("data.val_batch_size=8", r"data\.val_batch_size must be null, not 8: validation is one batch"),
        (f"{ROLLOUT}.mode=sync", r"must be 'async'"),
        ("transfer_queue.enable=false", r"transfer_queue\.enable must be true"),
        ("algorithm.rollout_correction.bypass_mode=true", r"must be false, not true: .*would go unseen"),
        (f"{ROLLOUT}.top_p=0.9", r"must be 1 or 1\.0, not 0\.9: the actor takes the whole distribution"),
        ("trainer.v1.trainer_mode=asynch", r"must be one of sync, colocate_async, separate_async, not 'asynch'"),
        (f"{ACTOR}.fsdp_config.mixed_precision.param_dtype=float32", r"must be one of fp32, bf16, fp16, not 'float32'"),
        (f"{ACTOR}.fsdp_config.mixed_precision.parm_dtype=fp32", r"did you mean .*mixed_precision\.param_dtype\?"),
        (f"{ACTOR}.use_kl_loss=1", r"not 1$"),
        ("trainer.logger=[consle]", r"trainer\.logger must be one of console, .*did you mean console\?"),
        ("trainer.resume_mode=resume_path", r"must be one of auto, disable"),
        ("algorithm.use_kl_in_reward=true", r"must be false, not true: the KL term is in the loss here"),
        ("trainer.max_actor_ckpt_to_keep=2", r"that nothing reads here: set app\.checkpoints\.keep_last"),
        (f"{ROLLOUT}.val_kwargs.n=4", r"that nothing reads here: validation is greedy"),
        ("data.seed=1,2", r"a comma outside brackets"),
        ("~data.seed", r"cannot be deleted"),
        ("data.seed", r"write it as key=value"),
    ],
)
def test_bad_overrides_are_one_clear_sentence(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        cpu(override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "true_key"),
    [
        ("actor_rollout_ref.model.peft.enable=true", "actor_rollout_ref.model.lora_rank"),
        ("actor_rollout_ref.model.peft.lora_r=64", "actor_rollout_ref.model.lora_rank"),
        ("actor_rollout_ref.model.peft.lora_alpha=16", "actor_rollout_ref.model.lora_alpha"),
        ("actor_rollout_ref.model.peft.peft_type=lora", "actor_rollout_ref.model.lora_rank"),
        ("actor_rollout_ref.model.backend=megatron", f"{ACTOR}.strategy"),
        ("actor_rollout_ref.model.megatron.tensor_model_parallel_size=2", f"{ACTOR}.megatron"),
        ("data.enable_sequence_balance=true", f"{ACTOR}.use_dynamic_bsz"),
        ("data.sequence_balance.method=pack", f"{ACTOR}.use_dynamic_bsz"),
        ("reward_model.path=custom_grounding_reward.py", "agent.reward"),
        ("custom_reward_function.path=x.py", "agent.reward"),
        ("+data.max_val_samples=60", "app.validation.samples"),
        ("+data.max_train_samples=144", "app.max_train_samples"),
        ("data.val_max_samples=60", "app.validation.samples"),
        ("data.train_files=x.parquet", "--data-path"),
        (f"+{ACTOR}.gradient_clip_norm=1.0", f"{ACTOR}.optim.clip_grad"),
        ("model.peft.lora_r=64", "actor_rollout_ref.model.lora_rank"),
        ("model.lora_r=64", "actor_rollout_ref.model.lora_rank"),
        ("model.backend=megatron", f"{ACTOR}.strategy"),
        ("+actor.gradient_clip_norm=1.0", f"{ACTOR}.optim.clip_grad"),
        (f"{ACTOR}.optim.learning_rate=1e-6", f"{ACTOR}.optim.lr"),
        ("+trainer.early_stopping_patience=5", "app.validation.patience"),
        ("+trainer.enable_wandb=true", "trainer.logger"),
        ("+trainer.log_every_n_steps=1", "trainer.logger"),
        ("+trainer.profile_steps=[1,2,3]", "global_profiler.steps"),
        ("+algorithm.filter_groups.enable=true", "app.filter_groups.enable"),
        (f"+{VLLM}.disable_mm_preprocessor_cache=true", f"{VLLM}.mm_processor_cache_gb"),
        # What verl 0.6 had and verl 0.9 has elsewhere, or has kept without reading it.
        ("data.sampler.class_path=x.py", "data.seed"),
        (f"{ACTOR}.grad_clip=0.5", f"{ACTOR}.optim.clip_grad"),
        (f"{ACTOR}.fsdp_config.dtype=float32", f"{ACTOR}.fsdp_config.mixed_precision.param_dtype"),
        (f"{ACTOR}.ppo_micro_batch_size=4", f"{ACTOR}.ppo_micro_batch_size_per_gpu"),
        (
            f"{ROLLOUT}.update_weights_bucket_megabytes=1",
            f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes",
        ),
        ("reward_model.enable=true", "agent.reward"),
        ("reward.custom_reward_function.path=x.py", "agent.reward"),
        ("trainer.use_legacy_worker_impl=enable", "trainer.v1.trainer_mode"),
        ("trainer.balance_batch=false", f"{ACTOR}.use_dynamic_bsz"),
        ("algorithm.rollout_correction.rollout_token_veto_threshold=1", "algorithm.rollout_correction.rollout_rs"),
        (f"+{VLLM}.max_model_len=256", f"{ROLLOUT}.max_model_len"),
    ],
)
def test_obsolete_keys_of_the_guides_name_the_true_one(override: str, true_key: str) -> None:
    with pytest.raises(UserError, match="the true setting is") as caught:
        cpu(override)
    assert f"the true setting is {true_key} (" in str(caught.value)


@cache
def keys_of_verl(megatron: bool) -> frozenset[str]:
    return frozenset(known_keys.known_keys(known_keys.verl_defaults(megatron)))


@pytest.mark.parametrize(("wrong", "right"), [(key, truth) for key, (truth, _) in refused_keys.OBSOLETE.items()])
def test_the_true_keys_exist(wrong: str, right: str) -> None:
    known = keys_of_verl(False) | keys_of_verl(True) | set(config_module._our_keys())
    known |= {f"{VLLM}.{name}" for name in known_keys.vllm_arguments()}
    assert right.startswith("--") or right in known


@pytest.mark.parametrize("key", refused_keys.UNREAD)
def test_keys_that_nothing_reads_exist_in_verl(key: str) -> None:
    assert key in keys_of_verl(False)


def test_no_key_of_verl_that_is_gone_is_merely_unknown() -> None:
    """Every key of verl 0.6.1's trees that 0.9.1 does not have is refused with its successor, not with a guess."""
    gone = json.loads((Path(__file__).parent / "data" / "verl_0_6_keys_gone.json").read_text())
    assert len(gone) > 50
    named = (*refused_keys.OBSOLETE, *refused_keys.UNREAD, *known_keys.FREE_FORM)
    assert [key for key in gone if not any(key == name or key.startswith(name + ".") for name in named)] == []


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        (f"{ACTOR}.optim.lr=1e-6", f"{ACTOR}.optim.lr", 1e-6),
        (f"{ACTOR}.optim.lr=1", f"{ACTOR}.optim.lr", 1),
        (f"{ACTOR}.entropy_coeff=0.01", f"{ACTOR}.entropy_coeff", 0.01),
        ("+trainer.logger=[console,tensorboard]", "trainer.logger", ["console", "tensorboard"]),
        ('trainer.logger=["console","wandb"]', "trainer.logger", ["console", "wandb"]),
        ("+actor_rollout_ref.model.override_config.attn_implementation=eager", None, None),
        (
            "actor_rollout_ref.model.override_config={vocab_size: 7}",
            "actor_rollout_ref.model.override_config.vocab_size",
            7,
        ),
        (f"+{VLLM}.limit_mm_per_prompt={{image: 1}}", f"{VLLM}.limit_mm_per_prompt", {"image": 1}),
        (
            f"+{ACTOR}.fsdp_config.mixed_precision.param_dtype=fp32",
            f"{ACTOR}.fsdp_config.mixed_precision.param_dtype",
            "fp32",
        ),
        (
            "algorithm.rollout_correction.rollout_is_threshold='0.5_2.0'",
            "algorithm.rollout_correction.rollout_is_threshold",
            "0.5_2.0",
        ),
        ("data.seed=null", "data.seed", None),
        ("data.val_batch_size=null", "data.val_batch_size", None),
        ("app.integrity.logprob_mismatch_max=null", "app.integrity.logprob_mismatch_max", None),
        ("++app.filter_groups.max_rounds=2", "app.filter_groups.max_rounds", 2),
    ],
)
def test_good_overrides_are_taken(override: str, key: str | None, value: Any) -> None:
    key = key or "actor_rollout_ref.model.override_config.attn_implementation"
    resolved = cpu(override)
    assert at(resolved, key) == (value if value is not None or "null" in override else "eager")
    assert str(resolved.origin[key]) == "override"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((f"{ROLLOUT}.n=1",), "without a group"),
        ((f"{ACTOR}.ppo_mini_batch_size=32",), r"larger than data\.train_batch_size=16"),
        ((f"{ACTOR}.ppo_micro_batch_size_per_gpu=7",), r"must divide .* = 128"),
        ((f"{ROLLOUT}.tensor_model_parallel_size=2",), "does not divide the 1 GPUs"),
        ((f"{ROLLOUT}.enable_chunked_prefill=false", f"{ROLLOUT}.max_num_batched_tokens=200"), "fit into one pass"),
        ((f"{ROLLOUT}.max_model_len=100",), r"at least data\.max_prompt_length \+ data\.max_response_length = 152"),
        ((f"{ACTOR}.use_dynamic_bsz=true", f"{ACTOR}.ppo_max_token_len_per_gpu=100"), "at least 152, the longest"),
        ((f"{ROLLOUT}.log_prob_use_dynamic_bsz=true",), r"must be what .*actor\.use_dynamic_bsz is"),
        (("trainer.n_gpus_per_node=3",), r"16 x 8 must be a multiple of the 3 data-parallel GPUs"),
        (("actor_rollout_ref.hybrid_engine=false",), "must be true under trainer.v1.trainer_mode=sync"),
        (("trainer.v1.trainer_mode=colocate_async",), "trains on samples of older weights"),
        ((f"{ACTOR}.policy_loss.loss_mode=dro",), "needs .*dro_beta"),
        (("algorithm.rollout_correction.rollout_rs=seq_k1",), r"rollout_rs=seq_k1 is unknown; choose from token_k1"),
        (("algorithm.rollout_correction.rollout_rs=token_k1",), "needs .*rollout_rs_threshold"),
        (("algorithm.rollout_correction.rollout_is_threshold='2_1'",), "must be an upper bound above 0"),
        (("algorithm.rollout_correction.rollout_is_threshold=0",), "must be an upper bound above 0"),
        (("algorithm.rollout_correction.rollout_is_threshold=wide",), "must be an upper bound above 0"),
        (("agent.timeout_seconds=1000",), "dead runner"),
        (("app.n_runners=-1",), "at least 0"),
        ((f"{ROLLOUT}.name=sglang",), "sglang is not installed"),
        (("trainer.logger=[console,mlflow]",), "asks for mlflow, which is not installed: pip install mlflow"),
        (("algorithm.adv_estimator=gae",), "needs a critic"),
        (("agent.reward=iou",), r"no reward of the task vqa \(there are vqa, official_2021, textvqa, exact_match"),
        (("app.validation.metric=reward",), "such as val/reward"),
        (("app.checkpoints.keep_last=0",), r"app\.checkpoints\.keep_last=0 must be at least 1"),
        (("trainer.total_training_steps=0",), "--max-steps 0 must be at least 1"),
        (("app.validation.patience=-1",), r"app\.validation\.patience=-1 must be at least 0"),
        (("app.collapse.reward_drop=5",), r"app\.collapse\.reward_drop=5 must be at least 0 and at most 1"),
        (("data.seed=-1",), r"--seed -1 must be at least 0"),
        (("actor_rollout_ref.model.lora_rank=8",), r"load_format=dummy leaves the server without the base model"),
    ],
)
def test_contradictions_are_refused(overrides: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = derived.importlib.util.find_spec
    absent = ("sglang", "mlflow")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name in absent else real(name, *a))
    with pytest.raises(UserError, match=message):
        cpu(*overrides)


def test_a_lora_rank_brings_what_adapters_need() -> None:
    """Else the run ends a minute later, in vLLM, over an adapter inside the vision tower."""
    resolved = resolve("gpu_24gb", ["actor_rollout_ref.model.lora_rank=8"], task="vqa")
    assert at(resolved, "actor_rollout_ref.model.exclude_modules") == ".*visual.*"
    assert at(resolved, f"{ROLLOUT}.load_format") == "safetensors"


def test_a_section_is_no_suggestion() -> None:
    with pytest.raises(UserError, match=r"unknown setting app\.x") as refused:
        cpu("app.x=1")
    assert "did you mean app?" not in str(refused.value)


def test_reinforce_may_run_without_groups() -> None:
    assert cpu(
        f"{ROLLOUT}.n=1", "algorithm.adv_estimator=reinforce_plus_plus", f"{ACTOR}.ppo_micro_batch_size_per_gpu=8"
    )


@pytest.mark.parametrize("call", [{"preset": "gpu_24"}, {"variants": ["dr_grp"]}, {"task": "vga"}])
def test_unknown_names_are_refused_with_the_nearest(call: dict[str, Any]) -> None:
    arguments = {"preset": "cpu", "task": "vqa", "model": TINY, **call}
    with pytest.raises(UserError, match=r"did you mean|choose one of"):
        resolve(arguments.pop("preset"), **arguments)


def test_a_misspelt_key_in_a_preset_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data:\n  train_batch_sice: 4\n")
    with pytest.raises(
        UserError, match=r"preset mine: unknown setting data\.train_batch_sice; did you mean data\.train_batch"
    ):
        resolve(str(path), task="vqa", model=TINY)


def test_later_layers_win_and_are_remembered() -> None:
    resolved = cpu(f"{ACTOR}.clip_ratio_high=0.5", variants=["clip_higher"], flags={"data.seed": 7}, n_runners=3)
    expected = {
        f"{ACTOR}.clip_ratio_high": (0.5, "override"),
        f"{ACTOR}.clip_ratio_low": (0.2, "variant clip_higher"),
        f"{ROLLOUT}.n": (8, "preset cpu"),
        "algorithm.adv_estimator": ("grpo", "base"),
        "agent.reward": ("vqa", "task vqa"),
        "data.seed": (7, "flag"),
        "app.n_runners": (3, "flag"),
        "agentlightning.trace_aggregator.level": ("transition", "agentlightning"),
        "algorithm.gamma": (1.0, "verl"),
        "app.validation.patience": (0, "vision_rl"),
        "critic.enable": (False, "derived: algorithm.adv_estimator"),
        "agent.max_tokens": (24, "derived: data.max_response_length"),
    }
    assert {key: (at(resolved, key), str(resolved.origin[key])) for key in expected} == expected


def test_the_cpu_preset_carries_what_a_machine_without_a_gpu_needs() -> None:
    resolved = cpu()
    tree = resolved.verl["actor_rollout_ref"]
    for role in ("actor", "ref"):
        assert set(tree[role]["fsdp_config"]["mixed_precision"].values()) == {"fp32"}, "verl's own is bfloat16"
    assert tree["rollout"]["dtype"] == "float32"
    assert not tree["model"]["use_remove_padding"] and not tree["rollout"]["free_cache_engine"]
    assert tree["actor"]["use_remove_padding"] is False  # follows the model's by interpolation
    assert tree["model"]["override_config"]["attn_implementation"] == "sdpa"
    assert tree["rollout"]["enable_sleep_mode"] is False and resolved.verl["trainer"]["device"] == "cpu"
    assert at(resolved, "transfer_queue.backend.SimpleStorage.num_data_storage_units") == 1
    assert at(resolved, "ray_kwargs.ray_init.num_gpus") == 1
    assert at(cpu("trainer.n_gpus_per_node=2"), "ray_kwargs.ray_init.num_gpus") == 2
    assert at(cpu(variants=["async"]), "ray_kwargs.ray_init.num_gpus") == 2


@pytest.mark.parametrize("preset", presets())
def test_every_cache_of_the_server_is_on(preset: str) -> None:
    """Prefix, processor and encoder cache: verl empties all three after every weight update."""
    from verl.workers.rollout.vllm_rollout.utils import build_cli_args_from_config

    rollout = resolve(preset, task="vqa", model=TINY).verl["actor_rollout_ref"]["rollout"]
    assert rollout["enable_prefix_caching"] and rollout["enable_chunked_prefill"]
    arguments = rollout["engine_kwargs"]["vllm"]
    assert arguments.keys().isdisjoint(("mm_processor_cache_gb", "enable_prefix_caching", "no_enable_prefix_caching"))
    line = build_cli_args_from_config({name: value for name, value in arguments.items() if value is not None})
    assert json.loads(line[line.index("--limit_mm_per_prompt") + 1]) == arguments["limit_mm_per_prompt"]


def test_requests_have_room_and_micro_batches_hold_the_longest_sample() -> None:
    plain = resolve("gpu_40gb", task="vqa")
    assert at(plain, f"{ROLLOUT}.max_model_len") == 2560 + 1280
    assert at(plain, f"{ACTOR}.ppo_max_token_len_per_gpu") == 2 * 2560
    assert at(plain, f"{ROLLOUT}.log_prob_max_token_len_per_gpu") == 4 * 2560
    tools = resolve("gpu_40gb", task="grounding", variants=["tools"])
    assert at(tools, f"{ACTOR}.ppo_max_token_len_per_gpu") == 2 * (6144 + 6144), "samples are whole trajectories there"
    pixtral = resolve("gpu_24gb", task="vqa", model="mistral-community/pixtral-12b")
    assert at(pixtral, f"{ACTOR}.use_dynamic_bsz") is True, "pictures of several shapes share a micro-batch, padded"


@pytest.mark.parametrize("installed", [True, False])
def test_sdpa_is_chosen_where_flash_attention_is_absent(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    real = derived.importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: installed or None if name == "flash_attn" else real(name, *a)
    )
    resolved = resolve("gpu_40gb", task="vqa")
    model = resolved.verl["actor_rollout_ref"]["model"]
    assert model["use_remove_padding"] is installed
    assert model["override_config"].get("attn_implementation") == (None if installed else "sdpa")
    assert any("SDPA" in note for note in resolved.notes) is not installed
    chosen = resolve("gpu_40gb", ["+actor_rollout_ref.model.override_config.attn_implementation=eager"], task="vqa")
    assert chosen.verl["actor_rollout_ref"]["model"]["override_config"]["attn_implementation"] == "eager"


def test_verl_sees_the_type_of_a_model_that_transformers_has_saved(tmp_path: Path) -> None:
    """By it verl decides whether to apply its patches for Qwen-VL; transformers 4.57 answered with the text part's."""
    AutoConfig.from_pretrained(TINY).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "qwen2_5_vl"


def test_pixel_limits_come_from_the_processor_or_go_to_vllm() -> None:
    resolved = cpu()
    processor = json.loads((TINY / "preprocessor_config.json").read_text())
    assert (resolved.agent.min_pixels, resolved.agent.max_pixels) == (processor["min_pixels"], processor["max_pixels"])
    assert f"{VLLM}.mm_processor_kwargs" not in resolved.origin
    limited = cpu("agent.max_pixels=6272")
    arguments = limited.verl["actor_rollout_ref"]["rollout"]["engine_kwargs"]["vllm"]
    assert arguments["mm_processor_kwargs"] == {"max_pixels": 6272}
    assert limited.agent.min_pixels == processor["min_pixels"]


def test_types_and_choices_match_the_installed_verl() -> None:
    import torch
    from verl.trainer.ppo import core_algos, rollout_corr_helper
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from verl.workers.config import FSDPActorConfig, RolloutConfig

    known = known_keys.known_keys(known_keys.verl_defaults(False))
    for cls, prefix in ((FSDPActorConfig, ACTOR), (RolloutConfig, ROLLOUT)):
        names = {field.name for field in dataclasses.fields(cls)} - known_keys.RUNTIME_FIELDS
        assert {name for name in names if f"{prefix}.{name}" not in known} == set()
    unsafe = {"bypass_mode"}  # see FIXED: the actor would be compared with itself
    assert set(refused_keys.CHOICES[f"{ACTOR}.policy_loss.loss_mode"]) == set(core_algos.POLICY_LOSS_REGISTRY) - unsafe
    assert set(refused_keys.CHOICES["algorithm.adv_estimator"]) == {str(e.value) for e in core_algos.AdvantageEstimator}
    assert set(checks.REJECTIONS) == rollout_corr_helper.SUPPORTED_ROLLOUT_RS_OPTIONS
    assert set(refused_keys.CHOICES["trainer.v1.trainer_mode"]) <= set(TRAINER_REGISTRY)
    for name in refused_keys.CHOICES[f"{ACTOR}.kl_loss_type"]:
        assert torch.isfinite(core_algos.kl_penalty(torch.tensor([-1.0]), torch.tensor([-2.0]), str(name))).all()


def test_rendered_tree_says_where_every_value_came_from() -> None:
    text = render_resolved(cpu("data.seed=5"))
    lines = {line.split(":", 1)[0]: line for line in text.splitlines()}
    assert "5" in lines["data.seed"] and lines["data.seed"].endswith("# override")
    assert lines["algorithm.gamma"].endswith("# verl")
    assert lines["app.validation.patience"].endswith("# vision_rl")
    changed = render_resolved(cpu(), changed_only=True)
    assert "algorithm.gamma" not in changed and f"{ROLLOUT}.n:" not in changed, "of verl's defaults, and the preset's"
    assert "actor_rollout_ref.model.path:" in changed


def test_composing_imports_neither_torch_nor_verl() -> None:
    script = (
        "import sys; from vision_rl.config.resolve import resolve\n"
        f"resolve('cpu', task='vqa', model={str(TINY)!r})\n"
        "print([n for n in ('torch', 'verl', 'vllm', 'agentlightning', 'transformers', 'ray') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=TINY.parents[2]
    )
    assert done.stdout.strip() == "[]"
