"""The sight gauge: do the actor's log-probabilities depend on its pictures at all?

Training on pictures that never reach the model looks normal: losses fall, and often rewards rise, by what the questions
alone give away (agent-lightning issue 559, rllm issues 548 and 549, prime-rl issue 2786, verl issue 4256). Every few steps
some rows are computed once more with black pictures of the same sizes. A path that loses the pictures gives the same
log-probabilities twice, to the last bit, and a model that ignores them nearly so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from transfer_queue import KVBatchMeta

from vision_rl.errors import UserError
from vision_rl.run.names import SIGHT
from vision_rl.settings import Sight
from vision_rl.tasks import is_episode
from vision_rl.training.rollout_manager import RolloutManager
from vision_rl.training.rollouts import FinishedRollout


class SightGauge:
    """When to check, on which rows, and when it has been dark for too long."""

    def __init__(self, rule: Sight) -> None:
        self.rule = rule
        self.spent = 0.0
        self.dark: list[float] = []
        self._started = time.monotonic()
        self._looked = False

    def look(self, batch: KVBatchMeta, workers: Any, temperature: float, step: int) -> dict[str, float]:
        """Check some rows of a batch, if it is time to; nothing where no row has a picture.

        workers: verl's group of the actor's ranks. Raises `UserError` after too many dark checks in a row.
        """
        ranks = max(workers._dispatch_info["actor"]) + 1
        chosen = self.rows(batch.tags, ranks) if self.due(step) else []
        if not chosen:
            return {}
        started = time.monotonic()
        rows = KVBatchMeta(
            keys=[batch.keys[i] for i in chosen],
            tags=[batch.tags[i] for i in chosen],
            partition_id=batch.partition_id,
            extra_info={"temperature": temperature},
        )
        metrics = {name: float(value) for name, value in workers.sight(rows)["metrics"].items()}
        metrics[SIGHT] = time.monotonic() - started
        self.note(metrics["sight/kl"], step, metrics[SIGHT])
        return metrics

    def due(self, step: int) -> bool:
        """Whether this step has a check: the first one asked about, then every `every` steps that there is time for."""
        if not self.rule.every or (self._looked and step % self.rule.every):
            return False
        return self.spent <= self.rule.time * (time.monotonic() - self._started)

    def rows(self, tags: Sequence[Mapping[str, Any]], ranks: int) -> list[int]:
        """The rows to look at, spread over a batch: equally many for each rank, because all ranks compute together.

        Empty where fewer rows than ranks have a picture.
        """
        seeing = [i for i, tag in enumerate(tags) if tag.get("pictures") and not tag.get("is_padding")]
        wanted = max(1, round(self.rule.rows * len(seeing) / ranks)) * ranks
        return spread(seeing, wanted) if len(seeing) >= wanted else []

    def note(self, kl: float, step: int, seconds: float) -> None:
        """Remember a check. Raises `UserError` after too many dark ones in a row."""
        self._looked = True
        self.spent += seconds
        least = self.rule.min_kl
        self.dark = [*self.dark, kl] if least is not None and not kl >= least else []
        if len(self.dark) >= self.rule.patience:
            seen = ", ".join(f"{one:.1e}" for one in self.dark)
            raise UserError(
                f"step {step}: the actor answers the same with black pictures ({seen} nats per token apart in the last "
                f"{len(self.dark)} checks, app.sight.min_kl={least:g}): this model, or this path, does not use its pictures; "
                "see docs/troubleshooting.md, or set app.sight.min_kl=null if the questions need no picture"
            )

    def reward_gap(
        self, rollouts: RolloutManager, tasks: Sequence[str], seeing: Sequence[FinishedRollout], step: int
    ) -> dict[str, float]:
        """The reward, and the success where it is known, of some validation rows, `seeing`, beside those with black pictures.

        The proxy blackens what goes to the model: pictures of rows, of tools and of environments alike.

        Over the rows that neither side failed. A model that knows nothing yet earns nothing either way, so that no gap here
        ends a run; these rollouts are counted nowhere else.
        """
        blind = seeing_tasks(tasks, self.rule.val_rows)
        finished = rollouts.validate([tasks[place] for place in blind], step, mode="test") if blind else []
        pairs = [
            (seeing[place].reward, one.reward)
            for place, one in zip(blind, finished, strict=True)
            if not (seeing[place].failure or one.failure)
        ]
        gap: dict[str, float] = {"sight/val_rows": len(pairs)} if pairs else {}
        for name in ("reward", "success"):
            if pairs and all(name in one for pair in pairs for one in pair):
                with_pictures, without = (
                    sum(one[name] for one in side) / len(pairs) for side in zip(*pairs, strict=True)
                )
                gap |= {f"sight/val_{name}_seeing": with_pictures, f"sight/val_{name}_blind": without}
                gap[f"sight/val_{name}_gap"] = with_pictures - without
        return gap


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """`count` of the items, at equal distances."""
    return [items[i * len(items) // count] for i in range(count)]


def seeing_tasks(tasks: Sequence[str], most: int) -> list[int]:
    """The places of up to `most` of the tasks, spread over them, in which the model is shown a picture."""
    rows = map(json.loads, tasks)
    seeing = [place for place, row in enumerate(rows) if row["image_paths"] or is_episode(row)]
    return spread(seeing, min(most, len(seeing)))
