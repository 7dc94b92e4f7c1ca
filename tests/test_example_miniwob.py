"""MiniWoB++ in headless Chromium: what it shows and pays, what a page may not do, and what goes wrong with browsers."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from vision_rl.agent.environment import Observation
from vision_rl.answers.actions import Action
from vision_rl.errors import UserError
from vision_rl.tasks import get_task

pytest.importorskip("miniwob", reason="the pages are not installed (pip install '.[miniwob]')")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium here (apt-get install chromium)"),
]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return sys.modules[type(get_task("miniwob").environment.make()).__module__]


@pytest.fixture(scope="module")
def page(example: ModuleType) -> Iterator[Any]:
    made = example.MiniWoB()
    yield made
    made.close()


def reset(page: Any, env: str, seed: int = 1, **options: Any) -> Any:
    return page.reset(seed=seed, options={"env": env, **options})


def test_a_seed_is_an_episode_whatever_was_done_before(page: Any) -> None:
    first = reset(page, "click-test-2", 7)
    assert first.text == "Click button ONE." and first.pictures[0].size == (160, 160)
    for action in (Action("hover", (0.5, 0.5)), Action("click", (0.01, 0.99)), Action("type", text="x")):
        page.step(action)
    assert reset(page, "click-test-2", 8).pictures[0] != first.pictures[0]
    again = reset(page, "click-test-2", 7)
    assert again.pictures[0].tobytes() == first.pictures[0].tobytes()
    assert reset(page, "click-test-2", 7, shade=True).pictures[0] != first.pictures[0]


@pytest.mark.parametrize(("env", "clicks"), [("click-test", 1), ("click-test-2", 1), ("click-button-sequence", 2)])
def test_the_oracle_is_paid_by_the_page_whatever_time_it_takes(page: Any, env: str, clicks: int) -> None:
    for seed in (1, 2, 4):
        options = {"env": env}
        actions = page.oracle(seed=seed, options=options)
        page.restore(seed=seed, options=options)
        assert len(actions) == clicks
        time.sleep(0.3)  # a thirtieth of what the page's own clock allows
        steps = [page.step(action) for action in actions]
        assert [step.terminated for step in steps] == [False] * (clicks - 1) + [True]
        assert steps[-1].reward == 1.0 and steps[-1].components == {"success": 1.0}
        assert page.step(actions[0]).reward == 0.0, "nothing is earned after the end"


def test_a_wrong_button_costs_and_a_miss_goes_on(page: Any) -> None:
    """Seed 7 puts button TWO elsewhere than ONE."""
    reset(page, "click-test-2", 7)
    boxes = page.browser().evaluate(
        "[...document.querySelectorAll('button')].map(b => b.getBoundingClientRect().toJSON())"
    )
    corner = next(p for p in ((0.02, 0.98), (0.98, 0.98), (0.98, 0.02), (0.02, 0.02)) if not any(
        box["left"] <= p[0] * 160 <= box["right"] and box["top"] <= 50 + p[1] * 160 <= box["bottom"] for box in boxes
    ))  # fmt: skip
    missed = page.step(Action("click", corner))
    assert not missed.terminated and missed.reward == 0 and len(missed.observation.pictures) == 1
    two = ((boxes[1]["left"] + 20) / 160, (boxes[1]["top"] + 20 - 50) / 160)
    assert page.last_step(Action("click", corner)) == missed._replace(observation=Observation(""))
    wrong = page.step(Action("click", two))
    assert wrong.terminated and wrong.reward == page.out_of_turns() == -1.0 and wrong.components == {"success": 0.0}


def test_text_is_typed_and_keys_are_pressed(page: Any) -> None:
    said = reset(page, "enter-text", 3).text
    wanted = re.search(r'"([^"]+)"', said)[1]  # type: ignore[index]
    where = page.browser().evaluate(
        "(r => [r.x + 9, r.y + 9])(document.querySelector('#area input').getBoundingClientRect())"
    )
    page.step(Action("click", (where[0] / 160, (where[1] - 50) / 160)))
    page.step(Action("type", text="wrong"))
    page.step(Action("press", text="Control+a"))
    page.step(Action("press", text="Backspace"))
    page.step(Action("type", text=wanted))
    assert page.browser().evaluate("document.querySelector('#area input').value") == wanted
    button = page.browser().evaluate(
        "(r => [r.x + 9, r.y + 9])(document.querySelector('#area button').getBoundingClientRect())"
    )
    assert page.step(Action("click", (button[0] / 160, (button[1] - 50) / 160))).reward == 1.0


def test_a_drag_moves_what_it_takes_hold_of(page: Any) -> None:
    reset(page, "drag-box", 1)
    where = "(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector('.ui-draggable').getBoundingClientRect())"
    x, y = page.browser().evaluate(where)
    page.step(Action("drag", (x / 160, (y - 50) / 160), ((x + 30) / 160, (y - 50 + 20) / 160)))
    after = page.browser().evaluate(where)
    assert abs(after[0] - x - 30) <= 2 and abs(after[1] - y - 20) <= 2


def test_a_flight_is_a_larger_page_of_its_own(page: Any) -> None:
    seen = reset(page, "flight.Alaska", 1)
    assert seen.pictures[0].size == (375, 667) and "Departure City" in seen.text
    assert page.step(Action("click", (0.5, 0.99))).observation.pictures[0].size == (375, 667)
    assert reset(page, "click-test").pictures[0].size == (160, 160)


def test_a_page_stays_open_until_four_others_were_asked_for(page: Any) -> None:
    """To load one takes ten times as long as an episode on it."""
    others = ["click-test", "click-button", "focus-text", "enter-text"]
    first = reset(page, "click-test-2", 7).pictures[0]
    page.browser().evaluate("window.mark = 1")
    for env in others[:3]:
        assert reset(page, env).pictures[0] != first
    assert reset(page, "click-test-2", 7).pictures[0].tobytes() == first.tobytes()
    assert page.browser().evaluate("window.mark") == 1
    for env in others:
        reset(page, env)
    assert reset(page, "click-test-2", 7).pictures[0].tobytes() == first.tobytes()
    assert page.browser().evaluate("window.mark") is None


def test_an_unknown_page_is_refused_by_name(page: Any) -> None:
    with pytest.raises(UserError, match="no page 'click-tset'"):
        reset(page, "click-tset")


# --- what a page may not do ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def listener() -> Iterator[tuple[int, list[str]]]:
    """A server on this machine, and the paths that were asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("access-control-allow-origin", "*")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, asked
        server.shutdown()


HOSTILE = """<body><div id=area></div><img src="{away}/img"><iframe src="{away}/frame"></iframe>
<iframe src="file:///etc/hostname"></iframe>
<script>
window.results = [];
const note = name => [() => results.push(name + ' got it'), () => results.push(name + ' refused')];
fetch('{away}/fetch').then(...note('fetch'));
fetch('file:///etc/hostname').then(...note('file'));
const above = note('above');
fetch('/%2e%2e/secret.txt').then(r => above[r.ok ? 0 : 1](), above[1]);
const socket = new WebSocket('{away}/socket'.replace('http', 'ws'));
socket.onopen = note('socket')[0]; socket.onerror = note('socket')[1];
const work = "fetch('{away}/worker').then(() => postMessage(0), () => postMessage(1))";
const worker = new Worker(URL.createObjectURL(new Blob([work])));
worker.onmessage = e => results.push('worker ' + (e.data ? 'refused' : 'got it'));
const link = document.createElement('a');
link.href = '/hostile.html'; link.download = 'x.html'; document.body.append(link); link.click();
window.open('{away}/popup');
</script>"""


def test_a_page_reaches_neither_network_nor_files_and_leaves_nothing(example: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("words of the machine")
    with listener() as (port, asked):
        away = f"http://127.0.0.1:{port}"
        (folder / "hostile.html").write_text(HOSTILE.replace("{away}", away))
        browser = example.Browser(folder)
        browser.turn_to("hostile")
        try:
            browser.call("Page.navigate", url=f"{example.ORIGIN}/hostile.html")
            deadline = time.monotonic() + 30
            results: list[Any] = []
            while len(results) < 5 and time.monotonic() < deadline:
                results = browser.evaluate("window.results || []")
                time.sleep(0.1)
            assert sorted(results) == [f"{one} refused" for one in ("above", "fetch", "file", "socket", "worker")]
            browser.call("Page.navigate", url=f"{away}/navigate")
            browser.call("Page.navigate", url=f"file://{tmp_path / 'secret.txt'}")
            assert "words of the machine" not in str(browser.evaluate("document.body?.innerText"))
            profile = Path(browser.profile)
            assert profile.is_dir() and profile.stat().st_mode & 0o077 == 0
        finally:
            browser.close()
        assert asked == [] and not profile.exists()
        opened = example.Browser(folder, network=True)
        opened.turn_to("hostile")
        opened.call("Page.navigate", url=f"{away}/navigate")
        opened.close()
        assert "/navigate" in asked, "where a setting allows it, it is asked: the test can fail"


# --- bad days ------------------------------------------------------------------------------------------------------


def of_profile(profile: str) -> list[int]:
    """The processes that use a profile."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if (
            any(profile in word for word in process.info["cmdline"] or ())
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ):
            found.append(process.pid)
    return found


def gone(profile: str, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while of_profile(profile) or os.path.exists(profile):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_a_kill_of_the_trainer_leaves_no_browser_and_no_profile() -> None:
    script = (
        "import time; from vision_rl.tasks import get_task; page = get_task('miniwob').environment.make()\n"
        "page.reset(seed=1, options={'env': 'click-test'}); print(page.browser().profile, flush=True); time.sleep(60)"
    )
    trainer = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    profile = trainer.stdout.readline().strip()
    assert len(of_profile(profile)) > 2 and os.path.isdir(profile)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    assert gone(profile), (of_profile(profile), os.path.exists(profile))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_browser_that_dies_or_hangs_is_a_sentence_and_is_cleared_away(
    number: signal.Signals, example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = example.MiniWoB()
    reset(page, "click-test")
    profile = page.browser().profile
    for pid in of_profile(profile):
        os.kill(pid, number)
    with monkeypatch.context() as impatient, pytest.raises(example.BrowserError, match=r"has ended|does not answer"):
        impatient.setattr(example.Browser.calls, "__defaults__", (1.0,))
        page.step(Action("click", (0.5, 0.5)))
    page.close()
    assert gone(profile)
    assert reset(page, "click-test").text == "Click the button.", "and the next episode has a new one"
    page.close()


def test_a_page_that_crashes_is_a_sentence_and_the_next_one_is_new(example: ModuleType) -> None:
    """As the system ends a renderer when memory is short."""
    page = example.MiniWoB()
    reset(page, "click-test")
    profile = page.browser().profile
    with pytest.raises(example.BrowserError, match="the page has crashed; the machine may be out of memory"):
        page.browser().call("Page.crash")
    page.close()
    assert gone(profile) and reset(page, "click-test").text == "Click the button."
    page.close()


def test_a_page_that_never_becomes_ready_is_given_up(
    example: ModuleType, page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reset(page, "click-test")
    monkeypatch.setattr(example, "READY_SECONDS", 0.3)
    page.browser().evaluate("WOB_TASK_READY = false")
    with pytest.raises(example.BrowserError, match=r"click-test is not ready after 0\.3 s"):
        reset(page, "click-test")
    page.close_page()


def test_what_is_missing_is_named(example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINIWOB_CHROMIUM", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"no Chromium was found at .*/none; install it"):
        reset(example.MiniWoB(), "click-test")
    monkeypatch.setenv("MINIWOB_CHROMIUM", "/bin/false")
    with pytest.raises(example.BrowserError, match="Chromium has ended"):
        reset(example.MiniWoB(), "click-test")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(UserError, match="no folder for the browser's profile"):
        reset(example.MiniWoB(), "click-test")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(example, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install '\.\[miniwob\]'"):
        example.pages()
