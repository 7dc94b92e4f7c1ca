"""A process's environments: made on demand, lent to one rollout at a time, replaced after a failure, closed at the end.

Each has a thread of its own, the only one that calls it: drivers of browsers and emulators are bound to the thread that made
them, and a call that hangs must not stop the process. `close` alone may come from another thread, after such a call.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing.util
import os
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import Any

from vision_rl.errors import UserError

CLOSE_SECONDS = 5.0
_REMEMBERED = 64


class EnvironmentFailed(RuntimeError):
    """An environment did not answer in time, or ended; the rollout is lost and may be tried again with a new one."""


class Instance:
    """One environment in its thread."""

    def __init__(self, make: Callable[[], Any], seconds: float) -> None:
        self.seconds, self.broken = seconds, False
        self.environment: Any = None
        self.pending: Future[Any] | None = None
        self._make = make
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="environment", daemon=True)
        self._thread.start()

    def submit(self, method: str, *arguments: Any, **named: Any) -> Future[Any]:
        """Call a method in the thread, after all that was submitted before."""

        def call() -> Any:
            if self.environment is None:
                self.environment = self._make()
            return getattr(self.environment, method)(*arguments, **named)

        future: Future[Any] = Future()
        self._calls.put((future, call))
        return future

    async def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """What a method gives, after the one that is pending. Raises `UserError` as it does, else `EnvironmentFailed`, which
        breaks the instance."""
        calls = [] if self.pending is None else [self.pending]
        self.pending = None
        for future in [*calls, self.submit(method, *arguments, **named)]:
            try:
                result = await asyncio.wait_for(asyncio.wrap_future(future), self.seconds)
            except UserError:
                raise
            except Exception as error:
                self.broken = True
                late = isinstance(error, TimeoutError) and not future.done()
                said = (
                    f"no answer to {method} within {self.seconds:g} s" if late else f"{type(error).__name__}: {error}"
                )
                raise EnvironmentFailed(said) from error
        return result

    def end(self) -> Callable[..., None]:
        """Have the environment closed in its thread; what is returned waits for that, and closes it from here if it hangs.

        No thread is started for it: a worker's process is ending, where none can be.
        """
        closing = None if self.environment is None else self.submit("close")
        self._calls.put(None)

        def wait(seconds: float = CLOSE_SECONDS) -> None:
            try:
                if closing is not None:
                    closing.result(seconds)
            except TimeoutError:
                with suppress(Exception):
                    self.environment.close()
            except Exception:  # it was broken before, and nobody waits for it
                return

        return wait

    def _serve(self) -> None:
        while (entry := self._calls.get()) is not None:
            future, call = entry
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)


class Keeper:
    """Up to `most` instances of one kind of environment in this process. seconds: the longest call."""

    def __init__(self, make: Callable[[], Any], most: int, seconds: float) -> None:
        self.make, self.most, self.seconds = make, most, seconds
        self._lock = threading.Lock()
        self._idle: list[Instance] = []
        self._all: set[Instance] = set()
        self._waiting: deque[Future[Instance]] = deque()
        self._first: OrderedDict[str, Any] = OrderedDict()  # episode -> its first observation

    @asynccontextmanager
    async def episode(self, seed: int, options: Mapping[str, Any]) -> AsyncIterator[tuple[Instance, Any]]:
        """(an instance for one rollout, the episode's first observation); waits while all instances are lent.

        An instance that breaks is closed and not lent again; one that breaks before the episode has begun is replaced once.
        Raises `EnvironmentFailed`.
        """
        instance = await self._take()
        try:
            try:
                observation = await self._begin(instance, seed, options)
            except EnvironmentFailed:
                self._give_back(instance)
                instance = await self._take()
                observation = await self._begin(instance, seed, options)
            yield instance, observation
        finally:
            self._give_back(instance)

    async def _begin(self, instance: Instance, seed: int, options: Mapping[str, Any]) -> Any:
        """The first observation of an episode.

        One that is remembered, and that the environment can repeat, is restored while the model looks at what was seen
        before: a group's rollouts share one picture, and none of them waits for its page.
        """
        episode = json.dumps([seed, options], sort_keys=True, default=str)
        known = self._first.get(episode)
        if known is not None and instance.environment is not None and instance.environment.repeats(options):
            instance.pending = instance.submit("restore", seed=seed, options=options)
            return known
        observation = await instance.call("reset", seed=seed, options=options)
        self._first[episode] = observation
        if len(self._first) > _REMEMBERED:
            self._first.popitem(last=False)
        return observation

    async def _take(self) -> Instance:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            if len(self._all) < self.most:
                return self._new()
            waiting: Future[Instance] = Future()
            self._waiting.append(waiting)
        return await asyncio.wrap_future(waiting)

    def _new(self) -> Instance:
        instance = Instance(self.make, self.seconds)
        self._all.add(instance)
        return instance

    def _give_back(self, instance: Instance) -> None:
        with self._lock:
            if instance.broken:
                self._all.discard(instance)
            while self._waiting:
                waiting = self._waiting.popleft()
                if waiting.set_running_or_notify_cancel():  # else whoever waited is gone
                    waiting.set_result(self._new() if instance.broken else instance)
                    break
            else:
                if not instance.broken:
                    self._idle.append(instance)
        if instance.broken:
            threading.Thread(target=instance.end(), daemon=True).start()

    def close(self) -> None:
        """Close all instances, lent ones included."""
        with self._lock:
            instances, self._all, self._idle = list(self._all), set(), []
        deadline = time.monotonic() + CLOSE_SECONDS
        for wait in [one.end() for one in instances]:
            wait(max(deadline - time.monotonic(), 0.1))


_keepers: dict[tuple[int, int], Keeper] = {}


def keeper_of(key: Any, make: Callable[[], Any], most: int, seconds: float) -> Keeper:
    """This process's keeper for a task; a forked process has its own."""
    mine = (os.getpid(), id(key))
    if mine not in _keepers:
        for other in [one for one in _keepers if one[0] != mine[0]]:
            del _keepers[other]  # the parent's, whose threads do not exist here
        if not _keepers:
            at_end(close_all)
        _keepers[mine] = Keeper(make, most, seconds)
    return _keepers[mine]


def at_end(call: Callable[[], None]) -> None:
    """Have `call` called when this process, a runner, a worker or an evaluation, has done its last rollout.

    To be said where an agent makes what must be closed: what was said before a runner was forked is not known there.
    """
    multiprocessing.util.Finalize(None, call, exitpriority=10)  # atexit does not run in forked children


def close_all() -> None:
    """Close the environments of this process."""
    for mine, keeper in list(_keepers.items()):
        if mine[0] == os.getpid():
            keeper.close()
            del _keepers[mine]
