"""What a run's processes use: core seconds by process, and memory."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import psutil

LOOK_SECONDS = 1.0
LOOKS_A_MEASURE = 4
"""Memory is measured at every fourth look: the kernel goes through all pages of a process for it, 0.07 s for a run's."""
TITLES = {"train_agent.py": "runners", "proxy_server": "LLM proxy", "fork_template": "template"}


@dataclass
class Watched:
    """A process of the run: when it began (s), and (time, its core seconds so far) at every look."""

    name: str
    began: float
    looks: list[tuple[float, float]] = field(default_factory=list)
    peak_mib: float = 0.0

    def used(self, start: float, end: float) -> float:
        """Core seconds between two moments, which may lie between two looks."""
        times, work = zip((self.began, 0.0), *self.looks, strict=True)
        first, last = np.interp([start, end], times, work)
        return float(last - first)


def name_of(process: psutil.Process, main: int) -> str:
    """What a process is to the run. A Ray actor's title names its class; forks of the main process are the runners."""
    command = " ".join(process.cmdline()) or process.name()
    if process.pid == main:
        return "main"
    if command.startswith("ray::"):
        return command[5:].split(".")[0].strip()
    return next((name for title, name in TITLES.items() if title in command), "Ray's daemons")


class RunWatch(threading.Thread):
    """Looks at a process and its descendants until `stop`.

    peak: the largest proportional set size of them all (shared pages are counted once), in bytes.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.peak = psutil.Process(pid), 0
        self.seen: dict[int, Watched] = {}
        self.machine = Watched("machine", time.time())
        self.machine.looks.append((time.time(), busy_seconds()))
        self._over = threading.Event()

    def run(self) -> None:
        for look in itertools.count():
            with contextlib.suppress(psutil.Error):
                family = [self.process, *self.process.children(recursive=True)]
                self.machine.looks.append((time.time(), busy_seconds()))
                for one in family:
                    self._look(one)
                if look % LOOKS_A_MEASURE == 0:
                    self.peak = max(self.peak, sum(map(size, family)))
            if self._over.wait(LOOK_SECONDS):
                return

    def _look(self, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.Error):  # it has just ended
            name, used = name_of(process, self.process.pid), sum(process.cpu_times()[:2])
            one = self.seen.setdefault(process.pid, Watched(name, process.create_time()))
            one.name = name  # Ray's workers are renamed when they get their actor
            one.looks.append((time.time(), used))

    def stop(self) -> None:
        """End the looks."""
        self._over.set()
        self.join()

    @property
    def gib(self) -> float:
        """`peak` in GiB."""
        return self.peak / 2**30

    def core_seconds(self, start: float, end: float) -> dict[str, float]:
        """Core seconds between two moments (Unix seconds), by process, the most first."""
        used: dict[str, float] = {}
        for one in self.seen.values():
            used[one.name] = used.get(one.name, 0.0) + one.used(start, end)
        return dict(sorted(used.items(), key=lambda item: -item[1]))

    def others(self, start: float, end: float) -> float:
        """Core seconds of everything else on this machine between two moments."""
        return self.machine.used(start, end) - sum(self.core_seconds(start, end).values())


def busy_seconds() -> float:
    """Core seconds in which this machine has worked since it started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def size(process: psutil.Process) -> int:
    """A process' proportional set size in bytes."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # it has just ended
        return 0
