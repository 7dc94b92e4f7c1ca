"""`train_agent.py init my-task`: what it writes works as it stands."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import train_agent
from tests.fake_openai import MODEL, fake_openai
from vision_rl import tasks
from vision_rl.data.schema import read_rows

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_task_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tests here make a task of the same name in folders of their own, in one process."""
    monkeypatch.setattr(tasks, "_loaded", {})


def done(command: list[str], cwd: Path, timeout: int = 120) -> str:
    """What a command of the project prints, run from another folder."""
    script = [
        sys.executable,
        *(str(ROOT / part) if part in ("data_utils.py", "train_agent.py") else part for part in command),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(script, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
def test_the_commands_that_it_names_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train_agent.main(["init", "my-task"])
    verify, train, report = (shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()[1:])
    rows = [read_rows(f"my-task/{split}.parquet", task="my_task") for split in ("train", "val")]
    assert [len(part) for part in rows] == [96, 64]
    pictures = {path.read_bytes() for path in Path("my-task/images").iterdir()}
    assert len(pictures) == 96 + 64, "no picture comes twice"
    done(verify, tmp_path)
    resolved = done([*train, "--preset", "cpu", "--dry-run"], tmp_path)
    assert "data.train_batch_size: 16" in resolved and "task.name: " in resolved and "my_task" in resolved
    assert report[:2] == ["-m", "vision_rl.report"] and report[2] == train[train.index("--run-dir") + 1]
    with fake_openai("red") as fake:
        asked = ["--endpoint", fake.url, "--model", MODEL, "--data", "my-task/train.parquet", "--rows", "3"]
        assert done(["my-task/my_task.py", *asked], tmp_path).count("reward     ") == 3


@pytest.mark.e2e
@pytest.mark.long
def test_the_first_run_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that `init` prints, on the tiny model."""
    monkeypatch.chdir(tmp_path)
    train_agent.main(["init", "my-task"])
    train = shlex.split(capsys.readouterr().out.splitlines()[2])[1:]
    done([*train, "--preset", "cpu"], tmp_path, timeout=900)
    summary = json.loads(Path("runs/my-task/summary.json").read_text())
    assert summary["val_after"] - summary["val_before"] >= 0.1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["init"], "required: NAME"),
        (["init", "a", "b"], "unrecognized arguments: b"),
        (["init", "../escape"], "small letters"),
        (["init", "vqa"], "a task vqa already"),
        (["init", "there"], "is there already"),
    ],
)
def test_one_sentence(
    words: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(SystemExit) as exit_info:
        train_agent.main(words)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and reason in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
