"""Agents of other frameworks, as docs/frameworks.md says: installed, trained, with one client for all rollouts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import fake_backend
from scripts.engine_stack import running_stack
from vision_rl.rollout.trace import reward_from_spans, turns_from_spans
from vision_rl.tasks import get_task

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "frameworks.md"
EXAMPLES = sorted((ROOT / "examples" / "frameworks").glob("*_vqa.py"))
TOKEN = "the-token-of-this-test"


def packages(example: Path) -> list[str]:
    """What an example's docstring says to install."""
    [line] = re.findall(r"uv pip install --target (.*)", example.read_text(encoding="utf-8"))
    return re.findall(r'"([^"]+==[^"]+)"', line)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_page_names_the_examples_and_their_versions(example: Path) -> None:
    [row] = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if f"frameworks/{example.name})" in line]
    assert packages(example) and all(f"`{package}`" in row for package in packages(example))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_loads_without_its_framework(example: Path) -> None:
    """So its rows are checked, and its run is planned, where the framework is not installed."""
    task = get_task(str(example))
    assert task.name == example.stem and task.agent is not None


def installed(names: list[str], folder: Path) -> Path:
    """The two commands of the page: packages in a folder of their own, everything that is here already as it is here."""
    uv = [sys.executable, "-m", "uv", "pip"]
    frozen = subprocess.run([*uv, "freeze", "--python", sys.executable], capture_output=True, text=True, check=True)
    pins = [line for line in frozen.stdout.splitlines() if "==" in line]
    (folder / "pins.txt").write_text("\n".join(pins))
    target = folder / "packages"
    subprocess.run(
        [*uv, "install", "--python", sys.executable, "--target", target, "--constraints", folder / "pins.txt", *names],
        check=True,
        timeout=600,
    )
    return target


def run(packages: Path, *command: Any, seconds: float) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_agent_of_the_framework_is_trained(example: Path, tmp_path: Path) -> None:
    folder = installed(packages(example), tmp_path)
    options = ("--task", example, "--variant", ROOT / "examples" / "frameworks" / "tiny.yaml", "--max-steps", 3)
    run(folder, "train_agent.py", *options, "--run-dir", tmp_path / "run", seconds=1500)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["rollouts_failed"]) == (3, 0)
    assert summary["logprob_mismatch_max"] <= 1e-4


@pytest.mark.e2e
@pytest.mark.long
def test_ten_thousand_rollouts_keep_descriptors_and_memory_flat(tmp_path: Path) -> None:
    """Each of five frameworks alone, then 2,000 rollouts of each, mixed, in one process; none is lost.

    By `llm.endpoint` LangGraph keeps one more descriptor per rollout, and 1.6 MB.
    """
    folder = installed([package for example in EXAMPLES for package in packages(example)], tmp_path)
    names = [*(example.stem.removesuffix("_vqa") for example in EXAMPLES), "litellm"]
    options = ("--frameworks", *names, "--alone", 400, "--rollouts", 10000)
    shown = run(folder, "benchmarks/frameworks.py", *options, seconds=7200)
    counts = re.findall(r"^(\w+) .*descriptors (\d+) to (\d+), memory (\d+) to (\d+)", shown, re.MULTILINE)
    assert [name for name, *_ in counts] == [*names, *["mixed"] * 10], shown
    for name, *numbers in counts:
        before, after, memory_before, memory_after = map(int, numbers)
        assert after <= before + 5 and memory_after <= memory_before * 1.05, f"{name}: {shown}"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_the_javascript_worker(tmp_path: Path) -> None:
    """examples/worker.mjs against the protocol: pictures over HTTP, the rollout's own key, rewards, a failure."""
    from tests.test_workers import task

    (tmp_path / "media").mkdir()
    shutil.copy(next((ROOT / "docs" / "images").glob("*.png")), tmp_path / "media" / "a.png")
    with running_stack(tmp_path / "kept", token=TOKEN, media_roots=[tmp_path / "media"]) as stack:
        row = task(tmp_path / "media" / "a.png")
        ids = stack.queue([row, row, {**row, "answers": ["blue"] * 10}, {**row, "question": "FAULT400"}])
        environment = {**os.environ, "OPENAI_BASE_URL": f"{stack.address}/v1", "OPENAI_API_KEY": TOKEN}
        worker = subprocess.Popen(["node", ROOT / "examples" / "worker.mjs"], env=environment, cwd=tmp_path)
        try:
            assert stack.wait(ids, 60) == {"succeeded": 3, "failed": 1}
        finally:
            worker.terminate()
            worker.wait(10)
        spans = [list(stack.call(stack.store.query_spans(one))) for one in ids]
        assert [reward_from_spans(one) for one in spans[:3]] == [
            {"reward": value, "accuracy": value} for value in (1.0, 1.0, 0.0)
        ]
        for [turn] in map(turns_from_spans, spans[:3]):
            assert turn.text == fake_backend.REPLY and turn.image_refs[0].startswith("sha256:")
        failed = stack.call(stack.store.get_latest_attempt(ids[3]))
        assert failed is not None and "boom" in (failed.metadata or {})["failure"]
