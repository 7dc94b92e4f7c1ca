"""What a token must not open, each probe through the real proxy: before, these fetched, read, leaked or ended a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import agentlightning as agl
import httpx
import pytest
from PIL import Image

from scripts import fake_backend
from scripts.engine_stack import Stack, running_stack
from tests.pictures import data_uri
from vision_rl.media.references import frames_of, is_video, picture_path
from vision_rl.rollout.chat_request import FIELDS, MAX_DEPTH, VIDEO_URI
from vision_rl.rollout.pictures import MAX_FRAMES
from vision_rl.rollout.runner import check_reward
from vision_rl.rollout.trace import reward_from_spans, turns_from_spans

TOKEN = "the-token-of-this-test"
SECRET = "a-key-in-the-environment-of-the-trainer"


class Listener:
    """A server of a stranger; `asked` holds what was ever sent to it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                asked.append(f"{self.path} {dict(self.headers)} {self.rfile.read(length)!r}")
                self.send_response(500)
                self.end_headers()

            do_POST = do_GET

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture(scope="module")
def stranger() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.server.shutdown()


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    Image.new("RGB", (64, 48), "red").save(folder / "a.png")
    Image.new("RGB", (64, 48), "red").save(folder.parent / "outside.png")
    return folder


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, media: Path) -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("A_SECRET", SECRET)
        with running_stack(tmp_path_factory.mktemp("pictures"), token=TOKEN, media_roots=[media]) as running:
            yield running


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False, timeout=20) as one:
        yield one


def address(stack: Stack, traced: bool) -> str:
    return (stack.claim()[1] if traced else f"{stack.address}/v1") + "/chat/completions"


def body(content: Any = "What?", **fields: Any) -> dict[str, Any]:
    return {"model": fake_backend.MODEL, "messages": [{"role": "user", "content": content}], **fields}


def seen(stack: Stack) -> dict[str, Any]:
    """What the model server was asked so far."""
    return stack.stats()


def refused(
    stack: Stack, client: httpx.Client, request: dict[str, Any] | bytes, traced: bool, status: int = 400
) -> str:
    """The sentence with which a request is refused, before it reaches the model server."""
    before = seen(stack)["requests"]
    sent = {"content": request} if isinstance(request, bytes) else {"json": request}
    reply = client.post(address(stack, traced), **sent)  # type: ignore[arg-type]
    assert reply.status_code == status, reply.text
    assert seen(stack)["requests"] == before
    message = str(reply.json()["error"]["message"])
    assert message and "Traceback" not in message
    return message


TRACED = pytest.mark.parametrize("traced", [True, False], ids=["traced", "plain"])


@TRACED
def test_no_environment_variable_leaves_with_a_request(
    stack: Stack, client: httpx.Client, stranger: Listener, traced: bool
) -> None:
    """litellm read `os.environ/NAME` in fields of the caller's and sent the value to an address of the caller's."""
    leak = {"api_key": "os.environ/A_SECRET", "api_base": stranger.url, "base_url": stranger.url}
    models = [{"model_name": "x", "litellm_params": {"model": "openai/x", **leak}}]
    for fields in ({"user_config": {"model_list": models}}, leak, {"extra_headers": leak}, {"model_list": models}):
        refused(stack, client, body(**fields), traced)
    refused(stack, client, body(**{"model": "os.environ/A_SECRET"}), traced, 404)
    reply = client.post(address(stack, traced), json=body("os.environ/A_SECRET", user="os.environ/A_SECRET"))
    assert reply.status_code == 200 and SECRET not in reply.text + str(seen(stack))
    assert stranger.asked == []


@TRACED
@pytest.mark.parametrize(
    "part",
    [
        {"image_url": "{url}/a.png"},
        {"image_url": {"url": "{url}/a.png"}},
        {"text": "no type"},
        {"type": "image_pil", "image_pil": "{outside}"},
        {"type": "image_pil", "image_pil": "{inside}"},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"type": "file", "file": {"file_id": "{url}/a.png"}},
        {"type": "file", "file": {"file_data": "{url}/a.png"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": "{url}/a.wav"}},
        {"type": "video_url", "video_url": {"url": "{url}/a.mp4"}},
        {"type": "video_url", "video_url": {"url": "{inside}"}},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
        {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64,AAAA", "uuid": "x"}},
        {"type": "video_url", "video_url": "data:video/jpeg;base64,AAAA"},
        {"type": "video_url", "video_url": {"url": None}},
        {"type": "input_image", "image_url": "{url}/a.png"},
        {"type": "image_url", "image_url": {"url": "{inside}", "uuid": "x"}},
        {"type": "image_url", "image_url": {"url": "{inside}"}, "uuid": "x"},
        {"type": "image_url", "image_url": {"url": ["{inside}"]}},
        {"type": "image_url", "image_url": None},
        {"type": "text", "text": "x", "image_url": {"url": "{url}/a.png"}},
        {"type": "text", "text": {"url": "{url}"}},
        {"type": "refusal", "refusal": "x"},
        {"type": ["text"], "text": "x"},
        "text",
        None,
        7,
    ],
    ids=str,
)
def test_parts_of_other_kinds_are_refused(
    stack: Stack, client: httpx.Client, stranger: Listener, media: Path, part: Any, traced: bool
) -> None:
    names = {"{url}": stranger.url, "{outside}": str(media.parent / "outside.png"), "{inside}": str(media / "a.png")}
    text = json.dumps(part)
    for name, value in names.items():
        text = text.replace(name, value)
    assert "content part must be" in refused(stack, client, body([json.loads(text)]), traced)
    assert stranger.asked == []


@TRACED
@pytest.mark.parametrize(
    "url",
    [
        "{url}/a.png",
        "HTTP://127.0.0.1/a.png",
        "//127.0.0.1/a.png",
        "ftp://127.0.0.1/a.png",
        "s3://bucket/a.png",
        "/etc/passwd",
        "{inside}",
        "ftp:{inside}",
        "a.png",
        "",
        "file:///etc/passwd",
        "file://{outside}",
        "file:{outside}",
        "file://localhost{inside}",
        "file://{inside}?x",
        "file://{inside}#x",
        "file://{inside}%00.png",
        "file://{media}/../outside.png",
        "file://{media}/%2e%2e/outside.png",
        "file://[",
        "data:text/plain;base64,AAAA",
        "data:video/jpeg;base64,AAAA",
        "DATA:image/png;base64,AAAA",
    ],
)
def test_nothing_is_fetched_or_read_elsewhere(
    stack: Stack, client: httpx.Client, stranger: Listener, media: Path, url: str, traced: bool
) -> None:
    url = url.replace("{url}", stranger.url).replace("{media}", str(media))
    url = url.replace("{outside}", str(media.parent / "outside.png")).replace("{inside}", str(media / "a.png"))
    for image in (url, {"url": url}):
        message = refused(stack, client, body([{"type": "image_url", "image_url": image}]), traced, 403)
        assert "data: URIs, or file:// addresses" in message
    assert stranger.asked == []


@TRACED
@pytest.mark.parametrize("plain", [True, False], ids=["a text", "an object"])
def test_a_picture_of_either_form_is_sent_on_and_traced(
    stack: Stack, client: httpx.Client, media: Path, traced: bool, plain: bool
) -> None:
    """Some clients send the address as a plain text; an untraced picture would train the actor without it."""
    urls = [(media / "a.png").as_uri(), data_uri((media / "a.png").read_bytes())]
    parts = [{"type": "image_url", "image_url": url if plain else {"url": url, "detail": "high"}} for url in urls]
    rollout, endpoint = stack.claim() if traced else (None, f"{stack.address}/v1")
    assert client.post(endpoint + "/chat/completions", json=body(parts)).status_code == 200
    [message] = seen(stack)["messages"]
    assert message["content"] == [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    if rollout is not None:
        [turn] = turns_from_spans(stack.spans(rollout))
        assert len(turn.image_refs) == 2


@TRACED
def test_a_video_goes_on_as_its_frames_and_each_is_kept(
    stack: Stack, client: httpx.Client, media: Path, traced: bool
) -> None:
    frame = data_uri((media / "a.png").read_bytes()).partition(",")[2]
    part = {"type": "video_url", "video_url": {"url": f"{VIDEO_URI}{frame},{frame}"}}
    rollout, endpoint = stack.claim() if traced else (None, f"{stack.address}/v1")
    assert client.post(endpoint + "/chat/completions", json=body([part])).status_code == 200
    [message] = seen(stack)["messages"]
    assert message["content"] == [part]
    if rollout is not None:
        [turn] = turns_from_spans(stack.spans(rollout))
        [ref] = turn.image_refs
        first, second = frames_of(ref)
        assert is_video(ref) and first == second
        assert picture_path(first, stack.picture_dir).read_bytes() == (media / "a.png").read_bytes()


@TRACED
@pytest.mark.parametrize("frames", ["AAAA", "{frame},AAAA", "{frame},", ""])
def test_a_video_of_anything_but_pictures_is_refused(
    stack: Stack, client: httpx.Client, media: Path, frames: str, traced: bool
) -> None:
    """No decoder of video files is within a client's reach, in the proxy or in the model server."""
    url = VIDEO_URI + frames.replace("{frame}", data_uri((media / "a.png").read_bytes()).partition(",")[2])
    part = {"type": "video_url", "video_url": {"url": url}}
    assert "a picture is refused" in refused(stack, client, body([part]), traced)
    many = {"type": "video_url", "video_url": {"url": VIDEO_URI + "AAAA," * MAX_FRAMES}}
    assert f"at most {MAX_FRAMES}" in refused(stack, client, body([many]), traced)


@TRACED
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt_embeds": "AAAA"}, "'prompt_embeds' is not served"),
        ({"mm_processor_kwargs": {}}, "is not served"),
        ({"chat_template": "{{ x }}"}, "is not served"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs must be"),
        ({"chat_template_kwargs": {"enable_thinking": "{{ x }}"}}, "chat_template_kwargs must be"),
        ({"documents": []}, "is not served"),
        ({"guided_regex": "(a+)+"}, "is not served"),
        ({"structured_outputs": {"regex": "(a+)+"}}, "is not served"),
        ({"logits_processors": ["os.system"]}, "is not served"),
        ({"vllm_xargs": {}}, "is not served"),
        ({"kv_transfer_params": {}}, "is not served"),
        ({"media_io_kwargs": {}}, "is not served"),
        ({"cache_salt": "x"}, "is not served"),
        ({"priority": 1}, "is not served"),
        ({"functions": []}, "is not served"),
        ({"n": 10**9}, "n must be a whole number"),
        ({"n": 0}, "n must be"),
        ({"n": True}, "n must be"),
        ({"temperature": -1}, "temperature must be a number from 0"),
        ({"temperature": "1"}, "temperature must be"),
        ({"top_logprobs": 10**6}, "top_logprobs must be"),
        ({"max_tokens": 10**12}, "max_tokens must be"),
        ({"max_tokens": 1.5}, "max_tokens must be"),
        ({"seed": 2**64 - 1}, "seed must be"),
        ({"stop": ["x"] * 1000}, "stop must be"),
        ({"stop": [{"a": 1}]}, "stop must be"),
        ({"logit_bias": {"x": 1}}, "logit_bias must be"),
        ({"logit_bias": {"1": "x"}}, "logit_bias must be"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format must be"),
        ({"tools": [{"type": "mcp", "server_url": "http://x"}]}, "tools must be"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": "x"}}]}, "tools must be"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice must be"),
        ({"stream_options": {"x": 1}}, "stream_options must be"),
        ({"model": ["x"]}, "model must be a text"),
        ({"messages": []}, "messages must be"),
        ({"messages": "x"}, "messages must be"),
        ({"messages": ["x"]}, "a message must be an object"),
        ({"messages": [{"content": "x"}]}, "must have a role"),
        ({"messages": [{"role": "root", "content": "x"}]}, "a message's role must be"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "a message's role must be"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "a message's content must be"),
        ({"messages": [{"role": "user", "content": "x", "audio": {"id": "x"}}]}, "may not have 'audio'"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"type": "x"}]}]}, "a message's tool_calls must be"),
    ],
    ids=str,
)
def test_fields_and_values_outside_the_list_are_refused_with_a_sentence(
    stack: Stack, client: httpx.Client, traced: bool, fields: dict[str, Any], said: str
) -> None:
    assert said in refused(stack, client, body(**fields), traced)


@TRACED
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"null", b'"x"', b'{"a": NaN}', b"\xff\xfe", b'{"a": "\\ud800"}']
    + [b"[" * depth + b"]" * depth for depth in (100, 100_000)]
    + [b'{"messages": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}" for depth in (100, 100_000)],
    ids=lambda content: repr(content[:20]) + str(len(content)),
)
def test_what_is_no_request_is_refused(stack: Stack, client: httpx.Client, traced: bool, content: bytes) -> None:
    assert "the body" in refused(stack, client, content, traced)


def test_a_body_may_be_nested_as_deep_as_it_says(stack: Stack, client: httpx.Client) -> None:
    schema: dict[str, Any] = {}
    for _ in range(MAX_DEPTH - 6):
        schema = {"properties": schema}
    tools = [{"type": "function", "function": {"name": "x", "parameters": schema}}]
    assert client.post(address(stack, False), json=body(tools=tools)).status_code == 200


@TRACED
def test_what_a_sampling_client_needs_is_served(stack: Stack, client: httpx.Client, traced: bool) -> None:
    """Every field of the list, and a conversation with tools as OpenAI's client writes it, its nulls included."""
    function = {"name": "zoom", "description": "x", "parameters": {"type": "object"}, "strict": False}
    fields: dict[str, Any] = {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "zoom"}},
        "parallel_tool_calls": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.0,
        "frequency_penalty": 0.1,
        "presence_penalty": -0.1,
        "repetition_penalty": 1.05,
        "logit_bias": {"151655": -100.0},
        "max_tokens": 64,
        "max_completion_tokens": 64,
        "min_tokens": 1,
        "stop": ["</s>"],
        "stop_token_ids": [2],
        "ignore_eos": False,
        "skip_special_tokens": False,
        "seed": 7,
        "n": 1,
        "logprobs": True,
        "top_logprobs": 5,
        "return_token_ids": True,
        "response_format": {"type": "text"},
        "user": "me",
        "modalities": ["text"],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    call = {"id": "1", "type": "function", "function": {"name": "zoom", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "You see."},
        {"role": "user", "content": [{"type": "text", "text": "What?"}], "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "audio": None},
        {"role": "tool", "content": "done", "tool_call_id": "1"},
    ]
    request = {"model": fake_backend.MODEL, "messages": messages, **fields, "stream": False, "stream_options": None}
    assert set(request) == set(FIELDS)
    reply = client.post(address(stack, traced), json={**request, "user_config": {}})
    assert reply.status_code == 400, "a field that is not listed is none of ours"
    assert client.post(address(stack, traced), json=request).status_code == 200
    sent = seen(stack)["last"]
    del fields["modalities"]  # it cannot change a reply
    if traced:
        del function["strict"]  # vLLM would compile a grammar
    assert {name: value for name, value in sent.items() if name != "model"} == fields


def test_a_plain_client_may_ask_for_several_choices_and_a_rollout_for_one(stack: Stack, client: httpx.Client) -> None:
    assert len(client.post(address(stack, False), json=body(n=3)).json()["choices"]) == 3
    assert "n must be 1" in refused(stack, client, body(n=3), True)


ROUTES = (
    [
        ("POST", path)
        for path in (
            "/chat/completions",
            "/v1/completions",
            "/v1/messages",
            "/responses",
            "/v1/embeddings",
            "/v1/files",
            "/v1/images/generations",
            "/v1/audio/speech",
            "/mcp-rest/test/connection",
            "/mcp",
            "/config/update",
            "/config/pass_through_endpoint",
            "/key/generate",
            "/model/new",
            "/cache/flushall",
            "/test/connection",
            "/prompts/test",
            "/rollout/ro-1/attempt/at-1/v1/messages",
            "/rollout/ro-1/attempt/at-1/v1/completions",
            "/v1/models",
            "/v1/rollouts/claim/",
            "/v1/chat/completions/",
            "/v1/agl/queues/rollouts/dequeue",
            "/v1/load_lora_adapter",
            "/collective_rpc",
        )
    ]
    + [
        ("GET", path)
        for path in ("/", "/docs", "/openapi.json", "/redoc", "/metrics", "/health", "/ui", "/routes", "/get/config")
    ]
    + [("PUT", "/v1/chat/completions"), ("DELETE", "/v1/rollouts/claim"), ("OPTIONS", "/v1/models")]
)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_other_routes_are_404_with_a_sentence(stack: Stack, client: httpx.Client, method: str, path: str) -> None:
    reply = client.request(method, stack.address + path, json={"model": "x"} if method == "POST" else None)
    assert reply.status_code == 404
    assert "is not served here" in reply.json()["error"]["message"]


def test_the_host_header_opens_nothing(stack: Stack) -> None:
    for host in ("localhost", "127.0.0.1", "x/v1/models?", "x\\@y", ""):
        for path in ("/v1/models", "/v1/rollouts/claim"):
            reply = httpx.post(stack.address + path, headers={"Host": host}, json={}, trust_env=False)
            assert reply.status_code in (400, 401)


# A worker's report


LARGEST = [1e308, -1e308, 1e39, 3.4e38, 1e16, 10**400]


@pytest.mark.parametrize("value", [*LARGEST, "1", None, True, [1], {"a": 1}], ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("where", ["reward", "component"])
def test_a_reward_that_a_batch_cannot_hold_is_refused(
    stack: Stack, client: httpx.Client, value: Any, where: str
) -> None:
    rollout, _ = stack.claim()
    identity = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
    values = {"reward": value} if where == "reward" else {"reward": 1.0, "components": {"accuracy": value}}
    reply = client.post(f"{stack.address}/v1/rollouts/report", content=json.dumps({**identity, **values}))
    assert reply.status_code == 400
    message = reply.json()["error"]["message"]
    # JSON has no number of 400 digits: the parser refuses it.
    assert "must be a finite number" in message or "the body is not JSON" in message
    assert stack.spans(rollout) == []


@pytest.mark.parametrize(
    ("route", "fields", "said"),
    [
        ("claim", {"wait_seconds": "nan"}, "wait_seconds must be a number from 0 to 20"),
        ("claim", {"wait_seconds": -1}, "wait_seconds must be"),
        ("claim", {"wait_seconds": 1e9}, "wait_seconds must be"),
        ("claim", {"wait_seconds": True}, "wait_seconds must be"),
        ("claim", {"worker_id": 7}, "worker_id must be a text"),
        ("claim", {"worker_id": "x" * 1000}, "worker_id must be a text"),
        ("heartbeat", {"attempt_id": None}, "attempt_id must be a text"),
        ("heartbeat", {"attempt_id": ["x"]}, "attempt_id must be a text"),
        ("report", {"rollout_id": {"a": 1}}, "rollout_id must be a text"),
        ("report", {"components": [1]}, "components must be an object"),
        ("report", {"components": "x"}, "components must be an object"),
        ("report", {"components": {f"c{i}": 1 for i in range(1000)}}, "components must be an object of at most"),
        ("report", {"components": {"": 1}}, "must be a finite number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_types_are_refused_with_a_sentence(
    stack: Stack, client: httpx.Client, route: str, fields: dict[str, Any], said: str
) -> None:
    sent = {"worker_id": "w", "rollout_id": "ro-1", "attempt_id": "at-1", "reward": 1.0, **fields}
    reply = client.post(f"{stack.address}/v1/rollouts/{route}", json=sent)
    assert reply.status_code == 400 and said in reply.json()["error"]["message"], reply.text


@pytest.mark.parametrize("route", ["claim", "heartbeat", "report"])
@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100 + b"1" + b"}" * 100, b"[1]", b"{"], ids=len)
def test_bodies_that_are_no_objects_are_refused(stack: Stack, client: httpx.Client, route: str, content: bytes) -> None:
    for address in (f"{stack.address}/v1/rollouts/{route}", f"{stack.store.endpoint}/v1/agl/vision/{route}"):
        if address.endswith("vision/claim") or address.endswith("vision/report"):
            address = f"{stack.store.endpoint}/v1/agl/queues/rollouts/dequeue"
        assert client.post(address, content=content).status_code == 400, address


@pytest.mark.parametrize("wait", ["nan", -1, 1e9, None], ids=str)
def test_the_store_waits_no_time_that_is_none(stack: Stack, client: httpx.Client, wait: Any) -> None:
    dequeue = f"{stack.store.endpoint}/v1/agl/queues/rollouts/dequeue"
    assert client.post(dequeue, json={"wait_seconds": wait}).status_code == 400
    assert client.post(dequeue, content=b'{"wait_seconds": NaN}').status_code == 400
    assert client.post(dequeue, json={"limit": 10**9}).status_code == 400


@pytest.mark.parametrize("value", [1e308, -1e39, 1e16, float("inf"), float("nan")])
def test_a_runner_refuses_such_a_reward_itself(value: float) -> None:
    for components in ({"reward": value}, {"reward": 1.0, "accuracy": value}):
        with pytest.raises(ValueError, match=r"not a finite number within \+-1e\+15: (reward|accuracy)"):
            check_reward([agl.emit_reward(components, primary_key="reward", propagate=False)])
    check_reward([agl.emit_reward({"reward": 1e15, "accuracy": -1e15}, primary_key="reward", propagate=False)])


def test_a_reward_written_past_the_door_does_not_reach_the_batch(stack: Stack, client: httpx.Client) -> None:
    """Agent Lightning's runners elsewhere write spans into the store themselves."""
    rollout, _ = stack.claim()
    attributes = {"agentlightning.reward.0.name": "reward", "agentlightning.reward.0.value": 1e308}
    span = {"name": "agentlightning.annotation", "attributes": attributes, "status": {"status_code": "OK"}}
    sent = {
        "rollout_id": rollout.rollout_id,
        "attempt_id": rollout.attempt.attempt_id,
        "spans": [{**span, "start_time": 1.0, "end_time": 1.0}],
        "status": "succeeded",
        "failure": "",
    }
    assert client.post(f"{stack.store.endpoint}/v1/agl/vision/record", json=sent).status_code == 200
    assert reward_from_spans(stack.spans(rollout)) is None


def test_the_store_says_that_it_is_the_store(stack: Stack, client: httpx.Client) -> None:
    for path in ("/v1/rollouts/claim", "/v1/chat/completions", "/rollout/ro-1/attempt/at-1/v1/chat/completions"):
        reply = client.post(stack.store.endpoint + path, json={"worker_id": "w"})
        assert reply.status_code == 404 and "this is the store" in reply.json()["error"]["message"]
