"""Workers that know an address and a key: the protocol, the real worker.py on it, and what they may not see."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from agentlightning.types import RolloutConfig
from PIL import Image

import worker
from scripts import fake_backend
from scripts.engine_stack import Stack, model_entry, running_stack
from tests.pictures import data_uri, no_size, odd_picture
from vision_rl.agent.messages import sent_file, user_message
from vision_rl.errors import UserError
from vision_rl.rollout.addresses import Addresses, free_port, worker_lines
from vision_rl.rollout.proxy import VisionProxy
from vision_rl.rollout.strategy import VisionStrategy
from vision_rl.rollout.trace import reward_from_spans, turns_from_spans
from vision_rl.settings import AgentSettings
from vision_rl.training.launch import check_store
from worker import Worker

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TOKEN = "the-token-of-this-test"
RETRIED = RolloutConfig(
    timeout_seconds=60, unresponsive_seconds=2, max_attempts=2, retry_condition=["failed", "timeout", "unresponsive"]
)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    Image.new("RGB", (64, 48), "red").save(folder / "a.png")
    (folder.parent / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    return folder


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, media: Path) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("pictures"), token=TOKEN, media_roots=[media]) as running:
        yield running


@pytest.fixture()
def trainer(stack: Stack) -> Iterator[httpx.Client]:
    """A worker's view of the trainer."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=stack.address, headers=headers, trust_env=False, timeout=30) as client:
        yield client


def task(*paths: Path, **settings: Any) -> dict[str, Any]:
    """A row as the trainer queues it."""
    return {
        "id": "1",
        "task": "vqa",
        "media": "images",
        "image_paths": [str(path) for path in paths],
        "image_sizes": [[64, 48] for _ in paths],
        "question": "What color is it?",
        "answers": ["red"] * 10,
        "boxes": [],
        "labels": [],
        "source": "test",
        "meta": {},
        "settings": {
            **dataclasses.asdict(AgentSettings()),
            "family": "qwen2_5_vl",
            "timeout_seconds": 10.0,
            **settings,
        },
    }


def bomb() -> bytes:
    """A picture of 196 megapixels in a file of a few kilobytes."""
    buffer = io.BytesIO()
    Image.new("1", (14_000, 14_000)).save(buffer, "PNG")
    return buffer.getvalue()


def claim(trainer: httpx.Client) -> dict[str, Any]:
    return dict(
        trainer.post("/v1/rollouts/claim", json={"worker_id": "curl", "wait_seconds": 2}).raise_for_status().json()
    )


# The protocol


def test_claim_call_report(stack: Stack, trainer: httpx.Client, media: Path) -> None:
    [queued] = stack.queue([task(media / "a.png")])
    rollout = claim(trainer)
    assert rollout["rollout_id"] == queued
    assert rollout["task"]["question"] == "What color is it?"
    assert rollout["model"] == fake_backend.MODEL
    message = user_message("What?", [(media / "a.png").as_uri()])
    call = {"model": rollout["model"], "messages": [message], **rollout["sampling_parameters"]}
    reply = trainer.post(rollout["path"] + "/chat/completions", json=call).raise_for_status().json()
    assert reply["choices"][0]["message"]["content"] == fake_backend.REPLY
    identity = {key: rollout[key] for key in ("rollout_id", "attempt_id")}
    assert trainer.post("/v1/rollouts/heartbeat", json=identity).json() == {"alive": True}
    report = {**identity, "reward": 0.9, "components": {"accuracy": 1.0, "length": 3}}
    assert trainer.post("/v1/rollouts/report", json=report).json() == {"accepted": True}
    assert trainer.post("/v1/rollouts/report", json=report).json() == {"accepted": False}
    assert trainer.post("/v1/rollouts/heartbeat", json=identity).json() == {"alive": False}
    assert stack.wait([queued], 1) == {"succeeded": 1}
    spans = list(stack.call(stack.store.query_spans(queued)))
    assert reward_from_spans(spans) == {"reward": 0.9, "accuracy": 1.0, "length": 3.0}
    assert [turn.image_refs for turn in turns_from_spans(spans)] == [[(media / "a.png").as_uri()]]


def test_the_commands_of_the_documentation(stack: Stack, media: Path, tmp_path: Path) -> None:
    """Each curl command of docs/workers.md in its order, with this rollout's ids, model and picture for the examples'."""
    text = (ROOT / "docs" / "workers.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```\n(TRAINER=.*?)```", text, re.DOTALL)
    commands = re.findall(r"^curl .*?(?=\n(?:#|curl |\n|\Z))", block, re.DOTALL | re.MULTILINE)
    assert len(commands) == 6
    names = {"$TRAINER": stack.address, "$AUTH": f"Authorization: Bearer {TOKEN}"}

    def run(command: str) -> str:
        for name, value in names.items():
            command = command.replace(name, value)
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=30)
        return done.stdout

    [queued] = stack.queue([task(media / "a.png")])
    rollout = json.loads(run(commands[0]))
    names.update({"ro-1f0c...": rollout["rollout_id"], "at-93ab...": rollout["attempt_id"]})
    names.update({'"model": "..."': f'"model": "{rollout["model"]}"', "/data/a.png": str(media / "a.png")})
    assert rollout["rollout_id"] == queued
    assert json.loads(run(commands[1]))["choices"][0]["message"]["content"] == fake_backend.REPLY
    run(commands[2])
    assert (tmp_path / "picture.png").read_bytes() == (media / "a.png").read_bytes()
    answers = [json.loads(run(command)) for command in commands[3:]]
    assert answers == [{"alive": True}, {"accepted": True}, {"accepted": False}]
    assert stack.wait([queued], 1) == {"succeeded": 1}
    spans = list(stack.call(stack.store.query_spans(queued)))
    assert reward_from_spans(spans) == {"reward": 0.9, "accuracy": 1.0}
    assert [turn.image_refs for turn in turns_from_spans(spans)] == [[(media / "a.png").as_uri()]]


def test_two_proxies_on_one_store(stack: Stack, trainer: httpx.Client, media: Path, tmp_path: Path) -> None:
    """What is claimed at one may be called and reported at the other: a load balancer may stand before them."""
    other = VisionProxy(stack.store, tmp_path, port=free_port(), token=TOKEN, media_roots=[media])
    other.update_model_list([model_entry(stack.backend)])
    stack.call(other.start())
    try:
        address = other.access_endpoint
        with httpx.Client(base_url=address, headers=trainer.headers, trust_env=False, timeout=30) as second:
            ids = stack.queue([task(media / "a.png") for _ in range(4)])
            for first, then in ((trainer, second), (second, trainer)) * 2:
                rollout = claim(first)
                call = {"model": rollout["model"], "messages": [user_message("What?", [(media / "a.png").as_uri()])]}
                then.post(rollout["path"] + "/chat/completions", json=call).raise_for_status()
                report = {key: rollout[key] for key in ("rollout_id", "attempt_id")}
                assert first.post("/v1/rollouts/report", json={**report, "reward": 1.0}).json() == {"accepted": True}
                assert then.post("/v1/rollouts/report", json={**report, "reward": 1.0}).json() == {"accepted": False}
    finally:
        stack.call(other.stop())
    assert stack.wait(ids, 1) == {"succeeded": 4}
    for rollout_id in ids:
        assert len(turns_from_spans(list(stack.call(stack.store.query_spans(rollout_id))))) == 1


def test_the_reason_of_a_failure_holds_no_key(stack: Stack, trainer: httpx.Client, media: Path) -> None:
    [queued] = stack.queue([task(media / "a.png")])
    rollout = claim(trainer)
    identity = {key: rollout[key] for key in ("rollout_id", "attempt_id")}
    failure = "AuthenticationError: Incorrect API key provided: sk-abcdef123456"
    assert trainer.post("/v1/rollouts/report", json={**identity, "failure": failure}).json() == {"accepted": True}
    attempt = stack.call(stack.store.get_latest_attempt(queued))
    assert attempt is not None and attempt.metadata is not None
    assert attempt.metadata["failure"] == "AuthenticationError: Incorrect API key provided: sk-***"


def test_nothing_to_claim_is_204(trainer: httpx.Client) -> None:
    assert trainer.post("/v1/rollouts/claim", json={"worker_id": "curl"}).status_code == 204


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("claim", {}, 400),
        ("claim", "{", 400),
        ("report", {"rollout_id": "ro-none", "attempt_id": "at-none", "reward": 1.0}, 404),
        ("report", {"rollout_id": "ro-none", "attempt_id": "at-none"}, 400),
        ("report", {"rollout_id": "ro-none", "attempt_id": "at-none", "reward": "1"}, 400),
        ("report", {"rollout_id": "ro-none", "attempt_id": "at-none", "reward": True}, 400),
        ("report", '{"rollout_id": "ro-none", "attempt_id": "at-none", "reward": NaN}', 400),
        ("report", {"rollout_id": "ro-none", "attempt_id": "at-none", "reward": 1, "components": {"a": "x"}}, 400),
        ("heartbeat", {"rollout_id": "ro-none", "attempt_id": "at-none"}, 404),
        ("nothing", {}, 404),
    ],
)
def test_wrong_requests_are_refused(trainer: httpx.Client, path: str, body: Any, status: int) -> None:
    sent = {"content": body} if isinstance(body, str) else {"json": body}
    assert trainer.post(f"/v1/rollouts/{path}", **sent).status_code == status


# Access


@pytest.mark.parametrize("key", [None, "wrong", TOKEN[:-1], TOKEN + "x"])
def test_nothing_is_served_without_the_token(stack: Stack, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with httpx.Client(headers=headers, trust_env=False) as client:
        for address in (
            f"{stack.address}/v1/models",
            f"{stack.address}/v1/rollouts/ro-1/images/0",
            f"{stack.address}/health",
            f"{stack.store.endpoint}/",
            f"{stack.store.endpoint}/v1/agl/rollouts",
            f"{stack.store.endpoint}/assets/x.js",
        ):
            assert client.get(address).status_code == 401, address
        for address in (
            f"{stack.address}/v1/chat/completions",
            f"{stack.address}/rollout/ro-1/attempt/at-1/v1/chat/completions",
            f"{stack.address}/v1/rollouts/claim",
            f"{stack.store.endpoint}/v1/agl/queues/rollouts/dequeue",
            f"{stack.store.endpoint}/v1/traces",
        ):
            assert client.post(address, json={}).status_code == 401, address


@pytest.mark.parametrize("kind", ["16-bit grey TIFF", "RGB with a transparent colour", "JPEG with EXIF orientation 6"])
def test_pictures_are_served_as_agents_send_them(stack: Stack, trainer: httpx.Client, media: Path, kind: str) -> None:
    path = odd_picture(kind, media)
    [queued] = stack.queue([task(path)])
    reply = trainer.get(f"/v1/rollouts/{queued}/images/0")
    assert (reply.headers["content-type"], reply.content) == sent_file(str(path))
    assert reply.content != path.read_bytes()
    claim(trainer)


def test_pictures_are_served_from_the_data_directory_only(stack: Stack, trainer: httpx.Client, media: Path) -> None:
    paths = [
        media / "a.png",
        media.parent / "secret.png",
        media / "link.png",
        media / "../secret.png",
        media / "none.png",
    ]
    [queued] = stack.queue([task(*paths)])
    replies = [trainer.get(f"/v1/rollouts/{queued}/images/{index}") for index in range(6)]
    assert [reply.status_code for reply in replies] == [200, 403, 403, 403, 404, 404]
    assert replies[0].content == (media / "a.png").read_bytes()
    assert all(b"secret" not in reply.content for reply in replies)
    assert trainer.get("/v1/rollouts/ro-none/images/0").status_code == 404
    claim(trainer)


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/..%2f..%2f..%2f..%2fetc/passwd",
        "/assets/../../../../../../etc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/v1/rollouts/../../etc/passwd/images/0",
        "/v1/rollouts/%2e%2e%2f%2e%2e%2fetc%2fpasswd/images/0",
    ],
)
@pytest.mark.parametrize("server", ["proxy", "store"])
def test_no_path_leads_to_a_file(stack: Stack, server: str, path: str) -> None:
    """Sent as it stands: HTTP libraries would tidy it up."""
    address = httpx.URL(stack.address if server == "proxy" else stack.store.endpoint)
    connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
    connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
    content = connection.getresponse().read()
    connection.close()
    assert b"root:" not in content


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "file://{media}/../secret.png", "http://10.0.0.1/a.png", "ftp://x/a"]
)
@pytest.mark.parametrize("traced", [True, False])
def test_no_call_makes_the_model_server_read_elsewhere(stack: Stack, media: Path, url: str, traced: bool) -> None:
    address = stack.claim()[1] if traced else f"{stack.address}/v1"
    with (
        openai.OpenAI(base_url=address, api_key=TOKEN, max_retries=0) as client,
        pytest.raises(openai.PermissionDeniedError),
    ):
        messages: Any = [user_message("What?", [url.format(media=media)])]
        client.chat.completions.create(model=fake_backend.MODEL, messages=messages)


def test_pictures_of_the_run_and_data_are_served(stack: Stack, media: Path) -> None:
    urls = [(media / "a.png").as_uri(), data_uri((media / "a.png").read_bytes())]
    for address in (stack.claim()[1], f"{stack.address}/v1"):
        with openai.OpenAI(base_url=address, api_key=TOKEN, max_retries=0) as client:
            messages: Any = [user_message("What?", urls)]
            assert client.chat.completions.create(model=fake_backend.MODEL, messages=messages).choices


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no picture", "not a picture"),
        (no_size("PNG"), "not a picture"),
        (bomb(), "too many pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
    ],
    ids=["text", "no size", "bomb", "eps"],
)
def test_no_call_brings_a_bad_picture_to_the_model_server(
    stack: Stack, content: bytes, reason: str, traced: bool
) -> None:
    address = stack.claim()[1] if traced else f"{stack.address}/v1"
    before = stack.stats()["requests"]
    with (
        openai.OpenAI(base_url=address, api_key=TOKEN, max_retries=0) as client,
        pytest.raises(openai.BadRequestError, match=reason),
    ):
        messages: Any = [user_message("What?", [data_uri(content)])]
        client.chat.completions.create(model=fake_backend.MODEL, messages=messages)
    assert stack.stats()["requests"] == before


def test_a_request_that_is_too_large_is_refused(stack: Stack) -> None:
    """By the length that it announces, before it is read; tests/test_access.py has those that announce none."""
    address = httpx.URL(stack.address)
    connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
    connection.putrequest("POST", "/v1/rollouts/claim")
    connection.putheader("Authorization", f"Bearer {TOKEN}")
    connection.putheader("Content-Length", str(2**40))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


# Agent Lightning's runners elsewhere


@pytest.mark.parametrize(
    ("advertised", "endpoint"),
    [(None, "http://10.0.0.5:8080"), ("trainer.example", "http://trainer.example:8080"), ("::1", "http://[::1]:8080")],
)
def test_runners_elsewhere_get_the_advertised_address(tmp_path: Path, advertised: str | None, endpoint: str) -> None:
    """The trainer's own store may be on a third machine: its address says nothing about the proxy's."""
    store: Any = None  # of an address nothing is asked
    proxy = VisionProxy(
        store, tmp_path, host="0.0.0.0", port=8080, access_host="10.0.0.5", advertised=advertised, token=TOKEN
    )
    proxy.update_model_list([model_entry("http://backend/v1")])
    resource = proxy.as_resource()
    assert (resource.endpoint, resource.api_key) == (endpoint, TOKEN)


def test_the_trainers_own_runners_go_past_the_network_address_translation() -> None:
    addresses = Addresses(4747, host="0.0.0.0", address="10.0.0.5", advertised="trainer.example")
    assert VisionStrategy(n_runners=1, addresses=addresses).proxy_host == "10.0.0.5"
    assert VisionStrategy(n_runners=1, addresses=addresses, role="runner").proxy_host is None


def test_a_store_is_looked_at_before_the_runners_start(stack: Stack) -> None:
    store = stack.store.endpoint
    assert check_store(store, TOKEN)
    assert not check_store(f"http://127.0.0.1:{free_port()}", TOKEN)
    for url, key, problem in [
        (store, "wrong", "refuses the token; set VISION_RL_TOKEN"),
        (store, None, "refuses the token; set VISION_RL_TOKEN"),
        (stack.address, TOKEN, "is not a store"),
        ("https://trainer", TOKEN, "is not the address of a store"),
    ]:
        with pytest.raises(UserError, match=problem):
            check_store(url, key)


# worker.py


def start_worker(stack: Stack, *options: str, key: str = TOKEN) -> subprocess.Popen[str]:
    environment = {**os.environ, "OPENAI_BASE_URL": f"{stack.address}/v1", "OPENAI_API_KEY": key}
    command = [sys.executable, str(ROOT / "worker.py"), "--concurrency", "4", *options]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def stop(worker: subprocess.Popen[str]) -> str:
    """Interrupt a worker and return what it said; it must end by itself, and well."""
    worker.send_signal(signal.SIGINT)
    output, _ = worker.communicate(timeout=20)
    assert worker.returncode == 0, output
    return output


@pytest.mark.parametrize("images", ["path", "data", "http"])
def test_the_worker_does_the_work(stack: Stack, media: Path, images: str) -> None:
    ids = stack.queue([task(media / "a.png") for _ in range(12)], RETRIED)
    worker = start_worker(stack, "--images", images)
    assert stack.wait(ids, 30) == {"succeeded": 12}
    assert "12 rollouts succeeded, 0 failed" in stop(worker)
    for rollout_id in ids:
        spans = list(stack.call(stack.store.query_spans(rollout_id)))
        [turn] = turns_from_spans(spans)
        reward = reward_from_spans(spans)
        assert reward is not None and reward["accuracy"] == 1.0
        assert turn.image_refs[0].startswith("file:" if images == "path" else "sha256:")


def test_the_worker_needs_none_of_the_big_packages() -> None:
    check = (
        "import sys, worker\nfrom vision_rl.tasks import get_task\n"
        "for task in ('vqa', 'grounding'): get_task(task).part('answer')\n"
        "big = {'agentlightning', 'verl', 'vllm', 'ray', 'torch', 'transformers', 'litellm', 'vision_rl.rollout'}\n"
        "print(sorted(big & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_worker_outlives_a_trainer_that_restarts(stack: Stack, media: Path) -> None:
    worker = start_worker(stack)
    first = stack.queue([task(media / "a.png") for _ in range(4)], RETRIED)
    assert stack.wait(first, 20) == {"succeeded": 4}
    stack.call(stack.proxy.stop())
    time.sleep(1.5)
    stack.call(stack.proxy.start())
    second = stack.queue([task(media / "a.png") for _ in range(4)], RETRIED)
    assert stack.wait(second, 30) == {"succeeded": 4}
    output = stop(worker)
    assert "the trainer is back" in output
    assert "8 rollouts succeeded, 0 failed" in output


def test_a_stopped_worker_finishes_what_it_has_begun(stack: Stack, media: Path) -> None:
    ids = stack.queue([{**task(media / "a.png"), "question": "SLEEP2"} for _ in range(4)], RETRIED)
    worker = start_worker(stack)
    while stack.call(stack.memory.collections.rollout_queue.size()):
        time.sleep(0.05)
    assert "4 rollouts succeeded, 0 failed" in stop(worker)
    assert stack.wait(ids, 0) == {"succeeded": 4}


def test_the_rollouts_of_a_worker_that_vanished_are_done_by_another(stack: Stack, media: Path) -> None:
    ids = stack.queue([{**task(media / "a.png"), "question": "SLEEP0.5"} for _ in range(8)], RETRIED)
    worker = start_worker(stack)
    while stack.call(stack.memory.collections.rollout_queue.size()) > 4:
        time.sleep(0.02)
    worker.kill()
    worker.wait()
    other = start_worker(stack)
    assert stack.wait(ids, 30) == {"succeeded": 8}
    stop(other)
    for rollout_id in ids:
        latest = stack.call(stack.store.query_spans(rollout_id, attempt_id="latest"))
        assert len(turns_from_spans(list(latest))) == 1


def test_a_worker_does_no_more_than_it_was_asked(stack: Stack, media: Path) -> None:
    ids = stack.queue([task(media / "a.png") for _ in range(7)], RETRIED)
    worker = start_worker(stack, "--max-rollouts", "5")
    output, _ = worker.communicate(timeout=30)
    assert worker.returncode == 0 and "5 rollouts succeeded, 0 failed" in output
    assert stack.wait(ids, 0) == {"succeeded": 5, "unfinished": 2}
    rest = start_worker(stack)
    assert stack.wait(ids, 20) == {"succeeded": 7}
    stop(rest)


def test_a_report_waits_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """429 is not an answer to the report: the reward would be lost."""
    answers = [429, 503, 429, 200]

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(answers.pop(0), json={"accepted": True})

    async def report() -> bool:
        worker = Worker(None, "http://trainer/v1", "key")  # type: ignore[arg-type]
        worker.http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://trainer")
        return await worker._report({"reward": 1.0})

    async def no_pause(seconds: float) -> None:
        pass

    monkeypatch.setattr(asyncio, "sleep", no_pause)
    assert asyncio.run(report())
    assert not answers


def test_a_wrong_key_ends_the_worker_with_one_sentence(stack: Stack) -> None:
    worker = start_worker(stack, key="wrong")
    output, _ = worker.communicate(timeout=20)
    assert worker.returncode == 2
    assert "error: the trainer refuses the key" in output and "Traceback" not in output


def test_the_stores_address_ends_the_worker_with_one_sentence(stack: Stack) -> None:
    """It waited for ever."""
    environment = {**os.environ, "OPENAI_BASE_URL": f"{stack.store.endpoint}/v1", "OPENAI_API_KEY": TOKEN}
    command = [sys.executable, str(ROOT / "worker.py")]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=20)
    assert done.returncode == 2
    assert "this is the store" in done.stderr and "set OPENAI_BASE_URL" in done.stderr and done.stderr.count("\n") == 1


def test_the_printed_address_opens_the_dashboard(stack: Stack) -> None:
    """As a browser opens it: the key once, then the cookie; the page and what it asks for, but no change."""
    store = httpx.URL(stack.store.endpoint)
    addresses = Addresses(store.port or 0, token=TOKEN, proxy_port=8080)
    [line] = [line for line in worker_lines(addresses, ["vqa"]) if "dashboard" in line]
    assert TOKEN not in line
    with httpx.Client(trust_env=False, follow_redirects=True) as browser:
        page = browser.get(line.split()[-1])
        assert page.status_code == 200 and "<html" in page.text.lower() and "key=" not in str(page.url)
        assert browser.get(f"{store}/v1/agl/rollouts").status_code == 200
        assert browser.post(f"{store}/v1/agl/queues/rollouts/dequeue", json={}).status_code == 401


@pytest.mark.parametrize(
    ("address", "options", "words"),
    [
        (None, [], "set OPENAI_BASE_URL"),
        ("trainer:8080", [], "OPENAI_BASE_URL=trainer:8080 is no address"),
        ("http://127.0.0.1:9/v1", ["--concurrency", "0"], "--concurrency must be at least 1"),
        ("http://127.0.0.1:9/v1", ["--max-rollouts", "-1"], "--max-rollouts at least 0"),
    ],
)
def test_what_a_worker_cannot_do_is_one_sentence(
    address: str | None,
    options: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    if address is not None:
        monkeypatch.setenv("OPENAI_BASE_URL", address)
    with pytest.raises(SystemExit) as exit_info:
        worker.main(options)
    message = capsys.readouterr().err
    assert exit_info.value.code == 2 and words in message and message.count("\n") == 1
