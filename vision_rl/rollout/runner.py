"""Agent Lightning's runner, with rollouts that end in one request and failures that have a reason.

Subclasses 0.3.0's `LitAgentRunner` (runner/agent.py). What it changes, and why:
- emitted rewards are kept and sent with the end of the attempt; upstream exports each as an OpenTelemetry span with a
  blocking request of its own (3 ms of CPU), and reports the end with another;
- an agent that returns nothing usable has failed: upstream counts None without a reward, and NaN, as a success;
- `sys.exit()` in an agent fails its attempt; upstream calls that a success and lets it stop every runner;
- the reason of a failure is kept with the attempt, for the report.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from agentlightning import LitAgentRunner, emit_reward, get_rewards_from_span
from agentlightning.tracer.base import with_active_tracer_context
from agentlightning.tracer.dummy import DummyTracer
from agentlightning.types import AttemptedRollout, Span, SpanCoreFields
from opentelemetry.sdk.trace import ReadableSpan

from vision_rl.rollout.http_auth import without_keys
from vision_rl.rollout.trace import MAX_REWARD, UnusableReward, is_reward

logger = logging.getLogger(__name__)

MAX_REASON = 300
"""Characters of a failure's reason."""


class KeepingTracer(DummyTracer):
    """Keeps what an agent emits until the runner sends it; OpenTelemetry is not involved."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[SpanCoreFields] = []

    @with_active_tracer_context
    @asynccontextmanager
    async def trace_context(self, *args: Any, **kwargs: Any) -> AsyncIterator[KeepingTracer]:
        self.spans = []
        yield self

    def create_span(self, *args: Any, **kwargs: Any) -> SpanCoreFields:
        span = super().create_span(*args, **kwargs)
        self.spans.append(span)
        return span

    @contextmanager
    def operation_context(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with super().operation_context(*args, **kwargs) as context:
            yield context
        self.spans.append(context.get_recorded_span())

    def get_last_trace(self) -> list[Span]:
        return []


class VisionRunner(LitAgentRunner[Any]):
    """Runs one rollout at a time; many of these processes make up a machine's runners."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(KeepingTracer(), **kwargs)
        self._logged: set[str] = set()  # kinds of errors

    def get_worker_id(self) -> str:
        """Distinct over machines, and over groups of runners on one machine."""
        return worker_name(self.worker_id, os.getppid())

    async def _step_impl(self, next_rollout: AttemptedRollout, raise_on_exception: bool = False) -> str:
        store: Any = self.get_store()
        spans: list[SpanCoreFields] = []
        raised: BaseException | None = None
        failure = ""
        await self._trigger_hooks("on_rollout_start", agent=self.get_agent(), runner=self, rollout=next_rollout)
        try:
            spans = await self._run_agent(next_rollout)
        except (Exception, SystemExit) as error:
            self._log_once(next_rollout.rollout_id, error)
            raised, failure = error, without_keys(f"{type(error).__name__}: {error}")[:MAX_REASON]
        finally:
            await self._trigger_hooks(
                "on_rollout_end", agent=self.get_agent(), runner=self, rollout=next_rollout, spans=spans
            )
        try:
            await store.record(
                next_rollout.rollout_id,
                next_rollout.attempt.attempt_id,
                spans,
                "failed" if failure else "succeeded",
                failure,
            )
        except Exception:  # the store's own deadlines will end the attempt, and another runner gets it
            logger.exception("the end of rollout %s could not be reported", next_rollout.rollout_id)
        if raised is not None and raise_on_exception:
            raise raised
        return next_rollout.rollout_id

    def _log_once(self, rollout_id: str, error: BaseException) -> None:
        """Say once for each kind of error what happened, with its traceback if it may be the agent's own fault.

        The others stand in rollouts.jsonl: when a server dies, the sentence that says so must not drown.
        """
        kind = type(error).__name__
        if kind not in self._logged:
            self._logged.add(kind)
            of_the_call = type(error).__module__.startswith("openai")
            text = "rollout %s failed: %s: %s; rollouts.jsonl has the others that fail so"
            logger.error(text, rollout_id, kind, error, exc_info=not of_the_call)

    async def _run_agent(self, rollout: AttemptedRollout) -> list[SpanCoreFields]:
        """Call the agent; returns what it emitted. Raises what it raises, and `UnusableReward`."""
        agent, tracer = self.get_agent(), self.tracer
        assert isinstance(tracer, KeepingTracer)
        store = self.get_store()
        wanted = rollout.resources_id
        update = await (store.get_resources_by_id(wanted) if wanted else store.get_latest_resources())
        if update is None:
            raise LookupError(f"there are no resources {wanted or ''}")
        async with tracer.trace_context(rollout_id=rollout.rollout_id, attempt_id=rollout.attempt.attempt_id):
            hook: dict[str, Any] = {"agent": agent, "runner": self, "tracer": tracer, "rollout": rollout}
            await self._trigger_hooks("on_trace_start", **hook)
            training = rollout.mode == "train"
            if agent.is_async():
                method = agent.training_rollout_async if training else agent.validation_rollout_async
                result = await method(rollout.input, resources=update.resources, rollout=rollout)
            else:
                call = agent.training_rollout if training else agent.validation_rollout
                result = call(rollout.input, resources=update.resources, rollout=rollout)
            await self._trigger_hooks("on_trace_end", **hook)
        if isinstance(result, int | float):
            tracer.spans.append(emit_reward(float(result), propagate=False))
        elif result is not None:
            tracer.spans.extend(_returned_spans(result))
        check_reward(tracer.spans)
        return tracer.spans


def _returned_spans(result: Any) -> list[SpanCoreFields]:
    """The spans that an agent returned, of any of Agent Lightning's three kinds. Raises `TypeError` for anything else."""
    if not isinstance(result, list) or not all(isinstance(one, ReadableSpan | Span | SpanCoreFields) for one in result):
        raise TypeError(f"an agent must return None, a number or a list of spans, not {type(result).__name__}")
    named = dict.fromkeys(("rollout_id", "attempt_id"), "")
    spans = [
        Span.from_opentelemetry(one, **named, sequence_id=0) if isinstance(one, ReadableSpan) else one for one in result
    ]
    return [SpanCoreFields(**{name: getattr(one, name) for name in SpanCoreFields.model_fields}) for one in spans]


def check_reward(spans: list[SpanCoreFields]) -> None:
    """Raise `UnusableReward` unless the last reward is there, and finite and not too large in all its parts."""
    rewards: list[Any] = []
    for span in spans:
        rewards = get_rewards_from_span(span) or rewards  # type: ignore[arg-type]
    if not rewards:
        raise UnusableReward("the agent emitted no reward")
    wrong = [reward.name for reward in rewards if not is_reward(reward.value)]
    if wrong:
        raise UnusableReward(f"the reward is not a finite number within +-{MAX_REWARD:g}: {', '.join(wrong)}")


def worker_name(index: int | None, supervisor: int) -> str:
    """The name under which runner `index` of a supervisor process of this machine claims its rollouts."""
    return f"{socket.gethostname()}-{supervisor}-{index if index is not None else 'x'}"
