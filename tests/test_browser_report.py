"""The page in headless Chromium: filters, sorting, hovering, alarms, dark mode, a phone's width, a run that goes on."""

from __future__ import annotations

import base64
import io
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.recorded_runs import hostile_run, told_run
from tests.test_evaluation_metrics import IDENTITY, boxed
from tests.test_evaluation_report import PREDICTED, SETTINGS, TRUE, picture
from vision_rl.answers.space import AnswerSpace
from vision_rl.evaluation.report import write_report as write_evaluation
from vision_rl.evaluation.summary import summarise
from vision_rl.report.__main__ import main
from vision_rl.run.log import RunLog

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install selenium)")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
DRIVER = shutil.which("chromedriver") or ""
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium here (apt-get install chromium chromium-driver)"),
]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)
LOOKS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


INSIDE = "key => (r => r.height > 0 && r.left >= 0 && r.right <= innerWidth)(key.getBoundingClientRect())"
OVERLAP = """plot => {
  const labels = [...plot.querySelectorAll('.ytick text')].map(t => t.getBoundingClientRect()).sort((a, b) => a.top - b.top);
  return labels.some((label, n) => n && label.top < labels[n - 1].bottom - 2);
}"""
"""Whether labels of a y axis lie over each other."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The addresses of a run's page, of two runs, of a hostile run and of an evaluation."""
    folder = tmp_path_factory.mktemp("pages")
    one, two = told_run(folder / "one"), told_run(folder / "two", steps=22)
    hostile = hostile_run(folder / "hostile")
    main([str(one)])
    main([str(one), str(two), "-o", str(folder / "both.html")])
    main([str(hostile)])
    reply = AnswerSpace().write([PREDICTED], decimals=6)
    row = boxed(0, reply, [TRUE], image_paths=[picture(folder)], image_sizes=[[400, 300]])
    summary = summarise({**IDENTITY, "task": "grounding", "settings": SETTINGS}, {0: row}, 1)
    evaluation = write_evaluation(folder, summary, [row])
    files = {"one": one / "report.html", "both": folder / "both.html", "hostile": hostile / "report.html"}
    return {name: path.as_uri() for name, path in {**files, "evaluation": evaluation}.items()}


def show(driver: Any, address: str, width: int = 1280, scheme: str = "light") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get(address)
    # On a busy machine `get` takes about:blank's last load event for this page's, and returns before its script ran.
    until(
        lambda: js(driver, "document.readyState === 'complete' && location.href") == driver.current_url != "about:blank"
    )


def js(driver: Any, code: str, *arguments: Any) -> Any:
    return driver.execute_script(f"return {code}", *arguments)


def choose(driver: Any, name: str, value: str) -> None:
    """Set a filter as a hand does: the value, then the event."""
    code = "(f => {f.value = arguments[1]; f.dispatchEvent(new Event('input', {bubbles: true}))})"
    js(driver, f"{code}(document.getElementById('filters').elements[arguments[0]])", name, value)


def shown(driver: Any) -> list[dict[str, Any]]:
    """The replies that can be seen, as their facets with reward and push."""
    found: list[dict[str, Any]] = js(
        driver,
        "[...document.querySelectorAll('.answer')].filter(a => a.getClientRects().length).map(a => "
        "({...JSON.parse(a.dataset.facets), reward: Number(a.dataset.reward), push: a.dataset.push}))",
    )
    return found


def until(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
@pytest.mark.parametrize("name", ["one", "both", "evaluation"])
def test_every_look_draws_and_fits(driver: Any, pages: dict[str, str], name: str, width: int, scheme: str) -> None:
    show(driver, pages[name], width, scheme)
    assert driver.get_log("browser") == []
    assert js(driver, "document.documentElement.scrollWidth") <= width
    plots = js(driver, "document.querySelectorAll('.plot').length")
    assert plots and js(driver, "document.querySelectorAll('.plot .main-svg').length") >= plots
    assert js(driver, f"[...document.querySelectorAll('.keys button')].filter(key => !({INSIDE})(key)).length") == 0
    assert js(driver, f"[...document.querySelectorAll('.plot')].filter({OVERLAP}).length") == 0
    background = js(driver, "getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[scheme]
    ink = js(driver, "getComputedStyle(document.querySelector('.plot text.xtick, .plot .xtick text')).fill")
    assert ink == {"light": "rgb(27, 31, 36)", "dark": "rgb(231, 235, 240)"}[scheme]


def test_the_contents_lead_to_their_parts_and_leave_the_filters(driver: Any, pages: dict[str, str]) -> None:
    show(driver, pages["one"])
    choose(driver, "step", "1")
    js(driver, "document.querySelector('nav a[href=\"#tables\"]').click()")
    until(lambda: js(driver, "Math.abs(document.getElementById('tables').getBoundingClientRect().top)") < 900)
    assert {each["step"] for each in shown(driver)} == {"1"}


def test_the_switch_turns_page_and_curves_dark(driver: Any, pages: dict[str, str]) -> None:
    show(driver, pages["one"])
    driver.find_element("id", "theme").click()
    assert js(driver, "getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    assert js(driver, "getComputedStyle(document.querySelector('.plot .xtick text')).fill") == "rgb(231, 235, 240)"


def test_filters_show_what_they_say(driver: Any, pages: dict[str, str]) -> None:
    show(driver, pages["one"])
    everything = shown(driver)
    for name, value in {"step": "30", "failure": "timeout", "source": "web", "mode": "validation"}.items():
        choose(driver, name, value)
        found = shown(driver)
        assert found and len(found) < len(everything) and {each[name] for each in found} == {value}, name
        choose(driver, name, "")
    choose(driver, "push", "down")
    assert {each["push"] for each in shown(driver)} == {"down"}
    choose(driver, "push", "")
    choose(driver, "low", "0.5")
    choose(driver, "high", "0.9")
    found = shown(driver)
    assert found and all(0.5 <= each["reward"] <= 0.9 for each in found)
    driver.find_element("css selector", "#filters button[type=reset]").click()
    until(lambda: len(shown(driver)) == len(everything))
    choose(driver, "words", "ROYALBLUE")
    assert 0 < len(shown(driver)) < len(everything)
    assert "questions" in driver.find_element("id", "count").text
    choose(driver, "words", "")
    choose(driver, "order", "low")
    lowest = js(
        driver,
        "[...document.querySelectorAll('.card')].map(card => Math.min(...[...card.querySelectorAll('.answer')].map("
        "answer => Number(answer.dataset.reward))))",
    )
    assert lowest == sorted(lowest) and lowest[0] < lowest[-1]


def test_an_alarm_leads_to_its_rollouts_and_the_address_keeps_it(driver: Any, pages: dict[str, str]) -> None:
    show(driver, pages["one"])
    link = js(
        driver, "[...document.querySelectorAll('.alarm')].find(a => a.textContent.includes('timeout')).children[1]"
    )
    link.click()
    until(lambda: {each["failure"] for each in shown(driver)} == {"timeout"})
    until(lambda: "timeout" in driver.current_url)  # the browser tells its driver a little later than the page
    show(driver, driver.current_url)
    assert {each["failure"] for each in shown(driver)} == {"timeout"}


def test_tables_are_sorted_by_a_click(driver: Any, pages: dict[str, str]) -> None:
    show(driver, pages["one"])
    column = "[...document.querySelectorAll('.sortable')[0].tBodies[0].rows].map(r => Number(r.cells[1].dataset.value))"
    before = js(driver, column)
    head = js(driver, "document.querySelectorAll('.sortable')[0].tHead.rows[0].cells[1]")
    js(driver, "arguments[0].click()", head)
    assert js(driver, column) == sorted(before) != before
    js(driver, "arguments[0].click()", head)
    assert js(driver, column) == sorted(before, reverse=True)


def test_values_stand_under_the_pointer_and_a_click_shows_the_step(driver: Any, pages: dict[str, str]) -> None:
    show(driver, pages["one"])
    place = js(
        driver,
        "(r => [r.right - 3, r.top + r.height / 2])(document.querySelector('.plot .nsewdrag').getBoundingClientRect())",
    )
    js(driver, "Plotly.Fx.hover(document.querySelector('.plot'), {xval: 30}, 'xy')")
    until(lambda: "training, mean of 5" in js(driver, "document.querySelector('.plot .hoverlayer').textContent"))
    assert place[0] > 0
    js(driver, "document.querySelector('.plot').emit('plotly_click', {points: [{x: 30}]})")
    until(lambda: {each["step"] for each in shown(driver)} == {"30"})


def test_two_runs_share_their_charts(driver: Any, pages: dict[str, str]) -> None:
    show(driver, pages["both"])
    keys = js(
        driver, "[...document.querySelector('.chart').querySelectorAll('.keys button')].map(k => k.textContent.trim())"
    )
    assert {"one: training, mean of 5", "two: training, mean of 5", "one: validation", "two: validation"} <= set(keys)
    strokes = "[...document.querySelectorAll('.chart:first-child .scatterlayer .js-line')].map(l => getComputedStyle(l).stroke)"
    assert len(set(js(driver, strokes))) == 2, "a colour for each run"
    js(driver, "document.querySelectorAll('.chart:first-child .keys button')[1].click()")
    until(lambda: len(js(driver, strokes)) == len(keys) - 2, 20)  # the alarms have no line either
    choose(driver, "run", "two")
    assert {each["run"] for each in shown(driver)} == {"two"}


def test_a_hostile_run_changes_nothing(driver: Any, pages: dict[str, str]) -> None:
    show(driver, pages["hostile"])
    time.sleep(0.5)
    assert "owned" not in driver.title or "<script>" in driver.title
    assert driver.title != "owned"
    assert js(driver, "document.querySelectorAll('img[src=x]').length") == 0
    assert js(driver, "document.querySelectorAll('.plot a').length") == 0
    assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    choose(driver, "step", "1")
    assert shown(driver)


def test_a_live_page_takes_over_what_is_new_and_keeps_the_filters(driver: Any, tmp_path: Path) -> None:
    run = told_run(tmp_path / "run", steps=12)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vision_rl.report", str(run), "--serve", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            until(lambda: _answers(address), 60)
            show(driver, address)
            choose(driver, "step", "1")
            RunLog(run).metrics(13, {"train/reward": 0.5, "timing_s/step": 1.0})
            # In one call: the paragraph that is found may be replaced before it is read.
            until(lambda: "13 of 40 steps" in js(driver, "document.querySelector('header p').textContent"))
            assert {each["step"] for each in shown(driver)} == {"1"}
            assert js(driver, "document.querySelectorAll('.plot .main-svg').length") > 0
            assert driver.get_log("browser") == []
        finally:
            server.terminate()
    until(lambda: "ended" in js(driver, "document.getElementById('live').textContent"))


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_boxes_are_drawn_where_they_belong(driver: Any, pages: dict[str, str]) -> None:
    show(driver, pages["evaluation"])
    rect = js(
        driver,
        "(e => {e.scrollIntoView(); return e.getBoundingClientRect()})(document.querySelector('.asked figure div'))",
    )
    clip = {"x": rect["x"], "y": rect["y"] + js(driver, "scrollY"), "width": rect["width"], "height": rect["height"]}
    taken = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": {**clip, "scale": 1}}
    )
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    assert width / height == pytest.approx(400 / 300, rel=0.02)
    for colour, box in (((10, 143, 60), TRUE), ((214, 36, 110), PREDICTED)):
        ys, xs = np.nonzero(np.abs(pixels - colour).sum(axis=2) < 40)
        found = [xs.min(), ys.min(), xs.max(), ys.max()]
        expected = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
        if colour == (214, 36, 110):  # the reply's number stands above the box
            found[1] = expected[1]
        assert found == pytest.approx(expected, abs=4), colour
