"""Agent Lightning 0.3.0's own training batch, for the control experiment: token ids and positions, but no pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from agentlightning.types import RolloutLegacy, Task, Triplet
from agentlightning.verl.daemon import AgentModeDaemon
from vision_rl.engine.daemon import VisionDaemon

from vision_rl.training.rollouts import FinishedRollout, rollout_metrics


class StockBatchDaemon(VisionDaemon):
    """Collects rollouts as ours does, and leaves the batch to upstream's `get_train_data_batch`."""

    def get_train_data_batch(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, float]]:
        finished = {rollout.rollout_id: rollout for rollout in self.finished.values() if not rollout.failure}
        self._completed_rollouts_v0 = {name: _legacy(rollout) for name, rollout in finished.items()}
        self._task_id_to_original_sample = {name: {"data_id": rollout.data_id} for name, rollout in finished.items()}
        self._total_tasks_queued = len(finished)
        batch, _ = AgentModeDaemon.get_train_data_batch(self, *args, **kwargs)
        names, turns = batch.non_tensor_batch["rollout_id_list"], batch.non_tensor_batch["turn_index_list"]
        width = batch.batch["responses"].shape[-1]
        log_probs = torch.zeros(len(names), width)
        for i, (name, turn) in enumerate(zip(names, turns, strict=True)):
            values = torch.tensor(finished[name].turns[turn].logprobs)
            log_probs[i, : len(values)] = values
        batch.batch["rollout_log_probs"] = log_probs
        batch.batch["response_mask"] = batch.batch["attention_mask"][:, -width:]
        batch.batch["token_level_scores"] = batch.batch["token_level_scores"].float()
        batch.non_tensor_batch["uid"] = batch.non_tensor_batch["data_id_list"]
        batch.non_tensor_batch["rollout_id"] = np.array(names, dtype=object)
        batch.non_tensor_batch["turn_index"] = np.array(turns)
        return batch, rollout_metrics(list(self.finished.values()), "train")


def _legacy(rollout: FinishedRollout) -> RolloutLegacy:
    triplets = [
        Triplet(
            prompt={"token_ids": turn.prompt_ids, "image_urls": turn.image_refs},
            response={"token_ids": turn.response_ids},
            reward=rollout.reward["reward"],
        )
        for turn in rollout.turns
    ]
    task = Task(rollout_id=rollout.rollout_id, input=rollout.task)
    return RolloutLegacy(
        rollout_id=rollout.rollout_id, task=task, triplets=triplets, final_reward=rollout.reward["reward"]
    )
