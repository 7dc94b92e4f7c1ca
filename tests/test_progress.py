"""The bar of a run follows its files, also when a resumed run takes lines back."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from vision_rl.run.log import EVENTS, RunLog
from vision_rl.run.progress import RunProgress


def step(log: RunLog, number: int) -> None:
    log.metrics(number, {"train/reward": 0.1 * number, "val/reward": 0.1 * number, "timing_s/step": 1.0})


@pytest.mark.parametrize(("last", "kept"), [(5, 3), (5, 5), (2, 0)])
def test_a_resumed_run_shows_its_new_steps_once(last: int, kept: int, tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for number in range(1, last + 1):
        step(log, number)
    with open(tmp_path / EVENTS, "a", encoding="utf-8") as file:
        file.write('{"time": 1, "half a li')  # the run before was killed here
    shown = io.StringIO()
    with RunProgress(tmp_path, 10, Console(file=shown, width=100)) as progress:
        log.forget_after(kept if kept else -1)
        progress.update()
        log.event("resumed", step=kept)
        step(log, kept + 1)
        progress.update()
        step(log, kept + 2)
        progress.update()
    validations = [line for line in shown.getvalue().splitlines() if "validation reward" in line]
    assert [int(line.split()[1]) for line in validations] == [kept + 1, kept + 2]


@pytest.mark.parametrize("kind", ["phase", "alarm", "warning", "restored"])
def test_text_with_brackets_is_shown_as_it_is_and_on_one_line(kind: str, tmp_path: Path) -> None:
    text = f"trainer.logger=[console,wandb] [/x] {'word ' * 30}".strip()
    shown = io.StringIO()
    with RunProgress(tmp_path, 10, Console(file=shown, width=100)) as progress:
        RunLog(tmp_path).event(kind, text=text)
        RunLog(tmp_path).event("finished", step=1, reason=text)
        progress.update()
    assert sum(line.rstrip().endswith(text) for line in shown.getvalue().splitlines()) == 2
