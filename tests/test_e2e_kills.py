"""Whole runs that are killed outright at random moments, or whose disk fills up: what is left, and what --resume makes of it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from vision_rl.run.log import EVENTS, METRICS, ROLLOUTS, read_jsonl

ROOT = Path(__file__).resolve().parents[1]
STEPS = 12
# Forty rows are five batches of eight: the run goes through more than two epochs. A checkpoint after every step, so that
# many kills fall into the writing of one.
OPTIONS = (
    "--task", "vqa", "--max-steps", str(STEPS), "data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "app.max_train_samples=40", "trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=1",
    "app.checkpoints.keep_last=20",
)  # fmt: skip
BETA_1, BETA_2, CLIP, RATE = 0.9, 0.999, 1.0, 1e-4

pytestmark = [pytest.mark.e2e, pytest.mark.long]


def start(run_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "train_agent.py", "--run-dir", str(run_dir), *OPTIONS, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def steps_of(run_dir: Path) -> list[int]:
    return [line["step"] for line in read_jsonl(run_dir / METRICS)[0]]


def order_of(run_dir: Path) -> list[set[str]]:
    """The rows of each step; within one they stand in the record as their groups were finished."""
    rows: dict[int, set[str]] = {}
    for rollout in read_jsonl(run_dir / ROLLOUTS)[0]:
        rows.setdefault(rollout["step"], set()).add(rollout["id"])
    return [rows[step] for step in sorted(rows)]


def wait_for_a_step(run_dir: Path, process: subprocess.Popen[str], timeout: float = 400) -> None:
    """Until this life of the run has finished a step."""
    deadline, begun = time.monotonic() + timeout, time.time()
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the run ended by itself with {process.returncode}: {process.stderr.read()}"  # type: ignore[union-attr]
        lines = read_jsonl(run_dir / METRICS)[0]
        if lines and lines[-1]["time"] > begun:
            return
        time.sleep(0.1)
    raise AssertionError(f"no step within {timeout:.0f} s")


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    main = psutil.Process(process.pid)
    return [main, *main.children(recursive=True)]


def victims(everyone: Sequence[psutil.Process], who: str) -> list[psutil.Process]:
    """The processes to kill: the whole tree, the main process, or the Ray worker of a name."""
    if who == "tree":
        return list(everyone)
    if who == "main":
        return [everyone[0]]
    found = [process for process in everyone if process.cmdline()[:1] and who in process.cmdline()[0]]
    assert found, [process.cmdline()[:1] for process in everyone]
    return found


def wait_until_gone(everyone: Sequence[psutil.Process], seconds: float) -> None:
    """None of a killed run's processes may stay: they hold memory and ports. Ray's two small agents look every minute."""
    _, alive = psutil.wait_procs(everyone, timeout=seconds)
    left = [f"{process.pid} {' '.join(process.cmdline())[:80]}" for process in alive if process.status() != "zombie"]
    assert not left, f"{seconds:.0f} s after the kill there are still {left}"


def load(run_dir: Path, step: int) -> dict[str, Any]:
    """Every file of a checkpoint: it is whole if they all load."""
    import torch

    folder = run_dir / "checkpoints" / f"global_step_{step}"
    files = {"actor/model": "model", "actor/optim": "optim", "actor/extra_state": "extra"}
    loaded: dict[str, Any] = {
        name: torch.load(folder / f"{file}_world_size_1_rank_0.pt", weights_only=False) for file, name in files.items()
    }
    loaded |= torch.load(folder / "trainer.pt", weights_only=True)  # the data set's place and the random states
    return loaded


def flat(tensor: Any) -> Any:
    return getattr(tensor, "_local_tensor", tensor).detach().double().flatten()


def assert_one_step_further(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Adam's own recurrences: what must hold between two checkpoints if nothing was lost or begun anew between them."""
    first, second = before["optim"]["state"], after["optim"]["state"]
    assert first.keys() == second.keys()
    drift = 0.0
    for name, old in first.items():
        new = second[name]
        assert float(new["step"]) == float(old["step"]) + 1
        assert (flat(new["exp_avg_sq"]) >= BETA_2 * flat(old["exp_avg_sq"]) * (1 - 1e-5)).all()
        drift += float(((flat(new["exp_avg"]) - BETA_1 * flat(old["exp_avg"])) ** 2).sum())
    assert drift**0.5 <= (1 - BETA_1) * CLIP * 1.001  # the new gradient's share, clipped at 1
    largest = max((flat(after["model"][name]) - flat(old)).abs().max().item() for name, old in before["model"].items())
    assert 0 < largest <= 4 * RATE
    assert after["extra"]["lr_scheduler"]["last_epoch"] == before["extra"]["lr_scheduler"]["last_epoch"] + 1


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbs."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    process = start(run_dir)
    assert process.wait(timeout=600) == 0
    return run_dir


def test_killed_at_random_moments_it_goes_on_as_if_nothing_had_been(plain: Path, tmp_path: Path) -> None:
    run_dir, draw = tmp_path / "run", random.Random(os.environ.get("KILL_SEED", "0"))
    lives: list[tuple[str, int]] = []  # who was killed, the last whole checkpoint then
    before: list[psutil.Process] = []  # of the life before: they must neither disturb this one nor stay
    for who in ("tree", "main", "VisionTaskRunner", "WorkerDict"):
        process = start(run_dir, *(["--resume"] if lives else []))
        try:
            wait_for_a_step(run_dir, process)
            wait_until_gone(before, 60)
            time.sleep(draw.uniform(0, 2.5))
            everyone = family(process)
            for victim in victims(everyone, who):
                victim.kill()
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
        psutil.wait_procs(everyone, timeout=5)
        before = everyone
        if who not in ("tree", "main"):
            assert process.returncode == 2
            # Before it, a runner may tell that the server of its rollout has gone.
            last_line = said.splitlines()[-1]
            assert last_line.startswith("error: a process of the trainer") and "Algorithm bundle" not in said, said
            assert "go on with --resume (from global_step_" in last_line
        folders = (run_dir / "checkpoints").glob("global_step_*")
        last = max((int(folder.name.rsplit("_", 1)[1]) for folder in folders), default=0)
        if last:
            load(run_dir, last)
        lives.append((who, last))
        print(lives[-1], steps_of(run_dir))
    last_life = start(run_dir, "--resume")
    _, said = last_life.communicate(timeout=600)
    assert last_life.returncode == 0, said
    wait_until_gone(before, 60)
    assert steps_of(run_dir) == steps_of(plain) == list(range(1, STEPS + 1))
    assert order_of(run_dir) == order_of(plain)
    rates = [[line["actor/lr"] for line in read_jsonl(path / METRICS)[0]] for path in (plain, run_dir)]
    assert rates[0] == rates[1]
    resumed = [event["step"] for event in read_jsonl(run_dir / EVENTS)[0] if event["kind"] == "resumed"]
    assert resumed == [last for _, last in lives]
    for step in sorted({step for step in resumed if 0 < step < STEPS}):
        assert_one_step_further(load(run_dir, step), load(run_dir, step + 1))
    assert not list((run_dir / "checkpoints").glob(".*"))


def test_the_invariants_notice_a_fresh_optimizer(plain: Path) -> None:
    """The control: checkpoints of the same run that do not follow each other are told apart."""
    assert_one_step_further(load(plain, 5), load(plain, 6))
    with pytest.raises(AssertionError):
        assert_one_step_further(load(plain, 5), load(plain, 7))
    with pytest.raises(AssertionError):
        assert_one_step_further(load(plain, 9), load(plain, 1))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 34 MiB: two checkpoints of the tiny model and a half."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=34m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_ends_the_run_in_one_sentence(small_disk: Path) -> None:
    run_dir = small_disk / "run"
    process = start(run_dir)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 2
    assert said.startswith(f"error: the disk of {run_dir / 'checkpoints'} is full: checkpoint 3 was not written"), said
    assert "the last whole one is global_step_2" in said and said.count("\n") == 1
    load(run_dir, 2)
    assert (run_dir / "summary.json").exists()
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    shutil.rmtree(run_dir / "checkpoints" / "global_step_1")  # a user makes room
    process = start(run_dir, "--resume", "--max-steps", "4")
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert steps_of(run_dir) == [1, 2, 3, 4]
    assert_one_step_further(load(run_dir, 2), load(run_dir, 3))
