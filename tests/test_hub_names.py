"""A misspelt hub name is one sentence: at once offline, after one request online."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from baselines.constant import running
from vision_rl.errors import UserError
from vision_rl.models.checks import check_hub_name, check_model

ROOT = Path(__file__).resolve().parents[1]
NAME = "Qwen/Qwen2.5-VL-3B-Instuct"


def said(name: str, home: Path, **environment: str) -> tuple[str, float]:
    """(what the check says in a process of its own, since the hub's address is read at import; seconds it takes)."""
    code = (
        "import time, sys; from vision_rl.models.checks import check_hub_name; import huggingface_hub\n"
        "from vision_rl.errors import UserError\nstarted = time.monotonic()\n"
        "try:\n    check_hub_name(sys.argv[1]); print('fine')\n"
        "except UserError as error:\n    print(error)\nprint(time.monotonic() - started)"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, name],
        env={**kept, "HF_HOME": str(home), "NO_PROXY": "*", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    *text, seconds = done.stdout.splitlines()
    assert len(text) == 1, text
    return text[0], float(seconds)


@pytest.fixture(scope="module")
def hub() -> Iterator[tuple[str, list[str]]]:
    """A hub that knows one model, refuses one, and counts what it is asked."""
    asked: list[str] = []
    app = FastAPI()

    @app.get("/api/models/{owner}/{model}")
    def model(owner: str, model: str) -> JSONResponse:
        asked.append(model)
        if model == "gated":
            return JSONResponse({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
        if model == "there":
            return JSONResponse({"id": f"{owner}/{model}", "siblings": []})
        return JSONResponse({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    with running(app) as url:
        yield url.removesuffix("/v1"), asked


def test_offline_it_is_said_at_once(tmp_path: Path) -> None:
    text, seconds = said(NAME, tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in text and NAME in text and seconds < 5  # no request was waited for


def test_a_hub_that_cannot_be_reached_is_asked_once(tmp_path: Path) -> None:
    text, seconds = said(NAME, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "does not answer" in text and "http://127.0.0.1:9" in text and seconds < 10


@pytest.mark.slow
def test_a_misspelt_name_gets_the_nearest_after_one_request(tmp_path: Path, hub: tuple[str, list[str]]) -> None:
    url, asked = hub
    text, _ = said(NAME, tmp_path, HF_ENDPOINT=url)
    assert "did you mean Qwen/Qwen2.5-VL-3B-Instruct?" in text and asked == ["Qwen2.5-VL-3B-Instuct"]
    assert "is gated" in said("some/gated", tmp_path, HF_ENDPOINT=url)[0]
    assert said("some/there", tmp_path, HF_ENDPOINT=url)[0] == "fine"


def test_a_model_in_the_cache_asks_nobody(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--some--cached" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "hub" / "models--some--cached" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    assert said("some/cached", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")[0] == "fine"


def test_check_model_asks_about_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("vision_rl.models.checks.check_hub_name", asked.append)
    check_model(Path("some/model"))
    assert asked == ["some/model"]


def test_what_is_no_name_is_refused() -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match="neither a folder"):
        check_hub_name("a/b/c/d")
    assert time.monotonic() - started < 20
