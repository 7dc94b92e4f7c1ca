"""Agent Lightning's rollouts as verl's agent loop: prompts go into the store, finished rollouts into verl's queue.

verl's V1 trainer takes any object with `generate_sequences` here (`rollout.agent.agent_loop_manager_class`;
verl/trainer/main_ppo.py, `init_agent_loop_manager`). This one queues each prompt `n` times in Agent Lightning's store,
where runners and workers find it, and watches. A group whose rollouts are all done becomes rows of the TransferQueue.
It lives in the trainer's process; its asyncio loop, with the store's client and the LLM proxy, has a thread of its own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import transfer_queue as tq
from agentlightning.types import EnqueueRolloutRequest, Rollout, RolloutConfig
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from vision_rl.errors import UserError
from vision_rl.platform.environment import SERVER_KEY
from vision_rl.rollout.model_calls import BLIND
from vision_rl.rollout.proxy import VisionProxy
from vision_rl.rollout.store import Trace
from vision_rl.rollout.trace import reward_from_spans, turns_from_spans
from vision_rl.run.failures import RolloutFailure
from vision_rl.run.log import RunLog
from vision_rl.settings import AgentSettings, AppSettings
from vision_rl.training.context import TrainerStore
from vision_rl.training.health import Health, ModelDied
from vision_rl.training.rollouts import FinishedRollout, failure_of, failures, shared_refusal
from vision_rl.training.rows import Drop, RowBuilder, RowKey, tag_of, truncated
from vision_rl.training.samples import trajectory_samples, transition_samples

CALL_SECONDS = 300.0
HEALTH_LOOK_SECONDS = 2.0
REPORT_SECONDS = 1.0
"""How often the progress of rollouts is reported, at most."""
NO_CALL = "no call arrived, but an answer came: from a cache of the client's? docs/add-a-task.md names the switches"
FAIL_FAST = 32
"""Stop the run if a step's first rollouts, so many of them, all failed."""


@dataclass
class Group:
    """The rollouts of one prompt. `rows`: the keys of its rows in verl's queue once it is done."""

    uid: str
    task: dict[str, Any]
    mode: str
    step: int
    version: int
    waiting: set[str] = field(default_factory=set)
    finished: dict[str, FinishedRollout] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)  # key in the queue -> rollout id
    drops: dict[str, Drop] = field(default_factory=dict)  # rollout id -> why none, or one, of its samples is trained on
    samples: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    breaks: Counter[str] = field(default_factory=Counter)

    @property
    def done(self) -> bool:
        return not self.waiting

    @property
    def rewards(self) -> set[float]:
        """The distinct rewards of its usable rollouts, as they are trained on (float32 has 24 bits)."""
        return {round(one.reward["reward"], 6) for one in self.finished.values() if not one.failure}


class RolloutManager:
    """`version`: how many weight updates the model server has had; the trainer counts it up."""

    def __init__(
        self,
        *,
        store: TrainerStore,
        proxy: VisionProxy,
        app: AppSettings,
        agents: Mapping[str, AgentSettings],
        log: RunLog,
        rows: RowBuilder,
        n: int,
        model: str,
        sampling: dict[str, Any],
        aggregator: Any,
    ) -> None:
        self.store, self.proxy, self.app, self.log, self.rows = store, proxy, app, log, rows
        self.n, self.model, self.sampling, self.aggregator = n, model, sampling, aggregator
        self.settings = {task: dataclasses.asdict(agent) for task, agent in agents.items()}
        self.version = 0
        self.groups: dict[str, Group] = {}
        self.error: BaseException | None = None
        self.group_done = threading.Event()
        self._servers: list[str] = []
        self._health: Health | None = None
        self._owner: dict[str, str] = {}  # rollout id -> group
        self._forget: list[str] = []
        self._refused: dict[str, dict[str, str]] | None = {}  # by group and rollout, until a first call is answered
        self._watch: asyncio.Task[None] | None = None
        self._next_look = self._last_progress = self._last_report = 0.0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="rollouts", daemon=True).start()

    def serve(self, addresses: Sequence[str]) -> None:
        """Start the LLM proxy before the model servers at `addresses` (host:port), and the watch over the rollouts."""
        self._servers = list(addresses)
        self._call(self._start())

    async def _start(self) -> None:
        self.proxy.update_model_list(
            [
                {
                    "model_name": self.model,
                    "litellm_params": {
                        "model": f"hosted_vllm/{self.model}",
                        "api_base": f"http://{address}/v1/",
                        "api_key": os.environ.get(SERVER_KEY),
                    },
                }
                for address in self._servers
            ]
        )
        await self.proxy.start()
        self.log.event("proxy", address=self.proxy.access_endpoint)
        self._watch = asyncio.get_running_loop().create_task(self._collect_for_ever())

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(CALL_SECONDS)

    # --- what verl's trainer calls -----------------------------------------------------------------------------------

    def generate_sequences(self, batch: Any) -> None:
        """Queue every prompt of a batch `n` times and return. batch: `raw_prompt` (tasks as JSON), `uid`, `global_steps`."""
        self.raise_error()
        uids, tasks = ([str(one) for one in batch[name]] for name in ("uid", "raw_prompt"))
        self.queue(dict(zip(uids, tasks, strict=True)), "train", int(batch["global_steps"]))

    def raise_error(self) -> None:
        """Raise what has ended the watch over the rollouts, if anything has."""
        if self.error is not None:
            raise self.error

    def weights_changed(self) -> None:
        """The model servers answer with new weights from now on; what the proxy has sampled ahead for a group is void."""
        self.version += 1
        self.proxy.weights_changed()

    # --- queueing ----------------------------------------------------------------------------------------------------

    def queue(self, tasks: dict[str, str], mode: str, step: int) -> None:
        """Queue tasks by group: `n` rollouts each for "train", one for other modes, which is greedy; "test" is blind."""
        self._call(self._enqueue(tasks, mode, step))

    async def _enqueue(self, tasks: dict[str, str], mode: str, step: int) -> None:
        await self.store.forget(self._forget)
        self._forget.clear()
        sampling = self.sampling if mode == "train" else {"temperature": 0.0}
        model = self.model + BLIND if mode == "test" else None
        resource = self.proxy.as_resource(model, sampling_parameters=sampling)
        resources = await self.store.add_resources({"main_llm": resource})
        requests = []
        for uid, text in tasks.items():
            row = json.loads(text)
            task = {**row, "settings": self.settings[row["task"]]}
            self.groups[uid] = Group(uid, task, mode, step, self.version)
            copies = self.n if mode == "train" else 1
            requests += [self._request(self.groups[uid], resources.resources_id) for _ in range(copies)]
        for rollout in await self.store.enqueue_many_rollouts(requests):
            uid = rollout.metadata["data_id"]
            self.groups[uid].waiting.add(rollout.rollout_id)
            self._owner[rollout.rollout_id] = uid
        self._last_progress = time.monotonic()
        self.log.event("queued", total=len(requests), mode=mode)

    def _request(self, group: Group, resources_id: str) -> EnqueueRolloutRequest:
        policy = self.app.rollouts
        return EnqueueRolloutRequest(
            input=group.task,
            mode=group.mode,  # type: ignore[arg-type]
            resources_id=resources_id,
            config=RolloutConfig(
                timeout_seconds=policy.timeout_seconds,
                unresponsive_seconds=policy.unresponsive_seconds,
                max_attempts=policy.max_attempts,
                retry_condition=["failed", "timeout", "unresponsive"],
            ),
            metadata={"data_id": group.uid, "is_train": group.mode == "train", "step": group.step},
        )

    # --- collecting --------------------------------------------------------------------------------------------------

    async def _collect_for_ever(self) -> None:
        """Watch until an error ends the run; `wait` then raises it to whoever waits for a group."""
        try:
            while True:
                await self._collect_once()
        except BaseException as error:
            self.error = error
            self.group_done.set()

    async def _collect_once(self) -> None:
        waiting = list(self._owner)
        if not waiting:
            return await asyncio.sleep(self.app.rollouts.poll_seconds)
        done = await self.store.wait_for_rollouts(rollout_ids=waiting, timeout=min(0.1, self.app.rollouts.poll_seconds))
        traces = await self.store.traces([rollout.rollout_id for rollout in done]) if done else []
        for rollout, trace in zip(done, traces, strict=True):
            await self._settle(rollout.rollout_id, await self._finished(rollout, trace))
        if done:
            self._last_progress = time.monotonic()
        if done and (not self._owner or self._last_progress > self._last_report + REPORT_SECONDS):
            self._last_report = self._last_progress
            total = sum(len(group.waiting) + len(group.finished) for group in self.groups.values())
            self.log.event("collected", done=total - len(self._owner), total=total)
        await self._end_what_never_ends()
        await self._look_at_health(failed=any(rollout.status != "succeeded" for rollout in done))
        self._fail_fast()

    async def _settle(self, rollout_id: str, finished: FinishedRollout) -> None:
        group = self.groups[self._owner.pop(rollout_id)]
        group.finished[rollout_id] = finished
        group.waiting.discard(rollout_id)
        self._forget.append(rollout_id)
        if group.done:
            await self._close(group)

    async def _end_what_never_ends(self) -> None:
        """Give up what the store's own time-outs have not ended, once nothing at all has moved for as long as they take."""
        policy = self.app.rollouts
        patience = policy.timeout_seconds * policy.max_attempts + policy.span_deadline_seconds
        if time.monotonic() - self._last_progress > patience:
            for rollout_id, uid in list(self._owner.items()):
                lost = FinishedRollout(rollout_id, uid, self.groups[uid].task, failure=RolloutFailure.DEADLINE)
                await self._settle(rollout_id, lost)

    async def _finished(self, rollout: Rollout, trace: Trace) -> FinishedRollout:
        """The rollout's trace; for a while it may not have arrived yet (spans of other workers' tracers can be late)."""
        group = self.groups[self._owner[rollout.rollout_id]]
        attempt = trace.attempt
        common: dict[str, Any] = {
            "rollout_id": rollout.rollout_id,
            "data_id": group.uid,
            "task": group.task,
            "seconds": (rollout.end_time or time.time()) - (attempt.start_time if attempt else rollout.start_time),
            "attempts": attempt.sequence_id if attempt else 0,
            "worker": (attempt.worker_id if attempt else None) or "",
        }
        reason = str((attempt.metadata or {}).get("failure", "") if attempt else "")
        if rollout.status != "succeeded":
            failure = failure_of(attempt.status if attempt else rollout.status, reason)
            return FinishedRollout(**common, failure=failure, reason=reason)
        deadline = time.monotonic() + self.app.rollouts.span_deadline_seconds
        while True:
            turns, reward = turns_from_spans(trace.spans), reward_from_spans(trace.spans)
            if turns and reward:
                return FinishedRollout(**common, turns=turns, reward=reward, reason=reason)
            if time.monotonic() > deadline:
                if turns:
                    return FinishedRollout(**common, turns=turns, failure=RolloutFailure.NO_REWARD)
                return FinishedRollout(**common, failure=RolloutFailure.NO_TRACE, reason=NO_CALL if reward else "")
            await asyncio.sleep(self.app.rollouts.poll_seconds)
            [trace] = await self.store.traces([rollout.rollout_id])

    async def _close(self, group: Group) -> None:
        """Rows of a finished training group into verl's queue, all at once; a validation group has none."""
        if group.mode == "train":
            fields, tags = self._rows(group)
            if fields:
                keys = list(group.rows)
                await tq.async_kv_batch_put(
                    keys=keys, fields=list_of_dict_to_tensordict(fields), tags=tags, partition_id="train"
                )
            # verl's asynchronous modes draw every "failure" anew, without a bound: one rollout must not cost its group.
            tag = {"status": "finished" if fields else "failure"}
            await tq.async_kv_put(key=group.uid, partition_id="train", tag=tag)
        self.group_done.set()

    def _rows(self, group: Group) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        rollouts = list(group.finished.values())
        if self.aggregator["level"] == "trajectory":
            limits = {name: getattr(self.rows, name) for name in ("max_prompt_length", "max_response_length")}
            merged = trajectory_samples(rollouts, **limits)
            samples, group.breaks = merged.samples, merged.breaks
        else:
            samples = transition_samples(rollouts)
        session = {rollout.rollout_id: index for index, rollout in enumerate(rollouts)}
        fields, tags, counts = [], [], Counter[str]()
        group.samples, group.truncated = len(samples), truncated(samples, self.rows.max_response_length)
        for sample in samples:
            row = self.rows.row(sample)
            if isinstance(row, Drop):
                group.dropped[row.reason.value] += 1
                group.drops[sample.rollout_id] = row
                continue
            key = str(RowKey(group.uid, session[sample.rollout_id], counts[sample.rollout_id]))
            counts[sample.rollout_id] += 1
            group.rows[key] = sample.rollout_id
            fields.append(row)
            tags.append(tag_of(row, queued_at=group.step, first_version=group.version, last_version=self.version))
        return fields, tags

    # --- what must not go on in silence ------------------------------------------------------------------------------

    async def _look_at_health(self, *, failed: bool) -> None:
        """Every two seconds, and at once after a failure: the rollouts of a dead server fail within a second."""
        if failed or time.monotonic() > self._next_look:
            self._next_look = time.monotonic() + HEALTH_LOOK_SECONDS
            await self._check_health()
            if self._refused is not None:
                await self._look_at_first_attempts(self._refused)

    async def _look_at_first_attempts(self, refused: dict[str, dict[str, str]]) -> None:
        """Raise `UserError` if the model refused whatever it was asked so far, in the same words: retries change nothing."""
        for rollout in await self.store.query_rollouts(status_in=["requeuing", "running", "succeeded"]):
            uid, attempt = self._owner.get(rollout.rollout_id), getattr(rollout, "attempt", None)
            if rollout.status != "requeuing":  # a call was answered
                self._refused = None
                return
            if uid and attempt and (reason := (attempt.metadata or {}).get("failure")):
                refused.setdefault(uid, {})[rollout.rollout_id] = reason
        if words := shared_refusal([list(reasons.values()) for reasons in refused.values()]):
            raise UserError(words)

    async def _check_health(self) -> None:
        self._health = self._health or Health.of_this_run()
        await self._health.check(self._servers)

    def death(self, error: BaseException) -> ModelDied | None:
        """The death of a model server that is behind an error of a step, if there is one.

        Raises Ray's `RayActorError` if a training worker is dead.
        """
        if isinstance(error, ModelDied):
            return error
        deadline = time.monotonic() + 2 * HEALTH_LOOK_SECONDS  # it takes a moment until a death is known
        while time.monotonic() < deadline:
            try:
                self._call(self._check_health())
            except ModelDied as died:
                return died
            time.sleep(0.5)
        return None

    def _fail_fast(self) -> None:
        """Raise `UserError` if a step's first rollouts, or all of them, are done and none of them can be used."""
        for mode in ("train", "val"):
            groups = [group for group in self.groups.values() if group.mode == mode]
            done = [one for group in groups for one in group.finished.values()]
            least = 1 if all(group.done for group in groups) else FAIL_FAST
            if len(done) < least or any(not one.failure for one in done):
                continue
            step = max(group.step for group in groups)
            total = len(done) + sum(len(group.waiting) for group in groups)
            reason = next((f", one of them with {one.reason!r}" for one in done if one.reason), "")
            raise UserError(
                f"the first {len(done)} of {total} {mode} rollouts of step {step} all failed "
                f"({dict(failures(done))}){reason}; see rollouts.jsonl and logs/"
            )

    # --- what the trainer asks ---------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Until the next group is done, at most so long. Raises what ended the watch."""
        self.group_done.wait(seconds)
        self.group_done.clear()
        self.raise_error()

    def validate(self, tasks: Sequence[str], step: int, mode: str = "val") -> list[FinishedRollout]:
        """One greedy rollout of every task. mode "test": with black pictures; all may fail without ending the run."""
        uids = {uuid.uuid4().hex: task for task in tasks}
        self.queue(uids, mode, step)
        while not all(self.groups[uid].done for uid in uids):
            self.wait(self.app.rollouts.poll_seconds)
        return [one for uid in uids for one in self.take(uid).finished.values()]

    def take(self, uid: str) -> Group:
        """A group that is done, which is then forgotten here and in the store."""
        return self.groups.pop(uid)

    def prompt_of(self, rollout: FinishedRollout) -> str:
        """The text of a rollout's first prompt, as the model got it, without the places of its pictures."""
        tokenizer = self.rows.processor.tokenizer
        return str(tokenizer.decode(rollout.turns[0].prompt_ids, skip_special_tokens=True)) if rollout.turns else ""

    def equal(self, uids: set[str]) -> set[str]:
        """Those of the groups in which every usable rollout earned the same: they carry no gradient."""
        return {uid for uid in uids if uid in self.groups and len(self.groups[uid].rewards) <= 1}
