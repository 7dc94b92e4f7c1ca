"""verl's replay buffers. The rollout manager reports each finished group to them, and they bound dynamic sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from vision_rl.run.failures import GroupDrop
from vision_rl.settings import FilterGroups

if TYPE_CHECKING:
    from vision_rl.training.rollout_manager import RolloutManager

WAIT_SECONDS = 0.25
"""The longest time between two looks at the queue; a group that is done ends the wait at once."""


class _ReportingBuffer:
    """What both buffers change. `rollouts` is set once the rollout manager is there.

    `selected` names the groups of the last batch, `thrown_away` those given up since somebody emptied it, with the reason;
    None where every rollout of the group has its own. A group that is merely done may still be on its way into the queue.
    """

    rollouts: RolloutManager
    rule: FilterGroups

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.selected: set[str] = set()
        self.thrown_away: dict[str, GroupDrop | None] = {}

    def _evict_terminal_groups(self, global_steps: int, partition_id: str, eviction_reasons: Any) -> Any:
        stale, equal, failed, _ = eviction_reasons
        for uids, reason in ((stale, GroupDrop.STALE), (equal, GroupDrop.NO_SPREAD), (failed, None)):
            self.thrown_away |= dict.fromkeys(uids, reason)
        return super()._evict_terminal_groups(global_steps, partition_id, eviction_reasons)  # type: ignore[misc]

    def _clear_groups(self, partition_id: str, uids: set[str]) -> None:
        """Whatever is cleared without having been evicted is what a full batch has no room for."""
        super()._clear_groups(partition_id, uids)  # type: ignore[misc]
        for uid in uids:
            self.thrown_away.setdefault(uid, GroupDrop.SURPLUS)

    def _materialize_batch(self, partition_id: str, selected_prompt_uids: list[str], partition_snapshot: Any) -> Any:
        self.selected = set(selected_prompt_uids)
        return super()._materialize_batch(partition_id, selected_prompt_uids, partition_snapshot)  # type: ignore[misc]

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        """verl sleeps two seconds here. Raises what has ended the rollouts."""
        self.rollouts.wait(WAIT_SECONDS)
        return last_debug_time

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter[float]]:
        """Groups without spread, at most `max_rounds` - 1 batches of them in a step.

        verl compares `np.std(...) == 0.0`, which eight rewards of 0.9 fail by a rounding error, and draws new groups
        without a bound: a model that has learnt everything would never see its next step.
        """
        if partition_id == "val" or self.filter_groups_metric is None:  # type: ignore[attr-defined]
            return set(), Counter()
        finished: set[str] = self.finished_keys[partition_id]  # type: ignore[attr-defined]
        equal = self.rollouts.equal(finished)
        already = Counter(self.thrown_away.values())[GroupDrop.NO_SPREAD]
        spare = (self.rule.max_rounds - 1) * self.train_batch_size - already  # type: ignore[attr-defined]
        return set(sorted(equal)[: max(spare, 0)]), Counter()


class SyncBuffer(_ReportingBuffer, ReplayBuffer):
    """For the synchronous mode."""


class AsyncBuffer(_ReportingBuffer, ReplayBufferAsync):
    """For the asynchronous modes: groups may be some weight updates old."""


def replay_buffer(config: Any, rule: FilterGroups, refill: Callable[[int], int]) -> Any:
    """The buffer of the mode in use, built as `PPOTrainer._build_replay_buffer` builds its own."""
    v1, data = config.trainer.v1, config.data
    filters = config.algorithm.filter_groups.enable
    sync = v1.trainer_mode == "sync"
    kwargs: dict[str, Any] = {
        "trainer_mode": v1.trainer_mode,
        "trainer_config": v1.get(v1.trainer_mode, {}),
        "max_off_policy_threshold": v1.sampler.max_off_policy_threshold,
        "max_off_policy_strategy": v1.sampler.max_off_policy_strategy,
        "sampler_kwargs": v1.sampler.sampler_kwargs,
        "refill_fn": refill,
        "filter_groups_metric": "reward" if filters else None,
        "train_batch_size": data.train_batch_size,
        "gen_batch_size": 1 if filters else data.train_batch_size,
        "max_inflight_gen_batches": config.algorithm.filter_groups.get("max_inflight_gen_batches", 1),
    }
    buffer = SyncBuffer(**kwargs) if sync else AsyncBuffer(**kwargs)
    buffer.rule = rule
    return buffer
