"""The trainer's side of the rollouts: queues tasks, waits for them, and turns their traces into a batch that sees.

A subclass of Agent Lightning 0.3.0's `AgentModeDaemon`. What it changes, and why:
- the batch (see `vision_batch.py`);
- waiting: upstream sleeps 5 s between looks and once more after the last rollout (daemon.py:695), with no deadline;
- validation: upstream samples it at the training temperature (daemon.py:497 reads a key that is always there); here greedy;
- rollouts without a usable trace or reward are dropped and counted; upstream trains on them with reward 0;
- retries: a late span can turn a failed rollout back to "running" for ever unless attempts and time are limited.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

from agentlightning.types import EnqueueRolloutRequest, Rollout, RolloutConfig
from agentlightning.verl.daemon import AgentModeDaemon

from vision_rl.engine.pixels import Pixels
from vision_rl.engine.proxy import VisionProxy
from vision_rl.engine.reach import Reach
from vision_rl.engine.rollouts import FinishedRollout, failures, rollout_metrics, trajectory_samples, transition_samples
from vision_rl.engine.trace import reward_from_spans, turns_from_spans
from vision_rl.engine.vision_batch import BatchBuilder
from vision_rl.engine.vitals import ModelDied, Vitals
from vision_rl.errors import UserError
from vision_rl.settings import AppSettings
from vision_rl.telemetry import RunLog
from vision_rl.tool_telemetry import write_tool_logs

SET_UP_SECONDS = 300.0
PROGRESS_SECONDS = 1.0
VITALS_SECONDS = 2.0
HOPELESS = 32
"""So many rollouts in a row, the first of a step, end a run if they all failed: the others would only take longer."""
STALL_SECONDS = 5.0
"""A rollout slower than this is counted as stalled by single-turn runs on the tiny model (see the summary)."""


class VisionDaemon(AgentModeDaemon):
    """Agent Lightning's daemon with eyes; built by `VisionTrainer` with the run's settings."""

    def __init__(
        self,
        *args: Any,
        app: AppSettings,
        pixel_limits: dict[str, int],
        run_dir: Path,
        sampling: dict[str, Any],
        forbidden_tokens: list[int],
        reach: Reach,
        **kwargs: Any,
    ) -> None:
        picture_dir = run_dir / "pictures"
        kwargs["llm_proxy"] = VisionProxy(
            kwargs["store"],
            picture_dir,
            host=reach.host,
            access_host=reach.address,
            advertised=reach.advertised,
            port=reach.proxy_port,
            token=reach.token,
            media_roots=reach.media_roots,
        )
        super().__init__(*args, **kwargs)
        self.app = app
        self.log = RunLog(run_dir)
        # An image placeholder in a reply kills vLLM at the next step (see vision_rl/tokens.py).
        self.logit_bias = {str(token): -100.0 for token in forbidden_tokens}
        self.sampling = sampling
        self.pixels = Pixels(self.processor, picture_dir, limits=pixel_limits, blank=app.blank_pixels)
        self.tasks: dict[str, tuple[str, dict[str, Any]]] = {}  # rollout id -> (data id, task)
        self.finished: dict[str, FinishedRollout] = {}
        self.collected: list[str] = []  # rollouts that the store may forget
        self.step = 0  # of the rollouts under way; the trainer sets it
        self.last_progress = 0.0
        self.vitals: Vitals | None = None

    async def _async_set_up(self, data: dict[str, Any], server_addresses: list[str], is_train: bool = True) -> None:
        """Start the proxy once, publish the model's address, and queue every task (`rollout.n` times for training).

        Adds to what is already there: dynamic group filtering queues more tasks within a step.
        """
        await self.store.forget(self.collected)
        self.collected.clear()
        self.backend_llm_server_addresses = server_addresses
        if not self.llm_proxy.is_running():
            await self._update_proxy_server_v1()
            self.log.event("proxy", address=self.llm_proxy.server_launcher.access_endpoint)
        self.is_train = is_train
        sampling = {**(self.sampling if is_train else {"temperature": 0.0}), "logit_bias": self.logit_bias}
        resources = await self.store.add_resources(
            {"main_llm": self.llm_proxy.as_resource(sampling_parameters=sampling)}
        )
        requests = []
        for encoded in data["task"]:
            task, data_id = json.loads(encoded), uuid.uuid4().hex
            for _ in range(self.train_rollout_n if is_train else 1):
                requests.append(self._request(task, data_id, resources.resources_id, is_train))
        for rollout in await self.store.enqueue_many_rollouts(requests):
            self.tasks[rollout.rollout_id] = (rollout.metadata["data_id"], rollout.input)
        self.last_progress = time.monotonic()
        self._total_tasks_queued = len(self.tasks)
        self.log.event("queued", total=len(self.tasks), mode="train" if is_train else "val")

    def _request(self, task: dict[str, Any], data_id: str, resources_id: str, is_train: bool) -> EnqueueRolloutRequest:
        policy = self.app.rollouts
        return EnqueueRolloutRequest(
            input=task,
            mode="train" if is_train else "val",
            resources_id=resources_id,
            config=RolloutConfig(
                timeout_seconds=policy.timeout_seconds,
                unresponsive_seconds=policy.unresponsive_seconds,
                max_attempts=policy.max_attempts,
                retry_condition=["failed", "timeout", "unresponsive"],
            ),
            metadata={"data_id": data_id, "is_train": is_train},
        )

    async def _async_run_until_finished(self, verbose: bool = True) -> None:
        """Collect every queued rollout; those that are not done by the deadline are counted as failed.

        Raises `ModelDied` if a process is gone without which they cannot be done, `UserError` if all of them fail.
        """
        policy = self.app.rollouts
        deadline = time.monotonic() + policy.timeout_seconds * policy.max_attempts + policy.span_deadline_seconds
        look_at_vitals = time.monotonic() + VITALS_SECONDS
        while pending := [rollout_id for rollout_id in self.tasks if rollout_id not in self.finished]:
            if time.monotonic() > deadline:
                for rollout_id in pending:
                    self.finished[rollout_id] = FinishedRollout(rollout_id, *self.tasks[rollout_id], failure="deadline")
                break
            for rollout in await self.store.wait_for_rollouts(rollout_ids=pending, timeout=0):
                self.finished[rollout.rollout_id] = await self._collect(rollout)
            if time.monotonic() - self.last_progress > PROGRESS_SECONDS:
                self.last_progress = time.monotonic()
                self.log.event("collected", done=len(self.finished), total=len(self.tasks))
            if time.monotonic() > look_at_vitals:
                await self._check_vitals()
                look_at_vitals = time.monotonic() + VITALS_SECONDS
                self._check_hope(HOPELESS)
            await asyncio.sleep(policy.poll_seconds)
        if any(rollout.failure for rollout in self.finished.values()):
            await self._check_vitals()  # the rollouts of a dead server fail within a second
        self._check_hope(1)

    def _check_hope(self, least: int) -> None:
        """Raise `UserError` if at least `least` rollouts are done and none of them can be used."""
        done = list(self.finished.values())
        if len(done) < least or any(not rollout.failure for rollout in done):
            return
        mode = "train" if self.is_train else "val"
        self.log.rollouts(rollout.record(self.step, mode) for rollout in done)
        reason = next((f", one of them with {rollout.reason!r}" for rollout in done if rollout.reason), "")
        raise UserError(
            f"the first {len(done)} of {len(self.tasks)} {mode} rollouts of step {self.step} all failed "
            f"({dict(failures(done))}){reason}; see rollouts.jsonl and logs/"
        )

    async def _check_vitals(self) -> None:
        self.vitals = self.vitals or Vitals.of_this_run()
        await self.vitals.check(self.backend_llm_server_addresses)

    def death(self, error: Exception) -> ModelDied | None:
        """The death of a model server that is behind an error of a step, if there is one.

        Raises Ray's `RayActorError` if a training worker is dead.
        """
        if isinstance(error, ModelDied):
            return error
        deadline = time.monotonic() + 2 * VITALS_SECONDS  # it takes a moment until a death is known
        while time.monotonic() < deadline:
            try:
                asyncio.run_coroutine_threadsafe(self._check_vitals(), self._internal_loop).result(SET_UP_SECONDS)
            except ModelDied as died:
                return died
            time.sleep(0.5)
        return None

    async def _collect(self, rollout: Rollout) -> FinishedRollout:
        """The rollout's trace; for a while it may not have arrived yet (spans of other workers' tracers can be late)."""
        attempt = await self.store.get_latest_attempt(rollout.rollout_id)
        common: dict[str, Any] = {
            "rollout_id": rollout.rollout_id,
            "data_id": self.tasks[rollout.rollout_id][0],
            "task": self.tasks[rollout.rollout_id][1],
            "seconds": (rollout.end_time or time.time()) - (attempt.start_time if attempt else rollout.start_time),
            "attempts": attempt.sequence_id if attempt else 0,
            "worker": (attempt.worker_id if attempt else None) or "",
        }
        if rollout.status != "succeeded":
            reason = str((attempt.metadata or {}).get("failure", "") if attempt else "")
            # An exception's type, or how the attempt ended without one: timeout, unresponsive.
            failure = reason.partition(":")[0] or (attempt.status if attempt else rollout.status)
            return FinishedRollout(**common, failure=failure, reason=reason)
        deadline = time.monotonic() + self.app.rollouts.span_deadline_seconds
        while True:
            spans = list(await self.store.query_spans(rollout.rollout_id, attempt_id="latest"))
            turns, reward = turns_from_spans(spans), reward_from_spans(spans)
            if turns and reward:
                return FinishedRollout(**common, turns=turns, reward=reward)
            if time.monotonic() > deadline:
                failure = "no_trace" if not turns else "no_reward"
                return FinishedRollout(**common, turns=turns, failure=failure)
            await asyncio.sleep(self.app.rollouts.poll_seconds)

    def get_train_data_batch(  # type: ignore[override]
        self, max_prompt_length: int, max_response_length: int, device: Any, global_steps: int
    ) -> tuple[Any, dict[str, float]]:
        """The batch of this step and its metrics; raises `UserError` when too much had to be dropped."""
        rollouts = list(self.finished.values())
        records = [rollout.record(global_steps, "train") for rollout in rollouts]
        self.log.rollouts(records)
        write_tool_logs(self.log.run_dir, records)
        builder = BatchBuilder(
            self.processor,
            self.pad_token_id,
            self.pixels,
            max_prompt_length=max_prompt_length,
            max_response_length=max_response_length,
        )
        breaks: Counter[str] = Counter()
        if self.trace_aggregator["level"] == "trajectory":
            merged = trajectory_samples(
                rollouts, max_prompt_length=max_prompt_length, max_response_length=max_response_length
            )
            samples, breaks = merged.samples, merged.breaks
        else:
            samples = transition_samples(rollouts)
        failed = failures(rollouts)
        if not samples:
            raise UserError(
                f"every rollout of step {global_steps} failed ({dict(failed)}); see rollouts.jsonl and logs/"
            )
        built = builder.build(samples)
        lost = 1 - (len(rollouts) - failed.total()) / len(rollouts) * (1 - built.dropped.total() / len(samples))
        if lost > self.app.integrity.drop_rate:
            raise UserError(
                f"{lost:.0%} of step {global_steps} had to be dropped ({dict(failed + built.dropped)}), more than "
                f"app.integrity.drop_rate={self.app.integrity.drop_rate}; see rollouts.jsonl"
            )
        metrics = rollout_metrics(rollouts, "train")
        metrics["train/samples"] = len(samples)
        metrics["train/samples_dropped"] = built.dropped.total()
        metrics["train/responses_truncated"] = built.truncated_responses
        metrics["train/rollouts_stalled"] = sum(rollout.seconds > STALL_SECONDS for rollout in rollouts)
        metrics.update({f"train/dropped/{reason}": count for reason, count in built.dropped.items()})
        metrics.update({f"train/turns_unmerged/{reason}": count for reason, count in breaks.items()})
        return built.batch, metrics

    def drop_equal_groups(self) -> int:
        """Forget the groups in which every usable rollout earned the same: they carry no gradient. Returns how many."""
        rewards: dict[str, set[float]] = {}
        for rollout in self.finished.values():
            seen = rewards.setdefault(rollout.data_id, set())
            if not rollout.failure:
                seen.add(round(rollout.reward["reward"], 6))
        equal = {data_id for data_id, values in rewards.items() if len(values) <= 1}
        for rollout_id in [name for name, rollout in self.finished.items() if rollout.data_id in equal]:
            del self.finished[rollout_id], self.tasks[rollout_id]
        return len(equal)

    def get_test_metrics(self) -> dict[str, float]:
        """The validation metrics of the rollouts just finished."""
        return rollout_metrics(list(self.finished.values()), "val")

    def clear_data_and_server(self) -> None:
        self.collected += self.tasks
        self.tasks.clear()
        self.finished.clear()
        self._total_tasks_queued = 0
