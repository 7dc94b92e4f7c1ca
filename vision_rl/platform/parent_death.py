"""End child processes with their parent: a model server that stays would hold memory and ports."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork
_PR_SET_PDEATHSIG = 1
END_SECONDS = 20.0


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """To be called in a child, after its fork: let the kernel send it `number` when its parent ends, however that ends.

    Linux only; elsewhere nothing is done. The parent is the *thread* that forked (prctl(2)): it must live as long as the
    parent process is meant to.
    """
    if _LIBC:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)


@contextlib.contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process, and all that it starts, for as long as a block runs; `options` are those of `Popen`.

    However the block ends (an error, Ctrl-C, SIGTERM under `cli_errors`), they end with it; a process that is killed outright
    takes the command itself along.
    """
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=end_with_parent, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself: that must not hide why
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=END_SECONDS)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
