"""Training in environments on the real stack: a browser's pages are learnt, and its pictures must reach the actor.

`make demo-browser` is the long test, by its own commands. In CI a shorter run has to learn, beside the control in which the
screenshots do not reach the actor.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.test_e2e_training import MODEL, metrics_of
from tests.test_e2e_workers import Machines, machines
from vision_rl.rollout.addresses import free_port
from vision_rl.run.log import ROLLOUTS, read_jsonl

ROOT = Path(__file__).resolve().parents[1]
WARM_START = ROOT / "scripts" / "tiny_models" / "browser_checkpoint"
MARK = "VISION_RL_TEST_OF_BROWSERS"
ACTOR = "actor_rollout_ref.actor"
SHORT = ["app.sight.val_rows=0", "trainer.save_freq=-1"]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.browser,
    pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium here (apt-get install chromium)"),
]
__all__ = ["machines"]


def command(*arguments: Any, fails: bool = False) -> str:
    """What a command of this project's says."""
    words, variables = [sys.executable, *map(str, arguments)], {"PYTHONPATH": str(ROOT), MARK: str(os.getpid())}
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=1800
    )
    assert bool(done.returncode) == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def recipe(target: str) -> list[list[str]]:
    """The commands of a target of the Makefile that run this project's own programs, without their Python."""
    said = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [shlex.split(line) for line in said.replace("\\\n", " ").splitlines()]
    return [words[1:] for words in lines if words[1:] and words[1] in ("data_utils.py", "train_agent.py")]


def summary_of(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    assert found["rollouts_failed"] == 0
    return found


def browsers() -> list[int]:
    """The browsers that commands of this module have started, wherever they hang in the tree of processes now."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any("miniwob-profile-" in word for word in one.cmdline()) and one.environ().get(MARK) == str(
                os.getpid()
            ):
                found.append(one.pid)
    return found


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a short run on one page, on which a word has to be read: the demo's settings, at a constant rate."""
    folder = tmp_path_factory.mktemp("episodes")
    envs = ("--envs", "click-test-2:1", "--option", "shade=true")
    command("data_utils.py", "episodes", "miniwob", *envs, "--train", 384, "--val", 64, "--output", folder)
    data = ["--data-path", str(folder / "train.parquet"), "--val-data-path", str(folder / "val.parquet")]
    settings = ["agent.answer_format=bbox", "data.max_prompt_length=256", "data.train_batch_size=8"]
    settings += [f"{ACTOR}.ppo_mini_batch_size=8", f"{ACTOR}.freeze_vision_tower=true", f"{ACTOR}.optim.lr=2.0e-4"]
    return ["train_agent.py", "--task", "miniwob", "--model", str(WARM_START), *data, *settings]


def test_clicks_on_pages_are_learnt(rows: list[str], tmp_path: Path) -> None:
    """A tenth is two and a half standard errors of a validation of 64 episodes (a binomial's, with the same episodes twice)."""
    command(*rows, *SHORT, "--run-dir", tmp_path / "run", "--max-steps", 10, "trainer.test_freq=10")
    summary = summary_of(tmp_path / "run")
    assert summary["val_after"] - summary["val_before"] >= 0.15
    assert summary["logprob_mismatch_max"] <= 1e-4
    assert browsers() == []


def test_an_actor_that_gets_no_screenshots_ends_its_run(rows: list[str], tmp_path: Path) -> None:
    """The control: what the actor computes is then not what was sampled, and the limit of the mismatch says so at once.

    What a run without that limit learns is no control: to leave the corner needs no picture.
    """
    blind = f"{MODEL}.external_lib=tests.control_no_pixels"
    first = ["--max-steps", 2, "trainer.val_before_train=false", "trainer.test_freq=-1"]
    said = command(*rows, *SHORT, *first, "--run-dir", tmp_path / "run", blind, fails=True)
    assert "app.integrity.logprob_mismatch" in said
    assert metrics_of(tmp_path / "run") == [] and browsers() == []


@pytest.mark.long
def test_the_demo_in_the_browser_learns(tmp_path: Path) -> None:
    """`make demo-browser`."""
    for words in recipe("demo-browser"):
        command(*(word.replace("data/", f"{tmp_path}/").replace("runs/", f"{tmp_path}/") for word in words))
    run_dir = tmp_path / "demo-browser"
    summary = summary_of(run_dir)
    assert summary["val_before"] <= 0.4 and summary["val_after"] >= 0.75
    last = [line for line in metrics_of(run_dir) if "sight/val_success_blind" in line][-1]
    assert last["sight/val_success_blind"] <= 0.2
    measured = {name for line in metrics_of(run_dir) for name in line}
    assert {f"train/{env}/success" for env in ("click-test", "click-test-2", "click-button-sequence")} <= measured
    assert all(
        "environment/groups_differ" not in line or not line["environment/groups_differ"] for line in metrics_of(run_dir)
    )
    command("scripts/episode_picture.py", run_dir, "--output", tmp_path / "episodes.png")


@pytest.mark.long
def test_workers_without_the_trainers_packages_play_all_episodes(
    rows: list[str], machines: Machines, tmp_path: Path
) -> None:
    """The trainer has no runner of its own; the pictures travel in the requests."""
    proxy, store = free_port(), free_port()
    arguments = ["--llm-proxy", "--proxy-port", str(proxy), "--store-port", str(store), "app.n_runners=0"]
    few = ["--max-steps", "2", "trainer.val_before_train=false", "trainer.test_freq=-1"]
    trainer = machines.start("trainer", *rows, *SHORT, *few, "--run-dir", str(tmp_path / "run"), *arguments)
    address = {"OPENAI_BASE_URL": f"http://127.0.0.1:{proxy}/v1", "OPENAI_API_KEY": "none", MARK: str(os.getpid())}
    lean = {"PYTHONPATH": f"{ROOT / 'tests' / 'lean'}{os.pathsep}{ROOT}"}
    for name in ("worker", "other"):
        machines.start(name, "worker.py", "--task", "miniwob", "--concurrency", "4", **address, **lean)
    assert trainer.wait(600) == 0, machines.said("trainer")[-3000:]
    records = read_jsonl(tmp_path / "run" / ROLLOUTS)[0]
    assert summary_of(tmp_path / "run")["steps"] == 2 and all("step_reward/1" in one["reward"] for one in records)
    workers = machines.started[1:]
    assert len(browsers()) > 2, "they keep their browsers until they are stopped"
    for one in workers:
        one.terminate()
    for one in workers:
        assert one.wait(30) == 0
    assert browsers() == []
    done = [int(machines.find(name, r"(\d+) rollouts succeeded, 0 failed", 5)) for name in ("worker", "other")]
    assert sum(done) == len(records) and min(done) > 0


@pytest.mark.long
def test_an_environment_of_gymnasium_is_trained(tmp_path: Path) -> None:
    """MiniGrid: several turns, the pictures of the last two."""
    pytest.importorskip("minigrid", reason="pip install '.[minigrid]'")
    command("data_utils.py", "episodes", "minigrid", "--train", 64, "--val", 16, "--output", tmp_path)
    said = command("data_utils.py", "verify", "--task", "minigrid", "--file", tmp_path / "val.parquet")
    assert "16 episodes were opened" in said
    data = ["--data-path", tmp_path / "train.parquet", "--val-data-path", tmp_path / "val.parquet"]
    room = ["data.max_prompt_length=512", "agent.max_turns=3"]
    command(
        "train_agent.py", "--task", "minigrid", *data, *room, *SHORT, "--run-dir", tmp_path / "run", "--max-steps", 4
    )
    summary = summary_of(tmp_path / "run")
    assert summary["steps"] == 4 and summary["logprob_mismatch_max"] <= 1e-4
    records = [one for one in read_jsonl(tmp_path / "run" / ROLLOUTS)[0] if one["mode"] == "train"]
    assert {len(one["replies"]) for one in records} == {3}
    assert max(one["reward"]["environment/steps"] for one in records) >= 1
