"""Serve a checkpoint folder at an OpenAI-compatible address while a block runs, on a GPU or on the CPU."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from vision_rl.errors import UserError
from vision_rl.models.table import model_info
from vision_rl.platform import supervised
from vision_rl.platform.environment import CPU_ONLY, SERVER_KEY, run_environment
from vision_rl.platform.gpu import check_build
from vision_rl.platform.parent_death import child

START_SECONDS = 600.0
MODEL_NAME = "model"
"""The name under which the checkpoint is served."""
PLAIN_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
"""What a request does not say, as verl has it in training (vllm_async_server.py:213). A model's generation_config.json would
else take part: Qwen2.5-VL's asks for a repetition penalty, Qwen2-VL's for one candidate whatever the temperature."""

_THOUGHTFUL = ("--tool-parser-plugin", str(Path(__file__).with_name("vllm_thoughts.py")))


@contextmanager
def serve(
    model: str | Path,
    *,
    cpu: bool,
    max_model_len: int = 4096,
    images_per_prompt: int = 4,
    videos: bool = False,
    media_root: str = "/",
    tool_parser: str = "",
    port: int | None = None,
    name: str = MODEL_NAME,
) -> Iterator[str]:
    """Yield the base URL (ending in /v1) of a vLLM server for `model`; it is stopped at the end of the block.

    videos: answer about a video too, one in a prompt, all of its frames. tool_parser: accept requests with OpenAI's
    function tools, and read the calls by that parser of vLLM. port: None takes a free one. name: of the model, in requests.
    Raises `UserError` with the last lines of vLLM's log if the server does not come up.
    """
    check_build(cpu)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = port or probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", name),
        *("--max-model-len", str(max_model_len), "--allowed-local-media-path", media_root),
        *("--limit-mm-per-prompt", json.dumps({"image": images_per_prompt, "video": int(videos)})),
        *("--media-io-kwargs", json.dumps({"video": {"num_frames": -1}})),
        *("--override-generation-config", json.dumps(PLAIN_SAMPLING)),
        *("--logprobs-mode", "processed_logprobs"),  # of what was sampled from, as in training
        *(("--enable-auto-tool-choice", "--tool-call-parser", tool_parser, *_THOUGHTFUL) if tool_parser else ()),
        *(_cpu_options(model) if cpu else ()),
    ]
    with _running("vLLM", command, cpu) as (server, log):
        _wait("vLLM", server, log, lambda: _healthy(f"http://127.0.0.1:{port}/health"))
        yield f"http://127.0.0.1:{port}/v1"


def command_of_vllm(model: Path, *, cpu: bool) -> str:
    """The shell command of vLLM alone that serves a folder on this machine; its defaults ask a CPU for nearly all memory."""
    if not cpu:
        return "vllm serve PATH_OF_THIS_FOLDER"
    names = ("VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND", "TORCHDYNAMO_DISABLE")
    variables = [f"{name}={CPU_ONLY[name]}" for name in names]
    words = [*variables, "vllm", "serve", "PATH_OF_THIS_FOLDER", "--max-model-len", "4096", *_cpu_options(model)]
    return shlex.join(words)


def _cpu_options(model: str | Path) -> list[str]:
    """For vLLM's CPU build; a model that cannot be trained may still be served."""
    plain = ["--enforce-eager", "--max-num-seqs", "32"]
    try:
        family = model_info(model).family
    except UserError:
        return ["--dtype", "float32", *plain]
    if family.precision == "float32":
        return ["--dtype", family.precision, *plain]
    states = ["--mamba-ssm-cache-dtype", "float32", "--no-enable-prefix-caching"]
    executor = ["--distributed-executor-backend", "vision_rl.serving.vllm_executor.OneProcessExecutor"]
    return ["--dtype", family.precision, *states, *executor, *plain]


@contextmanager
def serve_sglang(actor_rollout: Mapping[str, Any], *, cpu: bool, key: str = "") -> Iterator[str]:
    """As `serve`, by SGLang as a run would use it: `actor_rollout` is that section of a resolved configuration, `key` what
    every request must bring."""
    with tempfile.TemporaryDirectory(prefix="sglang-") as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(actor_rollout), encoding="utf-8")
        command = [sys.executable, "-m", "vision_rl.serving.sglang_serve", str(config)]
        with _running("SGLang", command, cpu, key) as (server, log):
            _wait("SGLang", server, log, lambda: _address(log) is not None)
            yield f"{_address(log)}/v1"


def _address(log: Path) -> str | None:
    """What a server printed as its address, once it has."""
    lines = log.read_text(errors="replace").splitlines()
    return next((line for line in lines if line.startswith("http://")), None)


@contextmanager
def _running(name: str, command: list[str], cpu: bool, key: str = "") -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A server's process and the file of what it prints; the key of another server, in the user's environment, is not its."""
    with tempfile.NamedTemporaryFile("w+", prefix=f"{name.lower()}-", suffix=".log") as log:
        environment = {**os.environ, **run_environment(cpu), SERVER_KEY: key}
        heeding = [sys.executable, "-IS", supervised.__file__, *command]
        with child(heeding, stdout=log, stderr=subprocess.STDOUT, env=environment) as server:
            yield server, Path(log.name)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _wait(name: str, server: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise UserError(
                f"{name} ended with exit code {server.returncode} before it served the model; its last lines:\n{tail}"
            )
        if ready():
            return
        time.sleep(0.2)
    raise UserError(f"{name} did not serve the model within {START_SECONDS:.0f} s; see its log {log}")
