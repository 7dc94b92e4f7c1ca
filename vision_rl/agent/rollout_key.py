"""The API key names the rollout of a model call, so one client serves all rollouts of a process.

An address per rollout (`/rollout/{id}/attempt/{id}/v1`) makes a client per rollout in every framework that keeps its
clients by address, and nobody closes those. Every framework can be given an API key. A rollout's key opens the model's
routes for that rollout and nothing else, and the run's token cannot be had from it.
"""

from __future__ import annotations

import hashlib
import hmac
import re

PREFIX = "rollout."
ROLLOUT_HEADER, ATTEMPT_HEADER = "x-rollout-id", "x-attempt-id"
"""Two headers that say the same, beside the run's token; Agent Lightning's own proxy calls them so (llm_proxy.py)."""
_ADDRESS = re.compile(r"(.*)/rollout/([^/]+)/attempt/([^/]+?)(?:/v1)?/?")


def rollout_key(token: str | None, rollout_id: str, attempt_id: str) -> str:
    """The API key of an attempt. `token`: the run's, None where the proxy asks for none."""
    named = f"{PREFIX}{rollout_id}.{attempt_id}"
    return f"{named}.{hmac.new((token or '').encode(), named.encode(), hashlib.sha256).hexdigest()}"


def rollout_of(key: str, token: str | None) -> tuple[str, str] | None:
    """(rollout, attempt) that an API key names, None for a key of another kind.

    Raises `ValueError` for a rollout's key that this run has not made.
    """
    if not key.startswith(PREFIX):
        return None
    parts = key.removeprefix(PREFIX).split(".")
    if len(parts) != 3 or not hmac.compare_digest(key.encode(), rollout_key(token, parts[0], parts[1]).encode()):
        raise ValueError("this run made no such key of a rollout")
    return parts[0], parts[1]


def split_address(endpoint: str) -> tuple[str, str, str] | None:
    """(proxy, rollout, attempt) of the address that an agent is given in training; None for another address."""
    found = _ADDRESS.fullmatch(endpoint)
    return (found[1], found[2], found[3]) if found else None
