"""A group asks once: equal calls of the rollouts of one group are one request to the model server with `n`.

GRPO asks the same question about the same picture `n` times. One request decodes the picture, runs the vision tower
and fills the prefix once; the choices of a request are independent samples, so each rollout takes one of them as its
own (tests/test_groups.py compares the distributions). What is joined:

- the first calls of a group's rollouts, byte for byte equal: the first of them asks for all that have not called yet,
  and the others find their choice waiting, whenever their runner comes to them;
- later calls only where equal ones come within `GATHER_SECONDS`: nobody knows whether their siblings will ask the same.

Never joined: other groups, other steps, calls with a seed, greedy ones, several choices. A choice that is cut, and
those of a request that failed, are asked for again alone. Where first calls of a group turn out to differ, asking ahead
would be wasted, and stops.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from vision_rl.rollout.chat_request import MAX_CHOICES, CallError, ChatRequest
from vision_rl.rollout.store_link import Membership

GATHER_SECONDS = 0.003
MAX_GROUPS, MAX_POOLS = 4096, 256
"""What is remembered; whatever is forgotten is asked for again. A pool may hold a picture of megabytes."""
_UNEQUAL_ALLOWED = 4
"""First calls that may differ from their group's before asking ahead depends on the share of equal ones."""

Ask = Callable[[ChatRequest, list[str], int], Awaitable[dict[str, Any]]]
"""(request, picture references, n) -> the model server's reply."""


class _Alone(Exception):
    """A waiter must ask for itself: its choice was cut, or the joint request failed."""


@dataclass
class _Pool:
    """The equal calls of a group: who waits, how many choices are on their way, and which nobody has taken yet."""

    request: ChatRequest
    refs: list[str]
    waiting: deque[asyncio.Future[dict[str, Any]]] = field(default_factory=deque)
    spare: deque[dict[str, Any]] = field(default_factory=deque)
    coming: int = 0
    gathering: bool = False
    failed: bool = False
    batches: set[asyncio.Task[None]] = field(default_factory=set)


@dataclass
class _Group:
    members: set[str]
    called: set[str] = field(default_factory=set)
    first: bytes = b""


class Groups:
    """Joins the calls of one proxy. `membership` asks the store, `ask` the model server."""

    def __init__(self, membership: Callable[[str], Awaitable[Membership | None]], ask: Ask) -> None:
        self._membership, self._ask = membership, ask
        self._groups: OrderedDict[str, _Group] = OrderedDict()
        self._group_of: OrderedDict[str, str | None] = OrderedDict()
        self._pools: OrderedDict[tuple[str, bytes], _Pool] = OrderedDict()
        self._equal = self._unequal = 0

    def forget_choices(self) -> None:
        """Drop the choices that nobody has taken: the model's weights have changed."""
        for pool in self._pools.values():
            pool.spare.clear()

    async def _group_id(self, rollout_id: str) -> str | None:
        if rollout_id not in self._group_of:
            found = await self._membership(rollout_id)
            if found is None:
                self._remember({rollout_id}, None)
            else:
                if found.group not in self._groups:
                    self._groups[found.group] = _Group(set(found.members))
                    if len(self._groups) > MAX_GROUPS:
                        self._groups.popitem(last=False)
                group = self._groups[found.group]
                group.members |= {rollout_id, *found.members}
                self._remember(group.members, found.group)
        return self._group_of[rollout_id]

    def _remember(self, rollout_ids: set[str], group: str | None) -> None:
        self._group_of.update(dict.fromkeys(rollout_ids, group))
        while len(self._group_of) > MAX_GROUPS * 16:
            self._group_of.popitem(last=False)

    async def reply(self, rollout_id: str, key: bytes, request: ChatRequest, refs: list[str]) -> dict[str, Any]:
        """The model server's reply with this rollout's own choice; `key` is equal for equal bodies.

        Raises `CallError` as the model server's client does, and 404 for a rollout that the store does not know.
        """
        group_id = await self._group_id(rollout_id) if _joinable(request.body) else None
        group = self._groups.get(group_id or "")
        if group_id is None or group is None:
            return await self._ask(request, refs, 1)
        ahead = self._ahead(group, rollout_id, key)
        pool = self._pools.setdefault((group_id, key), _Pool(request, refs))
        try:
            if pool.failed:
                raise _Alone
            return await self._choice(pool, ahead)
        except _Alone:
            return await self._ask(request, refs, 1)
        except asyncio.CancelledError:
            if not pool.waiting:  # everybody left: the server must not go on generating for nobody
                self._forget(group_id, key, pool)
                for batch in pool.batches:
                    batch.cancel()
            raise
        finally:
            expected = key == group.first and not group.called >= group.members
            if not (expected or pool.waiting or pool.spare or pool.batches):
                self._forget(group_id, key, pool)
            elif len(self._pools) > MAX_POOLS:
                self._pools.popitem(last=False)

    def _forget(self, group_id: str, key: bytes, pool: _Pool) -> None:
        if self._pools.get((group_id, key)) is pool:
            del self._pools[group_id, key]

    def _ahead(self, group: _Group, rollout_id: str, key: bytes) -> int:
        """For how many rollouts this call may ask: all that have not called yet, or 0 for as many as come now."""
        if rollout_id in group.called:
            return 0
        open_calls = len(group.members - group.called)
        group.called.add(rollout_id)
        if not group.first:
            group.first = key
        elif group.first == key:
            self._equal += 1
        else:
            self._unequal += 1
        wasteful = self._unequal > _UNEQUAL_ALLOWED + self._equal // 4
        return 0 if wasteful or key != group.first else min(open_calls, MAX_CHOICES)

    async def _choice(self, pool: _Pool, ahead: int) -> dict[str, Any]:
        if pool.spare:
            return pool.spare.popleft()
        mine: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        pool.waiting.append(mine)
        if pool.coming < len(pool.waiting) and not pool.gathering:
            pool.gathering, pool.coming = not ahead, pool.coming + ahead
            batch = asyncio.create_task(self._batch(pool, ahead))
            pool.batches.add(batch)
        try:
            return await mine
        finally:
            if mine in pool.waiting:
                pool.waiting.remove(mine)

    async def _batch(self, pool: _Pool, n: int) -> None:
        """Ask for `n` choices (0: for as many as wait in a moment) and hand them out; more than wait are kept."""
        if not n:
            await asyncio.sleep(GATHER_SECONDS)
            n = len(pool.waiting) - pool.coming
            pool.gathering, pool.coming = False, pool.coming + n
        replies: list[dict[str, Any] | None] = []
        try:
            replies = _split(await self._ask(pool.request, pool.refs, n)) if n else []
        except Exception as error:
            pool.failed = n > 1
            if n == 1:
                _give(pool, error)
                return
        finally:
            pool.coming -= n
            pool.batches.discard(asyncio.current_task())  # type: ignore[arg-type]
        for own in (replies + [None] * n)[:n]:
            if own is None:
                _give(pool, _Alone())
            elif not _give(pool, own):
                pool.spare.append(own)


def _give(pool: _Pool, result: dict[str, Any] | Exception) -> bool:
    """Hand a result to the one who waits longest; False if nobody does."""
    while pool.waiting:
        waiter = pool.waiting.popleft()
        if waiter.done():
            continue
        if isinstance(result, Exception):
            waiter.set_exception(result)
        else:
            waiter.set_result(result)
        return True
    return False


def _joinable(body: dict[str, Any]) -> bool:
    """Only samples may be joined: greedy choices would be equal, and vLLM refuses several of them."""
    return body.get("temperature", 0) > 0 and "seed" not in body and body.get("n", 1) == 1


def _split(reply: dict[str, Any]) -> list[dict[str, Any] | None]:
    """A reply of several choices as replies of one each; None for a choice that was cut off by the server."""
    choices = reply.get("choices")
    if not isinstance(choices, list):
        raise CallError(502, "the model server answered without choices")
    prompt = (reply.get("usage") or {}).get("prompt_tokens", 0)
    return [_single(reply, choice, prompt) for choice in choices]


def _single(reply: dict[str, Any], choice: Any, prompt: int) -> dict[str, Any] | None:
    if not isinstance(choice, dict) or choice.get("finish_reason") in (None, "abort", "error"):
        return None
    generated = len(choice.get("token_ids") or [])
    usage = {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
    identity = f"{reply.get('id', 'chatcmpl')}-{choice.get('index', 0)}"
    return {**reply, "id": identity, "choices": [{**choice, "index": 0}], "usage": usage}
