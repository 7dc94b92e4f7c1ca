"""What an agent may return to the runner, and what the store has of an agent that raises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import agentlightning as agl
import pytest
from agentlightning.types import LLM, Span, SpanCoreFields
from opentelemetry.sdk.trace import ReadableSpan

from vision_rl.rollout.runner import VisionRunner
from vision_rl.rollout.store import VisionStore
from vision_rl.rollout.trace import REWARD_SPAN_NAME, reward_attributes, reward_from_spans

ATTRIBUTES = reward_attributes({"reward": 0.75, "format": 1.0})


def of_the_store() -> Span:
    return Span.from_attributes(
        attributes=ATTRIBUTES, rollout_id="x", attempt_id="y", sequence_id=9, name=REWARD_SPAN_NAME
    )


def core() -> SpanCoreFields:
    return agl.emit_reward({"reward": 0.75, "format": 1.0}, primary_key="reward", propagate=False)


def emitted() -> None:
    agl.emit_reward({"reward": 0.75, "format": 1.0}, primary_key="reward")


def raises() -> None:
    raise RuntimeError("the browser did not start")


def stepped(result: Callable[[], Any]) -> tuple[Any, list[Any], BaseException | None]:
    """(attempt, its spans, what `step` raised) of an agent that returns this."""

    async def work() -> tuple[Any, list[Any], BaseException | None]:
        @agl.rollout
        async def agent(task: Any, llm: LLM) -> Any:
            return result()

        store, runner = VisionStore(), VisionRunner()
        runner.init(agent)
        runner.init_worker(0, store)
        raised: BaseException | None = None
        try:
            await runner.step({"a": 1}, resources={"main_llm": LLM(endpoint="http://127.0.0.1:9/v1", model="m")})
        except Exception as error:
            raised = error
        [rollout] = await store.query_rollouts()
        return (
            await store.get_latest_attempt(rollout.rollout_id),
            list(await store.query_spans(rollout.rollout_id)),
            raised,
        )

    return asyncio.run(work())


@pytest.mark.parametrize(
    ("result", "reward"),
    [
        (lambda: 0.5, {"primary": 0.5, "reward": 0.5}),
        (lambda: 1, {"primary": 1.0, "reward": 1.0}),
        (emitted, {"reward": 0.75, "format": 1.0}),
        (lambda: [core()], {"reward": 0.75, "format": 1.0}),
        (lambda: [of_the_store()], {"reward": 0.75, "format": 1.0}),
        (lambda: [ReadableSpan(name=REWARD_SPAN_NAME, attributes=ATTRIBUTES)], {"reward": 0.75, "format": 1.0}),
    ],
    ids=["a number", "a whole number", "nothing, emitted", "core spans", "spans", "OpenTelemetry's spans"],
)
def test_an_agent_may_return_what_agent_lightning_allows(result: Callable[[], Any], reward: dict[str, float]) -> None:
    attempt, spans, raised = stepped(result)
    assert raised is None and attempt.status == "succeeded"
    assert reward_from_spans(spans) == reward
    assert [(span.rollout_id, span.attempt_id, span.sequence_id) for span in spans] == [
        (attempt.rollout_id, attempt.attempt_id, 1)
    ]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (raises, "RuntimeError: the browser did not start"),
        (lambda: None, "UnusableReward: the agent emitted no reward"),
        (lambda: [], "UnusableReward: the agent emitted no reward"),
        (lambda: {"reward": 1.0}, "TypeError: an agent must return None, a number or a list of spans, not dict"),
        (lambda: [1.0], "TypeError: an agent must return None, a number or a list of spans, not list"),
        (lambda: float("nan"), "UnusableReward: the reward is not a finite number"),
    ],
    ids=["raises", "nothing", "no span", "a dictionary", "a list of numbers", "NaN"],
)
def test_a_step_that_fails_is_in_the_store_before_it_raises(result: Callable[[], Any], said: str) -> None:
    attempt, _, raised = stepped(result)
    assert attempt.status == "failed"
    assert attempt.metadata["failure"].startswith(said)
    assert raised is not None and f"{type(raised).__name__}: {raised}".startswith(said)
