"""MiniWoB++ (Farama, 128 small web pages) in headless Chromium: the model clicks, drags and types; the page pays the reward.

    python data_utils.py episodes miniwob --envs click-test click-test-2 --train 256 --val 64 --output data/miniwob
    python train_agent.py --task miniwob --data-path data/miniwob/train.parquet --val-data-path data/miniwob/val.parquet

Needs `pip install .[miniwob]` and a Chromium of the system's (Debian: chromium). What the pages ask for, and which of them are
the same for the same seed, is in examples/miniwob/environments.md. MINIWOB_CHROMIUM names the browser's program, where it
is not found; MINIWOB_NETWORK=1 lets pages ask for what is not in the package.
"""

from __future__ import annotations

import base64
import io
import os
import re
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from vision_rl.agent.environment import Environment, Environments, Observation, Step
from vision_rl.answers.actions import READERS, Action, Reader
from vision_rl.errors import UserError
from vision_rl.settings import AgentSettings
from vision_rl.tasks import Task

from .browser import ORIGIN, Browser, BrowserError

Area = tuple[int, int, int]
AREA, FLIGHT_AREA = (50, 160, 160), (0, 375, 667)
"""Top, width and height in pixels of a task's area. The instruction, above or beside it, goes to the model as text."""
RELOADED = re.compile(
    r"book-flight.*|click-collapsible.*|click-tab.*|copy-paste-2|multi-layouts|scroll-text.*|simon-says"  # a reset leaves traces
    r"|chase-circle|click-dialog|email-inbox.*|navigate-tree|stock-market"  # differ from one load to the next, whatever the seed
)
"""Pages that are loaded anew for every episode, and of which none is restored unseen: environments.md says what was seen."""
READY_SECONDS = 10.0

_BEGIN = """
(seed => {
  if (window.jQuery) jQuery.fx.off = true;
  document.activeElement && document.activeElement.blur();
  core.endEpisode(0); core.EPISODE_MAX_TIME = 1e8; core.setDataMode('train');
  Math.seedrandom(seed); core.startEpisodeReal();
  const said = core.getUtterance();
  return [typeof said === 'string' ? said : said.utterance, WOB_TASK_READY];
})(%d)
"""

_ORACLE = """
(seed => {
  const all = () => [...document.querySelectorAll('#area, #area *')].filter(e => !e.closest('#reward-display, #sync-task-cover'));
  const begin = () => { core.endEpisode(0); Math.seedrandom(seed); core.startEpisodeReal(); };
  const push = e => {
    const r = e.getBoundingClientRect();
    if (!(r.width > 0 && r.height > 0)) return null;
    const where = {bubbles: true, cancelable: true, clientX: r.x + r.width / 2, clientY: r.y + r.height / 2};
    for (const kind of ['mousedown', 'mouseup', 'click']) e.dispatchEvent(new MouseEvent(kind, where));
    return [r.left, r.top, r.right, r.bottom];
  };
  const won = () => WOB_DONE_GLOBAL && WOB_RAW_REWARD_GLOBAL > 0;
  const until = performance.now() + 1500;
  begin();
  const n = all().length, open = [];
  let found = null;
  for (let i = n - 1; i >= 0 && !found; i--) {
    begin();
    const e = all()[i], box = e && push(e);
    if (!box) continue;
    if (won()) found = [box];
    else if (!WOB_DONE_GLOBAL) open.push(i);
  }
  for (const i of found ? [] : open) for (let j = n - 1; j >= 0 && !found && performance.now() < until; j--) {
    begin();
    const first = push(all()[i]), e = all()[j], second = first && e && push(e);
    if (second && won()) found = [first, second];
  }
  begin();
  return found;
})(%d)
"""


class MiniWoB(Environment):
    """One page of MiniWoB++ at a time. options: `env`, the page's name; `shade`, whether its picture is shaded.

    The raw reward counts, at the episode's end: the page's own one falls with the seconds that the model server takes. Its
    time is over when the rollout's turns are.
    """

    def __init__(self) -> None:
        self._browser: Browser | None = None
        self._env, self._area = "", AREA
        self._shade = self._done = False

    def reset(self, *, seed: int, options: Mapping[str, Any]) -> Observation:
        """The page `options["env"]` as the seed draws it. Raises `BrowserError`, and `UserError` for an unknown page."""
        text = self._begin(seed, options)
        return Observation(text, [self._look()])

    def repeats(self, options: Mapping[str, Any]) -> bool:
        return not RELOADED.fullmatch(str(options["env"]))

    def restore(self, *, seed: int, options: Mapping[str, Any]) -> None:
        self._begin(seed, options)

    def _begin(self, seed: int, options: Mapping[str, Any]) -> str:
        """The instruction of an episode that is then on the page."""
        browser, env = self.browser(), str(options["env"])
        self._shade, self._done = bool(options.get("shade")), False
        self._env, self._area = env, FLIGHT_AREA if env.startswith("flight.") else AREA
        page = f"{env.replace('.', '/', 1)}/wrapper.html" if self._area is FLIGHT_AREA else f"miniwob/{env}.html"
        if not (pages() / page).is_file():
            raise UserError(f"MiniWoB has no page {env!r}; examples/miniwob/environments.md lists them")
        if browser.turn_to(env) or RELOADED.fullmatch(env):
            self._load(browser, page)
        browser.calls([_mouse("mouseMoved", (-20, -20))])  # a reset keeps what the mouse hovers over
        text, ready = browser.evaluate(_BEGIN % int(seed))
        deadline = time.monotonic() + READY_SECONDS
        while not ready:
            if time.monotonic() > deadline:
                raise BrowserError(f"{env} is not ready after {READY_SECONDS:g} s")
            time.sleep(0.02)
            ready = browser.evaluate("WOB_TASK_READY")
        return str(text)

    def step(self, action: Action) -> Step:
        """Carry the action out as a mouse and a keyboard would. After the end nothing happens: the page is black then."""
        step = self.last_step(action)
        return step if step.terminated else step._replace(observation=Observation("", [self._look()]))

    def last_step(self, action: Action) -> Step:
        """The same without a screenshot."""
        if self._done:
            return Step(Observation("The episode is over."), terminated=True)
        browser = self.browser()
        browser.calls(_events(action, self._area))
        self._done, raw = browser.evaluate("[WOB_DONE_GLOBAL, WOB_RAW_REWARD_GLOBAL]")
        reward = float(raw) if self._done else 0.0
        return Step(Observation(""), reward, terminated=self._done, components={"success": float(reward > 0)})

    def out_of_turns(self) -> float:
        """What a page pays when its own time is over: else a click beside everything would be better than a wrong one."""
        return -1.0

    def oracle(self, *, seed: int, options: Mapping[str, Any]) -> list[Action] | None:
        """Clicks that solve the episode, found by trying every element, then every pair; None where there are none."""
        self.reset(seed=seed, options=options)
        boxes = self.browser().evaluate(_ORACLE % int(seed))
        if boxes is None:
            return None
        top, width, height = self._area
        return [Action("click", ((x1 + x2) / 2 / width, ((y1 + y2) / 2 - top) / height)) for x1, y1, x2, y2 in boxes]

    def browser(self) -> Browser:
        """The browser, started when it is first asked for."""
        if self._browser is None:
            self._browser = Browser(pages(), network=bool(os.environ.get("MINIWOB_NETWORK")))
        return self._browser

    def close_page(self) -> None:
        """Close the page of the last episode; its next one loads it anew."""
        self.browser().leave(self._env)

    def close(self) -> None:
        """End the browser."""
        if self._browser is not None:
            self._browser.close()
        self._browser = None

    def _load(self, browser: Browser, page: str) -> None:
        size = {"width": 400, "height": self._area[0] + self._area[2] + 30, "deviceScaleFactor": 1, "mobile": False}
        browser.calls([("Emulation.setDeviceMetricsOverride", size), ("Page.navigate", {"url": f"{ORIGIN}/{page}"})])
        deadline = time.monotonic() + READY_SECONDS
        while not browser.evaluate(
            f"location.href.endsWith('/{page}') && document.readyState === 'complete' && !!window.core?.cover_div"
        ):
            if time.monotonic() > deadline:
                browser.leave(self._env)
                raise BrowserError(f"{self._env} has not loaded after {READY_SECONDS:g} s")
            time.sleep(0.01)

    def _look(self) -> Image.Image:
        """The task's area as it is drawn now."""
        top, width, height = self._area
        # The whole page, cut here: a part of it takes Chromium twice the core time.
        shot = self.browser().call(
            "Page.captureScreenshot", format="png", optimizeForSpeed=True, captureBeyondViewport=False
        )
        picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
        picture = picture.crop((0, top, width, top + height))
        return shaded(picture) if self._shade else picture


def pages() -> Path:
    """The folder of the package's pages. Raises `UserError` where the package is missing."""
    found = find_spec("miniwob")
    if found is None or found.origin is None:
        raise UserError("the package miniwob is not installed; pip install '.[miniwob]'")
    return Path(found.origin).parent / "html"


def shaded(picture: Image.Image) -> Image.Image:
    """The picture under a wash that shades from left to right and from top to bottom, as the tiny model's own scenes are.

    Its vision tower knows relative positions only: on a white page it cannot tell where a button is.
    """
    ramp = [110 + 145 * level // 255 for level in range(256)]
    across = Image.linear_gradient("L").rotate(90).resize(picture.size).point(ramp)
    down = Image.linear_gradient("L").resize(picture.size).point(ramp)
    return ImageChops.multiply(picture, Image.merge("RGB", (across, Image.new("L", picture.size, 255), down)))


def _events(action: Action, area: Area) -> list[tuple[str, dict[str, Any]]]:
    """The DevTools commands that carry an action out."""
    button = "right" if action.name == "right_click" else "left"
    if action.name in ("type", "press"):
        return [("Input.insertText", {"text": action.text})] if action.name == "type" else _press(action.text)
    if action.point is None:
        return [("Runtime.evaluate", {"expression": "0"})]
    place = _pixel(action.point, area)
    events = [_mouse("mouseMoved", place)]
    if action.name == "scroll":
        return [
            *events,
            ("Input.dispatchMouseEvent", {**_mouse("mouseWheel", place)[1], "deltaX": 0, "deltaY": action.amount}),
        ]
    if action.name == "hover":
        return events
    if action.name == "drag" and action.to is not None:
        end = _pixel(action.to, area)
        middle = ((place[0] + end[0]) // 2, (place[1] + end[1]) // 2)
        events += [_mouse("mousePressed", place, button)]
        events += [_mouse("mouseMoved", there, button) for there in (middle, end)]  # some pages ask for two moves
        return [*events, _mouse("mouseReleased", end, button)]
    for count in range(1, 3 if action.name == "double_click" else 2):
        events += [_mouse(kind, place, button, count) for kind in ("mousePressed", "mouseReleased")]
    return events


def _pixel(point: tuple[float, float], area: Area) -> tuple[int, int]:
    top, *size = area
    x, y = (min(max(int(number * pixels), 0), pixels - 1) for number, pixels in zip(point, size, strict=True))
    return x, top + y


def _mouse(kind: str, place: tuple[int, int], button: str = "none", count: int = 1) -> tuple[str, dict[str, Any]]:
    pressed = 0 if button == "none" or kind == "mouseReleased" else 1
    event = {"type": kind, "x": place[0], "y": place[1], "button": button, "buttons": pressed, "clickCount": count}
    return "Input.dispatchMouseEvent", event


def _press(keys: str) -> list[tuple[str, dict[str, Any]]]:
    """One key, or several that are held together, as "Control+a"."""
    *held, key = keys.split("+") if len(keys) > 1 else [keys]
    bits = sum({"alt": 1, "control": 2, "ctrl": 2, "meta": 4, "shift": 8}.get(name.lower(), 0) for name in held)
    name, code, text = _KEYS.get(
        key.lower(), (key, ord(key.upper()[0]) if key else 0, key if len(key) == 1 and not bits else "")
    )
    event = {"key": name, "windowsVirtualKeyCode": code, "modifiers": bits}
    command = ["selectAll"] if bits == 2 and key.lower() == "a" else []
    down = {**event, "type": "keyDown" if text else "rawKeyDown", "text": text, "commands": command}
    return [("Input.dispatchKeyEvent", down), ("Input.dispatchKeyEvent", {**event, "type": "keyUp"})]


_KEYS = {
    "enter": ("Enter", 13, "\r"), "return": ("Enter", 13, "\r"), "tab": ("Tab", 9, ""), "escape": ("Escape", 27, ""),
    "backspace": ("Backspace", 8, ""), "delete": ("Delete", 46, ""), "space": (" ", 32, " "), "home": ("Home", 36, ""),
    "end": ("End", 35, ""), "up": ("ArrowUp", 38, ""), "down": ("ArrowDown", 40, ""), "left": ("ArrowLeft", 37, ""),
    "right": ("ArrowRight", 39, ""), "pageup": ("PageUp", 33, ""), "pagedown": ("PageDown", 34, ""),
}  # fmt: skip


def _reader(settings: AgentSettings) -> Reader:
    """The GUI actions of the model's family, or with another `agent.answer_format` than "native" a click in that form."""
    return READERS["gui" if settings.answer_format == "native" else "click"]


TASK = Task(
    name="miniwob",
    environment=Environments(
        MiniWoB,
        reader=Reader(
            lambda settings, size: _reader(settings).ask(settings, size),
            lambda reply, settings, size, seen: _reader(settings).read(reply, settings, size, seen),
        ),
        turns=8,
    ),
    rewards=("page",),
    defaults={"agent.answer_format": "native"},
    measures={"success": lambda record: record["components"]["success"]},
    headline=("success",),
    breakdowns=lambda record: [("environment", record["meta"]["env"])],
)
