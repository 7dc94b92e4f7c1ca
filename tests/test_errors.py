"""What every command line does with bad input and with a reader that leaves."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vision_rl.errors import UserError, cli_errors


def test_a_user_error_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info, cli_errors():
        raise UserError("x is wrong; give y")
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "error: x is wrong; give y\n"


def test_an_interrupt_is_one_word_and_exit_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info, cli_errors():
        raise KeyboardInterrupt
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), cli_errors():
        print(1 / 0)


@pytest.mark.parametrize("lines", [1, 200_000])
def test_a_reader_that_leaves_early_is_no_traceback(lines: int) -> None:
    """With one line the pipe breaks when the output is flushed at the end, with many in a print."""
    code = (
        "import sys\nfrom vision_rl.errors import cli_errors\nsys.stdin.read()\n"  # it waits until the reader has gone
        f"with cli_errors():\n    print('\\n'.join(['x'] * {lines}))"
    )
    pipe = subprocess.PIPE
    writer = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe)
    assert writer.stdin and writer.stdout and writer.stderr
    writer.stdout.close()
    writer.stdin.close()
    assert writer.stderr.read() == b""
    assert writer.wait() == 141
