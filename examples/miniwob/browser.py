"""A headless Chromium, driven over the DevTools protocol; its pages see one folder's files and nothing else."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import mimetypes
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vision_rl.errors import UserError

ORIGIN = "http://miniwob.invalid"
"""Where the pages seem to lie. Every request of theirs is answered here, from the package's folder, or refused."""
CALL_SECONDS, START_SECONDS = 20.0, 60.0
PAGES = 4
"""Pages that a browser holds at once. To load one takes ten times as long as an episode on it."""
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


class BrowserError(RuntimeError):
    """The browser died, hangs or refuses: the episode is lost, and the next one gets a new browser."""


class Browser:
    """A headless Chromium, over a pair of pipes: no port is open, and it ends when this process ends.

    It holds up to `PAGES` pages, and all commands go to the one that `turn_to` has named. folder: what `ORIGIN` serves;
    nothing else is served. network: whether pages may ask others. Not safe for two threads.
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
        self._pages: dict[str, tuple[str, str]] = {}  # name -> (target, session); the one used last is the last
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
            self.call("Browser.getVersion", seconds=START_SECONDS)
        except BaseException:
            self.close()
            raise

    def turn_to(self, name: str) -> bool:
        """Send what follows to the page of that name; whether it has just been opened, and is empty."""
        page = self._pages.pop(name, None)
        self._session = ""
        if page is None:
            while len(self._pages) >= PAGES:
                self.leave(next(iter(self._pages)))
            # A window each, so that none stands behind another when it is to be drawn.
            target = self.call("Target.createTarget", url="about:blank", newWindow=True)["targetId"]
            session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        else:
            target, session = page
        self._pages[name], self._session = (target, session), session
        if page is None:
            self.calls(
                [
                    ("Page.enable", {}),
                    ("Inspector.enable", {}),
                    ("Fetch.enable", {"patterns": [{"urlPattern": "*"}]}),
                    ("Page.setDownloadBehavior", {"behavior": "deny"}),
                    ("Emulation.setFocusEmulationEnabled", {"enabled": True}),
                ]
            )
        return page is None

    def leave(self, name: str) -> None:
        """Close a page, if it is open."""
        target, _ = self._pages.pop(name, ("", ""))
        if target:
            self._session = ""
            self.call("Target.closeTarget", targetId=target)

    def call(self, method: str, *, seconds: float = CALL_SECONDS, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its result."""
        return self.calls([(method, parameters)], seconds)[-1]

    def calls(
        self, commands: Sequence[tuple[str, Mapping[str, Any]]], seconds: float = CALL_SECONDS
    ) -> list[dict[str, Any]]:
        """Several commands, sent at once; their results in order. Raises `BrowserError`."""
        waiting = [self._send(method, parameters, self._session) for method, parameters in commands]
        results: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + seconds
        while len(results) < len(waiting):
            for message in self._messages(deadline - time.monotonic(), commands[-1][0]):
                if message.get("id") in waiting:
                    if "error" in message:
                        raise BrowserError(f"Chromium refuses {commands[-1][0]}: {message['error'].get('message')}")
                    results[message["id"]] = message["result"]
                elif message.get("method") == "Fetch.requestPaused":
                    self._answer(message["params"], message["sessionId"])
                elif message.get("method") == "Inspector.targetCrashed":
                    raise BrowserError("the page has crashed; the machine may be out of memory")
                elif message.get("method") == "Page.javascriptDialogOpening":
                    self._send("Page.handleJavaScriptDialog", {"accept": True}, message["sessionId"])
        return [results[number] for number in waiting]

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression. Raises `BrowserError` for what it throws."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise BrowserError(str(details.get("exception", {}).get("description", details.get("text")))[:200])
        return result["result"].get("value")

    def _send(self, method: str, parameters: Mapping[str, Any], session: str) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": dict(parameters)}
        if session:  # else it is the browser's own
            message["sessionId"] = session
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

    def _answer(self, request: Mapping[str, Any], session: str) -> None:
        """A page's request: a file of the folder, or nothing."""
        url, identity = request["request"]["url"], {"requestId": request["requestId"]}
        if self.network and not url.startswith((ORIGIN, "file:")):
            self._send("Fetch.continueRequest", identity, session)
            return
        path = (self.folder / url.removeprefix(ORIGIN).partition("?")[0].partition("#")[0].lstrip("/")).resolve()
        if url.startswith(f"{ORIGIN}/") and path.is_relative_to(self.folder) and path.is_file():
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            headers = [{"name": "content-type", "value": kind}]
            body = base64.b64encode(path.read_bytes()).decode()
            answer = {**identity, "responseCode": 200, "responseHeaders": headers, "body": body}
            self._send("Fetch.fulfillRequest", answer, session)
        else:
            self._send("Fetch.failRequest", {**identity, "errorReason": "AccessDenied"}, session)

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
