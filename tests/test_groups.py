"""A group asks once: which calls are joined, what each rollout gets, and that the choices are independent samples."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp
import openai
import pytest
from agentlightning.types import AttemptedRollout, EnqueueRolloutRequest
from scipy import stats

from scripts import fake_backend
from scripts.engine_stack import Stack, running_stack
from tests.chat import chat
from vision_rl.agent.messages import user_message
from vision_rl.agent.openai_client import shared_client
from vision_rl.rollout.chat_request import CallError, ChatRequest
from vision_rl.rollout.groups import Groups
from vision_rl.rollout.store_link import Membership
from vision_rl.rollout.trace import turns_from_spans

SAMPLED = {"temperature": 1.0}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("pictures")) as running:
        yield running


def group(stack: Stack, name: str, size: int = 8) -> list[tuple[AttemptedRollout, str]]:
    """The claimed rollouts of a new group, with their addresses."""
    return claimed_of(stack, [name] * size)


def claimed_of(stack: Stack, names: Sequence[str]) -> list[tuple[AttemptedRollout, str]]:
    """Claimed rollouts of the groups with these names, with their addresses."""
    requests = [EnqueueRolloutRequest(input={}, metadata={"data_id": name}) for name in names]
    stack.call(stack.store.enqueue_many_rollouts(requests))
    rollouts = stack.call(stack.memory.dequeue_many_rollouts(limit=len(names)))
    return [
        (rollout, f"{stack.address}/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}/v1")
        for rollout in rollouts
    ]


def asked(stack: Stack) -> list[int]:
    """The `n` of every request that reached the model server so far."""
    return list(stack.stats()["n"])


def call(addresses: Sequence[str], texts: Sequence[str], **parameters: Any) -> list[Any]:
    """One call per address at the same time: completions, or what they failed with."""

    async def all_of_them() -> list[Any]:
        calls = [
            chat(address, fake_backend.MODEL, [user_message(text)], timeout_seconds=20, **{**SAMPLED, **parameters})
            for address, text in zip(addresses, texts, strict=True)
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(all_of_them())


def test_a_group_asks_once_and_each_rollout_has_its_own_choice_and_trace(stack: Stack) -> None:
    claimed, before = group(stack, "together"), len(asked(stack))
    replies = call([address for _, address in claimed], ["DICE"] * 8, logprobs=True)
    assert asked(stack)[before:] == [8]
    assert len({reply.id for reply in replies}) == 8
    for (rollout, _), reply in zip(claimed, replies, strict=True):
        [turn] = turns_from_spans(stack.spans(rollout))
        assert turn.text == reply.choices[0].message.content == f"face {turn.response_ids[0] - 9}"
        assert turn.prompt_ids == fake_backend.prompt_ids(1)
        assert len(turn.logprobs) == len(reply.choices[0].logprobs.content) == 1
        assert reply.choices[0].index == 0 and reply.usage.completion_tokens == 1


def test_rollouts_that_come_one_after_the_other_find_their_choice_waiting(stack: Stack) -> None:
    """As with two runners for a group of eight."""
    claimed, before = group(stack, "in turn"), len(asked(stack))
    for _, address in claimed:
        call([address], ["DICE"])
    assert asked(stack)[before:] == [8]


def test_other_groups_are_not_joined(stack: Stack) -> None:
    one, other, before = group(stack, "one", 3), group(stack, "other", 3), len(asked(stack))
    call([address for _, address in one + other], ["DICE"] * 6)
    assert asked(stack)[before:] == [3, 3]


@pytest.mark.parametrize(
    "parameters", [{"temperature": 0.0}, {"seed": 7}, {"temperature": None}], ids=["greedy", "seed", "not said"]
)
def test_what_is_not_sampled_freely_is_asked_alone(stack: Stack, parameters: dict[str, Any]) -> None:
    claimed, before = group(stack, f"alone {parameters}", 3), len(asked(stack))
    call([address for _, address in claimed], ["hello"] * 3, **parameters)
    assert asked(stack)[before:] == [1, 1, 1]


def test_rollouts_without_a_group_are_asked_alone(stack: Stack) -> None:
    before = len(asked(stack))
    call([stack.claim()[1] for _ in range(3)], ["hello"] * 3)
    assert asked(stack)[before:] == [1, 1, 1]


def test_later_turns_are_joined_only_where_they_are_equal_and_come_together(stack: Stack) -> None:
    claimed = group(stack, "turns", 4)
    addresses = [address for _, address in claimed]
    call(addresses, ["first"] * 4)
    before = len(asked(stack))
    replies = call(addresses, ["same", "same", "same", "another"])
    assert not any(isinstance(reply, Exception) for reply in replies)
    later = asked(stack)[before:]
    assert sum(later) == 4 and len(later) < 4, later
    assert [len(turns_from_spans(stack.spans(rollout))) for rollout, _ in claimed] == [2] * 4


def test_a_joint_request_that_fails_is_asked_for_again_alone(stack: Stack) -> None:
    claimed, before = group(stack, "fails", 4), len(asked(stack))
    replies = call([address for _, address in claimed], ["FAULTN"] * 4)
    assert [reply.choices[0].message.content for reply in replies] == [fake_backend.REPLY] * 4
    assert asked(stack)[before:] == [4, 1, 1, 1, 1]


@pytest.mark.slow
def test_a_choice_that_is_cut_is_asked_for_again_alone(stack: Stack) -> None:
    claimed, before = group(stack, "cut", 4), len(asked(stack))
    replies = call([address for _, address in claimed], ["SLEEP1 CUT"] * 4)
    assert [reply.choices[0].finish_reason for reply in replies] == ["stop"] * 4
    assert asked(stack)[before:] == [4, 1, 1, 1]


def test_a_client_that_leaves_takes_nobody_with_it(stack: Stack) -> None:
    claimed = group(stack, "leaves", 3)

    async def once(address: str, seconds: float) -> Any:
        client = shared_client().with_options(base_url=address, max_retries=0, timeout=seconds)
        messages: Any = [user_message("SLEEP1")]
        return await client.chat.completions.create(model=fake_backend.MODEL, messages=messages, temperature=1.0)

    async def work() -> list[Any]:
        calls = [once(address, seconds) for (_, address), seconds in zip(claimed, [0.5, 20, 20], strict=True)]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, *others = asyncio.run(work())
    assert isinstance(first, openai.APITimeoutError)
    assert [reply.choices[0].message.content for reply in others] == [fake_backend.REPLY] * 2


def test_new_weights_drop_what_was_sampled_ahead(stack: Stack) -> None:
    claimed, before = group(stack, "weights", 4), len(asked(stack))
    call([claimed[0][1]], ["DICE"])
    stack.proxy.weights_changed()
    for _, address in claimed[1:]:
        call([address], ["DICE"])
    assert asked(stack)[before:] == [4, 3]


def thrown(addresses: Sequence[str]) -> Counter[str]:
    """The replies to one call per address, all at once, without the costs of OpenAI's client."""
    body = {"model": fake_backend.MODEL, "messages": [user_message("DICE")], **SAMPLED}

    async def throw(session: aiohttp.ClientSession, address: str) -> str:
        async with session.post(f"{address}/chat/completions", json=body) as response:
            return str((await response.json())["choices"][0]["message"]["content"])

    async def all_of_them() -> list[str]:
        async with aiohttp.ClientSession() as session:
            return await asyncio.gather(*(throw(session, address) for address in addresses))

    return Counter(asyncio.run(all_of_them()))


@pytest.mark.slow
def test_choices_of_joint_requests_are_distributed_as_single_ones(stack: Stack) -> None:
    """2,000 samples each way of a die with six faces; p below 0.001 would be chance once in a thousand runs."""
    joint, alone = Counter[str](), Counter[str]()
    before = len(asked(stack))
    for number in range(32):
        joint += thrown([address for _, address in group(stack, f"die {number}", 64)])
    assert asked(stack)[before:] == [64] * 32
    for number in range(32):
        alone += thrown([address for _, address in claimed_of(stack, [f"{number} {name}" for name in range(64)])])
    faces = sorted(joint | alone)
    assert len(faces) == 6 and joint.total() == alone.total() == 2048
    table = [[counts[face] for face in faces] for counts in (joint, alone)]
    assert stats.chi2_contingency(table).pvalue > 0.001


# The rules without a server


class Model:
    """Answers with numbered choices and notes the `n` of each request."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def ask(self, request: ChatRequest, refs: list[str], n: int) -> dict[str, Any]:
        self.asked.append(n)
        await asyncio.sleep(0.01)
        if request.body.get("user") == "HANG":
            await asyncio.sleep(3600)
        return {"id": "x", "choices": [{"index": i, "finish_reason": "stop", "token_ids": [i]} for i in range(n)]}


async def membership(rollout_id: str) -> Membership | None:
    """Rollouts "a 0" to "a 7" are the group "a"."""
    name = rollout_id.split()[0]
    if name == "unknown":
        raise CallError(404, "there is no such rollout")
    return Membership(name, [f"{name} {number}" for number in range(8)])


async def reply(groups: Groups, rollout_id: str, key: str, **body: Any) -> dict[str, Any]:
    request = ChatRequest({**SAMPLED, **body})
    return await groups.reply(rollout_id, key.encode(), request, [])


def test_nothing_is_left_behind_when_a_group_is_through() -> None:
    async def work() -> None:
        model = Model()
        groups = Groups(membership, model.ask)
        replies = await asyncio.gather(*(reply(groups, f"a {number}", "q") for number in range(8)))
        assert sorted(one["choices"][0]["token_ids"][0] for one in replies) == list(range(8))
        assert model.asked == [8] and not groups._pools
        with pytest.raises(CallError):
            await reply(groups, "unknown 1", "q")

    asyncio.run(work())


@pytest.mark.slow
def test_asking_ahead_stops_where_first_calls_differ() -> None:
    """Agents that ask each rollout of a group something else: at most a few choices may be wasted."""

    async def work() -> None:
        model = Model()
        groups = Groups(membership, model.ask)
        for name in map(str, range(20)):
            for number in range(8):
                await reply(groups, f"{name} {number}", f"{name} {number}")
        assert sum(model.asked) < 20 * 8 + 3 * 8, model.asked
        assert model.asked[-50:] == [1] * 50

    asyncio.run(work())


def test_the_oldest_group_is_forgotten_and_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision_rl.rollout.groups.MAX_GROUPS", 2)

    async def work() -> None:
        model = Model()
        groups = Groups(membership, model.ask)
        for name in "abc":  # each group's first call asks for all eight
            await reply(groups, f"{name} 0", name)
        assert list(groups._groups) == ["b", "c"] and model.asked == [8, 8, 8]
        for name in "cb":
            await reply(groups, f"{name} 1", name)
        assert model.asked == [8, 8, 8], "what is remembered is not asked for"
        await reply(groups, "a 1", "a")
        assert model.asked[3:] == [1], "a forgotten group's rollout asks for itself"

    asyncio.run(work())


def test_the_oldest_rollouts_are_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision_rl.rollout.groups.MAX_GROUPS", 1)  # sixteen rollouts: two groups of eight
    looked_up: list[str] = []

    async def counted(rollout_id: str) -> Membership | None:
        looked_up.append(rollout_id)
        return await membership(rollout_id)

    async def work() -> None:
        groups = Groups(counted, Model().ask)
        for name in "abc":
            assert await groups._group_id(f"{name} 0") == name
        for rollout in ("c 7", "b 7", "c 3"):
            await groups._group_id(rollout)
        assert looked_up == ["a 0", "b 0", "c 0"], "the sixteen that came last"
        await groups._group_id("a 7")
        assert looked_up[3:] == ["a 7"]

    asyncio.run(work())


def test_the_oldest_choices_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision_rl.rollout.groups.MAX_POOLS", 2)

    async def work() -> None:
        groups = Groups(membership, Model().ask)
        for name in "abc":
            await reply(groups, f"{name} 0", name)
        assert [group for group, _ in groups._pools] == ["b", "c"]

    asyncio.run(work())


def test_a_request_for_which_nobody_waits_any_more_is_cancelled() -> None:
    async def work() -> None:
        model = Model()
        groups = Groups(membership, model.ask)
        waiting = [asyncio.create_task(reply(groups, f"a {number}", "q", user="HANG")) for number in range(2)]
        await asyncio.sleep(0.05)
        [pool] = groups._pools.values()
        [batch] = pool.batches
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.sleep(0)
        assert batch.cancelled() and not groups._pools
        assert (await reply(groups, "a 2", "q"))["choices"]  # the next one is not lost with it

    asyncio.run(work())
