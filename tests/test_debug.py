"""The debug mode of the agents: what it prints, and one sentence for what cannot work."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from tests.fake_openai import MODEL, fake_openai
from vision_rl.debug import main


@pytest.fixture()
def data(tmp_path: Path) -> str:
    Image.new("RGB", (84, 84), "red").save(tmp_path / "a.png")
    row = {"id": "1", "image_path": "a.png", "question": "What colour [/b] is [red]it?", "answer": "red"}
    pd.DataFrame([row]).to_parquet(tmp_path / "rows.parquet")
    return str(tmp_path / "rows.parquet")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["vqa_agent.py", *arguments])
    main("vqa")


def test_question_reply_and_reward_are_printed(
    data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_openai("red") as fake:
        run(monkeypatch, "--data", data, "--endpoint", fake.url, "--model", MODEL)
    printed = capsys.readouterr().out
    for part in ("a.png", "What colour [/b] is [red]it?", "reply    red", "reward   1.0"):
        assert part in printed.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--endpoint", "http://127.0.0.1:9/v1"], "--endpoint and --model go together"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--model", "m"], "did not answer for model m"),
        (["--endpoint", "nowhere", "--model", "m"], "'nowhere' is not a URL"),
        (["--row", "-1"], "--row -1"),
        (["--row", "7"], "--row 7"),
        (["--data", "missing.parquet"], "missing.parquet does not exist"),
    ],
)
def test_one_sentence(
    arguments: list[str],
    reason: str,
    data: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run(monkeypatch, "--data", data, *arguments)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert error.count("\n") == 1 and error.startswith("error: ")
    assert reason in error


def test_an_endpoint_that_sends_no_completion(
    data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_openai(fault=lambda number, body: (200, {}, {"detail": "log in"})) as fake, pytest.raises(SystemExit):
        run(monkeypatch, "--data", data, "--endpoint", fake.url, "--model", MODEL)
    assert "answered without choices" in capsys.readouterr().err
