"""Run rows through an agent's `answer`, many at a time, until each is scored or has failed for good."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import openai

from vision_rl.agent.client import openai_base_url
from vision_rl.agent.environment import watched
from vision_rl.agent.keeper import EnvironmentFailed
from vision_rl.agent.openai_client import shared_client
from vision_rl.agent.replay import acted_at, strip
from vision_rl.errors import UserError
from vision_rl.evaluation.results import EvaluationStore, disk_errors
from vision_rl.evaluation.traffic import Traffic, Usage, metered, retry_after
from vision_rl.files import replacing
from vision_rl.settings import AgentSettings
from vision_rl.types import LLM, Record, Reward

Answer = Callable[[dict[str, Any], LLM], Awaitable[tuple[str, Reward]]]
Row = dict[str, Any]
EPISODES = "episodes"
"""Folder with a strip of pictures for each episode of an environment."""
_LONGEST_BACKOFF = 30.0
_REFUSED = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)


@dataclass(frozen=True)
class Limits:
    """How hard the runner tries.

    attempts: tries of one row after errors of the server or the network. rate_limit_seconds: how long one row may be
    refused with 429 before it fails; such refusals are no attempts. failures: rows that fail one after the other before
    the run stops, since then it is the server and not the row.
    """

    concurrency: int = 16
    attempts: int = 3
    rate_limit_seconds: float = 900.0
    failures: int = 8


def record_of(
    number: int, row: Row, reply: str, reward: Reward | None, failure: str, usage: Usage, seconds: float
) -> Record:
    """One line of rows.jsonl: the row, what was answered, how it scored and what it took.

    seconds: from the first try to the end, pauses included (usage.seconds holds the model's own time).
    """
    kept: tuple[str, ...] = (
        "id",
        "task",
        "metric",
        "question",
        "image_paths",
        "choices",
        "answers",
        "boxes",
        "labels",
        "image_sizes",
    )
    kept += ("source", "meta")
    return {
        "row": number,
        **{key: row[key] for key in kept if key in row},
        "reply": reply,
        "reward": reward.value if reward else None,
        "components": reward.components if reward else {},
        "failure": failure,
        "usage": asdict(usage),
        "seconds": seconds,
    }


async def check_endpoint(endpoint: str, model: str) -> None:
    """Raise `UserError` if nothing answers at `endpoint` or it says that it does not serve `model`.

    A server without a list of models passes: the first request will tell.
    """
    client = shared_client().with_options(base_url=openai_base_url(endpoint), timeout=30.0, max_retries=1)
    try:
        served = [entry.id for entry in (await client.models.list()).data]
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        raise UserError(f"nothing answers at {endpoint} ({cause}); start the server or check the address") from error
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise UserError(f"{endpoint} refuses the key ({_said(error)}); set OPENAI_API_KEY") from error
    except (openai.OpenAIError, TypeError, AttributeError):
        return
    if served and model not in served:
        shown = ", ".join(served[:8]) + (", ..." if len(served) > 8 else "")
        raise UserError(f"{endpoint} does not serve a model {model!r}; it serves {shown}: correct --model")


async def run_rows(
    rows: Sequence[tuple[int, Row]],
    answer: Answer,
    llm: LLM,
    store: EvaluationStore,
    *,
    limits: Limits,
    prepare: Callable[[Row], Row],
    on_done: Callable[[Record], None],
) -> float:
    """Score every (row number, row) and keep its record; returns the seconds of the pauses that the server asked for.

    `prepare` makes the agent's task of a row (settings, shrunk pictures) in a thread. Raises `UserError` for what no
    retry mends; the rows that were finished before are in the store.
    """
    queue = iter(rows)
    failed_in_a_row = 0

    async def worker() -> None:
        nonlocal failed_in_a_row
        for number, row in queue:
            record = await _one(number, row, answer, llm, limits, prepare, store.directory)
            store.add(record)
            on_done(record)
            failed_in_a_row = failed_in_a_row + 1 if record["failure"] else 0
            if failed_in_a_row >= limits.failures:
                raise UserError(
                    f"{failed_in_a_row} rows failed one after the other, the last with: {record['failure']}; "
                    "mend that and run the same command again: finished rows are kept"
                )

    with Traffic().attached() as traffic:
        workers = [asyncio.ensure_future(worker()) for _ in range(min(limits.concurrency, len(rows)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
    return traffic.paused_seconds


async def _one(
    number: int, row: Row, answer: Answer, llm: LLM, limits: Limits, prepare: Callable[[Row], Row], folder: Path
) -> Record:
    started = time.monotonic()
    with metered() as usage:
        task = await asyncio.to_thread(prepare, row)
        with watched() as turns:
            reply, reward, failure = await _tried(task, answer, llm, limits)
    record = record_of(number, row, reply, reward, failure, usage, time.monotonic() - started)
    if turns:
        kept = folder / EPISODES / f"{number}.png"
        with disk_errors(kept), replacing(kept) as temporary:
            shown = [(picture, acted_at(said, AgentSettings.of(task), picture.size)) for picture, said in turns]
            strip(shown).save(temporary, format="PNG")
        record = {**record, "replies": [said for _, said in turns], "episode": str(kept)}
    return record


async def _tried(task: Row, answer: Answer, llm: LLM, limits: Limits) -> tuple[str, Reward | None, str]:
    """(reply, reward, "") or ("", None, why it failed)."""
    attempt, refusals, deadline = 0, 0, time.monotonic() + limits.rate_limit_seconds
    while True:
        try:
            reply, reward = await answer(task, llm)
            return reply, reward, ""
        except openai.RateLimitError as error:
            if error.code == "insufficient_quota":
                raise UserError(f"{llm.endpoint}: the quota is spent ({_said(error)}); top it up and go on") from error
            refusals += 1
            wait = retry_after(error.response.headers)
            wait = _backoff(refusals) if wait is None else wait
            if time.monotonic() + wait > deadline:
                return "", None, f"rate limited for more than {limits.rate_limit_seconds:.0f} s: {_said(error)}"
        except _REFUSED as error:
            raise UserError(
                f"{llm.endpoint} refuses model {llm.model!r} ({_said(error)}); check --model and OPENAI_API_KEY"
            ) from error
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return "", None, f"the server refuses the request: {_said(error)}"
        except (openai.APIError, ValueError, EnvironmentFailed) as error:
            attempt += 1
            if attempt >= limits.attempts:
                return "", None, _failure(error)
            wait = _backoff(attempt)
        await asyncio.sleep(wait)


def _failure(error: Exception) -> str:
    """An error in a line; of a failed connection the cause, which its own text leaves out."""
    cause = str(error.__cause__ or "") if isinstance(error, openai.APIConnectionError) else ""
    return f"{type(error).__name__}: {error}" + (f" ({cause})" if cause else "")


def _said(error: openai.APIStatusError) -> str:
    """The server's own sentence, without the envelope that the client shows around it."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return str(said or error.message)


def _backoff(attempt: int) -> float:
    return min(_LONGEST_BACKOFF, 0.5 * 2.0**attempt) * random.uniform(0.75, 1.25)
