"""A picture of a run's report for the README: figures and two curves, then groups of one step with their advantages.

    python benchmarks/report_picture.py runs/demo-vqa -o docs/images/report.png [--step 30] [--cards 3]

The rest of the page, and the folder of the model, are left out. Needs
Chromium and its driver (apt-get install chromium chromium-driver) and selenium.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from vision_rl.errors import UserError, cli_errors
from vision_rl.files import replacing
from vision_rl.report.__main__ import page_of
from vision_rl.report.page import Page, render
from vision_rl.report.run import Choice
from vision_rl.run.log import ROLLOUTS, read_jsonl

FLAGS = "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-background-networking"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
LOAD_SECONDS = 60
CURVES = ("Reward", "|actor - rollout| log-probability")
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
    about = page.subtitle.partition(", ")[2]  # without the model's folder
    chosen = f"Groups of step {step}, the widest spread of rewards first; equal replies are counted together."
    nothing: dict[str, Any] = {"alarms": [], "calm": "", "tables": [], "lists": {}, "settings": {}}
    return dataclasses.replace(page, subtitle=about, selection=chosen, drawings=curves, cards=groups, **nothing)


def picture(page: Path, width: int, cards: int, filters: dict[str, str]) -> bytes:
    """A PNG of a page in light mode down to its last card, once its curves are drawn and its filters set."""
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
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(f"{page.as_uri()}#{urlencode(filters)}")
        drawn = "return document.querySelectorAll('.plot .main-svg').length > 0 && document.readyState === 'complete'"
        WebDriverWait(driver, LOAD_SECONDS).until(lambda browser: browser.execute_script(drawn))
        size["height"] = driver.execute_script(CUT, cards)
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        return bytes(driver.get_screenshot_as_png())
    finally:
        driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--step", type=int, help="whose groups to show (default: the last step)")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--cards", type=int, default=3, help="groups to show (default: %(default)s)")
    args = parser.parse_args()
    with cli_errors(), tempfile.TemporaryDirectory() as folder:
        step = args.step or last_step(args.run_dir)
        page = Path(folder) / "report.html"
        page.write_text(render(short(page_of([args.run_dir], Choice((step,)), {}), step)), encoding="utf-8")
        content = picture(page, args.width, args.cards, {"step": str(step), "order": "spread"})
        with replacing(args.output) as temporary:
            temporary.write_bytes(content)
        print(f"wrote {args.output} ({len(content) / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
