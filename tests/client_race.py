"""`python -m tests.client_race leak|shared ADDRESS REQUESTS` prints how many requests were made and how many stalled.

"leak" builds an OpenAI client per request and never closes it, as many agents do; "shared" is ours. Run it in a process
of its own: the race closes sockets that belong to others.
"""

from __future__ import annotations

import asyncio
import sys

import openai

from vision_rl.agent.openai_client import shared_client

STALL_SECONDS = 1.5


async def ask(mode: str, address: str) -> bool:
    """Whether the request was answered in time."""
    if mode == "leak":
        client = openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0, timeout=STALL_SECONDS)
    else:
        client = shared_client().with_options(base_url=address, max_retries=0, timeout=STALL_SECONDS)
    try:
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
    except openai.APITimeoutError:
        return False
    return True


async def main(mode: str, address: str, requests: int) -> None:
    asked = stalled = 0

    async def worker() -> None:
        nonlocal asked, stalled
        while asked < requests and not stalled:
            asked += 1
            stalled += not await ask(mode, address)

    await asyncio.gather(worker(), worker())
    print(asked, stalled)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
