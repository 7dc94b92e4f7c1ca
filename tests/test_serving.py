"""The server of an evaluation: it ends with the process that started it, however that ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from scripts.tiny_models.families import build
from tests.dummy_buffers import PLANTED
from tests.test_e2e_families import TRAINED
from vision_rl.errors import UserError
from vision_rl.platform.environment import run_environment
from vision_rl.serving import serve as serving

ROOT = Path(__file__).resolve().parents[1]
SERVE = """
import sys
from vision_rl.serving import serve as serving
serving.sys.executable = sys.argv[1]
with serving.serve("model", cpu=True):
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.slow
def test_a_killed_evaluation_leaves_no_server(number: signal.Signals, tmp_path: Path) -> None:
    stub = tmp_path / "server"
    stub.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    stub.chmod(0o755)
    evaluation = subprocess.Popen([sys.executable, "-c", SERVE, str(stub)])
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline and evaluation.poll() is None
        time.sleep(0.05)
    server = psutil.Process(int((tmp_path / "pid").read_text()))
    evaluation.send_signal(number)
    evaluation.wait(10)
    try:
        server.wait(10)
    except psutil.TimeoutExpired:
        server.kill()
        pytest.fail("the server outlived the evaluation")


def test_a_server_that_ends_by_itself_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "server"
    stub.write_text("#!/bin/sh\necho the weights are cut off >&2\nexit 3\n")
    stub.chmod(0o755)
    monkeypatch.setattr(serving.sys, "executable", str(stub))
    with (
        pytest.raises(UserError, match=r"exit code 3 before it served .*\n.*cut off"),
        serving.serve("model", cpu=True),
    ):
        raise AssertionError("it served")


def test_the_key_of_another_server_of_the_user_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM reads it from the environment; evaluation, doctor and agents, which start a server for themselves, got a 401."""
    stub = tmp_path / "server"
    stub.write_text("#!/bin/sh\necho the key is ${VLLM_API_KEY:-unset} >&2\nexit 3\n")
    stub.chmod(0o755)
    monkeypatch.setattr(serving.sys, "executable", str(stub))
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    with pytest.raises(UserError, match="the key is unset"), serving.serve("model", cpu=True):
        raise AssertionError("it served")
    with pytest.raises(UserError, match="the key is own"), serving.serve_sglang({}, cpu=True, key="own"):
        raise AssertionError("it served")


@pytest.mark.e2e
def test_a_models_own_sampling_defaults_do_not_change_what_is_scored(tmp_path: Path, tiny_dir: Path) -> None:
    """With them the greedy reply would be another one, and samples at any temperature the same."""
    for file in tiny_dir.iterdir():
        (tmp_path / file.name).symlink_to(file)
    defaults = json.loads((tiny_dir / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(json.dumps(defaults | {"top_k": 1, "repetition_penalty": 9.0}))

    with (
        serving.serve(tmp_path, cpu=True, max_model_len=256) as url,
        httpx.Client(trust_env=False, timeout=120) as client,
    ):

        def replies(n: int, **parameters: float) -> list[str]:
            messages = [{"role": "user", "content": "Which shape is it? Which colour is it? How many are there?"}]
            body = {"model": serving.MODEL_NAME, "messages": messages, "max_tokens": 12, "n": n, **parameters}
            answer = client.post(f"{url}/chat/completions", json=body).raise_for_status().json()
            return [choice["message"]["content"] for choice in answer["choices"]]

        greedy = replies(1, temperature=0)
        assert greedy == replies(1, temperature=0, repetition_penalty=1.0, top_k=-1)
        assert greedy != replies(1, temperature=0, repetition_penalty=9.0), "the penalty would make no difference here"
        assert len(set(replies(16, temperature=2.0))) > 1


@pytest.mark.e2e
@pytest.mark.long
def test_a_weight_sync_restores_all_that_a_dummy_load_fills(tmp_path: Path) -> None:
    """What is neither in the checkpoint nor restored stays random, and nothing is printed: the server answers blind."""
    names = [row.name for row in TRAINED]
    models = [build(name, tmp_path / str(number)) for number, name in enumerate(names)]
    left_out = "model.visual.patch_embed.proj.weight"
    asked = [*map(str, models), f"{models[names.index('Qwen3-VL')]}@{left_out}"]
    command = [sys.executable, "-m", "tests.dummy_buffers", *asked]
    environment = {**os.environ, **run_environment(True)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    *kept, control = json.loads(done.stdout.splitlines()[-1])
    assert {name: missed for name, missed in zip(names, kept, strict=True) if missed} == {}
    assert control == [PLANTED, left_out.removeprefix("model.")]
