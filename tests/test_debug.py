"""The debug mode of the agents: what it prints, and one sentence for what cannot work."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from tests.fake_openai import MODEL, fake_openai
from vision_rl.data.schema import read_rows
from vision_rl.evaluation import debug
from vision_rl.evaluation.debug import main
from vision_rl.tiny import write_tasks

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture()
def data(tmp_path: Path) -> str:
    Image.new("RGB", (84, 84), "red").save(tmp_path / "a.png")
    question = "What colour [/b] is [red]it?"
    rows = [{"id": str(n), "image_path": "a.png", "question": f"{question} {n}", "answer": "red"} for n in range(4)]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    return str(tmp_path / "rows.parquet")


def test_everything_about_a_row_is_printed(
    data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    with fake_openai("red\x1b[2J") as fake:
        main("vqa", ["--data", data, "--endpoint", fake.url, "--model", MODEL])
    printed = capsys.readouterr().out
    lines = " ".join(printed.replace("│", " ").split())
    for part in ("reading rows", f"asking {MODEL} at {fake.url}", "a.png (84x84", "What colour [/b] is [red]it? 0"):
        assert part in lines, part
    assert "prompt [image_url] What colour [/b]" in lines and "single word" in lines
    assert "gold red reward" in lines and "accuracy 0" in lines and "format/ok 1" in lines
    assert "\x1b[2J" not in printed  # a reply must not clear the screen


def test_several_rows(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_openai("red") as fake:
        main("vqa", ["--data", data, "--rows", "2", "--row", "1", "--endpoint", fake.url, "--model", MODEL])
    printed = capsys.readouterr().out
    assert "it? 1" in printed and "it? 2" in printed and "it? 0" not in printed and "it? 3" not in printed
    assert printed.count("reward     │ 1.0000") == 2


def test_the_tiny_model_is_shown_with_a_question_that_it_answers_beside_one_that_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    [first, *_] = read_rows(write_tasks(Path("data") / "synthetic" / "vqa", "vqa")["val"], task="vqa")
    with fake_openai(first["answers"][0]) as fake:
        monkeypatch.setattr(debug, "_tiny_server", lambda _: contextlib.nullcontext((fake.url, MODEL)))
        main("vqa", [])
        assert len(fake.questions()) == debug.SAMPLE
    printed = capsys.readouterr().out
    assert (
        "8 answered" in printed and f"of {debug.SAMPLE} earn the full reward; the best reply and the worst:" in printed
    )
    assert printed.count("reward     │ 1.0000") == 1 and printed.count("reward     │ 0.0000") == 1


@pytest.mark.parametrize("task", ["vqa", "grounding"])
def test_a_picture_of_ones_own_has_no_reward(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (84, 84), "red").save(tmp_path / "my.png")
    with fake_openai("<bbox>[0.1, 0.2, 0.3, 0.4]</bbox>") as fake:
        own = ["--image", str(tmp_path / "my.png"), "--question", "Where?"]
        main(task, [*own, "--endpoint", fake.url, "--model", MODEL])
        assert fake.questions()[0].startswith("Where?")
    printed = capsys.readouterr().out
    assert "not known, so there is no reward" in printed and "components" not in printed
    assert ("0.100, 0.200, 0.300, 0.400" in printed) == (task == "grounding")


@pytest.mark.slow
def test_an_endpoint_is_asked_without_torch(data: str) -> None:
    code = (
        "import runpy, sys; sys.argv = ['vqa_agent.py', *sys.argv[1:]]; runpy.run_path('vqa_agent.py', run_name='__main__'); "
        "print(sorted({'torch', 'agentlightning', 'litellm', 'verl', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    with fake_openai("red") as fake:
        command = [sys.executable, "-c", code, "--data", data, "--endpoint", fake.url, "--model", MODEL]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--endpoint", "http://127.0.0.1:9/v1"], "--endpoint and --model go together"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--model", "m"], "did not answer for model m"),
        (["--endpoint", "nowhere", "--model", "m"], "'nowhere' is not a URL"),
        (["--row", "-1"], "--row -1"),
        (["--row", "7"], "has 4 rows of task vqa; --row 7"),
        (["--rows", "0"], "--rows 0"),
        (["--image", "a.png"], "--image and --question go together"),
        (["--image", "a.png", "--question", "Why?"], "give one of the two"),
        (["--data", "missing.parquet"], "missing.parquet does not exist"),
    ],
)
def test_one_sentence(arguments: list[str], reason: str, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main("vqa", ["--data", data, *arguments])
    error = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert error.count("\n") == 1 and error.startswith("error: ")
    assert reason in error


def test_an_endpoint_that_sends_no_completion(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_openai(fault=lambda number, body: (200, {}, {"detail": "log in"})) as fake, pytest.raises(SystemExit):
        main("vqa", ["--data", data, "--endpoint", fake.url, "--model", MODEL])
    assert "answered without choices" in capsys.readouterr().err
