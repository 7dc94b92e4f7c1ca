"""MiniWoB++ (Farama, 128 small web pages) in headless Chromium: the model clicks, drags and types, the page gives the reward.

    python data_utils.py episodes miniwob --envs click-test click-test-2 --train 256 --val 64 --output data/miniwob
    python train_agent.py --task miniwob --data-path data/miniwob/train.parquet --val-data-path data/miniwob/val.parquet

Needs `pip install .[miniwob]` and a Chromium of the system's (Debian: chromium). What the pages ask for, and which of them are
the same for the same seed, is in examples/miniwob/environments.md. MINIWOB_CHROMIUM names the browser's program, where it
is not found; MINIWOB_NETWORK=1 lets pages ask for what is not in the package.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import io
import json
import mimetypes
import os
import re
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from vision_rl.agent.environment import Environment, Environments, Observation, Step
from vision_rl.answers.actions import READERS, Action, Reader
from vision_rl.errors import UserError
from vision_rl.settings import AgentSettings
from vision_rl.tasks import Task

Area = tuple[int, int, int]
AREA, FLIGHT_AREA = (50, 160, 160), (0, 375, 667)
"""Top, width and height in pixels of a task's area. The instruction, above or beside it, goes to the model as text."""
ORIGIN = "http://miniwob.invalid"
"""Where the pages seem to lie. Every request of theirs is answered here, from the package's folder, or refused."""
RELOADED = re.compile(
    r"book-flight.*|click-collapsible.*|click-tab.*|copy-paste-2|multi-layouts|scroll-text.*|simon-says"  # a reset leaves traces
    r"|chase-circle|click-dialog|email-inbox.*|navigate-tree|stock-market"  # differ from one load to the next, whatever the seed
)
"""Pages that are loaded anew for every episode, and of which none is restored unseen: environments.md says what was seen."""
CALL_SECONDS, READY_SECONDS, START_SECONDS = 20.0, 10.0, 60.0
_FLAGS = (
    "--headless --disable-gpu --remote-debugging-pipe --block-new-web-contents --no-first-run --no-default-browser-check "
    "--hide-scrollbars --mute-audio --disable-background-networking --disable-component-update --disable-sync "
    "--disable-default-apps --disable-extensions --disable-dev-shm-usage --disable-frame-rate-limit --disable-gpu-vsync "
    "--disable-features=Translate,MediaRouter,OptimizationHints --force-device-scale-factor=1 --window-size=400,400"
)
# Beside the pages' requests, which are all answered here: no name is resolved, and whatever else asks meets a closed port.
_OFFLINE = (
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--proxy-server=socks5://127.0.0.1:9",
    "--proxy-bypass-list=<-loopback>",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
)

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


class BrowserError(RuntimeError):
    """The browser died, hangs or refuses: the episode is lost, and the next one gets a new browser."""


class Browser:
    """A headless Chromium with one page, over a pair of pipes: no port is open, and it ends when this process ends.

    folder: what `ORIGIN` serves; nothing else is served. network: whether pages may ask others. Not safe for two threads.
    """

    def __init__(self, folder: Path, *, network: bool = False) -> None:
        program = os.environ.get("MINIWOB_CHROMIUM") or next(
            filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
        )
        if program is None or shutil.which(program) is None:
            raise UserError(
                f"no Chromium was found{f' at {program}' if program else ''}; install it (Debian: apt-get install chromium), or "
                "set MINIWOB_CHROMIUM to its program"
            )
        self.folder, self.network = folder.resolve(), network
        try:
            self.profile = tempfile.mkdtemp(prefix="miniwob-profile-")
        except OSError as error:
            raise UserError(
                f"no folder for the browser's profile ({error.strerror}); free space, or set TMPDIR"
            ) from error
        self._number, self._unread, self._session = 0, b"", ""
        flags = [*_FLAGS.split(), *([] if network else _OFFLINE), *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        (theirs_in, self._out), (self._in, theirs_out) = _high_pipe(), _high_pipe()
        # The shell removes the profile whatever ends the browser, a kill -9 of this process included: then the pipe is closed.
        self.pid = os.posix_spawn(
            "/bin/sh",
            [
                "sh",
                "-c",
                '"$@" >/dev/null 2>&1; rm -rf -- "$0"',
                self.profile,
                program,
                *flags,
                f"--user-data-dir={self.profile}",
            ],
            os.environ,
            # Chromium reads commands from descriptor 3 and answers on 4.
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs_in, 3), (os.POSIX_SPAWN_DUP2, theirs_out, 4)],
            setsid=True,
        )
        for number in (theirs_in, theirs_out):
            os.close(number)
        try:
            self._open_page()
        except BaseException:
            self.close()
            raise

    def _open_page(self) -> None:
        target = self.call("Target.createTarget", url="about:blank", seconds=START_SECONDS)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Inspector"):
            self.call(f"{domain}.enable")
        self.call("Fetch.enable", patterns=[{"urlPattern": "*"}])
        self.call("Page.setDownloadBehavior", behavior="deny")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, *, seconds: float = CALL_SECONDS, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its result."""
        return self.calls([(method, parameters)], seconds)[-1]

    def calls(
        self, commands: Sequence[tuple[str, Mapping[str, Any]]], seconds: float = CALL_SECONDS
    ) -> list[dict[str, Any]]:
        """Several commands, sent at once; their results in order. Raises `BrowserError`."""
        waiting = [self._send(method, parameters) for method, parameters in commands]
        results: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + seconds
        while len(results) < len(waiting):
            for message in self._messages(deadline - time.monotonic(), commands[-1][0]):
                if message.get("id") in waiting:
                    if "error" in message:
                        raise BrowserError(f"Chromium refuses {commands[-1][0]}: {message['error'].get('message')}")
                    results[message["id"]] = message["result"]
                elif message.get("method") == "Fetch.requestPaused":
                    self._answer(message["params"])
                elif message.get("method") == "Inspector.targetCrashed":
                    raise BrowserError("the page has crashed; the machine may be out of memory")
                elif message.get("method") == "Page.javascriptDialogOpening":
                    self._send("Page.handleJavaScriptDialog", {"accept": True})
        return [results[number] for number in waiting]

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression. Raises `BrowserError` for what it throws."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise BrowserError(str(details.get("exception", {}).get("description", details.get("text")))[:200])
        return result["result"].get("value")

    def _send(self, method: str, parameters: Mapping[str, Any]) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": dict(parameters)}
        if self._session:
            message["sessionId"] = self._session
        try:
            os.write(self._out, json.dumps(message).encode() + b"\0")
        except OSError as error:
            raise BrowserError(f"Chromium has ended ({error.strerror})") from error
        return self._number

    def _messages(self, seconds: float, what: str) -> list[dict[str, Any]]:
        readable, _, _ = select.select([self._in], [], [], max(seconds, 0))
        if not readable:
            raise BrowserError(f"Chromium does not answer to {what}")
        content = os.read(self._in, 1 << 20)
        if not content:
            raise BrowserError("Chromium has ended")
        *whole, self._unread = (self._unread + content).split(b"\0")
        return [json.loads(one) for one in whole]

    def _answer(self, request: Mapping[str, Any]) -> None:
        """A page's request: a file of the folder, or nothing."""
        url, identity = request["request"]["url"], {"requestId": request["requestId"]}
        if self.network and not url.startswith((ORIGIN, "file:")):
            self._send("Fetch.continueRequest", identity)
            return
        path = (self.folder / url.removeprefix(ORIGIN).partition("?")[0].partition("#")[0].lstrip("/")).resolve()
        if url.startswith(f"{ORIGIN}/") and path.is_relative_to(self.folder) and path.is_file():
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            headers = [{"name": "content-type", "value": kind}]
            body = base64.b64encode(path.read_bytes()).decode()
            self._send(
                "Fetch.fulfillRequest", {**identity, "responseCode": 200, "responseHeaders": headers, "body": body}
            )
        else:
            self._send("Fetch.failRequest", {**identity, "errorReason": "AccessDenied"})

    def close(self) -> None:
        """End the browser and remove its profile, whatever state it is in."""
        for number in (self._out, self._in):
            with contextlib.suppress(OSError):
                os.close(number)
        try:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except OSError:  # it has ended before
            pass
        for _ in range(20):  # its children end a moment later, and may write until then
            shutil.rmtree(self.profile, ignore_errors=True)
            if not os.path.exists(self.profile):
                return
            time.sleep(0.05)


def _high_pipe() -> tuple[int, int]:
    """A pipe whose ends are above 9: none of them is overwritten when a child gets its descriptors 3 and 4."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]


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

    The raw reward counts, at the episode's end: the page's own one falls with the seconds that the model server takes.
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
        browser.calls([_mouse("mouseMoved", (-20, -20))])  # a reset keeps what the mouse hovers over
        if env != self._env or RELOADED.fullmatch(env):
            self._load(env)
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
        if self._done:
            return Step(Observation("The episode is over."), terminated=True)
        browser = self.browser()
        browser.calls(_events(action, self._area))
        self._done, raw = browser.evaluate("[WOB_DONE_GLOBAL, WOB_RAW_REWARD_GLOBAL]")
        reward = float(raw) if self._done else 0.0
        seen = Observation("") if self._done else Observation("", [self._look()])
        return Step(seen, reward, terminated=self._done, components={"success": float(reward > 0)})

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
            self._browser, self._env = Browser(pages(), network=bool(os.environ.get("MINIWOB_NETWORK"))), ""
        return self._browser

    def close_page(self) -> None:
        """Load the page anew at the next reset."""
        self._env = ""

    def close(self) -> None:
        """End the browser."""
        if self._browser is not None:
            self._browser.close()
        self._browser, self._env = None, ""

    def _load(self, env: str) -> None:
        browser, flight = self.browser(), env.startswith("flight.")
        page = f"{env.replace('.', '/', 1)}/wrapper.html" if flight else f"miniwob/{env}.html"
        if not (pages() / page).is_file():
            raise UserError(f"MiniWoB has no page {env!r}; examples/miniwob/environments.md lists them")
        self._env, self._area = "", FLIGHT_AREA if flight else AREA
        size = {"width": 400, "height": self._area[0] + self._area[2] + 30, "deviceScaleFactor": 1, "mobile": False}
        browser.calls([("Emulation.setDeviceMetricsOverride", size), ("Page.navigate", {"url": f"{ORIGIN}/{page}"})])
        deadline = time.monotonic() + READY_SECONDS
        while not browser.evaluate(
            f"location.href.endsWith('/{page}') && document.readyState === 'complete' && !!window.core?.cover_div"
        ):
            if time.monotonic() > deadline:
                raise BrowserError(f"{env} has not loaded after {READY_SECONDS:g} s")
            time.sleep(0.01)
        self._env = env

    def _look(self) -> Image.Image:
        """The task's area as it is drawn now."""
        top, width, height = self._area
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        shot = self.browser().call("Page.captureScreenshot", format="png", optimizeForSpeed=True, clip=clip)
        picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
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
