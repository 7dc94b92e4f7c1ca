"""A process that must not outlive the one that started it: a model server that stays holds memory and ports."""

from __future__ import annotations

import ctypes
import signal
import sys

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork
_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """To be called in a child, after its fork: let the kernel send it `number` when its parent ends, however that ends.

    Linux only; elsewhere nothing is done. The parent is the *thread* that forked (prctl(2)): it must live as long as the
    parent process is meant to.
    """
    if _LIBC:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)
