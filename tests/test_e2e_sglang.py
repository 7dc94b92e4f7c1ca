"""SGLang as the rollout engine: what its server reads and says is what the actor sees, before and after new weights."""

from __future__ import annotations

import base64
import copy
import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from scripts.tiny_models.families import build
from tests.data_samples import picture
from tests.test_e2e_training import ROOT, metrics_of, run
from vision_rl.config.resolve import resolve
from vision_rl.media.images import open_image
from vision_rl.models.processor import load_processor
from vision_rl.platform.environment import SERVER_KEY
from vision_rl.serving.banned_tokens import BANNED_LOGIT, banned_tokens
from vision_rl.serving.serve import serve_sglang

needs_sglang = pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="make sglang installs it")
pytestmark = [pytest.mark.e2e, pytest.mark.long, needs_sglang]

MAX_PIXELS = 10_000
KEY = "the key of this run"


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def transparent(seed: int) -> Image.Image:
    image = picture((84, 84), seed).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((84, 84)))
    return image


PICTURES = {
    "plain": [encoded(picture((84, 84), 1), "PNG")],
    "larger than allowed": [encoded(picture((300, 200), 2), "JPEG")],
    "of odd sides": [encoded(picture((101, 67), 3), "PNG")],
    "transparent": [encoded(transparent(4), "PNG")],
    "two": [encoded(picture((84, 56), 5), "PNG"), encoded(picture((56, 84), 6), "PNG")],
}


@contextmanager
def served(model: Path, media_root: Path, cache_mb: int = 0) -> Iterator[str]:
    overrides = ["agent.image_transport=file", f"agent.max_pixels={MAX_PIXELS}"]
    flags = {"actor_rollout_ref.rollout.name": "sglang"}
    resolved = resolve("cpu", overrides, task="vqa", model=model, flags=flags, media_root=media_root)
    actor_rollout = copy.deepcopy(resolved.verl["actor_rollout_ref"])
    arguments = actor_rollout["rollout"]["engine_kwargs"]["sglang"]
    assert arguments["mm_embedding_cache_mb"] == 0
    arguments["mm_embedding_cache_mb"] = cache_mb
    with serve_sglang(actor_rollout, cpu=True, key=KEY) as url:  # as a run has one
        yield url.removesuffix("/v1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def server(tiny_dir: Path, folder: Path) -> Iterator[str]:
    with served(tiny_dir, folder) as address:
        yield address


def ask(server: str, urls: list[str], **options: Any) -> httpx.Response:
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content.append({"type": "text", "text": "What color is it?"})
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 6, "logprobs": True}
    return post(f"{server}/v1/chat/completions", {**body, **options})


def post(url: str, body: dict[str, Any], key: str = KEY) -> httpx.Response:
    return httpx.post(url, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=120, trust_env=False)


def data_uris(files: list[bytes]) -> list[str]:
    return [f"data:image/png;base64,{base64.b64encode(file).decode()}" for file in files]


def said(choice: dict[str, Any]) -> list[float]:
    return [token["logprob"] for token in choice["logprobs"]["content"]]


def expected(
    model: Any, processor: Any, files: list[bytes], response: list[int], temperature: float, banned: Sequence[int] = ()
) -> Any:
    """(prompt ids, log-probabilities of `response`) by transformers, of the tokens that are not `banned`."""
    import torch

    content = [*({"type": "image"} for _ in files), {"type": "text", "text": "What color is it?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = [open_image(io.BytesIO(file)) for file in files]
    inputs = processor(text=[text], images=images, max_pixels=MAX_PIXELS, return_tensors="pt")
    prompt = inputs.pop("input_ids")
    whole = torch.cat([prompt, torch.tensor([response])], dim=1)
    if (types := inputs.pop("mm_token_type_ids", None)) is not None:
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(types, (0, len(response)))  # the response is text
    with torch.no_grad():
        logits = model(input_ids=whole, **{**inputs, "attention_mask": torch.ones_like(whole)}).logits
    logits[..., list(banned)] = BANNED_LOGIT
    log_probs = (logits[0, prompt.shape[1] - 1 : -1] / temperature).log_softmax(-1)
    return prompt[0].tolist(), log_probs.gather(1, torch.tensor(response)[:, None])[:, 0].tolist()


@pytest.mark.parametrize("name", PICTURES)
def test_tokens_and_log_probabilities_are_those_of_transformers(
    name: str, server: str, tiny_model: Any, tiny_processor: Any
) -> None:
    reply = ask(server, data_uris(PICTURES[name]), temperature=0.7).json()
    choice = reply["choices"][0]
    prompt, log_probs = expected(tiny_model, tiny_processor, PICTURES[name], choice["token_ids"], 0.7)
    assert reply["prompt_token_ids"] == prompt
    assert reply["usage"] == {**reply["usage"], "prompt_tokens": len(prompt), "completion_tokens": len(log_probs)}
    assert said(choice) == pytest.approx(log_probs, abs=1e-4)
    text = tiny_processor.tokenizer.decode(choice["token_ids"], skip_special_tokens=True)
    assert choice["message"]["content"] == text


def test_every_choice_of_a_request_has_its_own_tokens_and_log_probabilities(
    server: str, tiny_model: Any, tiny_processor: Any
) -> None:
    """As the proxy asks for the rollouts of a group."""
    reply = ask(server, data_uris(PICTURES["two"]), temperature=2.0, n=4).json()
    prompts = [
        expected(tiny_model, tiny_processor, PICTURES["two"], choice["token_ids"], 2.0) for choice in reply["choices"]
    ]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert len({tuple(choice["token_ids"]) for choice in reply["choices"]}) > 1
    for choice, (prompt, log_probs) in zip(reply["choices"], prompts, strict=True):
        assert reply["prompt_token_ids"] == prompt
        assert said(choice) == pytest.approx(log_probs, abs=1e-4)


def test_nobody_is_answered_without_the_key(server: str) -> None:
    for path in ("v1/chat/completions", "update_weights_from_tensor", "flush_cache"):
        assert post(f"{server}/{path}", {}, key="another").status_code == 401, path


def test_qwen3_vl_agrees_when_it_is_busy(folder: Path, tmp_path: Path) -> None:
    """Another patch size, deepstack, and a batch of requests. Its random weights would also write placeholders of pictures."""
    import torch
    from transformers import AutoModelForImageTextToText

    checkpoint = build("Qwen3-VL", tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = load_processor(str(checkpoint))
    banned = banned_tokens(str(checkpoint), processor)
    cases = [files for name, files in PICTURES.items() if name != "two"] * 4
    with served(checkpoint, folder) as address, ThreadPoolExecutor(len(cases)) as pool:
        replies = list(pool.map(lambda files: ask(address, data_uris(files), temperature=0.7).json(), cases))
    assert banned
    for files, reply in zip(cases, replies, strict=True):
        choice = reply["choices"][0]
        assert not set(choice["token_ids"]) & set(banned)
        prompt, log_probs = expected(model, processor, files, choice["token_ids"], 0.7, banned)
        assert reply["prompt_token_ids"] == prompt
        assert said(choice) == pytest.approx(log_probs, abs=1e-4)


def test_files_are_read_in_the_data_folder_only(server: str, folder: Path, tmp_path: Path) -> None:
    for place in (folder, tmp_path):
        (place / "a b.png").write_bytes(PICTURES["transparent"][0])
    inside, outside = ((place / "a b.png").as_uri() for place in (folder, tmp_path))
    by_file, by_value = (
        ask(server, [url], temperature=0).json() for url in (inside, data_uris(PICTURES["transparent"])[0])
    )
    assert by_file["prompt_token_ids"] == by_value["prompt_token_ids"]
    assert by_file["choices"][0]["logprobs"] == by_value["choices"][0]["logprobs"]
    for url in (
        outside,
        str(tmp_path / "a b.png"),
        f"{folder.as_uri()}/../{tmp_path.name}/a b.png",
        "http://127.0.0.1/a.png",
    ):
        assert ask(server, [url]).status_code >= 400, url
    assert ask(server, [inside]).status_code == 200, "the server goes on"


@pytest.mark.parametrize("cache_mb", [0, 100])
def test_no_picture_is_answered_from_an_old_vision_tower(
    cache_mb: int, tiny_dir: Path, tiny_model: Any, tiny_processor: Any, folder: Path, tmp_path: Path
) -> None:
    """With SGLang's own cache of 100 MB it is: that is why the cache is off."""
    import torch

    changed = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for parameter in changed.model.visual.parameters():
            parameter.mul_(1.2)
    changed.save_pretrained(tmp_path / "changed")
    tiny_processor.save_pretrained(tmp_path / "changed")
    files = PICTURES["plain"]
    with served(tiny_dir, folder, cache_mb) as address:
        ask(address, data_uris(files), temperature=0)
        update = {"model_path": str(tmp_path / "changed")}
        assert post(f"{address}/update_weights_from_disk", update).is_success
        choice = ask(address, data_uris(files), temperature=0).json()["choices"][0]
    _, new = expected(changed, tiny_processor, files, choice["token_ids"], 1.0)
    _, old = expected(tiny_model, tiny_processor, files, choice["token_ids"], 1.0)
    assert max(abs(a - b) for a, b in zip(new, old, strict=True)) > 0.05, "the towers can be told apart"
    assert (said(choice) == pytest.approx(new, abs=1e-4)) == (cache_mb == 0)


def test_the_doctor_asks_the_engine_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVER_KEY, "of another server of this user")
    command = [sys.executable, "train_agent.py", "--doctor", "--rollout-engine", "sglang"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "|transformers - sglang|" in checked.stdout


def test_the_demo_trains_through_sglang(tmp_path: Path) -> None:
    steps = ["--max-steps", "6", "trainer.test_freq=6", "trainer.save_freq=6"]
    summary = run(tmp_path / "run", "--task", "vqa", "--rollout-engine", "sglang", *steps)
    lines = metrics_of(tmp_path / "run")
    assert summary["rollouts_failed"] == 0
    assert max(line["mismatch/logprob_max"] for line in lines if "mismatch/logprob_max" in line) <= 1e-4
    validated = [line["val/accuracy"] for line in lines if "val/accuracy" in line]
    assert validated[-1] > validated[0] + 0.1, json.dumps(validated)
