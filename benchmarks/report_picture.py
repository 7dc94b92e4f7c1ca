"""Write the README's picture of a run report, and the report itself as a page of docs/.

    python benchmarks/report_picture.py runs/demo-vqa -o docs/images/report.png --page docs/example-report.html

The picture shows figures, three curves, and groups of one step with their advantages. The page is the whole report; its curves
are pictures in place of Plotly's script, which has 4.8 MB, and settings that name a folder are left out. Needs
Chromium and its driver (apt-get install chromium chromium-driver) and selenium.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode

from plotly.offline import get_plotlyjs

from vision_rl.errors import UserError, cli_errors
from vision_rl.files import replacing
from vision_rl.report.__main__ import page_of
from vision_rl.report.page import Page, render
from vision_rl.report.run import Choice
from vision_rl.run.log import ROLLOUTS, read_jsonl

FLAGS = "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-background-networking"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
LOAD_SECONDS = 60
CURVES = ("Reward", "|actor - rollout| log-probability", "Step time by phase")
PAGE_GROUPS = 3
CHART = {"format": "svg", "width": 400, "height": 280}
STILL = "window.Plotly = {react() {}};"
"""What stands in the page for Plotly's script."""
CUT = """
document.querySelectorAll("#cards .card:not([hidden])").forEach((card, index) => { card.hidden = index >= arguments[0]; });
document.getElementById("filters").style.display = "none";
return Math.ceil(document.getElementById("cards").getBoundingClientRect().bottom + window.scrollY + 16);
"""
"""Leaves so many cards, and returns the height down to their end."""


def last_step(run_dir: Path) -> int:
    """The last step with training rollouts. Raises `UserError` if there is none."""
    steps = [rollout["step"] for rollout in read_jsonl(run_dir / ROLLOUTS)[0] if rollout["mode"] == "train"]
    if not steps:
        raise UserError(f"{run_dir} holds no training rollouts; name the --run-dir of a run that has trained")
    return int(max(steps))


def short(page: Page, step: int) -> Page:
    """What fits into a picture."""
    curves = [drawing for drawing in page.drawings if drawing.title in CURVES]
    groups = [card for card in page.cards if any(answer.push for answer in card.answers)]
    chosen = f"Groups of step {step}, the widest spread of rewards first; equal replies are counted together."
    nothing: dict[str, Any] = {"alarms": [], "calm": "", "tables": [], "lists": {}, "settings": {}}
    return dataclasses.replace(page, selection=chosen, drawings=curves, cards=groups, **nothing)


@contextlib.contextmanager
def browser(page: Path, width: int, filters: dict[str, str]) -> Iterator[Any]:
    """Chromium with a page in light mode, once its curves are drawn and its filters set."""
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    binary = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    driver_path = shutil.which("chromedriver")
    if not (binary and driver_path):
        raise UserError("Chromium or its driver is missing; install both (apt-get install chromium chromium-driver)")
    options: Any = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS.split():
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    try:
        light = [{"name": "prefers-color-scheme", "value": "light"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": light})
        resized(driver, width, 900)
        driver.get(f"{page.as_uri()}#{urlencode(filters)}")
        drawn = "return document.querySelectorAll('.plot .main-svg').length > 0 && document.readyState === 'complete'"
        WebDriverWait(driver, LOAD_SECONDS).until(lambda chromium: chromium.execute_script(drawn))
        yield driver
    finally:
        driver.quit()


def resized(driver: Any, width: int, height: int) -> None:
    """Give the window a size in pixels."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def picture(page: Path, width: int, cards: int, filters: dict[str, str]) -> bytes:
    """A PNG of a page down to its last card."""
    with browser(page, width, filters) as driver:
        resized(driver, width, driver.execute_script(CUT, cards))
        return bytes(driver.get_screenshot_as_png())


def still(page: Path, width: int) -> str:
    """The page's text with pictures of its curves in place of Plotly's script; filters, tables and the dark mode work."""
    with browser(page, width, {}) as driver:
        driver.set_script_timeout(LOAD_SECONDS)
        drawn = driver.execute_async_script(
            "Promise.all([...document.querySelectorAll('.plot')].map(d => Plotly.toImage(d, arguments[0]))).then(arguments[1])",
            CHART,
        )
    text = page.read_text(encoding="utf-8").replace(get_plotlyjs(), STILL)
    for number, address in enumerate(drawn):
        svg = base64.b64encode(unquote(address.partition(",")[2]).encode()).decode()
        image = f'<img style="background: #fff" alt="" src="data:image/svg+xml;base64,{svg}">'
        empty = f'data-figure="{number}">'
        text = text.replace(empty, f'data-listening="yes" {empty}{image}')
    return text


def of_nobodys_machine(page: Page) -> Page:
    """The page without settings that name a folder."""
    kept = {name: value for name, value in page.settings.items() if ': "/' not in name}
    return dataclasses.replace(page, settings=kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--page", type=Path, help="also write the report as one small page")
    parser.add_argument("--step", type=int, help="whose groups to show (default: the last step)")
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--cards", type=int, default=4, help="groups to show (default: %(default)s)")
    args = parser.parse_args()
    with cli_errors(), tempfile.TemporaryDirectory() as folder:
        step = args.step or last_step(args.run_dir)
        page = Path(folder) / "report.html"
        page.write_text(render(short(page_of([args.run_dir], Choice((step,)), {}), step)), encoding="utf-8")
        content = picture(page, args.width, args.cards, {"step": str(step), "order": "spread"})
        written(args.output, content)
        if args.page:
            whole = of_nobodys_machine(page_of([args.run_dir], Choice(groups=PAGE_GROUPS), {}))
            page.write_text(render(whole), encoding="utf-8")
            written(args.page, still(page, args.width).encode())


def written(path: Path, content: bytes) -> None:
    """Write a file and say so."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    print(f"wrote {path} ({len(content) / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
