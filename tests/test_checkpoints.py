"""Checkpoints through kills and full disks, and what a resumed run knows of the best one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vision_rl.errors import UserError
from vision_rl.run.best import best_of, judged
from vision_rl.run.checkpoints import Checkpoints
from vision_rl.run.log import EVENTS, METRICS, RunLog, read_jsonl
from vision_rl.settings import Checkpoints as CheckpointSettings
from vision_rl.settings import Validation

ROOT = Path(__file__).resolve().parents[1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(checkpoints: Checkpoints, step: int) -> None:
    with checkpoints.writing(step) as folder:
        (folder / "weights").write_text(str(step))


def test_the_last_ones_and_the_best_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(keep_last=2))
    for step in range(1, 7):
        write(checkpoints, step)
        if step == 2:
            checkpoints.set_best({"step": 2, "metric": "val/reward", "value": 1.0, "since": 0})
    assert names(tmp_path) == ["best.json", "global_step_2", "global_step_5", "global_step_6"]
    checkpoints.set_best({"step": 6, "metric": "val/reward", "value": 2.0, "since": 0})
    assert names(tmp_path) == ["best.json", "global_step_5", "global_step_6"]
    checkpoints.set_best(None)
    assert checkpoints.best() is None


@pytest.mark.parametrize("said", ["[Errno 28] No space left on device", "[Errno 122] Disk quota exceeded"])
def test_a_full_disk_before_the_first_checkpoint_says_so(tmp_path: Path, said: str) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointSettings())
    with (
        pytest.raises(UserError, match=r"checkpoint 3 was not written, there is none before it"),
        checkpoints.writing(3),
    ):
        raise OSError(said)
    assert names(tmp_path) == []


def test_a_record_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"best\.json cannot be written \(No space left on device\)"):
        Checkpoints(tmp_path, CheckpointSettings()).set_best({"step": 1, "metric": "m", "value": 1.0, "since": 0})
    assert names(tmp_path) == []


def test_torchs_error_on_a_full_disk_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save says "PytorchStreamWriter failed writing file": only the disk itself tells why."""
    checkpoints = Checkpoints(tmp_path, CheckpointSettings())
    write(checkpoints, 1)
    words = "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"
    with pytest.raises(RuntimeError, match="inline_container"), checkpoints.writing(2):
        raise RuntimeError(words)
    usage = type("Usage", (), {"free": 4096})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"the last whole one is global_step_1;"), checkpoints.writing(2):
        raise RuntimeError(words)


def test_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointSettings())
    write(checkpoints, 4)
    (tmp_path / ".partial_5").mkdir()
    (tmp_path / ".old_global_step_1").mkdir()
    checkpoints.clear_leftovers()
    assert names(tmp_path) == ["global_step_4"]


WRITER = """
import sys
from pathlib import Path
from vision_rl.run.checkpoints import Checkpoints
from vision_rl.settings import Checkpoints as Settings
checkpoints = Checkpoints(Path(sys.argv[1]), Settings(keep_last=2))
for step in range(1, 10_000):
    with checkpoints.writing(step) as folder:
        for part in range(12):
            (folder / f"part{part}").write_text("x" * 2000)
"""


@pytest.mark.parametrize("delay", [0.01, 0.05, 0.11, 0.2, 0.33])
def test_a_writer_that_is_killed_leaves_whole_checkpoints_only(tmp_path: Path, delay: float) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT)
    while not list(tmp_path.glob("global_step_*")):
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    folders = sorted(tmp_path.glob("global_step_*"))
    assert folders and all(len(list(folder.iterdir())) == 12 for folder in folders)


def line(step: int, value: float, name: str = "val/reward") -> dict[str, Any]:
    return {"step": step, "val/reward": 0.0, name: value}


@pytest.mark.parametrize(
    ("values", "rule", "best"),
    [
        ([0.1, 0.3, 0.2], {}, (20, 0.3, 1)),
        ([0.3, 0.3, 0.3], {}, (10, 0.3, 2)),
        ([0.1, 0.2, 0.24], {"min_delta": 0.05}, (20, 0.2, 1)),
        ([0.5, 0.2, 0.4], {"maximize": False, "metric": "val/length"}, (20, 0.2, 1)),
        ([], {}, None),
    ],
)
def test_the_best_is_a_function_of_the_validations(
    values: list[float], rule: dict[str, Any], best: tuple[int, float, int] | None
) -> None:
    settings = Validation(**rule)
    lines = [line(10 * number, value, settings.metric) for number, value in enumerate(values, start=1)]
    record = best_of([{"step": 5, "train/reward": 0.9}, *lines], settings)
    assert (record and (record["step"], record["value"], record["since"])) == best


def test_a_metric_that_is_not_measured_is_named() -> None:
    with pytest.raises(UserError, match=r"val/iuo is not measured; choose one of val/iou, val/reward"):
        judged(None, 1, {"val/reward": 1.0, "val/iou": 1.0, "train/reward": 1.0}, Validation(metric="val/iuo"))


def test_half_written_lines_do_not_spoil_the_next_life(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.event("phase", text="training")
    log.metrics(1, {"train/reward": 0.5})
    for name in (EVENTS, METRICS):
        with open(tmp_path / name, "a", encoding="utf-8") as file:
            file.write('{"time": 12.5, "ki')
    log.forget_after(1)
    log.event("resumed", step=1)
    log.metrics(2, {"train/reward": 0.6})
    assert [event["kind"] for event in read_jsonl(tmp_path / EVENTS)[0]] == ["phase", "resumed"]
    assert [entry["step"] for entry in read_jsonl(tmp_path / METRICS)[0]] == [1, 2]
