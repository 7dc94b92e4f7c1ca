"""Write a step's files: a record of every rollout, why any was dropped, and the step's counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from transfer_queue import KVBatchMeta

from vision_rl.data.mix import per_source
from vision_rl.errors import UserError
from vision_rl.run.failures import GroupDrop
from vision_rl.run.log import RunLog
from vision_rl.run.tool_metrics import write_tool_logs
from vision_rl.settings import Integrity
from vision_rl.tasks import is_episode
from vision_rl.training.rollout_manager import Group, RolloutManager
from vision_rl.training.rollouts import failures, rollout_metrics
from vision_rl.training.rows import RowKey

EXAMPLES, SHOWN = 3, 80
"""Replies that the warning of a step without spread shows, and characters of each."""


class Sampled(Protocol):
    """A replay buffer after a sampling: the groups that it took into the batch, and those that it threw away since the last.

    The reason is None where each rollout of the group has its own.
    """

    selected: set[str]
    thrown_away: dict[str, GroupDrop | None]


class StepRecords:
    """The groups of the steps under way, from their sampling to the file."""

    def __init__(self, log: RunLog, rollouts: RolloutManager, limits: Integrity) -> None:
        self.log, self.rollouts, self.limits = log, rollouts, limits
        self.step = 0
        self.groups: dict[str, Group] = {}
        self.thrown_away: dict[GroupDrop, list[Group]] = {}
        self.advantages: dict[str, float] = {}
        self._warned = False

    def take(self, buffer: Sampled, step: int) -> dict[str, float]:
        """The groups of the batch that was sampled last, and those that the buffer threw away; returns the counts.

        A group that failed whole has no rows in the batch and belongs to the step that waited for it all the same.

        Raises `UserError` when too much of the batch had to be dropped.
        """
        self.step = step
        self.groups = {uid: self.rollouts.take(uid) for uid in buffer.selected}
        self.thrown_away = {reason: [] for reason in GroupDrop}
        for uid, reason in buffer.thrown_away.items():
            group = self.rollouts.take(uid)
            if reason is None:
                self.groups[uid] = group
            else:
                self.thrown_away[reason].append(group)
        buffer.thrown_away = {}
        return self._counted()

    def _counted(self) -> dict[str, float]:
        groups = list(self.groups.values())
        rollouts = [one for group in groups for one in group.finished.values()]
        failed = failures(rollouts)
        samples = sum(group.samples for group in groups)
        dropped = sum((group.dropped for group in groups), Counter[str]())
        lost = 1 - (len(rollouts) - failed.total()) / len(rollouts) * (1 - dropped.total() / max(samples, 1))
        if lost > self.limits.drop_rate:
            raise UserError(
                f"{lost:.0%} of step {self.step} had to be dropped ({dict(failed + dropped)}{self._example()}), more than "
                f"app.integrity.drop_rate={self.limits.drop_rate}; see rollouts.jsonl"
            )
        metrics = rollout_metrics(rollouts, "train")
        metrics.update(self._same_pictures(groups))
        self._warn_of_no_spread(groups)
        metrics.update(per_source((one.record(self.step, "train") for one in rollouts), "train"))
        metrics["train/samples"] = samples
        metrics["train/samples_dropped"] = dropped.total()
        metrics["train/responses_truncated"] = sum(group.truncated for group in groups)
        thrown_away = {reason: len(groups) for reason, groups in self.thrown_away.items() if groups}
        metrics.update({f"train/groups_dropped/{reason}": count for reason, count in thrown_away.items()})
        metrics.update({f"train/dropped/{reason}": count for reason, count in dropped.items()})
        breaks = sum((group.breaks for group in groups), Counter[str]())
        metrics.update({f"train/turns_unmerged/{reason}": count for reason, count in breaks.items()})
        return metrics

    def _warn_of_no_spread(self, groups: Sequence[Group]) -> None:
        """Say it with examples if no group of the first step has two different rewards: there is nothing to learn from."""
        first, self._warned = not self._warned, True
        usable = [one for group in groups for one in group.finished.values() if not one.failure]
        if not first or not usable or any(len(group.rewards) > 1 for group in groups):
            return
        mean = sum(one.reward["reward"] for one in usable) / len(usable)
        shown = {one.data_id: one for one in usable}  # one of each group
        examples = [
            f"{one.turns[-1].text[:SHOWN]!r} where {one.task['answers'] or one.task['boxes']} is right, reward "
            f"{one.reward['reward']:g}"
            for one in list(shown.values())[:EXAMPLES]
        ]
        text = (
            f"no group of step {self.step} has replies of different rewards (mean {mean:.3f}), and without such a step teaches "
            f"nothing. Replies: {'; '.join(examples)}. docs/troubleshooting.md, rewards that stay at zero, has causes and cures"
        )
        self.log.event("warning", step=self.step, text=text)

    def _same_pictures(self, groups: Iterable[Group]) -> dict[str, float]:
        """How many groups of an environment's rollouts do not begin with the same pictures; empty where there are none.

        Raises `UserError` for too many: their rewards are then compared over different episodes.
        """
        played = [group for group in groups if is_episode(group.task)]
        if not played:
            return {}
        firsts = [{tuple(one.turns[0].image_refs) for one in group.finished.values() if one.turns} for group in played]
        differ = [group.task["id"] for group, seen in zip(played, firsts, strict=True) if len(seen) > 1]
        limit = self.limits.group_pictures
        if limit is not None and len(differ) > limit * len(played):
            raise UserError(
                f"step {self.step}: {len(differ)} of {len(played)} groups do not begin with the same picture, {differ[0]} for "
                f"one, more than app.integrity.group_pictures={limit:g}: the environment's reset must give the same "
                "episode for the same seed and options"
            )
        return {"environment/groups_differ": len(differ)}

    def _example(self) -> str:
        """One of the reasons in words, if a sample was dropped."""
        return next((f": {drop.text}" for group in self.groups.values() for drop in group.drops.values()), "")

    def note_advantages(self, batch: KVBatchMeta, advantages: torch.Tensor, mask: torch.Tensor) -> None:
        """Remember what each rollout was worth to the update. advantages, mask: (rows, response length)."""
        values = (advantages * mask).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)
        for key, value in zip(batch.keys, values.tolist(), strict=True):
            group = self.groups.get(RowKey.parse(key).uid)
            if group is not None:
                self.advantages[group.rows[key]] = value

    def components(self, batch: KVBatchMeta) -> dict[str, list[float]]:
        """The reward components of a batch's rows by name; rows that only pad it have zeros."""
        rows = []
        for key in batch.keys:
            group = self.groups.get(RowKey.parse(key).uid)
            rows.append(group.finished[group.rows[key]].reward if group else {})
        names = sorted({name for row in rows for name in row} - {"reward"})
        return {name: [row.get(name, 0.0) for row in rows] for name in names}

    def own_sampling(self) -> Counter[str]:
        """Fields by which requests asked for other sampling than the run's, and in how many rollouts of the step."""
        run = self.rollouts.sampling
        found = Counter[str]()
        for one in (one for group in self.groups.values() for one in group.finished.values()):
            found.update(
                {name for turn in one.turns for name, value in turn.sampling.items() if value != run.get(name)}
            )
        return found

    def write(self) -> None:
        """Write the records of the step, those of groups that were thrown away included."""
        records = self._of(self.groups.values(), None, self.step)
        for reason, groups in self.thrown_away.items():
            records += self._of(groups, reason, self.step)
        self._append(records)
        self.groups, self.thrown_away, self.advantages = {}, {}, {}

    def write_rest(self) -> None:
        """Write, at the end of a run, what was rolled out and no step will train on any more."""
        left = list(self.rollouts.groups.values())
        self._append([one for group in left for one in self._of([group], GroupDrop.RUN_ENDED, group.step)])

    def _of(self, groups: Iterable[Group], dropped: GroupDrop | None, step: int) -> list[dict[str, Any]]:
        """Records of the groups' rollouts. dropped: why the groups are not trained on, if they are not."""
        records = []
        for group in groups:
            for rollout in list(group.finished.values()):
                drop = group.drops.get(rollout.rollout_id)
                record = rollout.record(step, group.mode)
                record["prompt"] = self.rollouts.prompt_of(rollout)
                record["dropped"] = drop.reason if drop else dropped or ""
                record["reason"] = drop.text if drop else record["reason"]
                if rollout.rollout_id in self.advantages:
                    record["advantage"] = self.advantages[rollout.rollout_id]
                records.append(record)
        return records

    def _append(self, records: list[dict[str, Any]]) -> None:
        self.log.rollouts(records)
        write_tool_logs(self.log.run_dir, records)
