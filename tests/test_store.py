"""The store: ends that come twice or late, memory that does not grow, clocks that jump, and its server's routes."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import sys
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import agentlightning as agl
import pytest
from agentlightning import InMemoryLightningStore, LightningStoreServer
from agentlightning.types import AttemptedRollout, EnqueueRolloutRequest, RolloutConfig, SpanCoreFields

from vision_rl.errors import UserError
from vision_rl.rollout import store as store_module
from vision_rl.rollout.store import UnknownAttempt, VisionStore
from vision_rl.rollout.store_server import StoreRoutes, VisionStoreServer

T = TypeVar("T")
RETRIED = RolloutConfig(
    timeout_seconds=60, unresponsive_seconds=30, max_attempts=2, retry_condition=["failed", "timeout", "unresponsive"]
)


def reward(value: float) -> SpanCoreFields:
    return agl.emit_reward({"reward": value}, primary_key="reward", propagate=False)


@pytest.fixture()
def store() -> VisionStore:
    return VisionStore(scan_seconds=0)


async def claimed(store: VisionStore, config: RolloutConfig = RETRIED) -> AttemptedRollout:
    await store.enqueue_rollout(input={}, config=config)
    rollout = await store.claim("worker")
    assert rollout is not None
    return rollout


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def test_record_numbers_spans_and_ends_the_attempt(store: VisionStore) -> None:
    async def work() -> tuple[list[int], str]:
        rollout = await claimed(store)
        identity = rollout.rollout_id, rollout.attempt.attempt_id
        assert await store.record(*identity, [reward(0.1)])
        assert await store.record(*identity, [reward(0.2), reward(0.3)], "succeeded")
        spans = await store.query_spans(rollout.rollout_id)
        found = await store.get_rollout_by_id(rollout.rollout_id)
        assert found is not None
        return [span.sequence_id for span in spans], found.status

    assert run(work()) == ([1, 2, 3], "succeeded")


def test_an_end_that_comes_twice_counts_once(store: VisionStore) -> None:
    async def work() -> None:
        rollout = await claimed(store)
        identity = rollout.rollout_id, rollout.attempt.attempt_id
        assert await store.record(*identity, [reward(0.5)], "succeeded")
        assert not await store.record(*identity, [reward(0.7)], "succeeded")
        assert not await store.record(*identity, [], "failed", "late")
        assert len(await store.query_spans(rollout.rollout_id)) == 1
        found = await store.get_rollout_by_id(rollout.rollout_id)
        assert found is not None and found.status == "succeeded"

    run(work())


def test_unknown_attempts_are_refused(store: VisionStore) -> None:
    async def work() -> None:
        rollout = await claimed(store)
        for identity in [("ro-none", "at-none"), (rollout.rollout_id, "at-none")]:
            with pytest.raises(UnknownAttempt):
                await store.record(*identity, [reward(1.0)])
            with pytest.raises(UnknownAttempt):
                await store.heartbeat(*identity)

    run(work())


def test_a_late_span_does_not_revive_a_rollout_that_waits_for_its_retry(store: VisionStore) -> None:
    """Upstream makes it "running" again while it is in the queue, and whoever claims it is sent away."""

    async def work() -> str:
        rollout = await claimed(store)
        identity = rollout.rollout_id, rollout.attempt.attempt_id
        await store.record(*identity, [], "failed", "boom")
        await store.record(*identity, [reward(0.5)])  # late
        again = await store.claim("other")
        assert again is not None and again.attempt.sequence_id == 2
        return again.rollout_id

    assert run(work())


@pytest.mark.parametrize("taken_over", [True, False])
def test_a_worker_that_comes_back_late(store: VisionStore, taken_over: bool) -> None:
    """Its rollout counts once: by the other, if one has begun; else by the late one, and nobody begins."""

    async def work() -> None:
        slow = await claimed(store)
        identity = slow.rollout_id, slow.attempt.attempt_id
        await store.record(*identity, [reward(0.1)])
        await store.update_attempt(*identity, last_heartbeat_time=time.time() - 31)
        await store.wait_for_rollouts(rollout_ids=[slow.rollout_id], timeout=0)  # looks for the dead
        other = await store.claim("other") if taken_over else None
        await store.record(*identity, [reward(0.2)])  # a span that was on its way
        assert await store.heartbeat(*identity) is not taken_over
        assert await store.record(*identity, [reward(0.9)], "succeeded") is not taken_over
        if other is not None:
            assert await store.record(other.rollout_id, other.attempt.attempt_id, [reward(0.5)], "succeeded")
        assert await store.claim("third") is None
        [done] = await store.wait_for_rollouts(rollout_ids=[slow.rollout_id], timeout=0)
        assert done.status == "succeeded"
        latest = await store.query_spans(slow.rollout_id, attempt_id="latest")
        assert agl.find_final_reward(latest) == (0.5 if taken_over else 0.9)

    run(work())


@pytest.mark.parametrize(("after", "timeout", "over"), [(0.05, 5.0, 2), (0.05, None, 2), (60.0, 0.1, 1), (60.0, 0, 1)])
def test_a_wait_ends_with_the_last_rollout_or_with_its_time(
    store: VisionStore, after: float, timeout: float | None, over: int
) -> None:
    """Two rollouts, of which one is over and one ends `after` so many seconds; an unknown one is never over, as upstream."""

    async def work() -> int:
        first, second = await claimed(store), await claimed(store)
        await store.record(first.rollout_id, first.attempt.attempt_id, [], "succeeded")

        async def end() -> None:
            await asyncio.sleep(after)
            await store.record(second.rollout_id, second.attempt.attempt_id, [], "succeeded")

        ending = asyncio.create_task(end())
        ids, began = [first.rollout_id, second.rollout_id], time.monotonic()
        found = await store.wait_for_rollouts(rollout_ids=ids, timeout=timeout)
        assert time.monotonic() - began < 3
        upstreams = await InMemoryLightningStore.wait_for_rollouts(store, rollout_ids=ids, timeout=0)
        assert [one.rollout_id for one in found] == [one.rollout_id for one in upstreams] == ids[:over]
        assert await store.wait_for_rollouts(rollout_ids=[ids[0], "ro-none"], timeout=0) == found[:1]
        ending.cancel()
        return len(found)

    assert run(work()) == over


def test_the_reason_of_a_failure_is_kept(store: VisionStore) -> None:
    async def work() -> Any:
        rollout = await claimed(store)
        await store.record(rollout.rollout_id, rollout.attempt.attempt_id, [], "failed", "ValueError: boom")
        attempt = await store.get_latest_attempt(rollout.rollout_id)
        assert attempt is not None
        return attempt.metadata

    assert run(work()) == {"failure": "ValueError: boom"}


def test_heartbeats_keep_an_attempt_alive_and_tell_when_it_is_over(
    store: VisionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        rollout = await claimed(store)
        identity = rollout.rollout_id, rollout.attempt.attempt_id
        assert await store.heartbeat(*identity)
        await store.update_attempt(*identity, last_heartbeat_time=time.time() - 31)
        assert await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=0) == []  # looks for the dead
        again = await store.claim("other")
        assert again is not None and again.rollout_id == rollout.rollout_id
        assert await store.heartbeat(again.rollout_id, again.attempt.attempt_id)
        await store.record(again.rollout_id, again.attempt.attempt_id, [reward(1.0)], "succeeded")
        assert not await store.heartbeat(again.rollout_id, again.attempt.attempt_id)

    run(work())


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 86400.0])
def test_a_jump_of_the_clock_ends_no_attempt(store: VisionStore, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    async def work() -> None:
        rollout = await claimed(store)
        await store.heartbeat(rollout.rollout_id, rollout.attempt.attempt_id)
        really = time.time
        monkeypatch.setattr(time, "time", lambda: really() + jump)
        for _ in range(2):
            await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=0)
        attempt = await store.get_latest_attempt(rollout.rollout_id)
        assert attempt is not None
        assert attempt.status == "running" or attempt.status == "preparing"
        # and deadlines still work on the new clock
        monkeypatch.setattr(time, "time", lambda: really() + jump)
        await store.update_attempt(rollout.rollout_id, attempt.attempt_id, last_heartbeat_time=time.time() - 31)
        await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=0)
        again = await store.claim("other")
        assert again is not None

    run(work())


@pytest.mark.parametrize("jump", [100.0, -100.0, 86400.0])
def test_a_call_that_is_recorded_after_a_jump_is_of_now(
    store: VisionStore, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """The span comes before anybody has looked at the clock: its time was moved once more by the next look."""

    async def work() -> None:
        rollout = await claimed(store)
        really = time.time
        monkeypatch.setattr(time, "time", lambda: really() + jump)
        await store.record(rollout.rollout_id, rollout.attempt.attempt_id, [reward(1.0)])
        for _ in range(2):
            await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=0)
            attempt = await store.get_latest_attempt(rollout.rollout_id)
            assert attempt is not None and attempt.status == "running" and attempt.last_heartbeat_time is not None
            assert abs(time.time() - attempt.last_heartbeat_time) < 25, "unresponsive_seconds is 30"
            assert abs(time.time() - attempt.start_time) < 25

    run(work())


def test_forgotten_rollouts_leave_nothing_behind(store: VisionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "KEEP_FORGOTTEN", 10)

    async def work() -> None:
        ids = []
        for _ in range(50):
            rollout = await claimed(store)
            await store.record(rollout.rollout_id, rollout.attempt.attempt_id, [reward(1.0)], "succeeded")
            ids.append(rollout.rollout_id)
        await store.forget(ids)
        statistics = await store.statistics()
        assert [statistics[f"total_{name}"] for name in ("rollouts", "attempts", "spans")] == [10, 10, 10]  # type: ignore[literal-required]
        kept = [len(index) for index in (store._completion_events, store._start_time_by_rollout)]
        kept += [len(getattr(store.collections, name)._items) for name in ("rollouts", "attempts", "spans")]
        assert kept == [10] * 5
        assert await store.collections.span_sequence_ids.size() == 10
        assert [rollout.rollout_id for rollout in await store.query_rollouts()] == ids[-10:]

    run(work())


def test_a_group_is_looked_up_while_another_thread_adds_and_forgets(store: VisionStore) -> None:
    """The server's thread looks up, the trainer's adds; 10,000 rollouts of frameworks met it (500, and tried again)."""
    grouped = EnqueueRolloutRequest(input={}, metadata={"data_id": "g"})
    [first, *_] = run(store.enqueue_many_rollouts([grouped] * 500))
    stop = threading.Event()

    async def others() -> None:
        while not stop.is_set():
            await store._remove((await store.enqueue_rollout(input={})).rollout_id)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=run, args=(others(),))
    thread.start()
    try:
        for _ in range(300):
            group, members = run(store.group(first.rollout_id))
            assert (group, len(members)) == ("g", 500)
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


def test_claim_waits_for_a_task(store: VisionStore) -> None:
    async def work() -> float:
        started = time.monotonic()
        waiting = asyncio.create_task(store.claim("worker", 5.0))
        await asyncio.sleep(0.2)
        await store.enqueue_many_rollouts([EnqueueRolloutRequest(input={"a": 1})])
        rollout = await waiting
        assert rollout is not None and rollout.input == {"a": 1}
        return time.monotonic() - started

    assert run(work()) < 1.0


@pytest.mark.parametrize(("limit", "claimed_of_three"), [(0, 0), (1, 1), (2, 2), (1024, 3)])
def test_so_many_tasks_at_once(store: VisionStore, limit: int, claimed_of_three: int) -> None:
    async def work() -> None:
        for _ in range(3):
            await store.enqueue_rollout(input={})
        claimed = await StoreRoutes(store, None).dequeue({"limit": limit, "worker_id": "w"})  # type: ignore[arg-type]
        assert len(claimed) == claimed_of_three

    run(work())


@pytest.mark.parametrize("limit", [-1, 1025, 1.5, "1"])
def test_a_limit_that_is_none_is_refused(store: VisionStore, limit: Any) -> None:
    with pytest.raises(ValueError, match="limit must be a whole number from 0 to 1024"):
        run(StoreRoutes(store, None).dequeue({"limit": limit}))  # type: ignore[arg-type]


def test_options_of_agent_lightnings_that_are_not_taken_are_named() -> None:
    with pytest.raises(UserError, match=r"VisionStore does not take eviction_memory_threshold: .*; tracker: "):
        VisionStore(eviction_memory_threshold=0.8, tracker=None)
    with pytest.raises(
        UserError, match="VisionStoreServer does not take cors_allow_origins: no page of another origin"
    ):
        VisionStoreServer(VisionStore(), host="127.0.0.1", port=1, cors_allow_origins=["*"])


def test_every_option_of_agent_lightnings_is_taken_or_has_a_reason() -> None:
    for theirs, ours in ((InMemoryLightningStore, VisionStore), (LightningStoreServer, VisionStoreServer)):
        known = inspect.signature(ours).parameters.keys() | store_module._NOT_TAKEN.keys()
        assert inspect.signature(theirs).parameters.keys() <= known


def test_the_server_travels_to_other_processes_with_its_address_and_token() -> None:
    from vision_rl.rollout.addresses import free_port

    async def work() -> str:
        server = VisionStoreServer(VisionStore(), host="127.0.0.1", port=free_port(), token="secret")
        await server.start()
        try:
            elsewhere = pickle.loads(pickle.dumps(server))
            rollout = await elsewhere.enqueue_rollout(input={"a": 1})
            assert await elsewhere.claim("worker") is not None
            return (await server.get_rollout_by_id(rollout.rollout_id)).status
        finally:
            await server.stop()

    assert run(work()) == "preparing"
