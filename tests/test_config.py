"""The configuration: composed from the installed verl, strict, and valid for verl's own checks."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoConfig
from verl.utils.model import update_model_config

from vision_rl.engine import config as config_module
from vision_rl.engine import derive, keys, schema
from vision_rl.engine.config import Resolved, presets, render_resolved, resolve, validate_with_verl, variants
from vision_rl.errors import UserError

TINY = Path(__file__).resolve().parents[1] / "vision_rl" / "tiny" / "checkpoint"
ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"
VLLM = schema.VLLM_KWARGS


def cpu(*overrides: str, **kwargs: Any) -> Resolved:
    return resolve("cpu", overrides, task=kwargs.pop("task", "vqa"), model=TINY, **kwargs)


def at(resolved: Resolved, key: str) -> Any:
    return OmegaConf.select(OmegaConf.create(resolved.tree()), key)


# Every preset alone and every variant on the three kinds of preset: small, one GPU, many GPUs with another strategy.
PAIRS: list[tuple[str, str | None]] = [(preset, None) for preset in presets()]
PAIRS += [(preset, variant) for preset in ("cpu", "gpu_24gb_lora", "megatron") for variant in variants()]


@pytest.mark.parametrize(("preset", "variant"), PAIRS)
def test_every_preset_and_variant_satisfies_verl(preset: str, variant: str | None) -> None:
    chosen = [variant] if variant else []
    if preset == "megatron" and variant == "freeze_vision":
        with pytest.raises(UserError, match="nothing under Megatron"):
            resolve(preset, task="grounding", variants=chosen, model=TINY)
        return
    validate_with_verl(resolve(preset, task="grounding", variants=chosen, model=TINY))


@pytest.mark.parametrize("preset", [name for name in presets() if name != "cpu"])
def test_gpu_presets_name_a_model_of_their_own(preset: str) -> None:
    resolved = resolve(preset, task="vqa")
    assert resolved.origin["actor_rollout_ref.model.path"] == f"preset {preset}"
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


def test_composition_is_that_of_agent_lightning() -> None:
    """hydra itself follows Agent Lightning's defaults list; its search path is a folder, so neither package loads."""
    verl = schema.package_dir("verl") / "trainer" / "config"
    directory = schema.package_dir("agentlightning") / "verl"
    with initialize_config_dir(version_base=None, config_dir=str(directory)):
        theirs = compose("config", overrides=[f"hydra.searchpath=[file://{verl}]"])
    ours = OmegaConf.merge(schema.verl_defaults(False), schema.agentlightning_defaults())
    assert OmegaConf.to_container(ours) == OmegaConf.to_container(theirs)


def test_megatron_composes_from_megatron_defaults() -> None:
    resolved = resolve("megatron", task="vqa")
    actor = resolved.verl["actor_rollout_ref"]["actor"]
    assert resolved.strategy == "megatron" and resolved.verl["critic"]["strategy"] == "megatron"
    assert actor["_target_"].endswith("McoreActorConfig") and actor["optim"]["_target_"].endswith(
        "McoreOptimizerConfig"
    )
    assert "fsdp_config" not in actor and actor["megatron"]["tensor_model_parallel_size"] == 2
    with pytest.raises(UserError, match=r"unknown setting actor_rollout_ref\.actor\.fsdp_config"):
        resolve("megatron", [f"{ACTOR}.fsdp_config.param_offload=true"], task="vqa")


def test_verl_picks_its_megatron_workers_for_the_megatron_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """megatron-core is not installed, so its workers are stand-ins; verl's own task runner makes the choice."""
    from verl.trainer.main_ppo import TaskRunner

    names = ("ActorRolloutRefWorker", "AsyncActorRolloutRefWorker", "CriticWorker")
    source = schema.package_dir("verl") / "workers" / "megatron_workers.py"
    assert set(names) <= set(schema._class_fields(source))
    stand_in = SimpleNamespace(**{name: type(name, (), {}) for name in names})
    monkeypatch.setitem(sys.modules, "verl.workers.megatron_workers", stand_in)
    tree = OmegaConf.create(resolve("megatron", task="vqa").verl)
    worker, _ = TaskRunner().add_actor_rollout_worker(tree)
    assert worker is stand_in.AsyncActorRolloutRefWorker


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
        (f"{VLLM}.max_modle_len=3", rf"no argument --max-modle-len; did you mean {VLLM}\.max_model_len\?"),
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
        ("data.val_batch_size=8", r"data\.val_batch_size must be null, not 8: .*single validation batch"),
        (f"{ROLLOUT}.mode=sync", r"must be 'async'"),
        ("reward_model.enable=true", r"reward_model\.enable must be false"),
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
        ("data.enable_sequence_balance=true", "trainer.balance_batch"),
        ("data.sequence_balance.method=pack", "trainer.balance_batch"),
        ("reward_model.path=custom_grounding_reward.py", "agent.reward"),
        ("custom_reward_function.path=x.py", "agent.reward"),
        ("+data.max_val_samples=60", "app.validation.samples"),
        ("+data.max_train_samples=144", "app.max_train_samples"),
        ("data.val_max_samples=60", "app.validation.samples"),
        ("data.train_files=x.parquet", "--data-path"),
        (f"+{ACTOR}.gradient_clip_norm=1.0", f"{ACTOR}.grad_clip"),
        ("model.peft.lora_r=64", "actor_rollout_ref.model.lora_rank"),
        ("model.lora_r=64", "actor_rollout_ref.model.lora_rank"),
        ("model.backend=megatron", f"{ACTOR}.strategy"),
        ("+actor.gradient_clip_norm=1.0", f"{ACTOR}.grad_clip"),
        (f"{ACTOR}.optim.learning_rate=1e-6", f"{ACTOR}.optim.lr"),
        ("+trainer.early_stopping_patience=5", "app.validation.patience"),
        ("+trainer.enable_wandb=true", "trainer.logger"),
        ("+trainer.log_every_n_steps=1", "trainer.logger"),
        ("+trainer.profile_steps=[1,2,3]", "global_profiler.steps"),
        ("+algorithm.filter_groups.enable=true", "app.filter_groups.enable"),
        (f"+{VLLM}.disable_mm_preprocessor_cache=true", f"{VLLM}.mm_processor_cache_gb"),
    ],
)
def test_obsolete_keys_of_the_guides_name_the_true_one(override: str, true_key: str) -> None:
    with pytest.raises(UserError, match="the true setting is") as caught:
        cpu(override)
    assert f"the true setting is {true_key} (" in str(caught.value)


@pytest.mark.parametrize(("wrong", "right"), [(key, truth) for key, (truth, _) in keys.OBSOLETE.items()])
def test_the_true_keys_exist(wrong: str, right: str) -> None:
    known = {*schema.known_keys(schema.verl_defaults(False)), *schema.known_keys(schema.verl_defaults(True))}
    known |= set(config_module._our_keys()) | {f"{VLLM}.{name}" for name in schema.vllm_arguments()}
    assert right.startswith("--") or right in known


@pytest.mark.parametrize("key", keys.UNREAD)
def test_keys_that_nothing_reads_exist_in_verl(key: str) -> None:
    assert key in schema.known_keys(schema.verl_defaults(False))


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
        (f"+{VLLM}.limit_mm_per_prompt={{image: 1}}", f"{VLLM}.limit_mm_per_prompt", '{"image": 1}'),
        (
            f"+{ACTOR}.fsdp_config.mixed_precision.param_dtype=fp32",
            f"{ACTOR}.fsdp_config.mixed_precision.param_dtype",
            "fp32",
        ),
        (f"+{ROLLOUT}.limit_images=1", f"{ROLLOUT}.limit_images", 1),
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
    assert resolved.origin[key] == "override"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((f"{ROLLOUT}.n=1",), "without a group"),
        ((f"{ACTOR}.ppo_mini_batch_size=32",), r"larger than data\.train_batch_size=16"),
        ((f"{ACTOR}.ppo_micro_batch_size_per_gpu=7",), r"must divide .* = 128"),
        ((f"{ROLLOUT}.tensor_model_parallel_size=2",), "does not divide the 1 GPUs"),
        ((f"{ROLLOUT}.enable_prefix_caching=true",), "old weights"),
        ((f"{VLLM}.mm_processor_cache_gb=4",), "old weights"),
        (("agent.timeout_seconds=1000",), "dead runner"),
        (("app.n_runners=-1",), "at least 0"),
        ((f"{ROLLOUT}.name=sglang",), "sglang is not installed"),
        (("trainer.logger=[console,mlflow]",), "asks for mlflow, which is not installed: pip install mlflow"),
        (("algorithm.adv_estimator=gae",), "needs a critic"),
        (("agent.reward=iou",), "no reward of --task vqa; use vqa, official_2021, exact_match"),
        (("app.validation.metric=reward",), "such as val/reward"),
        (("app.checkpoints.keep_last=0",), r"app\.checkpoints\.keep_last=0 must be at least 1"),
        (("trainer.total_training_steps=0",), "--max-steps 0 must be at least 1"),
        (("app.validation.patience=-1",), r"app\.validation\.patience=-1 must be at least 0"),
        (("app.collapse.reward_drop=5",), r"app\.collapse\.reward_drop=5 must be a share from 0 to 1"),
        (("data.seed=-1",), r"--seed -1 must be at least 0"),
        (("actor_rollout_ref.model.lora_rank=8",), r"load_format=dummy leaves the server without the base model"),
    ],
)
def test_contradictions_are_refused(overrides: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = derive.importlib.util.find_spec
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
        "critic.strategy": ("fsdp2", "strategy fsdp2"),
        "agent.reward": ("vqa", "task vqa"),
        "data.seed": (7, "flag"),
        "app.n_runners": (3, "flag"),
        f"{ROLLOUT}.agent.custom_async_server.name": ("PatchedvLLMServer", "agentlightning"),
        "data.truncation": ("error", "base"),
        "algorithm.gamma": (1.0, "verl"),
        "app.validation.patience": (0, "vision_rl"),
        "critic.enable": (False, "derived: algorithm.adv_estimator"),
        "agent.max_tokens": (24, "derived: data.max_response_length"),
    }
    assert {key: (at(resolved, key), resolved.origin[key]) for key in expected} == expected


def test_the_cpu_preset_carries_what_a_machine_without_a_gpu_needs() -> None:
    tree = cpu().verl["actor_rollout_ref"]
    assert tree["actor"]["fsdp_config"]["dtype"] == tree["rollout"]["dtype"] == "float32"
    assert not tree["model"]["use_remove_padding"] and not tree["rollout"]["free_cache_engine"]
    assert tree["actor"]["use_remove_padding"] is False  # follows the model's by interpolation
    assert tree["model"]["override_config"]["attn_implementation"] == "sdpa"
    assert tree["rollout"]["engine_kwargs"]["vllm"]["enable_sleep_mode"] is False


@pytest.mark.parametrize("preset", presets())
def test_stale_embeddings_are_prevented_unless_the_tower_is_frozen(preset: str) -> None:
    arguments = resolve(preset, task="vqa", model=TINY).verl["actor_rollout_ref"]["rollout"]["engine_kwargs"]["vllm"]
    assert arguments["mm_processor_cache_gb"] == 0 and arguments["no_enable_prefix_caching"] is True
    if preset != "megatron":
        frozen = resolve(preset, task="vqa", model=TINY, variants=["freeze_vision"]).verl["actor_rollout_ref"][
            "rollout"
        ]
        assert frozen["enable_prefix_caching"] and frozen["engine_kwargs"]["vllm"]["mm_processor_cache_gb"] is None
        assert "no_enable_prefix_caching" not in frozen["engine_kwargs"]["vllm"]


@pytest.mark.parametrize("installed", [True, False])
def test_sdpa_is_chosen_where_flash_attention_is_absent(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    real = derive.importlib.util.find_spec
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


@pytest.mark.parametrize(("flat", "preset"), [(False, "cpu"), (False, "megatron"), (True, "cpu")])
def test_verl_sees_the_type_of_a_model_that_transformers_has_saved(flat: bool, preset: str, tmp_path: Path) -> None:
    """By it verl decides whether to apply its patches for Qwen-VL. Models on the hub have a flat config.json."""
    config = json.loads((TINY / "config.json").read_text())
    if flat:
        config |= {key: value for key, value in config.pop("text_config").items() if key not in config}
    for file in TINY.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.model_type == ("qwen2_5_vl" if flat else "qwen2_5_vl_text"), "else `Derivation._model_type` can go"
    override = resolve(preset, task="vqa", model=tmp_path).verl["actor_rollout_ref"]["model"]["override_config"]
    override = override["model_config"] if preset == "megatron" else override
    assert ("model_type" in override) is not flat
    update_model_config(loaded, override)
    assert loaded.model_type == "qwen2_5_vl"


def test_pixel_limits_come_from_the_processor_or_go_to_vllm() -> None:
    resolved = cpu()
    processor = json.loads((TINY / "preprocessor_config.json").read_text())
    assert (resolved.agent.min_pixels, resolved.agent.max_pixels) == (processor["min_pixels"], processor["max_pixels"])
    assert f"{VLLM}.mm_processor_kwargs" not in resolved.origin
    limited = cpu("agent.max_pixels=6272")
    arguments = limited.verl["actor_rollout_ref"]["rollout"]["engine_kwargs"]["vllm"]
    assert json.loads(arguments["mm_processor_kwargs"]) == {"max_pixels": 6272}
    assert limited.agent.min_pixels == processor["min_pixels"]


def test_types_and_choices_match_the_installed_verl() -> None:
    from verl.trainer.ppo import core_algos
    from verl.workers.config import FSDPActorConfig, RolloutConfig

    known = schema.known_keys(schema.verl_defaults(False))
    for cls, prefix in ((FSDPActorConfig, ACTOR), (RolloutConfig, ROLLOUT)):
        names = {field.name for field in dataclasses.fields(cls)} - schema.RUNTIME_FIELDS
        assert {name for name in names if f"{prefix}.{name}" not in known} == set()
    assert set(keys.CHOICES[f"{ACTOR}.policy_loss.loss_mode"]) == set(core_algos.POLICY_LOSS_REGISTRY)
    assert set(keys.CHOICES["algorithm.adv_estimator"]) == {str(e.value) for e in core_algos.AdvantageEstimator}


def test_rendered_tree_says_where_every_value_came_from() -> None:
    text = render_resolved(cpu("data.seed=5"))
    lines = {line.split(":", 1)[0]: line for line in text.splitlines()}
    assert "5" in lines["data.seed"] and lines["data.seed"].endswith("# override")
    assert lines["algorithm.gamma"].endswith("# verl")
    assert lines["app.validation.patience"].endswith("# vision_rl")
    changed = render_resolved(cpu(), changed_only=True)
    assert "algorithm.gamma" not in changed and f"{ROLLOUT}.n: 8" in changed


def test_composing_imports_neither_torch_nor_verl() -> None:
    script = (
        "import sys; from vision_rl.engine.config import resolve\n"
        f"resolve('cpu', task='vqa', model={str(TINY)!r})\n"
        "print([n for n in ('torch', 'verl', 'vllm', 'agentlightning', 'transformers', 'ray') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=TINY.parents[2]
    )
    assert done.stdout.strip() == "[]"
