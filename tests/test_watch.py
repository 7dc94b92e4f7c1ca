"""The terminal view: what it says of a run that learns, hangs, ended, was resumed, and of hostile text."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.recorded_runs import collapsed_run
from vision_rl.recorded import RecordedRun, read_run
from vision_rl.telemetry import ROLLOUTS, RunLog
from vision_rl.watch import TAIL_BYTES, last_rollouts, main, refreshed, sparkline, view

WIDTH = 140


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    return read_run(collapsed_run(tmp_path_factory.mktemp("watch") / "grounding"))


def text_of(run: RecordedRun, after: float = 5.0) -> str:
    """The view `after` seconds since the run's last line."""
    console = Console(width=WIDTH, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    times = [line["time"] for line in (*run.metrics, *run.events)]
    console.print(view(run, WIDTH, max(times, default=0.0) + after))
    return console.export_text()


def going_on(run: RecordedRun, *events: dict[str, Any]) -> RecordedRun:
    begun = [event for event in run.events if event["kind"] != "finished"]
    return dataclasses.replace(run, events=[*begun, *({"time": begun[-1]["time"], **event} for event in events)])


def test_the_view_shows_progress_figures_alarms_and_rollouts(run: RecordedRun) -> None:
    text = text_of(run)
    for words in (
        "ended: stopped by the user",
        "30/40 steps",
        "validation iou     0.000 (first 0.230)",
        "reward falls since step 24",
        "try: go back to the best checkpoint",
        "click the royalblue button",
        "log-prob mismatch",
        "36.5 GB",
    ):
        assert words in text
    assert "left" not in text.split("\n")[1]  # no time is left of a run that ended
    assert any(set(line.split("reward  ")[-1][:20]) & set("▁▂▃▄▅▆▇█") for line in text.split("\n"))


def test_a_running_run_says_what_it_does_and_how_long_it_takes(run: RecordedRun) -> None:
    running = going_on(
        run, {"kind": "queued", "total": 12, "mode": "train"}, {"kind": "collected", "done": 7, "total": 12}
    )
    assert "7 of 12 rollouts, last sign 5 s ago" in text_of(running)
    assert "about 1 min left" in text_of(running)


@pytest.mark.parametrize(("silent", "style"), [(30.0, "green"), (90.0, "yellow")])
def test_a_silent_run_turns_yellow(run: RecordedRun, silent: float, style: str) -> None:
    console = Console(width=WIDTH, record=True, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    running = going_on(run, {"kind": "queued", "total": 12, "mode": "val"})
    console.print(view(running, WIDTH, max(line["time"] for line in (*run.metrics, *run.events)) + silent))
    code = {"green": "\x1b[32m", "yellow": "\x1b[33m"}[style]
    assert f"{code}validating on 12 rows" in console.export_text(styles=True)


@pytest.mark.parametrize(
    ("kinds", "ended"),
    [
        ([], ""),
        (["phase", "finished"], "all steps done"),
        (["finished", "phase", "resumed"], ""),
        (["finished", "queued"], ""),
    ],
)
def test_a_resumed_run_has_not_ended(run: RecordedRun, kinds: list[str], ended: str) -> None:
    assert dataclasses.replace(run, events=[{"kind": kind} for kind in kinds]).ended == ended


def test_a_run_that_has_written_nothing_yet_is_shown(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text('agent.reward: "official"\n')
    assert "nothing is written yet" in text_of(read_run(tmp_path))


def test_new_lines_appear(tmp_path: Path) -> None:
    run = read_run(collapsed_run(tmp_path / "run", steps=2))
    RunLog(run.path).metrics(3, {"train/reward": 0.77, "timing_s/step": 1.0})
    assert "0.770" in text_of(refreshed(run)) and "3/40 steps" in text_of(refreshed(run))


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    lines = [json.dumps({"number": number, "fill": "x" * 900}) for number in range(1000)]
    (tmp_path / ROLLOUTS).write_text("\n".join(lines) + '\n{"number": 1000, "fi')
    assert (tmp_path / ROLLOUTS).stat().st_size > 2 * TAIL_BYTES
    assert [line["number"] for line in last_rollouts(tmp_path, 3)] == [999, 998, 997]
    assert last_rollouts(tmp_path / "nowhere") == []


def test_a_reply_cannot_steer_the_terminal(tmp_path: Path) -> None:
    run = read_run(collapsed_run(tmp_path / "run", steps=1))
    line = json.loads((run.path / ROLLOUTS).read_text().splitlines()[0])
    line["replies"] = ["\x1b]0;title\x07\x1b[2J[bold]no markup[/bold]\r\n\x9b31m"]
    with open(run.path / ROLLOUTS, "a") as file:
        file.write(json.dumps(line) + "\n")
    text = text_of(run)
    assert "[bold]no markup[/bold]" in text
    assert not set(text) & set("\x1b\x07\r\x9b")


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [([], 5, ""), ([1.0], 5, "▁"), ([0.0, 1.0], 5, "▁█"), ([0.0, 0.0, 1.0, 1.0], 2, "▁█"), ([2.0, 2.0, 2.0], 3, "▁▁▁")],
)
def test_sparkline(values: list[float], width: int, bars: str) -> None:
    assert sparkline(values, width) == bars


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 80))
def test_sparklines_fit(values: list[float], width: int) -> None:
    assert len(sparkline(values, width)) == min(width, len(values))


def test_once_prints_and_ends(run: RecordedRun, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run.path), "--once"])
    assert "30/40 steps" in capsys.readouterr().out


def test_no_run_is_an_error_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([str(tmp_path), "--once"])
    assert exit.value.code == 2 and "holds no run" in capsys.readouterr().err
