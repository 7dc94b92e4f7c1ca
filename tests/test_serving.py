"""The server of an evaluation: it ends with the process that started it, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from vision_rl import serving
from vision_rl.errors import UserError

SERVE = """
import sys
from vision_rl import serving
serving.sys.executable = sys.argv[1]
with serving.serve("model", cpu=True):
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_evaluation_leaves_no_server(number: signal.Signals, tmp_path: Path) -> None:
    stub = tmp_path / "server"
    stub.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    stub.chmod(0o755)
    evaluation = subprocess.Popen([sys.executable, "-c", SERVE, str(stub)])
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline and evaluation.poll() is None
        time.sleep(0.05)
    server = psutil.Process(int((tmp_path / "pid").read_text()))
    evaluation.send_signal(number)
    evaluation.wait(10)
    try:
        server.wait(10)
    except psutil.TimeoutExpired:
        server.kill()
        pytest.fail("the server outlived the evaluation")


def test_a_server_that_ends_by_itself_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "server"
    stub.write_text("#!/bin/sh\necho the weights are cut off >&2\nexit 3\n")
    stub.chmod(0o755)
    monkeypatch.setattr(serving.sys, "executable", str(stub))
    with (
        pytest.raises(UserError, match=r"exit code 3 before it served .*\n.*cut off"),
        serving.serve("model", cpu=True),
    ):
        raise AssertionError("it served")
