"""Each variant's composed tree holds what its paper says, is taken by verl's own checks, and trains by verl's own losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.test_config import ACTOR, ROLLOUT, TINY, at, cpu
from vision_rl.config.ranges import RANGES, ranges_of
from vision_rl.config.resolve import Resolved, resolve, variants
from vision_rl.errors import UserError
from vision_rl.settings import AppSettings

CORRECTION = "algorithm.rollout_correction"
LOSS = f"{ACTOR}.policy_loss.loss_mode"
# variant -> what the paper says, by key
PAPERS: dict[str, dict[str, Any]] = {
    "cispo": {LOSS: "cispo", f"{ACTOR}.clip_ratio_high": 0.2, f"{ACTOR}.loss_agg_mode": "token-mean"},
    "sapo": {LOSS: "sapo", f"{ACTOR}.tau_pos": 1.0, f"{ACTOR}.tau_neg": 1.05},
    "geo_mean": {LOSS: "geo_mean", f"{ACTOR}.clip_ratio_low": 0.4, f"{ACTOR}.clip_ratio_high": 0.4},
    "gspo": {LOSS: "gspo", f"{ACTOR}.clip_ratio_low": 3e-4, f"{ACTOR}.clip_ratio_high": 4e-4},
    "dppo_tv": {LOSS: "dppo_tv", f"{ACTOR}.clip_ratio_low": 0.15, "algorithm.norm_adv_by_std_in_grpo": False},
    "dppo_kl": {LOSS: "dppo_kl", f"{ACTOR}.clip_ratio_low": 0.05, "algorithm.norm_adv_by_std_in_grpo": False},
    "clip_cov": {LOSS: "clip_cov", f"{ACTOR}.policy_loss.clip_cov_ratio": 2e-4},
    "kl_cov": {LOSS: "kl_cov", f"{ACTOR}.policy_loss.kl_cov_ratio": 2e-3, f"{ACTOR}.policy_loss.ppo_kl_coef": 1.0},
    "gdpo": {"algorithm.adv_estimator": "gdpo", "algorithm.gdpo_reward_keys": ["accuracy", "format/ok"]},
    "optimal_token_baseline": {
        "algorithm.adv_estimator": "optimal_token_baseline",
        f"{ACTOR}.calculate_sum_pi_squared": True,
    },
    "dr_grpo": {
        "algorithm.norm_adv_by_std_in_grpo": False,
        f"{ACTOR}.loss_agg_mode": "seq-mean-token-sum-norm",
        f"{ACTOR}.loss_scale_factor": 24,
    },
    "papo": {
        "app.papo.kl_coef": 0.01,
        "app.papo.entropy_coef": 0.03,
        "app.papo.mask_ratio": 0.6,
        f"{ACTOR}.use_kl_loss": False,
        f"{ACTOR}.calculate_entropy": True,
    },
    "dapo": {f"{ACTOR}.clip_ratio_high": 0.28, "algorithm.filter_groups.enable": True},
    "one_step_off": {
        "trainer.v1.trainer_mode": "colocate_async",
        "trainer.v1.sampler.max_off_policy_threshold": 2,
        f"{CORRECTION}.rollout_is": "token",
    },
    "async": {
        "trainer.v1.trainer_mode": "separate_async",
        "actor_rollout_ref.hybrid_engine": False,
        "trainer.v1.separate_async.parameter_sync_step": 1,
        f"{CORRECTION}.rollout_is": "token",
    },
}
# variant -> the factory of verl's that builds the same correction
CORRECTIONS = {
    "tis_token": "decoupled_token_is",
    "tis_sequence": "decoupled_seq_is",
    "icepop": "decoupled_token_icepop",
    "rejection": "decoupled_geo_rs",
    "one_step_off": "decoupled_token_is",
    "async": "decoupled_token_is",
}


@pytest.mark.parametrize("variant", PAPERS)
def test_a_variant_holds_what_its_paper_says(variant: str) -> None:
    resolved = cpu(variants=[variant])
    assert {key: at(resolved, key) for key in PAPERS[variant]} == PAPERS[variant]


@pytest.mark.parametrize("variant", CORRECTIONS)
def test_corrections_are_those_that_verl_has_by_name(variant: str) -> None:
    from verl.trainer.config.algorithm import RolloutCorrectionConfig

    ours = at(cpu(variants=[variant]), CORRECTION)
    theirs = getattr(RolloutCorrectionConfig, CORRECTIONS[variant])()
    assert ours["rollout_is"] == theirs.rollout_is and ours["rollout_rs"] == theirs.rollout_rs
    if ours["rollout_is"]:
        assert ours["rollout_is_threshold"] == theirs.rollout_is_threshold
    assert ours["rollout_rs_threshold"] == theirs.rollout_rs_threshold and not ours["bypass_mode"]


def test_every_variant_begins_with_what_it_is() -> None:
    from vision_rl.config.resolve import CONFIG_DIR

    for name in variants():
        assert (CONFIG_DIR / "variants" / f"{name}.yaml").read_text().startswith("# "), name


@pytest.mark.parametrize(
    ("reward", "task", "names"),
    [
        ("vqa", "vqa", ["accuracy", "format/ok"]),
        ("similarity", "vqa", ["similarity", "format/ok"]),
        ("iou", "grounding", ["task", "format/ok"]),
        ("arc", "grounding", ["iou", "format/ok"]),
    ],
)
def test_gdpo_names_components_that_the_reward_has(reward: str, task: str, names: list[str]) -> None:
    from vision_rl.rewards.grounding import grounding_reward
    from vision_rl.rewards.vqa import vqa_reward

    resolved = resolve("cpu", [f"agent.reward={reward}"], task=task, model=TINY, variants=["gdpo"])
    assert at(resolved, "algorithm.gdpo_reward_keys") == names
    answered = vqa_reward("yes", ["yes"], kind=reward) if task == "vqa" else grounding_reward("", [], kind=reward)
    assert set(names) <= set(answered.components)


def loss_of(resolved: Resolved, lengths: list[int]) -> float:
    """verl's aggregated loss of ones over responses of these lengths, as its actor calls it."""
    from verl.trainer.ppo.core_algos import agg_loss
    from verl.utils.config import omega_conf_to_dataclass

    actor = omega_conf_to_dataclass(OmegaConf.create(resolved.verl).actor_rollout_ref.actor)
    longest = max(lengths)
    mask = torch.tensor([[1.0] * length + [0.0] * (longest - length) for length in lengths])
    return float(agg_loss(torch.ones_like(mask), mask, actor.loss_agg_mode, loss_scale_factor=actor.loss_scale_factor))


@pytest.mark.parametrize(("chosen", "limit"), [(["dr_grpo"], 24), (["tiny_zoom", "dr_grpo"], 160), (["dppo_tv"], 24)])
def test_dr_grpo_divides_by_the_limit_not_by_the_longest_response(chosen: list[str], limit: int) -> None:
    """Understanding R1-Zero-Like Training (2025): a constant, or short micro-batches weigh more than long ones."""
    resolved = cpu(variants=chosen, task="grounding")
    assert loss_of(resolved, [6, 6]) == pytest.approx(6 / limit)
    assert loss_of(resolved, [6, 12]) == pytest.approx(9 / limit)
    assert at(cpu(f"{ACTOR}.loss_scale_factor=7", variants=["dr_grpo"]), f"{ACTOR}.loss_scale_factor") == 7


@pytest.mark.parametrize("variant", [name for name in PAPERS if LOSS in PAPERS[name]])
def test_losses_run_with_the_variants_settings_and_follow_the_advantage(variant: str) -> None:
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.utils.config import omega_conf_to_dataclass

    actor = omega_conf_to_dataclass(OmegaConf.create(cpu(variants=[variant]).verl).actor_rollout_ref.actor)
    log_prob = torch.full((2, 3), -1.0, requires_grad=True)
    advantages = torch.tensor([[1.0] * 3, [-1.0] * 3])
    loss, _ = get_policy_loss_fn(actor.policy_loss.loss_mode)(
        old_log_prob=log_prob.detach(),
        log_prob=log_prob,
        advantages=advantages,
        response_mask=torch.ones(2, 3),
        loss_agg_mode=actor.loss_agg_mode,
        config=actor,
    )
    loss.backward()
    assert log_prob.grad is not None and (log_prob.grad[0] <= 0).all() and (log_prob.grad[1] >= 0).all()
    assert (log_prob.grad != 0).sum() >= 5, "kl_cov and clip_cov spare one token of these"


def gradient_of(resolved: Resolved, micro_batches: list[slice], ranks: int = 1) -> torch.Tensor:
    """The gradient of eight replies of one to eight tokens, by verl's losses as its worker calls them."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.utils.config import omega_conf_to_dataclass

    import vision_rl.actor.losses  # noqa: F401 (registers)

    actor = omega_conf_to_dataclass(OmegaConf.create(resolved.verl).actor_rollout_ref.actor)
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(8) <= torch.arange(8).unsqueeze(-1)).float()
    old = torch.full((8, 8), -1.0)
    log_prob = (old + 0.02 * torch.randn(8, 8, generator=generator)).requires_grad_()
    advantages = torch.randn(8, 1, generator=generator).expand(8, 8)
    factor = actor.loss_scale_factor
    sizes = {"dp_size": ranks, "batch_num_tokens": mask.sum(), "global_batch_size": 8, "loss_scale_factor": factor}
    actor.global_batch_info.update(sizes)
    for rows in micro_batches:
        longest = int(mask[rows].sum(-1).max())  # as verl pads a micro-batch
        parts = [part[rows, :longest] for part in (old, log_prob, advantages, mask)]
        function = get_policy_loss_fn(actor.policy_loss.loss_mode)
        loss, _ = function(*parts, loss_agg_mode=actor.loss_agg_mode, config=actor)
        loss.backward()
    assert log_prob.grad is not None
    return log_prob.grad / ranks  # FSDP takes the mean over ranks


@pytest.mark.parametrize("variant", ["", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "geo_mean", "dppo_tv", "dppo_kl"])
def test_the_gradient_does_not_depend_on_how_a_mini_batch_is_split(variant: str) -> None:
    """clip_cov and kl_cov choose tokens by their rank within a micro-batch; they depend on it by design."""
    resolved = cpu(variants=[variant] if variant else [])
    whole = gradient_of(resolved, [slice(0, 8)])
    assert whole.abs().sum() > 0
    torch.testing.assert_close(gradient_of(resolved, [slice(0, 1), slice(1, 4), slice(4, 8)]), whole)
    torch.testing.assert_close(gradient_of(resolved, [slice(0, 4), slice(4, 8)], ranks=2), whole)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"{ROLLOUT}.nnodes=0"], "serves the model on GPUs of its own"),
        ([f"{ROLLOUT}.checkpoint_engine.backend=naive"], r"backend=nccl \(naive copies within a GPU\)"),
        ([f"{ROLLOUT}.checkpoint_engine.backend=delta_sharded"], "delta_sharded needs a later vLLM than the pinned"),
        (["trainer.v1.separate_async.parameter_sync_step=3"], "must be .*parameter_sync_step x .* = 3 x 16"),
        ([f"{ROLLOUT}.tensor_model_parallel_size=2"], r"does not divide the 1 GPUs of rollout\.n_gpus_per_node"),
        ([f"{CORRECTION}.rollout_is=null"], "trains on samples of older weights"),
    ],
)
def test_what_the_asynchronous_mode_cannot_run_with_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cpu(*overrides, variants=["async"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"{ACTOR}.calculate_entropy=false", "needs .*calculate_entropy=true"),
        ("app.blank_pixels=true", "nothing to mask"),
    ],
)
def test_what_papo_cannot_run_with_is_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cpu(override, variants=["papo"])


def test_megatrons_engine_has_neither_gauge_nor_papo() -> None:
    assert at(resolve("megatron", task="vqa"), "app.sight.every") == 0
    with pytest.raises(UserError, match="nothing under Megatron"):
        resolve("megatron", task="vqa", variants=["papo"])


def test_updates_between_two_weight_syncs_follow_from_the_batch_sizes() -> None:
    resolved = resolve("8x80gb", task="vqa", variants=["async"])
    assert at(resolved, "trainer.v1.separate_async.parameter_sync_step") == 512 // 128


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"{ACTOR}.optim.lr=-1", r"optim\.lr=-1 must be above 0$"),
        (f"{ACTOR}.optim.lr=0", "must be above 0"),
        (f"{ACTOR}.optim.lr=.nan", "must be"),
        (f"{ACTOR}.optim.betas=[0.9,1.0]", r"betas=\[0\.9, 1\.0\] must be at least 0 and below 1"),
        (f"{ACTOR}.optim.weight_decay=-0.1", "must be at least 0"),
        (f"{ACTOR}.optim.clip_grad=0", "must be above 0"),
        (f"{ACTOR}.optim.lr_warmup_steps_ratio=1.5", "must be at least 0 and at most 1"),
        (f"{ACTOR}.clip_ratio_low=-0.2", "must be above 0"),
        (f"{ACTOR}.clip_ratio_c=1.0", "must be above 1"),
        (f"{ACTOR}.kl_loss_coef=-0.1", "must be at least 0"),
        (f"{ACTOR}.policy_loss.kl_cov_ratio=2", "must be above 0 and at most 1"),
        (f"{ACTOR}.ppo_epochs=0", "must be at least 1"),
        (f"{ROLLOUT}.temperature=0", "must be above 0"),
        (f"{ROLLOUT}.gpu_memory_utilization=60", "must be above 0 and at most 1"),
        ("data.train_batch_size=0", "must be at least 1"),
        ("trainer.test_freq=-2", "must be at least -1"),
        ("app.sight.rows=2", "must be above 0 and at most 1"),
        ("app.sight.patience=0", "must be at least 1"),
        ("app.papo.mask_ratio=1.5", "must be above 0 and at most 1"),
        ("trainer.v1.sampler.max_off_policy_threshold=0", "must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_starts(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        cpu(override)
    assert str(caught.value).startswith(override.split("=")[0]) or "must be a number" in str(caught.value)


@pytest.mark.slow
def test_every_range_is_of_a_setting_that_exists_and_holds_for_verls_default() -> None:
    from vision_rl.config import known_keys

    both = [known_keys.known_keys(known_keys.verl_defaults(megatron)) for megatron in (False, True)]
    for key in RANGES:
        assert any(key in known for known in both), key
    assert not RANGES[f"{ACTOR}.optim.lr"].holds(math.nan)
    for key, allowed in ranges_of(AppSettings(), "app").items():
        assert allowed.holds(at(cpu(), key)), key
