"""Faults injected for real into runs with real runners, store and proxy: no rollout is lost, none is counted twice."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from tests.fault_run import AGENT_FAULTS, SERVER_FAULTS
from vision_rl.rollout.runner import VisionRunner
from vision_rl.run.log import RunLog, append_lines, read_jsonl

ROOT = Path(__file__).parent.parent


def run_scenario(name: str, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fault_run", name],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]  # the run itself ends cleanly
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def agents() -> dict[str, Any]:
    return run_scenario("agents")


def rollout(run: dict[str, Any], kind: str) -> dict[str, Any]:
    [found] = [one for one in run["rollouts"] if one["kind"] == kind]
    return dict(found)


@pytest.mark.e2e
def test_every_rollout_ends_once(agents: dict[str, Any]) -> None:
    queued = 8 + len(AGENT_FAULTS) + len(SERVER_FAULTS)
    assert agents["total"] == len(agents["rollouts"]) == queued
    assert Counter(one["status"] for one in agents["rollouts"]) == {"succeeded": 9, "failed": queued - 9}


@pytest.mark.e2e
def test_the_others_are_not_harmed(agents: dict[str, Any]) -> None:
    fine = [one for one in agents["rollouts"] if one["kind"] == "ok"]
    assert all(one["attempts"] == ["succeeded"] and one["calls"] == 1 for one in fine)
    assert all(one["reward"] == {"reward": 0.5} for one in fine)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("raise", "RuntimeError: the agent's own fault"),
        ("none", "UnusableReward: the agent emitted no reward"),
        ("nan", "UnusableReward: the reward is not a finite number within +-1e+15: reward"),
        ("text", "TypeError: an agent must return None, a number or a list of spans, not str"),
        ("sysexit", "SystemExit: 3"),
        ("FAULT500", "InternalServerError: Error code: 500"),
        ("FAULT400", "BadRequestError: Error code: 400"),
        ("NOCHOICES", "InternalServerError: Error code: 502"),
        ("NOTOKENS", "InternalServerError: Error code: 502"),
        ("BADJSON", "InternalServerError: Error code: 502"),
        ("TRUNCATED", "InternalServerError: Error code: 502"),
        ("HANG", "APITimeoutError"),
    ],
)
def test_a_fault_fails_its_own_rollout_twice_and_says_why(agents: dict[str, Any], kind: str, reason: str) -> None:
    found = rollout(agents, kind)
    assert found["attempts"] == ["failed", "failed"]
    assert found["failure"].startswith(reason)
    assert found["reward"] is None


@pytest.mark.e2e
def test_a_killed_runner_is_replaced_and_its_rollout_done_again(agents: dict[str, Any]) -> None:
    assert rollout(agents, "kill")["attempts"] == ["unresponsive", "succeeded"]
    assert rollout(agents, "kill always")["attempts"] == ["unresponsive", "unresponsive"]


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.parametrize("name", ["proxy dies", "store away 4", "store away 30", "runners die"])
def test_what_comes_back_costs_no_rollout(name: str) -> None:
    again = check_that_none_is_lost(run_scenario(name))
    assert again == 0 or name != "store away 4"


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build tests/clock_jump.c with")
@pytest.mark.parametrize("seconds", [86400, -86400])
def test_a_clock_that_jumps_ends_no_attempt_and_hides_no_dead_one(tmp_path: Path, seconds: int) -> None:
    """Two rollouts are under way and one runner is stuck for ever when all processes' clocks jump by a day."""
    library, offset = tmp_path / "clock_jump.so", tmp_path / "offset"
    source = Path(__file__).with_name("clock_jump.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    offset.write_bytes(struct.pack("l", 0))
    run = run_scenario(f"clock jumps {seconds}", LD_PRELOAD=str(library), CLOCK_JUMP_FILE=str(offset))
    assert check_that_none_is_lost(run) == 1
    assert rollout(run, "stuck")["attempts"] == ["timeout", "succeeded"]


def check_that_none_is_lost(run: dict[str, Any]) -> int:
    """All 24 rollouts of a scenario succeeded, each once; returns how many needed a second attempt."""
    assert run["total"] == len(run["rollouts"]) == 24
    assert Counter(one["status"] for one in run["rollouts"]) == {"succeeded": 24}
    assert all(one["calls"] == 1 and one["reward"] == {"reward": 0.5} for one in run["rollouts"])
    return sum(len(one["attempts"]) > 1 for one in run["rollouts"])


def test_each_kind_of_failure_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """With its traceback, unless it is the call that failed: a thousand of those must not hide why."""
    runner = VisionRunner()
    refused = openai.APIConnectionError(request=httpx.Request("POST", "http://proxy"))
    for error in [RuntimeError("the agent's own fault"), refused] * 3:
        try:
            raise error
        except Exception as caught:
            runner._log_once("ro-1", caught)
    own, call = caplog.records
    assert "RuntimeError: the agent's own fault" in own.getMessage() and own.exc_info
    assert "APIConnectionError: Connection error." in call.getMessage() and not call.exc_info


# A full disk


def test_a_full_disk_loses_no_line(tmp_path: Path) -> None:
    """/dev/full takes no byte: the write fails as on a full disk."""
    target = tmp_path / "metrics.jsonl"
    target.symlink_to("/dev/full")
    log = RunLog(tmp_path)
    log.metrics(1, {"a": 1.0})
    log.metrics(2, {"a": 2.0})
    target.unlink()
    log.metrics(3, {"a": 3.0})
    lines, _ = read_jsonl(target)
    assert [(line["step"], line["a"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_disk_that_fills_up_leaves_whole_lines(tmp_path: Path) -> None:
    """The kernel takes a part of a write and refuses the rest: with a limit on the size of files, as with a full disk."""
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from vision_rl.run.log import append_lines\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "path = Path(sys.argv[1])\n"
        "append_lines(path, [{'n': 0}])\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))\n"
        "append_lines(path, [{'n': n} for n in range(1, 9)])\n"
        "print(repr(path.read_bytes()))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "append_lines(path, [{'n': 9}])\n"
    )
    path = tmp_path / "x.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == repr(b'{"n": 0}\n')
    assert [line["n"] for line in read_jsonl(path)[0]] == list(range(10))


def test_a_folder_that_is_gone_does_not_end_the_run(tmp_path: Path) -> None:
    append_lines(tmp_path / "gone" / "x.jsonl", [{"n": 1}])
    (tmp_path / "gone").mkdir()
    append_lines(tmp_path / "gone" / "x.jsonl", [{"n": 2}])
    assert [line["n"] for line in read_jsonl(tmp_path / "gone" / "x.jsonl")[0]] == [1, 2]
