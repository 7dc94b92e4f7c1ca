"""`python -m tests.slow_proxy`: the proxy's process on a machine that is too busy, as `SLOW_PROXY` in the environment says.

"hold": it loses the processor for a moment between choosing a connection and using it; "hold 120": that, and idle
connections are kept for 120 s, as other clients keep them; "hang FILE": the first process never comes up.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from aiohttp.connector import BaseConnector

from vision_rl.rollout import model_calls, proxy_server

HOLD_SECONDS = 0.8


def hold() -> None:
    choose = BaseConnector._get

    async def choose_and_wait(*args: Any) -> Any:
        chosen = await choose(*args)
        if chosen is not None:
            time.sleep(HOLD_SECONDS)
        return chosen

    BaseConnector._get = choose_and_wait  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    kind, _, option = os.environ["SLOW_PROXY"].partition(" ")
    if kind == "hang" and not Path(option).exists():
        Path(option).touch()
        time.sleep(3600)
    if kind == "hold":
        hold()
        model_calls.IDLE_SECONDS = int(option or model_calls.IDLE_SECONDS)
    proxy_server.main()
