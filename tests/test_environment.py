"""What a run sets in its processes: verl's own variables on GPUs, and GPUs out of sight on the CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from verl.trainer.constants_ppo import PPO_RAY_RUNTIME_ENV

from vision_rl.config.resolve import resolve
from vision_rl.errors import UserError
from vision_rl.platform.environment import COMMON, run_environment
from vision_rl.rollout.addresses import free_port
from vision_rl.run.log import EVENTS, read_jsonl
from vision_rl.tiny import checkpoint_dir
from vision_rl.training.algorithm import RAY_STARTS, Launch, VisionVERL

OURS = {"TOKENIZERS_PARALLELISM", "VLLM_LOGGING_LEVEL"}  # runners are forked; vLLM writes to a file anyway
# A door to load adapters over HTTP, which serving/vllm_server.py does not need; the others are for NPUs and AMD's GPUs.
UNUSED = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "HCCL_HOST_SOCKET_PORT_RANGE",
    "HCCL_NPU_SOCKET_PORT_RANGE",
    "HSA_NO_SCRATCH_RECLAIM",
}

NO_CONTEXT: Any = None


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*run_environment(True), *run_environment(False)}:
        monkeypatch.delenv(name, raising=False)


def test_on_gpus_verls_own_variables_are_set() -> None:
    theirs, ours = PPO_RAY_RUNTIME_ENV["env_vars"], run_environment(False)
    assert {name: ours.get(name) for name in theirs.keys() - OURS - UNUSED} == {
        name: value for name, value in theirs.items() if name not in OURS | UNUSED
    }
    assert ours.keys() >= OURS and not ours.keys() & UNUSED
    assert "CUDA_VISIBLE_DEVICES" not in ours and "OMP_NUM_THREADS" not in ours


def test_megatron_alone_orders_its_launches() -> None:
    """As verl does since 0.9 (constants_ppo.py, `_uses_megatron`): a single queue costs FSDP2 its overlap."""
    assert run_environment(False, megatron=True)["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in run_environment(False)


def test_what_the_user_has_set_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert run_environment(False)["NCCL_DEBUG"] == "INFO" and run_environment(True)["OMP_NUM_THREADS"] == "7"
    assert run_environment(True).keys() > COMMON.keys() < run_environment(False).keys()


@pytest.mark.slow
def test_the_actors_threads_do_not_spin() -> None:
    """Asked of the OpenMP that torch brings: another one may read other variables."""
    shown = {}
    for name, variables in (("run", run_environment(True)), ("plain", {})):
        environment = {**os.environ, "OMP_DISPLAY_ENV": "verbose", **variables}
        done = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, text=True, env=environment)
        [shown[name]] = re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)
    assert shown["run"] == "0" != shown["plain"]


@pytest.mark.e2e
def test_a_cpu_run_hides_the_gpus_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives the worker "GPU 0", a logical one; torch would take the real one of that number."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    resolved = resolve("cpu", task="vqa", model=checkpoint_dir())
    launch = Launch(resolved, NO_CONTEXT, run_environment(True), True, lambda: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", launch.environment["CUDA_VISIBLE_DEVICES"])  # as the command line does
    theirs = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000})
    try:
        VisionVERL(launch)._start_ray()
        seen = ray.remote(num_gpus=1)(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        assert set(ray.get(seen.remote()).split(",")) == {"-1"}
        assert ray.get_runtime_context().gcs_address != theirs.address, "a cluster that somebody else has started"
    finally:
        ray.shutdown()
        theirs.shutdown()


@pytest.mark.parametrize("variable", [True, False])
def test_a_cluster_that_cannot_be_reached_is_named(variable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address if variable else "")
    overrides = [] if variable else [f"ray_kwargs.ray_init.address={address}"]
    resolved = resolve("cpu", overrides, task="vqa", model=checkpoint_dir())
    with pytest.raises(UserError, match=rf"Ray does not start \(address {address}\): .*refused; .*RAY_ADDRESS"):
        VisionVERL(Launch(resolved, NO_CONTEXT, run_environment(True), True, lambda: None))._start_ray()


def test_what_ray_refuses_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses a number of processors where it joins a cluster; the preset cpu gives one."""

    def init(**options: object) -> None:
        assert options["address"] == "auto" and options["num_gpus"]
        raise ValueError("When connecting to an existing cluster,\n num_cpus must not be provided.")

    monkeypatch.setattr(ray, "init", init)
    resolved = resolve("cpu", ["ray_kwargs.ray_init.address=auto"], task="vqa", model=checkpoint_dir())
    with pytest.raises(UserError, match=r"address auto.*: When connecting to an existing cluster, num_cpus must not"):
        VisionVERL(Launch(resolved, NO_CONTEXT, run_environment(True), True, lambda: None))._start_ray()


@pytest.mark.parametrize("times", [1, RAY_STARTS])
def test_a_ray_that_does_not_come_up_in_time_is_started_again(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray gives its node thirty seconds, which a busy machine can need, and leaves what it started. It raises a plain
    Exception; in the end that was sixty lines of traceback."""
    started: list[subprocess.Popen[bytes]] = []

    def init(**_: object) -> Any:
        assert all(process.poll() is not None for process in started), "what the last start left is ended"
        if len(started) == times:
            return SimpleNamespace(address_info={"session_dir": str(tmp_path)})
        started.append(subprocess.Popen(["sleep", "60"]))
        raise Exception(
            "The current node timed out during startup. This could happen because the raylet failed\nto startup."
        )

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    context: Any = SimpleNamespace(run_dir=tmp_path)
    resolved = resolve("cpu", task="vqa", model=checkpoint_dir())
    run = VisionVERL(Launch(resolved, context, run_environment(True), True, lambda: None))
    with subprocess.Popen(["sleep", "60"]) as other:
        if times < RAY_STARTS:
            run._start_ray()
        else:
            words = r"^Ray does not start \(address local\): The current node timed out [^\n]*; the machine is too busy"
            with pytest.raises(UserError, match=words):
                run._start_ray()
        assert other.poll() is None and len(started) == times
        other.kill()
    for process in started:
        process.kill()
        process.wait()
    told = [event["text"] for event in read_jsonl(tmp_path / EVENTS)[0]]
    assert told == ["Ray was too slow; starting it again"] * min(times, RAY_STARTS - 1)
