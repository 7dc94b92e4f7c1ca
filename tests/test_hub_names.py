"""A misspelt hub name is one sentence: at once offline, after one request online."""

from __future__ import annotations

import os
import subprocess
import sys
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


def said(name: str, home: Path, **environment: str) -> str:
    """What the check says in a process of its own, since the hub's address is read at import."""
    code = (
        "import sys; from vision_rl.models.checks import check_hub_name; from vision_rl.errors import UserError\n"
        "try:\n    check_hub_name(sys.argv[1]); print('fine')\n"
        "except UserError as error:\n    print(error)"
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
    (text,) = done.stdout.splitlines()
    return text


@pytest.fixture(scope="module")
def hub() -> Iterator[tuple[str, list[str]]]:
    """A hub that knows one model, refuses one, is down for one, and counts what it is asked."""
    asked: list[str] = []
    app = FastAPI()

    @app.get("/api/models/{owner}/{model}")
    def model(owner: str, model: str) -> JSONResponse:
        asked.append(model)
        if model == "down":
            return JSONResponse({"error": "down"}, 503)
        if model == "gated":
            return JSONResponse({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
        if model == "there":
            return JSONResponse({"id": f"{owner}/{model}", "siblings": []})
        return JSONResponse({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    with running(app) as url:
        yield url.removesuffix("/v1"), asked


@pytest.mark.slow
def test_offline_nobody_is_asked(tmp_path: Path, hub: tuple[str, list[str]]) -> None:
    url, asked = hub
    asked.clear()
    text = said(NAME, tmp_path, HF_HUB_OFFLINE="1", HF_ENDPOINT=url)
    assert "HF_HUB_OFFLINE is set" in text and NAME in text and not asked


@pytest.mark.slow
def test_a_hub_that_fails_is_asked_once(tmp_path: Path, hub: tuple[str, list[str]]) -> None:
    text = said(NAME, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "does not answer" in text and "http://127.0.0.1:9" in text
    url, asked = hub
    asked.clear()
    text = said("some/down", tmp_path, HF_ENDPOINT=url)
    assert "does not answer" in text and asked == ["down"], "no retries"


@pytest.mark.slow
def test_a_misspelt_name_gets_the_nearest_after_one_request(tmp_path: Path, hub: tuple[str, list[str]]) -> None:
    url, asked = hub
    asked.clear()
    text = said(NAME, tmp_path, HF_ENDPOINT=url)
    assert "did you mean Qwen/Qwen2.5-VL-3B-Instruct?" in text and asked == ["Qwen2.5-VL-3B-Instuct"]
    assert "is gated" in said("some/gated", tmp_path, HF_ENDPOINT=url)
    assert said("some/there", tmp_path, HF_ENDPOINT=url) == "fine"


def test_a_model_in_the_cache_asks_nobody(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--some--cached" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "hub" / "models--some--cached" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    assert said("some/cached", tmp_path, HF_ENDPOINT="http://127.0.0.1:9") == "fine"


def test_check_model_asks_about_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("vision_rl.models.checks.check_hub_name", asked.append)
    check_model(Path("some/model"))
    assert asked == ["some/model"]


def test_what_is_no_name_is_refused() -> None:
    with pytest.raises(UserError, match="neither a folder"):
        check_hub_name("a/b/c/d")
