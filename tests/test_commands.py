"""The commands as a whole: what a Python without packages is told, and what a command leaves when it is ended."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from tests import page_commands
from vision_rl.errors import near
from vision_rl.rollout.addresses import Addresses, worker_lines
from vision_rl.run.log import RunLog
from vision_rl.run.progress import RunProgress

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    *(["train_agent.py"], ["evaluate_agent.py"], ["data_utils.py"], ["vqa_agent.py"], ["worker.py"]),
    *(["baselines/api_baseline.py"], ["-m", "vision_rl.report"], ["-m", "vision_rl.preflight.attack"]),
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script[-1])
def test_a_python_without_the_packages_is_told_in_one_sentence(script: list[str]) -> None:
    """As before `. .venv/bin/activate`; -S leaves the installed packages out."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-S", *script], cwd=ROOT, env=plain, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert ". .venv/bin/activate" in done.stderr


def test_a_users_own_import_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import vision_rl.errors\nimport no_such_package\n")
    done = subprocess.run([sys.executable, tmp_path / "own.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "no_such_package" in done.stderr


def test_ctrl_c_while_a_command_imports_is_one_word() -> None:
    """No `cli_errors` stands around a script's imports, which take seconds."""
    code = "import vision_rl; print('importing', flush=True); import time; time.sleep(60)"
    running = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout and running.stdout.readline() == b"importing\n"
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=30)[1] == b"interrupted\n"
    assert running.returncode == -signal.SIGINT, "which a shell calls 130"


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("dpao", ["papo", "dapo"], "dapo"),
        ("--varient", ["--preset", "--variant"], "--variant"),
        ("exactmatch", ["textvqa", "exact_match", "exact"], "exact_match"),
        ("zzz", ["papo", "dapo"], ""),
    ],
)
def test_the_nearest_name(name: str, known: list[str], meant: str) -> None:
    assert near(name, known) == meant


def test_the_commands_for_workers_are_printed_when_the_proxy_listens(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    log = RunLog(tmp_path)
    progress = RunProgress(tmp_path, 4, console, worker_lines(Addresses(4747, proxy_port=8080), ["vqa"]))
    log.event("phase", text="Ray is up")
    progress.update()
    assert isinstance(console.file, io.StringIO) and "worker.py" not in console.file.getvalue()
    for _ in range(2):  # of a trainer that has started its proxy again
        log.event("proxy", address="http://127.0.0.1:8080")
        progress.update()
    shown = console.file.getvalue()
    assert shown.count("python worker.py --task vqa") == 1
    assert "on this machine (--host 0.0.0.0 opens it to others)" in shown and "any machine" not in shown
    assert "any machine" in "\n".join(
        worker_lines(Addresses(4747, "0.0.0.0", advertised="10.0.0.7", proxy_port=8080), ["vqa"])
    )


def test_the_pages_have_commands_and_few_are_not_run() -> None:
    found = page_commands.commands()
    run = [one.text for one in found if not one.reason]
    assert len(found) > 90 and len(run) > 65
    for word in (
        "train_agent.py --task vqa",
        "vqa_agent.py",
        "--doctor",
        "evaluate_agent.py",
        "vision_rl.report",
        "vision_rl.export",
        "worker.py",
        "convert vqa-rad",
        "--plan --preset gpu_24gb",
    ):
        assert any(word in text for text in run), word
    assert page_commands.filled("python train_agent.py --task vqa").endswith("--max-steps 1 --overwrite")


@pytest.mark.parametrize(
    ("command", "code", "silent"),
    [("echo a; sleep 1.5; echo b", 0, 1.5), ("sleep 1.2; echo a", 0, 1.2), ("echo a; exit 3", 3, 0.0)],
)
def test_a_commands_silence_and_exit_code_are_measured(command: str, code: int, silent: float, tmp_path: Path) -> None:
    result = page_commands.timed(command, tmp_path)
    assert result.code == code and result.gap >= silent - 0.05 and result.end >= result.first


def test_what_a_command_asks_is_started_beside_it_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serving = "echo $$ > pid; echo OPENAI_BASE_URL=http://127.0.0.1:9/v1 OPENAI_API_KEY=k; sleep 60"
    monkeypatch.setattr(page_commands, "BESIDE", (("ask", serving),))
    with page_commands.beside("ask", tmp_path) as variables:
        process = int((tmp_path / "pid").read_text())
        assert variables == {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "k"}
        assert psutil.pid_exists(process)
    assert not psutil.pid_exists(process)
    with page_commands.beside("other", tmp_path) as variables:
        assert variables == {}


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.timeout(7200)
def test_every_command_of_the_pages_works_and_none_is_silent() -> None:
    done = subprocess.run(
        ["bash", "docs/commands.sh"], cwd=ROOT, env={**os.environ, "PYTHON": sys.executable}, timeout=7200
    )
    assert done.returncode == 0


SERVING = {
    "vqa_agent": ["vqa_agent.py"],
    "grounding_agent": ["grounding_agent.py"],
    "evaluate": ["evaluate_agent.py", "--tiny", "--limit", "2", "--output", "OUT"],
    "serve": ["-m", "vision_rl.serve", "--tiny", "--port", "0"],
    "doctor": ["train_agent.py", "--doctor"],
}
"""The commands that start a model server; a run's own are tests/test_e2e_kills.py."""


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that a command with this mark in its environment has started, itself included."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("VISION_RL_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it has come true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "number", "code"),
    [
        ("vqa_agent", signal.SIGTERM, 143),
        *(
            pytest.param(name, number, code, marks=pytest.mark.long)
            for name in SERVING
            for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9))
            if (name, number) != ("vqa_agent", signal.SIGTERM)
        ),
    ],
)
def test_a_command_that_is_ended_ends_its_server(name: str, number: signal.Signals, code: int, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    command = [sys.executable, *(word.replace("OUT", str(tmp_path)) for word in SERVING[name])]
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "VISION_RL_TEST_MARK": mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        # the command itself, `supervised`, vLLM's API server and the first process that it starts
        assert until(lambda: len(marked(mark)) >= 4 or running.poll() is not None, 300) and running.poll() is None
        running.send_signal(number)
        assert running.wait(60) == code
        assert until(lambda: not marked(mark), 30), [process.cmdline() for process in marked(mark)]
    finally:
        for process in marked(mark):
            process.kill()
