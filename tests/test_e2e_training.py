"""The user's own command on the real stack: it runs, it sees, it learns. `test_e2e_controls.py` has the runs that must not.

Each test starts Ray, vLLM, the proxy and the runners.
"""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.sockets import complaints, processes_of
from vision_rl.run.log import EVENTS, METRICS, ROLLOUTS, read_jsonl
from vision_rl.run.names import AFTER_A_STEP, PHASES, PLANS, SIGHT, STEP, phase_seconds

ROOT = Path(__file__).resolve().parents[1]
SUMMARY_KEYS = {
    "task", "metric", "val_before", "val_after", "steps", "step_seconds_median", "startup_seconds",
    "logprob_mismatch_max", "rollouts", "rollouts_failed",
}  # fmt: skip
QUICK = ["--max-steps", "2", "trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=-1"]
MODEL = "actor_rollout_ref.model"
ELSEWHERE = {"Tools used", "Success", "Confidence", "Distance to the reference", "GPU utilisation"}
"""Charts of what the demo has not: tools, episodes, stated confidence, a reference, a GPU."""
NO_LIMITS = ["app.integrity.logprob_mismatch_max=null", "app.integrity.logprob_mismatch_mean=null"]

pytestmark = pytest.mark.e2e


def command(run_dir: Path, *arguments: str) -> list[str]:
    return [sys.executable, "train_agent.py", "--run-dir", str(run_dir), *arguments]


def run(run_dir: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run to the end; returns the summary."""
    finished = subprocess.run(
        command(run_dir, *arguments),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return json.loads((run_dir / "summary.json").read_text())


def is_own_address(name: str) -> bool:
    """Whether a name is the number of an address of this machine: nothing is looked up for it, and nothing leaves."""
    try:
        return ipaddress.ip_address(name).is_loopback or name == socket.gethostbyname(socket.gethostname())
    except ValueError:
        return False


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    return read_jsonl(run_dir / METRICS)[0]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """`make demo`'s command."""
    run_dir = tmp_path_factory.mktemp("demo") / "run"
    names = {"PYTHONPATH": f"{ROOT / 'tests' / 'names'}{os.pathsep}{ROOT}", "NAMES_FILE": str(run_dir.parent / "names")}
    return run_dir, run(run_dir, "--task", "vqa", **names)


def test_no_process_of_a_run_looks_up_a_foreign_name(demo: tuple[Path, dict[str, Any]]) -> None:
    """Trackers, price lists and tracing ask for their makers' addresses; a run asks for its own machine's."""
    asked = set((demo[0].parent / "names").read_text().split())
    own = {"localhost", "None", "", socket.gethostname(), socket.getfqdn(), "0.0.0.0", "::", "::1"}
    own |= {
        "metadata.google.internal",
        "169.254.169.254",
    }  # Ray asks which cloud it is in, also without its usage statistics
    assert "127.0.0.1" in asked, "the names are noted"
    assert {name for name in asked - own if not is_own_address(name)} == set()


def test_the_demo_learns(demo: tuple[Path, dict[str, Any]]) -> None:
    run_dir, summary = demo
    assert set(summary) >= SUMMARY_KEYS
    assert summary["val_after"] - summary["val_before"] >= 0.25
    halfway = next(line["val/accuracy"] for line in metrics_of(run_dir) if line["step"] == 15)
    assert halfway - summary["val_before"] >= 0.2, "what the control without pictures is compared with"
    assert summary["rollouts_failed"] == 0


def test_actor_and_rollout_agree_at_every_step(demo: tuple[Path, dict[str, Any]]) -> None:
    """Float32: at most 1e-4, also for images that were seen before a weight update (stale vision embeddings)."""
    run_dir, _ = demo
    steps = [line for line in metrics_of(run_dir) if "mismatch/logprob_max" in line]
    assert len(steps) >= 5
    assert max(line["mismatch/logprob_max"] for line in steps) <= 1e-4
    rollouts = [r for r in read_jsonl(run_dir / ROLLOUTS)[0] if r["mode"] == "train"]
    seen: dict[str, set[int]] = {}
    for rollout in rollouts:
        seen.setdefault(rollout["image_paths"][0], set()).add(rollout["step"])
    assert any(len(steps_of_image) > 1 for steps_of_image in seen.values())
    assert all("advantage" in rollout and rollout["dropped"] == "" for rollout in rollouts)


def test_the_demo_uses_its_pictures_and_the_gauge_costs_little(demo: tuple[Path, dict[str, Any]]) -> None:
    lines = metrics_of(demo[0])
    checks = [line for line in lines if "sight/kl" in line]
    assert checks[0]["step"] == 1 and len(checks) >= 2
    assert min(line["sight/kl"] for line in checks) > 0.1, "a hundred times the limit"
    steps = [line[STEP] for line in lines if STEP in line]
    assert sum(line["timing_s/sight"] for line in checks) <= 0.05 * sum(steps)
    last = [line for line in lines if "sight/val_reward_gap" in line][-1]
    assert last["sight/val_reward_gap"] > 0.2 and last["sight/val_rows"] == 16


def test_the_page_shows_all_that_a_step_spends_its_time_on(demo: tuple[Path, dict[str, Any]]) -> None:
    """No phase of verl's or ours that the page does not know, and less than a twentieth of a step outside of them."""
    lines = [line for line in metrics_of(demo[0]) if STEP in line]
    timed = {name for line in lines for name in line if name.startswith("timing_s/")}
    assert timed - PHASES.keys() - AFTER_A_STEP.keys() == {STEP}
    assert {"timing_s/gen", "timing_s/update_actor", "timing_s/update_weights", SIGHT} <= timed
    assert sum(sum(phase_seconds(line).values()) for line in lines) >= 0.95 * sum(line[STEP] for line in lines)
    written = {name for line in metrics_of(demo[0]) for name in line}
    everywhere = {next(iter(plan.metrics)) for plan in PLANS if plan.title not in ELSEWHERE}
    assert everywhere <= written


def test_an_agent_of_ones_own_is_trained_stopped_and_resumed(tmp_path: Path) -> None:
    """One Ctrl-C ends after the step with a checkpoint; --resume continues without a step lost or doubled. The task is a file
    of the user's, whose agent asks at a temperature of its own."""
    asked = "**llm.sampling_parameters}"
    text = (ROOT / "examples" / "chart_qa.py").read_text(encoding="utf-8")
    assert text.count(asked) == 1
    example, run_dir = tmp_path / "chart_qa.py", tmp_path / "run"
    example.write_text(text.replace(asked, '**llm.sampling_parameters, "temperature": 0.3}'), encoding="utf-8")
    options = ["--task", str(example), "--n-runners", "2", "trainer.val_before_train=false", "trainer.test_freq=-1"]
    process = subprocess.Popen(command(run_dir, *options, "--max-steps", "500"), cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        wait_for_step(run_dir, 2, process)
        assert (
            complaints(processes_of(process.pid)) == []
        )  # every socket is in docs/security.md, and no wider than it says
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
    stopped_at = metrics_of(run_dir)[-1]["step"]
    assert (run_dir / "checkpoints" / f"global_step_{stopped_at}" / "actor").is_dir()
    summary = run(run_dir, *options, "--max-steps", str(stopped_at + 2), "--resume")
    assert [line["step"] for line in metrics_of(run_dir)] == list(range(1, stopped_at + 3))
    events = read_jsonl(run_dir / EVENTS)[0]
    assert [event["step"] for event in events if event["kind"] == "resumed"] == [stopped_at]
    assert (summary["task"], summary["metric"], summary["steps"]) == ("chart_qa", "relaxed_accuracy", stopped_at + 2)
    assert summary["rollouts_failed"] == 0 and summary["logprob_mismatch_max"] <= 1e-4 / 0.3, "logits are divided by it"
    assert all("relaxed_accuracy" in rollout["reward"] for rollout in read_jsonl(run_dir / ROLLOUTS)[0])
    assert "chart_qa" in (run_dir / "report.html").read_text()


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[bytes], timeout: float = 300) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the run ended by itself with {process.returncode}"
        lines = metrics_of(run_dir)
        if lines and lines[-1]["step"] >= step:
            return
        time.sleep(0.2)
    raise AssertionError(f"no step {step} within {timeout:.0f} s")
