"""Scoring rows against a server that limits, fails, vanishes; and going on after a kill."""

from __future__ import annotations

import dataclasses
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from rich.console import Console

import evaluate_agent
from tests.fake_openai import MODEL, error, fake_openai
from vision_rl.errors import UserError
from vision_rl.evaluation import scorer as runner
from vision_rl.evaluation.results import ROWS, open_store, read_records
from vision_rl.evaluation.scorer import Limits
from vision_rl.evaluation.session import Job, evaluate, load_rows
from vision_rl.evaluation.targets import agent_settings
from vision_rl.evaluation.traffic import retry_after
from vision_rl.rewards.vqa import vqa_reward
from vision_rl.tiny import write_tasks

REPO = Path(__file__).resolve().parents[1]
NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"), "vqa", train=1, val=1, test=24)["test"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between tries, in the runner and in the client's own retries."""
    monkeypatch.setattr(runner, "_backoff", lambda attempt: 0.01)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


def job_for(data: Path, output: Path, *, limit: int | None = None, **limits: Any) -> Job:
    settings = agent_settings("vqa", [], cpu=False, model_dir=None, trained_as=None, transport="data")
    return Job(
        rows=load_rows(data, None, limit)["vqa"],
        identity=evaluate_agent.identity_of("vqa", MODEL, "test", data, settings, {}),
        output=output,
        prepare=lambda row: {**row, "settings": dataclasses.asdict(settings)},
        limits=Limits(**limits),
    )


def run(job: Job, url: str, model: str = MODEL) -> dict[str, Any]:
    @contextmanager
    def server() -> Iterator[tuple[str, str]]:
        yield url, model

    return evaluate(job, server, Console(stderr=True, quiet=True))


def test_rows_are_asked_as_in_training_and_scored_by_its_reward(data: Path, tmp_path: Path) -> None:
    with fake_openai(lambda body: "red" if "color" in body["messages"][0]["content"][-1]["text"] else "2") as fake:
        summary = run(job_for(data, tmp_path), fake.url)
    records = read_records(tmp_path)
    assert list(records) == list(range(24)) and summary["scored"] == 24 and summary["failed"] == 0
    for record in records.values():
        expected = vqa_reward(record["reply"], record["answers"])
        assert (record["reward"], record["components"]) == (expected.value, expected.components)
        assert record["usage"]["calls"] == 1 and record["usage"]["prompt_tokens"] == 100
        assert 0 < record["usage"]["seconds"] <= record["seconds"]
    accuracy = [record["components"]["accuracy"] for record in records.values()]
    assert summary["metrics"]["accuracy"]["value"] == pytest.approx(sum(accuracy) / 24)
    assert summary["usage"]["prompt_tokens"] == 2400 and summary["usage"]["completion_tokens"] == 168
    assert all("Answer the question using a single word or phrase." in text for text in fake.questions())
    assert all(
        body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/") for body in fake.requests
    )
    assert {path.name for path in tmp_path.iterdir()} >= {"summary.json", "summary.md", "report.html", "rows.jsonl"}


def answered(content: str, finish_reason: str, **more: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
    """A reply with status 200 that ended for the given reason."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason, **more}
    return 200, {}, {"id": "x", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}


def test_the_share_of_cut_replies_is_in_every_summary(data: Path, tmp_path: Path) -> None:
    def fault(number: int, body: dict[str, Any]) -> Any:
        return answered("red", "length") if number < 18 else None

    with fake_openai("red", fault=fault) as fake:
        summary = run(job_for(data, tmp_path, concurrency=1), fake.url)
    assert (summary["truncated"]["value"], summary["truncated"]["n"]) == (0.75, 24)
    for page in ("summary.md", "report.html"):
        text = (tmp_path / page).read_text()
        assert (
            "replies cut off" in text and "The length limit (agent.max_tokens) cut 75.00 % of the replies off." in text
        )
    with fake_openai("red") as fake:
        whole = run(job_for(data, tmp_path / "whole"), fake.url)
    assert whole["truncated"]["value"] == 0.0 and "cut 0" not in (tmp_path / "whole" / "summary.md").read_text()


def test_a_providers_error_with_status_200_is_tried_again_and_its_words_are_kept(data: Path, tmp_path: Path) -> None:
    faults = [{"message": "slow down", "code": 429}, {"message": "overloaded", "code": "502"}, "upstream is down"]

    def fault(number: int, body: dict[str, Any]) -> Any:
        return (200, {}, {"error": faults[number]}) if number < len(faults) else None

    with fake_openai("red", fault=fault) as fake:
        summary = run(job_for(data, tmp_path, concurrency=3), fake.url)
    assert summary["failed"] == 0 and len(fake.requests) == 24 + len(faults)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((200, {}, {"error": {"message": "model is gone", "code": 400}}), "model is gone"),
        (answered("", "content_filter"), "the provider's content filter withheld the answer"),
        (answered("", "error", error={"message": "no such picture", "code": 422}), "no such picture"),
    ],
)
def test_a_provider_that_refuses_a_row_is_no_wrong_answer(reply: Any, words: str, data: Path, tmp_path: Path) -> None:
    with fake_openai("red", fault=lambda number, body: reply if number == 3 else None) as fake:
        summary = run(job_for(data, tmp_path, concurrency=1), fake.url)
    assert (summary["scored"], summary["failed"], len(fake.requests)) == (23, 1, 24)
    assert list(summary["failures"]) == [f"the server refuses the request: {words}"]


def test_concurrency_is_used_and_bounded(data: Path, tmp_path: Path) -> None:
    with fake_openai("red", delay=0.05) as fake:
        run(job_for(data, tmp_path, concurrency=6), fake.url)
    assert 3 <= fake.most_under_way <= 6


@pytest.mark.slow
def test_429_with_retry_after_pauses_all_requests(data: Path, tmp_path: Path) -> None:
    limited: list[float] = []

    def fault(number: int, body: dict[str, Any]) -> Any:
        if number == 4:
            limited.append(time.monotonic())
            return error(429, "slow down", retry_after="1")
        return None

    with fake_openai("red", fault=fault, delay=0.01) as fake:
        summary = run(job_for(data, tmp_path, concurrency=2), fake.url)
    assert summary["failed"] == 0 and summary["usage"]["rate_limited"] == 1
    # The one other request that was under way may have ended; nothing else starts before the second is over.
    early = [moment for moment in fake.times if limited[0] + 0.1 < moment < limited[0] + 0.95]
    assert early == []
    assert len(fake.requests) == 25


def test_429s_are_no_attempts(data: Path, tmp_path: Path) -> None:
    with fake_openai("red", fault=lambda n, body: error(429, "wait", retry_after_ms="5") if n < 20 else None) as fake:
        summary = run(job_for(data, tmp_path, limit=2, attempts=1, concurrency=1), fake.url)
    assert summary["failed"] == 0 and len(fake.requests) == 22


def test_a_row_that_is_refused_for_too_long_fails(data: Path, tmp_path: Path) -> None:
    with fake_openai("red", fault=lambda n, body: error(429, "wait", retry_after_ms="20")) as fake:
        summary = run(job_for(data, tmp_path, limit=1, rate_limit_seconds=0.2), fake.url)
    assert summary["failed"] == 1 and "rate limited" in next(iter(summary["failures"]))


def test_errors_of_the_server_are_tried_again(data: Path, tmp_path: Path) -> None:
    # Each try of the runner is three of the client.
    with fake_openai("red", fault=lambda n, body: error(500, "broken") if n < 5 else None) as fake:
        summary = run(job_for(data, tmp_path, limit=1), fake.url)
    assert summary["failed"] == 0 and len(fake.requests) == 6
    assert summary["usage"]["server_errors"] == 5


def test_a_refused_row_fails_alone_and_is_asked_again_next_time(data: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def fault(number: int, body: dict[str, Any]) -> Any:
        text = body["messages"][0]["content"][-1]["text"] + body["messages"][0]["content"][0]["image_url"]["url"]
        if number == 3:
            refused.append(text)
        return error(400, "too long") if text in refused else None

    with fake_openai("red", fault=fault) as fake:
        first = run(job_for(data, tmp_path, concurrency=1), fake.url)
        refused.clear()
        refused.append("nothing")
        again = len(fake.requests)
        second = run(job_for(data, tmp_path, concurrency=1), fake.url)
    assert (first["scored"], first["failed"]) == (23, 1)
    assert first["failures"] == {"the server refuses the request: too long": 1}
    assert (second["scored"], second["failed"]) == (24, 0)
    assert len(fake.requests) - again == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (error(401, "bad key"), "OPENAI_API_KEY"),
        (error(404, "no such model", code="model_not_found"), "check --model"),
        (error(403, "not yours"), "OPENAI_API_KEY"),
        (error(429, "pay", code="insufficient_quota"), "quota is spent"),
        (error(400, "unknown parameter"), "rows failed one after the other"),
    ],
)
def test_what_no_retry_mends_ends_in_one_sentence(fault: Any, words: str, data: Path, tmp_path: Path) -> None:
    with (
        fake_openai("red", fault=lambda n, body: fault, lists_models=False) as fake,
        pytest.raises(UserError, match=words),
    ):
        run(job_for(data, tmp_path, concurrency=1), fake.url)
    assert len(fake.requests) <= 24


def test_unreachable_endpoint_and_wrong_model_are_reported_before_the_first_row(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing answers at http://127\.0\.0\.1:9"):
        run(job_for(data, tmp_path), "http://127.0.0.1:9/v1")
    with fake_openai("red") as fake, pytest.raises(UserError, match="does not serve a model 'other'; it serves fake"):
        run(job_for(data, tmp_path), fake.url, model="other")
    assert fake.requests == []


def test_other_evaluations_are_refused_and_higher_limits_go_on(data: Path, tmp_path: Path) -> None:
    with fake_openai("red") as fake:
        run(job_for(data, tmp_path, limit=5), fake.url)
        summary = run(job_for(data, tmp_path, limit=9), fake.url)
        assert summary["scored"] == 9 and len(fake.requests) == 9
        job = job_for(data, tmp_path, limit=9)
        other = dataclasses.replace(job, identity={**job.identity, "settings": {"reward": "similarity"}})
        with pytest.raises(UserError, match=r"holds another evaluation .*--overwrite"):
            run(other, fake.url)
        run(dataclasses.replace(other, overwrite=True), fake.url)
        assert len(fake.requests) == 18


def test_a_line_that_was_cut_short_is_dropped(data: Path, tmp_path: Path) -> None:
    with fake_openai("red") as fake:
        run(job_for(data, tmp_path, limit=3), fake.url)
        with open(tmp_path / ROWS, "a", encoding="utf-8") as file:
            file.write('{"row": 3, "id": "ha')
        summary = run(job_for(data, tmp_path, limit=4), fake.url)
    assert summary["scored"] == 4 and list(read_records(tmp_path)) == [0, 1, 2, 3]


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with (
        open_store(tmp_path, {"task": "vqa"}),
        pytest.raises(UserError, match="another process"),
        open_store(tmp_path, {"task": "vqa"}),
    ):
        pass


def test_a_full_disk_is_one_sentence_and_the_rows_before_it_stay(data: Path, tmp_path: Path) -> None:
    job = job_for(data, tmp_path, concurrency=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with fake_openai("red") as fake:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
        try:
            with pytest.raises(UserError, match=r"cannot write .*the same command again"):
                run(job, fake.url)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        kept = len(read_records(tmp_path))
        assert 0 < kept < 24
        assert run(job, fake.url)["scored"] == 24


@pytest.mark.e2e
@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGKILL, -9, ""), (signal.SIGINT, 130, "interrupted")])
def test_a_killed_command_goes_on_where_it_stopped(
    number: signal.Signals, code: int, said: str, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with fake_openai("red", delay=0.15) as fake:
        command = [sys.executable, str(REPO / "evaluate_agent.py"), "--data", str(data), "--output", str(output)]
        command += ["--endpoint", fake.url, "--model", MODEL, "--concurrency", "2"]
        first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _wait_for(lambda: (output / ROWS).exists() and len((output / ROWS).read_bytes().splitlines()) >= 5, first)
        first.send_signal(number)
        error = first.communicate()[1].decode()
        assert first.returncode == code
        assert said in error and "Traceback" not in error
        done = set(read_records(output))
        asked = len(fake.requests)
        assert 5 <= len(done) < 24
        fake.delay = 0.0
        again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{len(done)} of 24 rows are done already" in again.stderr
    # At most the two that were under way are asked twice.
    assert len(fake.requests) - asked == 24 - len(done)
    assert "24 of 24 rows scored." in again.stdout
    summary = json.loads((output / "summary.json").read_text())
    assert summary["scored"] == 24 and summary["missing"] == 0


def _wait_for(ready: Any, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert process.poll() is None and process.stderr, "the command ended early"
        assert time.monotonic() < deadline, "the command did not come to its rows"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--endpoint", "http://127.0.0.1:9/v1"], "--endpoint and --model go together"),
        (["--tiny", "--model", "x"], "--endpoint and --model go together"),
        (["--checkpoint", "nowhere"], "--checkpoint nowhere does not exist"),
        (["--tiny", "--data", "nowhere.parquet"], "nowhere.parquet does not exist"),
        (["--tiny", "--limit", "0"], "--limit 0"),
        (["--tiny", "--concurrency", "0"], "--concurrency 0"),
        (["--tiny", "trainer.total_epochs=3"], "an evaluation reads agent.* only"),
        (["--tiny", "agent.rewardd=official"], "agent.reward"),
        (["agent.max_tokens=9", "--tiny", "--limit", "2", "agent.rewardd=official"], "agent.reward"),
    ],
)
def test_bad_command_lines_exit_with_2_and_one_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        evaluate_agent.main(arguments)
    doing, message = capsys.readouterr().err.rpartition("error: ")[::2]
    assert exit_.value.code == 2 and words in message
    assert all(line.startswith("reading settings") for line in doing.splitlines())


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "-4"}, 0.0),
        ({"retry-after": formatdate(NOW + 100, usegmt=True)}, 100.0),
        ({"retry-after": formatdate(NOW - 100, usegmt=True)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision_rl.evaluation.traffic.time.time", lambda: NOW)
    assert retry_after(httpx.Headers(headers)) == seconds


REQUEST = httpx.Request("POST", "http://host/v1/chat/completions")


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (openai.APIConnectionError(request=REQUEST), "APIConnectionError: Connection error. (refused)"),
        (openai.APITimeoutError(request=REQUEST), "APITimeoutError: Request timed out. (refused)"),
        (ValueError("no choices"), "ValueError: no choices"),
    ],
)
def test_a_failed_connection_says_its_cause(failure: Exception, line: str) -> None:
    failure.__cause__ = OSError("refused")
    assert runner._failure(failure) == line
    failure.__cause__ = httpx.ReadTimeout("")
    assert runner._failure(failure) == line.replace(" (refused)", "")
