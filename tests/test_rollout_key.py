"""A call names its rollout by path, by API key or by headers: which are served, which are refused, and what is traced."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from agentlightning.types import LLM

from scripts import fake_backend
from scripts.engine_stack import Stack, running_stack
from vision_rl.agent.client import connection
from vision_rl.agent.messages import user_message
from vision_rl.agent.rollout_key import rollout_key, rollout_of

TOKEN = "the-token-of-this-test"
BODY = {"model": fake_backend.MODEL, "messages": [user_message("What color is it?")]}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("pictures"), token=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def open_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("pictures")) as running:
        yield running


def identity(rollout: Any) -> tuple[str, str]:
    return rollout.rollout_id, rollout.attempt.attempt_id


def headers_of(rollout_id: str, attempt_id: str) -> dict[str, str]:
    return {"x-rollout-id": rollout_id, "x-attempt-id": attempt_id}


def post(address: str, key: str, **headers: str) -> httpx.Response:
    sent = {"authorization": f"Bearer {key}", **headers}
    return httpx.post(f"{address}/chat/completions", json=BODY, headers=sent, trust_env=False, timeout=20)


@pytest.mark.parametrize("token", [TOKEN, "", None])
def test_a_key_says_its_rollout_and_not_the_token(token: str | None) -> None:
    key = rollout_key(token, "ro-1", "at-2")
    assert rollout_of(key, token) == ("ro-1", "at-2")
    assert TOKEN not in key and key != rollout_key(token, "ro-1", "at-3")


@pytest.mark.parametrize(
    "key",
    [
        "rollout.",
        "rollout.ro-1.at-2",
        "rollout.ro-1.at-2.",
        rollout_key("another run's", "ro-1", "at-2"),
        rollout_key(None, "ro-1", "at-2"),
        rollout_key(TOKEN, "ro-1", "at-2").replace("at-2", "at-3"),
        rollout_key(TOKEN, "ro-1", "at-2") + "0",
        rollout_key(TOKEN, "ro-1", "at-2")[:-1] + "é",
    ],
)
def test_a_key_that_the_run_did_not_make_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="this run made no such key"):
        rollout_of(key, TOKEN)


def test_other_keys_name_no_rollout() -> None:
    assert rollout_of(TOKEN, TOKEN) is rollout_of("", None) is rollout_of("sk-1", None) is None


@pytest.mark.parametrize("way", ["key", "headers", "path", "path and key", "all"])
def test_a_call_is_traced_however_it_names_its_rollout(stack: Stack, way: str) -> None:
    rollout, path = stack.claim()
    names = identity(rollout)
    address = path if way in ("path", "path and key", "all") else f"{stack.address}/v1"
    key = rollout_key(TOKEN, *names) if "key" in way or way == "all" else TOKEN
    reply = post(address, key, **(headers_of(*names) if way in ("headers", "all") else {}))
    assert reply.status_code == 200, reply.text
    assert len(stack.spans(rollout)) == 1


def test_one_client_serves_all_rollouts(stack: Stack) -> None:
    """The key is given at each call, as OpenAI's client takes it; its connections stay."""
    claims = [stack.claim() for _ in range(5)]
    endpoint = connection(LLM(endpoint=claims[0][1], model=fake_backend.MODEL, api_key=TOKEN)).base_url
    assert endpoint == f"{stack.address}/v1"
    with openai.OpenAI(base_url=endpoint, api_key="none", max_retries=0) as client:
        for rollout, address in claims:
            given = connection(LLM(endpoint=address, model=fake_backend.MODEL, api_key=TOKEN))
            client.with_options(api_key=given.api_key).chat.completions.create(**BODY)  # type: ignore[call-overload]
            assert len(stack.spans(rollout)) == 1


def test_without_a_token_keys_and_headers_work_as_well(open_stack: Stack) -> None:
    for way in ("key", "headers"):
        rollout, address = open_stack.claim()
        given = connection(LLM(endpoint=address, model=fake_backend.MODEL))
        sent = {"key": given.api_key} if way == "key" else {"key": "none", **given.headers}
        assert post(given.base_url, **sent).status_code == 200
        assert len(open_stack.spans(rollout)) == 1


def test_a_workers_key_is_taken_as_it_is(stack: Stack) -> None:
    """A claim brings the rollout's key, and not the token."""
    [queued] = stack.queue([{}])
    with httpx.Client(base_url=stack.address, headers={"authorization": f"Bearer {TOKEN}"}, trust_env=False) as trainer:
        claimed = trainer.post("/v1/rollouts/claim", json={"worker_id": "w", "wait_seconds": 2}).json()
    assert claimed["api_key"] == rollout_key(TOKEN, queued, claimed["attempt_id"])
    given = connection(SimpleNamespace(endpoint=stack.address + claimed["path"], api_key=claimed["api_key"]))
    assert post(given.base_url, given.api_key).status_code == 200
    assert len(list(stack.call(stack.store.query_spans(queued)))) == 1


@pytest.mark.parametrize(
    ("by_path", "by_key", "by_headers", "status", "said"),
    [
        (0, 1, None, 400, "different rollouts"),
        (None, 0, 1, 400, "different rollouts"),
        (0, None, 1, 400, "different rollouts"),
        (None, "stranger", None, 401, "no such key"),
        (0, "stranger", None, 401, "no such key"),
        (None, None, "half", 400, "both headers"),
    ],
)
def test_a_call_that_contradicts_itself_is_refused(
    stack: Stack, by_path: Any, by_key: Any, by_headers: Any, status: int, said: str
) -> None:
    claims = [stack.claim() for _ in range(2)]
    names = [identity(rollout) for rollout, _ in claims]
    keys = {0: rollout_key(TOKEN, *names[0]), 1: rollout_key(TOKEN, *names[1]), "stranger": rollout_key("x", *names[0])}
    headers = {"half": {"x-rollout-id": names[0][0]}, None: {}}
    sent = headers.get(by_headers) if by_headers in headers else headers_of(*names[by_headers])
    reply = post(
        f"{stack.address}/v1" if by_path is None else claims[by_path][1], keys.get(by_key, TOKEN), **(sent or {})
    )
    assert (reply.status_code, said in reply.json()["error"]["message"]) == (status, True), reply.text
    assert not any(stack.spans(rollout) for rollout, _ in claims)


def test_a_rollouts_key_opens_the_models_routes_only(stack: Stack) -> None:
    rollout, _ = stack.claim()
    key = rollout_key(TOKEN, *identity(rollout))
    with httpx.Client(headers={"authorization": f"Bearer {key}"}, trust_env=False) as client:
        assert client.get(f"{stack.address}/v1/models").status_code == 200
        for route in ("claim", "heartbeat", "report"):
            reply = client.post(f"{stack.address}/v1/rollouts/{route}", json={})
            assert reply.status_code == 403 and "give the run's token" in reply.json()["error"]["message"]
        assert client.get(f"{stack.address}/v1/rollouts/{rollout.rollout_id}/images/0").status_code == 403
        assert client.get(f"{stack.store.endpoint}/v1/agl/rollouts").status_code == 401


@pytest.mark.parametrize(
    ("endpoint", "address"), [("http://h:1", "http://h:1/v1"), ("http://h:1/v1beta/openai", "http://h:1/v1beta/openai")]
)
def test_outside_of_training_the_address_stays(endpoint: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-own")
    assert connection(LLM(endpoint=endpoint, model="m")) == (address, "sk-own", {})
