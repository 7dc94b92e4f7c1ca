"""Runs a command that may not heed a SIGTERM: `python -IS supervised.py COMMAND...`.

vLLM 0.24 can lose the one SIGTERM that the kernel sends it when its parent is killed outright: while it starts, it raises
KeyboardInterrupt wherever it happens to be. This process gets that signal in its place, passes it on to its whole process
group, and after `SECONDS` ends what is left of the group for good. It ends with the command, with its exit code.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

SECONDS = 15.0
"""Less than the time after which the parent, where it lives, does the same (`parent_death.child`)."""


def main() -> int:
    """The command's exit code; 128 and the signal's number where one ended it."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    command = subprocess.Popen(sys.argv[1:])
    while command.poll() is None and not asked:
        time.sleep(0.1)
    if asked:
        os.killpg(0, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(SECONDS)
        os.killpg(0, signal.SIGKILL)
    code: int = command.returncode
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
