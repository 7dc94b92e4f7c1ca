"""Equality of mathematical answers by math-verify, in a helper process that can be stopped.

math-verify bounds its own time by signals, which only a main thread may set, and SymPy's simplification can take minutes
and all memory for a short line of text. Here one helper process per process does the work, in its own main thread: its
memory is limited, and a comparison that takes more than `SECONDS` of processor time is given up as wrong (a busy machine
costs no right answer). Where even that does not end it, the helper is killed after `WALL_SECONDS` and the next question
starts another. This works in threads and in processes that were forked while a helper was running.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache

from vision_rl.rewards.math_forms import decided, for_math_verify, unwrapped

SECONDS = 3.0
WALL_SECONDS = 30.0
START_SECONDS = 60.0
MAX_CHARS = 1000
"""A longer answer is wrong: no true answer takes that much."""
_LIST = re.compile(r",(?![0-9]{3}(?![0-9]))|;|\n|\b(?:or|and)\b")
_MEMORY = 2 << 30
_READY = "ready\n"


class _Helper:
    """The helper process of this process; restarted after a timeout, never shared with a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, prediction: str, answers: Sequence[str]) -> bool:
        """Whether the prediction equals one of the answers; False where that takes too long or kills the helper."""
        with self._lock:
            process = self._running()
            if process is None or process.stdin is None:
                return False
            try:
                process.stdin.write(json.dumps([prediction, *answers]) + "\n")
                process.stdin.flush()
            except OSError:
                self.stop()
                return False
            return self._line(WALL_SECONDS) == "1\n"

    def _running(self) -> subprocess.Popen[str] | None:
        if self._owner != os.getpid():
            self._process = None  # a fork: the helper is the parent's
        if self._process is None or self._process.poll() is not None:
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vision_rl.rewards.math_equality", str(SECONDS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                bufsize=1,
                cwd=os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
            )
            if self._line(START_SECONDS) != _READY:
                return None
        return self._process

    def _line(self, seconds: float) -> str:
        """The helper's next line; "" and no helper any more where none comes in time."""
        process = self._process
        if process is None or process.stdout is None:
            return ""
        if select.select([process.stdout], [], [], seconds)[0] and (line := process.stdout.readline()):
            return line
        self.stop()
        return ""

    def stop(self) -> None:
        """End the helper, if it is this process's own."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()
        self._process = None

    def after_fork(self) -> None:
        """In a forked child: another thread may have held the lock, and the helper is the parent's."""
        self._lock, self._process = threading.Lock(), None


_HELPER = _Helper()
os.register_at_fork(after_in_child=_HELPER.after_fork)
atexit.register(_HELPER.stop)


@lru_cache(maxsize=16384)
def _verified(prediction: str, answers: tuple[str, ...]) -> bool:
    return _HELPER.ask(prediction, answers)


def math_equal(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the answer equals one of the true ones as mathematics: 1/2 and 0.5, \\frac{1}{2}, x+1 and 1+x.

    Words, times, dates, percentages and plain numbers are decided here (`math_forms`). For the rest math-verify 0.9
    (Hugging Face) reads LaTeX, \\boxed{} and plain expressions and compares with SymPy.
    """
    said = prediction.strip()
    if not said or len(said) > MAX_CHARS:
        return 0.0
    # math-verify takes any part of a list; an answer with more parts than the true one is a list of guesses.
    parts = len(_LIST.findall(said))
    truths = [text for text in (answer.strip() for answer in answers) if text and len(_LIST.findall(text)) >= parts]
    if said in truths:
        return 1.0
    verdicts = [decided(unwrapped(said), unwrapped(truth)) for truth in truths]
    open_ones = tuple(for_math_verify(truth) for truth, known in zip(truths, verdicts, strict=True) if known is None)
    return float(any(verdicts) or (bool(open_ones) and _verified(for_math_verify(said), open_ones)))


def _forms(text: str) -> list[object]:
    from math_verify import parse

    marked = text if "$" in text or "\\boxed" in text or "\\(" in text else f"${text}$"
    return list(parse(marked, parsing_timeout=None)) or list(parse(text, parsing_timeout=None))


class _OutOfTime(BaseException):
    """No `Exception`: SymPy catches those on its way."""


def _give_up(*_: object) -> None:
    raise _OutOfTime


def _serve(seconds: float) -> None:
    """Answer line by line: [prediction, answer, ...] -> "1" or "0"."""
    from math_verify import verify

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    signal.signal(signal.SIGVTALRM, _give_up)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    out.write(_READY)
    for line in sys.stdin:
        prediction, *answers = json.loads(line)
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
            said = _forms(prediction)
            right = bool(said) and any(verify(_forms(answer), said, timeout_seconds=None) for answer in answers)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except (Exception, _OutOfTime):  # SymPy raises anything on odd input, and the answer is wrong then
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            right = False
        out.write("1\n" if right else "0\n")


if __name__ == "__main__":
    _serve(float(sys.argv[1]))
