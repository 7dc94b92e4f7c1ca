"""Agent Lightning's in-memory store, with what a long run and a bad day ask of it.

Subclasses 0.3.0's `InMemoryLightningStore`; nothing of its protocol changes. What is added, and why:
- `record`: an attempt's spans and its end in one call, where upstream needs five requests a rollout;
- `wait_for_rollouts` starts no task for each rollout of each call (half of the store's time with a thousand under way), nor a
  thread for each that is waited for;
- `forget`: upstream keeps every rollout for ever (15 KB each); here the ones that the trainer has collected go in
  order;
- a late span of an attempt that failed or timed out no longer makes its rollout "running" again (collection_based.py,
  `_on_attempt_heartbeat`), where it would wait in the queue for nobody;
- a jump of the wall clock does not make running attempts time out: they move with it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from agentlightning import InMemoryLightningStore
from agentlightning.store.base import UNSET, is_finished
from agentlightning.store.collection_based import healthcheck_before
from agentlightning.types import Attempt, AttemptedRollout, Rollout, Span, SpanCoreFields

from vision_rl.errors import UserError
from vision_rl.rollout.store_link import MAX_WAIT_SECONDS
from vision_rl.rollout.trace import REWARD_SPAN_NAME, SPAN_NAME, reward_attributes, span

KEEP_FORGOTTEN = 1000
"""Rollouts that stay visible in the dashboard after the trainer has collected them."""
CLOCK_JUMP_SECONDS = 2.0
LOOK_SECONDS = 0.02
"""How often who waits for a task, or for an end, looks; in memory, so this costs microseconds."""

Outcome = Literal["succeeded", "failed"]


class Trace(NamedTuple):
    """The newest attempt of a rollout, and that attempt's spans."""

    attempt: Attempt | None
    spans: list[Span]


class UnknownAttempt(ValueError):
    """The rollout or the attempt does not exist, or no longer: a stray client, or a worker that came back too late."""


_NOT_TAKEN = {
    "thread_safe": "it always is",
    "scan_debounce_seconds": "it is called scan_seconds here",
    "eviction_memory_threshold": "`forget` removes what the trainer has collected",
    "safe_memory_threshold": "`forget` removes what the trainer has collected",
    "span_size_estimator": "`forget` removes what the trainer has collected",
    "tracker": "metrics.jsonl and the dashboard have the figures",
    "cors_allow_origins": "no page of another origin may read a run",
    "n_workers": "the store lives in one process",
    "launch_mode": "it has a thread of the main process",
    "launcher_args": "it has a thread of the main process",
}
"""What Agent Lightning's constructors take, and ours do not: why."""


def refuse_options(name: str, given: Mapping[str, Any]) -> None:
    """Raise `UserError` naming every option that Agent Lightning's class takes and ours, `name`, does not."""
    if given:
        reasons = "; ".join(f"{option}: {_NOT_TAKEN.get(option, 'there is no such option')}" for option in given)
        raise UserError(f"{name} does not take {reasons}")


class VisionStore(InMemoryLightningStore):
    """The store of a run; lives in the main process, which serves it (`store_server.VisionStoreServer`)."""

    def __init__(self, *, scan_seconds: float = 1.0, **others: Any) -> None:
        refuse_options("VisionStore", others)
        super().__init__(thread_safe=True, scan_debounce_seconds=scan_seconds)
        self._forgotten: deque[str] = deque()
        self._clock_offset = time.time() - time.monotonic()

    async def record(
        self,
        rollout_id: str,
        attempt_id: str,
        spans: Sequence[SpanCoreFields],
        status: Outcome | None = None,
        failure: str = "",
    ) -> bool:
        """Add spans to an attempt, numbered as they arrive, and end it with `status` if that is given.

        An agent that fails on a reply of the wrong form (`structured_output.py`) has earned 0 and is trained on.
        Raises `UnknownAttempt` if there is no such attempt. An end that comes twice, or after the rollout was given up
        or given to another, changes nothing and returns False: a worker that lost the reply may send it again.
        """
        attempt = await self._attempt(rollout_id, attempt_id)
        if status is not None:
            rollout = await self.get_rollout_by_id(rollout_id)
            if attempt.status in ("succeeded", "failed") or rollout is None or is_finished(rollout):
                return False
            if not await self._is_latest(attempt):
                return False
        if status == "failed" and (flaw := await self._flaw(rollout_id, attempt_id)):
            spans, status, failure = [*spans, _wrong_form()], "succeeded", f"{flaw}: {failure}"
        if spans:
            numbers = await self.get_many_span_sequence_ids([(rollout_id, attempt_id)] * len(spans))
            await self.add_many_spans(
                [_span(core, rollout_id, attempt_id, number) for core, number in zip(spans, numbers, strict=True)]
            )
        if status is not None:
            metadata = {**(attempt.metadata or {}), "failure": failure} if failure else UNSET
            await self.update_attempt(rollout_id, attempt_id, status=status, metadata=metadata)
        return True

    async def claim(self, worker_id: str | None, wait_seconds: float = 0.0) -> AttemptedRollout | None:
        """The next task; waits for one to come, at most `wait_seconds`."""
        deadline = time.monotonic() + min(wait_seconds, MAX_WAIT_SECONDS)
        while True:
            last_look = time.monotonic() >= deadline
            # The queue is looked at first: to dequeue in vain writes a record of the worker.
            if last_look or await self.collections.rollout_queue.size():
                rollout = await self.dequeue_rollout(worker_id=worker_id)
                if rollout is not None or last_look:
                    return rollout
            await asyncio.sleep(LOOK_SECONDS)

    @healthcheck_before
    async def wait_for_rollouts(self, *, rollout_ids: list[str], timeout: float | None = None) -> list[Rollout]:
        """Those of the rollouts that are over, once all are or `timeout` seconds have passed; None waits for ever."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        labels: Any = ["rollouts"]
        while True:
            async with self.collections.atomic(mode="r", snapshot=False, labels=labels) as collections:
                known: Any = collections.rollouts._items
                over = [known[one] for one in rollout_ids if one in known and is_finished(known[one])]
            if len(over) == len(rollout_ids) or time.monotonic() >= deadline:
                return over
            await asyncio.sleep(LOOK_SECONDS)

    async def heartbeat(self, rollout_id: str, attempt_id: str) -> bool:
        """Keep an attempt alive; False if it is over or another has it, so that its worker can stop.

        Raises `UnknownAttempt`.
        """
        attempt = await self._attempt(rollout_id, attempt_id)
        if attempt.status not in ("preparing", "running", "unresponsive") or not await self._is_latest(attempt):
            return False
        await self.update_attempt(rollout_id, attempt_id, last_heartbeat_time=time.time())
        return True

    async def group(self, rollout_id: str) -> tuple[str | None, list[str]]:
        """The group of a rollout (its `data_id`: one row in one step) and its rollouts that are not over.

        None and nothing for a rollout without a group. Raises `UnknownAttempt` for an unknown one.
        """
        labels: Any = ["rollouts"]
        async with self.collections.atomic(mode="r", snapshot=False, labels=labels) as collections:
            every: Any = collections.rollouts._items
            # Copied in one step: a read takes no lock, and the trainer's thread adds and removes meanwhile.
            known = every.copy()
        if rollout_id not in known:
            raise UnknownAttempt(f"there is no rollout {rollout_id}")
        group = (known[rollout_id].metadata or {}).get("data_id")
        if group is None:
            return None, []
        members = [
            name
            for name, rollout in known.items()
            if (rollout.metadata or {}).get("data_id") == group and not is_finished(rollout)
        ]
        return str(group), members

    async def mode(self, rollout_id: str) -> str | None:
        """What a rollout is for: "train", "val", "test", or not said. Raises `UnknownAttempt` for an unknown rollout."""
        return (await self._rollout(rollout_id)).mode

    async def image_paths(self, rollout_id: str) -> list[str]:
        """The pictures of a rollout's task. Raises `UnknownAttempt` for an unknown rollout."""
        return list((await self._rollout(rollout_id)).input["image_paths"])

    async def _rollout(self, rollout_id: str) -> Rollout:
        rollout = await self.get_rollout_by_id(rollout_id)
        if rollout is None:
            raise UnknownAttempt(f"there is no rollout {rollout_id}")
        return rollout

    async def traces(self, rollout_ids: Sequence[str]) -> list[Trace]:
        """What the trainer needs of rollouts that are over, in one call: upstream needs two requests for each."""
        return [
            Trace(await self.get_latest_attempt(one), list(await self.query_spans(one, attempt_id="latest")))
            for one in rollout_ids
        ]

    async def forget(self, rollout_ids: Sequence[str]) -> None:
        """The trainer has what it needs of these; all but the newest are removed."""
        self._forgotten.extend(rollout_ids)
        while len(self._forgotten) > KEEP_FORGOTTEN:
            await self._remove(self._forgotten.popleft())

    async def _remove(self, rollout_id: str) -> None:
        labels: Any = ["rollouts", "attempts", "spans", "span_sequence_ids"]
        async with self.collections.atomic(mode="rw", snapshot=False, labels=labels) as collections:
            for collection in (collections.rollouts, collections.attempts, collections.spans):
                # Nested dictionaries by primary key, the rollout's id first; `delete` would leave empty ones behind.
                node = collection._items.pop(rollout_id, None)
                if node is not None:
                    collection._size -= sum(1 for _ in collection._iter_items({rollout_id: node}))
            await collections.span_sequence_ids.pop(rollout_id)
        self._total_span_bytes -= self._span_bytes_by_rollout.pop(rollout_id, 0)
        for index in (self._completion_events, self._start_time_by_rollout):
            index.pop(rollout_id, None)
        self._running_rollout_ids.discard(rollout_id)

    async def _flaw(self, rollout_id: str, attempt_id: str) -> str:
        """Why the last reply of an attempt has not the form that it was asked for; "" if it has."""
        spans = await self.query_spans(rollout_id, attempt_id=attempt_id, name=SPAN_NAME)
        return str(max(spans, key=lambda span: span.sequence_id).attributes.get("flaw", "")) if spans else ""

    async def _attempt(self, rollout_id: str, attempt_id: str) -> Attempt:
        filters: Any = {"rollout_id": {"exact": rollout_id}, "attempt_id": {"exact": attempt_id}}
        async with self.collections.atomic(mode="r", snapshot=False, labels=["attempts"]) as collections:
            attempt = await collections.attempts.get(filters)
        if attempt is None:
            raise UnknownAttempt(f"there is no attempt {attempt_id} of rollout {rollout_id}")
        return attempt

    async def _is_latest(self, attempt: Attempt) -> bool:
        latest = await self.get_latest_attempt(attempt.rollout_id)
        return latest is not None and latest.attempt_id == attempt.attempt_id

    async def _on_attempt_heartbeat(self, rollout_id: str, attempt_id: str) -> Any:
        attempt = await self._attempt(rollout_id, attempt_id)
        if attempt.status in ("failed", "timeout"):
            return None
        await self._follow_the_clock()  # before upstream writes the new clock's time: no look comes before a span
        return await super()._on_attempt_heartbeat(rollout_id, attempt_id)  # type: ignore[call-arg]

    async def _should_scan_for_unhealthy_rollouts(self) -> bool:
        await self._follow_the_clock()
        return await super()._should_scan_for_unhealthy_rollouts()

    async def _follow_the_clock(self) -> None:
        """Move the times of running attempts by the jump of the wall clock since the last look, if there was one."""
        offset = time.time() - time.monotonic()
        jump, self._clock_offset = offset - self._clock_offset, offset
        if abs(jump) < CLOCK_JUMP_SECONDS:
            return
        self._last_scan_entrance_time += jump
        async with self.collections.atomic(mode="rw", snapshot=False, labels=["rollouts", "attempts"]) as collections:
            for rollout in await self._unlocked_get_running_rollouts(collections):
                attempt = rollout.attempt
                attempt.start_time += jump
                if attempt.last_heartbeat_time is not None:
                    attempt.last_heartbeat_time += jump
                await collections.attempts.update([attempt])


def _wrong_form() -> SpanCoreFields:
    attributes = reward_attributes({"reward": 0.0, "structured_output": 0.0})
    return SpanCoreFields.model_validate(span(REWARD_SPAN_NAME, attributes, time.time()))


def _span(core: SpanCoreFields, rollout_id: str, attempt_id: str, number: int) -> Span:
    """Agent Lightning's span without the context, which repeats its ids (a tenth of what a rollout keeps)."""
    made = Span.from_core_fields(core, rollout_id=rollout_id, attempt_id=attempt_id, sequence_id=number)
    made.context = None
    return made
