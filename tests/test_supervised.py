"""A command under `vision_rl.platform.supervised`: its exit code, and its end when it does not heed a SIGTERM."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

from vision_rl.platform import supervised

DEAF = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), other.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("end", "code"), [("sys.exit(0)", 0), ("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_it_ends_with_the_commands_exit_code(end: str, code: int) -> None:
    command = [sys.executable, "-IS", supervised.__file__, sys.executable, "-c", f"import os, sys; {end}"]
    assert subprocess.run(command, timeout=60).returncode == code


def test_a_command_that_does_not_heed_a_sigterm_is_killed_with_all_that_it_started() -> None:
    code = (
        "import sys; from vision_rl.platform import supervised; supervised.SECONDS = 0.3; sys.exit(supervised.main())"
    )
    command = [sys.executable, "-c", code, sys.executable, "-c", DEAF]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as running:
        assert running.stdout
        started = [psutil.Process(int(number)) for number in running.stdout.readline().split()]
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=30) == -signal.SIGKILL
        assert psutil.wait_procs(started, timeout=30)[1] == []
