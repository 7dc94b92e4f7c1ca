"""The proxy in its own process, between Agent Lightning's real store and a fake model server.

What is traced, and what a bad day at the model server does to the other rollouts.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from PIL import Image

from scripts import fake_backend
from scripts.engine_stack import Stack, model_entry, running_stack
from tests.chat import chat
from tests.pictures import data_uri, noise_picture
from tests.slow_proxy import HOLD_SECONDS
from vision_rl.agent.messages import image_url, user_message
from vision_rl.agent.openai_client import shared_client
from vision_rl.rollout.addresses import free_port
from vision_rl.rollout.model_calls import SPARE_LOAD, ModelServers, Server
from vision_rl.rollout.proxy import VisionProxy
from vision_rl.rollout.store_link import IDLE_SECONDS
from vision_rl.rollout.trace import turns_from_spans

QUESTION = [user_message("What color is it?")]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("pictures")) as running:
        yield running


def ask(address: str, messages: Any = QUESTION, timeout: float = 10, **parameters: Any) -> Any:
    """One call with a client of its own that does not retry."""
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=timeout) as client:
        return client.chat.completions.create(model=fake_backend.MODEL, messages=messages, **parameters)  # type: ignore


# What is traced


def test_the_span_is_complete_in_the_store_when_the_reply_arrives(stack: Stack) -> None:
    rollout, address = stack.claim()
    reply = ask(address, temperature=0.5)
    spans = stack.spans(rollout)
    assert reply.choices[0].message.content == fake_backend.REPLY
    [turn] = turns_from_spans(spans)
    assert turn.prompt_ids == fake_backend.prompt_ids(4)
    assert turn.response_ids == fake_backend.RESPONSE_IDS
    assert turn.logprobs == pytest.approx(fake_backend.LOGPROBS)
    assert turn.text == fake_backend.REPLY
    assert turn.finish_reason == "stop"


def test_turns_are_kept_in_the_order_of_the_calls(stack: Stack) -> None:
    rollout, address = stack.claim()
    for words in (1, 2, 3):
        ask(address, [user_message("word " * words)])
    assert [len(turn.prompt_ids) for turn in turns_from_spans(stack.spans(rollout))] == [
        len(fake_backend.prompt_ids(words)) for words in (1, 2, 3)
    ]


def test_a_picture_sent_as_data_is_kept_once_and_not_in_the_store(stack: Stack) -> None:
    picture = noise_picture(seed=1)
    digest = hashlib.sha256(picture).hexdigest()
    before = stack.call(stack.memory.statistics())["total_span_bytes"]
    for _ in range(2):
        rollout, address = stack.claim()
        ask(address, [user_message("What?", [data_uri(picture), "file:///pictures/b.png"])])
        [turn] = turns_from_spans(stack.spans(rollout))
        assert turn.image_refs == [f"sha256:{digest}", "file:///pictures/b.png"]
    kept = stack.proxy.picture_dir / digest
    assert kept.read_bytes() == picture
    assert [path.name for path in stack.proxy.picture_dir.glob(digest + "*")] == [digest]
    per_rollout = (stack.call(stack.memory.statistics())["total_span_bytes"] - before) / 2
    assert per_rollout <= 4096, f"{per_rollout} bytes"


def test_a_client_without_a_rollout_is_served_and_not_traced(stack: Stack) -> None:
    before = stack.call(stack.memory.statistics())["total_spans"]
    reply = ask(f"{stack.address}/v1")
    assert reply.choices[0].message.content == fake_backend.REPLY
    assert stack.call(stack.memory.statistics())["total_spans"] == before


def test_an_unknown_rollout_fails_at_once_and_stalls_nobody(stack: Stack) -> None:
    async def timed(address: str) -> tuple[float, bool]:
        started = time.monotonic()
        try:
            await chat(address, fake_backend.MODEL, QUESTION, timeout_seconds=20)
        except openai.OpenAIError:
            return time.monotonic() - started, False
        return time.monotonic() - started, True

    async def together() -> list[tuple[float, bool]]:
        known = [timed(stack.claim()[1]) for _ in range(4)]
        unknown = [timed(f"{stack.address}/rollout/ro-none/attempt/at-none/v1") for _ in range(4)]
        return await asyncio.gather(*known, *unknown)

    results = asyncio.run(together())
    assert [served for _, served in results] == [True] * 4 + [False] * 4
    known, unknown = (max(seconds for seconds, _ in part) for part in (results[:4], results[4:]))
    assert unknown < 3 + 5 * known and known < 20, "what the machine takes for an answer, and no wait"


def test_a_stream_is_traced_too(stack: Stack) -> None:
    """For clients that speak nothing else: the whole reply comes as one piece."""
    rollout, address = stack.claim()
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=20) as client:
        chunks: Any = client.chat.completions.create(model=fake_backend.MODEL, messages=QUESTION, stream=True)  # type: ignore
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == fake_backend.REPLY
    [turn] = turns_from_spans(stack.spans(rollout))
    assert turn.response_ids == fake_backend.RESPONSE_IDS
    assert turn.logprobs == pytest.approx(fake_backend.LOGPROBS)


def test_an_agent_gets_what_it_asked_for_and_no_more(stack: Stack) -> None:
    plain = ask(stack.claim()[1]).model_dump()
    assert "prompt_token_ids" not in plain and plain["choices"][0]["logprobs"] is None
    asked = ask(stack.claim()[1], logprobs=True, extra_body={"return_token_ids": True}).model_dump()
    assert asked["prompt_token_ids"] == fake_backend.prompt_ids(4)
    assert [token["logprob"] for token in asked["choices"][0]["logprobs"]["content"]] == fake_backend.LOGPROBS


# Which server


SERVERS = [Server("m", f"http://server-{number}/v1", "m") for number in range(4)]


def test_the_rollouts_of_a_picture_go_to_one_server() -> None:
    servers = ModelServers(SERVERS)
    chosen = {picture: {servers.choose("m", picture).url for _ in range(8)} for picture in map(str, range(200))}
    assert all(len(urls) == 1 for urls in chosen.values())
    load = Counter(next(iter(urls)) for urls in chosen.values())
    assert len(load) == 4 and max(load.values()) < 80  # of 200 pictures


def test_a_server_that_goes_moves_only_its_own_pictures() -> None:
    for picture in map(str, range(200)):
        before, after = (ModelServers(servers).choose("m", picture) for servers in (SERVERS, SERVERS[1:]))
        assert before == after or before == SERVERS[0]


def test_a_server_that_has_far_more_to_do_is_passed_over() -> None:
    servers = ModelServers(SERVERS)
    first = servers.choose("m", "picture")
    servers.busy[first.url] = SPARE_LOAD
    assert servers.choose("m", "picture") == first
    servers.busy[first.url] = SPARE_LOAD + 1
    assert servers.choose("m", "picture") != first


@pytest.mark.slow
def test_calls_of_a_picture_reach_one_of_two_servers(stack: Stack, tmp_path: Path) -> None:
    """The whole way: each picture's four rollouts at one server, and both have work."""

    def served() -> list[int]:
        return [httpx.get(url.removesuffix("/v1") + "/stats", trust_env=False).json()["requests"] for url in urls]

    with fake_backend.running(free_port()) as second:
        urls = [stack.backend, second]
        proxy = VisionProxy(stack.store, tmp_path, port=free_port())
        proxy.update_model_list([model_entry(url) for url in urls])
        stack.call(proxy.start())
        try:
            counts = []
            for number in range(10):
                before = served()
                for _ in range(4):
                    rollout = stack.call(stack.store.start_rollout(input={}))
                    path = f"/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}/v1"
                    message = user_message("What?", [f"file:///pictures/{number}.png"])
                    ask(proxy.access_endpoint + path, [message])
                counts.append([after - was for after, was in zip(served(), before, strict=True)])
        finally:
            stack.call(proxy.stop())
    assert all(sorted(count) == [0, 4] for count in counts)
    assert {tuple(count) for count in counts} == {(0, 4), (4, 0)}


# Bad days at the model server


@pytest.mark.parametrize("word", ["FAULT500", "FAULT400", "NOCHOICES", "NOTOKENS", "BADJSON", "TRUNCATED", "REDIRECT"])
def test_a_bad_answer_is_an_error_for_its_own_rollout_only(stack: Stack, word: str) -> None:
    rollout, address = stack.claim()
    started = time.monotonic()
    ask(stack.claim()[1])
    answered = time.monotonic()
    with pytest.raises(openai.APIStatusError):
        ask(address, [user_message(word)])
    assert time.monotonic() - answered < 3 + 5 * (answered - started)
    assert stack.spans(rollout) == []
    # No cool-down: stock settings put the only model aside for 5 s after one failure, and the others get 429.
    other, other_address = stack.claim()
    assert ask(other_address).choices[0].message.content == fake_backend.REPLY
    assert len(stack.spans(other)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("traced", [True, False])
def test_a_refusal_names_a_picture_that_no_processor_takes(stack: Stack, tmp_path: Path, traced: bool) -> None:
    """vLLM says "Failed to apply Qwen2_5_VLProcessor" and keeps the reason; the client can correct a picture by its number."""
    for name, size in (("good", (28, 28)), ("narrow", (402, 2))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    good, narrow = ((tmp_path / f"{name}.png").as_uri() for name in ("good", "narrow"))
    address = stack.claim()[1] if traced else f"{stack.address}/v1"
    for url in (narrow, image_url(str(tmp_path / "narrow.png"), "data")):
        with pytest.raises(openai.BadRequestError, match=r"picture 2 is 402 x 2, .* above 200, .* answered 400: "):
            ask(address, [user_message("FAULT400", [good, url])])
    with pytest.raises(openai.BadRequestError, match="the model server answered 400") as refused:
        ask(address, [user_message("FAULT400", [good])])
    assert "picture 1" not in str(refused.value)


def test_a_hanging_server_costs_the_client_its_own_time_out_and_nobody_else(stack: Stack) -> None:
    _, address = stack.claim()

    async def both() -> None:
        hanging = asyncio.create_task(chat(address, fake_backend.MODEL, [user_message("HANG")], timeout_seconds=5.0))
        await asyncio.sleep(0.1)
        await chat(stack.claim()[1], fake_backend.MODEL, QUESTION, timeout_seconds=60)
        assert not hanging.done()
        with pytest.raises(openai.APITimeoutError):
            await hanging

    asyncio.run(both())


def test_clients_without_a_rollout_stall_nobody(stack: Stack) -> None:
    """Thirty of them wait for a server that hangs, for a minute; ten rollouts are through before the first of them gives up."""

    async def both() -> None:
        plain = [
            asyncio.create_task(
                chat(f"{stack.address}/v1", fake_backend.MODEL, [user_message("HANG")], timeout_seconds=60.0)
            )
            for _ in range(30)
        ]
        await asyncio.sleep(1.0)
        for _ in range(10):
            await chat(stack.claim()[1], fake_backend.MODEL, QUESTION, timeout_seconds=60)
        assert not any(task.done() for task in plain)
        for task in plain:
            task.cancel()
        await asyncio.gather(*plain, return_exceptions=True)

    asyncio.run(both())


@pytest.mark.slow
def test_five_hundred_rollouts_without_a_stall(stack: Stack) -> None:
    """Eight at a time with one shared client: none fails, none takes 5 s more than its like, every one has its span."""

    async def worker(addresses: list[str]) -> list[float]:
        seconds = []
        for address in addresses:
            started = time.monotonic()
            await chat(address, fake_backend.MODEL, QUESTION, timeout_seconds=30)
            seconds.append(time.monotonic() - started)
        return seconds

    claims = [stack.claim() for _ in range(500)]

    async def all_workers() -> list[list[float]]:
        work: list[Coroutine[Any, Any, list[float]]] = [
            worker([address for _, address in claims[first::8]]) for first in range(8)
        ]
        return await asyncio.gather(*work)

    seconds = [value for part in asyncio.run(all_workers()) for value in part]
    assert len(seconds) == 500
    assert max(seconds) < 5 + 10 * statistics.median(seconds)
    assert all(len(stack.spans(rollout)) == 1 for rollout, _ in claims)


# The connection that the model server is just closing


class SlowProxy(VisionProxy):
    """Its process is `tests/slow_proxy.py`."""

    module = "tests.slow_proxy"
    start_seconds = 3.0


@pytest.mark.slow
def test_a_connection_that_the_server_is_closing_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cause and cure of the error 502 "the model server did not answer" that came now and then.

    uvicorn closes a connection that has been idle for so long; a proxy that has just chosen that connection writes into
    a closed one. Whoever gives up idle connections earlier than the server cannot meet this.
    """
    keep_alive = 4
    assert keep_alive > IDLE_SECONDS
    with fake_backend.running(free_port(), keep_alive) as backend:
        monkeypatch.setenv("SLOW_PROXY", "hold 120")
        with_long = Stack(backend, tmp_path, SlowProxy)
        monkeypatch.setenv("SLOW_PROXY", "hold")
        with_ours = Stack(backend, tmp_path, SlowProxy)
        addresses = [f"{with_long.address}/v1", f"{with_ours.address}/v1", with_ours.claim()[1]]
        try:
            long, plain, traced = asyncio.run(ask_as_the_server_closes(addresses, keep_alive))
        finally:
            with_long.close()
            with_ours.close()
    assert plain is None
    assert traced is None
    # If this fails, aiohttp or uvicorn cured the cause, and our idle time may go.
    assert isinstance(long, openai.InternalServerError)


async def ask_as_the_server_closes(addresses: list[str], keep_alive: int) -> list[openai.OpenAIError | None]:
    """What became of a second request at the moment at which the server gives up the connection of the first."""

    async def once(address: str) -> openai.OpenAIError | None:
        client = shared_client().with_options(base_url=address, max_retries=0, timeout=10)
        try:
            await client.chat.completions.create(model=fake_backend.MODEL, messages=QUESTION)  # type: ignore[arg-type]
        except openai.OpenAIError as error:
            return error
        return None

    async def twice(address: str) -> openai.OpenAIError | None:
        assert await once(address) is None
        await asyncio.sleep(keep_alive - HOLD_SECONDS / 2)
        return await once(address)

    return await asyncio.gather(*map(twice, addresses))


@pytest.mark.slow
def test_a_proxy_process_that_hangs_at_its_start_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOW_PROXY", f"hang {tmp_path / 'hung'}")
    started = time.monotonic()
    with running_stack(tmp_path, proxy=SlowProxy) as stack:
        assert time.monotonic() - started < 20
        assert ask(stack.claim()[1]).choices[0].message.content == fake_backend.REPLY
    assert (tmp_path / "hung").exists()


@pytest.mark.slow
def test_a_proxy_process_that_dies_is_replaced(tmp_path: Path) -> None:
    """At the same address, which stays open: a call that comes meanwhile waits and is answered."""
    with running_stack(tmp_path) as stack:
        process = stack.proxy.process
        assert process is not None
        process.kill()
        process.wait()
        assert ask(stack.claim()[1], timeout=20).choices[0].message.content == fake_backend.REPLY
        assert stack.proxy.process is not process
    with pytest.raises(httpx.ConnectError):
        httpx.get(stack.address + "/v1/models", trust_env=False)


def test_the_proxys_process_imports_little() -> None:
    check = (
        "import sys, vision_rl.rollout.proxy_server\n"
        "big = {'agentlightning', 'litellm', 'verl', 'vllm', 'ray', 'torch', 'transformers', 'openai', 'pandas', 'fastapi'}\n"
        "print(sorted(big & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_token_is_in_no_process_list(tmp_path: Path) -> None:
    with running_stack(tmp_path, token="the-token-of-this-test") as stack:
        assert stack.proxy.process is not None
        process = psutil.Process(stack.proxy.process.pid)
        assert "the-token" not in " ".join(process.cmdline()) + str(process.environ())


@pytest.mark.slow
def test_other_model_servers_are_used_at_once(tmp_path: Path) -> None:
    with running_stack(tmp_path) as stack, fake_backend.running(free_port()) as second:
        stack.proxy.update_model_list([model_entry(second)])
        deadline = time.monotonic() + 5
        while not httpx.get(second.removesuffix("/v1") + "/stats", trust_env=False).json()["requests"]:
            ask(f"{stack.address}/v1")
            assert time.monotonic() < deadline


KILLED_WITH_A_PROXY = """
import os, signal, sys
from pathlib import Path
from scripts.engine_stack import Stack
stack = Stack("http://127.0.0.1:9/v1", Path(sys.argv[1]))
print(stack.proxy.process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_the_proxy_process_ends_with_a_trainer_that_is_killed_outright(tmp_path: Path) -> None:
    said = tmp_path / "said"  # a file: a child that stays would hold a pipe open
    with said.open("w") as out:
        command = [sys.executable, "-c", KILLED_WITH_A_PROXY, str(tmp_path)]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=out, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    child = int(said.read_text().split()[-1])
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
