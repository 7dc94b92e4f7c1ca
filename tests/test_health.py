"""What is a dead model server, and what is only a busy one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from vision_rl.rollout.addresses import free_port
from vision_rl.training import health
from vision_rl.training.health import Health, ModelDied

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def says(status: str, seconds: float = 0.0) -> Answer:
    """A server that answers every request so, after a while."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(seconds)
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        writer.close()

    return answer


async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def check(answer: Answer | None) -> None:
    async def with_server() -> None:
        port = free_port()
        if answer is None:
            await Health({}).check([f"127.0.0.1:{port}"])
            return
        server = await asyncio.start_server(answer, "127.0.0.1", port)
        async with server:
            await Health({}).check([f"127.0.0.1:{port}"])

    asyncio.run(with_server())


@pytest.mark.slow
@pytest.mark.parametrize("answer", [says("200 OK"), says("404 Not Found"), says("200 OK", 2.0), hangs_up])
def test_a_server_that_is_merely_busy_is_not_dead(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "HEALTH_SECONDS", 0.5)
    check(answer)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [(says("503 Service Unavailable"), "the engine of the model server"), (None, "accepts no connections any more")],
)
def test_a_dead_server_is_named(answer: Answer | None, problem: str) -> None:
    with pytest.raises(ModelDied, match=problem):
        check(answer)
