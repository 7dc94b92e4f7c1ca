"""The way from Agent Lightning's store to verl's queue: hand-built rollouts through rows, groups, drops, filter and records.

The store, the rows and verl's own replay buffer are the real ones; verl's queue is a dictionary, and nobody serves a model.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from agentlightning import LLM, emit_reward
from agentlightning.types import SpanCoreFields, TraceStatus
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import replay_buffer as verls_buffer

from vision_rl.config.resolve import resolve
from vision_rl.errors import UserError
from vision_rl.models.pixels import Pixels
from vision_rl.rollout.store import VisionStore
from vision_rl.rollout.trace import SPAN_NAME, Turn, turn_attributes
from vision_rl.run.failures import GroupDrop, RolloutFailure, SampleDrop
from vision_rl.run.log import EVENTS, ROLLOUTS, RunLog, read_jsonl
from vision_rl.settings import AgentSettings, AppSettings, FilterGroups, Integrity, RolloutPolicy
from vision_rl.tiny import checkpoint_dir
from vision_rl.training import rollout_manager as manager_module
from vision_rl.training import steps as steps_module
from vision_rl.training.replay import replay_buffer
from vision_rl.training.rollout_manager import NO_CALL, RolloutManager
from vision_rl.training.rollouts import shared_refusal
from vision_rl.training.rows import RowBuilder
from vision_rl.training.steps import StepRecords

TASK = {"task": "vqa", "id": "1", "question": "?", "image_paths": ["a.png"], "answers": ["yes"], "boxes": []}
N = 4
IMAGE_TOKEN = json.loads((Path(checkpoint_dir()) / "config.json").read_text())["image_token_id"]


class Queue:
    """What of the TransferQueue is used, without its processes."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.tags: dict[str, dict[str, Any]] = {}

    async def async_kv_batch_put(self, keys: list[str], fields: Any, tags: list[Any], partition_id: str) -> None:
        self.fields.update({key: fields[i] for i, key in enumerate(keys)})
        self.tags.update(zip(keys, tags, strict=True))

    async def async_kv_put(self, key: str, partition_id: str, tag: dict[str, Any]) -> None:
        self.tags.setdefault(key, {}).update(tag)

    def kv_list(self, _partition: str | None = None) -> dict[str, Any]:
        return {"train": self.tags}

    def kv_clear(self, keys: list[str], partition_id: str) -> None:
        for key in keys:
            self.tags.pop(key, None)


class Proxy:
    """Says what it serves; nobody calls it."""

    sampled_with: dict[str, Any]
    voided = 0

    def as_resource(self, model: str | None = None, sampling_parameters: dict[str, Any] | None = None) -> LLM:
        self.sampled_with = sampling_parameters or {}
        return LLM(endpoint="http://nowhere", model="m", sampling_parameters=self.sampled_with)

    def weights_changed(self) -> None:
        self.voided += 1


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    queue = Queue()
    monkeypatch.setattr(manager_module, "tq", queue)
    monkeypatch.setattr(verls_buffer, "tq", queue)
    return queue


@pytest.fixture
def manager(queue: Queue, tiny_processor: Any, tmp_path: Path) -> Iterator[RolloutManager]:
    policy = RolloutPolicy(poll_seconds=0.01, span_deadline_seconds=0.1, max_attempts=1)
    manager = RolloutManager(
        store=VisionStore(),
        proxy=Proxy(),  # type: ignore[arg-type]
        app=AppSettings(rollouts=policy),
        agents={"vqa": AgentSettings()},
        log=RunLog(tmp_path),
        rows=RowBuilder(tiny_processor, Pixels(tiny_processor, tmp_path), max_prompt_length=64, max_response_length=8),
        n=N,
        model="m",
        sampling={"temperature": 1.0, "top_p": 0.9},
        aggregator={"level": "transition"},
    )
    manager._loop.call_soon_threadsafe(lambda: manager._loop.create_task(manager._collect_for_ever()))
    yield manager
    manager._loop.call_soon_threadsafe(manager._loop.stop)


def store_of(manager: RolloutManager) -> VisionStore:
    """The store itself, which workers ask as well."""
    assert isinstance(manager.store, VisionStore)
    return manager.store


def turn(
    *, prompt: int = 3, tokens: int = 2, logprobs: int = 2, refs: list[str] | None = None, picture_tokens: int = 0
) -> Turn:
    ids = [IMAGE_TOKEN] * picture_tokens + [5] * (prompt - picture_tokens)
    return Turn(ids, [7, 8][:tokens], [-0.5] * logprobs, refs or [], "yes", "stop")


def test_a_rollout_is_queued_under_the_runs_own_limits(manager: RolloutManager) -> None:
    manager.app = AppSettings(rollouts=RolloutPolicy(max_attempts=3, timeout_seconds=7.0, unresponsive_seconds=5.0))
    manager.queue({"g": json.dumps(TASK)}, "val", 2)
    rollout = manager._call(store_of(manager).claim("worker", 5))
    config, metadata = rollout.config, rollout.metadata
    assert (config.max_attempts, config.timeout_seconds, config.unresponsive_seconds) == (3, 7.0, 5.0)
    assert set(config.retry_condition) == {"failed", "timeout", "unresponsive"}
    assert rollout.mode == "val" and metadata == {"data_id": "g", "is_train": False, "step": 2}


def roll_out(manager: RolloutManager, outcome: float | str, turns: list[Turn] | None = None) -> None:
    """Claim a rollout and end it: with a reward, or with a failure's reason."""
    rollout = manager._call(store_of(manager).claim("worker", 5))
    spans: list[Any] = [
        SpanCoreFields(
            name=SPAN_NAME, attributes=turn_attributes(one), status=TraceStatus(status_code="OK"),
            start_time=time.time(), end_time=time.time(),
        )
        for one in (turns if turns is not None else [turn()])
    ]  # fmt: skip
    ids = rollout.rollout_id, rollout.attempt.attempt_id
    if str(outcome).startswith("attempt: "):  # what the store's own clock finds
        manager._call(store_of(manager).update_attempt(*ids, status=str(outcome).removeprefix("attempt: ")))
        return
    if isinstance(outcome, str):
        assert manager._call(store_of(manager).record(*ids, spans, "failed", outcome))
        return
    spans.append(emit_reward({"reward": outcome, "accuracy": outcome}, primary_key="reward", propagate=False))
    assert manager._call(store_of(manager).record(*ids, spans, "succeeded", ""))


def train(manager: RolloutManager, *groups: list[Any]) -> list[str]:
    """Queue a group for each list of outcomes, roll them out in order, wait; returns the groups' names."""
    uids = [f"g{number}" for number in range(len(groups))]
    for uid, outcomes in zip(uids, groups, strict=True):
        manager.queue({uid: json.dumps(TASK)}, "train", 3)
        for outcome in outcomes:
            roll_out(manager, *(outcome if isinstance(outcome, tuple) else (outcome,)))
        wait_for(manager, uid)
    return uids


def wait_for(manager: RolloutManager, uid: str) -> None:
    """Until a group is done and, if it trains, verl's queue knows it: that comes a moment later."""
    deadline = time.monotonic() + 60
    tags = manager_module.tq.tags  # type: ignore[attr-defined]
    while not manager.groups[uid].done or (manager.groups[uid].mode == "train" and uid not in tags):
        manager.wait(0.05)
        assert time.monotonic() < deadline


class Buffer:
    """What `StepRecords.take` reads of verl's buffer."""

    def __init__(self, *selected: str) -> None:
        self.selected = set(selected)
        self.thrown_away: dict[str, GroupDrop | None] = {}


def batch_of(queue: Queue, *uids: str) -> KVBatchMeta:
    keys = [key for key in queue.fields if key.rsplit("_", 2)[0] in uids]
    return KVBatchMeta(partition_id="train", keys=keys, tags=[queue.tags[key] for key in keys])


MISSING = turn(refs=["file:///nowhere.png"])
REFUSED = "BadRequestError: Error code: 400 - too many pictures"


@pytest.mark.parametrize(
    ("outcomes", "rows", "status", "failed", "dropped"),
    [
        ([1.0, 0.0, 0.5, 0.0], 4, "finished", {}, {}),
        ([1.0, "Odd: no", 0.5, 0.0], 3, "finished", {"agent_error": 1}, {}),
        (["Odd: a", "Odd: b", REFUSED, "Odd: d"], 0, "failure", {"agent_error": 3, "model_call": 1}, {}),
        ([1.0, (0.5, [turn(logprobs=1)]), 0.0, 0.0], 3, "finished", {}, {"no_logprobs": 1}),
        ([1.0, (0.5, [MISSING]), 0.0, 0.0], 3, "finished", {}, {"unreadable_image": 1}),
        ([1.0, (0.5, [turn(prompt=65)]), 0.0, 0.0], 3, "finished", {}, {"prompt_too_long": 1}),
        ([1.0, (0.5, []), 0.0, 0.0], 3, "finished", {"no_trace": 1}, {}),
        ([(0.5, [MISSING])] * N, 0, "failure", {}, {"unreadable_image": N}),
        ([1.0, (0.5, [turn(), turn()]), 0.0, 0.0], 5, "finished", {}, {}),
    ],
)
def test_a_group_becomes_rows_and_counts(
    outcomes: list[Any], rows: int, status: str, failed: dict[str, int], dropped: dict[str, int],
    manager: RolloutManager, queue: Queue, tmp_path: Path,
) -> None:  # fmt: skip
    good, uid = train(manager, [1.0, 0.0, 1.0, 0.0], outcomes)
    assert queue.tags[uid]["status"] == status
    assert len(batch_of(queue, uid).keys) == rows
    records = StepRecords(RunLog(tmp_path / "run"), manager, Integrity(drop_rate=0.9))
    metrics = records.take(Buffer(good, uid), 3)
    assert metrics["train/rollouts"] == 2 * N
    assert metrics["train/rollouts_failed"] == sum(failed.values())
    assert {k.rsplit("/", 1)[1]: v for k, v in metrics.items() if "/failed/" in k} == failed
    assert {k.rsplit("/", 1)[1]: v for k, v in metrics.items() if "/dropped/" in k} == dropped
    assert metrics["train/samples_dropped"] == sum(dropped.values())
    usable = [one[0] if isinstance(one, tuple) else one for one in outcomes]
    counted = [0.0 if isinstance(one, str) else one for one in usable]
    if "no_trace" not in failed:
        assert metrics["train/reward"] == pytest.approx((2.0 + sum(counted)) / (2 * N))
    records.write()
    written = [one for one in read_jsonl(tmp_path / "run" / ROLLOUTS)[0] if one["group"] == uid]
    assert len(written) == N
    assert Counter(one["dropped"] for one in written if one["dropped"]) == dropped
    assert Counter(one["failure"] for one in written if one["failure"]) == failed
    assert all(one["image_paths"] == ["a.png"] for one in written), "the picture stands in every line"
    if "unreadable_image" in dropped:
        assert any("/nowhere.png" in one["reason"] for one in written)
    assert not manager.groups, "what is recorded is forgotten"


def test_progress_is_reported_when_something_changes_and_at_most_once_a_second(
    manager: RolloutManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reported() -> list[tuple[int, int]]:
        return [(one["done"], one["total"]) for one in read_jsonl(tmp_path / EVENTS)[0] if one["kind"] == "collected"]

    manager.queue({"a": json.dumps(TASK)}, "train", 3)
    time.sleep(0.3)  # thirty looks
    assert reported() == []
    monkeypatch.setattr(manager, "_last_report", time.monotonic())
    roll_out(manager, 1.0)
    time.sleep(0.3)
    assert reported() == []
    monkeypatch.setattr(manager, "_last_report", 0.0)
    roll_out(manager, 0.0)
    time.sleep(0.3)
    for _ in range(2):
        roll_out(manager, 0.5)
    wait_for(manager, "a")
    time.sleep(0.1)
    assert reported() == [(2, 4), (4, 4)], "and the last one always"


def test_a_group_that_was_not_sampled_yet_waits_for_its_step(manager: RolloutManager, tmp_path: Path) -> None:
    """In the asynchronous modes rollouts go on while a batch is taken: what is done by then belongs to a later step."""
    first, second, third = train(manager, *[[1.0, 0.0, 1.0, 0.0]] * 3)
    records = StepRecords(RunLog(tmp_path), manager, Integrity())
    buffer = Buffer(first)
    buffer.thrown_away = {third: GroupDrop.STALE}
    assert records.take(buffer, 3)["train/groups_dropped/group_stale"] == 1
    assert set(manager.groups) == {second}
    assert not buffer.thrown_away, "counted in one step only"
    records.take(Buffer(second), 4)
    assert not manager.groups


@pytest.mark.parametrize(
    ("groups", "warns"),
    [
        ([[0.0] * N, [0.0] * N], "mean 0.000"),
        ([[1.0] * N, [1.0] * N, [0.0] * N, [0.0] * N], "mean 0.500"),
        ([[0.0, "Odd: a", 0.0, 0.0]], "mean 0.000"),
        ([[0.0] * N, [0.0, 1.0, 0.0, 0.0]], ""),
    ],
)
def test_a_first_step_that_teaches_nothing_is_shown_with_its_replies(
    manager: RolloutManager, queue: Queue, tmp_path: Path, groups: list[list[Any]], warns: str
) -> None:
    records = StepRecords(RunLog(tmp_path / "run"), manager, Integrity(drop_rate=0.9))
    for step in (3, 4):  # warned of once
        records.take(Buffer(*train(manager, *groups)), step)
    warnings = [one["text"] for one in read_jsonl(tmp_path / "run" / EVENTS)[0] if one["kind"] == "warning"]
    if not warns:
        assert not warnings
        return
    [text] = warnings
    assert text.startswith(f"no group of step 3 has replies of different rewards ({warns})")
    assert text.count(f"where {TASK['answers']} is right, reward ") == min(3, len(groups))


def test_too_much_that_is_lost_ends_the_run(manager: RolloutManager, queue: Queue, tmp_path: Path) -> None:
    uids = train(manager, [1.0, 0.0, "Odd: a", "Odd: b"], [1.0, (0.0, [MISSING]), 0.5, 0.5])
    for limit, ends in ((0.3, True), (0.4, False)):  # 2 of 8 failed, then 1 of 6 dropped: 1 - 6/8 * 5/6 = 0.375
        records = StepRecords(RunLog(tmp_path), manager, Integrity(drop_rate=limit))
        taken = dict(manager.groups)
        if ends:
            with pytest.raises(
                UserError, match=r"38% of step 3 .*'agent_error': 2.*unreadable_image.*nowhere\.png.*drop_rate=0\.3"
            ):
                records.take(Buffer(*uids), 3)
        else:
            records.take(Buffer(*uids), 3)
        manager.groups = taken


def test_failures_alone_end_the_run_at_once(manager: RolloutManager) -> None:
    manager.queue({"g": json.dumps(TASK)}, "train", 3)
    for _ in range(N):
        roll_out(manager, "Odd: the server said 500")
    with pytest.raises(UserError, match=r"first 4 of 4 train rollouts of step 3 all failed .*Odd: the server said 500"):
        for _ in range(200):
            manager.wait(0.05)


TOO_NARROW = "BadRequestError: Error code: 400 - picture 1 is 210 x 1"
NO_PLACE = "InternalServerError: Error code: 500 - Failed to apply prompt replacement for mm_items['image'][0]"


@pytest.mark.parametrize(
    ("reasons", "said"),
    [
        ([[NO_PLACE] * 4, [NO_PLACE] * 4], "chat template leaves these messages' pictures out: take"),
        ([[TOO_NARROW] * 8, [TOO_NARROW.replace("210", "220")]], TOO_NARROW),
        ([["ModelHTTPError: status_code: 422, body: no"] * 4] * 2, "ModelHTTPError: status_code: 422"),
        ([[TOO_NARROW] * 8], ""),  # it may be about this row
        ([[TOO_NARROW] * 4, [TOO_NARROW] * 3], ""),
        ([[TOO_NARROW] * 8, [NO_PLACE]], ""),
        ([["APIConnectionError: Connection error."] * 8] * 2, ""),
        ([["RateLimitError: Error code: 429 - later"] * 8] * 2, ""),
        ([["InternalServerError: Error code: 502 - no answer"] * 8] * 2, ""),
        ([["KeyError: 'x'"] * 8] * 2, ""),
        ([], ""),
    ],
)  # fmt: skip
def test_a_refusal_that_all_first_attempts_share(reasons: list[list[str]], said: str) -> None:
    shared = shared_refusal(reasons)
    assert (said in shared) if said else not shared


@pytest.mark.parametrize(("answered", "ends"), [(False, True), (True, False)])
def test_a_refusal_of_every_first_attempt_ends_the_run_before_it_is_tried_again(
    manager: RolloutManager, monkeypatch: pytest.MonkeyPatch, answered: bool, ends: bool
) -> None:
    monkeypatch.setattr(manager_module, "HEALTH_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(manager, "_check_health", lambda: asyncio.sleep(0))
    manager.app = AppSettings(rollouts=RolloutPolicy(max_attempts=3, poll_seconds=0.01, span_deadline_seconds=0.1))
    manager.queue({uid: json.dumps(TASK) for uid in "abc"}, "train", 3)
    if answered:
        roll_out(manager, 1.0)
    for _ in range(2 * N):
        roll_out(manager, NO_PLACE)
    with pytest.raises(UserError, match=r"chat template.*the calls of the first 8 rollouts") if ends else nullcontext():
        for _ in range(20):
            manager.wait(0.05)


def test_versions_tell_how_old_a_sample_is(manager: RolloutManager, queue: Queue) -> None:
    manager.queue({"g": json.dumps(TASK)}, "train", 3)
    roll_out(manager, 1.0)
    manager.weights_changed()
    for reward in (0.0, 1.0, 0.0):
        roll_out(manager, reward)
    wait_for(manager, "g")
    tag = queue.tags["g_0_0"]
    assert (tag["min_global_steps"], tag["max_global_steps"], tag["global_steps"]) == (0, 1, 3)
    assert manager.proxy.voided == 1  # type: ignore[attr-defined]


def test_validation_is_greedy_and_leaves_no_rows(manager: RolloutManager, queue: Queue) -> None:
    import threading

    def answer() -> None:
        for reward in (1.0, 0.0, 1.0):
            roll_out(manager, reward)

    thread = threading.Thread(target=answer)
    thread.start()
    finished = manager.validate([json.dumps(TASK)] * 3, 5)
    thread.join()
    assert sorted(one.reward["reward"] for one in finished) == [0.0, 1.0, 1.0]
    assert manager.proxy.sampled_with == {"temperature": 0.0}  # type: ignore[attr-defined]
    assert not queue.fields and not manager.groups


def buffer(manager: RolloutManager, refill: Callable[[int], int], rounds: int, *changes: str) -> Any:
    overrides = ["algorithm.filter_groups.enable=true", "data.train_batch_size=2", *changes]
    overrides += ["actor_rollout_ref.actor.ppo_mini_batch_size=2"]
    tree = OmegaConf.create(resolve("cpu", task="vqa", model=checkpoint_dir(), variants=["filter_groups"]).verl)
    OmegaConf.set_struct(tree, False)
    for override in overrides:
        key, _, value = override.partition("=")
        OmegaConf.update(tree, key, json.loads(value))
    made = replay_buffer(tree, FilterGroups(enable=True, max_rounds=rounds), refill)
    made.rollouts = manager
    return made


def test_groups_without_spread_are_drawn_anew_a_bounded_number_of_times(
    manager: RolloutManager, queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewards of 0.9: their standard deviation in floating point is not zero, which verl's own test asks for."""
    train(manager, [0.9] * N, [0.9] * N)
    drawn: list[int] = []

    def refill(count: int) -> int:
        drawn.append(count)
        for _ in range(count):
            uid = f"r{sum(drawn)}{len(manager.groups)}"
            manager.queue({uid: json.dumps(TASK)}, "train", 3)
            queue.tags[uid] = {"is_prompt": True, "status": "pending", "global_steps": 3}
            for _ in range(N):
                roll_out(manager, 0.9)
            wait_for(manager, uid)
        return count

    for uid in ("g0", "g1"):
        queue.tags[uid] |= {"is_prompt": True, "global_steps": 3}
    sampler = buffer(manager, refill, 3)
    batch, _ = sampler.sample(global_steps=3, partition_id="train", batch_size=2)
    assert len({key.rsplit("_", 2)[0] for key in batch.keys}) == 2 and sampler.gen_batch_size == 1
    filtered = [uid for uid, why in sampler.thrown_away.items() if why is GroupDrop.NO_SPREAD]
    assert len(filtered) == 4, "two rounds of two groups each, and the third is kept as it is"
    records = StepRecords(RunLog(tmp_path / "run"), manager, Integrity())
    metrics = records.take(sampler, 3)
    assert metrics["train/groups_dropped/group_filtered"] == 4
    logged: list[Any] = []
    monkeypatch.setattr(steps_module, "write_tool_logs", lambda folder, records: logged.extend(records))
    records.write()
    assert len(logged) == 6 * N, "the tools' logs are of the same rollouts"
    lines = read_jsonl(tmp_path / "run" / ROLLOUTS)[0]
    assert {one["dropped"] for one in lines} >= {"", "group_filtered"}


def known_to_verl(queue: Queue, **queued_at: int) -> None:
    """Make the groups prompts of verl's own, queued at these steps."""
    for uid, step in queued_at.items():
        queue.tags[uid] |= {"is_prompt": True, "global_steps": step}


def no_more(count: int) -> int:
    return 0


@pytest.mark.parametrize("mode", ["sync", "separate_async"])
def test_groups_that_are_thrown_away_say_why(mode: str, manager: RolloutManager, queue: Queue, tmp_path: Path) -> None:
    """Both of verl's buffers on six groups of which a batch of two is taken."""
    spread, equal, lost = [1.0, 0.0, 0.5, 0.0], [0.9] * N, [(0.5, [MISSING])] * N
    first, second, third, same, gone, old = train(manager, spread, spread, spread, equal, lost, spread)
    known_to_verl(queue, g0=8, g1=8, g2=9, g3=8, g4=9, g5=1)
    sampler = buffer(
        manager, no_more, 3, f'trainer.v1.trainer_mode="{mode}"', "trainer.v1.sampler.max_off_policy_threshold=4"
    )
    if mode == "sync":  # nothing is ever stale there, and what failed counts in its step
        queue.tags.pop(old)
    sampler.sample(global_steps=9, partition_id="train", batch_size=2)
    thrown_away: dict[str, dict[str, Any]] = {
        "sync": {same: "group_filtered", third: "group_surplus", gone: "group_surplus"},
        "separate_async": {same: "group_filtered", gone: None, old: "group_stale"},
    }
    expected = thrown_away[mode]
    assert sampler.selected == {first, second} and sampler.thrown_away == expected
    records = StepRecords(RunLog(tmp_path / "run"), manager, Integrity(drop_rate=0.9))
    metrics = records.take(sampler, 9)
    dropped = Counter(reason for reason in expected.values() if reason)
    assert {k.rsplit("/", 1)[1]: v for k, v in metrics.items() if "groups_dropped" in k} == dropped
    assert metrics["train/samples_dropped"] == (0 if mode == "sync" else N), (
        "a group that was lost whole counts as lost"
    )
    records.write()
    records.write_rest()
    recorded = {(one["group"], one["dropped"]) for one in read_jsonl(tmp_path / "run" / ROLLOUTS)[0]}
    waiting = {old: "run_ended"} if mode == "sync" else {third: "run_ended"}
    own = "unreadable_image"  # a rollout's own reason goes before its group's
    assert recorded == {(first, ""), (second, ""), *expected.items(), *waiting.items(), (gone, own)} - {
        (gone, "group_surplus"), (gone, None),
    }  # fmt: skip


PROVOKED: dict[RolloutFailure | SampleDrop, list[Any]] = {
    RolloutFailure.AGENT_ERROR: ["KeyError: 'answers'"],
    RolloutFailure.MODEL_CALL: ["APITimeoutError: Request timed out."],
    RolloutFailure.NO_REWARD: ["UnusableReward: the agent emitted no reward"],
    RolloutFailure.NO_TRACE: [(0.5, [])],
    RolloutFailure.TIMEOUT: ["attempt: timeout"],
    RolloutFailure.UNRESPONSIVE: ["attempt: unresponsive"],
    RolloutFailure.DEADLINE: [],
    SampleDrop.EMPTY: [(0.5, [turn(tokens=0, logprobs=0)])],
    SampleDrop.NO_LOGPROBS: [(0.5, [turn(logprobs=1)])],
    SampleDrop.PROMPT_TOO_LONG: [(0.5, [turn(prompt=65)])],
    SampleDrop.UNREADABLE_IMAGE: [(0.5, [MISSING])],
    SampleDrop.IMAGE_TOKENS_DISAGREE: [(0.5, [turn(prompt=4, picture_tokens=1)])],
}
"""The outcome of a rollout by the reason that its record must name. The reasons of groups are provoked above."""


def test_an_answer_without_a_call_says_what_it_may_be(manager: RolloutManager, queue: Queue) -> None:
    """dspy's default cache ignores the address: four rollouts of a group make one request."""
    manager.n = 2
    manager.queue({"g": json.dumps(TASK)}, "train", 3)
    roll_out(manager, 1.0)
    roll_out(manager, 0.5, [])
    wait_for(manager, "g")
    reasons = {one.failure: one.reason for one in manager.groups["g"].finished.values()}
    assert reasons == {None: "", RolloutFailure.NO_TRACE: NO_CALL}
    assert "cache of the client's?" in NO_CALL


@pytest.mark.parametrize("reason", [*RolloutFailure, *SampleDrop])
def test_every_reason_is_written(
    reason: RolloutFailure | SampleDrop, manager: RolloutManager, queue: Queue, tmp_path: Path
) -> None:
    manager.n = 2
    manager.queue({"g": json.dumps(TASK)}, "train", 3)
    roll_out(manager, 1.0)
    for outcome in PROVOKED[reason]:
        roll_out(manager, *(outcome if isinstance(outcome, tuple) else (outcome,)))
    if reason is RolloutFailure.DEADLINE:
        while not manager.groups["g"].finished:
            manager.wait(0.05)
        manager._last_progress = -1e9
    wait_for(manager, "g")
    records = StepRecords(RunLog(tmp_path / "run"), manager, Integrity(drop_rate=0.9))
    records.take(Buffer("g"), 3)
    records.write()
    good, bad = sorted(read_jsonl(tmp_path / "run" / ROLLOUTS)[0], key=lambda one: one["failure"] + one["dropped"])
    assert good["failure"] == good["dropped"] == ""
    field = "failure" if isinstance(reason, RolloutFailure) else "dropped"
    assert bad[field] == reason.value and bad["image_paths"] == TASK["image_paths"]


def test_every_reason_of_a_group_is_provoked() -> None:
    assert set(GroupDrop) == {"group_filtered", "group_surplus", "group_stale", "run_ended"}
