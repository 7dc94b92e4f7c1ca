"""Figures of a step's batch: whether it is one update, and how often its token limits are met."""

from __future__ import annotations

from typing import Any

from transfer_queue import KVBatchMeta

from vision_rl.training.advantages import TOKEN_LEVEL


def updates_of_a_batch(config: Any) -> int:
    """The updates that one sampled batch is divided into.

    `actor.ppo_mini_batch_size` counts prompts. verl divides rows by it (trainer/ppo/v1/trainer_base.py:1601): rollouts of
    several turns, each a row, would add updates by weights that did not sample them, and up to a whole one of padding.
    """
    if config.trainer.v1.trainer_mode == "separate_async":  # each of its batches is one update's
        return 1
    return max(1, config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size)


def one_update(config: Any) -> bool:
    """Whether a step is one update by the weights that sampled its rows, and nothing asks before it what the actor says:
    then `old_log_probs` are the update's own."""
    algorithm, actor = config.algorithm, config.actor_rollout_ref.actor
    single = updates_of_a_batch(config) == 1 and actor.ppo_epochs == 1
    ours = actor.strategy != "megatron"  # whose engine is verl's own, and asks for `old_log_probs`
    correction = algorithm.get("rollout_correction", None) or {}
    asked = (
        algorithm.use_kl_in_reward
        or correction.get("rollout_is", None)
        or correction.get("rollout_rs", None)
        or algorithm.adv_estimator in TOKEN_LEVEL
        or actor.get("calculate_sum_pi_squared", False)
    )
    return single and ours and not asked and config.trainer.v1.trainer_mode == "sync"


def clip_ratios(batch: KVBatchMeta, limits: tuple[int, int]) -> dict[str, float]:
    """The shares of prompts and of responses that are as long as they may be; rows that only pad the batch do not count.

    verl's own figures (verl/trainer/ppo/metric_utils.py:519) compare with the longest of the batch, which is always there.
    limits: (prompt, response) in tokens.
    """
    tags = [tag for tag in batch.tags if not tag.get("is_padding", False)]
    ratios = {
        kind: sum(tag[f"{kind[:-7]}_len"] >= limit for tag in tags) / max(len(tags), 1)
        for kind, limit in zip(("prompt_length", "response_length"), limits, strict=True)
    }
    names = {**ratios, "response_length_non_aborted": ratios["response_length"]}
    return {f"{name}/clip_ratio": ratio for name, ratio in names.items()}
