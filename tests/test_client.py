"""The shared client: no request stalls, one client per event loop, addresses and proxies."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import openai
import pytest

from scripts import fake_backend
from tests.chat import chat
from tests.fake_openai import fake_openai
from vision_rl.agent.client import openai_base_url
from vision_rl.agent.messages import user_message
from vision_rl.agent.openai_client import shared_client
from vision_rl.errors import UserError
from vision_rl.rollout.addresses import free_port

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def backend() -> Iterator[str]:
    with fake_backend.running(free_port()) as address:
        yield address


def race(mode: str, address: str, requests: int) -> tuple[int, int]:
    """(requests made, requests stalled); the race runs in a process of its own and ends at the first stall."""
    command = [sys.executable, "-m", "tests.client_race", mode, address, str(requests)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    asked, stalled = done.stdout.split()
    return int(asked), int(stalled)


@pytest.mark.slow
def test_the_shared_client_stalls_none(backend: str) -> None:
    assert race("shared", backend, 500) == (500, 0)


def test_one_client_per_event_loop() -> None:
    async def two() -> bool:
        return shared_client() is shared_client()

    async def one() -> object:
        return shared_client()

    assert asyncio.run(two())
    first, second = asyncio.run(one()), asyncio.run(one())
    assert first is not second, "a closed loop's client must not be used by the next loop"


def test_a_rollouts_client_asks_no_thread_for_the_operating_system(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI's client does at its first request, and each rollout has a client: an eighth of its runner's time."""
    asked: list[object] = []

    async def to_thread(function: object, *_: object) -> str:
        asked.append(function)
        return "Linux"

    monkeypatch.setattr(asyncio, "to_thread", to_thread)
    completion = asyncio.run(chat(backend, fake_backend.MODEL, [user_message("hello")], timeout_seconds=5))
    assert completion.choices[0].message.content == fake_backend.REPLY
    assert not asked


@pytest.mark.parametrize(("trainer", "direct"), [(True, True), (False, False)])
def test_a_web_proxy_serves_the_world_and_not_the_way_to_the_trainer(
    trainer: bool, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)

    async def way() -> bool:
        client = shared_client(trainer=trainer)._client
        return client._transport_for_url(httpx.URL("http://10.0.0.5:8080/rollout/r")) is client._transport

    assert asyncio.run(way()) is direct


@pytest.mark.parametrize(
    "endpoint",
    ["http://host:1/rollout/r/attempt/a", "http://host:1/rollout/r/attempt/a/", "http://host:1/rollout/r/attempt/a/v1"],
)
def test_endpoints_with_and_without_v1(endpoint: str) -> None:
    assert openai_base_url(endpoint) == "http://host:1/rollout/r/attempt/a/v1"


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://host:1", "http://host:1/v1"),
        ("https://host/v1/", "https://host/v1"),
        ("https://host/v1beta/openai/", "https://host/v1beta/openai"),
    ],
)
def test_other_apis_keep_their_path(endpoint: str, expected: str) -> None:
    assert openai_base_url(endpoint) == expected


def test_a_reply_without_choices_is_an_error(backend: str) -> None:
    """OpenAI's client accepts it: status 200 and an empty list."""
    with pytest.raises(ValueError, match="without choices"):
        asyncio.run(chat(backend, fake_backend.MODEL, [user_message("NOCHOICES")], timeout_seconds=5))


def test_a_web_proxy_of_the_environment_is_not_used(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    completion = asyncio.run(chat(backend, fake_backend.MODEL, [user_message("hello")], timeout_seconds=5))
    assert completion.choices[0].message.content == fake_backend.REPLY


def completion_with(**choice: object) -> dict[str, object]:
    message = {"role": "assistant", "content": "red"}
    choices = [{"index": 0, "finish_reason": "stop", "message": message, **choice}]
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "fake", "choices": choices}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([], "no chat completion"),
        (None, "no chat completion"),
        ("please log in", "no chat completion"),
        ({**completion_with(), "choices": []}, "without choices"),
        (completion_with(message=None), "no text"),
        (completion_with(message={"content": [{"type": "text", "text": "red"}]}), "no text"),
        (completion_with(message={"content": 5}), "no text"),
    ],
)
def test_what_is_no_chat_completion_is_refused_by_name(body: object, reason: str) -> None:
    async def ask(url: str) -> None:
        with pytest.raises(ValueError, match=reason) as refusal:
            await chat(url, "fake", [user_message("hi")], timeout_seconds=10)
        assert url in str(refusal.value)

    with fake_openai(fault=lambda number, request: (200, {}, body)) as fake:
        asyncio.run(ask(fake.url))


def test_an_error_with_status_200_is_that_error() -> None:
    async def ask(url: str) -> None:
        with pytest.raises(openai.APIStatusError, match="overloaded"):
            await chat(url, "fake", [user_message("hi")], timeout_seconds=10)

    with fake_openai(fault=lambda number, request: (200, {}, {"error": {"message": "overloaded"}})) as fake:
        asyncio.run(ask(fake.url))


def test_half_a_character_becomes_a_question_mark() -> None:
    """JSON can say it, rows.jsonl and rollouts.jsonl cannot hold it."""

    async def ask(url: str) -> str | None:
        completion = await chat(url, "fake", [user_message("hi")], timeout_seconds=10)
        return completion.choices[0].message.content

    def respond(number: int, request: object) -> tuple[int, dict[str, str], dict[str, object]]:
        return 200, {}, completion_with(message={"role": "assistant", "content": "\ud83d réd"})

    with fake_openai(fault=respond) as fake:
        assert asyncio.run(ask(fake.url)) == "? réd"


@pytest.mark.parametrize(
    "endpoint", ["", "host:8000", "ftp://host/v1", "http://[::1", "http://host:port/v1", "http://"]
)
def test_what_is_no_address_is_refused_by_name(endpoint: str) -> None:
    with pytest.raises(UserError, match="is not a URL"):
        openai_base_url(endpoint)
